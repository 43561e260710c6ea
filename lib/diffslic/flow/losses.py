"""What RAFT learns from, each with one value per pair, (B,).

The paper's sequence loss and a matching loss of ours need the true flow; the photometric loss needs the images alone.
"""

import torch
from torch import Tensor

from diffslic import geometry
from diffslic.flow.raft import STRIDE

SHARPEST = 0.01  # pixels, or shares of white: below, a power of a distance is about a line, a root about a square


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


def photometric_loss(image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
    """Is the flow consistent with the images? The second, read where the flow points, should look like the first.

    Charbonnier's distance of the colours (Jason Yu et al., 2016, equation 2), over pixels that stay inside the frame.
    Where something is hidden it is wrong by nature: give it little weight.

    Args:
        image1, image2: (B, 3, H, W) in [0, 1]. flow: (B, 2, H, W) in pixels, from the first to the second.

    Returns:
        (B,) in [0, 1], 0 where nothing stays inside.
    """
    inside = geometry.lands_inside(flow).to(image1.dtype)
    difference = image1 - geometry.warp(image2, flow.to(image2.dtype), padding="border")
    distance = torch.sqrt(difference.square().mean(1) + SHARPEST ** 2) - SHARPEST
    return (distance * inside).flatten(1).sum(1) / inside.flatten(1).sum(1).clamp(min=1)
