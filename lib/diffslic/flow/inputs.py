"""What RAFT takes: each check ends in one line that says what was expected and what came."""

from torch import Tensor

TOLERANCE = 0.1  # by which a resized image may leave [0, 1]


def check_images(*images: Tensor) -> None:
    """Images are (B, 3, H, W) RGB of one size, with values in [0, 1]."""
    for image in images:
        if image.ndim != 4 or image.shape[1] != 3 or image.shape != images[0].shape:
            raise ValueError(f"RAFT takes RGB images (B, 3, H, W) of one size, got "
                             f"{' and '.join(str(tuple(each.shape)) for each in images)}")
        if image.numel() == 0:
            raise ValueError(f"RAFT takes images with pixels, got {tuple(image.shape)}")
        low, high = (float(value) for value in image.aminmax())
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # false for NaN as well
            raise ValueError(f"RAFT takes RGB in [0, 1], got values from {low:g} to {high:g}")


def check_iterations(n_iters: int) -> None:
    """There is at least one correction."""
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
