"""Parametric motion: polynomial flow fitted to each mask in closed form, plainly or robustly.

A smooth surface that moves rigidly has a flow close to a polynomial of low degree in the pixel's coordinates; the
flow inside a good mask is therefore explained by a few parameters (Meunier et al., 2022, section 3.2).
"""

import torch
from torch import Tensor

from diffslic.geometry import pixel_grid

EXPONENTS = {"constant": ((0, 0),), "affine": ((0, 0), (1, 0), (0, 1)),
             "quadratic": ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))}  # of x and of y

SMALLEST_RESIDUAL = 1e-3  # pixels: where the weight 1 / |r| of the l1 and l2 distances stops growing
ROUNDING = 0.1  # pixels: below, the Charbonnier distance is about a parabola
UNKNOWN_FLOW = 1e9  # pixels: files mark unknown flow by values from here on
DISTANCES = ("l1", "l2", "squared", "charbonnier")


def motion_basis(height: int, width: int, model: str = "quadratic", device: torch.device | str | None = None,
                 dtype: torch.dtype = torch.float64) -> Tensor:
    """Monomials of the pixel coordinates.

    The coordinates are centred and divided by half the longer side, so they lie within [-1, 1] with square pixels.
    From corner coordinates in [0, 1) the same models follow, but with worse conditioned normal equations.

    Args:
        model: "constant" (1), "affine" (1, x, y) or "quadratic" (1, x, y, x^2, xy, y^2).

    Returns:
        (F, H, W) with F = 1, 3 or 6 monomials.

    Raises:
        ValueError: unknown model.
    """
    if model not in EXPONENTS:
        raise ValueError(f"model must be one of {list(EXPONENTS)}, got {model!r}")
    half = max(height, width) / 2
    x, y = pixel_grid(height, width, device, dtype)
    x, y = (x - (width - 1) / 2) / half, (y - (height - 1) / 2) / half
    return torch.stack([x**i * y**j for i, j in EXPONENTS[model]])


def fit_motion(flow: Tensor, weights: Tensor, model: str = "quadratic", fit: str = "ls", distance: str = "l2",
               n_iters: int = 20) -> Tensor:
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
        n_iters: rounds of reweighting.

    Returns:
        (B, L, F, 2): the factors of :func:`motion_basis` for u and v, in pixels, of the flow's dtype.

    Raises:
        ValueError: flow that is not finite, sizes that differ, an unknown model, fit or distance.
    """
    check_fit(flow, weights, fit, distance)
    basis = motion_basis(*flow.shape[-2:], model, flow.device).flatten(1)   # (F, N)
    vectors, masks = flow.double().flatten(2), weights.double().flatten(2)[:, :, None]
    theta = _least_squares(basis, vectors, masks)
    for _ in range(n_iters if fit == "irls" else 0):
        with torch.no_grad():
            reweighting = robust_weights(vectors[:, None] - _evaluate(theta, basis), distance)
        theta = _least_squares(basis, vectors, masks * reweighting)
    return theta.to(flow.dtype)


def motion_flow(theta: Tensor, height: int, width: int, model: str = "quadratic") -> Tensor:
    """The flow of fitted parameters.

    Args:
        theta: (B, L, F, 2) from :func:`fit_motion` with the same model and size.

    Returns:
        (B, L, 2, H, W) in pixels.

    Raises:
        ValueError: theta has another number of monomials, or the model is unknown.
    """
    basis = motion_basis(height, width, model, theta.device, theta.dtype)
    if theta.ndim != 4 or theta.shape[2:] != (len(basis), 2):
        raise ValueError(f"theta of the {model} model must be (B, L, {len(basis)}, 2), got {tuple(theta.shape)}")
    return _evaluate(theta, basis.flatten(1)).unflatten(-1, (height, width))


def camera_motion(flow: Tensor, model: str = "quadratic", n_iters: int = 3, max_pixels: int = 10_000) -> Tensor:
    """The dominant motion of a frame as polynomial flow: what most of it does because the camera moves.

    Reweighted least squares from coarse to fine (Odobez and Bouthemy, 1995): from the median vector to the affine, then
    to the model itself; each time first by the l2 distance, then by Tukey's biweight, which gives pixels that move
    otherwise no weight at all. Compact objects may cover about a quarter of the frame, scattered ones more.

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
    height, width = flow.shape[-2:]
    step = max(1, round((height * width / max_pixels) ** 0.5))
    basis = motion_basis(height, width, model, flow.device)
    few, vectors = basis[:, ::step, ::step].flatten(1), flow[:, :, ::step, ::step].double().flatten(2)
    theta = vectors.median(dim=-1).values[:, None, None]                    # (B, 1, 1, 2)
    for n_monomials in (len(EXPONENTS["affine"]), len(basis)):              # the quadratic ones begin with the affine
        for distance in ["l2"] * n_iters + ["tukey"] * n_iters:
            residual = vectors[:, None] - _evaluate(theta, few[:theta.shape[2]])
            theta = _least_squares(few[:n_monomials], vectors, robust_weights(residual, distance))
    return _evaluate(theta, basis.flatten(1)).reshape(flow.shape).to(flow.dtype)


