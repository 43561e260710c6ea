"""Expectation and maximisation by hand: motion segmentation of flow without any network.

Each layer has a parametric motion, and a pixel belongs to a layer the more likely, the closer its flow is to the
layer's. Fit the motions to the masks, assign the pixels to the motions, repeat (Dempster et al., 1977; for motion Ayer
and Sawhney, 1995). It climbs to some optimum, and to which depends on where it starts: at random masks, for a field by
itself; for the frames of a clip at one layer, to which others are added where the motions so far explain the flow
worst; for the frames after those at the layers of the last. What a network trained on the same loss
(:mod:`diffslic.segmentation.coherence`) learns from many videos, this begins anew with every clip.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffslic.geometry import pixel_grid
from diffslic.segmentation.linking import Window, carried, window_starts
from diffslic.segmentation.parametric import check_flow, flow_distance
from diffslic.segmentation.spacetime import fit_spacetime, spacetime_flow

SMALLEST_SCALE = 0.05  # pixels: of the noise; below, one layer could shrink to its exact pixels
SHARPNESS = 10.0  # of the random masks to begin with: their logits fall by so much over half the longer side
ROUNDS_PER_LAYER = 6  # before another layer is added
ROUNDS = 8  # to go on from known layers, and again for each that is given up for another
EXCHANGES = 2  # layers of a window that may be
DOUBT = 0.02  # share of a known layer that is spread over all layers before it goes on
REACH = 0.12  # of the longer side: the deviation of a new layer around the place that is explained worst
NEIGHBOURS = 3, 5, 5  # frames, rows and columns over which the worst place is looked for


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
        masks = random_masks(n_layers, *flow.shape[-2:], generator).to(flow).expand(len(flow), -1, -1, -1)
        likelihoods = []
        for _ in range(n_iters):
            masks, theta, likelihood = _round(flow[:, :, None], masks.reshape(masks.shape[:2] + (1, *flow.shape[-2:])),
                                              model)
            likelihoods.append(likelihood.flatten(1).mean(1))
        result = EMResult(masks[:, :, 0], theta[:, :, 0].to(flow), torch.stack(likelihoods))
        best = result if best is None else _better(best, result)
    assert best is not None
    return best


def grown_layers(flow: Tensor, n_layers: int = 8, model: str = "quadratic", n_iters: int = 15) -> Tensor:
    """Segment some frames of a clip by EM with motions that last, adding one layer after the other.

    The first layer is everything. Where the motions so far explain the flow worst, a new one begins with the pixels
    around that have its flow. Small bodies are found that random starts miss, and nothing is left to chance. The motion
    of a layer is one of :func:`diffslic.segmentation.fit_spacetime`.

    Args:
        flow: (T, 2, H, W) in pixels, finite.
        n_layers: L, from 1. Ground of several depths takes more than one.
        n_iters: rounds with all layers; six go before each layer.

    Returns:
        (L, T, H, W) float32 masks that sum to one over L.

    Raises:
        ValueError: unknown flow, a count below 1, an unknown model.
    """
    check_flow(flow, "(T, 2, H, W)")
    if min(n_layers, n_iters) < 1:
        raise ValueError(f"EM needs a layer and a round at least, got {n_layers} and {n_iters}")
    fields = flow.transpose(0, 1)[None].float()                             # (1, 2, T, H, W)
    masks = torch.ones_like(fields[:, :1])
    for _ in range(n_layers - 1):
        masks, theta, _ = _rounds(fields, masks, model, ROUNDS_PER_LAYER)
        distance = _squares(fields, theta, model).amin(1)[0].sqrt()         # (T, H, W)
        new = _around_worst(fields[0], distance)
        masks = torch.cat([masks * (1 - new), new.expand_as(masks[:, :1])], dim=1)
    return _rounds(fields, masks, model, n_iters)[0][0]


def grown_windows(flow: Tensor, length: int = 9, overlap: int = 4, n_layers: int = 8,
                  model: str = "quadratic") -> Iterator[Window]:
    """Layers of a clip of any length, in windows to be linked: each begins with what the one before has found.

    The first window has :func:`grown_layers`. Its masks go along the flow into the frames of the next, where EM goes on
    from them, so that both call the same thing a layer. For what comes into view there is none: the layer without which
    the flow would be explained least the worse is given up for a new one where it is explained worst, as long as that
    makes the flow likelier.

    Args:
        flow: (T, 2, H, W) in pixels, finite, in memory as a whole.
        length, overlap: see :func:`diffslic.segmentation.window_starts`. n_layers, model: see :func:`grown_layers`.

    Returns:
        An iterator of windows, for :func:`diffslic.segmentation.link`.

    Raises:
        ValueError: unknown flow, a count below 1, an unknown model, an overlap that leaves nothing to go on with.
    """
    before: Window | None = None
    for start in window_starts(len(flow), length, overlap):
        fields = flow[start:start + length]
        if before is None:
            masks = grown_layers(fields, n_layers, model)
        else:
            check_flow(fields, "(T, 2, H, W)")
            ahead = carried(before.masks[:, -1], flow[before.start + length - 1:start + length - 1])
            masks = _gone_on(fields, torch.cat([before.masks[:, start - before.start:], ahead], dim=1), model)
        before = Window(start, masks, fields)
        yield before


def random_masks(n_layers: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(L, H, W) masks that sum to one: soft cells around random places."""
    grid = pixel_grid(height, width) / (max(height, width) / 2)             # (2, H, W)
    places = torch.rand(n_layers, 2, 1, 1, generator=generator) * grid.flatten(1).amax(1)[:, None, None]
    return (-SHARPNESS * (grid - places).norm(dim=1)).softmax(0)


