"""Whether a distance finds what is of one class."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffslic.metrics.arrays import integers, to_numpy

Floats = NDArray[np.float64]


def retrieval(vectors: Any, classes: Any, ignore: int = 255) -> dict[str, float]:
    """Average precision of what is of one class, ranked by Euclidean distance.

    Precision at a distance is the share of pairs of one class among all that are no further apart; it is averaged over
    the pairs of one class (those equally far apart come together). ``ap`` ranks all pairs at once: large classes make
    most of it, and a distance must mean the same everywhere. ``map`` ranks for each item all others, and averages
    over the items of a class, then over classes.

    Args:
        vectors: (S, C). classes: (S,) integers; what has the class ``ignore`` is left out.

    Returns:
        ap and map in [0, 1], and ``chance``, the share of pairs that are of one class; ap and map are NaN where all
        pairs are of one class, or none is.

    Raises:
        ValueError: shapes that do not fit, vectors that are not finite.
    """
    vectors, classes = to_numpy(vectors).astype(np.float64), integers(classes, "classes", "(S)")
    if vectors.ndim != 2 or classes.shape != vectors.shape[:1]:
        raise ValueError(f"vectors must be (S, C) and classes (S,), got {vectors.shape} and {classes.shape}")
    if not np.isfinite(vectors).all():
        raise ValueError("vectors must be finite, got NaN or infinity")
    vectors, classes = vectors[classes != ignore], classes[classes != ignore]
    first, second = np.triu_indices(len(classes), 1)
    alike = classes[:, None] == classes
    chance = float(alike[first, second].mean()) if len(first) else float("nan")
    if not 0 < chance < 1:
        return {"ap": float("nan"), "map": float("nan"), "chance": chance}
    squares = np.square(vectors).sum(1)
    distances = (squares[:, None] + squares - 2 * vectors @ vectors.T).clip(0)
    of_each: dict[int, list[float]] = {name: [] for name in np.unique(classes)}
    for item, name in enumerate(classes):
        others = np.arange(len(classes)) != item
        if alike[item, others].any():
            of_each[name].append(_average_precision(distances[item, others], alike[item, others]))
    return {"ap": _average_precision(distances[first, second], alike[first, second]),
            "map": float(np.mean([np.mean(values) for values in of_each.values() if values])), "chance": chance}


def _average_precision(distances: Floats, wanted: NDArray[np.bool_]) -> float:
    order = np.argsort(distances, kind="stable")
    last = np.append(np.diff(distances[order]) > 0, True)  # of those that are equally far
    found, among = np.cumsum(wanted[order])[last], np.flatnonzero(last) + 1
    return float((np.diff(found, prepend=0) * found / among).sum() / found[-1])
