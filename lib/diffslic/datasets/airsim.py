"""AirSim's recordings: the folder that its record button writes, ``airsim_rec.txt`` and ``images/``.

The text is a table with tabs: a line of names, then a line per frame, among them ``TimeStamp`` (milliseconds), ``POS_X
POS_Y POS_Z`` (metres), ``Q_W Q_X Q_Y Q_Z`` and ``ImageFile``, one file or several with semicolons between. A drone's
has ``VehicleName`` in front, a car's its controls behind. Axes are NED. Files are named
``img_<vehicle>_<camera>_<type>_<time>``: the frame is the first of type 0, the depth the first .pfm of type 1 (planar);
distances along the ray (type 2), segmentations and the rest are left alone.

The pose is that of the vehicle's *body*, not of its camera: where a camera sits before the body's middle, or tilts,
say so by ``body_from_camera``.
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import read_frame
from diffslic.datasets.io import IMAGE_SUFFIXES, check_size, image_size, read_depth
from diffslic.datasets.problems import problems_of
from diffslic.geometry import intrinsics_from_fov, pose_from_ned, pose_from_quaternion

TABLE = "airsim_rec.txt"
NUMBERS = ("POS_X", "POS_Y", "POS_Z", "Q_X", "Q_Y", "Q_Z", "Q_W")
SCENE, DEPTH_PLANAR = "0", "1"  # the types of images, which stand before the time in a file's name


def clips(root: str | Path, fov: float = 90.0, body_from_camera: Tensor | None = None) -> list[Clip]:
    """A recording as one clip, of the frames whose images are there.

    Args:
        root: the folder that holds ``airsim_rec.txt``.
        fov: field of view of the longer side, in degrees; the recording does not say it, 90 is AirSim's default.
        body_from_camera: (4, 4) in camera axes (x right, y down, z forward), both; the identity if None.

    Raises:
        FileNotFoundError: no recording, or none of its images. ValueError: a line that is not whole, or a quaternion
            that is not of unit length; the line is named.
    """
    root = Path(root)
    rows = [row for row in _rows(root) if row[0].is_file()]
    if not rows:
        raise FileNotFoundError(f"{root / 'images'}: none of the images of {TABLE} is there")
    frames, depths, poses = (list(column) for column in zip(*rows))
    size, owner = image_size(frames[0]), f"recording {root.name!r}"
    offset = torch.eye(4) if body_from_camera is None else body_from_camera
    readers: dict[str, Reader] = {"frame": partial(read_frame, frames, size, owner),
                                  "camera_to_world": partial(_pose, torch.stack(poses), offset)}
    if all(path is not None and path.is_file() for path in depths):
        readers["depth"] = partial(_depth, depths, size)
    return [Clip(root.resolve().name, size, readers, len(frames), intrinsics_from_fov(fov, *size),
                 tuple(path.stem for path in frames))]


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken, one line each; see :func:`diffslic.datasets.check`."""
    yield from problems_of([lambda: clips(root)[0]], deep)


def _rows(root: Path) -> Iterator[tuple[Path, Path | None, Tensor]]:
    """The image, the depth where there is one, and the body's pose of each line."""
    path = root / TABLE
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; a recording is a folder with {TABLE} and images/")
    lines = path.read_text(encoding="utf-8").splitlines()
    names = lines[0].split("\t") if lines else []
    missing = [name for name in (*NUMBERS, "ImageFile") if name not in names]
    if missing:
        raise ValueError(f"{path}: line 1: expected the names of the columns, there is no {missing[0]}")
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(names):
            raise ValueError(f"{path}: line {number}: expected {len(names)} fields, got {len(fields)}; the recording "
                             "broke off here? Remove the line")
        row = dict(zip(names, fields))
        try:
            values = torch.tensor([float(row[name]) for name in NUMBERS], dtype=torch.float64)
            pose = pose_from_ned(pose_from_quaternion(values[:3], values[3:]))
        except ValueError as error:
            raise ValueError(f"{path}: line {number}: {error}") from None
        files = [root / "images" / name for name in row["ImageFile"].split(";") if name]
        images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and _is_of_type(file, SCENE)]
        depths = [file for file in files if file.suffix.lower() == ".pfm" and _is_of_type(file, DEPTH_PLANAR)]
        if not images:
            raise ValueError(f"{path}: line {number}: names no image of the scene")
        yield images[0], depths[0] if depths else None, pose


def _is_of_type(file: Path, kind: str) -> bool:
    """Whether the name says so, or says nothing."""
    match = re.search(r"_(\d+)_\d*$", file.stem)
    return match is None or match[1] == kind


def _pose(body_to_world: Tensor, body_from_camera: Tensor, t: int) -> Tensor:
    return (body_to_world[t] @ body_from_camera.double()).float()


def _depth(paths: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    # AirSim writes the rows of a pfm from the top, against the format's custom.
    return check_size(paths[t], read_depth(paths[t]).flip(-2), size, "its frame")
