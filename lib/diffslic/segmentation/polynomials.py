"""Polynomials of the pixel coordinates: values, and the normal equations of weighted least squares.

A product of two monomials is a monomial again. So the 36 entries of a quadratic motion's normal matrix are 15 moments
sum_p w(p) x^i y^j, for all layers one matrix product of masks and monomials.
"""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")

EXPONENTS = {"constant": ((0, 0),), "affine": ((0, 0), (1, 0), (0, 1)),
             "quadratic": ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))}  # of x and of y; each begins the next
# Those of all products of two, by degree: the models above are the first of them.
PRODUCTS = tuple((degree - j, j) for degree in range(5) for j in range(degree + 1))
BLOCK = 4096  # pixels at a time: what is made of them in double precision stays in the processor's cache


def full_precision(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """The function, computed outside of mixed precision: what is left of a large flow is lost in bfloat16."""
    @wraps(function)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)
    return computed


def monomials(height: int, width: int, device: torch.device | str | None = None, step: int = 1) -> Tensor:
    """The 15 monomials of degree up to 4, at every ``step``-th row and column: (15, N) float64.

    The coordinates are centred and divided by half the longer side, so they lie within [-1, 1] with square pixels. From
    corner coordinates in [0, 1) the same models follow, but with worse conditioned normal equations.
    """
    half, powers = max(height, width) / 2, torch.arange(5, device=device)
    y, x = ((torch.arange(0, size, step, device=device, dtype=torch.float64)[:, None] - (size - 1) / 2) / half
            for size in (height, width))
    y, x = y ** powers, x ** powers
    return torch.stack([y[:, None, j] * x[None, :, i] for i, j in PRODUCTS]).flatten(1)


def values(theta: Tensor, powers: Tensor) -> Tensor:
    """Polynomials (..., 2, N) of parameters (..., F, 2) on :func:`monomials`, of the parameters' dtype."""
    return theta.transpose(-1, -2) @ powers[:theta.shape[-2]].to(theta)


def normal_equations(powers: Tensor, count: int, flow: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The normal equations of weighted least squares: block diagonal, one (F, F) block a layer.

    Sums are taken in double: the matrix of a small mask far from the middle is nearly singular.

    Args:
        powers: (15, N) of :func:`monomials`, float64. count: F, how many of them the model has.
        flow: (B, 2, N). weights: (B, L, K, N), K = 1 for both components alike, K = 2 for each its own.

    Returns:
        normal (B, L, K, F, F) and moments (B, L, 2, F), float64.
    """
    products = sides = powers.new_zeros(())
    both = _products_of_two(count, powers.device)
    i, j = PRODUCTS[count - 1]
    needed = powers[:PRODUCTS.index((2 * i, 2 * j)) + 1]
    for block, pixels, part in zip(needed.split(BLOCK, -1), flow.split(BLOCK, -1), weights.split(BLOCK, -1)):
        columns = block.T.expand(len(part), -1, -1)                         # (B, n, 15)
        products = products + torch.bmm(part.flatten(1, 2).double(), columns)
        weighted = (part * pixels[:, None]).flatten(1, 2)                   # (B, L 2, n)
        sides = sides + torch.bmm(weighted.double(), columns[..., :count])
    normal = products[..., both].unflatten(-1, (count, count)).unflatten(1, weights.shape[1:3])
    return normal, sides.unflatten(1, (-1, 2))


def solve(normal: Tensor, moments: Tensor) -> Tensor:
    """Solutions (..., 2, M) of symmetric equations (..., K, M, M) and right sides (..., 2, M), by Cholesky.

    NaN where the equations are not finite, or not positive definite after all.
    """
    # A touch of ridge, relative to the block and far below the noise of any flow, and an absolute one in case a layer
    # is empty: every block stays positive definite, and what the pixels leave undetermined becomes zero.
    ridge = 1e-10 * normal.diagonal(dim1=-2, dim2=-1).mean(-1) + 1e-9
    eye = torch.eye(normal.shape[-1], device=normal.device, dtype=normal.dtype)
    # Without the check of ``cholesky``, for which the host would wait for a GPU: what fails after all becomes NaN.
    factor, failed = torch.linalg.cholesky_ex(normal + ridge[..., None, None] * eye)
    factor = factor.masked_fill((failed != 0)[..., None, None], torch.nan)
    return torch.cholesky_solve(moments[..., None], factor)[..., 0]


@lru_cache
def _products_of_two(count: int, device: torch.device) -> Tensor:
    """(F * F,) the places in :data:`PRODUCTS` of all products of two of the first F monomials.

    Kept where it is used: a list as an index would be brought from the host at every call.
    """
    places = [PRODUCTS.index((i + k, j + m)) for i, j in PRODUCTS[:count] for k, m in PRODUCTS[:count]]
    return torch.tensor(places, device=device)
