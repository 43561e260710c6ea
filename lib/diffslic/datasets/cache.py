"""Computed flow and superpixels of a clip in one HDF5 file: written as they come, read frame by frame.

Stored as chunks of one frame, gzip level 4 with byte shuffling:

=======================  ==================  ====================================================================
``flow``                 (T-1, 2, H, W)      int16 in 1/64 px; what exceeds 511.98 px saturates there
``backward_flow``        (T-1, 2, H, W)      the same; row 0 is frame 1
``superpixel_labels``    (T, H, W)           uint16
``superpixel_vectors``   (T, S, C)           float16: three digits, so coordinates are better kept relative
=======================  ==================  ====================================================================

The file's attributes hold the number of frames and the configuration that made it, as JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from diffslic.datasets.clip import KINDS, Clip
from diffslic.files import written_whole

FLOW_UNIT = 64      # levels per pixel
FLOW_LIMIT = 32767  # levels: 511.98 px


class _Storage(NamedTuple):
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]


def _encode_flow(flow: np.ndarray) -> np.ndarray:
    if not np.isfinite(flow).all():
        raise ValueError("flow must be finite")
    return np.rint(flow.astype(np.float64) * FLOW_UNIT).clip(-FLOW_LIMIT, FLOW_LIMIT).astype(np.int16)


def _encode_labels(labels: np.ndarray) -> np.ndarray:
    if labels.size and not (labels.min() >= 0 and labels.max() <= 65535):
        raise ValueError(f"superpixels are numbered 0..65535, got {labels.min()}..{labels.max()}")
    return labels.astype(np.uint16)


def _encode_vectors(vectors: np.ndarray) -> np.ndarray:
    if not (np.abs(vectors) <= np.finfo(np.float16).max).all():
        raise ValueError("superpixel vectors must be finite and within float16, up to 65504")
    return vectors.astype(np.float16)


_FLOW = _Storage(_encode_flow, lambda levels: levels.astype(np.float32) / FLOW_UNIT)
STORED = {"flow": _FLOW, "backward_flow": _FLOW,
          "superpixel_labels": _Storage(_encode_labels, lambda labels: labels.astype(np.int64)),
          "superpixel_vectors": _Storage(_encode_vectors, lambda vectors: vectors.astype(np.float32))}


def write_clip_cache(path: str | Path, fields: Mapping[str, Iterable[Tensor | np.ndarray]], length: int,
                     attributes: Mapping[str, Any]) -> None:
    """Write the fields of a clip, one frame in memory at a time; the file appears when it is whole.

    The iterables are advanced in turn, a frame each, so several may share one producer (``itertools.tee``). A
    killed writer leaves nothing that a reader would find, and its temporary file goes with the next writer.

    Args:
        fields: by the names above, T frames each; flow and backward flow have T - 1.
        length: T, the number of frames of the clip.
        attributes: the configuration, anything that JSON holds; :func:`is_current` compares it.

    Raises:
        ValueError: an unknown field, too few or too many frames, frames of several shapes, values out of range.
        OSError: the file cannot be written.
    """
    unknown = sorted(set(fields) - set(STORED))
    if unknown or not fields:
        raise ValueError(f"{path}: a cache holds {', '.join(STORED)}, got {unknown[0] if unknown else 'no field'!r}")
    configuration = json.dumps(attributes, sort_keys=True)
    expected = {name: length - sum(KINDS[name]) for name in fields}
    frames = {name: iter(values) for name, values in fields.items()}
    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs.update(length=length, configuration=configuration)
        for i in range(length):
            for name in fields:
                if i < expected[name]:
                    _append(path, file, name, i, expected[name], frames[name])
        for name, rest in frames.items():
            if next(rest, None) is not None:
                raise ValueError(f"{path}: expected {expected[name]} frames of {name} for a clip of {length}, got more")


def is_current(path: str | Path, attributes: Mapping[str, Any], length: int) -> bool:
    """Whether a whole file made with the same configuration and number of frames is there."""
    try:
        with _opened(path) as file:
            same = json.loads(file.attrs["configuration"]) == json.loads(json.dumps(attributes))
            return same and int(file.attrs["length"]) == length
    except (FileNotFoundError, ValueError):  # absent, or cut short: to be made again
        return False


def is_cache(path: str | Path) -> bool:
    """Whether an HDF5 file, which must be there and whole, has this layout."""
    with open_hdf5(path) as file:
        return {"length", "configuration"} <= set(file.attrs)


def cache_extent(path: str | Path) -> tuple[int, tuple[int, int]]:
    """Number of frames of a cache's clip, and their rows and columns.

    Raises:
        FileNotFoundError, ValueError: no such file, a broken one, or one without a field of pixels.
    """
    with _opened(path) as file:
        sizes = [file[name].shape[-2:] for name in STORED if name in file and name != "superpixel_vectors"]
        if not sizes:
            raise ValueError(f"{path}: a cache without a field of pixels")
        return int(file.attrs["length"]), sizes[0]


def cached_clip(clip: Clip, path: str | Path) -> Clip:
    """The clip with the cache's fields as readers; a field that the clip had already is replaced.

    The file is opened for each read and closed again, so forked and spawned data loaders may share the clip.

    Raises:
        FileNotFoundError, ValueError: no such file, a broken one, or one made for another length or size.
    """
    with _opened(path) as file:
        names = [name for name in STORED if name in file]
        if int(file.attrs["length"]) != len(clip):
            raise ValueError(f"{path}: made for {file.attrs['length']} frames, clip {clip.name!r} has {len(clip)}")
        for name in names:
            if name != "superpixel_vectors" and file[name].shape[-2:] != tuple(clip.size):
                raise ValueError(f"{path}: {name} is {file[name].shape[-2:]} (rows, columns), "
                                 f"clip {clip.name!r} is {tuple(clip.size)}")
    return clip.with_readers(**{name: partial(_read, Path(path), name) for name in names})


def _append(path: str | Path, file: h5py.File, name: str, i: int, count: int,
            frames: Iterator[Tensor | np.ndarray]) -> None:
    values = next(frames, None)
    if values is None:
        raise ValueError(f"{path}: expected {count} frames of {name}, got {i}")
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    try:
        stored = STORED[name].encode(array)
    except ValueError as error:
        raise ValueError(f"{path}: {name}, item {i}: {error}") from None
    if i == 0:
        file.create_dataset(name, (count, *stored.shape), stored.dtype, chunks=(1, *stored.shape),
                            compression="gzip", compression_opts=4, shuffle=True)
    if stored.shape != file[name].shape[1:]:
        raise ValueError(f"{path}: {name}, item {i}: expected shape {file[name].shape[1:]} as before, "
                         f"got {stored.shape}")
    file[name][i] = stored


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file for reading; whatever is found broken in it becomes a ValueError that names the file."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        # A cache never changes once it has its name, so no lock is needed; network file systems often refuse one.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except OSError as error:
        raise ValueError(f"{path}: not a whole HDF5 file ({str(error).splitlines()[0]})") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[h5py.File]:
    """A cache for reading."""
    with open_hdf5(path) as file:
        if not {"length", "configuration"} <= set(file.attrs):
            raise ValueError(f"{path}: an HDF5 file, but not a cache of a clip")
        yield file


def _read(path: Path, name: str, t: int) -> Tensor:
    with _opened(path) as file:
        stored = file[name][t - KINDS[name][0]]
    return torch.from_numpy(STORED[name].decode(stored))
