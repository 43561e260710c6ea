"""Soft segments refined to the pixels: in every 3 x 3 window each is as close as can be to a line through the colours.

Within a small window an alpha matte is nearly linear in the colours, alpha_i = a . I_i + b. What a matte lacks to that,
summed over all windows with the best a and b for each, is alpha^T L alpha with the matting Laplacian L (Levin,
Lischinski and Weiss, PAMI 2008, equation 12). Refining is to minimise alpha^T L alpha + strength |alpha - q|^2, a
linear system for each segment. As L takes a constant to zero, solutions for segments that sum to one sum to one.
"""

import warnings

import torch
from torch import Tensor

REGULARISATION = 1e-7  # of the colours' covariance, for 9 pixels; a flat window has no line of its own
STRENGTH = 1e-2  # of holding to the given segments; at 1e-3 three times as many steps, and layers that bleed further
TOLERANCE = 1e-4  # length of what the equations lack, as a share of their right-hand sides'
REACH = 2  # rows and columns by which two pixels of one window differ at most


def matting_laplacian(image: Tensor, regularisation: float = REGULARISATION) -> Tensor:
    """The matting Laplacian of 3 x 3 windows.

    Pixels i and j of a window with mean m and covariance C of its colours add
    delta_ij - (1 + (I_i - m)^T (C + r / 9)^-1 (I_j - m)) / 9 to the entry of row i and column j. The matrix is
    symmetric, has no negative eigenvalue, and its rows sum to zero; of an image without a window all are zero.

    Args:
        image: (3, H, W) RGB in [0, 1].
        regularisation: r.

    Returns:
        (H W, H W) float64, sparse CSR; pixels are counted along the rows.

    Raises:
        ValueError: not one image, r not above 0.
    """
    if image.ndim != 3 or len(image) != 3 or 0 in image.shape:
        raise ValueError(f"image must be (3, H, W), got {tuple(image.shape)}")
    if not regularisation > 0:
        raise ValueError(f"regularisation must be above 0, got {regularisation}")
    _, height, width = image.shape
    stencil = torch.zeros(2 * REACH + 1, 2 * REACH + 1, height, width, dtype=torch.float64, device=image.device)
    if min(height, width) < 3:
        return _sparse(stencil)
    windows = image.double().unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).movedim(-1, 1)  # (3, 9, H - 2, W - 2)
    basis = _colour_basis(windows - windows.mean(1, keepdim=True), regularisation)
    for i in range(9):
        for j in range(i + 1):
            entry = float(i == j) - 1 / 9 - (basis[:, i] * basis[:, j]).sum(0)
            for row, column in {(i, j), (j, i)}:
                (y, x), (other_y, other_x) = divmod(row, 3), divmod(column, 3)
                offset = stencil[other_y - y + REACH, other_x - x + REACH]
                offset[y:y + height - 2, x:x + width - 2] += entry
    return _sparse(stencil)


def _colour_basis(centred: Tensor, regularisation: float) -> Tensor:
    """Orthonormal functions on a window that span its centred colours (3, 9, ...), as far as they exceed noise.

    The products of these functions are (I_i - m)^T (9 C + r)^-1 (I_j - m). By Gram and Schmidt from the colours
    themselves they keep the digits that the covariance of a nearly flat window loses.
    """
    noise = regularisation ** 0.5 * torch.eye(3, dtype=centred.dtype, device=centred.device)
    columns = torch.cat([centred, noise[..., None, None].expand(-1, -1, *centred.shape[2:])], dim=1)  # (3, 12, ...)
    basis: list[Tensor] = []
    for column in columns:
        for earlier in basis:
            column = column - (column * earlier).sum(0) * earlier
        basis.append(column / column.square().sum(0).sqrt())
    return torch.stack(basis)[:, :9]


def _sparse(stencil: Tensor) -> Tensor:
    """A matrix (N, N) from what each pixel has for those around it: (5, 5, H, W) by rows and columns away."""
    side, _, height, width = stencil.shape
    away = torch.arange(side, device=stencil.device) - REACH
    rows = torch.arange(height, device=stencil.device)[:, None] + away                # (H, 5)
    columns = torch.arange(width, device=stencil.device)[:, None] + away              # (W, 5)
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None]
    others = rows[:, None, :, None] * width + columns[:, None]                        # (H, W, 5, 5)
    ends = inside.flatten(2).sum(2).flatten().cumsum(0)
    return _csr(torch.cat([ends.new_zeros(1), ends]), others[inside], stencil.permute(2, 3, 0, 1)[inside])


