"""Superpixels against what people drew."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from diffslic.metrics.arrays import Array, integers, to_numpy


def superpixels(labels: Any, truths: Sequence[Any], image: Any = None, ignore: int | None = None) -> dict[str, float]:
    """Superpixel quality; what depends on a segmentation is the mean over its annotators.

    With superpixels s, segments g and N pixels:
        asa: achievable segmentation accuracy, sum_s max_g |s & g| / N (Liu et al. 2011).
        ue: undersegmentation error, sum_g sum_s min(|s & g|, |s - g|) / N (Neubert and Protzel 2012).
        br, bp: boundary recall and precision: the share of true (of superpixel) boundary pixels with a superpixel
            (a true) one in the 5x5 square around them. A boundary pixel has another label to its right or below.
            An annotator without a boundary is left out of br; superpixels without one leave bp undefined, NaN.
        iou: every superpixel votes for the segment that most of its pixels have; mean over the segments of the
            intersection over union with what they got.
        co: compactness, sum_s |s| / N * 4 pi |s| / perimeter^2, image border included (Schick et al. 2012).
        ev: explained variation of colour (Moore et al. 2008); NaN without an image or with a one-coloured one.
        count: number of distinct labels (not of connected components).

    All maps are (H, W) integers, ``truths`` holds one from each annotator, ``image`` is (3, H, W) in any scale.
    ``ignore`` is a segment whose pixels count for nothing in asa, ue and iou, such as the background 0 of object masks:
    superpixels are still given to it where most of their pixels lie in it, and the shares are those of the other
    pixels. Without any of these the three are NaN.
    ValueError on sizes that differ, labels that are not integers, or no annotator.
    """
    labels = _segmentation(labels, "labels")
    if len(truths) == 0:
        raise ValueError("truths must hold the segmentation of at least one annotator, got none")
    edges = _right_down_boundary(labels)
    scores = []
    for i, truth in enumerate(truths):
        names, truth = np.unique(integers(truth, f"truths[{i}]", "(H, W)"), return_inverse=True)
        if truth.shape != labels.shape:
            raise ValueError(f"truths[{i}] is {truth.shape} but labels is {labels.shape} (rows, columns)")
        true_edges = _right_down_boundary(truth)
        scores.append([_share_near(true_edges, edges), _share_near(edges, true_edges),
                       *_overlaps(labels, truth, names != ignore)])
    br, bp, asa, ue, iou = (_mean_of_defined(column) for column in zip(*scores))
    return {"asa": asa, "br": br, "bp": bp, "ue": ue, "iou": iou, "co": compactness(labels),
            "ev": math.nan if image is None else explained_variation(labels, image), "count": int(labels.max()) + 1}


def _overlaps(labels: Array, truth: Array, counts: NDArray[np.bool_]) -> tuple[float, float, float]:
    """asa, ue and iou from the numbers of pixels that superpixels and segments share; ``counts`` per segment."""
    size = labels.max() + 1, truth.max() + 1
    table = np.bincount((labels * size[1] + truth).ravel(), minlength=size[0] * size[1]).reshape(size)
    total = table[:, counts].sum()
    if not total:
        return math.nan, math.nan, math.nan
    inside = table.sum(axis=1, keepdims=True)
    winner = table.argmax(axis=1)
    won = np.bincount(winner, weights=inside[:, 0], minlength=size[1])
    shared = np.bincount(winner, weights=table.max(axis=1), minlength=size[1])
    iou = shared / (won + table.sum(axis=0) - shared)
    leaked = np.minimum(table, inside - table)[:, counts].sum()
    return float(shared[counts].sum() / total), float(leaked / total), float(iou[counts].mean())


def _segmentation(labels: Any, name: str) -> NDArray[np.int64]:
    """(H, W) labels renumbered 0, 1, ... without gaps."""
    return np.unique(integers(labels, name, "(H, W)"), return_inverse=True)[1]


def _right_down_boundary(labels: Array) -> NDArray[np.bool_]:
    right, below = (np.diff(labels, axis=axis, append=labels.take([-1], axis=axis)) for axis in (1, 0))
    return (right | below) != 0


def _share_near(edges: Array, others: Array) -> float:
    """Share of the edge pixels with another map's edge pixel at most 2 rows and 2 columns away; NaN without any."""
    return float(ndimage.maximum_filter(others, size=5, mode="constant")[edges].mean()) if edges.any() else math.nan


def _mean_of_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def compactness(labels: Any) -> float:
    """co of :func:`superpixels`: the mean over pixels of how round their superpixel (H, W) is; 1 is a disc."""
    labels = _segmentation(labels, "labels")
    area = np.bincount(labels.ravel())
    framed = np.pad(labels, 1, constant_values=-1)
    perimeter = np.zeros(len(area))
    for neighbour in (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]):
        perimeter += np.bincount(labels[labels != neighbour], minlength=len(area))
    return float((area / labels.size * 4 * math.pi * area / perimeter**2).sum())


def explained_variation(labels: Any, image: Any) -> float:
    """ev of :func:`superpixels`: the share of the image's (3, H, W) variance that lies between superpixels (H, W)."""
    labels, image = _segmentation(labels, "labels"), to_numpy(image).astype(np.float64)
    if image.shape != (3, *labels.shape):
        raise ValueError(f"image must be {(3, *labels.shape)} like labels, got {image.shape}")
    colours = image.reshape(3, -1) - image.mean(axis=(1, 2))[:, None]
    sums = np.stack([np.bincount(labels.ravel(), weights=channel) for channel in colours])
    between, total = (sums**2 / np.bincount(labels.ravel())).sum(), (colours**2).sum()
    return float(between / total) if np.ptp(colours, axis=1).any() else math.nan
