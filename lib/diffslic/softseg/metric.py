"""What makes vectors a metric: superpixels of one class are drawn together, those of two are driven apart.

The loss is over pairs within one image, so that its cost grows with the square of what is compared: all pixels are far
too many, some hundred superpixels are not, and their means see every pixel (Verma, Nagar and Raman, CVIP 2019).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

FARTHEST = 50.0  # squared distances count no further: neither do far outliers of a class rule the loss


def squared_distances(vectors: Tensor) -> Tensor:
    """(B, S, S) between all vectors (B, S, C) of an image."""
    vectors = _whole(vectors)
    with torch.autocast(vectors.device.type, enabled=False):
        squares = vectors.square().sum(-1)
        return (squares[:, :, None] + squares[:, None] - 2 * vectors @ vectors.mT).clamp(min=0)


def _whole(values: Tensor) -> Tensor:
    """In single precision at least: differences of squares and means of many pixels need more digits than half has."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def n_pair_loss(vectors: Tensor, classes: Tensor, ignore: int = 255) -> Tensor:
    """The modified N-pair loss of vectors that have a class.

    With d the squared distance of a pair, at most :data:`FARTHEST`, a pair of one class adds log((1 + e^d) / 2) and one
    of two log((1 + e^-d) / 2); each of the two kinds is averaged over its pairs, a kind without a pair adds nothing.

    Args:
        vectors: (B, S, C), of superpixels or of pixels. Pairs are those within an image.
        classes: (B, S) integers; what has the class ``ignore`` is in no pair.

    Returns:
        (B,) from -log 2, where classes are points infinitely far from one another.

    Raises:
        ValueError: shapes that do not fit.
    """
    if vectors.ndim != 3 or classes.shape != vectors.shape[:2]:
        raise ValueError(f"vectors must be (B, S, C) and classes (B, S), got {tuple(vectors.shape)} and "
                         f"{tuple(classes.shape)}")
    distances = squared_distances(vectors).clamp(max=FARTHEST)
    known = classes != ignore
    pairs = (known[:, :, None] & known[:, None]).triu(1)
    alike = classes[:, :, None] == classes[:, None]
    loss = distances.new_zeros(len(vectors))
    for kind, sign in ((pairs & alike, 1), (pairs & ~alike, -1)):
        each = (F.softplus(sign * distances) - math.log(2)) * kind
        loss = loss + each.sum((1, 2)) / kind.sum((1, 2)).clamp(min=1)
    return loss


def pool(values: Tensor, superpixels: Tensor, count: int | None = None) -> Tensor:
    """Means of values over hard superpixels; differentiable in the values.

    Values may be coarser than the superpixels: each pixel then has the value of the cell that it lies in. What pixels
    of a cell and a superpixel share is counted, so that the cost is that of the coarse values.

    Args:
        values: (B, C, h, w). superpixels: (B, H, W) integers from 0; H from h on, W from w on.
        count: S; by default one more than the largest number.

    Returns:
        (B, S, C); 0 for a superpixel without pixels.
    """
    batch, channels, *cells = values.shape
    height, width = superpixels.shape[-2:]
    if values.ndim != 4 or superpixels.shape[:-2] != (batch,) or cells[0] > height or cells[1] > width:
        raise ValueError(f"values must be (B, C, h, w) and superpixels (B, H, W) of that size or larger, got "
                         f"{tuple(values.shape)} and {tuple(superpixels.shape)}")
    count = _count(superpixels, count)
    values, device = _whole(values), values.device
    row = torch.arange(height, device=device) * cells[0] // height
    column = torch.arange(width, device=device) * cells[1] // width
    image = torch.arange(batch, device=device)[:, None, None]
    cell = (image * cells[0] + row[:, None]) * cells[1] + column  # (B, H, W) among those of all images
    each = superpixels + count * image
    pairs, shared = (each * (batch * cells[0] * cells[1]) + cell).unique(return_counts=True)
    indices = torch.stack([pairs // (batch * cells[0] * cells[1]), pairs % (batch * cells[0] * cells[1])])
    area = torch.bincount(each.flatten(), minlength=batch * count)
    share = shared.to(values.dtype) / area[indices[0]].to(values.dtype)
    matrix = torch.sparse_coo_tensor(indices, share, (batch * count, batch * cells[0] * cells[1]), is_coalesced=True,
                                     check_invariants=False)
    with torch.autocast(device.type, enabled=False):
        means = torch.sparse.mm(matrix, values.movedim(1, -1).reshape(-1, channels))
    return means.unflatten(0, (batch, count))


def _count(superpixels: Tensor, count: int | None) -> int:
    low, high = (int(value) for value in superpixels.aminmax())
    if low < 0 or (count is not None and high >= count):
        raise ValueError(f"superpixels must be from 0 to {'S' if count is None else count} - 1, got {low} to {high}")
    return high + 1 if count is None else count


def superpixel_classes(superpixels: Tensor, labels: Tensor, count: int | None = None, ignore: int = 255) -> Tensor:
    """The class that most pixels of a superpixel have.

    Args:
        superpixels: (B, H, W) integers from 0. labels: (B, H, W) integers from 0.
        count: S; by default one more than the largest number.
        ignore: the class of superpixels without pixels; and where it is in ``labels``, a class like another.

    Returns:
        (B, S) int64.
    """
    if superpixels.shape != labels.shape or labels.ndim != 3:
        raise ValueError(f"superpixels and labels must be (B, H, W), got {tuple(superpixels.shape)} and "
                         f"{tuple(labels.shape)}")
    batch, count = len(labels), _count(superpixels, count)
    names, numbers = labels.unique(return_inverse=True)  # few of many possible ones
    rows = superpixels + count * torch.arange(batch, device=labels.device)[:, None, None]
    votes = torch.bincount((rows * len(names) + numbers).flatten(), minlength=batch * count * len(names))
    most, winner = votes.view(batch, count, -1).max(-1)
    return torch.where(most > 0, names[winner], ignore)