def _csr(ends: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    """A square matrix by the ends of its rows, without torch's warning that its CSR tensors are in beta state."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        return torch.sparse_csr_tensor(ends, columns, values, (len(ends) - 1,) * 2, check_invariants=False)


def refine(segments: Tensor, image: Tensor, strength: float = STRENGTH, tolerance: float = TOLERANCE) -> Tensor:
    """Alpha mattes of soft segments: (laplacian + strength) alpha = strength q, by conjugate gradients.

    The equations of all segments are solved together, in single precision, with the matrix's diagonal as
    preconditioner. Solutions reach beyond [0, 1] where a colour lies beyond those of the segments; they are cut there
    and divided by their sum.

    Args:
        segments: q (L, H, W) from 0, sums to one over L.
        image: (3, H, W) RGB in [0, 1].
        strength: how much alphas are held to the segments; the smaller, the further they follow the colours.
        tolerance: see :data:`TOLERANCE`.

    Returns:
        (L, H, W) of the segments' dtype in [0, 1], sums to one over L.

    Raises:
        ValueError: segments of another size than the image, or that do not sum to one; strength not above 0.
    """
    if segments.ndim != 3 or segments.shape[1:] != image.shape[1:]:
        raise ValueError(f"segments must be (L, H, W) of the image's {tuple(image.shape[1:])}, "
                         f"got {tuple(segments.shape)}")
    if not (segments.min() >= 0 and torch.allclose(segments.sum(0), segments.new_ones(()), atol=1e-4)):
        raise ValueError("segments must be from 0 and sum to one at every pixel")
    if not strength > 0:
        raise ValueError(f"strength must be above 0, got {strength}")
    if not torch.isfinite(image).all():
        raise ValueError("image must be finite, got NaN or infinity")
    laplacian = matting_laplacian(image)
    given = segments.flatten(1).T.float().contiguous()                                # (N, L)
    alphas = _conjugate_gradients(laplacian, strength, given, tolerance).clamp(0, 1)
    alphas = alphas.to(segments.dtype)
    return (alphas / alphas.sum(1, keepdim=True)).T.reshape(segments.shape)


def _conjugate_gradients(laplacian: Tensor, strength: float, given: Tensor, tolerance: float) -> Tensor:
    """Solve (laplacian + strength) x = strength given for all columns (N, L), beginning with ``given``.

    Unknowns are x / s and equations are multiplied by s, where s^2 is one over the diagonal: preconditioned that way
    the matrix has a diagonal of ones, and a step reads it once.
    """
    crow, columns = laplacian.crow_indices(), laplacian.col_indices()
    rows = torch.arange(len(laplacian), device=crow.device).repeat_interleave(crow.diff())
    values = laplacian.values() + strength * (rows == columns)
    scale = values[rows == columns].rsqrt()
    # Indices of half the length: a step takes as long as reading the matrix does.
    matrix = _csr(crow.int(), columns.int(), (scale[rows] * values * scale[columns]).float())
    scale = scale[:, None].float()
    x, wanted = given / scale, strength * scale * given
    residual = wanted - matrix @ x
    direction, energy = residual, residual.square().sum(0)
    enough = tolerance ** 2 * wanted.square().sum(0)
    least = torch.finfo(x.dtype).tiny  # where a column is solved nothing divides by zero
    for _ in range(len(x)):  # in exact arithmetic as many steps as unknowns are enough
        if (energy <= enough).all():
            break
        turned = matrix @ direction
        step = energy / (direction * turned).sum(0).clamp(min=least)
        x = torch.addcmul(x, step, direction)
        residual = torch.addcmul(residual, step, turned, value=-1)
        energy, before = residual.square().sum(0), energy
        direction = torch.addcmul(residual, energy / before.clamp(min=least), direction)
    return x * scale
