"""Flow smoothed by superpixels: inside each, the motion is taken to be simple."""

from typing import Protocol

import torch
from torch import Tensor

from diffslic import geometry

MODELS = ("constant", "affine")
EVEN = 1.0  # pixels: residuals below count about alike, above the less the larger they are
STIFFNESS = 0.5  # square pixels added to the extent of a superpixel: one of few pixels gets no slope from noise
SMALLEST = 1e-6  # mean weight of a superpixel that has pixels is larger; one without any divides by this


class Superpixels(Protocol):
    """What is asked of superpixels, such as a ``SoftSLIC``: means per superpixel, and back to pixels."""

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, S, C)."""

    def unpool(self, s: Tensor) -> Tensor:
        """(B, S, C) to (B, C, H, W)."""


def smooth_by_superpixels(flow: Tensor, superpixels: Superpixels, model: str = "affine", n_iters: int = 3) -> Tensor:
    """Replace the flow inside each superpixel by the motion that fits it best.

    Iteratively reweighted least squares: a pixel whose flow lies r pixels from its superpixel's motion has the weight
    1 / sqrt(1 + r^2), so that pixels of another body, and single errors, pull less. Differentiable in the flow and in
    the superpixels.

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        superpixels: of the frame that the flow leaves; hard or soft.
        model: "constant" (a mean) or "affine" (a mean and a slope along x and y).
        n_iters: fits, the first one with equal weights; 1 is plain least squares.

    Returns:
        (B, 2, H, W) in pixels.

    Raises:
        ValueError: not a flow, another model, no fit.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (B, 2, H, W), got {tuple(flow.shape)}")
    if model not in MODELS or n_iters < 1:
        raise ValueError(f"the model is {' or '.join(MODELS)} and n_iters at least 1, got {model!r} and {n_iters}")
    height, width = flow.shape[-2:]
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=flow.device)[:, None, None]
    grid = (geometry.pixel_grid(height, width, flow.device) - middle).expand(len(flow), -1, -1, -1)
    weight = torch.ones_like(flow[:, :1])
    for _ in range(n_iters):
        smooth = _mean(flow, superpixels, weight) if model == "constant" \
            else _affine(flow, grid, superpixels, weight)
        weight = (1 + ((flow - smooth) / EVEN).square().sum(1, keepdim=True)).rsqrt()
    return smooth


def _mean(flow: Tensor, superpixels: Superpixels, weight: Tensor) -> Tensor:
    total, moved = superpixels.pool(torch.cat([weight, weight * flow], dim=1)).split([1, 2], dim=-1)
    return superpixels.unpool(moved / total.clamp(min=SMALLEST))


def _affine(flow: Tensor, grid: Tensor, superpixels: Superpixels, weight: Tensor) -> Tensor:
    """mean + slope (x - centre), with the slope from the covariances of a superpixel's positions and flow."""
    x, y = grid[:, :1], grid[:, 1:]
    moments = torch.cat([torch.ones_like(x), grid, flow, x * x, x * y, y * y, x * flow, y * flow], dim=1)
    # Means of squares less squares of means lose digits; what the pooling itself has rounded stays below 0.01 px.
    means = superpixels.pool(weight * moments).double()
    means = means[..., 1:] / means[..., :1].clamp(min=SMALLEST)
    place, moved, squares, by_x, by_y = means.split([2, 2, 3, 2, 2], dim=-1)  # (B, S, ...)
    px, py = place.unbind(-1)
    xx, xy, yy = squares.unbind(-1)
    xx, xy, yy = xx - px * px + STIFFNESS, xy - px * py, yy - py * py + STIFFNESS
    of_x, of_y = by_x - px[..., None] * moved, by_y - py[..., None] * moved  # (B, S, 2) covariances with the flow
    determinant = (xx * yy - xy * xy)[..., None]
    along_x = (yy[..., None] * of_x - xy[..., None] * of_y) / determinant
    along_y = (xx[..., None] * of_y - xy[..., None] * of_x) / determinant
    start = moved - along_x * px[..., None] - along_y * py[..., None]
    start, along_x, along_y = superpixels.unpool(torch.cat([start, along_x, along_y], dim=-1).to(flow.dtype)
                                                 ).chunk(3, dim=1)
    return start + along_x * x + along_y * y
