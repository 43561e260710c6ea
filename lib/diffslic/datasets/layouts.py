"""Writes clips in the folder layouts of other datasets, so that every loader can be tried without their data."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from diffslic.datasets import io
from diffslic.datasets.clip import Clip
from diffslic.files import written_whole
from diffslic.geometry import matrix_to_quaternion, pose_to_ned


def write_davis(clips: Sequence[Clip], root: str | Path) -> None:
    """Write frames and masks as DAVIS has them; both the 2016 and the 2017 loader read the result.

    ``JPEGImages/<rows>p/<clip>/00000.jpg``, ``Annotations/<rows>p/<clip>/00000.png`` with the palette's ids, and lists
    under ``ImageSets``: the first three quarters of the clips are the train split, the rest is val.

    Raises:
        ValueError: the folder holds other clips: the lists would not name them. LookupError: a clip has no labels.
        OSError: the folder cannot be written.
    """
    root, resolution = Path(root), f"{clips[0].size[0]}p"
    others = {path.name for path in (root / "JPEGImages").glob("*/*")} - {clip.name for clip in clips}
    if others:
        raise ValueError(f"{root} holds other clips, such as {min(others)}, which its new lists would not name: choose "
                         "another folder")
    for clip in clips:
        for t in range(len(clip)):
            name = f"{t:05d}"
            io.write_image(root / "JPEGImages" / resolution / clip.name / f"{name}.jpg", clip.frame(t))
            io.write_labels(root / "Annotations" / resolution / clip.name / f"{name}.png", clip.labels(t))
    n_train = max(1, 3 * len(clips) // 4)
    for split, part in (("train", clips[:n_train]), ("val", clips[n_train:])):
        files = [f"/JPEGImages/{resolution}/{clip.name}/{t:05d}.jpg /Annotations/{resolution}/{clip.name}/{t:05d}.png "
                 for clip in part for t in range(len(clip))]
        _write_lines(root / "ImageSets" / resolution / f"{split}.txt", files)
        _write_lines(root / "ImageSets" / "2017" / f"{split}.txt", [clip.name for clip in part])


def write_tartanair(clips: Sequence[Clip], root: str | Path) -> None:
    """Write frames, depth, flow, its masks and poses as TartanAir v1 has them: ``<clip>/<clip>/Easy/P000/...``.

    TartanAir has no object masks: moving bodies keep their depth and flow, not their labels.
    """
    for clip in clips:
        folder = Path(root) / clip.name / clip.name / "Easy" / "P000"
        for t in range(len(clip)):
            write_tartanair_frame(folder, t, clip.frame(t), clip.depth(t))
        for t in clip.frames_with("flow"):
            write_tartanair_flow(folder, t, clip.flow(t), clip.occlusion(t))
        write_tartanair_cameras(folder, [clip.camera_to_world(t) for t in range(len(clip))], clip.intrinsics)


def write_tartanair_frame(trajectory: Path, t: int, frame: Tensor, depth: Tensor) -> None:
    """Frame t (3, H, W) of a trajectory and its depth (1, H, W); the frame last: where it is there, so is its depth."""
    io.write_npy(trajectory / "depth_left" / f"{t:06d}_left_depth.npy", depth[0].numpy())
    io.write_image(trajectory / "image_left" / f"{t:06d}_left.png", frame)


def write_tartanair_flow(trajectory: Path, t: int, flow: Tensor, occlusion: Tensor) -> None:
    """Flow (2, H, W) of a trajectory from frame t to the next, and what that does not show (H, W) bool."""
    pair = f"{t:06d}_{t + 1:06d}"
    io.write_npy(trajectory / "flow" / f"{pair}_flow.npy", flow.permute(1, 2, 0).contiguous().numpy())
    io.write_npy(trajectory / "flow" / f"{pair}_mask.npy", occlusion.numpy().astype(np.uint8))


def write_tartanair_cameras(trajectory: Path, camera_to_world: Sequence[Tensor], intrinsics: Tensor) -> None:
    """The poses (4, 4) of a trajectory's frames from the first on, and their camera matrix (3, 3)."""
    _write_lines(trajectory / "pose_left.txt", [_pose_line(pose) for pose in camera_to_world])
    _write_lines(trajectory / "intrinsics.txt", [" ".join(f"{x:.9g}" for x in row) for row in intrinsics.tolist()])


LAYOUTS: dict[str, Callable[[Sequence[Clip], str | Path], None]] = {"davis": write_davis, "tartanair": write_tartanair}


def write(clips: Sequence[Clip], root: str | Path, layout: str) -> None:
    """Write clips under ``root`` in one of ``LAYOUTS``."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}, known are {', '.join(LAYOUTS)}")
    LAYOUTS[layout](clips, root)


def _pose_line(camera_to_world: Tensor) -> str:
    """tx ty tz qx qy qz qw in NED axes."""
    pose = pose_to_ned(camera_to_world.double())
    return " ".join(f"{x:.9g}" for x in (*pose[:3, 3].tolist(), *matrix_to_quaternion(pose[:3, :3]).tolist()))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    with written_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines))
