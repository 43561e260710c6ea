"""Scores of layers that have no names: which of them is which object is a part of the score."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from diffslic.metrics.arrays import Array, integers


def best_iou(layers: Any, truth: Any, void: int = 255) -> dict[int, float]:
    """For every id of the truth, the background's 0 among them, the IoU of the layer that is most like it.

    Several objects may share a layer. The mean over all objects of a dataset is the bIoU of several-object motion
    segmentation.

    Args:
        layers: (H, W) or (T, H, W) integers. truth: the same, ids from 0.
        void: id of pixels that count for nothing.
    """
    layers, truth = _same_sizes(layers, truth)
    ids, _, overlaps = pairwise_iou(truth[truth != void], layers[truth != void])
    return {int(label): float(score) for label, score in zip(ids, overlaps.max(axis=1, initial=0))}


def assigned_iou(layers: Any, truth: Any, void: int = 255) -> dict[int, float]:
    """For every object of the truth the IoU of the layer assigned to it, one to one so that their sum is largest.

    0 is the background of both and takes no part. An object without a layer of its own has 0.

    Args:
        layers: (H, W) or (T, H, W) integers. truth: the same, ids from 0.
        void: id of pixels that count for nothing.

    Returns:
        IoU in [0, 1] by id.

    Raises:
        ValueError: no such shapes, or sizes that differ.
    """
    layers, truth = _same_sizes(layers, truth)
    ids, others, overlaps = pairwise_iou(truth[truth != void], layers[truth != void])
    overlaps = overlaps[ids > 0][:, others > 0]
    scores = dict.fromkeys(ids[ids > 0].tolist(), 0.0)
    for row, column in zip(*linear_sum_assignment(overlaps, maximize=True)):
        scores[int(ids[ids > 0][row])] = float(overlaps[row, column])
    return scores


def _same_sizes(layers: Any, truth: Any) -> tuple[Array, Array]:
    layout = "(H, W)" if np.ndim(layers) == 2 else "(T, H, W)"
    layers, truth = integers(layers, "layers", layout), integers(truth, "truth", layout)
    if layers.shape != truth.shape:
        raise ValueError(f"layers are {layers.shape} but truth is {truth.shape}")
    return layers, truth


def pairwise_iou(first: Array, second: Array) -> tuple[Array, Array, NDArray[np.float64]]:
    """The ids (N,) and (M,) of two labellings of the same pixels (P,), and their intersections over unions (N, M)."""
    ids, first = np.unique(first, return_inverse=True)
    others, second = np.unique(second, return_inverse=True)
    pairs = np.bincount(first * max(len(others), 1) + second, minlength=len(ids) * len(others))
    both = pairs.reshape(len(ids), len(others))
    return ids, others, both / (both.sum(axis=1)[:, None] + both.sum(axis=0) - both)


def box_iou(mask: Any, truth: Any) -> float:
    """IoU of the upright boxes around two masks (H, W): the score of camouflage data, whose truth is boxes.

    1 where both masks are empty, 0 where one is.
    """
    mask, truth = integers(mask, "mask", "(H, W)") > 0, integers(truth, "truth", "(H, W)") > 0
    if mask.shape != truth.shape:
        raise ValueError(f"mask is {mask.shape} but truth is {truth.shape}")
    if not mask.any() or not truth.any():
        return float(mask.any() == truth.any())
    boxes = [[(line.min(), line.max() + 1) for line in np.nonzero(area)] for area in (mask, truth)]
    both, sizes = 1.0, [1.0, 1.0]
    for first, second in zip(*boxes):
        both *= max(0, min(first[1], second[1]) - max(first[0], second[0]))
        sizes = [size * (stop - start) for size, (start, stop) in zip(sizes, (first, second))]
    return float(both / (sum(sizes) - both))
