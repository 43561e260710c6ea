"""TV-L1 optical flow (Zach, Pock and Bischof 2007; scikit-image's implementation): the opponent that learns nothing."""

from collections.abc import Iterable, Iterator

import torch
from skimage.registration import optical_flow_tvl1
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # weights of R, G, B in grey


def tvl1(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """Flow from each frame to the next, with scikit-image's default settings: about a second per frame at 240x428.

    Args:
        frames: (3, H, W) RGB in [0, 1] each, all of one size; read one at a time.

    Yields:
        (2, H, W) float32 flow in pixels, one less than there are frames.
    """
    weights = torch.tensor(LUMA)[:, None, None]
    first = None
    for frame in frames:
        second = (frame.cpu() * weights).sum(0).numpy()
        if first is not None:
            if first.shape != second.shape:
                raise ValueError(f"frames must be of one size, got {first.shape} and {second.shape}")
            # scikit-image's order is rows, then columns.
            yield torch.from_numpy(optical_flow_tvl1(first, second, dtype=second.dtype)[::-1].copy())
        first = second
