"""Soft SLIC: the differentiable clustering at the heart of superpixel sampling networks.

Every pixel lies in one cell of a regular grid and may join the superpixels of the 3 x 3 cells around it (Jampani et
al., 2018, Algorithm 1). All pixels of a cell share these nine candidates, so packing the pixels by cell turns an
iteration into two batched matrix products: pixels by candidates gives the distances, affinities by pixels the new
centroids. What nine cells add to one superpixel is then summed by a fold, which is nine shifted additions.

Slot ``k = 3 (di + 1) + (dj + 1)`` of a pixel is the cell ``di`` rows below and ``dj`` columns right of its own.
Superpixel ``s = i * nw + j`` starts in row ``i`` and column ``j`` of the grid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_WEIGHT = 1e-16  # added to every sum of affinities that divides: a superpixel may lose all its pixels
FAR_AWAY = 1e30          # squared distance of a candidate outside the grid: its affinity underflows to exactly 0
CACHE = 800_000          # bytes of packed pixels that a CPU works on at a time, near the size of a core's own cache

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
        # Worked out there: numbers brought from the host would make it wait for a GPU.
        ends = -(-torch.arange(self.n + 1, device=device) * self.size // self.n)
        windows = ends[:-1].clamp(max=self.size - self.longest)
        first, last = (ends[:-1] - windows)[:, None], (ends[1:] - windows)[:, None]
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
    q_k = exp(-d_k) / sum exp(-d) over a pixel's candidates (equation 3), then the centroids, means of the features
    weighted by q (equation 4). The affinities returned are those of the last iteration, the centroids come after it.

    Gradients flow through every iteration and the first centroids. Distances are expanded squares: in single precision
    the gradient of features that are all but constant on one side of a large step, and hold no position, is coarse.

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
        finite = torch.isfinite(centroids).all()
        soft = clustered(features, centroids, cells, grid, n_iters, distance)
    if not finite:  # read last: what is to be done on a GPU is all under way by now
        raise ValueError("features must be finite, got NaN or infinity")
    return soft


def clustered(features: Tensor, centroids: Tensor, cells: Cells, grid: tuple[int, int], n_iters: int,
               distance: str) -> SoftSLIC:
    """:func:`soft_slic` of checked features from these centroids (B, S, C) on; a GPU is never waited for."""
    # Only differences count, so every cell measures from its own first centroid: near the origin the expanded square
    # |x|^2 - 2 x c + |c|^2 loses no digits to cancellation. The result does not depend on the origins, so they need no
    # gradient.
    origin = centroids.detach()
    pixels = _measure(cells.pack(features), origin, cells.filled)                            # (B, S, C + 2, n)
    affinity, centroids = _Iterations.apply(pixels, centroids, origin, grid, n_iters, distance)
    return SoftSLIC(cells.unpack(affinity), centroids, grid)


def _measure(pixels: Tensor, origin: Tensor, filled: Tensor) -> Tensor:
    """Packed features from their cell's origin, with two more channels: one, and the squared length."""
    filled = filled[:, None].to(pixels.dtype)
    pixels = torch.addcmul(pixels, origin[..., None], filled, value=-1)
    return torch.cat([pixels, filled.expand_as(pixels[:, :, :1]), pixels.square().sum(2, keepdim=True)], dim=2)


def _distance_factors(nine: Tensor, inside: Tensor) -> Tensor:
    """What multiplies pixels of :func:`_measure` to their squared distances from centroids (B, S, 9, C)."""
    constant = nine.square().sum(-1, keepdim=True) + FAR_AWAY * (1 - inside)
    return torch.cat([-2 * nine, constant, torch.ones_like(constant)], dim=-1)               # (B, S, 9, C + 2)


