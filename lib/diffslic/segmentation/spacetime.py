"""Parametric motion in space and time: polynomial flow whose parameters follow splines, and the loss that it makes.

Between two frames a quadratic flow explains a moving surface (``parametric``). Over many frames its parameters change
smoothly: each follows a cubic B-spline with a control point every few frames, so that one layer stays one body for as
long as a clip lasts (Meunier and Bouthemy, 2023, sections 3.2 and 3.3).
"""

from functools import lru_cache

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from diffslic.segmentation.coherence import check_masks, mask_entropy
from diffslic.segmentation.parametric import (
    SMALLEST_RESIDUAL,
    check_fit,
    check_flow,
    check_method,
    check_model,
    every,
    flow_distance,
    robust_weights,
    rough_step,
)
from diffslic.segmentation.polynomials import EXPONENTS, full_precision, monomials, normal_equations, solve, values

SPACING = 3  # frames between control points, as published
QUANTILE = 0.99  # flow that changes more than this share of all flow from frame to frame need not keep its mask


def spline_basis(n_frames: int, spacing: int = SPACING, published: bool = False) -> Tensor:
    """How much each control point counts in each frame.

    There are K = floor((T - 2) / spacing) + 2 control points. The default basis is clamped: it sums to one in every
    frame, so constant and linear courses are representable, and with four points cubic ones. The published one has
    uniform cubic splines around the K points and none beyond them: its first and last frame sum to 5/6, and nothing
    there is constant.

    Args:
        n_frames: T, at least 1.
        spacing: frames from one control point to the next, about; at least 1.

    Returns:
        (T, K) float64.

    Raises:
        ValueError: no frame, or no spacing.
    """
    if n_frames < 1 or spacing < 1:
        raise ValueError(f"a spline needs a frame and a spacing of 1 at least, got {n_frames} and {spacing}")
    count = (n_frames - 2) // spacing + 2
    at = np.linspace(0, count - 1, n_frames)
    if published:
        distance = np.abs(at[:, None] - np.arange(count))
        near, far = 2 / 3 - distance ** 2 + distance ** 3 / 2, (2 - distance).clip(0) ** 3 / 6
        return torch.from_numpy(np.where(distance < 1, near, far))
    if count == 1:
        return torch.ones(n_frames, 1, dtype=torch.float64)
    degree = min(3, count - 1)
    knots = np.concatenate([np.zeros(degree), np.linspace(0, count - 1, count - degree + 1),
                            np.full(degree, count - 1.0)])
    return torch.from_numpy(BSpline.design_matrix(at, knots, degree).toarray())


@full_precision
def fit_spacetime(flow: Tensor, weights: Tensor, model: str = "quadratic", spacing: int = SPACING, fit: str = "ls",
                  distance: str = "l1", n_iters: int = 10, published: bool = False) -> Tensor:
    """Parameters of the space-time flow that explains each layer best, as :func:`fit_motion` does frame by frame.

    The monomials of a frame do not depend on time and the splines not on the place, so the normal matrix of a layer is
    sum_t S_tk S_tj M_t with the moments M_t of its frames: small matrices, however many pixels there are. Frames are
    worked through one by one; nothing of the size of all layers and frames at once is made. No gradient.

    Args:
        flow: (B, 2, T, H, W) in pixels per frame. weights: (B, L, T, H, W) non-negative, such as soft masks.
        model: "constant", "affine" or "quadratic". spacing, published: see :func:`spline_basis`.
        fit, distance, n_iters: see :func:`diffslic.segmentation.fit_motion`; over a clip ten rounds of reweighting
            reach below what twenty steps of L-BFGS do; all but the last see about 4,000 pixels of a frame.

    Returns:
        (B, L, K, F, 2): of every control point, the factors of the monomials for u and v, float64.

    Raises:
        ValueError: sizes that differ, unknown flow, an unknown model, fit or distance.
    """
    check_fit(flow, weights, fit, distance, n_iters, "T, H, W")
    check_model(model)
    return _fitted(flow, weights, model, spacing, fit, distance, n_iters, published)


