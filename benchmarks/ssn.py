"""Superpixel networks beside scikit-image's SLIC, and training steps beside a dense affinity; on one CPU thread.

Whole: from an image to connected labels (network, five iterations, connectivity), for the paper's width, for half of
it, for pixel features and for SpixelFCN. Training: forward and backward through the clustering, beside the textbook
form that keeps an affinity of every pixel to every superpixel. All run in turn, A B C A B C, CPU time, medians.

    python benchmarks/ssn.py
"""

from collections.abc import Callable
from functools import partial

import torch
from skimage import data
from skimage.segmentation import slic
from torch import Tensor

from diffslic.superpixels import SSN, SpixelFCN, SSNConfig, grid_for, soft_slic
from measuring import medians

HEIGHT, WIDTH, ROUNDS = 321, 481, 5


def whole(n_spixels: int) -> dict[str, Callable[[], object]]:
    """From the image to connected labels. The weights do not matter for the time."""
    torch.manual_seed(0)
    image = data.astronaut()[:HEIGHT, :WIDTH]
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    nets = {"64 wide": SSN(SSNConfig(width=64)), "32 wide": SSN(SSNConfig(width=32)),
            "32 wide, 10 iterations": SSN(SSNConfig(width=32, n_iters=10)),
            "pixel features": SSN(SSNConfig(features="pix")), "SpixelFCN": SpixelFCN()}
    contestants: dict[str, Callable[[], object]] = {"scikit-image": lambda: slic(image, n_segments=n_spixels)}
    return contestants | {name: partial(net.eval().segment, images, n_spixels) for name, net in nets.items()}


def dense_soft_slic(features: Tensor, candidates: Tensor, grid: tuple[int, int], n_iters: int) -> Tensor:
    """Affinities (S, N) of one image (1, C, H, W), of every pixel to every superpixel, zero outside the nine."""
    pixels = features[0].flatten(1).T                                              # (N, C)
    near = torch.zeros(grid[0] * grid[1] + 1, len(pixels), dtype=torch.bool)
    near.scatter_(0, torch.where(candidates < 0, len(near) - 1, candidates).flatten(1), True)
    near = near[:-1]
    centroids = torch.nn.functional.adaptive_avg_pool2d(features, grid)[0].flatten(1).T
    for _ in range(n_iters):
        gap = torch.cdist(centroids, pixels)                                       # (S, N)
        affinity = gap.masked_fill(~near, float("inf")).neg().softmax(0)
        centroids = affinity @ pixels / (affinity.sum(1, keepdim=True) + 1e-16)
    return affinity


def training() -> dict[str, Callable[[], object]]:
    """Forward and backward at 200 x 200 pixels, 200 superpixels, 20 channels, 5 iterations."""
    torch.manual_seed(0)
    features, grid = torch.randn(1, 20, 200, 200), grid_for(200, 200, 200)
    candidates = soft_slic(features, grid, 1).candidates

    def step(affinity: Callable[[Tensor], Tensor]) -> Tensor:
        x = features.clone().requires_grad_()
        affinity(x).square().sum().backward()
        return x.grad

    return {"packed": lambda: step(lambda x: soft_slic(x, grid, 5).affinity),
            "dense": lambda: step(lambda x: dense_soft_slic(x, candidates, grid, 5))}


def main() -> None:
    torch.set_num_threads(1)
    contestants = training()
    seconds = medians(contestants, ROUNDS)
    ours, theirs = (way() for way in contestants.values())
    print(f"forward and backward, 200 x 200, 200 superpixels, 20 channels: packed {1000 * seconds['packed']:.0f}, "
          f"dense {1000 * seconds['dense']:.0f}, ratio {seconds['dense'] / seconds['packed']:.1f}; "
          f"gradients differ by at most {(ours - theirs).abs().max():.1e}")
    print(f"{HEIGHT} x {WIDTH}, image to connected labels, CPU milliseconds (times scikit-image's SLIC)")
    for n_spixels in (100, 500):
        seconds = medians(whole(n_spixels), ROUNDS)
        cells = [f"{name} {1000 * value:.0f} ({value / seconds['scikit-image']:.2f})"
                 for name, value in seconds.items()]
        print(f"{n_spixels:5d} superpixels: {', '.join(cells)}")


if __name__ == "__main__":
    main()
