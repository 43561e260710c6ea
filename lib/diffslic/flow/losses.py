"""What RAFT learns from: the paper's sequence loss and a matching loss of ours, each with one value per pair, (B,)."""

from torch import Tensor

from diffslic import geometry
from diffslic.flow.raft import STRIDE

SHARPEST = 0.01  # pixels: below, a power of the distance is about a line


def sequence_loss(predictions: list[Tensor], truth: Tensor, valid: Tensor, gamma: float = 0.8,
                  power: float = 1.0) -> Tensor:
    """L1 distance of every correction to the truth, later ones counting more (equation 7).

    Args:
        predictions: flows (B, 2, H, W), first to last. truth: (B, 2, H, W). valid: (B, H, W) bool.
        gamma: weight of a correction beside the next one's.
        power: of the distances, 1 in the paper. Below it far misses count less and fractions of a pixel more, as in
            PWC-Net's fine-tuning (Sun et al., CVPR 2018, equation 4).

    Returns:
        (B,) loss in pixels to that power, averaged over the valid pixels.
    """
    count = valid.flatten(1).sum(1).clamp(min=1)
    loss = truth.new_zeros(len(truth))
    for age, prediction in enumerate(reversed(predictions)):
        # Not a product with ``valid``: where the truth is unknown it may be NaN.
        distance = (prediction - truth).abs().sum(1).where(valid, 0)
        if power != 1:
            distance = (distance + SHARPEST) ** power - SHARPEST ** power
        loss = loss + gamma ** age * distance.flatten(1).sum(1) / count
    return loss


def matching_loss(similarity: Tensor, truth: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of "which cell of the second image is this?": it teaches the features directly.

    Not in the paper, whose features learn through the recurrent unit alone. What it brings has not been measured
    against a run without it. The softmax runs over all cells of the second image, the target is the bilinear mixture
    of the four cells around the true position.

    Args:
        similarity: (B, h * w, h, w) of :class:`Predictions`. truth: (B, 2, H, W) in pixels. valid: (B, H, W) bool.

    Returns:
        (B,) nats, averaged over the cells that are valid and move to a place inside the frame.
    """
    batch, _, height, width = similarity.shape
    # A cell's receptive field is centred on the pixel at eight times its position.
    flow, valid = truth[..., ::STRIDE, ::STRIDE] / STRIDE, valid[:, ::STRIDE, ::STRIDE]
    target = geometry.pixel_grid(height, width, flow.device, flow.dtype) + flow
    valid = (valid & geometry.lands_inside(flow)).flatten(1)
    logarithms = similarity.flatten(2).log_softmax(-1).reshape(-1, 1, height, width)
    found = geometry.sample(logarithms, target.flatten(2).transpose(1, 2).reshape(-1, 2, 1, 1), padding="border")
    return -(found.reshape(batch, -1) * valid).sum(1) / valid.sum(1).clamp(min=1)
