"""The coherence loss: how badly the flow inside each mask is explained by one parametric motion.

It needs no annotation, and where it is least the masks are the bodies (Meunier, Badoual and Bouthemy, 2022).
"""

import torch
from torch import Tensor

from diffslic.segmentation.parametric import (
    SMALLEST_RESIDUAL,
    check_flow,
    check_method,
    check_model,
    fitted_motion,
    flow_distance,
    motion_flow,
)
from diffslic.segmentation.polynomials import full_precision


@full_precision
def coherence_loss(masks: Tensor, flow: Tensor, model: str = "quadratic", distance: str = "l1", fit: str = "ls",
                   n_iters: int = 8, normalised: bool = False, entropy: float = 0.0,
                   known: Tensor | None = None) -> Tensor:
    """How badly the flow inside each mask is explained by one parametric motion per mask (equations 6 to 9).

    The mean over the pixels of sum_l m_l(p) d(f_l(p), flow(p)), with the motions f_l fitted to the masks. As in the
    paper their parameters count as constant: gradients reach the masks alone.

    Args:
        masks: (B, L, H, W) in [0, 1], summing to one over L.
        flow: (B, 2, H, W) in pixels.
        model, fit, n_iters: see :func:`fit_motion`; eight rounds of reweighting the quadratic model, of which seven
            cost little, reach below what twenty steps of L-BFGS do.
        distance: "l1" (|du| + |dv|), "l2" (length), "squared" (its square) or "charbonnier".
        normalised: divide by the flow's own mean distance from zero, so that fast clips do not count more; a frame
            that does not move at all counts as it is.
        entropy: weight of the masks' mean entropy in nats, which leads to clear decisions.
        known: (B, H, W) bool, where the flow is known; everywhere if None. Elsewhere it may be anything.

    Returns:
        (B,) in pixels (square pixels for "squared", no unit if normalised).

    Raises:
        ValueError: sizes that differ, masks that do not sum to one, flow that is unknown where it should be known, an
            unknown model, fit or distance.
    """
    if known is not None:
        if known.dtype != torch.bool or flow.ndim != 4 or known.shape != flow[:, 0].shape:
            raise ValueError(f"known must be (B, H, W) bool of the flow's size {tuple(flow.shape)}, got {known.dtype} "
                             f"of shape {tuple(known.shape)}")
        flow = flow.where(known[:, None], 0)
    check_flow(flow)
    check_masks(masks, flow[:, None, 0])
    check_model(model)
    check_method(fit, distance, n_iters)
    return checked_loss(masks, flow, model, distance, fit, n_iters, normalised, entropy, known)


def checked_loss(masks: Tensor, flow: Tensor, model: str, distance: str, fit: str, n_iters: int, normalised: bool,
                  entropy: float, known: Tensor | None) -> Tensor:
    """:func:`coherence_loss` of what has been checked; with least squares a GPU is never waited for."""
    weights = masks if known is None else masks * known[:, None]
    with torch.no_grad():
        theta = fitted_motion(flow, weights, model, fit, distance, n_iters)
        distances = flow_distance(motion_flow(theta, *flow.shape[-2:], model).sub_(flow[:, None]), distance)
        count = distances[0, 0].numel() if known is None else known.flatten(1).sum(1).clamp(min=1)
        scale = flow_distance(flow, distance).flatten(1).sum(1) / count if normalised else flow.new_ones(())
    loss = torch.linalg.vecdot(weights.flatten(1), distances.to(weights.dtype).flatten(1)) / count
    loss = loss / scale.where(scale > SMALLEST_RESIDUAL, 1)
    return loss + entropy * mask_entropy(masks).flatten(1).mean(1) if entropy else loss


def mask_entropy(masks: Tensor) -> Tensor:
    """The entropy in nats of each pixel of masks (B, L, ...): (B, ...), from 0 (decided) to ln L."""
    return -(masks * masks.clamp(min=1e-4).log()).sum(1)


def check_masks(masks: Tensor, field: Tensor) -> None:
    """Refuse masks (B, L, ...) that are not of the size of ``field`` (B, 1, ...) or do not sum to one over L."""
    if masks.ndim != field.ndim or masks[:, :1].shape != field.shape:
        raise ValueError(f"masks must be (B, L, ...) of the flow's size {tuple(field.shape)}, got {tuple(masks.shape)}")
    if not masks.is_floating_point():
        raise ValueError(f"masks must be floating point, got {masks.dtype}")
    rounding = max(1e-3, torch.finfo(masks.dtype).eps * masks.shape[1])
    if not (((masks.detach().double().sum(1) - 1).abs().max() < rounding) & (masks.detach().min() >= 0)):
        raise ValueError("masks must lie in [0, 1] and sum to one over the layers, as a softmax does")
