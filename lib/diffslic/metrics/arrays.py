"""What the scores take: numpy arrays or torch tensors on any device, checked and as numpy."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def to_numpy(values: Any) -> Array:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def integers(labels: Any, name: str, layout: str) -> Array:
    labels = to_numpy(labels)
    if labels.ndim != layout.count(",") + 1 or labels.size == 0:
        raise ValueError(f"{name} must be {layout} with at least one pixel, got shape {labels.shape}")
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integer labels, got {labels.dtype}")
    return labels


def same_shape(values: Any, truth: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, truth = to_numpy(values), to_numpy(truth)
    if values.shape != truth.shape:
        raise ValueError(f"{name} is {values.shape} but truth is {truth.shape}")
    if values.dtype.kind not in "fiu" or truth.dtype.kind not in "fiu":
        raise ValueError(f"{name} and truth must hold real numbers, got {values.dtype} and {truth.dtype}")
    return values.astype(np.float64), truth.astype(np.float64)


def known_mask(valid: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    valid = np.ones(shape, dtype=bool) if valid is None else to_numpy(valid)
    if valid.shape != shape or valid.dtype != bool:
        raise ValueError(f"valid must be bool of shape {shape}, got {valid.dtype} of shape {valid.shape}")
    return valid
