"""Several bodies of one frame by a network: a U-Net with a mask for each, in no order of its own.

Which mask is whose, nobody can say beforehand. So the loss first matches masks to bodies one to one, the best for all
together, and then teaches every mask the body that it was matched to (Carion et al., 2020, section 3.1; there boxes
and a transformer, here pixels that belong to one mask each).
"""

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from diffslic.geometry import resize
from diffslic.segmentation.regions import Indices, Regions, without_crumbs


def matched_loss(logits: Tensor, labels: Tensor, void: int = 255) -> Tensor:
    """Cross-entropy plus soft Dice loss of several masks, after the assignment of masks to bodies with the least Dice.

    A mask without a body learns to be empty. Of more bodies than masks the smallest count for nothing.

    Args:
        logits: (B, 1 + M, H, W): of the background, and of M bodies; a softmax over them gives the masks.
        labels: (B, H, W) integer; 0 is background, every other id a body.
        void: label of pixels that count for nothing.

    Returns:
        (B,) non-negative; 0 where all pixels are void.

    Raises:
        ValueError: the sizes differ, or there is no mask.
    """
    if logits.ndim != 4 or logits.shape[1] < 2 or labels.shape != logits[:, 0].shape:
        raise ValueError(f"logits must be (B, 1 + M, H, W) and labels (B, H, W), "
                         f"got {tuple(logits.shape)} and {tuple(labels.shape)}")
    return torch.stack([_matched_loss(one.flatten(1), truth.flatten(), void)
                        for one, truth in zip(logits, labels)])


def _matched_loss(logits: Tensor, labels: Tensor, void: int) -> Tensor:
    """Of one sample: (1 + M, N) and (N,)."""
    ids, pixels = labels[(labels != 0) & (labels != void)].unique(return_counts=True)
    ids = ids[pixels.argsort(descending=True)[:len(logits) - 1]]            # (K,), the largest bodies
    counts = (labels == 0) | torch.isin(labels, ids)
    logits, labels = logits[:, counts], labels[counts]
    bodies = (labels == ids[:, None]).to(logits)                            # (K, N)
    probability = logits.softmax(0)
    dice = dice_loss(probability[1:], bodies)                               # (M, K)
    masks, which = linear_sum_assignment(dice.detach().cpu().numpy())
    target = torch.zeros_like(labels)
    for mask, body in zip(masks.tolist(), which.tolist()):
        target[labels == ids[body]] = mask + 1
    cross_entropy = F.cross_entropy(logits.T, target, reduction="sum") / max(1, len(target))
    return cross_entropy + dice[masks, which].sum() / max(1, len(ids))


def dice_loss(masks: Tensor, bodies: Tensor) -> Tensor:
    """Soft Dice loss (M, K) of each mask (M, N) for each body (K, N); one pixel is added to both counts."""
    total = masks.sum(1)[:, None] + bodies.sum(1)
    return 1 - (2 * masks @ bodies.T + 1) / (total + 1)


def body_logits(net: nn.Module, channels: Tensor) -> Tensor:
    """Logits (B, 1 + M, H, W) of channels (B, C, H, W) by a network that works at half the size.

    Bodies are told apart by what lies far from one another, and their outlines come from superpixels: half the size
    takes a quarter of the time and lets the network see twice as far.
    """
    return resize(net(F.avg_pool2d(channels, 2, ceil_mode=True, count_include_pad=False)), channels.shape[-2:])


def network_proposals(logits: Tensor, regions: Regions, smallest: float = 100.0) -> Indices:
    """For each superpixel of the foreground the number of its proposal by a network's masks; -1 for all others.

    A superpixel goes to the body that is likeliest over its pixels. A body that something in front cuts in two stays
    one proposal. Below ``smallest`` pixels a proposal goes to the neighbour with the longest border, and where it has
    none to the background.

    Args:
        logits: (1 + M, H, W), see :func:`matched_loss`.

    Raises:
        ValueError: logits of another size.
    """
    if logits.ndim != 3 or logits.shape[1:] != regions.labels.shape or len(logits) < 2:
        raise ValueError(f"logits must be (1 + M, {regions.labels.shape[0]}, {regions.labels.shape[1]}), "
                         f"got {tuple(logits.shape)}")
    bodies = logits.detach().softmax(0)[1:].cpu().double().numpy()          # (M, H, W)
    shares = np.stack([np.bincount(regions.labels.ravel(), body.ravel(), minlength=len(regions.area))
                       for body in bodies], axis=1)                         # (S, M)
    on = regions.foreground >= 0.5
    names = np.where(on, shares.argmax(axis=1), -1)
    among = on[regions.edges].all(axis=1)
    return without_crumbs(names, regions.area, regions.edges[among], regions.border[among], smallest)


