"""A frame as a graph: superpixels that touch, and their merging into what may be objects.

Superpixels inside one body move alike; between two bodies that touch, motion, colour or the order of depth changes.
Greedy merging of the most similar neighbours, with means that are those of all pixels merged so far, stops where every
border is a real one (region adjacency graphs: Trémeau and Colantoni, 2000).
"""

import heapq
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffslic.segmentation.parametric import check_flow

LEVELS = 4  # of each colour channel in a histogram
PROPORTION = 0.3  # of a motion's length that neighbours may differ by, beside a pixel: limbs, turns, flow's own error
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


class Regions(NamedTuple):
    """Superpixels of a frame, and which of them touch; S of them, E borders."""

    labels: Indices  # (H, W) the superpixel of each pixel
    moving: NDArray[np.bool_]  # (H, W) pixels that may belong to an object
    area: Floats  # (S,) pixels
    foreground: Floats  # (S,) the share of pixels that may
    motion: Floats  # (S, 2) mean flow in pixels, of the foreground's pixels where there are some
    colour: Floats  # (S, 3) mean RGB in [0, 1]
    histogram: Floats  # (S, 64) pixels by colour
    edges: Indices  # (E, 2) superpixels that touch, the smaller number first
    border: Floats  # (E,) pairs of neighbouring pixels across
    hidden: Floats  # (E,) the share of those pairs with an occluded pixel


def regions_of(superpixels: Tensor, image: Tensor, flow: Tensor, foreground: Tensor,
               occluded: Tensor | None = None) -> Regions:
    """What superpixels of a frame are like, and where they touch.

    Args:
        superpixels: (H, W) integers from 0, such as ``SoftSLIC.labels[0]``.
        image: (3, H, W) in [0, 1]. flow: (2, H, W) in pixels.
        foreground: (H, W) bool: what may belong to an object.
        occluded: (H, W) bool: pixels that the next frame hides; one surface ends in front of another there.

    Raises:
        ValueError: sizes that differ, superpixels that are no numbers from 0, unknown flow.
    """
    check_flow(flow[None])
    size = flow.shape[1:]
    occluded = torch.zeros_like(foreground) if occluded is None else occluded
    given = {"superpixels": superpixels, "image": image[0], "foreground": foreground, "occluded": occluded}
    for name, values in given.items():
        if values.shape != size:
            raise ValueError(f"{name} must be of the flow's size {tuple(size)}, got {tuple(values.shape)}")
    if superpixels.is_floating_point() or superpixels.min() < 0:
        raise ValueError(f"superpixels must be integers from 0, got {superpixels.dtype}")
    labels, colours, vectors = (values.cpu().numpy() for values in (superpixels.long(), image, flow.double()))
    moving, hides, flat = foreground.cpu().numpy(), occluded.cpu().numpy(), labels.ravel()
    count = int(flat.max()) + 1

    def sums(values: NDArray) -> Floats:
        return np.bincount(flat, weights=values.ravel(), minlength=count).astype(np.float64)

    area, of_moving = np.bincount(flat, minlength=count).astype(float), sums(moving.astype(float))
    everywhere = np.stack([sums(component) for component in vectors], axis=1) / area.clip(1)[:, None]
    within = np.stack([sums(component * moving) for component in vectors], axis=1) / of_moving.clip(1)[:, None]
    levels = (colours * LEVELS).astype(np.int64).clip(0, LEVELS - 1)
    code = (levels[0] * LEVELS + levels[1]) * LEVELS + levels[2]
    histogram = np.bincount(flat * LEVELS ** 3 + code.ravel(), minlength=count * LEVELS ** 3).reshape(count, -1)
    edges, border, hidden = _borders(labels, hides)
    return Regions(labels, moving, area, of_moving / area.clip(1), np.where(of_moving[:, None] > 0, within, everywhere),
                   np.stack([sums(channel) for channel in colours], axis=1) / area.clip(1)[:, None],
                   histogram.astype(float), edges, border, hidden)


