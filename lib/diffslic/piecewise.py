"""Fields that are simple inside each superpixel: flow, inverse depth, or anything else that pixels carry."""

from typing import Protocol

import torch
from torch import Tensor

from diffslic import geometry

MODELS = ("constant", "affine")
STIFFNESS = 0.5  # square pixels added to the extent of a superpixel: one of few pixels gets no slope from noise
SMALLEST = 1e-30  # mean weight of a superpixel that has pixels is larger; one without any divides by this


class Superpixels(Protocol):
    """What is asked of superpixels, such as a ``SoftSLIC``: means per superpixel, and back to pixels."""

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, S, C)."""

    def unpool(self, s: Tensor) -> Tensor:
        """(B, S, C) to (B, C, H, W)."""


def fit(field: Tensor, superpixels: Superpixels, model: str = "affine", n_iters: int = 3,
        weight: Tensor | None = None, even: float | Tensor = 1.0) -> Tensor:
    """Replace a field inside each superpixel by what fits it best: one value, or a value and a slope.

    Iteratively reweighted least squares: a pixel that lies r from the fit has ``weight`` / sqrt(1 + (r / even)^2), so
    that pixels of another body, and single errors, pull less. Differentiable in the field and in the superpixels.

    Args:
        field: (B, C, H, W), finite.
        superpixels: of the same frame; hard or soft.
        model: "constant" (a mean) or "affine" (a mean and a slope along x and y).
        n_iters: fits, the first one with ``weight`` alone; 1 is plain least squares.
        weight: (B, 1, H, W) from 0, how much a pixel counts, about 1 where it does; equal if None.
        even: residuals below count about alike, above the less the larger they are; of a pixel each, (B, 1, H, W), or
            of all, in the field's unit.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: not a field, another model, no fit.
    """
    if field.ndim != 4:
        raise ValueError(f"the field must be (B, C, H, W), got {tuple(field.shape)}")
    if model not in MODELS or n_iters < 1:
        raise ValueError(f"the model is {' or '.join(MODELS)} and n_iters at least 1, got {model!r} and {n_iters}")
    given = torch.ones_like(field[:, :1]) if weight is None else weight
    weight = given
    for _ in range(n_iters):
        smooth = (_mean if model == "constant" else _affine)(field, superpixels, weight)
        weight = given * (1 + ((field - smooth) / even).square().sum(1, keepdim=True)).rsqrt()
    return smooth


def _mean(field: Tensor, superpixels: Superpixels, weight: Tensor) -> Tensor:
    sums = superpixels.pool(torch.cat([weight, weight * field], dim=1))
    return superpixels.unpool(sums[..., 1:] / sums[..., :1].clamp(min=SMALLEST))


def _affine(field: Tensor, superpixels: Superpixels, weight: Tensor) -> Tensor:
    """mean + slope (x - centre), with the slope from the covariances of a superpixel's positions and field."""
    batch, channels, height, width = field.shape
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=field.device, dtype=field.dtype)[:, None, None]
    grid = (geometry.pixel_grid(height, width, field.device, field.dtype) - middle).expand(batch, -1, -1, -1)
    x, y = grid[:, :1], grid[:, 1:]
    moments = torch.cat([torch.ones_like(x), grid, field, x * x, x * y, y * y, x * field, y * field], dim=1)
    # Means of squares less squares of means lose digits; what the pooling itself has rounded stays below 0.01 px.
    means = superpixels.pool(weight * moments).double()
    means = means[..., 1:] / means[..., :1].clamp(min=SMALLEST)
    place, value, squares, by_x, by_y = means.split([2, channels, 3, channels, channels], dim=-1)  # (B, S, ...)
    px, py = place.unbind(-1)
    xx, xy, yy = squares.unbind(-1)
    xx, xy, yy = xx - px * px + STIFFNESS, xy - px * py, yy - py * py + STIFFNESS
    of_x, of_y = by_x - px[..., None] * value, by_y - py[..., None] * value  # (B, S, C) covariances with the field
    determinant = (xx * yy - xy * xy)[..., None]
    along_x = (yy[..., None] * of_x - xy[..., None] * of_y) / determinant
    along_y = (xx[..., None] * of_y - xy[..., None] * of_x) / determinant
    start = value - along_x * px[..., None] - along_y * py[..., None]
    start, along_x, along_y = superpixels.unpool(torch.cat([start, along_x, along_y], dim=-1).to(field.dtype)
                                                 ).chunk(3, dim=1)
    return start + along_x * x + along_y * y
