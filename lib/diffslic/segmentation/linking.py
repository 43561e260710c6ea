"""Long clips from short windows: layers of overlapping windows are put in one order, one to one.

A window's layers have no order of their own: layer 2 of one may be layer 0 of the next. Chaining each to whatever
resembles it most lets two layers become one, and a layer that is empty for a moment take its neighbour's name. An
assignment of all layers at once cannot do either.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

MEMORY = 0.1  # how much less it counts where a layer was last seen than where it is seen


class Window(NamedTuple):
    """Soft masks of some frames of a clip."""

    start: int  # the first frame
    masks: Tensor  # (L, T, H, W), summing to one over L


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

    Each window's layers are assigned to those before it by the Hungarian method, so that the sum of their intersections
    over unions in the frames that both show is largest. Beside them, with a tenth of the weight, counts the place where
    a layer was last seen: a body that stops and moves on later keeps its layer. Frames of two windows get the mean; a
    third window counts for half again. No more than one window's frames are in memory.

    Args:
        windows: in the order of their starts, without gaps.

    Raises:
        ValueError: a gap, a window that ends before the one before it, or windows of other layers or sizes.
    """
    waiting: Tensor | None = None  # (L, T', H, W) frames that the next window may still change
    first = 0
    last_seen: Tensor | None = None
    for start, masks in windows:
        if waiting is not None:
            if masks[:, :1].shape != waiting[:, :1].shape or not (
                    first <= start <= first + waiting.shape[1] <= start + masks.shape[1]):
                raise ValueError(f"a window of {tuple(masks.shape)} at frame {start} does not go on after "
                                 f"{tuple(waiting.shape)} at frame {first}")
            done, waiting = waiting[:, :start - first], waiting[:, start - first:]
            last_seen = _last_seen(done, last_seen)
            yield from done.unbind(1)
            shared = waiting.shape[1]
            masks = masks[_order(waiting, masks[:, :shared], last_seen, masks)]
            masks = torch.cat([(waiting + masks[:, :shared]) / 2, masks[:, shared:]], dim=1)
        waiting, first = masks, start
    if waiting is not None:
        yield from waiting.unbind(1)


def _order(before: Tensor, after: Tensor, last_seen: Tensor, window: Tensor) -> Tensor:
    """For each known layer the new layer (L,) that goes on with it."""
    first_seen = _last_seen(window.flip(1), None)
    scores = _overlap(before, after) + MEMORY * _overlap(last_seen[:, None], first_seen[:, None])
    known, new = linear_sum_assignment(-scores)
    return torch.from_numpy(new[np.argsort(known)]).to(window.device)


def _overlap(first: Tensor, second: Tensor) -> np.ndarray:
    """(L, L) intersection over union of soft masks (L, T, H, W); 0 where there is no frame or no mask."""
    first, second = first.flatten(1).double(), second.flatten(1).double()
    both = first @ second.T
    either = first.square().sum(1)[:, None] + second.square().sum(1) - both
    return (both / either.clamp(min=1e-9)).cpu().numpy()


def _decided(masks: Tensor) -> Tensor:
    """(L, T, H, W) bool: the likeliest layer of each pixel."""
    return masks.argmax(0) == torch.arange(len(masks), device=masks.device)[:, None, None, None]


def _last_seen(masks: Tensor, known: Tensor | None) -> Tensor:
    """(L, H, W): where each layer was when it last had a pixel; nowhere if it never had one."""
    seen = masks.new_zeros(len(masks), *masks.shape[2:]) if known is None else known
    for frame in _decided(masks).unbind(1):
        there = frame.flatten(1).any(1)[:, None, None]
        seen = torch.where(there, frame.to(masks.dtype), seen)
    return seen