def _round(flow: Tensor, masks: Tensor, model: str) -> tuple[Tensor, Tensor, Tensor]:
    """One maximisation and one expectation: new masks, motions, log-likelihood of each pixel (B, T, H, W).

    Args:
        flow: (B, 2, T, H, W). masks: (B, L, T, H, W).
    """
    theta = fit_spacetime(flow, masks, model)                               # maximisation
    squares = _squares(flow, theta, model)
    variance = ((masks * squares).sum(1).flatten(1).mean(1) / 2).clamp(min=SMALLEST_SCALE ** 2)
    share = masks.flatten(2).mean(2).clamp(min=1e-6)
    variance = variance[:, None, None, None, None]
    logits = share.log()[..., None, None, None] - squares / (2 * variance) - (2 * torch.pi * variance).log()
    return logits.softmax(1), theta, logits.logsumexp(1)                    # expectation


def _rounds(flow: Tensor, masks: Tensor, model: str, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the last of ``count`` rounds gives."""
    result = _round(flow, masks, model)
    for _ in range(count - 1):
        result = _round(flow, result[0], model)
    return result


def _gone_on(flow: Tensor, masks: Tensor, model: str) -> Tensor:
    """Masks (L, T, H, W) of flow (T, 2, H, W) from those given: see :func:`grown_windows`."""
    fields = flow.transpose(0, 1)[None].float()                             # (1, 2, T, H, W)
    masks = ((1 - DOUBT) * masks + DOUBT / len(masks))[None]
    masks, theta, likelihood = _rounds(fields, masks, model, ROUNDS)
    for _ in range(min(EXCHANGES, masks.shape[1] - 1)):
        distances = _squares(fields, theta, model)[0].sqrt()                # (L, T, H, W)
        new = _around_worst(fields[0], distances.amin(0))
        exchanged = masks * (1 - new)
        exchanged[:, _least_needed(distances)] = new
        exchanged, motions, after = _rounds(fields, exchanged / exchanged.sum(1, keepdim=True), model, ROUNDS)
        if after.mean() <= likelihood.mean():
            break
        masks, theta, likelihood = exchanged, motions, after
    return masks[0]


def _least_needed(distances: Tensor) -> int:
    """The layer whose pixels lie least farther from the next layer's motion than from its own: of (L, T, H, W)."""
    nearest, which = distances.topk(2, dim=0, largest=False)
    needed = distances.new_zeros(len(distances)).index_add(0, which[0].flatten(), (nearest[1] - nearest[0]).flatten())
    return int(needed.argmin())


def _squares(flow: Tensor, theta: Tensor, model: str) -> Tensor:
    """Square distances (B, L, T, H, W) of flow (B, 2, T, H, W) from the motions, in square pixels."""
    height, width = flow.shape[-2:]
    motion = spacetime_flow(theta, flow.shape[2], (height, width), model).to(flow)
    return flow_distance(motion - flow[:, None], "squared", axis=2)


def _around_worst(flow: Tensor, distance: Tensor) -> Tensor:
    """A soft mask (T, H, W) of what lies around the place with the largest mean distance and has its flow (2, T, H, W).

    It is nowhere 0 and nowhere 1, so that every layer keeps some of every pixel.
    """
    size = [min(n, (length - 1) // 2 * 2 + 1) for n, length in zip(NEIGHBOURS, distance.shape)]
    mean = F.avg_pool3d(distance[None, None], size, 1, [n // 2 for n in size], count_include_pad=False)[0, 0]
    height, width = distance.shape[1:]
    t, rest = divmod(int(mean.argmax()), height * width)
    y, x = divmod(rest, width)
    near = flow[:, max(0, t - 1):t + 2, max(0, y - 1):y + 2, max(0, x - 1):x + 2].flatten(1).median(1).values
    other = (flow - near[:, None, None, None]).norm(dim=0) / (mean.max() / 2).clamp(min=SMALLEST_SCALE)
    place = torch.tensor([x, y], device=flow.device)[:, None, None]
    away = (pixel_grid(height, width, flow.device) - place).norm(dim=0) / (REACH * max(height, width))
    return torch.exp(-(other.square() + away.square()) / 2).clamp(1e-4, 0.98)


def _better(first: EMResult, second: EMResult) -> EMResult:
    """Field by field the likelier of two."""
    wins = second.likelihoods[-1] > first.likelihoods[-1]                   # (B,)
    return EMResult(*(torch.where(wins.reshape(wins.shape + (1,) * (a.ndim - 1)), b, a)
                      for a, b in zip(first[:2], second[:2])),
                    torch.where(wins, second.likelihoods, first.likelihoods))
