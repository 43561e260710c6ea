"""Soft segments from a graph of superpixels: its smoothest functions, and how near each superpixel is to a few of them.

Superpixels whose vectors are alike are joined. Those eigenvectors of the normalised Laplacian that have the least
eigenvalues change least along strong edges: a superpixel's values in a few of them tell which part of the picture it is
in (Shi and Malik, PAMI 2000; Ng, Jordan and Weiss, NIPS 2001). That mattes can be made of such functions, with an
affinity that a network has learned, is the idea of Aksoy et al. (TOG 2018).
"""

from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from diffslic.softseg.metric import squared_distances

SOFTNESS = 0.1  # of an assignment, as a share of the centres' mean squared distance
RESTARTS = 10  # of k-means, of which the best counts


class Spectrum(NamedTuple):
    """The n smoothest functions on a graph of S superpixels."""

    values: Tensor  # (n,) float64 eigenvalues of the normalised Laplacian, in [0, 2], rising
    vectors: Tensor  # (S, n) float64 eigenvectors of length one; an isolated node has one of its own, of eigenvalue 1


def affinity(vectors: Tensor, centres: Tensor | None = None, radius: float | None = None) -> Tensor:
    """How strongly superpixels are joined: 2 / (1 + e^d), d the squared distance of their vectors.

    It is 1 for equal vectors, and minus its logarithm is what the loss adds for a pair of one class
    (:func:`diffslic.softseg.metric.n_pair_loss`): what was learned is used as it was learned.

    Args:
        vectors: (S, C).
        centres: (S, 2) their places.
        radius: superpixels further apart are not joined; None joins all with all.

    Returns:
        (S, S) float64 in [0, 1], symmetric, 0 on the diagonal.

    Raises:
        ValueError: a radius and no places, or not above 0.
    """
    if radius is not None and not radius > 0:
        raise ValueError(f"radius must be above 0, got {radius}")
    if radius is not None and centres is None:
        raise ValueError("a radius is between places: centres=... is missing")
    weights = 2 * torch.sigmoid(-squared_distances(vectors[None].double())[0])
    if radius is not None and centres is not None:
        weights = weights * (torch.cdist(centres.double(), centres.double()) <= radius)
    return weights.fill_diagonal_(0)


def normalised_laplacian(weights: Tensor) -> Tensor:
    """I - D^-1/2 W D^-1/2, D the sums of the rows; an isolated node has a 1 on the diagonal and nothing else.

    Args:
        weights: W (S, S), symmetric, from 0.

    Raises:
        ValueError: not such a matrix.
    """
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not torch.allclose(weights, weights.T):
        raise ValueError(f"weights must be a symmetric matrix, got {tuple(weights.shape)}")
    if not weights.min() >= 0:  # false for NaN too
        raise ValueError(f"weights must be from 0, got {weights.min():g}")
    degree = weights.sum(1)
    scale = torch.where(degree > 0, degree.clamp(min=torch.finfo(weights.dtype).tiny).rsqrt(), 0)
    return torch.eye(len(weights), dtype=weights.dtype, device=weights.device) - scale[:, None] * weights * scale


def spectrum(weights: Tensor, n: int) -> Spectrum:
    """The eigenvectors of the normalised Laplacian with the n least eigenvalues.

    Args:
        weights: (S, S), see :func:`affinity`.
        n: at least 1, at most S.

    Raises:
        ValueError: more functions than superpixels.
    """
    if not 1 <= n <= len(weights):
        raise ValueError(f"a graph of {len(weights)} nodes has as many eigenvectors, got n = {n}")
    values, vectors = torch.linalg.eigh(normalised_laplacian(weights))
    values, vectors = values[:n].clamp(min=0), vectors[:, :n]  # the least is zero but for rounding
    # Of the two signs that an eigenvector may have, always the one in which its largest entry is positive.
    return Spectrum(values, vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign())


def soft_assignment(vectors: Tensor, n_layers: int, softness: float = SOFTNESS, seed: int = 0) -> Tensor:
    """How much of each superpixel is in each of some segments, by its distance from the middle of each.

    A superpixel's row of the eigenvectors, brought to length one, is a point on a sphere. K-means finds the middles
    there, and a softmax of minus the squared distances the shares.

    Args:
        vectors: (S, n) of a :class:`Spectrum`.
        n_layers: L, at least 1, at most S.
        softness: what divides the distances, in units of the middles' mean squared distance; towards 0 shares become
            0 and 1.
        seed: of k-means.

    Returns:
        (S, L) float64, sums to one over L; segments in the order of their sizes, the largest first.

    Raises:
        ValueError: more segments than superpixels, or softness not above 0.
    """
    if not 1 <= n_layers <= len(vectors):
        raise ValueError(f"{len(vectors)} superpixels make from 1 to {len(vectors)} segments, got {n_layers}")
    if not softness > 0:
        raise ValueError(f"softness must be above 0, got {softness}")
    points = torch.nn.functional.normalize(vectors.double(), dim=1)
    middles = _middles(points.cpu().numpy(), n_layers, seed).to(points)
    distances = torch.cdist(points, middles).square()
    apart = torch.pdist(middles).square()
    spread = float(apart.mean()) if len(apart) else 1.0
    shares = torch.softmax(-distances / (softness * max(spread, torch.finfo(points.dtype).tiny)), dim=1)
    return shares[:, shares.sum(0).argsort(descending=True)]


def _middles(points: np.ndarray, count: int, seed: int) -> Tensor:
    """The middles (count, n) of the best of some runs of k-means; the same in every run of the program."""
    rng, best, least = np.random.default_rng(seed), points[:count], np.inf
    for _ in range(RESTARTS):
        middles, nearest = kmeans2(points, _far_apart(points, count, rng), minit="matrix")
        error = np.square(points - middles[nearest]).sum()
        if error < least:
            best, least = middles, error
    return torch.from_numpy(best)


def _far_apart(points: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """A point at random, then each time the one that is farthest from those before.

    Not k-means++, which has no chances to draw by where points are equal, as those of a plain picture are.
    """
    chosen = [points[rng.integers(len(points))]]
    while len(chosen) < count:
        distances = np.min([np.square(points - point).sum(1) for point in chosen], axis=0)
        chosen.append(points[distances.argmax()])
    return np.stack(chosen)
