"""Parametric motion: polynomial flow fitted to each mask in closed form, plainly or robustly.

A smooth surface that moves rigidly has a flow close to a polynomial of low degree in the pixel's coordinates; the
flow inside a good mask is therefore explained by a few parameters (Meunier et al., 2022, section 3.2).
"""

import torch
from torch import Tensor

from diffslic.segmentation.polynomials import EXPONENTS, full_precision, monomials, normal_equations, solve, values

SMALLEST_RESIDUAL = 1e-3  # pixels: where the weight 1 / |r| of the l1 and l2 distances stops growing
ROUNDING = 0.1  # pixels: below, the Charbonnier distance is about a parabola
UNKNOWN_FLOW = 1e9  # pixels: files mark unknown flow by values from here on
DISTANCES = ("l1", "l2", "squared", "charbonnier")
FITS = ("ls", "irls")
ENOUGH_PIXELS = 4000  # of a frame, for rounds of reweighting that others follow
ENOUGH_PER_PARAMETER = 20  # pixels of a layer, for the same


def motion_basis(height: int, width: int, model: str = "quadratic", device: torch.device | str | None = None,
                 dtype: torch.dtype = torch.float64) -> Tensor:
    """Monomials of the pixel coordinates.

    The coordinates lie within [-1, 1], see :func:`diffslic.segmentation.polynomials.monomials`.

    Args:
        model: "constant" (1), "affine" (1, x, y) or "quadratic" (1, x, y, x^2, xy, y^2).

    Returns:
        (F, H, W) with F = 1, 3 or 6 monomials.

    Raises:
        ValueError: unknown model.
    """
    check_model(model)
    return monomials(height, width, device)[:len(EXPONENTS[model])].unflatten(1, (height, width)).to(dtype)


@full_precision
def fit_motion(flow: Tensor, weights: Tensor, model: str = "quadratic", fit: str = "ls", distance: str = "l2",
               n_iters: int = 20, max_pixels: int = ENOUGH_PIXELS) -> Tensor:
    """Parameters of the polynomial flow that explains each layer best.

    ``"ls"`` minimises sum_p w_l(p) |f_l(p) - flow(p)|^2: for each layer one small normal matrix, all of them from one
    product of masks and monomials, solved by Cholesky in double precision. ``"irls"`` minimises the sum of l1 or l2
    distances by least squares with the weights w / |residual| of the round before. A layer without weight gets zero
    motion. Gradients flow through the last solve; the reweighting counts as constant.

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        weights: (B, L, H, W) non-negative, such as soft masks.
        model: "constant", "affine" or "quadratic".
        fit: "ls" or "irls".
        distance: "l1" (|du| + |dv|), "l2" (length), "charbonnier" or "squared"; what ``"irls"`` minimises, without
            meaning for ``"ls"``.
        n_iters: rounds of reweighting, from 1.
        max_pixels: all rounds but the last see every k-th row and column, so that they see about as many pixels; all
            of them where a layer is so small that it would be left with too few.

    Returns:
        (B, L, F, 2): the factors of :func:`motion_basis` for u and v, in pixels, of the flow's dtype.

    Raises:
        ValueError: flow that is not finite, sizes that differ, an unknown model, fit or distance.
    """
    check_fit(flow, weights, fit, distance, n_iters)
    check_model(model)
    return fitted_motion(flow, weights, model, fit, distance, n_iters, max_pixels)


def fitted_motion(flow: Tensor, weights: Tensor, model: str, fit: str, distance: str, n_iters: int,
                  max_pixels: int = ENOUGH_PIXELS) -> Tensor:
    """:func:`fit_motion` of what has been checked; by least squares a GPU is never waited for."""
    size, count, masks = flow.shape[-2:], len(EXPONENTS[model]), weights[:, :, None]
    powers, vectors, pixels = monomials(*size, flow.device), flow.flatten(2), masks.flatten(3)
    if fit == "ls":
        return _least_squares(powers, count, vectors, pixels).to(flow.dtype)
    step = rough_step(weights, count, max_pixels)
    rough = monomials(*size, flow.device, step)
    few, few_pixels = every(step, flow).flatten(2), every(step, masks).flatten(3)
    with torch.no_grad():
        theta = _least_squares(rough, count, few, few_pixels)
        for _ in range(n_iters - 1):
            theta = _least_squares(rough, count, few, few_pixels * _reweighting(theta, rough, few, distance))
        pixels = pixels * _reweighting(theta, powers, vectors, distance)
    return _least_squares(powers, count, vectors, pixels).to(flow.dtype)


