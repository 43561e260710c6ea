"""What a pair of flows says about itself: occlusion by the forward-backward check, and motion boundaries."""

import torch.nn.functional as F
from torch import Tensor

from diffslic.geometry import lands_inside, warp


def occlusion(forward: Tensor, backward: Tensor, relative: float = 0.01, absolute: float = 0.5) -> Tensor:
    """Pixels of the first frame that the second does not show.

    With s the backward flow read where the forward flow f points to, a visible pixel comes back: f + s is about zero.
    A pixel is occluded where |f + s|^2 > relative (|f|^2 + |s|^2) + absolute (Sundaram et al., 2010, equation 5), or
    where it leaves the frame. Exchange the arguments for the occlusion of the second frame.

    Args:
        forward: (B, 2, H, W) in pixels, first frame to second.
        backward: (B, 2, H, W) in pixels, second frame to first.
        relative: tolerance that grows with the motion. absolute: tolerance in squared pixels.

    Returns:
        (B, H, W) bool.

    Raises:
        ValueError: the two are not flows of one size.
    """
    if forward.ndim != 4 or forward.shape[1] != 2 or forward.shape != backward.shape:
        raise ValueError(f"both flows must be (B, 2, H, W), got {tuple(forward.shape)} and {tuple(backward.shape)}")
    returned = warp(backward, forward)
    gap = (forward + returned).square().sum(1)
    motion = forward.square().sum(1) + returned.square().sum(1)
    # Written as "not consistent", so that unknown flow (NaN) in either counts as occluded.
    return ~(gap <= relative * motion + absolute) | ~lands_inside(forward)


def motion_boundaries(flow: Tensor, relative: float = 0.01, absolute: float = 0.002) -> Tensor:
    """Pixels where the flow changes abruptly, as at the outline of what moves.

    |grad u|^2 + |grad v|^2 > relative |flow|^2 + absolute, with central differences (Sundaram et al., 2010,
    equation 6). Unlike a fixed threshold this lets fast motion vary more.

    Args:
        flow: (B, 2, H, W) in pixels.

    Returns:
        (B, H, W) bool.

    Raises:
        ValueError: not a flow.
    """
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (B, 2, H, W), got {tuple(flow.shape)}")
    padded = F.pad(flow, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    along_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    change = (along_x.square() + along_y.square()).sum(1)
    return change > relative * flow.square().sum(1) + absolute
