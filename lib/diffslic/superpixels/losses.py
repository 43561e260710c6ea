"""Losses on soft superpixels: do they reconstruct what they should respect, and are they compact?

Reconstruction and compactness are equations of Jampani et al. (2018), section 4.2, whose total is reconstruction
+ 1e-5 compactness.
Each loss returns one value per image, (B,).
"""

import torch
from torch import Tensor

from diffslic.geometry import pixel_grid
from diffslic.superpixels.slic import SoftSLIC

SMALLEST_PROBABILITY = 1e-16


def reconstruct(soft: SoftSLIC, x: Tensor) -> Tensor:
    """Pixel values (B, C, H, W) as the superpixels see them: means over superpixels, mixed back, as in equation 5."""
    return soft.unpool(soft.pool(x))


def label_reconstruction(soft: SoftSLIC, labels: Tensor, form: str = "probability", known: Tensor | None = None,
                         n_segments: int | None = None) -> Tensor:
    """Cross-entropy between labels and their reconstruction (equation 5 with one-hot labels).

    Args:
        soft: superpixels of (B, H, W) pixels.
        labels: (B, H, W) int64 segments from 0; the numbers only need to differ between segments of an image.
        form: what the reconstruction R* is taken for: ``"probability"``, the paper's, -log R*[true segment];
            ``"logsoftmax"``, logits of a softmax over the segments, whose loss stays finite in its slope where R* is 0.
        known: (B, H, W) bool; other pixels count for nothing, whatever their label. None: all.
        n_segments: labels are below it, unchecked; None: they are asked, and a GPU is waited for.

    Returns:
        (B,) mean over the pixels that are known.
    """
    if form not in ("probability", "logsoftmax"):
        raise ValueError(f"form must be 'probability' or 'logsoftmax', got {form!r}")
    one_hot = _one_hot(soft, labels, n_segments)
    if known is not None:
        one_hot = one_hot * known[:, None]
    seen = reconstruct(soft, one_hot)
    if form == "logsoftmax":
        loss = -(seen.log_softmax(1) * one_hot).sum(1)
    else:
        loss = -((seen * one_hot).sum(1) / (seen.sum(1) + SMALLEST_PROBABILITY) + SMALLEST_PROBABILITY).log()
    if known is None:
        return loss.mean((1, 2))
    return (loss * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)


def soft_iou(soft: SoftSLIC, labels: Tensor) -> Tensor:
    """One minus the soft intersection over union of segments and their reconstruction, mean over the segments.

    Unlike the cross-entropy it weighs small segments as it weighs large ones (Rahman and Wang, 2016).

    Args:
        soft, labels: see :func:`label_reconstruction`.

    Returns:
        (B,) in [0, 1]; segments that an image does not have do not count.
    """
    one_hot = _one_hot(soft, labels)
    seen = reconstruct(soft, one_hot)
    overlap, size, total = ((seen * one_hot).sum((2, 3)), one_hot.sum((2, 3)), seen.sum((2, 3)))   # (B, L)
    present = (size > 0).to(seen.dtype)
    iou = overlap / (size + total - overlap).clamp_min(SMALLEST_PROBABILITY)
    return 1 - (iou * present).sum(1) / present.sum(1)


def _one_hot(soft: SoftSLIC, labels: Tensor, n_segments: int | None = None) -> Tensor:
    """(B, L, H, W) of labels that fit the superpixels' pixels."""
    if tuple(labels.shape) != (soft.affinity.shape[0], *soft.affinity.shape[-2:]):
        raise ValueError(f"labels are {tuple(labels.shape)} but the superpixels are of "
                         f"{(soft.affinity.shape[0], *soft.affinity.shape[-2:])} pixels")
    if n_segments is None:
        lowest, highest = torch.stack(labels.aminmax()).tolist()  # both at once: a GPU is waited for here
        if labels.is_floating_point() or lowest < 0:
            raise ValueError(f"labels must be whole numbers from 0, got {labels.dtype} from {lowest}")
        n_segments = highest + 1
    segments = torch.arange(n_segments, device=labels.device)
    return (labels[:, None] == segments[:, None, None]).to(soft.affinity.dtype)


def property_reconstruction(soft: SoftSLIC, x: Tensor) -> Tensor:
    """L1 distance between a per-pixel property (flow, depth, colour) and its reconstruction (equation 5).

    Args:
        soft: superpixels of (B, H, W) pixels.
        x: (B, C, H, W) values.

    Returns:
        (B,) mean over pixels of the absolute differences summed over channels.
    """
    return (x - reconstruct(soft, x)).abs().sum(1).mean((1, 2))


def compactness(soft: SoftSLIC, assignment: str = "hard") -> Tensor:
    """Mean squared distance of pixels to the centre of their superpixel (equation 6).

    The centres are affinity-weighted means of the positions, in pixels.

    Args:
        soft: superpixels of (B, H, W) pixels.
        assignment: ``"hard"``, the paper's: each pixel is compared with the centre of its label (no gradient through
            the choice); ``"soft"``: with its candidates' centres mixed by affinity.

    Returns:
        (B,) in pixels squared, the mean over pixels and over both coordinates.
    """
    if assignment not in ("hard", "soft"):
        raise ValueError(f"assignment must be 'hard' or 'soft', got {assignment!r}")
    affinity = soft.affinity
    position = pixel_grid(*affinity.shape[-2:], affinity.device, affinity.dtype)[None]
    centres = soft.pool(position)                                                            # (B, S, 2)
    own = (soft.harden() if assignment == "hard" else soft).unpool(centres)
    return (position - own).square().mean((1, 2, 3))
