"""RAFT's correlation (section 3.2 of the paper): how alike every cell of one image is to the cells of the other.

Two ways to the same numbers. A :class:`Volume` compares all pairs of cells once and is read again and again; it grows
with the square of the image. :class:`RowBlocks` compares a few rows of cells at a time, each time anew, with the rows
that their windows touch: little memory, more time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Bytes up to which a volume is kept: on the CPU one pair of images of about 600 x 1000 pixels.
LARGEST_VOLUME, LARGEST_VOLUME_ON_GPU = 600e6, 16e9
BLOCK = 100e6  # bytes that a block of rows compared with all cells would take


def correlation(features1: Tensor, features2: Tensor, levels: int, radius: int) -> "Volume | RowBlocks":
    """Similarities of the cells of two images, as a :class:`Volume` unless it were too large.

    Args:
        features1, features2: (B, D, h, w). levels: of the pyramid. radius: of the windows that are read, in cells.
    """
    cells = features1.shape[-2:].numel()
    pairs = cells * sum((features2.shape[2] >> level) * (features2.shape[3] >> level) for level in range(levels))
    if 4 * len(features1) * pairs > (LARGEST_VOLUME_ON_GPU if features1.is_cuda else LARGEST_VOLUME):
        return RowBlocks(features1, features2, levels, radius)
    return Volume(correlation_pyramid(features1, features2, levels), radius)


class Volume:
    """All similarities.

    Args:
        pyramid: see :func:`correlation_pyramid`. radius: of the windows that are read, in cells.
    """

    def __init__(self, pyramid: list[Tensor], radius: int) -> None:
        self.pyramid, self.radius = pyramid, radius
        self._taps = [_Taps(level.flatten(2)) for level in pyramid]

    def __call__(self, position: Tensor) -> Tensor:
        """Read windows of the pyramid around where each cell is now believed to go.

        All points of a window share their fractional part, so (2r + 2)^2 integer taps are gathered once and
        interpolated along x, then along y. Outside of the second image the similarity is zero.

        Args:
            position: (B, 2, h, w) positions in the second feature grid, x first.

        Returns:
            (B, levels * (2r + 1)^2, h, w); the window's first index displaces x, as released weights expect.
        """
        batch, _, height, width = position.shape
        radius, windows = self.radius, []
        steps = torch.arange(-radius, radius + 2, device=position.device)
        for level, (volume, read) in enumerate(zip(self.pyramid, self._taps)):
            rows, columns = volume.shape[-2:]
            if rows == 0 or columns == 0:
                windows.append(position.new_zeros(batch, height * width, (2 * radius + 1) ** 2))
                continue
            x, y = (position / 2 ** level).flatten(2).unbind(1)  # (B, N) each
            # A flow may wander far off; a bound just outside of the image keeps the integers small and reads zeros.
            x, y = x.clamp(-radius - 2, columns + radius + 1), y.clamp(-radius - 2, rows + radius + 1)
            column, row = x.floor().long()[..., None] + steps, y.floor().long()[..., None] + steps  # (B, N, 2r + 2)
            inside = ((column >= 0) & (column < columns))[..., :, None] & ((row >= 0) & (row < rows))[..., None, :]
            index = column.clamp(0, columns - 1)[..., :, None] + (columns * row.clamp(0, rows - 1))[..., None, :]
            taps = read(index.flatten(2)).reshape(index.shape) * inside  # x before y
            right, down = (x - x.floor())[..., None, None], (y - y.floor())[..., None, None]
            taps = torch.lerp(taps[..., :-1, :], taps[..., 1:, :], right.to(taps.dtype))
            taps = torch.lerp(taps[..., :-1], taps[..., 1:], down.to(taps.dtype))
            windows.append(taps.flatten(2))
        return torch.cat(windows, dim=2).transpose(1, 2).unflatten(2, (height, width))

    @torch.no_grad()
    def renewed(self, features1: Tensor, features2: Tensor) -> "Volume":
        """The volume of other features of the same size, in this one's memory: to allocate new memory costs as much
        as to fill it. The old numbers are gone, and no gradient passes.
        """
        correlation_pyramid(features1, features2, len(self.pyramid), self.pyramid)
        return self

    def reversed(self, features1: Tensor, features2: Tensor) -> "Volume":
        """From the second image to the first, given the features of both.

        The finest level is this one's, read the other way round; the coarser ones, which are small, are new.
        """
        finest = self.pyramid[0].flatten(2).transpose(1, 2).unflatten(2, features1.shape[-2:])
        coarser = correlation_pyramid(features2, _half(features1), len(self.pyramid) - 1)
        return Volume([finest, *coarser], self.radius)


class RowBlocks:
    """Similarities of the windows that are asked for, a few rows of cells at a time."""

    def __init__(self, features1: Tensor, features2: Tensor, levels: int, radius: int) -> None:
        self.features1, self.radius, self.second = features1, radius, [features2]
        for _ in range(levels - 1):
            self.second.append(_half(self.second[-1]))

    def __call__(self, position: Tensor) -> Tensor:
        """As a :class:`Volume`."""
        batch, _, height, width = position.shape
        rows = max(1, int(BLOCK / (4 * batch * width * self.second[0][0, 0].numel())))
        return torch.cat([self._rows(slice(top, top + rows), position[:, :, top:top + rows])
                          for top in range(0, height, rows)], dim=2)

    def renewed(self, features1: Tensor, features2: Tensor) -> "RowBlocks":
        """As :meth:`Volume.renewed`."""
        return RowBlocks(features1, features2, len(self.second), self.radius)

    def reversed(self, features1: Tensor, features2: Tensor) -> "RowBlocks":
        """As :meth:`Volume.reversed`."""
        return RowBlocks(features2, features1, len(self.second), self.radius)

    def _rows(self, rows: slice, position: Tensor) -> Tensor:
        first, windows = self.features1[:, :, rows], []
        for level, second in enumerate(self.second):
            at_level = position / 2 ** level
            lowest, highest = torch.stack(at_level[:, 1].aminmax()).floor().long().tolist()
            top, bottom = (min(max(row, 0), second.shape[2])
                           for row in (lowest - self.radius, highest + self.radius + 2))
            slab = Volume(correlation_pyramid(first, second[:, :, top:bottom], 1), self.radius)
            windows.append(slab(torch.stack([at_level[:, 0], at_level[:, 1] - top], dim=1)))
        return torch.cat(windows, dim=1)


def correlation_pyramid(features1: Tensor, features2: Tensor, levels: int,
                        out: list[Tensor] | None = None) -> list[Tensor]:
    """Similarity of every feature of the first image to every one of the second, at coarser and coarser scales.

    Pooling the second features and then comparing gives the same numbers as pooling the similarities (both are
    linear), for a fraction of the work.

    Args:
        features1: (B, D, h, w). features2: (B, D, h', w').
        out: a pyramid of the same size to write over, without gradient; new memory if None.

    Returns:
        ``levels`` tensors (B, h * w, h'_k, w'_k) of dot products over sqrt(D); h'_k = h' // 2^k. A level that has no
        cells left is an empty tensor.
    """
    first = features1.flatten(2).transpose(1, 2) / features1.shape[1] ** 0.5
    pyramid = []
    # Mixed precision stops here: what tells one fraction of a cell from the next are small differences of products.
    with torch.autocast(features1.device.type, enabled=False):
        for level in range(levels):
            features2 = features2 if level == 0 else _half(features2)
            into = None if out is None else out[level].flatten(2)
            pyramid.append(torch.matmul(first, features2.flatten(2), out=into).unflatten(2, features2.shape[-2:]))
    return pyramid


class _Taps:
    """``volume.gather(2, index)``, again and again, with one gradient for all of them.

    Autograd alone would make a gradient as large as the volume for each reading, and add them up. After a backward
    pass that failed half-way the graph must not be used again: what it had added up would count twice.
    """

    def __init__(self, volume: Tensor) -> None:
        self.volume, self.token = volume, None  # (B, N, M)
        if volume.requires_grad and torch.is_grad_enabled():
            self.gradient = _Gradient()
            self.token = _Collect.apply(volume, self.gradient)

    def __call__(self, index: Tensor) -> Tensor:
        """(B, N, K) values from int64 ``index`` (B, N, K)."""
        if self.token is None:
            return self.volume.gather(2, index)
        return _Gather.apply(self.token, self.volume.detach(), index, self.gradient)


class _Gradient:
    """Sum of the gradients of a volume's readings so far."""

    total: Tensor | None = None


