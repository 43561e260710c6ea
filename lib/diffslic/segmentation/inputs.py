"""Flow as a network likes it: what the camera does not explain, and the whole, of like strength in every video."""

import torch
from torch import Tensor

from diffslic.segmentation.parametric import check_flow, dominant_motion

TINY = 1e-12  # squared pixels


def flow_channels(flow: Tensor, least: float = 1.0) -> Tensor:
    """The residual to the dominant quadratic motion shows what moves by itself; the whole flow tells near from far.

    Each sample is seen by itself: the others of the batch do not matter.

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        least: pixels, see :func:`of_like_strength`.

    Returns:
        (B, 4, H, W): residual u, v, then flow u, v, each pair of like strength.

    Raises:
        ValueError: not a finite flow.
    """
    check_flow(flow)
    return checked_channels(flow, least)


def checked_channels(flow: Tensor, least: float = 1.0) -> Tensor:
    """:func:`flow_channels` of what has been checked; a GPU is never waited for."""
    residual = flow - dominant_motion(flow)
    return torch.cat([of_like_strength(field, least) for field in (residual, flow)], dim=1)


def of_like_strength(fields: Tensor, least: float = 1.0) -> Tensor:
    """Fields (B, 2, H, W), each divided by the 95th percentile of its lengths: fast and slow videos look alike.

    Below ``least`` pixels it is divided by that, so that noise in a still frame stays small.
    """
    few = fields.flatten(2)[..., ::7]  # tell as much as all pixels, and are sorted sooner
    # ``norm`` takes a CPU much longer over an axis of two. Bounded before the root, whose slope at 0 is infinite.
    lengths = few.square().sum(1).clamp(min=TINY).sqrt()
    strength = lengths.quantile(0.95, dim=1).clamp(min=least)               # (B,)
    return fields / strength[:, None, None, None]
