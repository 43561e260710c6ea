"""Soft SLIC packed by cell, beside its usual formulation and scikit-image's SLIC: time and memory on one CPU thread.

The usual formulation gathers the nine candidates of every pixel, keeps the affinities as a COO sparse matrix and
updates the centroids by a sparse product. All run in turn, A B C A B C, CPU time, medians.

    python benchmarks/soft_slic.py
"""

import multiprocessing
from collections.abc import Callable

import torch
import torch.nn.functional as F
from skimage import data
from skimage.segmentation import slic
from torch import Tensor

from diffslic.superpixels import grid_for, soft_slic
from diffslic.superpixels.slic import SMALLEST_WEIGHT
from measuring import medians, peak_growth

HEIGHT, WIDTH, N_ITERS, ROUNDS = 321, 481, 10, 5


def usual_soft_slic(features: Tensor, candidates: Tensor, grid: tuple[int, int], n_iters: int,
                    distance: str = "l2") -> tuple[Tensor, Tensor]:
    """Affinities (9, N) and centroids (S, C) of one image (1, C, H, W), by gathers and sparse products."""
    pixels = features[0].flatten(1)                                                # (C, N)
    channels, count = pixels.shape
    candidates = candidates.flatten(1)                                             # (9, N)
    inside = candidates >= 0
    pixel = torch.arange(count, device=features.device).expand(9, -1)
    indices = torch.stack([candidates[inside], pixel[inside]])
    centroids = F.adaptive_avg_pool2d(features, grid)[0].flatten(1).T              # (S, C)
    for _ in range(n_iters):
        gathered = centroids[candidates.clamp_min(0)]                              # (9, N, C)
        distances = (gathered - pixels.T).square().sum(-1)
        if distance == "l2":
            distances = distances.sqrt()
        affinity = distances.masked_fill(~inside, torch.inf).neg().softmax(0)
        matrix = torch.sparse_coo_tensor(indices, affinity[inside], (len(centroids), count),
                                         check_invariants=False)
        weights = torch.sparse.sum(matrix, 1).to_dense()[:, None]
        centroids = torch.sparse.mm(matrix, pixels.T) / (weights + SMALLEST_WEIGHT)
    return affinity, centroids


def features_of(channels: int) -> Tensor:
    """(1, C, H, W): a smooth part, which superpixels can follow, and noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.randn(1, channels, 12, 16, generator=generator)
    smooth = F.interpolate(smooth, size=(HEIGHT, WIDTH), mode="bicubic")
    return 3 * smooth + 0.3 * torch.randn(smooth.shape, generator=generator)


def ways(channels: int, n_spixels: int) -> dict[str, Callable[[], Tensor]]:
    """The contestants. The first two return affinities, from which both still have to find the labels."""
    features, grid = features_of(channels), grid_for(n_spixels, HEIGHT, WIDTH)
    candidates = soft_slic(features, grid, 1).candidates
    image = data.astronaut()[:HEIGHT, :WIDTH]
    return {
        "packed": lambda: soft_slic(features, grid, N_ITERS).affinity[0],
        "usual": lambda: usual_soft_slic(features, candidates, grid, N_ITERS)[0].view(9, HEIGHT, WIDTH),
        "scikit-image": lambda: torch.from_numpy(slic(image, n_segments=n_spixels, max_num_iter=N_ITERS,
                                                      enforce_connectivity=False)),
    }


def memory_growth(job: tuple[str, int, int]) -> float:
    """Growth of the peak resident memory in MB during one call, in a process of its own."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    name, channels, n_spixels = job
    return peak_growth(ways(channels, n_spixels)[name])


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    print(f"{HEIGHT} x {WIDTH}, {N_ITERS} iterations, l2; milliseconds (growth of peak memory in MB)")
    print("superpixels  channels  packed           usual            scikit-image     usual/packed  packed/scikit-image"
          "  |packed - usual|")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for n_spixels, channels in ((100, 5), (100, 20), (500, 5), (500, 20)):
            contestants = ways(channels, n_spixels)
            seconds = medians(contestants, ROUNDS)
            cells = [f"{1000 * seconds[name]:7.1f} ({pool.apply(memory_growth, ((name, channels, n_spixels),)):5.1f})"
                     for name in contestants]
            difference = (contestants["packed"]() - contestants["usual"]()).abs().max()
            print(f"{n_spixels:11d}  {channels:8d}  {'  '.join(cells)}  {seconds['usual'] / seconds['packed']:12.1f}"
                  f"  {seconds['packed'] / seconds['scikit-image']:19.2f}  {difference:16.1e}")


if __name__ == "__main__":
    main()