@full_precision
def motion_flow(theta: Tensor, height: int, width: int, model: str = "quadratic") -> Tensor:
    """The flow of fitted parameters.

    Args:
        theta: (B, L, F, 2) from :func:`fit_motion` with the same model and size.

    Returns:
        (B, L, 2, H, W) in pixels.

    Raises:
        ValueError: theta has another number of monomials, or the model is unknown.
    """
    check_model(model)
    if theta.ndim != 4 or theta.shape[2:] != (len(EXPONENTS[model]), 2):
        raise ValueError(f"theta of the {model} model must be (B, L, {len(EXPONENTS[model])}, 2), "
                         f"got {tuple(theta.shape)}")
    return values(theta, monomials(height, width, theta.device)).unflatten(-1, (height, width))


def camera_motion(flow: Tensor, model: str = "quadratic", n_iters: int = 3, max_pixels: int = 10_000) -> Tensor:
    """The dominant motion of a frame as polynomial flow: what most of it does because the camera moves.

    Reweighted least squares from coarse to fine (Odobez and Bouthemy, 1995): from the median vector to the affine, then
    to the model itself; each time first by the l2 distance, then by Tukey's biweight, which gives pixels that move
    otherwise no weight at all. Compact objects may cover about a quarter of the frame, scattered ones more.

    Gradients pass through the last fit, with its weights as given: what the camera explains of a change of the flow is
    gone from the residual's gradient too.

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        model: "affine" or "quadratic".
        n_iters: rounds with each of the two weights, for each of the two models.
        max_pixels: every k-th row and column is fitted, so that no more than about this many pixels are.

    Returns:
        (B, 2, H, W) in pixels.

    Raises:
        ValueError: not a finite flow, an unknown model.
    """
    check_flow(flow)
    check_model(model)
    return dominant_motion(flow, model, n_iters, max_pixels)


@full_precision
def dominant_motion(flow: Tensor, model: str = "quadratic", n_iters: int = 3, max_pixels: int = 10_000) -> Tensor:
    """:func:`camera_motion` of what has been checked; a GPU is never waited for."""
    height, width = flow.shape[-2:]
    step = step_for(height, width, max_pixels)
    powers, few = monomials(height, width, flow.device, step=step), every(step, flow).flatten(2).double()
    theta = few.median(dim=-1).values[:, None, None]                        # (B, 1, 1, 2)
    for name in ("affine", model):
        for distance in ["l2"] * n_iters + ["tukey"] * n_iters:
            weights = _reweighting(theta.detach(), powers, few.detach(), distance)
            theta = _least_squares(powers, len(EXPONENTS[name]), few, weights)
    return motion_flow(theta.to(flow.dtype), height, width, model)[:, 0]


def step_for(height: int, width: int, max_pixels: int = ENOUGH_PIXELS) -> int:
    """Every how many rows and columns of a frame make about ``max_pixels``."""
    return max(1, round((height * width / max_pixels) ** 0.5))


def rough_step(weights: Tensor, count: int, max_pixels: int = ENOUGH_PIXELS) -> int:
    """Every how many rows and columns are enough for layers (B, L, ..., H, W) that have ``count`` parameters each.

    Layers that have fewer pixels than parameters are of no account: nothing could fit them.
    """
    step = step_for(*weights.shape[-2:], max_pixels)
    pixels = weights.detach().flatten(2).sum(2)
    small = (pixels >= count) & (every(step, weights.detach()).flatten(2).sum(2) < ENOUGH_PER_PARAMETER * count)
    return 1 if bool(small.any()) else step


def every(step: int, field: Tensor) -> Tensor:
    """Every ``step``-th row and column of (..., H, W)."""
    return field[..., ::step, ::step]


