"""Expectation and maximisation by hand: motion segmentation of one flow field without any network.

Each layer has a parametric motion, and a pixel belongs to a layer the more likely, the closer its flow is to the
layer's. Fit the motions to the masks, assign the pixels to the motions, repeat (Dempster et al., 1977; for motion Ayer
and Sawhney, 1995). It starts from chance and ends wherever the nearest optimum lies: what a network trained on the same
loss (:mod:`diffslic.segmentation.coherence`) learns from many videos, this begins anew for every frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffslic.geometry import pixel_grid
from diffslic.segmentation.parametric import check_flow, fit_motion, flow_distance, motion_flow

SMALLEST_SCALE = 0.05  # pixels: of the noise; below, one layer could shrink to its exact pixels
SHARPNESS = 10.0  # of the random masks to begin with: their logits fall by so much over half the longer side


class EMResult(NamedTuple):
    """Layers found in flow fields."""

    masks: Tensor  # (B, L, H, W) probabilities, summing to one over L
    theta: Tensor  # (B, L, F, 2) motion parameters, see fit_motion
    likelihoods: Tensor  # (n_iters, B) mean log-likelihood of a pixel after each round; it never falls


def expectation_maximisation(flow: Tensor, n_layers: int = 2, model: str = "quadratic", n_iters: int = 30,
                             n_starts: int = 4, seed: int = 0) -> EMResult:
    """Segment flow by EM from random masks; of several starts the likeliest counts.

    The flow of a pixel is taken for the motion of its layer plus Gaussian noise of one deviation sigma per field;
    layers have shares pi_l of the field.

    Args:
        flow: (B, 2, H, W) in pixels, finite.
        n_layers: L, from 1. model: see :func:`fit_motion`.
        n_iters: rounds of both steps. n_starts: random starts. seed: of the starts.

    Raises:
        ValueError: unknown flow, a count below 1, an unknown model.
    """
    check_flow(flow)
    if min(n_layers, n_iters, n_starts) < 1:
        raise ValueError(f"EM needs a layer, a round and a start at least, got {n_layers}, {n_iters} and {n_starts}")
    generator = torch.Generator().manual_seed(seed)
    best: EMResult | None = None
    for _ in range(n_starts):
        result = _run(flow, random_masks(n_layers, *flow.shape[-2:], generator).to(flow).expand(len(flow), -1, -1, -1),
                      model, n_iters)
        best = result if best is None else _better(best, result)
    assert best is not None
    return best


def random_masks(n_layers: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(L, H, W) masks that sum to one: soft cells around random places."""
    grid = pixel_grid(height, width) / (max(height, width) / 2)             # (2, H, W)
    places = torch.rand(n_layers, 2, 1, 1, generator=generator) * grid.flatten(1).amax(1)[:, None, None]
    return (-SHARPNESS * (grid - places).norm(dim=1)).softmax(0)


def assign(flow: Tensor, theta: Tensor, model: str, share: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """The expectation step: masks (B, L, H, W) from motions, and the log-likelihood of each pixel (B, H, W).

    Args:
        theta: (B, L, F, 2). share: (B, L) of the layers. variance: (B,) of the noise, in square pixels.
    """
    squares = flow_distance(motion_flow(theta, *flow.shape[-2:], model) - flow[:, None], "squared")
    variance = variance[:, None, None, None]
    logits = share.log()[..., None, None] - squares / (2 * variance) - (2 * torch.pi * variance).log()
    return logits.softmax(1), logits.logsumexp(1)


def _run(flow: Tensor, masks: Tensor, model: str, n_iters: int) -> EMResult:
    likelihoods = []
    for _ in range(n_iters):
        theta = fit_motion(flow, masks, model)                              # maximisation
        squares = flow_distance(motion_flow(theta, *flow.shape[-2:], model) - flow[:, None], "squared")
        variance = ((masks * squares).sum(1).flatten(1).mean(1) / 2).clamp(min=SMALLEST_SCALE ** 2)
        share = masks.flatten(2).mean(2).clamp(min=1e-6)
        masks, likelihood = assign(flow, theta, model, share, variance)     # expectation
        likelihoods.append(likelihood.flatten(1).mean(1))
    return EMResult(masks, theta, torch.stack(likelihoods))


def _better(first: EMResult, second: EMResult) -> EMResult:
    """Field by field the likelier of two."""
    wins = second.likelihoods[-1] > first.likelihoods[-1]                   # (B,)
    return EMResult(*(torch.where(wins.reshape(wins.shape + (1,) * (a.ndim - 1)), b, a)
                      for a, b in zip(first[:2], second[:2])),
                    torch.where(wins, second.likelihoods, first.likelihoods))