def _fitted(flow: Tensor, weights: Tensor, model: str, spacing: int, fit: str, distance: str, n_iters: int,
            published: bool) -> Tensor:
    """:func:`fit_spacetime` of what has been checked; by least squares a GPU is never waited for."""
    splines = _basis_on(flow.device, flow.shape[2], spacing, published)
    size, count = flow.shape[-2:], len(EXPONENTS[model])
    powers, pixels = monomials(*size, flow.device), weights.flatten(3)
    vectors = flow.flatten(3).contiguous()
    with torch.no_grad():
        if fit == "ls":
            return _solved(vectors, pixels, powers, count, splines, distance, None)
        step = rough_step(weights, splines.shape[1] * count)
        rough = monomials(*size, flow.device, step)
        few, few_pixels = every(step, flow).flatten(3), every(step, weights).flatten(3)
        theta = _solved(few, few_pixels, rough, count, splines, distance, None)
        for _ in range(n_iters - 1):
            theta = _solved(few, few_pixels, rough, count, splines, distance, theta)
        return _solved(vectors, pixels, powers, count, splines, distance, theta)


@full_precision
def spacetime_flow(theta: Tensor, n_frames: int, size: tuple[int, int], model: str = "quadratic",
                   spacing: int = SPACING, published: bool = False) -> Tensor:
    """The flow of parameters (B, L, K, F, 2) of :func:`fit_spacetime`: (B, L, 2, T, H, W) in pixels."""
    check_model(model)
    splines, count = spline_basis(n_frames, spacing, published).to(theta), len(EXPONENTS[model])
    if theta.ndim != 5 or theta.shape[2:] != (splines.shape[1], count, 2):
        raise ValueError(f"theta of {n_frames} frames must be (B, L, {splines.shape[1]}, {count}, 2), got "
                         f"{tuple(theta.shape)}")
    of_frames = torch.einsum("tk,blkfc->bltfc", splines, theta)
    return values(of_frames, monomials(*size, theta.device)).transpose(2, 3).unflatten(-1, size)


@full_precision
def spacetime_loss(masks: Tensor, flow: Tensor, model: str = "quadratic", spacing: int = SPACING, distance: str = "l1",
                   fit: str = "ls", n_iters: int = 10, normalised: bool = True, published: bool = False) -> Tensor:
    """How badly the flow inside each mask is explained by one space-time motion per mask (equation 5).

    The mean over frames and pixels of sum_l m_l d(f_l, flow); the motions count as constant, so that gradients reach
    the masks alone, and a frame at a time is in memory beside masks and distances.

    Args:
        masks: (B, L, T, H, W) in [0, 1], summing to one over L.
        flow: (B, 2, T, H, W) in pixels per frame.
        model, spacing, fit, n_iters, published: see :func:`fit_spacetime`.
        distance: see :func:`diffslic.segmentation.coherence_loss`.
        normalised: divide each frame by its flow's mean distance from zero, as published; a frame that does not move
            at all counts as it is.

    Returns:
        (B,) without a unit, or in pixels.

    Raises:
        ValueError: sizes that differ, masks that do not sum to one, unknown flow, unknown names.
    """
    check_flow(flow, "(B, 2, T, H, W)")
    check_masks(masks, flow[:, :1])
    check_model(model)
    check_method(fit, distance, n_iters)
    return checked_loss(masks, flow, model, spacing, distance, fit, n_iters, normalised, published)


def checked_loss(masks: Tensor, flow: Tensor, model: str, spacing: int, distance: str, fit: str, n_iters: int,
                 normalised: bool, published: bool) -> Tensor:
    """:func:`spacetime_loss` of what has been checked; with least squares a GPU is never waited for."""
    scales = torch.ones_like(flow[:, 0, :, 0, 0])                           # (B, T)
    if normalised:
        lengths = flow_distance(flow.transpose(1, 2), distance).flatten(2).mean(2)
        scales = lengths.where(lengths > SMALLEST_RESIDUAL, 1)
    # Plain least squares as published, on pixels as they are; what the rounds make least is the loss itself.
    weights = masks.detach() / scales[:, None, :, None, None] if fit == "irls" else masks.detach()
    theta = _fitted(flow, weights, model, spacing, fit, distance, n_iters, published)
    splines = _basis_on(flow.device, flow.shape[2], spacing, published)
    powers, distances = monomials(*flow.shape[-2:], flow.device).to(flow.dtype), torch.empty_like(masks).flatten(3)
    with torch.no_grad():
        for t, spline in enumerate(splines):
            residual = _frame_residual(theta, spline, powers, flow[:, :, t].flatten(2).contiguous())
            distances[:, :, t] = flow_distance(residual, distance, axis=2) / scales[:, t, None, None]
    # Every frame and pixel counts alike; as one product, since autograd would make zeros of all frames for each frame.
    return torch.linalg.vecdot(masks.flatten(1), distances.flatten(1)) / flow[0, 0].numel()


