"""The flow files of the composite-SSN study: one HDF5 per video, flow there and back beside one another.

=============  ================  ==========================================================
``flows``      (T-1, H, W, 2)    float16 pixels, (v, u), frame t to t + 1
``inv_flows``  (T-1, H, W, 2)    the same, frame t + 1 to t
=============  ================  ==========================================================

Frames are read one at a time, however long the video.
"""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from diffslic import geometry
from diffslic.datasets.cache import cache_extent, cached_clip, is_cache, open_hdf5
from diffslic.datasets.clip import Clip
from diffslic.files import written_whole

FORWARD, BACKWARD = "flows", "inv_flows"


def with_composite_flow(clip: Clip, path: str | Path) -> Clip:
    """The clip with the file's ``flow`` and ``backward_flow``, brought to the clip's size where it has another one.

    Raises:
        FileNotFoundError, ValueError: no such file, not a whole one, without one of the two, of another length than
            the clip, or of another shape than its frames.
    """
    with open_hdf5(path) as file:
        for name in (FORWARD, BACKWARD):
            expected = (len(clip) - 1, *clip.size, 2)
            found = file[name].shape if isinstance(file.get(name), h5py.Dataset) else None
            if found != expected and not _differs_in_scale(found, expected):
                raise ValueError(f"{path}: expected {name} of shape {expected} for the {len(clip)} frames of "
                                 f"{clip.name!r}, got {'none' if found is None else found}")
    return clip.with_readers(flow=partial(_read, Path(path), FORWARD, clip.size, 0),
                             backward_flow=partial(_read, Path(path), BACKWARD, clip.size, -1))


def _differs_in_scale(found: tuple[int, ...] | None, expected: tuple[int, ...]) -> bool:
    """Whether (T - 1, rows, columns, 2) differ in rows and columns alone, and in these alike but for the rounding."""
    if found is None or len(found) != 4 or (found[0], found[3]) != (expected[0], expected[3]) or 0 in found:
        return False
    return geometry.same_aspect(found[1:3], expected[1:3])


def with_flow_from(clip: Clip, folder: str | Path) -> Clip:
    """The clip with the flow there and back of ``FOLDER/<its name>.h5``, see :func:`with_flow_of`."""
    return with_flow_of(clip, Path(folder) / f"{clip.name}.h5")


def with_flow_of(clip: Clip, path: str | Path) -> Clip:
    """The clip with the flow there and back of a file, in the study's layout or in that of this project's caches.

    Raises:
        FileNotFoundError, ValueError: see :func:`with_composite_flow` and :func:`diffslic.datasets.cached_clip`.
    """
    path = Path(path)
    if not is_cache(path):
        return with_composite_flow(clip, path)
    stored = cached_clip(Clip(clip.name, clip.size, {}, len(clip)), path)
    for kind in ("flow", "backward_flow"):
        if not stored.has(kind):
            raise ValueError(f"{path}: a cache without {kind}; precompute flow both ways")
    return clip.with_readers(flow=stored.readers["flow"], backward_flow=stored.readers["backward_flow"])


def write_composite_flow(clip: Clip, path: str | Path) -> None:
    """Write a clip's flow there and back in this layout; the file appears when it is whole.

    Raises:
        LookupError: the clip lacks one of the two. ValueError: it has one frame, and so no flow. OSError: the file
            cannot be written.
    """
    if len(clip) < 2:
        raise ValueError(f"{path}: {clip.name!r} has {len(clip)} frame, and so no flow to write")
    with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
        for name, read, first in ((FORWARD, clip.flow, 0), (BACKWARD, clip.backward_flow, 1)):
            rows, columns = clip.size
            stored = file.create_dataset(name, (len(clip) - 1, rows, columns, 2), np.float16,
                                         chunks=(1, rows, columns, 2), compression="gzip", shuffle=True)
            for i in range(len(clip) - 1):
                stored[i] = read(i + first).flip(0).permute(1, 2, 0).cpu().numpy()


def read_flow_both_ways(path: str | Path, t: int) -> Tensor:
    """:func:`flow_both_ways` of frame t from a file alone.

    Raises:
        FileNotFoundError, ValueError: see :func:`with_flow_of`; or the video has no such frame.
    """
    length, size = cache_extent(path) if is_cache(path) else _extent(path)
    if not 0 <= t < length:
        raise ValueError(f"{path}: the flow of {length} frames, 0 to {length - 1}; there is no frame {t}")
    return flow_both_ways(with_flow_of(Clip("video", size, {}, length), path), t)


def _extent(path: str | Path) -> tuple[int, tuple[int, int]]:
    """Number of frames and their rows and columns of a file in the study's layout."""
    with open_hdf5(path) as file:
        shapes = [tuple(file[name].shape) if isinstance(file.get(name), h5py.Dataset) else None
                  for name in (FORWARD, BACKWARD)]
    if None in shapes or shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][3] != 2:
        raise ValueError(f"{path}: expected {FORWARD} and {BACKWARD} of one shape (T - 1, rows, columns, 2), "
                         f"got {shapes[0]} and {shapes[1]}")
    return shapes[0][0] + 1, shapes[0][1:3]


def flow_both_ways(clip: Clip, t: int) -> Tensor:
    """(4, H, W) pixels: u, v to the next frame, u, v to the one before; zeros where there is none."""
    nothing = torch.zeros(2, *clip.size)
    return torch.cat([clip.flow(t) if t < len(clip) - 1 else nothing, clip.backward_flow(t) if t > 0 else nothing])


def _read(path: Path, name: str, size: tuple[int, int], shift: int, t: int) -> Tensor:
    with open_hdf5(path) as file:
        field = file[name][t + shift].astype(np.float32)
    if not np.isfinite(field).all():
        raise ValueError(f"{path}: {name}, frame {t}: expected finite flow, got NaN or infinity")
    flow = torch.from_numpy(field).permute(2, 0, 1).flip(0).contiguous()
    return flow if flow.shape[1:] == size else geometry.resize_flow(flow[None], size)[0]