class _Collect(torch.autograd.Function):
    """Stands between a volume and its readings: when the gradients of all have come, hands on their sum."""

    @staticmethod
    def forward(ctx: Any, volume: Tensor, gradient: _Gradient) -> Tensor:
        ctx.gradient = gradient
        return volume.new_zeros(())

    @staticmethod
    def backward(ctx: Any, token: Tensor) -> tuple[Tensor | None, None]:
        total, ctx.gradient.total = ctx.gradient.total, None
        return total, None


class _Gather(torch.autograd.Function):
    """One reading; ``token`` is a zero that ties it to its :class:`_Collect`."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, volume: Tensor, index: Tensor, gradient: _Gradient) -> Tensor:
        ctx.save_for_backward(index)
        ctx.gradient, ctx.shape = gradient, volume.shape
        return volume.gather(2, index)

    @staticmethod
    def backward(ctx: Any, taps: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.gradient.total is None:
            ctx.gradient.total = taps.new_zeros(ctx.shape)
        ctx.gradient.total.scatter_add_(2, *ctx.saved_tensors, taps)
        return taps.new_zeros(()), None, None, None


def _half(features: Tensor) -> Tensor:
    """Means over 2x2 cells; an odd last row or column is dropped."""
    height, width = features.shape[-2:]
    return F.avg_pool2d(features, 2) if min(height, width) > 1 else features[..., :height // 2, :width // 2]
