"""Long clips from short windows: layers of overlapping windows are put in one order, one to one.

A window's layers have no order of their own: layer 2 of one may be layer 0 of the next. Chaining each to whatever
resembles it most lets two layers become one; and what the last window says alone is not enough, since a body that one
window misses would lose its name for good. So the points of the scene are followed along the flow, and each remembers
what it has been called: an assignment of all layers at once names every layer after its points.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffslic.geometry import pixel_grid, sample
from diffslic.segmentation.coherence import check_masks
from diffslic.segmentation.parametric import check_flow

FADING = 0.9  # what a name of the window before counts beside one of this window
HINT = 0.02  # of what decides only between names that the points know nothing of, or equally much


class Window(NamedTuple):
    """Soft masks of some frames of a clip, and their flow."""

    start: int  # the first frame
    masks: Tensor  # (L, T, H, W), summing to one over L
    flow: Tensor  # (T, 2, H, W) in pixels, from each frame to the next


def window_starts(n_frames: int, length: int, overlap: int) -> list[int]:
    """First frames of windows that cover a clip, each overlapping the one before by at least ``overlap`` frames.

    Raises:
        ValueError: no frame, or an overlap that leaves nothing to go on with.
    """
    if n_frames < 1 or not 0 <= overlap < length:
        raise ValueError(f"windows need a frame, and an overlap from 0 and below their length, "
                         f"got {n_frames} frames, length {length}, overlap {overlap}")
    if n_frames <= length:
        return [0]
    starts = list(range(0, n_frames - length, length - overlap))
    return [*starts, n_frames - length]


def link(windows: Iterable[Window]) -> Iterator[Tensor]:
    """Masks (L, H, W) frame by frame of a whole clip, with the layers of all windows in the order of the first.

    There is a point in every pixel. It moves with the flow, and knows in what share of the windows' frames it lay in
    each layer, those of earlier windows counting ever less. A new window's layers are assigned to the known ones by
    the Hungarian method, so that the sum of the intersections over unions of what points have been called and of where
    they lie now is largest. A body that is missed for some windows, or stands still, keeps its layer: its points go
    on; but those of a body behind another go along with that. Where points know nothing, it counts which layers
    overlap in the frames that both windows show, and what comes back is called rather by a name that was in use than
    by one that never was. Frames of two windows get the mean; a third window counts for half again. No more than two
    windows' frames are in memory.

    Args:
        windows: in the order of their starts, without gaps.

    Raises:
        ValueError: a gap, a window that ends before the one before it, windows of other layers or sizes, masks that
            do not sum to one, flow that is not the masks' or not known.
    """
    waiting: Tensor | None = None  # (L, T', H, W) frames that the next window may still change
    first, fields = 0, torch.empty(0)  # where those begin, and their flow
    points, names = torch.empty(0), torch.empty(0)  # (2, N) places in frame ``first``, and (N, L) what they were called
    in_use = torch.empty(0)  # (L,) bool: names that any point ever had
    for window in windows:
        _check(window, first, waiting)
        (start, masks, flow), size = window, window.masks.shape[-2:]
        flow = flow.float()
        if waiting is None:
            points = pixel_grid(*size, masks.device).flatten(1)
            called = _called(points, masks, flow)
            names, in_use = torch.zeros_like(called), called.any(0)
        else:
            yield from waiting[:, :start - first].unbind(1)
            waiting = waiting[:, start - first:]
            for field in fields[:start - first]:
                points = _moved(points, field)
            points, names = _one_per_pixel(points, names, size)
            called, shared = _called(points, masks, flow), waiting.shape[1]
            hints = _overlap(waiting, masks[:, :shared]) + in_use[:, None] * called.any(0) / 2
            order = _order(names, called, hints)
            masks, called = masks[order], called[:, order]
            masks = torch.cat([(waiting + masks[:, :shared]) / 2, masks[:, shared:]], dim=1)
        waiting, first, fields = masks, start, flow
        names, in_use = FADING * names + called, in_use | called.any(0)
    if waiting is not None:
        yield from waiting.unbind(1)


def carried(masks: Tensor, flow: Tensor) -> Tensor:
    """Where masks (L, H, W) of a frame go along flow (T, 2, H, W) from it and the frames after: (L, T, H, W).

    A pixel that nothing reaches may belong to any layer alike.
    """
    size, frames = masks.shape[-2:], []
    points = pixel_grid(*size, masks.device).flatten(1)                     # (2, N)
    for field in flow.float():
        points = _moved(points, field)
        inside, pixels = _pixels(points, size)
        total = masks.new_zeros(len(masks), size[0] * size[1]).index_add(1, pixels, masks.flatten(1)[:, inside])
        total = torch.where(total.sum(0) > 0, total, 1)
        frames.append((total / total.sum(0)).unflatten(1, size))
    return torch.stack(frames, dim=1)


def _check(window: Window, first: int, waiting: Tensor | None) -> None:
    """Refuse what are no masks and their flow, or do not go on from what is waiting since ``first``."""
    start, masks, flow = window
    if flow.shape != (masks.shape[1], 2, *masks.shape[-2:]):
        raise ValueError(f"flow of a window must be {(masks.shape[1], 2, *masks.shape[-2:])}, got {tuple(flow.shape)}")
    check_flow(flow, "(T, 2, H, W)")
    if waiting is not None and (masks[:, :1].shape != waiting[:, :1].shape or not (
            first <= start <= first + waiting.shape[1] <= start + masks.shape[1])):
        raise ValueError(f"a window of {tuple(masks.shape)} at frame {start} does not go on after "
                         f"{tuple(waiting.shape)} at frame {first}")
    check_masks(masks[None], flow[None, None, :, 0])


def _called(points: Tensor, masks: Tensor, flow: Tensor) -> Tensor:
    """In what share of a window's frames points (2, N) of its first frame lie in each layer: (N, L)."""
    layers, size = masks.argmax(0), masks.shape[-2:]                        # (T, H, W)
    counts = points.new_zeros(points.shape[1], len(masks))
    for layer, field in zip(layers, flow):
        inside, pixels = _pixels(points, size)
        counts[inside, layer.flatten()[pixels]] += 1
        points = _moved(points, field)
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


