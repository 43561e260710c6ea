"""Motion segmentation without learning: what a network has to beat."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.optimize import linear_sum_assignment
from skimage.filters import threshold_otsu
from torch import Tensor

from diffslic.segmentation.parametric import camera_motion

SMALLEST_MOTION = 0.1  # pixels: below this flow is noise of the estimator, and the histogram's two modes mean nothing


def flow_magnitude_mask(flow: Tensor) -> Tensor:
    """Pixels that move fast: the length of the flow, thresholded by Otsu's method.

    Args:
        flow: (B, 2, H, W) in pixels, finite.

    Returns:
        (B, H, W) bool; empty where nothing moves, or everything alike.
    """
    return _otsu(flow.norm(dim=1))


def camera_residual_mask(flow: Tensor, model: str = "quadratic") -> Tensor:
    """Pixels that do not move with the camera.

    The camera's motion is a robustly fitted polynomial (:func:`diffslic.segmentation.parametric.camera_motion`); the
    length of what it leaves of the flow is thresholded by Otsu's method.

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        model: of the camera's motion, "affine" or "quadratic".

    Returns:
        (B, H, W) bool; empty where everything moves with the camera.
    """
    return _otsu((flow - camera_motion(flow, model)).norm(dim=1))


def linked_components(masks: NDArray[np.integer], smallest: float = 100) -> NDArray[np.int64]:
    """Several objects without any flow: what hangs together is one, and goes by the name of what it overlaps.

    The components of each frame are assigned one to one to those of the frame before, so that the sum of the
    intersections over unions is largest; what overlaps nothing gets a new name.

    Args:
        masks: (T, H, W), above 0 where something moves. smallest: pixels of a component that gets a new name.

    Returns:
        (T, H, W) labels, 0 background.

    Raises:
        ValueError: masks of other axes.
    """
    if masks.ndim != 3 or 0 in masks.shape:
        raise ValueError(f"masks must be (T, H, W), got {masks.shape}")
    labels = np.zeros(masks.shape, dtype=np.int64)
    n_names = 0
    for t, mask in enumerate(masks):
        parts, count = label(mask > 0, np.ones((3, 3)))
        names, before = np.zeros(count + 1, dtype=np.int64), labels[t - 1] if t else np.zeros_like(labels[0])
        pairs = np.bincount(parts.ravel() * (n_names + 1) + before.ravel(), minlength=(count + 1) * (n_names + 1))
        both = pairs.reshape(count + 1, n_names + 1)
        either = both.sum(axis=1)[1:, None] + both.sum(axis=0)[1:] - both[1:, 1:]
        overlap = both[1:, 1:] / either.clip(1)
        for part, name in zip(*linear_sum_assignment(overlap, maximize=True)):
            names[part + 1] = name + 1 if overlap[part, name] > 0 else 0
        for part in np.flatnonzero(names == 0)[1:]:
            if both[part].sum() >= smallest:
                n_names += 1
                names[part] = n_names
        labels[t] = names[parts]
    return labels


def _otsu(length: Tensor) -> Tensor:
    """Lengths (B, H, W) above their Otsu threshold."""
    masks = []
    for sample in length.detach().cpu().numpy():
        if np.ptp(sample) == 0:  # one value has no two classes
            masks.append(torch.zeros(sample.shape, dtype=torch.bool))
            continue
        # Twice: a few wild vectors stretch the first histogram, so beyond twice its threshold all count alike.
        threshold = threshold_otsu(np.minimum(sample, 2 * threshold_otsu(sample)))
        masks.append(torch.from_numpy(sample > max(threshold, SMALLEST_MOTION)))
    return torch.stack(masks).to(length.device)
