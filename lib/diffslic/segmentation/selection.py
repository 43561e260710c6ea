"""From layers to what moves: which of a segmentation's layers are the background.

The coherence loss says how the flow parts into layers, and not which of them is the world that stands still. Two rules
need nothing but layers and flow; four others look at the truth. Those are *oracles*: they tell how good the layers are,
and no score of theirs is a result.
"""

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffslic.segmentation.baselines import SMALLEST_MOTION
from diffslic.segmentation.parametric import camera_motion, check_flow

RIM = 0.02  # of the shorter side: how wide the rim of a frame is
SHARE = 2 / 3  # of the main layer's strength against the camera, that another needs to move by itself


def all_but_largest(layers: Tensor, flow: Tensor) -> Tensor:
    """Moving is all but the layer with the most pixels, as published; see :func:`moving_layers` for the arguments."""
    _check(layers, flow)
    return layers != layers.flatten().mode().values


def moving_layers(layers: Tensor, flow: Tensor) -> Tensor:
    """Moving is what does not surround the rest, and moves against the camera about as strongly as what does so most.

    The world goes on beyond the frame on all sides and a body rarely does: the layer with the most pixels on the rim of
    the frames is background, even where a body fills more than half of them. The camera's motion is fitted to the whole
    frame (:func:`diffslic.segmentation.camera_motion`). Of the other layers the main one has the most of what this
    leaves of the flow, summed over its pixels; a layer with less than two thirds of the main one's mean is a part of
    the background at another depth, and where neither it nor the background differs from the camera's motion by a
    tenth of a pixel, it does not move.

    Args:
        layers: (T, H, W) integers. One choice holds for all T frames: pass single frames where layers mean nothing from
            frame to frame.
        flow: (T, 2, H, W) in pixels.

    Returns:
        (T, H, W) bool.
    """
    _check(layers, flow)
    height, width = layers.shape[-2:]
    rim = max(1, round(RIM * min(height, width)))
    inside = torch.zeros(height, width, dtype=torch.bool, device=layers.device)
    inside[rim:height - rim, rim:width - rim] = True
    around = int(layers[:, ~inside].flatten().mode().values)
    strength = (flow - camera_motion(flow)).norm(dim=1)                     # (T, H, W)
    others = [layer for layer in _layers(layers) if layer != around]
    if not others:
        return torch.zeros_like(layers, dtype=torch.bool)
    sums = torch.stack([strength[layers == layer].sum() for layer in others])
    means = torch.stack([strength[layers == layer].mean() for layer in others])
    # Where a body is taken for the camera's motion, it is the background that the camera's motion leaves.
    apart = means.clamp(min=strength[layers == around].mean()) >= SMALLEST_MOTION
    keep = apart & (means >= SHARE * means[sums.argmax()])
    return _union(layers, [layer for layer, kept in zip(others, keep.tolist()) if kept])


SELECTIONS = {"largest": all_but_largest, "moving": moving_layers}


def oracle_fair(layers: Tensor, truth: Tensor) -> Tensor:
    """Oracle: every layer more than half of which truly moves. Layers and truth, bool, of one shape, to bool of it."""
    return _union(layers, [layer for layer in _layers(layers) if truth[layers == layer].float().mean() > 0.5])


def oracle_top_iou(layers: Tensor, truth: Tensor) -> Tensor:
    """Oracle: every layer that is more like the truth than like its opposite, by intersection over union."""
    return _union(layers, [layer for layer in _layers(layers)
                           if _iou(layers == layer, truth) > _iou(layers == layer, ~truth)])


def oracle_assignment(layers: Tensor, truth: Tensor) -> Tensor:
    """Oracle: the one layer that goes best with what moves, while another goes with the rest."""
    known = _layers(layers)
    scores = np.array([[_iou(layers == layer, side) for side in (~truth, truth)] for layer in known])
    rows, sides = linear_sum_assignment(-scores)
    return _union(layers, [known[row] for row, side in zip(rows, sides) if side == 1])


def oracle_exhaustive(layers: Tensor, truth: Tensor) -> Tensor:
    """Oracle: of all sets of layers the one that is most like the truth; no choice of layers can score more."""
    known = _layers(layers)
    overlap = np.array([int((truth & (layers == layer)).sum()) for layer in known])
    size = np.array([int((layers == layer).sum()) for layer in known])
    chosen = np.array(list(product((False, True), repeat=len(known))))      # (2^L, L)
    both = chosen @ overlap
    either = chosen @ size + int(truth.sum()) - both
    best = chosen[np.where(either > 0, both / either.clip(min=1), 1).argmax()]
    return _union(layers, [layer for layer, keep in zip(known, best) if keep])


ORACLES = {"fair": oracle_fair, "top IoU": oracle_top_iou, "assignment": oracle_assignment,
           "exhaustive": oracle_exhaustive}


def matched_layers(layers: Tensor, truth: Tensor) -> NDArray[np.int64]:
    """Oracle: for each object 1..N of the truth the layer that is most like it over all frames, one to one.

    Args:
        layers: (T, H, W). truth: (T, H, W) ids, 255 for void.

    Returns:
        (N,) layers; -1 where there are more objects than layers.
    """
    counts, known = truth != 255, _layers(layers)
    objects = range(1, int(truth[counts].max()) + 1 if bool(counts.any()) else 1)
    scores = np.array([[_iou((layers == layer) & counts, truth == label) for label in objects] for layer in known])
    found = np.full(len(objects), -1)
    if len(objects):
        rows, columns = linear_sum_assignment(-scores)
        found[columns] = [known[row] for row in rows]
    return found


def renumbered(layers: Tensor, moving: Tensor) -> Tensor:
    """Layers (T, H, W) as labels: 0 where nothing moves, the layers that do from 1 in their order."""
    labels = torch.zeros_like(layers)
    for label, layer in enumerate(_layers(layers[moving]), 1):
        labels[moving & (layers == layer)] = label
    return labels


def _check(layers: Tensor, flow: Tensor) -> None:
    if layers.ndim != 3 or layers.is_floating_point() or 0 in layers.shape:
        raise ValueError(f"layers must be integers (T, H, W), got {layers.dtype} of shape {tuple(layers.shape)}")
    check_flow(flow, "(T, 2, H, W)")
    if flow[:, 0].shape != layers.shape:
        raise ValueError(f"flow must be of the layers' size {tuple(layers.shape)}, got {tuple(flow.shape)}")


def _layers(layers: Tensor) -> list[int]:
    return layers.unique().tolist()


def _union(layers: Tensor, chosen: list[int]) -> Tensor:
    return torch.isin(layers, torch.tensor(chosen, dtype=layers.dtype, device=layers.device))


def _iou(mask: Tensor, truth: Tensor) -> float:
    either = int((mask | truth).sum())
    return int((mask & truth).sum()) / either if either else 1.0
