"""Motion segmentation without learning: what a network has to beat."""

import numpy as np
import torch
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