def _order(names: Tensor, called: Tensor, hints: Tensor) -> Tensor:
    """For each known layer the new layer (L,) that goes on with it; (N, L) both, hints (L, L)."""
    agreement = _overlap((names / names.sum(1, keepdim=True).clamp(min=1e-9)).T, called.T)
    known, new = linear_sum_assignment((agreement + HINT * hints).detach().cpu().numpy(), maximize=True)
    return torch.from_numpy(new[np.argsort(known)]).to(called.device)


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersections over unions (L, L) of soft sets (L, ...); 0 where there is nothing."""
    first, second = first.flatten(1).double(), second.flatten(1).double()
    both = first @ second.T
    return both / (first.sum(1)[:, None] + second.sum(1) - both).clamp(min=1e-9)


def _moved(points: Tensor, field: Tensor) -> Tensor:
    """Points (2, N) one frame on, along flow (2, H, W)."""
    return points + sample(field[None], points[None, :, None], padding="border")[0, :, 0]


def _one_per_pixel(points: Tensor, names: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """One point for each pixel: of several the one that was named most, and a new one where there is none."""
    inside, pixels = _pixels(points, size)
    points, names = points[:, inside], names[inside]
    rank = torch.empty_like(pixels)
    by_age = names.sum(1).argsort(stable=True)
    rank[by_age] = torch.arange(len(pixels), device=pixels.device)
    kept = torch.full((size[0] * size[1],), -1, device=pixels.device).scatter_reduce(0, pixels, rank, "amax")
    there = kept >= 0
    kept = by_age[kept[there]]
    new_points = pixel_grid(*size, points.device).flatten(1)
    new_names = names.new_zeros(new_points.shape[1], names.shape[1])
    new_points[:, there], new_names[there] = points[:, kept], names[kept]
    return new_points, new_names


def _pixels(points: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Which points (2, N) lie in the frame, (N,) bool, and the numbers of their pixels."""
    column, row = points.round().long()
    inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    return inside, (row * size[1] + column)[inside]
