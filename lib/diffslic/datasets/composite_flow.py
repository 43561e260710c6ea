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

from diffslic.datasets.cache import cached_clip, open_hdf5
from diffslic.datasets.clip import Clip
from diffslic.files import written_whole

FORWARD, BACKWARD = "flows", "inv_flows"


def with_composite_flow(clip: Clip, path: str | Path) -> Clip:
    """The clip with the file's ``flow`` and ``backward_flow``.

    Raises:
        FileNotFoundError, ValueError: no such file, not a whole one, without one of the two, or of another length or
            size than the clip.
    """
    with open_hdf5(path) as file:
        for name in (FORWARD, BACKWARD):
            expected = (len(clip) - 1, *clip.size, 2)
            found = file[name].shape if isinstance(file.get(name), h5py.Dataset) else None
            if found != expected:
                raise ValueError(f"{path}: expected {name} of shape {expected} for the {len(clip)} frames of "
                                 f"{clip.name!r}, got {'none' if found is None else found}")
    return clip.with_readers(flow=partial(_read, Path(path), FORWARD, 0),
                             backward_flow=partial(_read, Path(path), BACKWARD, -1))


def with_flow_from(clip: Clip, folder: str | Path) -> Clip:
    """The clip with the flow of ``FOLDER/<its name>.h5``, in the study's layout or in that of this project's caches."""
    path = Path(folder) / f"{clip.name}.h5"
    with open_hdf5(path) as file:
        ours = "configuration" in file.attrs
    return cached_clip(clip, path) if ours else with_composite_flow(clip, path)


def write_composite_flow(clip: Clip, path: str | Path) -> None:
    """Write a clip's flow there and back in this layout; the file appears when it is whole.

    Raises:
        LookupError: the clip lacks one of the two. OSError: the file cannot be written.
    """
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
        FileNotFoundError, ValueError: see :func:`with_composite_flow`; or the video has no such frame.
    """
    with open_hdf5(path) as file:
        shapes = [tuple(file[name].shape) if isinstance(file.get(name), h5py.Dataset) else None
                  for name in (FORWARD, BACKWARD)]
    if None in shapes or shapes[0] != shapes[1] or len(shapes[0]) != 4 or shapes[0][3] != 2:
        raise ValueError(f"{path}: expected {FORWARD} and {BACKWARD} of one shape (T - 1, rows, columns, 2), "
                         f"got {shapes[0]} and {shapes[1]}")
    length, size = shapes[0][0] + 1, shapes[0][1:3]
    if not 0 <= t < length:
        raise ValueError(f"{path}: the flow of {length} frames, 0 to {length - 1}; there is no frame {t}")
    return flow_both_ways(with_composite_flow(Clip("video", size, {}, length), path), t)


def flow_both_ways(clip: Clip, t: int) -> Tensor:
    """(4, H, W) pixels: u, v to the next frame, u, v to the one before; zeros where there is none."""
    nothing = torch.zeros(2, *clip.size)
    return torch.cat([clip.flow(t) if t < len(clip) - 1 else nothing, clip.backward_flow(t) if t > 0 else nothing])


def _read(path: Path, name: str, shift: int, t: int) -> Tensor:
    with open_hdf5(path) as file:
        field = file[name][t + shift].astype(np.float32)
    if not np.isfinite(field).all():
        raise ValueError(f"{path}: {name}, frame {t}: expected finite flow, got NaN or infinity")
    return torch.from_numpy(field).permute(2, 0, 1).flip(0).contiguous()