class _Iterations(torch.autograd.Function):
    """All iterations, as many cells at a time as a cache holds, with their gradient written out.

    Cells meet only in the centroids: between these, the products and the passes of an iteration may run on a few cells
    after the other. Autograd would run each of them over all cells, through memory, and keep more of what it met.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, centroids: Tensor, origin: Tensor, grid: tuple[int, int], n_iters: int,
                distance: str) -> tuple[Tensor, Tensor]:
        """Affinities (B, S, 9, n) of the last iteration and the centroids (B, S, C) after it."""
        inside = _nine(torch.ones_like(origin[..., :1]), grid)                               # (B, S, 9, 1)
        keep = any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        for i in range(n_iters):
            if keep or i == 0:
                logits, affinity = (pixels.new_empty(*pixels.shape[:2], 9, pixels.shape[3]) for _ in range(2))
            factors = _distance_factors((_nine(centroids, grid) - origin[:, :, None]) * inside, inside)
            sums = torch.empty_like(factors)
            # Of some cells: pixels x, factors f, distances and then logits d, affinities q, sums s.
            for x, f, d, q, s in _in_parts(pixels, factors, logits, affinity, sums):
                torch.bmm(f, x, out=d)
                if distance == "l2":
                    d.clamp_min_(_rounding(d) ** 2).sqrt_()
                torch.softmax(d.neg_(), dim=1, out=q)                                        # equation 3
                torch.bmm(q, x.mT, out=s)
            totals, weights, _ = sums.tensor_split((-2, -1), dim=-1)                         # (B, S, 9, C), (.., 1)
            totals = _sum_nine(torch.cat([totals + weights * origin[:, :, None], weights], dim=-1), grid)
            weights = totals[..., -1:] + SMALLEST_WEIGHT
            centroids = totals[..., :-1] / weights                                           # equation 4
            if keep:
                kept += factors, logits, affinity, centroids, weights
        ctx.grid, ctx.distance = grid, distance
        ctx.save_for_backward(pixels, origin, *kept)
        ctx.set_materialize_grads(False)
        return affinity, centroids

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, to_affinity: Tensor | None, to_centroids: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of the pixels and the first centroids; ``to_x`` is the gradient of x, iteration by iteration."""
        if to_affinity is None and to_centroids is None:
            return (None,) * 6
        pixels, origin, *kept = ctx.saved_tensors
        to_pixels = torch.zeros_like(pixels)
        for i in reversed(range(0, len(kept), 5)):
            factors, logits, affinity, centroids, weights = kept[i:i + 5]
            to_factors, to_sums = torch.empty_like(factors), None
            if to_centroids is not None:
                to_means = to_centroids / weights
                to_weights = -(to_means * centroids).sum(-1, keepdim=True)
                to_totals = _nine(torch.cat([to_means, to_weights], dim=-1), ctx.grid)       # (B, S, 9, C + 1)
                to_sums = F.pad(to_totals, (0, 1))
                to_sums[..., -2:-1] += (to_totals[..., :-1] * origin[:, :, None]).sum(-1, keepdim=True)
            for x, to_x, f, to_f, d, q, to_s, to_q in _in_parts(pixels, to_pixels, factors, to_factors, logits,
                                                               affinity, to_sums, to_affinity):
                if to_s is not None:
                    to_x += to_s.mT @ q
                    to_q = to_s @ x if to_q is None else torch.baddbmm(to_q, to_s, x)
                to_d = (to_q - (to_q * q).sum(1, keepdim=True)).mul_(q)
                if ctx.distance == "l2":
                    # The root's slope at 0 is infinite: below the rounding error the distance counts as constant.
                    to_d.div_(2 * d).masked_fill_(d >= -_rounding(d), 0)
                else:
                    to_d.neg_()
                to_x += f.mT @ to_d
                torch.bmm(to_d, x.mT, out=to_f)
            to_nine = -2 * to_factors[..., :-2] - factors[..., :-2] * to_factors[..., -2:-1]
            to_affinity, to_centroids = None, _sum_nine(to_nine, ctx.grid)
        return to_pixels, to_centroids, None, None, None, None


def _in_parts(pixels: Tensor, *others: Tensor | None) -> Iterator[list[Tensor | None]]:
    """The same cells of contiguous tensors (B, S, ...), a few after the other; on a GPU all of them at once."""
    cells = len(pixels) * pixels.shape[1]
    step = max(1, CACHE // pixels[0, 0].nbytes) if pixels.device.type == "cpu" else cells
    flat = [None if tensor is None else tensor.flatten(0, 1) for tensor in (pixels, *others)]
    for first in range(0, cells, step):
        yield [None if tensor is None else tensor[first:first + step] for tensor in flat]


def _rounding(distance: Tensor) -> float:
    """The rounding error of distances: below it they are taken for zero."""
    return torch.finfo(distance.dtype).eps


def _check(features: Tensor, n_iters: int, distance: str) -> None:
    if features.ndim != 4 or 0 in features.shape or not features.is_floating_point():
        raise ValueError(f"features must be floating point (B, C, H, W), got {features.dtype} {tuple(features.shape)}")
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
    if distance not in ("l2", "squared"):
        raise ValueError(f"distance must be 'l2' or 'squared', got {distance!r}")