def flow_distance(residual: Tensor, distance: str, axis: int = -3) -> Tensor:
    """Differences of flow to distances, one of :data:`DISTANCES`, in pixels or squared.

    Args:
        residual: (..., 2, H, W), or with u and v along another ``axis``.

    Returns:
        The residual's shape without that axis.
    """
    check_distance(distance)
    if distance == "l1":
        u, v = residual.abs().unbind(axis)
        return u + v
    if distance == "l2":
        return residual.norm(dim=axis)
    square = residual.square().sum(axis)
    return square if distance == "squared" else (square + ROUNDING ** 2).sqrt() - ROUNDING


def check_model(model: str) -> None:
    """Refuse what is no motion model."""
    if model not in EXPONENTS:
        raise ValueError(f"model must be one of {list(EXPONENTS)}, got {model!r}")


def check_fit(flow: Tensor, weights: Tensor, fit: str, distance: str, n_iters: int, axes: str = "H, W") -> None:
    """Refuse what cannot be fitted: flow (B, 2, axes), weights (B, L, axes), an unknown fit or distance, no round."""
    check_flow(flow, f"(B, 2, {axes})")
    if weights.ndim != flow.ndim or weights[:, 0].shape != flow[:, 0].shape:
        raise ValueError(f"weights must be (B, L, {axes}) of the flow's size {tuple(flow.shape)}, "
                         f"got {tuple(weights.shape)}")
    lowest, highest = weights.detach().aminmax()
    if not ((lowest >= 0) & (highest < torch.inf)):
        raise ValueError("weights must be finite and not negative")
    check_method(fit, distance, n_iters)


def check_method(fit: str, distance: str, n_iters: int) -> None:
    """Refuse an unknown fit or distance, and no round."""
    check_distance(distance)
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")


def check_distance(distance: str) -> None:
    """Refuse what is not one of :data:`DISTANCES`."""
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")


def check_flow(flow: Tensor, shape: str = "(B, 2, H, W)") -> None:
    """Refuse what is not flow of this shape, or not known everywhere."""
    if flow.ndim != shape.count(",") + 1 or flow.shape[1] != 2 or 0 in flow.shape:
        raise ValueError(f"flow must be {shape}, got {tuple(flow.shape)}")
    if not flow.is_floating_point():
        raise ValueError(f"flow must be floating point, in pixels, got {flow.dtype}")
    if not (flow.abs() < UNKNOWN_FLOW).all():
        raise ValueError("flow must be known, that is finite and below 1e9: give unknown flow a value and no weight")


def robust_weights(residual: Tensor, distance: str) -> Tensor:
    """Weights (..., K, N) of least squares that make residuals (..., 2, N) count by a distance; K = 2 for l1.

    Beside :data:`DISTANCES` there is "tukey", whose scale is the median residual of a layer. The weights are meant to
    be constant: their gradient is not defined where a residual is 0.
    """
    if distance == "l1":
        return residual.abs().clamp_(min=SMALLEST_RESIDUAL).reciprocal_()
    square = residual.square().sum(-2, keepdim=True)
    if distance == "squared":
        return torch.ones_like(square)
    if distance == "charbonnier":
        return (square + ROUNDING ** 2).rsqrt()
    length = square.sqrt()  # ``norm`` gives the same, but over an axis of two it takes a CPU thirty times as long
    if distance == "l2":
        return length.clamp(min=SMALLEST_RESIDUAL).reciprocal()
    # Tukey: for Gaussian noise of deviation sigma in both components the median length is 1.177 sigma, and 4.685 sigma
    # keeps 95 % of the efficiency of least squares.
    sigma = (length.median(dim=-1, keepdim=True).values / 1.177).clamp(min=SMALLEST_RESIDUAL)
    return (1 - (length / (4.685 * sigma)).square()).clamp(min=0).square()


def _reweighting(theta: Tensor, powers: Tensor, flow: Tensor, distance: str) -> Tensor:
    """Weights (B, L, K, N) for flow (B, 2, N), from its distance to the motions (B, L, F, 2)."""
    return robust_weights(values(theta.to(flow.dtype), powers).sub_(flow[:, None]), distance)


def _least_squares(powers: Tensor, count: int, flow: Tensor, weights: Tensor) -> Tensor:
    """Weighted least squares per layer: (B, 2, N) and (B, L, K, N) to (B, L, count, 2), float64."""
    return solve(*normal_equations(powers, count, flow, weights)).transpose(-1, -2)
