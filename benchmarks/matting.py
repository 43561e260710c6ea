"""Refining four segments of a photograph of 240 x 320 to alpha mattes, beside pymatting where it is installed.

pymatting's way is its closed-form Laplacian, its incomplete Cholesky factor and its conjugate gradients, one segment
after another, to the same tolerance. One thread; the two take turns, after a run that compiles. Printed are medians,
and how far the results are apart.

    python benchmarks/matting.py
"""

import numpy as np
import scipy.sparse
import torch
from skimage import data
from torch import Tensor

from diffslic import geometry, softseg
from diffslic.softseg.matting import STRENGTH, TOLERANCE
from diffslic.superpixels import classical_slic
from measuring import medians

ROUNDS = 5
SIZE = (240, 320)


def segments_of(image: Tensor, count: int = 4) -> Tensor:
    """Soft segments (L, H, W) of superpixels, by the distance of their colours from those of a few."""
    superpixels = classical_slic(image, 500)
    colours = softseg.pool(image[None], superpixels[None])[0]
    middles = colours[torch.linspace(0, len(colours) - 1, count).long()]
    return torch.softmax(-20 * torch.cdist(colours, middles), dim=1)[superpixels].permute(2, 0, 1)


def with_pymatting(segments: Tensor, image: Tensor) -> Tensor:
    import pymatting

    laplacian = pymatting.cf_laplacian(image.double().permute(1, 2, 0).numpy(), epsilon=1e-7, radius=1)
    matrix = (laplacian + STRENGTH * scipy.sparse.eye(laplacian.shape[0])).tocsc()
    factor = pymatting.ichol(matrix)
    solved = [pymatting.cg(matrix, STRENGTH * q.flatten().double().numpy(), M=factor, rtol=TOLERANCE) for q in segments]
    alphas = torch.from_numpy(np.stack(solved)).clamp(0, 1).float()
    return (alphas / alphas.sum(0)).view(segments.shape)


def main() -> None:
    torch.set_num_threads(1)
    image = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None] / 255
    image = geometry.resize(image, SIZE)[0].clamp(0, 1)
    segments = segments_of(image)
    ours, ways = softseg.refine(segments, image), {"ours": lambda: softseg.refine(segments, image)}
    try:
        theirs = with_pymatting(segments, image)
        ways["pymatting"] = lambda: with_pymatting(segments, image)
    except ImportError:
        print("matting: ours alone is measured, pip install pymatting to compare")
    seconds = medians(ways, ROUNDS)
    for name, spent in seconds.items():
        print(f"{name:10} {spent:.3f} s of one core")
    if len(ways) == 2:
        print(f"ratio {seconds['pymatting'] / seconds['ours']:.2f}; alphas differ by at most "
              f"{float((ours - theirs).abs().max()):.1e}")


if __name__ == "__main__":
    main()
