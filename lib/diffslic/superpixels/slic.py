"""Soft SLIC: the differentiable clustering at the heart of superpixel sampling networks.

Every pixel lies in one cell of a regular grid and may join the superpixels of the 3 x 3 cells around it (Jampani et
al., 2018, Algorithm 1). All pixels of a cell share these nine candidates, so packing the pixels by cell turns an
iteration into two batched matrix products: pixels by candidates gives the distances, affinities by pixels the new
centroids. What nine cells add to one superpixel is then summed by a fold, which is nine shifted additions.

Slot ``k = 3 (di + 1) + (dj + 1)`` of a pixel is the cell ``di`` rows below and ``dj`` columns right of its own.
Superpixel ``s = i * nw + j`` starts in row ``i`` and column ``j`` of the grid.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_WEIGHT = 1e-16  # added to every sum of affinities that divides: a superpixel may lose all its pixels
FAR_AWAY = 1e30          # squared distance of a candidate outside the grid: its affinity underflows to exactly 0

# ---------------------------------------------------------------- the grid and the packing of pixels by cell


def grid_for(n_spixels: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the grid whose cells are about square: at most ``n_spixels`` cells, never an empty axis.

    nh = floor(sqrt(n H / W)) and nw = floor(sqrt(n W / H)). On a strip so thin that one of them is 0, that axis gets
    one cell and the other at most ``n_spixels``.

    Raises:
        ValueError: ``n_spixels`` is below 1 or above the number of pixels.
    """
    if not 1 <= n_spixels <= height * width:
        raise ValueError(f"n_spixels must be between 1 and the {height * width} pixels of the "
                         f"{height} x {width} image, got {n_spixels}")
    # Integer roots: floor(sqrt(p / q)) = isqrt(p // q), without the rounding of a floating-point quotient.
    rows = max(1, math.isqrt(n_spixels * height // width))
    columns = max(1, math.isqrt(n_spixels * width // height))
    return min(rows, n_spixels), min(columns, n_spixels)


class _Axis:
    """One image axis of ``size`` pixels cut into ``n`` cells: pixel y lies in cell floor(y n / size).

    Every cell is read through a window as long as the longest cell; ``inner`` is the cell within its window.
    """

    def __init__(self, size: int, n: int) -> None:
        ends = [-(-i * size // n) for i in range(n + 1)]  # cell i begins at ceil(i size / n), where i - 1 ends
        self.size, self.n, self.longest = size, n, -(-size // n)
        self.windows = [min(start, size - self.longest) for start in ends[:-1]]
        self.inner = [(start - window, stop - window) for window, start, stop in zip(self.windows, ends, ends[1:])]

    def cell(self, device: torch.device) -> Tensor:
        """(size,) the cell of each pixel."""
        return torch.arange(self.size, device=device) * self.n // self.size

    def filled(self, device: torch.device) -> Tensor:
        """(n, longest) bool: True at the pixels of the cell, False at the padding of a short one."""
        first, last = torch.tensor(self.inner, device=device).mT[..., None]
        place = torch.arange(self.longest, device=device)
        return (place >= first) & (place < last)


class Cells:
    """Pixels of (H, W) images packed by grid cell, and back.

    ``pack`` and ``unpack`` are each other's transpose, so each is the other's gradient and nothing is ever scattered.
    Cells differ by at most one row and one column; short ones are padded with zeros.
    """

    def __init__(self, grid: tuple[int, int], height: int, width: int, device: torch.device) -> None:
        if not (1 <= grid[0] <= height and 1 <= grid[1] <= width):
            raise ValueError(f"the grid must be between 1 x 1 and the image's {height} x {width} pixels, "
                             f"got {grid[0]} x {grid[1]}")
        self.rows, self.columns = _Axis(height, grid[0]), _Axis(width, grid[1])
        filled = self.rows.filled(device)[:, None, :, None] & self.columns.filled(device)[None, :, None]
        self.filled = filled.flatten(0, 1).flatten(1)                  # (S, n) False at padding
        self.whole = height % grid[0] == 0 and width % grid[1] == 0    # no padding anywhere

    def pack(self, image: Tensor) -> Tensor:
        """(B, C, H, W) to (B, S, C, n), n the pixels of the largest cell."""
        return _Pack.apply(image, self)

    def unpack(self, packed: Tensor) -> Tensor:
        """(B, S, C, n) to (B, C, H, W); the padding is dropped."""
        return _Unpack.apply(packed, self)


# Stacks of slices copy whole runs of a row, five times faster than indexing.

class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, image: Tensor, cells: Cells) -> Tensor:
        ctx.cells = cells
        rows, columns = cells.rows, cells.columns
        bands = torch.stack([image[:, :, y:y + rows.longest] for y in rows.windows], dim=1)
        blocks = torch.stack([bands[..., x:x + columns.longest] for x in columns.windows], dim=2)
        packed = blocks.flatten(1, 2).flatten(3)                       # (B, nh, nw, C, ch, cw) to (B, S, C, n)
        return packed if cells.whole else packed.mul_(cells.filled[:, None])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Unpack.apply(gradient, ctx.cells), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor, cells: Cells) -> Tensor:
        ctx.cells = cells
        rows, columns = cells.rows, cells.columns
        blocks = packed.unflatten(1, (rows.n, columns.n)).unflatten(-1, (rows.longest, columns.longest))
        bands = torch.cat([blocks[:, :, j, ..., a:b] for j, (a, b) in enumerate(columns.inner)], dim=-1)
        return torch.cat([bands[:, i, :, a:b] for i, (a, b) in enumerate(rows.inner)], dim=2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Pack.apply(gradient, ctx.cells), None


def _nine(superpixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Values (B, S, C) of the nine candidates of each cell: (B, S, 9, C), zeros outside the grid."""
    batch, count, channels = superpixels.shape
    field = superpixels.transpose(1, 2).reshape(batch, channels, *grid)
    return F.unfold(field, 3, padding=1).view(batch, channels, 9, count).permute(0, 3, 2, 1)


def _sum_nine(contributions: Tensor, grid: tuple[int, int]) -> Tensor:
    """The transpose of :func:`_nine`: what cells (B, S, 9, C) give to their candidates, summed to (B, S, C)."""
    batch, count, _, channels = contributions.shape
    columns = contributions.permute(0, 3, 2, 1).reshape(batch, channels * 9, count)
    return F.fold(columns, grid, 3, padding=1).flatten(2).transpose(1, 2)


# ---------------------------------------------------------------- the result, and moving values in and out of it


@dataclass(eq=False)  # not frozen: Fabric rebuilds what a network returns
class SoftSLIC:
    """Pixels softly assigned to superpixels.

    Attributes:
        affinity: (B, 9, H, W) share of each candidate in a pixel, sums to 1 over the nine; 0 outside the grid.
        centroids: (B, S, C) mean features of the superpixels.
        grid: (nh, nw) rows and columns of the grid, S = nh * nw.
    """

    affinity: Tensor
    centroids: Tensor
    grid: tuple[int, int]

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.grid, *self.affinity.shape[-2:], self.affinity.device)

    @cached_property
    def candidates(self) -> Tensor:
        """(9, H, W) int64: the superpixel in each slot of a pixel, -1 where the slot lies outside the grid."""
        step = torch.arange(-1, 2, device=self.affinity.device)
        row = self._cells.rows.cell(step.device)[:, None] + step.repeat_interleave(3)[:, None, None]  # (9, H, 1)
        column = self._cells.columns.cell(step.device) + step.repeat(3)[:, None, None]       # (9, 1, W)
        inside = (row >= 0) & (row < self.grid[0]) & (column >= 0) & (column < self.grid[1])
        return torch.where(inside, row * self.grid[1] + column, -1)

    @cached_property
    def labels(self) -> Tensor:
        """(B, H, W) int64: the superpixel with the largest affinity, the lowest slot on ties."""
        rows, columns, device = self._cells.rows, self._cells.columns, self.affinity.device
        cell = rows.cell(device)[:, None] * columns.n + columns.cell(device)
        step = torch.arange(-1, 2, device=device)
        return cell + (step[:, None] * columns.n + step).flatten()[self._slot]

    @property
    def _slot(self) -> Tensor:
        """(B, H, W) the slot with the largest affinity, the first on ties."""
        return self.affinity.detach().max(1).indices  # as argmax, which is five times slower on a middle axis

    def harden(self) -> "SoftSLIC":
        """The same superpixels with all of a pixel given to its label; no gradient flows through the choice."""
        slots = torch.arange(9, device=self.affinity.device)[:, None, None]
        return replace(self, affinity=(self._slot[:, None] == slots).to(self.affinity.dtype))

    def pool(self, x: Tensor) -> Tensor:
        """Means of per-pixel values over the superpixels, weighted by affinity.

        Args:
            x: (B, C', H, W) values, or (1, C', H, W) shared by the batch.

        Returns:
            (B, S, C') means; 0 for a superpixel without pixels.
        """
        batch, _, height, width = self.affinity.shape
        if x.ndim != 4 or x.shape[-2:] != (height, width) or x.shape[0] not in (1, batch):
            raise ValueError(f"pool needs ({batch}, C, {height}, {width}) values, got {tuple(x.shape)}")
        x = x.expand(batch, -1, -1, -1).to(self.affinity.dtype)
        with torch.autocast(x.device.type, enabled=False):
            pixels = self._cells.pack(torch.cat([x, torch.ones_like(x[:, :1])], dim=1))      # (B, S, C' + 1, n)
            sums = _sum_nine(self._cells.pack(self.affinity) @ pixels.mT, self.grid)         # (B, S, C' + 1)
        return sums[..., :-1] / (sums[..., -1:] + SMALLEST_WEIGHT)

    def unpool(self, superpixels: Tensor) -> Tensor:
        """Values of superpixels spread over the pixels: (B, S, C') to (B, C', H, W), mixed by affinity."""
        batch, count = self.affinity.shape[0], self.grid[0] * self.grid[1]
        if superpixels.ndim != 3 or tuple(superpixels.shape[:2]) != (batch, count):
            raise ValueError(f"unpool needs ({batch}, {count}, C) values, got {tuple(superpixels.shape)}")
        with torch.autocast(superpixels.device.type, enabled=False):
            nine = _nine(superpixels.to(self.affinity.dtype), self.grid)                     # (B, S, 9, C')
            return self._cells.unpack(nine.mT @ self._cells.pack(self.affinity))


# ---------------------------------------------------------------- the algorithm


def soft_slic(features: Tensor, grid: tuple[int, int], n_iters: int = 10, distance: str = "l2",
              weights: Tensor | None = None) -> SoftSLIC:
    """Cluster pixels softly around the centroids of a grid (Jampani et al., 2018, Algorithm 1).

    From the means over the grid's windows (adaptive average pooling), each iteration finds the affinities
    q_k = exp(-d_k) / sum exp(-d) over a pixel's candidates (equation 2), then the centroids, means of the features
    weighted by q (equation 3). The affinities returned are those of the last iteration, the centroids come after it.

    Gradients flow through every iteration and the first centroids.

    Args:
        features: (B, C, H, W) pixel features, scaled so that a distance of 1 matters. Any C, H and W.
        grid: (nh, nw) rows and columns of the grid, see :func:`grid_for`.
        n_iters: number of iterations, at least 1.
        distance: ``"squared"``, the paper's ||x - c||^2, or ``"l2"``, its root, which the released weights use.
        weights: (C,) factor of each channel's difference in the distance alone, ||w (x - c)||; the centroids keep the
            features' own scale. Larger for the positions: rounder superpixels.

    Raises:
        ValueError: a wrong shape, a grid finer than the pixels, or features that are not finite.
    """
    _check(features, n_iters, distance)
    if weights is not None:
        if weights.shape != features.shape[1:2]:
            raise ValueError(f"weights must be ({features.shape[1]},), one per channel, got {tuple(weights.shape)}")
        soft = soft_slic(weights[:, None, None] * features, grid, n_iters, distance)
        return replace(soft, centroids=soft.pool(features))
    if features.dtype not in (torch.float32, torch.float64):
        features = features.float()  # half precision cannot hold a sum over the pixels of a superpixel
    with torch.autocast(features.device.type, enabled=False):
        cells = Cells(grid, *features.shape[-2:], features.device)
        centroids = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)         # (B, S, C)
        if not torch.isfinite(centroids).all():
            raise ValueError("features must be finite, got NaN or infinity")
        # Only differences count, so every cell measures from its own first centroid: near the origin the expanded
        # square |x|^2 - 2 x c + |c|^2 loses no digits to cancellation. The result does not depend on the origins, so
        # they need no gradient.
        origin = centroids.detach()
        pixels = _measure(cells.pack(features), origin, cells.filled)                        # (B, S, C + 2, n)
        inside = _nine(torch.ones_like(origin[..., :1]), grid)                               # (B, S, 9, 1)
        for _ in range(n_iters):
            nine = (_nine(centroids, grid) - origin[:, :, None]) * inside                    # (B, S, 9, C)
            affinity = _associate(pixels, nine, inside, distance)                            # (B, S, 9, n)
            centroids = _update(affinity, pixels, origin, grid)                              # (B, S, C)
        return SoftSLIC(cells.unpack(affinity), centroids, grid)


def _measure(pixels: Tensor, origin: Tensor, filled: Tensor) -> Tensor:
    """Packed features from their cell's origin, with two more channels: one, and the squared length."""
    filled = filled[:, None].to(pixels.dtype)
    pixels = torch.addcmul(pixels, origin[..., None], filled, value=-1)
    return torch.cat([pixels, filled.expand_as(pixels[:, :, :1]), pixels.square().sum(2, keepdim=True)], dim=2)


def _associate(pixels: Tensor, nine: Tensor, inside: Tensor, distance: str) -> Tensor:
    """Affinities (B, S, 9, n) of packed pixels to the nine centroids (B, S, 9, C) of their cell."""
    constant = nine.square().sum(-1, keepdim=True) + FAR_AWAY * (1 - inside)
    squared = torch.cat([-2 * nine, constant, torch.ones_like(constant)], dim=-1) @ pixels
    if distance == "l2":
        # The root's slope at 0 is infinite: below the rounding error the distance is constant, its gradient 0.
        squared = squared.clamp_min(torch.finfo(squared.dtype).eps ** 2).sqrt()
    return F.softmin(squared, dim=2)


def _update(affinity: Tensor, pixels: Tensor, origin: Tensor, grid: tuple[int, int]) -> Tensor:
    """Centroids (B, S, C): the means of packed pixels weighted by affinity."""
    sums, weights, _ = (affinity @ pixels.mT).tensor_split((-2, -1), dim=-1)                 # (B, S, 9, C), (.., 1)
    sums = _sum_nine(torch.cat([sums + weights * origin[:, :, None], weights], dim=-1), grid)
    return sums[..., :-1] / (sums[..., -1:] + SMALLEST_WEIGHT)


def _check(features: Tensor, n_iters: int, distance: str) -> None:
    if features.ndim != 4 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(f"features must be floating point (B, C, H, W), got {features.dtype} {tuple(features.shape)}")
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
    if distance not in ("l2", "squared"):
        raise ValueError(f"distance must be 'l2' or 'squared', got {distance!r}")
