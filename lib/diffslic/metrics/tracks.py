"""How well labels hold on to objects through a video: the CLEAR MOT figures of masks."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from diffslic.metrics.arrays import Array, integers
from diffslic.metrics.segments import pairwise_iou


class ClearMOT(NamedTuple):
    """Counts over the frames of one video; of several videos they add up."""

    switches: int  # an object goes on under another label than it was last found under
    misses: int  # an object that no label matches
    false_positives: int  # a label that matches no object
    objects: int  # in all frames together

    @property
    def mota(self) -> float:
        """Multiple object tracking accuracy: 1 is perfect, and it may be negative; NaN where there is no object."""
        wrong = self.switches + self.misses + self.false_positives
        return 1 - wrong / self.objects if self.objects else float("nan")


class Matches(NamedTuple):
    """Which label each object goes under."""

    objects: Array  # (K,) ids of the truth
    labels: Array  # (T, K) the label that matches each object in each frame; 0: none does, -1: the object is not there

    @property
    def switches(self) -> Array:
        """(T, K) bool: the object goes on under another label than it was last found under, however long ago."""
        last, found = np.zeros(len(self.objects), dtype=np.int64), np.zeros(self.labels.shape, dtype=bool)
        for t, labels in enumerate(self.labels):
            found[t] = (labels > 0) & (last > 0) & (labels != last)
            last = np.where(labels > 0, labels, last)
        return found


def match_objects(pred: Any, truth: Any, threshold: float = 0.5, void: int = 255) -> Matches:
    """Find the label of each object in each frame, as CLEAR MOT does with boxes.

    In each frame a label stays with the object that it was matched to last, as long as their intersection over union
    reaches the threshold; the other objects and labels are matched so that the sum of theirs is largest.

    Args:
        pred, truth: (T, H, W) integer labels, 0 = background.
        threshold: in (0, 1]. Above 0.5 an object can match one label only.
        void: label of the truth whose pixels count for nothing.

    Returns:
        :class:`Matches`.

    Raises:
        ValueError: no such shapes, sizes that differ, or another threshold.

    Source: Bernardin and Stiefelhagen, 2008, section 2.1.
    """
    pred, truth = integers(pred, "pred", "(T, H, W)"), integers(truth, "truth", "(T, H, W)")
    if pred.shape != truth.shape:
        raise ValueError(f"pred is {pred.shape} but truth is {truth.shape}")
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold must lie in (0, 1], got {threshold}")
    ids = np.unique(truth[(truth > 0) & (truth != void)])
    found = np.full((len(truth), len(ids)), -1, dtype=np.int64)
    holder: dict[int, int] = {}  # of every label, the object that had it last
    for t, (labels, objects) in enumerate(zip(pred, truth)):
        counts = objects != void
        known, shown, overlaps = pairwise_iou(objects[counts], labels[counts])
        overlaps, known, shown = overlaps[known > 0][:, shown > 0], known[known > 0], shown[shown > 0]
        matches = _matches(overlaps, known, shown, holder, threshold)
        found[t, np.searchsorted(ids, known)] = [matches.get(int(thing), 0) for thing in known]
        holder |= {label: thing for thing, label in matches.items()}
    return Matches(ids, found)


def clear_mot(pred: Any, truth: Any, threshold: float = 0.5, void: int = 255) -> ClearMOT:
    """Count identity switches, misses and false positives of label maps: see :func:`match_objects`.

    A switch is counted where an object is matched to another label than the last that it had, however long ago.
    """
    matches = match_objects(pred, truth, threshold, void)
    pred, truth = integers(pred, "pred", "(T, H, W)"), integers(truth, "truth", "(T, H, W)")
    shown = sum(len(np.unique(labels[(labels > 0) & (objects != void)])) for labels, objects in zip(pred, truth))
    return ClearMOT(int(matches.switches.sum()), int((matches.labels == 0).sum()),
                    shown - int((matches.labels > 0).sum()), int((matches.labels >= 0).sum()))


def _matches(overlaps: NDArray[np.float64], known: Array, shown: Array, holder: dict[int, int],
             threshold: float) -> dict[int, int]:
    """The label of each object that has one in this frame."""
    scores = np.where(overlaps >= threshold, overlaps, 0)
    for j, label in enumerate(shown.tolist()):
        for i in np.flatnonzero(known == holder.get(label, 0)):
            scores[i, j] += len(known) * (scores[i, j] > 0)  # more than all others together
    rows, columns = linear_sum_assignment(-scores)
    return {int(known[i]): int(shown[j]) for i, j in zip(rows, columns) if scores[i, j] > 0}
