"""What RAFT takes: each check ends in one line that says what was expected and what came."""

import torch
from torch import Tensor

TOLERANCE = 0.1  # by which a resized image may leave [0, 1]


def check_images(*images: Tensor) -> None:
    """Images are (B, 3, H, W) RGB of one size, with values in [0, 1]."""
    for image in images:
        check_image(image, images[0])


def check_image(image: Tensor, first: Tensor) -> None:
    """An image as :func:`check_images` wants it, beside one that has been checked already, or itself."""
    if image.ndim != 4 or image.shape[1] != 3 or image.shape != first.shape:
        others = "" if image is first else f"{tuple(first.shape)} and "
        raise ValueError(f"RAFT takes RGB images (B, 3, H, W) of one size, got {others}{tuple(image.shape)}")
    if image.numel() == 0 or not image.is_floating_point():
        raise ValueError(f"RAFT takes images with pixels, in floats, got {tuple(image.shape)} of {image.dtype}")
    low, high = torch.stack(image.aminmax()).tolist()  # both at once: a GPU is waited for here
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # false for NaN as well
        raise ValueError(f"RAFT takes RGB in [0, 1], got values from {low:g} to {high:g}")


def check_initial(initial: Tensor, image: Tensor) -> None:
    """A flow to start from is (B, 2, H, W) as its image (B, 3, H, W) is, and finite."""
    if initial.shape != (len(image), 2, *image.shape[-2:]) or not initial.isfinite().all():
        raise ValueError(f"the initial flow must be finite and {(len(image), 2, *image.shape[-2:])}, got "
                         f"{tuple(initial.shape)}" + " with values that are not" * (not initial.isfinite().all()))


def check_iterations(n_iters: int) -> None:
    """There is at least one correction."""
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
