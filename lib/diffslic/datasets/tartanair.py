"""TartanAir v1 (Wang et al., IROS 2020): simulated flights with depth, flow and poses.

A trajectory, e.g. ``ROOT/<environment>/<environment>/<Easy|Hard>/<P000>`` as the archives unpack, holds::

    image_left/000000_left.png           640x480
    depth_left/000000_left_depth.npy     (H, W) float32 metres along z; the sky is about 10000
    flow/000000_000001_flow.npy          (H, W, 2) float32 pixels
    flow/000000_000001_mask.npy          (H, W) uint8, 0 where the flow holds
    pose_left.txt                        a line per frame: tx ty tz qx qy qz qw, NED axes, camera to world
    intrinsics.txt                       ours, optional: the (3, 3) matrix of images of another size
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import image_files, read_frame
from diffslic.datasets.io import check_size, image_size, read_depth, read_flow, read_npy
from diffslic.datasets.problems import problems_of
from diffslic.geometry import pose_from_ned, quaternion_to_matrix

# The dataset's own figures; they belong to images of 480 rows and 640 columns.
SIZE = (480, 640)
INTRINSICS = ((320., 0., 320.), (0., 320., 240.), (0., 0., 1.))
# Codes of the flow's mask: hidden behind another surface, behind its own, outside the next frame. Any other code but
# 0 doubts the flow for a reason that is no occlusion.
OCCLUDED = (1, 10, 100)


def clips(root: str | Path, trajectories: Sequence[str] | None = None) -> list[Clip]:
    """One clip per trajectory, named by its folders: "abandonedfactory-Easy-P000".

    Depth, flow, occlusion and poses are there where their files are. Frames may be a cut-out of the trajectory
    (60 to 71, say): poses are taken by the frame's number, not by its position.

    Args:
        root: a trajectory, or a folder above trajectories.
        trajectories: only these, by name.

    Raises:
        FileNotFoundError, ValueError: no trajectory, a gap in the frames, poses that do not reach the last frame.
    """
    found = _trajectories(Path(root))
    unknown = [name for name in trajectories or () if name not in found]
    if unknown:
        raise ValueError(f"{root}: no trajectory {unknown[0]!r}, there are {', '.join(found)}")
    return [_clip(name, found[name]) for name in (found if trajectories is None else trajectories)]


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken, one line each; see :func:`diffslic.datasets.check`."""
    try:
        found = _trajectories(Path(root))
    except FileNotFoundError as error:
        yield str(error)
        return
    yield from problems_of([partial(_clip, name, folder) for name, folder in found.items()], deep)


def parse_poses(text: str) -> Tensor:
    """(T, 4, 4) float64 camera-to-world poses in camera axes, from lines "tx ty tz qx qy qz qw" in NED axes.

    Raises:
        ValueError: a line without seven numbers.
    """
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            rows.append([float(word) for word in line.split()])
        except ValueError:
            raise ValueError(f"line {number}: expected tx ty tz qx qy qz qw, got {line[:60]!r}") from None
        if len(rows[-1]) != 7:
            raise ValueError(f"line {number}: expected tx ty tz qx qy qz qw, got {len(rows[-1])} numbers")
    values = torch.tensor(rows, dtype=torch.float64).reshape(-1, 7)
    poses = torch.eye(4, dtype=torch.float64).repeat(len(rows), 1, 1)
    poses[:, :3, :3] = quaternion_to_matrix(values[:, 3:])
    poses[:, :3, 3] = values[:, :3]
    return pose_from_ned(poses)


def _trajectories(root: Path) -> dict[str, Path]:
    patterns = ["*/" * depth + "image_left" for depth in range(5)]  # a search of every folder would take minutes
    folders = sorted(path.parent for pattern in patterns for path in root.glob(pattern) if path.is_dir())
    if not folders:
        raise FileNotFoundError(f"{root}: no trajectory here, expected <environment>/<Easy|Hard>/<P000>/image_left/"
                                "000000_left.png")
    return {"-".join(folder.relative_to(root).parts) or root.resolve().name: folder for folder in folders}


def _clip(name: str, folder: Path) -> Clip:
    frames = image_files(folder / "image_left")
    if not frames:
        raise FileNotFoundError(f"{folder / 'image_left'}: no frames, expected 000000_left.png and so on")
    numbers = [_number(path) for path in frames]
    for before, after in zip(numbers, numbers[1:]):
        if after != before + 1:
            raise ValueError(f"{folder / 'image_left'}: frame {after} follows frame {before}, expected consecutive "
                             "frames")
    size, owner = image_size(frames[0]), f"clip {name!r}"
    readers: dict[str, Reader] = {"frame": partial(read_frame, frames, size, owner)}
    if (folder / "depth_left").is_dir():
        readers["depth"] = partial(_read_depth, folder, numbers, size)
    if (folder / "flow").is_dir():
        readers["flow"] = partial(_read_flow, folder, numbers, size)
        if any((folder / "flow").glob("*_mask.npy")):
            readers["occlusion"] = partial(_read_occlusion, folder, numbers, size)
    if (folder / "pose_left.txt").is_file():
        readers["camera_to_world"] = partial(_pose, _poses(folder / "pose_left.txt", numbers))
    return Clip(name, size, readers, len(frames), _intrinsics(folder, size), tuple(f"{n:06d}" for n in numbers))


def _number(path: Path) -> int:
    match = re.fullmatch(r"(\d+)_left", path.stem)
    if match is None:
        raise ValueError(f"{path}: expected a name like 000000_left.png")
    return int(match[1])


def _poses(path: Path, numbers: Sequence[int]) -> Tensor:
    try:
        poses = parse_poses(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if numbers[-1] >= len(poses):
        raise ValueError(f"{path}: expected a pose for every frame up to {numbers[-1]}, got {len(poses)} lines")
    return poses[list(numbers)].float()


def _pose(poses: Tensor, t: int) -> Tensor:
    return poses[t].clone()


def _intrinsics(folder: Path, size: tuple[int, int]) -> Tensor | None:
    path = folder / "intrinsics.txt"
    if not path.is_file():
        return torch.tensor(INTRINSICS) if size == SIZE else None
    try:
        return torch.tensor([float(word) for word in path.read_text().split()]).reshape(3, 3)
    except (ValueError, RuntimeError):  # a word that is no number, or not nine of them
        raise ValueError(f"{path}: expected the 9 numbers of a 3x3 camera matrix") from None


def _read_depth(folder: Path, numbers: Sequence[int], size: tuple[int, int], t: int) -> Tensor:
    path = folder / "depth_left" / f"{numbers[t]:06d}_left_depth.npy"
    return check_size(path, read_depth(path), size, "its frame")


def _flow_file(folder: Path, number: int, kind: str) -> Path:
    return folder / "flow" / f"{number:06d}_{number + 1:06d}_{kind}.npy"


def _read_flow(folder: Path, numbers: Sequence[int], size: tuple[int, int], t: int) -> Tensor:
    path = _flow_file(folder, numbers[t], "flow")
    return check_size(path, read_flow(path).flow, size, "its frame")


def _read_occlusion(folder: Path, numbers: Sequence[int], size: tuple[int, int], t: int) -> Tensor:
    path = _flow_file(folder, numbers[t], "mask")
    codes = read_npy(path)
    return check_size(path, torch.from_numpy(np.isin(codes, OCCLUDED)), size, "its frame")
