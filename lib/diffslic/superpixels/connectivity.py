"""Connected superpixels: every label one piece, none smaller than a minimum size, and as many as were asked for."""

import heapq

import numpy as np
import torch
from skimage.measure import label as label_components
from torch import Tensor


def connect(labels: Tensor, min_size: int, count: int | None = None) -> Tensor:
    """Cut labels into 4-connected pieces and merge the small ones into their neighbours.

    A piece of at least ``min_size`` pixels is kept whole and under a label of its own. A smaller piece joins the
    neighbour with which it shares the longest border, kept pieces first and then, breadth first, what has joined them.
    So the kept pieces never change their partition, every label is one 4-connected piece, and there are as many labels
    as kept pieces. Where no piece is large enough, the largest of the image is kept.

    With ``count``, there are exactly as many labels: while there are more, the smallest joins the neighbour with which
    it shares the longest border; while there are fewer, the largest is halved across its longer side. Here the count
    goes before the minimum size.

    Args:
        labels: (H, W) or (B, H, W) integer labels.
        min_size: smallest number of pixels of a label; 1 or less only cuts.
        count: labels per image, from 1 to its number of pixels; None: as many as there are.

    Returns:
        Labels of the same shape, int64, on the same device, numbered from 0 in raster order; an image has
        ``labels.max() + 1`` of them.

    Raises:
        ValueError: labels that are not whole numbers, another shape, or a count that the image cannot hold.
    """
    if labels.ndim not in (2, 3) or 0 in labels.shape or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers (H, W) or (B, H, W), got {labels.dtype} {tuple(labels.shape)}")
    pixels = labels.shape[-2] * labels.shape[-1]
    if count is not None and not 1 <= count <= pixels:
        raise ValueError(f"count must be between 1 and the {pixels} pixels of an image, got {count}")
    images = labels.reshape(-1, *labels.shape[-2:]).cpu().numpy()
    connected = np.stack([_connect(image, min_size, count) for image in images])
    return torch.from_numpy(connected).reshape(labels.shape).to(labels.device)


def _connect(labels: np.ndarray, min_size: int, count: int | None) -> np.ndarray:
    """(H, W) to (H, W) int64."""
    # One background value below every label: each pixel then belongs to a piece, numbered from 1 in raster order.
    pieces = label_components(labels, background=int(labels.min()) - 1, connectivity=1) - 1
    sizes = np.bincount(pieces.ravel())
    kept = sizes >= min_size
    if not kept.any():
        kept[sizes.argmax()] = True
    owner = _join_neighbours(kept, *_borders(pieces, len(sizes)))
    connected = _numbered(owner[pieces])
    if count is None:
        return connected
    return _numbered(_halve(_numbered(_merge(connected, count)), count))


def _numbered(labels: np.ndarray) -> np.ndarray:
    """The same partition, int64, numbered from 0 in the order in which a raster scan meets the labels."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort().astype(np.int64)[inverse].reshape(labels.shape)


def _merge(labels: np.ndarray, count: int) -> np.ndarray:
    """Join the smallest label to a neighbour until at most ``count`` are left."""
    sizes = np.bincount(labels.ravel())
    neighbours: list[dict[int, int]] = [{} for _ in sizes]  # label -> length of the common border
    for (label, neighbour), length in zip(*(values.tolist() for values in _borders(labels, len(sizes)))):
        neighbours[label][neighbour] = length
    owner = np.arange(len(sizes))
    queue = [(int(size), label) for label, size in enumerate(sizes)]
    heapq.heapify(queue)
    for _ in range(len(sizes) - count):
        size, label = heapq.heappop(queue)
        while size != sizes[label]:  # it has grown since, or is gone
            size, label = heapq.heappop(queue)
        target = max(neighbours[label], key=lambda other: (neighbours[label][other], -other))
        for other, length in neighbours[label].items():
            del neighbours[other][label]
            if other != target:
                neighbours[other][target] = neighbours[target][other] = neighbours[target].get(other, 0) + length
        owner[owner == label] = target
        sizes[target] += sizes[label]
        sizes[label] = 0
        heapq.heappush(queue, (int(sizes[target]), target))
    return owner[labels]


def _halve(labels: np.ndarray, count: int) -> np.ndarray:
    """Cut the largest label in two until there are ``count``."""
    sizes = np.bincount(labels.ravel(), minlength=count)
    for new in range(np.count_nonzero(sizes), count):
        largest = int(sizes.argmax())
        y, x = np.nonzero(labels == largest)
        window = labels[y.min():y.max() + 1, x.min():x.max() + 1]
        inside = window == largest
        along = x if np.ptp(x) >= np.ptp(y) else y
        order = np.lexsort((y, x) if along is x else (x, y))
        first = np.zeros_like(inside)
        chosen = order[:len(order) // 2]
        first[y[chosen] - y.min(), x[chosen] - x.min()] = True
        # The largest piece of the one half, and then the largest of what remains: whatever else remains touches only
        # the first, so that both are one piece each.
        half = _largest_piece(inside & ~_largest_piece(first))
        window[half] = new
        sizes[new] = half.sum()
        sizes[largest] -= sizes[new]
    return labels


def _largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected piece of a mask (H, W), as a mask."""
    pieces = label_components(mask, connectivity=1)
    return pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


def _borders(pieces: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (E, 2) of touching pieces, in both orders, and the length (E,) of their border in pixel sides."""
    sides = []
    for a, b in ((pieces[:, :-1], pieces[:, 1:]), (pieces[:-1], pieces[1:])):
        apart = a != b
        sides.append(np.stack([a[apart], b[apart]]).astype(np.int64))
    first, second = np.concatenate(sides, axis=1)
    codes, lengths = np.unique(np.concatenate([first * count + second, second * count + first]), return_counts=True)
    return np.stack([codes // count, codes % count], axis=1), lengths


def _join_neighbours(kept: np.ndarray, pairs: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The kept piece (count,) that each piece ends up in."""
    owner = np.where(kept, np.arange(len(kept)), -1)
    # Longest border last: of several assignments to one place numpy keeps the last. Ties go to the lower neighbour.
    order = np.lexsort((-pairs[:, 1], lengths))
    piece, neighbour = pairs[order].T
    while len(piece):
        free = owner[piece] < 0
        piece, neighbour = piece[free], neighbour[free]
        reached = owner[neighbour] >= 0
        owner[piece[reached]] = owner[neighbour[reached]]
    return owner
