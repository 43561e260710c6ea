"""Vectors of pixels as a picture: what the network holds alike has one colour."""

import torch
from kornia.filters import guided_blur
from torch import Tensor

WINDOW = 9  # pixels, of the edge-aware filter
EDGE = 1e-3  # squared contrast, from which on an edge of the image is kept
CUT = 0.02  # share of the pixels at either end that a colour's range leaves out


def feature_picture(vectors: Tensor, image: Tensor) -> Tensor:
    """The three directions in which vectors vary most as red, green and blue, smoothed but for the image's edges.

    Principal components, each stretched to [0, 1]; then the guided filter (He, Sun and Tang, PAMI 2013) with the image
    as its guide.

    Args:
        vectors: (C, H, W), C from 3. image: (3, H, W) RGB in [0, 1].

    Returns:
        (3, H, W) in [0, 1]; grey in the middle where nothing varies.

    Raises:
        ValueError: sizes that differ, fewer than three channels.
    """
    if vectors.ndim != 3 or len(vectors) < 3 or vectors.shape[1:] != image.shape[1:]:
        raise ValueError(f"vectors must be (C, H, W) of the image's {tuple(image.shape[1:])} with 3 channels or more, "
                         f"got {tuple(vectors.shape)}")
    if not torch.isfinite(vectors).all():
        raise ValueError("vectors must be finite, got NaN or infinity")
    pixels = vectors.flatten(1).double()
    pixels = pixels - pixels.mean(1, keepdim=True)
    directions = torch.linalg.eigh(pixels @ pixels.T).eigenvectors[:, -3:].flip(1)               # (C, 3)
    directions = directions * directions.gather(0, directions.abs().argmax(0, keepdim=True)).sign()
    components = directions.T @ pixels                                                            # (3, N)
    ordered = components.sort(1).values
    cut = int(CUT * (ordered.shape[1] - 1))
    low, high = ordered[:, cut, None], ordered[:, -1 - cut, None]
    spread = high - low
    colours = torch.where(spread > 0, (components - low) / spread.clamp(min=1e-30), 0.5).clamp(0, 1)
    colours = colours.view(3, *image.shape[1:]).to(image.dtype)
    window = [min(WINDOW, side - 1 + side % 2) for side in image.shape[1:]]  # odd, and no larger than the image
    return guided_blur(image[None], colours[None], tuple(window), EDGE)[0].clamp(0, 1)
