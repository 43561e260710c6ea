"""Labels of a frame that go along the flow to the next one, pixel by pixel, with superpixels as jury.

Flow leads every pixel back to where it came from, and its label with it. Errors of a pixel or two would grow with every
frame; but superpixels end where bodies end, so one that is nearly of one label is wholly of it. Pixels that the frame
before did not show have come from nowhere, and do not vote.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffslic.segmentation.regions import Floats, Indices, Regions

DECISIVE = 0.7  # share of a superpixel's votes above which all of it has one label


class Frame(NamedTuple):
    """What a frame's objects are."""

    labels: Tensor  # (H, W) int64: 0 background, from 1 objects
    decision: Tensor  # (S,) int64: the same for superpixels; un-pooled it is a soft mask of each object


class Carried(NamedTuple):
    """Where the labels of the frame before have gone."""

    labels: Indices  # (H, W) for each pixel the label that it had; -1 where the frame before did not show it
    share: Floats  # (S, K) of the known pixels of each superpixel, by label; zeros where none is known


def carry(regions: Regions, labels: Indices, count: int, back: Tensor | None,
          revealed: Tensor | None = None) -> Carried:
    """Labels of the frame before in this one.

    Args:
        regions: of this frame. labels: (H, W) of the frame before, below ``count``.
        back: flow (2, H, W) in pixels from this frame to the one before.
        revealed: (H, W) bool, pixels of this frame that the one before hides.

    Raises:
        ValueError: no flow, or sizes that differ.
    """
    size = regions.labels.shape
    if back is None or tuple(back.shape) != (2, *size):
        raise ValueError(f"flow back to the frame before must be {(2, *size)}, got "
                         f"{None if back is None else tuple(back.shape)}")
    if revealed is not None and revealed.shape != size:
        raise ValueError(f"revealed pixels must be {tuple(size)}, got {tuple(revealed.shape)}")
    across, down = np.rint(back.cpu().numpy()).astype(np.int64)
    row, column = np.indices(size)
    row, column = row + down, column + across
    known = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    if revealed is not None:
        known &= ~revealed.cpu().numpy()
    places = np.where(known, labels[row.clip(0, size[0] - 1), column.clip(0, size[1] - 1)], -1)
    votes = np.bincount(regions.labels[known] * count + places[known], minlength=len(regions.area) * count)
    votes = votes.reshape(-1, count).astype(float)
    return Carried(places, votes / votes.sum(axis=1, keepdims=True).clip(1))


def follow(regions: Regions, carried: Carried) -> Frame:
    """The labels of this frame by what was carried into it: see the module's docstring."""
    decision = carried.share.argmax(axis=1)
    decisive = carried.share.max(axis=1) >= DECISIVE
    of_pixels = decision[regions.labels]
    labels = np.where(decisive[regions.labels] | (carried.labels < 0), of_pixels, carried.labels)
    return Frame(torch.from_numpy(labels), torch.from_numpy(decision))


def with_given(frame: Frame, regions: Regions, given: Tensor, void: int = 255) -> Frame:
    """A frame of which some objects are given (H, W): 0 and void say nothing."""
    known = (given > 0) & (given != void)
    labels = torch.where(known, given.long(), frame.labels)
    votes = np.bincount(regions.labels.ravel() * (void + 1) + labels.numpy().ravel(),
                        minlength=len(regions.area) * (void + 1))
    return Frame(labels, torch.from_numpy(votes.reshape(-1, void + 1).argmax(axis=1)))