def temporal_consistency(masks: Tensor, flow: Tensor | None = None, quantile: float = QUANTILE) -> Tensor:
    """How much the masks change from frame to frame, outside places whose flow changes too (Euler-Potts, equation 9).

    The mean over frames and pixels of mean_l |m_l(t + 1) - m_l(t)|, where |u(t + 1) - u(t)| + |v(t + 1) - v(t)| lies
    below its quantile over the whole clip: a border that passes may take the mask along.

    Args:
        masks: (B, L, T, H, W). flow: (B, 2, T, H, W) in pixels; None takes all places.

    Returns:
        (B,) from 0; 0 for a single frame, and, as published, for flow that never changes.

    Raises:
        ValueError: flow of another size, or unknown flow.
    """
    if flow is not None:
        check_flow(flow, "(B, 2, T, H, W)")
        if flow[:, 0].shape != masks[:, 0].shape:
            raise ValueError(f"flow must be of the masks' size {tuple(masks.shape)}, got {tuple(flow.shape)}")
    if masks.shape[2] < 2:
        return masks.new_zeros(len(masks))
    change = (masks[:, :, 1:] - masks[:, :, :-1]).abs().mean(1)             # (B, T - 1, H, W)
    if flow is not None:
        moved = (flow[:, :, 1:] - flow[:, :, :-1]).abs().sum(1)
        change = change * (moved < _quantile(moved.detach().flatten(1), quantile)[:, None, None, None])
    return change.flatten(1).mean(1)


def potts(masks: Tensor) -> Tensor:
    """Minus the mean over frames and pixels of sum_l m_l(t) m_l(t + 1): (B,) from -1 of masks (B, L, T, H, W)."""
    if masks.shape[2] < 2:
        return masks.new_zeros(len(masks))
    return -(masks[:, :, 1:] * masks[:, :, :-1]).sum(1).flatten(1).mean(1)


def entropy(masks: Tensor) -> Tensor:
    """The mean entropy in nats (B,) of masks (B, L, T, H, W)."""
    return mask_entropy(masks).flatten(1).mean(1)


@lru_cache
def _basis_on(device: torch.device, n_frames: int, spacing: int, published: bool) -> Tensor:
    """:func:`spline_basis`, brought to a device once and kept there."""
    return spline_basis(n_frames, spacing, published).to(device)


def _quantile(rows: Tensor, share: float) -> Tensor:
    """(B,) a quantile of each row (B, N), between two values linearly; rows may be longer than torch.quantile takes."""
    place = share * (rows.shape[1] - 1)
    below = int(place)
    low, high = (rows.kthvalue(min(k, rows.shape[1])).values for k in (below + 1, below + 2))
    return torch.lerp(low, high, place - below)


def _solved(flow: Tensor, weights: Tensor, powers: Tensor, count: int, splines: Tensor, distance: str,
            theta: Tensor | None) -> Tensor:
    """One weighted least squares fit of (B, 2, T, N); with parameters given, weighted by their residuals too."""
    normal = moments = None
    for t, spline in enumerate(splines):
        vectors, masks = flow[:, :, t], weights[:, :, t, None]
        if theta is not None:
            masks = masks * robust_weights(_frame_residual(theta, spline, powers, vectors), distance)
        of_frame, right = normal_equations(powers, count, vectors, masks)   # (B, L, C, F, F), (B, L, 2, F)
        of_frame = torch.einsum("k,j,blcfg->blckfjg", spline, spline, of_frame)
        right = torch.einsum("k,blcf->blckf", spline, right)
        normal, moments = (of_frame, right) if normal is None else (normal + of_frame, moments + right)
    solution = solve(normal.flatten(5, 6).flatten(3, 4), moments.flatten(3))
    return solution.unflatten(-1, (splines.shape[1], count)).permute(0, 1, 3, 4, 2)


def _frame_residual(theta: Tensor, spline: Tensor, powers: Tensor, flow: Tensor) -> Tensor:
    """By how much the motion of parameters (B, L, K, F, 2) differs from a frame's flow (B, 2, N): (B, L, 2, N)."""
    return values(torch.einsum("k,blkfc->blfc", spline, theta).to(flow.dtype), powers).sub_(flow[:, None])