def _borders(labels: Indices, hides: NDArray[np.bool_]) -> tuple[Indices, Floats, Floats]:
    """Edges (E, 2), the pairs of pixels across each, and the share of those with a pixel that is hidden next."""
    pairs = np.concatenate([np.stack([labels[:, 1:], labels[:, :-1]]).reshape(2, -1),
                            np.stack([labels[1:], labels[:-1]]).reshape(2, -1)], axis=1)
    either = np.concatenate([(hides[:, 1:] | hides[:, :-1]).ravel(), (hides[1:] | hides[:-1]).ravel()])
    across = pairs[0] != pairs[1]
    pairs, either, count = np.sort(pairs[:, across], axis=0), either[across], int(labels.max()) + 1
    keys, which = np.unique(pairs[0] * count + pairs[1], return_inverse=True)
    border = np.bincount(which, minlength=len(keys)).astype(float)
    return (np.stack([keys // count, keys % count], axis=1), border,
            np.bincount(which, weights=either, minlength=len(keys)) / border.clip(1))


def proposals(regions: Regions, threshold: float = 0.8, colour: float = 1.0, hidden: float = 0.3,
              smallest: float = 100.0) -> Indices:
    """Superpixels of the foreground merged into proposals of objects: (S,) numbers from 0, -1 for the background.

    Two neighbours differ by the distance of their motions, in units of a pixel and three tenths of the slower one's
    length, plus what colour and depth add. Below ``smallest`` a proposal goes to the neighbour with the longest border,
    and where it has none to the background.

    Args:
        threshold: differences from which on neighbours stay apart.
        colour: weight of the distance of mean colours. hidden: weight of the share of a border that is occluded.
        smallest: pixels of the smallest proposal.
    """
    on = regions.foreground >= 0.5
    among = on[regions.edges].all(axis=1)
    edges, border = regions.edges[among], regions.border[among]
    root = _merged(regions, np.flatnonzero(on), edges, hidden * regions.hidden[among], threshold, colour)
    names = np.full(len(regions.area), -1, dtype=np.int64)
    names[on] = np.unique(root[on], return_inverse=True)[1]
    return without_crumbs(names, regions.area, edges, border, smallest)


def _merged(regions: Regions, nodes: Indices, edges: Indices, extra: Floats, threshold: float,
            colour: float) -> Indices:
    """For each superpixel the one that stands for all it was merged with."""
    root = np.arange(len(regions.area))
    weight = {int(node): regions.area[node] for node in nodes}
    mean = {int(node): np.concatenate([regions.motion[node], colour * regions.colour[node]]) for node in nodes}
    beside: dict[int, dict[int, float]] = {node: {} for node in weight}  # neighbours, and what depth adds
    for (a, b), more in zip(edges.tolist(), extra.tolist()):
        beside[a][b] = beside[b][a] = more
    changes = dict.fromkeys(weight, 0)
    heap: list[tuple[float, int, int, int, int]] = []

    def push(a: int, b: int) -> None:
        step, slower = mean[a] - mean[b], min(np.hypot(*mean[a][:2]), np.hypot(*mean[b][:2]))
        value = np.hypot(*step[:2]) / (1 + PROPORTION * slower) + np.linalg.norm(step[2:]) + beside[a][b]
        heapq.heappush(heap, (float(value), a, b, changes[a], changes[b]))

    for a, b in edges.tolist():
        push(a, b)
    while heap and heap[0][0] < threshold:
        _, a, b, of_a, of_b = heapq.heappop(heap)
        if (changes.get(a), changes.get(b)) != (of_a, of_b):  # since then one was merged with another
            continue
        total = weight[a] + weight[b]
        mean[a] = (weight[a] * mean[a] + weight[b] * mean[b]) / total
        weight[a], changes[a], root[root == b] = total, changes[a] + 1, a
        for other, more in beside.pop(b).items():
            del beside[other][b]
            if other != a:
                beside[a][other] = beside[other][a] = min(more, beside[a].get(other, more))
        del mean[b], weight[b], changes[b]
        for other in beside[a]:
            push(a, other)
    return root


def without_crumbs(names: Indices, area: Floats, edges: Indices, border: Floats, smallest: float) -> Indices:
    """Numbers of proposals, the small ones given to the neighbour with the longest border."""
    names = names.copy()
    while True:
        known, which = np.unique(names[names >= 0], return_inverse=True)
        sizes = np.bincount(which, weights=area[names >= 0])
        if not len(known) or sizes.min() >= smallest:
            names[names >= 0] = which
            return names
        crumb = known[sizes.argmin()]
        ends = names[edges]
        touching = (ends == crumb).any(axis=1) & (ends[:, 0] != ends[:, 1])
        others = np.where(ends[touching, 0] == crumb, ends[touching, 1], ends[touching, 0])
        shared = np.bincount(others, weights=border[touching]) if len(others) else np.zeros(0)
        names[names == crumb] = shared.argmax() if len(shared) else -1
