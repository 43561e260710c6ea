"""Flow from brightness constancy and smoothness alone, which learns nothing: an opponent, and a polish for RAFT."""

from collections.abc import Iterable, Iterator

import cv2
import numpy as np
import torch
from skimage.registration import optical_flow_tvl1
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # weights of R, G, B in grey
SMALLEST_SIDE = 16  # pixels: smaller images have no room for a search over patches of 8 pixels
COARSEST_SCALE = 2  # the patches are first moved at a quarter of the size: up to about 16 pixels are mended
PATCH_STRIDE = 2  # pixels between the patches of 8 pixels
REFINEMENTS = 10  # iterations of the variational step
POLISH = f"inverse search from scale {COARSEST_SCALE}, stride {PATCH_STRIDE}, {REFINEMENTS} refinements"  # for caches


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


def polish(image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
    """Bring a flow that is roughly right to a fraction of a pixel.

    RAFT decides at an eighth of the image's size: it finds far matches, and leaves small motions and the outlines of
    things to interpolation. Starting from there, patches are searched for where their differences are smallest and
    the result is smoothed by a variational step (Kroeger et al., ECCV 2016; OpenCV's implementation), from a quarter
    of the size to the full one: about a tenth of a second per frame at 240x428 on one core.

    Args:
        image1, image2: (B, 3, H, W) RGB in [0, 1]. flow: (B, 2, H, W) in pixels, finite.

    Returns:
        (B, 2, H, W) in pixels, on the flow's device and without gradient; images with a side of less than 16 pixels
        keep their flow.

    Raises:
        ValueError: sizes that do not belong together, or a flow or images that are not finite.
    """
    if image1.ndim != 4 or image1.shape != image2.shape or flow.shape != (len(image1), 2, *image1.shape[2:]):
        raise ValueError(f"polish takes images (B, 3, H, W) and flow (B, 2, H, W) of one size, got "
                         f"{tuple(image1.shape)}, {tuple(image2.shape)} and {tuple(flow.shape)}")
    if not all(values.isfinite().all() for values in (image1, image2, flow)):
        raise ValueError("polish takes finite images and flow")  # the search would follow a NaN out of memory
    if min(flow.shape[-2:]) < SMALLEST_SIDE:
        return flow.detach()
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    search.setCoarsestScale(COARSEST_SCALE)
    search.setFinestScale(0)
    search.setPatchStride(PATCH_STRIDE)
    search.setVariationalRefinementIterations(REFINEMENTS)
    polished = []
    for first, second, start in zip(image1, image2, flow.detach()):
        before, after = (np.rint(255 * _grey(image).clip(0, 1)).astype(np.uint8) for image in (first, second))
        begin = np.ascontiguousarray(start.cpu().float().permute(1, 2, 0).numpy())
        polished.append(torch.from_numpy(np.asarray(search.calc(before, after, begin))).permute(2, 0, 1))
    return torch.stack(polished).to(flow)


def _grey(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] to (H, W)."""
    return (image.detach().cpu() * torch.tensor(LUMA)[:, None, None]).sum(0).numpy()