def flow_distance(residual: Tensor, distance: str) -> Tensor:
    """(..., 2, H, W) differences of flow to (..., H, W) distances: one of :data:`DISTANCES`, in pixels or squared."""
    check_distance(distance)
    if distance == "l1":
        return residual.abs().sum(-3)
    if distance == "l2":
        return residual.norm(dim=-3)
    square = residual.square().sum(-3)
    return square if distance == "squared" else (square + ROUNDING ** 2).sqrt() - ROUNDING


def check_fit(flow: Tensor, weights: Tensor, fit: str, distance: str, axes: str = "H, W") -> None:
    """Refuse what cannot be fitted: flow (B, 2, axes), weights (B, L, axes), an unknown fit or distance."""
    check_flow(flow, f"(B, 2, {axes})")
    check_distance(distance)
    if weights.ndim != flow.ndim or weights[:, 0].shape != flow[:, 0].shape:
        raise ValueError(f"weights must be (B, L, {axes}) of the flow's size {tuple(flow.shape)}, "
                         f"got {tuple(weights.shape)}")
    if fit not in ("ls", "irls"):
        raise ValueError(f"fit must be 'ls' or 'irls', got {fit!r}")


def check_distance(distance: str) -> None:
    """Refuse what is not one of :data:`DISTANCES`."""
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")


def check_flow(flow: Tensor, shape: str = "(B, 2, H, W)") -> None:
    """Refuse what is not flow of this shape, or not known everywhere."""
    if flow.ndim != shape.count(",") + 1 or flow.shape[1] != 2 or 0 in flow.shape:
        raise ValueError(f"flow must be {shape}, got {tuple(flow.shape)}")
    if not (flow.abs() < UNKNOWN_FLOW).all():
        raise ValueError("flow must be known, that is finite and below 1e9: give unknown flow a value and no weight")


def robust_weights(residual: Tensor, distance: str) -> Tensor:
    """Weights (B, L, K, N) of least squares that make residuals (B, L, 2, N) count by a distance; K = 2 for l1.

    Beside :data:`DISTANCES` there is "tukey", whose scale is the median residual of a layer.
    """
    if distance == "l1":
        return 1 / residual.abs().clamp(min=SMALLEST_RESIDUAL)
    length = residual.norm(dim=2, keepdim=True)
    if distance == "squared":
        return torch.ones_like(length)
    if distance == "charbonnier":
        return (length.square() + ROUNDING ** 2).rsqrt()
    if distance == "l2":
        return 1 / length.clamp(min=SMALLEST_RESIDUAL)
    # Tukey: for Gaussian noise of deviation sigma in both components the median length is 1.177 sigma, and 4.685 sigma
    # keeps 95 % of the efficiency of least squares.
    sigma = (length.median(dim=-1, keepdim=True).values / 1.177).clamp(min=SMALLEST_RESIDUAL)
    return (1 - (length / (4.685 * sigma)).square()).clamp(min=0).square()


def _evaluate(theta: Tensor, basis: Tensor) -> Tensor:
    """(B, L, F, 2) parameters on (F, N) monomials to (B, L, 2, N) flow."""
    return theta.transpose(-1, -2) @ basis


def _least_squares(basis: Tensor, flow: Tensor, weights: Tensor) -> Tensor:
    """Weighted least squares per layer: (F, N), (B, 2, N) and (B, L, K, N) to (B, L, F, 2)."""
    return solve(*normal_equations(basis, flow, weights)).transpose(-1, -2)


def normal_equations(basis: Tensor, flow: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The normal equations of weighted least squares: block diagonal, one (F, F) block a layer.

    Args:
        basis: (F, N). flow: (..., 2, N). weights: (..., L, K, N), K = 1 for both components alike, K = 2 for each its
            own.

    Returns:
        normal (..., L, K, F, F) and moments (..., L, 2, F).
    """
    products = (basis[:, None] * basis).flatten(0, 1)                       # (F F, N)
    normal = (weights @ products.T).unflatten(-1, (len(basis), len(basis)))
    return normal, (weights * flow[..., None, :, :]) @ basis.T


def solve(normal: Tensor, moments: Tensor) -> Tensor:
    """Solutions (..., 2, M) of symmetric equations (..., K, M, M) and right sides (..., 2, M), by Cholesky."""
    # A touch of ridge, relative to the block and far below the noise of any flow, and an absolute one in case a layer
    # is empty: every block stays positive definite, and what the pixels leave undetermined becomes zero.
    ridge = 1e-10 * normal.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-9
    eye = torch.eye(normal.shape[-1], device=normal.device, dtype=normal.dtype)
    factor = torch.linalg.cholesky(normal + ridge[..., None, None] * eye)
    return torch.cholesky_solve(moments[..., None], factor)[..., 0]
