"""Flow by libraries, which learns nothing: an opponent for RAFT, and a polish of its flow."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from skimage.registration import optical_flow_tvl1
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # weights of R, G, B in grey
COARSEST_SCALE = 2  # the patches are first moved at a quarter of the size: up to about 16 pixels are mended
PATCH_STRIDE = 2  # pixels between the patches of 8 pixels
REFINEMENTS = 10  # iterations of the variational step
SEARCH = f"inverse search from scale {COARSEST_SCALE}, stride {PATCH_STRIDE}, {REFINEMENTS} refinements"  # for caches


def tvl1(frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """TV-L1 flow (Zach, Pock and Bischof 2007) from each frame to the next.

    scikit-image's implementation with its default settings: about a second per frame at 240x428.

    Args:
        frames: (3, H, W) RGB in [0, 1] each, all of one size; read one at a time.

    Yields:
        (2, H, W) float32 flow in pixels, one less than there are frames.
    """
    first = None
    for frame in frames:
        second = _grey(frame)
        if first is not None:
            if first.shape != second.shape:
                raise ValueError(f"frames must be of one size, got {first.shape} and {second.shape}")
            # scikit-image's order is rows, then columns.
            yield torch.from_numpy(optical_flow_tvl1(first, second, dtype=second.dtype)[::-1].copy())
        first = second


def inverse_search(image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
    """Search for patches from a rough flow on; see :func:`diffslic.flow.polish`, whose sizes these are.

    From where the flow points patches are moved to where their differences are smallest, and the result is smoothed by
    a variational step (Kroeger et al., ECCV 2016; OpenCV's implementation), from a quarter of the size to the full one.
    It works on the host, pair by pair.

    Raises:
        ValueError: a flow or images that are not finite.
    """
    if not all(values.isfinite().all() for values in (image1, image2, flow)):
        raise ValueError("polish takes finite images and flow")  # the search would follow a NaN out of memory
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setCoarsestScale(COARSEST_SCALE)
    search.setFinestScale(0)
    search.setPatchStride(PATCH_STRIDE)
    search.setVariationalRefinementIterations(REFINEMENTS)
    polished = []
    for first, second, start in zip(image1, image2, flow):
        before, after = (np.rint(255 * _grey(image).clip(0, 1)).astype(np.uint8) for image in (first, second))
        begin = np.ascontiguousarray(start.cpu().float().permute(1, 2, 0).numpy())
        polished.append(torch.from_numpy(np.asarray(search.calc(before, after, begin))).permute(2, 0, 1))
    return torch.stack(polished).to(flow)


def _grey(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] to (H, W)."""
    return (image.detach().cpu() * torch.tensor(LUMA)[:, None, None]).sum(0).numpy()
