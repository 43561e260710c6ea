"""TartanAir (Wang et al., IROS 2020), versions 1 and 2: simulated flights with depth, flow and poses.

A trajectory of version 1, e.g. ``ROOT/<environment>/<environment>/<Easy|Hard>/<P000>`` as the archives unpack, holds::

    image_left/000000_left.png           640x480
    depth_left/000000_left_depth.npy     (H, W) float32 metres along z; the sky is about 10000
    flow/000000_000001_flow.npy          (H, W, 2) float32 pixels
    flow/000000_000001_mask.npy          (H, W) uint8, 0 where the flow holds
    pose_left.txt                        a line per frame: tx ty tz qx qy qz qw, NED axes, camera to world
    intrinsics.txt                       ours, optional: the (3, 3) matrix of images of another size

and one of version 2, ``ROOT/<environment>/Data_<easy|hard>/<P000>``::

    image_lcam_front/000000_lcam_front.png          640x640
    depth_lcam_front/000000_lcam_front_depth.png    the four bytes of a float as blue, green, red and alpha
    flow_lcam_front/000000_000001_flow.png          16 bits: u in blue, v in green (64 levels a pixel), mask in red
    pose_lcam_front.txt                             as above
"""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import image_files, read_frame
from diffslic.datasets.io import KITTI_UNIT, check_size, image_size, read_depth, read_flow, read_levels, read_npy
from diffslic.datasets.problems import problems_of
from diffslic.geometry import flow_from_depth, pose_from_ned, pose_from_quaternion, second_from_first

# The dataset's own figures, and the (rows, columns) of the images that they belong to.
SIZE = (480, 640)
INTRINSICS = ((320., 0., 320.), (0., 320., 240.), (0., 0., 1.))
SIZE_2 = (640, 640)
INTRINSICS_2 = ((320., 0., 320.), (0., 320., 320.), (0., 0., 1.))
# Codes of the flow's mask: hidden behind another surface, behind its own, outside the next frame. Any other code but
# 0 doubts the flow for a reason that is no occlusion.
OCCLUDED = (1, 10, 100)


class _Layout(NamedTuple):
    """How a version names its files."""

    camera: str
    depth: str  # suffix of the file
    flow: str  # folder
    size: tuple[int, int]
    intrinsics: tuple[tuple[float, ...], ...]


LAYOUTS = (_Layout("left", "npy", "flow", SIZE, INTRINSICS),
           _Layout("lcam_front", "png", "flow_lcam_front", SIZE_2, INTRINSICS_2))


def clips(root: str | Path, trajectories: Sequence[str] | None = None) -> list[Clip]:
    """One clip per trajectory, named by its folders: "abandonedfactory-Easy-P000".

    Depth, flow, occlusion and poses are there where their files are; where flow alone is missing it is that of a world
    that stands still, as the dataset's own is. Frames may be a cut-out of the trajectory (60 to 71, say): poses are
    taken by the frame's number, not by its position.

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
    return [_clip(name, *found[name]) for name in (found if trajectories is None else trajectories)]


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken, one line each; see :func:`diffslic.datasets.check`."""
    try:
        found = _trajectories(Path(root))
    except FileNotFoundError as error:
        yield str(error)
        return
    yield from problems_of([partial(_clip, name, *place) for name, place in found.items()], deep)


def parse_poses(text: str) -> Tensor:
    """(T, 4, 4) float64 camera-to-world poses in camera axes, from lines "tx ty tz qx qy qz qw" in NED axes.

    Raises:
        ValueError: a line without seven finite numbers, or with a quaternion that is not of unit length.
    """
    poses = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        try:
            values = torch.tensor([float(word) for word in words], dtype=torch.float64)
        except ValueError:
            raise ValueError(f"line {number}: expected tx ty tz qx qy qz qw, got {line[:60]!r}") from None
        if len(values) != 7:
            raise ValueError(f"line {number}: expected tx ty tz qx qy qz qw, got {len(values)} numbers")
        try:
            poses.append(pose_from_quaternion(values[:3], values[3:]))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return pose_from_ned(torch.stack(poses)) if poses else torch.zeros(0, 4, 4, dtype=torch.float64)


