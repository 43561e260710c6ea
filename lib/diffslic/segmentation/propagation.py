"""Labels of a frame that go along the flow to the next one, pixel by pixel, with superpixels as jury.

Flow leads every pixel back to where it came from, and its label with it. Errors of a pixel or two would grow with every
frame; but superpixels end where bodies end, so one that is nearly of one label is wholly of it. Pixels that the frame
before did not show do not vote.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffslic.segmentation.regions import Floats, Indices, Regions

DECISIVE = 0.7  # share of a superpixel's votes above which all of it has one label
SEEN = 0.3  # share of a superpixel that the frame before showed, below which its colours decide


class Frame(NamedTuple):
    """What a frame's objects are."""

    labels: Tensor  # (H, W) int64: 0 background, from 1 objects
    decision: Tensor  # (S,) int64: the same for superpixels; un-pooled it is a soft mask of each object


class Carried(NamedTuple):
    """Where the labels of the frame before have gone."""

    labels: Indices  # (H, W) for each pixel the label where its flow leads; -1 outside the frame
    known: NDArray[np.bool_]  # (H, W) pixels that the frame before showed
    votes: Floats  # (S, K) known pixels of each superpixel, by label

    @property
    def share(self) -> Floats:
        """(S, K) of each superpixel's known pixels, by label; zeros where none is known."""
        return self.votes / self.votes.sum(axis=1, keepdims=True).clip(1)


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
    inside = (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])
    places = np.where(inside, labels[row.clip(0, size[0] - 1), column.clip(0, size[1] - 1)], -1)
    known = inside if revealed is None else inside & ~revealed.cpu().numpy()
    return Carried(places, known, _votes(regions, places, known, count))


def follow(regions: Regions, carried: Carried) -> Frame:
    """The labels of this frame by what was carried into it.

    A superpixel of which one label has a clear majority is wholly of it; of another, each pixel keeps its label. One
    that the frame before hardly showed may be revealed ground, or a body that flow has lost: it keeps the labels where
    its flow leads as long as its colours are more like those of the label than of the ground.
    """
    labels, known, votes = carried
    share, decision = carried.share, votes.argmax(axis=1)
    seen = votes.sum(axis=1) >= SEEN * regions.area
    decisive = seen & (share.max(axis=1) >= DECISIVE)
    led = _votes(regions, labels, labels >= 0, votes.shape[1]).argmax(axis=1)
    colours = np.stack([regions.histogram[decisive & (decision == name)].sum(axis=0) for name in range(votes.shape[1])])
    colours, own = (x / x.sum(axis=1, keepdims=True).clip(1) for x in (colours, regions.histogram))
    alike = np.sqrt(own) @ np.sqrt(colours).T                               # (S, K) Bhattacharyya coefficients
    keeps = alike[np.arange(len(led)), led] > alike[:, 0]
    decision = np.where(seen, decision, np.where(keeps, led, 0))
    trusted = np.where(seen[regions.labels], known, keeps[regions.labels] & (labels >= 0))
    kept = trusted & ~decisive[regions.labels]
    return Frame(torch.from_numpy(np.where(kept, labels, decision[regions.labels])), torch.from_numpy(decision))


def with_given(frame: Frame, regions: Regions, given: Tensor, void: int = 255) -> Frame:
    """A frame of which some objects are given (H, W): 0 and void say nothing."""
    known = (given > 0) & (given != void)
    labels = torch.where(known, given.long(), frame.labels)
    votes = _votes(regions, labels.numpy(), np.ones(labels.shape, dtype=bool), void + 1)
    return Frame(labels, torch.from_numpy(votes.argmax(axis=1)))


def _votes(regions: Regions, labels: Indices, counts: NDArray[np.bool_], count: int) -> Floats:
    """How many pixels (H, W) that count each superpixel has, by label: (S, count)."""
    votes = np.bincount(regions.labels[counts] * count + labels[counts], minlength=len(regions.area) * count)
    return votes.reshape(-1, count).astype(float)
