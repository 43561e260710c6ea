"""Motion models: polynomial flow fitted to each mask in closed form, plainly or robustly, and the loss that they make.

A smooth surface that moves rigidly has a flow close to a polynomial of low degree in the pixel's coordinates; the
flow inside a good mask is therefore explained by a few parameters (Meunier et al., 2022, section 3.2). How badly it is
explained is a loss for masks that needs no annotation.
"""

import torch
from torch import Tensor

from diffslic.geometry import pixel_grid

EXPONENTS = {"affine": ((0, 0), (1, 0), (0, 1)),
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
        model: "affine" (1, x, y) or "quadratic" (1, x, y, x^2, xy, y^2).

    Returns:
        (F, H, W) with F = 3 or 6 monomials.

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
        model: "affine" or "quadratic".
        fit: "ls" or "irls".
        distance: "l1" (|du| + |dv|), "l2" (length), "charbonnier" or "squared"; what ``"irls"`` minimises, without
            meaning for ``"ls"``.
        n_iters: rounds of reweighting.

    Returns:
        (B, L, F, 2): the factors of :func:`motion_basis` for u and v, in pixels, of the flow's dtype.

    Raises:
        ValueError: flow that is not finite, sizes that differ, an unknown model, fit or distance.
    """
    _check_flow(flow)
    if weights.ndim != 4 or weights[:, 0].shape != flow[:, 0].shape:
        raise ValueError(f"weights must be (B, L, H, W) of the flow's size {tuple(flow.shape)}, "
                         f"got {tuple(weights.shape)}")
    if fit not in ("ls", "irls"):
        raise ValueError(f"fit must be 'ls' or 'irls', got {fit!r}")
    _check_distance(distance)
    basis = motion_basis(*flow.shape[-2:], model, flow.device).flatten(1)   # (F, N)
    vectors, masks = flow.double().flatten(2), weights.double().flatten(2)[:, :, None]
    theta = _least_squares(basis, vectors, masks)
    for _ in range(n_iters if fit == "irls" else 0):
        with torch.no_grad():
            reweighting = _robust_weights(vectors[:, None] - _evaluate(theta, basis), distance)
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
    _check_flow(flow)
    height, width = flow.shape[-2:]
    step = max(1, round((height * width / max_pixels) ** 0.5))
    basis = motion_basis(height, width, model, flow.device)
    few, vectors = basis[:, ::step, ::step].flatten(1), flow[:, :, ::step, ::step].double().flatten(2)
    theta = vectors.median(dim=-1).values[:, None, None]                    # (B, 1, 1, 2)
    for n_monomials in (len(EXPONENTS["affine"]), len(basis)):              # the quadratic ones begin with the affine
        for distance in ["l2"] * n_iters + ["tukey"] * n_iters:
            residual = vectors[:, None] - _evaluate(theta, few[:theta.shape[2]])
            theta = _least_squares(few[:n_monomials], vectors, _robust_weights(residual, distance))
    return _evaluate(theta, basis.flatten(1)).reshape(flow.shape).to(flow.dtype)


def coherence_loss(masks: Tensor, flow: Tensor, model: str = "quadratic", distance: str = "l1", fit: str = "ls",
                   n_iters: int = 3, normalised: bool = False, entropy: float = 0.0,
                   known: Tensor | None = None) -> Tensor:
    """How badly the flow inside each mask is explained by one parametric motion per mask (equations 6 to 9).

    The mean over the pixels of sum_l m_l(p) d(f_l(p), flow(p)), with the motions f_l fitted to the masks. As in the
    paper their parameters count as constant: gradients reach the masks alone.

    Args:
        masks: (B, L, H, W) in [0, 1], summing to one over L.
        flow: (B, 2, H, W) in pixels.
        model, fit, n_iters: see :func:`fit_motion`; three rounds of reweighting the quadratic model reach below what
            twenty steps of L-BFGS do.
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
    check_masks(masks, flow[:, None, 0])
    if known is not None:
        flow = flow.where(known[:, None], 0)
    weights = masks if known is None else masks * known[:, None]
    with torch.no_grad():
        theta = fit_motion(flow, weights, model, fit, distance, n_iters)
        distances = flow_distance(motion_flow(theta, *flow.shape[-2:], model) - flow[:, None], distance)
        count = distances[0, 0].numel() if known is None else known.flatten(1).sum(1).clamp(min=1)
        scale = flow_distance(flow, distance).flatten(1).sum(1) / count if normalised else flow.new_ones(())
    loss = (weights * distances).flatten(1).sum(1) / count / scale.where(scale > SMALLEST_RESIDUAL, 1)
    return loss + entropy * mask_entropy(masks).flatten(1).mean(1) if entropy else loss


def flow_distance(residual: Tensor, distance: str) -> Tensor:
    """(..., 2, H, W) differences of flow to (..., H, W) distances; see :func:`coherence_loss`."""
    _check_distance(distance)
    if distance == "l1":
        return residual.abs().sum(-3)
    if distance == "l2":
        return residual.norm(dim=-3)
    square = residual.square().sum(-3)
    return square if distance == "squared" else (square + ROUNDING ** 2).sqrt() - ROUNDING


def mask_entropy(masks: Tensor) -> Tensor:
    """The entropy in nats of each pixel of masks (B, L, ...): (B, ...), from 0 (decided) to ln L."""
    return -(masks * masks.clamp(min=1e-4).log()).sum(1)


def check_masks(masks: Tensor, field: Tensor) -> None:
    """Refuse masks (B, L, ...) that are not of the size of ``field`` (B, 1, ...) or do not sum to one over L."""
    if masks.ndim != field.ndim or masks[:, :1].shape != field.shape:
        raise ValueError(f"masks must be (B, L, ...) of the flow's size {tuple(field.shape)}, got {tuple(masks.shape)}")
    if not (masks.detach().sum(1) - 1).abs().max() < 1e-3:
        raise ValueError("masks must sum to one over the layers, as a softmax does")


def _check_distance(distance: str) -> None:
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")


def _check_flow(flow: Tensor) -> None:
    if flow.ndim != 4 or flow.shape[1] != 2 or 0 in flow.shape:
        raise ValueError(f"flow must be (B, 2, H, W), got {tuple(flow.shape)}")
    if not (flow.abs() < UNKNOWN_FLOW).all():
        raise ValueError("flow must be known, that is finite and below 1e9: give unknown flow a value and no weight")


def _robust_weights(residual: Tensor, distance: str) -> Tensor:
    """Weights (B, L, K, N) of least squares that make residuals (B, L, 2, N) count by a distance; K = 2 for l1."""
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
    """Weighted least squares per layer: the normal equations are block diagonal, one (F, F) block a layer.

    Args:
        basis: (F, N). flow: (B, 2, N). weights: (B, L, K, N), K = 1 for both components alike, K = 2 for each its own.

    Returns:
        (B, L, F, 2).
    """
    n_monomials = len(basis)
    products = (basis[:, None] * basis).flatten(0, 1)                       # (F F, N)
    normal = (weights @ products.T).unflatten(-1, (n_monomials, n_monomials))     # (B, L, K, F, F)
    moments = (weights * flow[:, None]) @ basis.T                           # (B, L, 2, F)
    # A touch of ridge, relative to the block and far below the noise of any flow, and an absolute one in case a layer
    # is empty: every block stays positive definite, and what the pixels leave undetermined becomes zero.
    ridge = 1e-10 * normal.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-9
    eye = torch.eye(n_monomials, device=basis.device, dtype=basis.dtype)
    factor = torch.linalg.cholesky(normal + ridge[..., None, None] * eye)
    return torch.cholesky_solve(moments[..., None], factor)[..., 0].transpose(-1, -2)
