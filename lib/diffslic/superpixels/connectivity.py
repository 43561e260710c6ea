"""Connected superpixels: every label one piece, none smaller than a minimum size."""

import numpy as np
import torch
from skimage.measure import label as label_components
from torch import Tensor


def connect(labels: Tensor, min_size: int) -> Tensor:
    """Cut labels into 4-connected pieces and merge the small ones into their neighbours.

    A piece of at least ``min_size`` pixels is kept whole and under a label of its own. A smaller piece joins the
    neighbour with which it shares the longest border, kept pieces first and then, breadth first, what has joined them.
    So the kept pieces never change their partition, every label is one 4-connected piece, and there are as many labels
    as kept pieces. Where no piece is large enough, the largest of the image is kept.

    Args:
        labels: (H, W) or (B, H, W) integer labels.
        min_size: smallest number of pixels of a label; 1 or less only cuts.

    Returns:
        Labels of the same shape, int64, on the same device: 0 .. count - 1 in each image, in raster order.
    """
    if labels.ndim not in (2, 3) or 0 in labels.shape or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers (H, W) or (B, H, W), got {labels.dtype} {tuple(labels.shape)}")
    images = labels.reshape(-1, *labels.shape[-2:]).cpu().numpy()
    connected = np.stack([_connect(image, min_size) for image in images])
    return torch.from_numpy(connected).reshape(labels.shape).to(labels.device)


def _connect(labels: np.ndarray, min_size: int) -> np.ndarray:
    """(H, W) to (H, W) int64."""
    # One background value below every label: each pixel then belongs to a piece, numbered from 1 in raster order.
    pieces = label_components(labels, background=int(labels.min()) - 1, connectivity=1) - 1
    sizes = np.bincount(pieces.ravel())
    kept = sizes >= min_size
    if not kept.any():
        kept[sizes.argmax()] = True
    owner = _join_neighbours(kept, *_borders(pieces, len(sizes)))
    return np.unique(owner, return_inverse=True)[1].astype(np.int64)[pieces]


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
