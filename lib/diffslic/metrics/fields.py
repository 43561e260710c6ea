"""Optical flow and depth against the truth."""

import math
from typing import Any

import numpy as np

from diffslic.metrics.arrays import known_mask, same_shape


def flow(flow: Any, truth: Any, valid: Any = None) -> dict[str, float]:
    """Errors of optical flow, over the pixels whose true flow is known.

    epe: mean end-point error in pixels. px1, px3: shares in [0, 1] of pixels with an error above 1 and above 3 pixels.
    fl_all: share of the outliers of KITTI 2015: error above 3 pixels and above 5 % of the true magnitude.

    ``flow`` and ``truth`` are (..., 2, H, W) in pixels; a true vector that is not finite or beyond 1e9 is unknown and
    left out, so are pixels where ``valid`` (..., H, W) is False. ValueError on shapes that differ, no known pixel, or
    an estimate that is not finite at a known one.
    """
    flow, truth = same_shape(flow, truth, "flow")
    if flow.ndim < 3 or flow.shape[-3] != 2:
        raise ValueError(f"flow must be (..., 2, H, W), got {flow.shape}")
    known = (np.abs(truth) <= 1e9).all(axis=-3)  # false for NaN as well
    known &= known_mask(valid, known.shape)
    if not known.any():
        raise ValueError("truth has no pixel with known flow that is also valid")
    estimate, truth = np.moveaxis(flow, -3, -1)[known], np.moveaxis(truth, -3, -1)[known]
    if not np.isfinite(estimate).all():
        raise ValueError(f"flow is not finite at {(~np.isfinite(estimate)).any(axis=-1).sum()} pixels with known truth")
    error, magnitude = np.linalg.norm(estimate - truth, axis=-1), np.linalg.norm(truth, axis=-1)
    return {"epe": float(error.mean()), "px1": float((error > 1).mean()), "px3": float((error > 3).mean()),
            "fl_all": float(((error > 3) & (error > 0.05 * magnitude)).mean())}


def depth(depth: Any, truth: Any, valid: Any = None) -> dict[str, float]:
    """Errors of depth, never aligned in scale, over the pixels that have both a truth and an estimate.

    With estimate Z and truth Z*: abs_rel = mean |Z - Z*| / Z*; sq_rel = mean (Z - Z*)^2 / Z*; rmse and rmse_log = root
    mean square of Z - Z* and of ln Z - ln Z*; d1 d2 d3 = shares with max(Z / Z*, Z* / Z) < 1.25, 1.25^2, 1.25^3 (Eigen
    et al. 2014); inlier = the same share below 1.03 (Schroeppel et al. 2022); coverage = share of the pixels with a
    truth that have an estimate. Read no error without its coverage.

    ``depth`` and ``truth`` have one shape and are in metres along z; there is none where not finite or not positive
    (set a far sky to 0). Where ``valid`` (same shape, bool) is False the estimate counts as missing. ValueError on
    shapes that differ, or where no pixel has both a truth and an estimate.
    """
    depth, truth = same_shape(depth, truth, "depth")
    known = np.isfinite(truth) & (truth > 0)
    both = known & np.isfinite(depth) & (depth > 0) & known_mask(valid, depth.shape)
    if not both.any():
        raise ValueError(f"no pixel has both a depth and a truth ({known.sum()} pixels have a truth)")
    z, true = depth[both], truth[both]
    ratio = np.maximum(z / true, true / z)
    return {"abs_rel": float((np.abs(z - true) / true).mean()), "sq_rel": float(((z - true) ** 2 / true).mean()),
            "rmse": math.sqrt(((z - true) ** 2).mean()), "rmse_log": math.sqrt((np.log(z / true) ** 2).mean()),
            **{f"d{k}": float((ratio < 1.25**k).mean()) for k in (1, 2, 3)},
            "inlier": float((ratio < 1.03).mean()), "coverage": float(both.sum() / known.sum())}