def _trajectories(root: Path) -> dict[str, tuple[Path, _Layout]]:
    # A search of every folder would take minutes.
    places = [(path.parent, layout) for layout in LAYOUTS for depth in range(5)
              for path in root.glob("*/" * depth + f"image_{layout.camera}") if path.is_dir()]
    if not places:
        raise FileNotFoundError(f"{root}: no trajectory here, expected <environment>/<Easy|Hard>/<P000>/image_left/"
                                "000000_left.png, or image_lcam_front/ of version 2")
    return {"-".join(folder.relative_to(root).parts) or root.resolve().name: (folder, layout)
            for folder, layout in sorted(places)}


def _clip(name: str, folder: Path, layout: _Layout) -> Clip:
    camera, images = layout.camera, folder / f"image_{layout.camera}"
    frames = image_files(images)
    if not frames:
        raise FileNotFoundError(f"{images}: no frames, expected 000000_{camera}.png and so on")
    numbers = [_number(path, camera) for path in frames]
    for before, after in zip(numbers, numbers[1:]):
        if after != before + 1:
            raise ValueError(f"{images}: frame {after} follows frame {before}, expected consecutive frames")
    size, owner = image_size(frames[0]), f"clip {name!r}"
    readers: dict[str, Reader] = {"frame": partial(read_frame, frames, size, owner)}
    if (folder / f"depth_{camera}").is_dir():
        depths = [folder / f"depth_{camera}" / f"{n:06d}_{camera}_depth.{layout.depth}" for n in numbers]
        readers["depth"] = partial(_read_depth, depths, size)
    if any((folder / layout.flow).glob(f"*_flow.{'npy' if layout is LAYOUTS[0] else 'png'}")):
        stems = [folder / layout.flow / f"{n:06d}_{n + 1:06d}" for n in numbers[:-1]]
        second = layout is LAYOUTS[1]
        readers["flow"] = partial(_read_flow_2 if second else _read_flow, stems, size)
        if second or any((folder / layout.flow).glob("*_mask.npy")):
            readers["occlusion"] = partial(_read_occlusion_2 if second else _read_occlusion, stems, size)
    poses = folder / f"pose_{camera}.txt"
    if poses.is_file():
        readers["camera_to_world"] = partial(_pose, _poses(poses, numbers))
    clip = Clip(name, size, readers, len(frames), _intrinsics(folder, size, layout),
                tuple(f"{n:06d}" for n in numbers))
    if not clip.has("flow") and all(map(clip.has, ("depth", "camera_to_world", "intrinsics"))):
        return clip.with_readers(flow=partial(_flow_of_depth, clip))
    return clip


def _number(path: Path, camera: str) -> int:
    match = re.fullmatch(rf"(\d+)_{camera}", path.stem)
    if match is None:
        raise ValueError(f"{path}: expected a name like 000000_{camera}.png")
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


def _intrinsics(folder: Path, size: tuple[int, int], layout: _Layout) -> Tensor | None:
    path = folder / "intrinsics.txt"
    if not path.is_file():
        return torch.tensor(layout.intrinsics) if size == layout.size else None
    try:
        return torch.tensor([float(word) for word in path.read_text().split()]).reshape(3, 3)
    except (ValueError, RuntimeError):  # a word that is no number, or not nine of them
        raise ValueError(f"{path}: expected the 9 numbers of a 3x3 camera matrix") from None


def _read_depth(paths: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    return check_size(paths[t], read_depth(paths[t]), size, "its frame")


def _read_flow(stems: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    path = Path(f"{stems[t]}_flow.npy")
    return check_size(path, read_flow(path).flow, size, "its frame")


def _read_occlusion(stems: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    path = Path(f"{stems[t]}_mask.npy")
    return check_size(path, _hidden(read_npy(path)), size, "its frame")


def _read_flow_2(stems: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    path = Path(f"{stems[t]}_flow.png")
    levels = read_levels(path)[..., 2:0:-1].astype(np.float32)
    flow = torch.from_numpy((levels - 2 ** 15) / KITTI_UNIT).permute(2, 0, 1).contiguous()
    return check_size(path, flow, size, "its frame")


def _read_occlusion_2(stems: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    path = Path(f"{stems[t]}_flow.png")
    return check_size(path, _hidden(read_levels(path)[..., 0]), size, "its frame")


def _flow_of_depth(clip: Clip, t: int) -> Tensor:
    motion = second_from_first(clip.camera_to_world(t).double(), clip.camera_to_world(t + 1).double())
    return flow_from_depth(clip.depth(t)[None].double(), clip.intrinsics.double(), motion)[0].float()


def _hidden(codes: np.ndarray) -> Tensor:
    return torch.from_numpy(np.isin(codes, OCCLUDED))
