"""Flow as a network likes it: what the camera does not explain, and the whole, of like strength in every video."""

import torch
from torch import Tensor

from diffslic.segmentation.parametric import camera_motion


def flow_channels(flow: Tensor, least: float = 1.0) -> Tensor:
    """The residual to the dominant quadratic motion shows what moves by itself; the whole flow tells near from far.

    Args:
        flow: (2, H, W) in pixels, finite.
        least: pixels, see :func:`of_like_strength`.

    Returns:
        (4, H, W): residual u, v, then flow u, v, each pair of like strength.
    """
    residual = flow - camera_motion(flow[None])[0]
    return torch.cat([of_like_strength(field, least) for field in (residual, flow)])


def of_like_strength(field: Tensor, least: float = 1.0) -> Tensor:
    """A field (2, H, W) divided by its 95th percentile, so that fast and slow videos look alike.

    Below ``least`` pixels it is divided by that, so that noise in a still frame stays small.
    """
    return field / field.norm(dim=0).flatten()[::7].quantile(0.95).clamp(min=least)
