"""The sets that optical flow is learned and measured on: FlyingChairs, MPI-Sintel and KITTI.

===============  ==================================================================================================
FlyingChairs     ``data/00001_img1.ppm``, ``00001_img2.ppm``, ``00001_flow.flo``; also ``0000000-img0.ppm``,
(2015)           ``0000000-img1.ppm``, ``0000000-gt.flo``; in ``data/`` or in the folder itself. 384x512, one clip
                 of two frames per pair. ``FlyingChairs_train_val.txt`` has a line per pair: 1 trains, 2 validates.
MPI-Sintel       ``training/{clean,final}/<scene>/frame_0001.png``, ``training/flow/<scene>/frame_0001.flo``;
(2012)           ``training/{occlusions,invalid}/<scene>/frame_0001.png`` where they are. 436x1024, one clip per scene.
KITTI            ``training/image_2/000000_10.png``, ``000000_11.png``, ``training/flow_occ/000000_10.png``; of 2012
(2012, 2015)     ``colored_0`` in place of ``image_2``. About 375x1242, one clip of two frames per pair.
===============  ==================================================================================================

Flow that is not known is NaN in ``clip.flow``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import image_files, read_frame
from diffslic.datasets.io import check_size, image_size, read_flow, read_labels
from diffslic.datasets.problems import problems_of

PASSES = ("clean", "final")  # of Sintel: without and with blur and haze
# Suffixes of a pair's first image, second image and flow: the set's own names, and those of one of its mirrors.
CHAIRS = (("_img1.ppm", "_img2.ppm", "_flow.flo"), ("-img0.ppm", "-img1.ppm", "-gt.flo"))
CHAIRS_SPLIT = "FlyingChairs_train_val.txt"
SPLIT_MARKS = {"train": "1", "val": "2"}
KITTI_IMAGES = ("image_2", "colored_0")


def flyingchairs(root: str | Path, split: str = "all") -> list[Clip]:
    """One clip of two frames per pair of FlyingChairs.

    Args:
        split: "train", "val" (both by the file :data:`CHAIRS_SPLIT` in ``root``) or "all".

    Raises:
        FileNotFoundError: no pairs, a pair without its second image or flow, or no file that splits them.
        ValueError: another split, or a file that does not say 1 or 2 of every pair.
    """
    pairs = _chairs(Path(root))
    if split not in ("all", *SPLIT_MARKS):
        raise ValueError(f"the split of FlyingChairs is all, {' or '.join(SPLIT_MARKS)}, got {split!r}")
    if split == "all":
        return [open_clip() for open_clip in pairs]
    path = Path(root) / CHAIRS_SPLIT
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}, which says what trains and what validates")
    marks = path.read_text().split()
    if len(marks) != len(pairs) or not set(marks) <= set(SPLIT_MARKS.values()):
        raise ValueError(f"{path}: expected 1 or 2 for each of {len(pairs)} pairs, got {len(marks)} words")
    return [open_clip() for open_clip, mark in zip(pairs, marks) if mark == SPLIT_MARKS[split]]


def sintel(root: str | Path, render: str = "clean") -> list[Clip]:
    """One clip per scene of MPI-Sintel's training set, with occlusion where its folder is.

    Args:
        render: "clean" or "final".

    Raises:
        FileNotFoundError, ValueError: no scenes, frames without flow, an unknown pass.
    """
    return [open_clip() for open_clip in _sintel(Path(root), render)]


def kitti(root: str | Path) -> list[Clip]:
    """One clip of two frames per pair of KITTI's training set; its flow is known where the laser reached.

    Raises:
        FileNotFoundError: no pairs, or a pair without its second image or flow.
    """
    return [open_clip() for open_clip in _kitti(Path(root))]


def flyingchairs_problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken, one line each; see :func:`diffslic.datasets.check`."""
    yield from _problems(lambda: _chairs(Path(root)), deep)


def sintel_problems(root: str | Path, deep: bool) -> Iterator[str]:
    """As :func:`flyingchairs_problems`, of the passes that are there."""
    there = [render for render in PASSES if (Path(root) / "training" / render).is_dir()]
    for render in there or PASSES[:1]:
        yield from _problems(lambda render=render: _sintel(Path(root), render), deep)


def kitti_problems(root: str | Path, deep: bool) -> Iterator[str]:
    """As :func:`flyingchairs_problems`."""
    yield from _problems(lambda: _kitti(Path(root)), deep)


Openers = list[Callable[[], Clip]]


def _problems(find: Callable[[], Openers], deep: bool) -> Iterator[str]:
    try:
        openers = find()
    except (FileNotFoundError, ValueError) as error:
        yield str(error)
        return
    yield from problems_of(openers, deep)


def _chairs(root: Path) -> Openers:
    folder = root / "data" if (root / "data").is_dir() else root
    for first, second, flow in CHAIRS:
        stems = sorted(path.name.removesuffix(first) for path in folder.glob(f"*{first}"))
        if stems:
            return [partial(_pair, stem, *(folder / f"{stem}{suffix}" for suffix in (first, second, flow)))
                    for stem in stems]
    raise FileNotFoundError(f"{folder}: no pairs of FlyingChairs, expected 00001_img1.ppm, 00001_img2.ppm and "
                            "00001_flow.flo")


def _kitti(root: Path) -> Openers:
    training = root / "training" if (root / "training").is_dir() else root
    for name in KITTI_IMAGES:
        firsts = sorted((training / name).glob("*_10.png"))
        if firsts:
            return [partial(_pair, path.name.removesuffix("_10.png"), path,
                            path.with_name(path.name.replace("_10.png", "_11.png")),
                            training / "flow_occ" / path.name) for path in firsts]
    raise FileNotFoundError(f"{training}: no pairs of KITTI, expected image_2/000000_10.png, 000000_11.png and "
                            "flow_occ/000000_10.png")


def _sintel(root: Path, render: str) -> Openers:
    if render not in PASSES:
        raise ValueError(f"the pass of Sintel is {' or '.join(PASSES)}, got {render!r}")
    folder = root / "training" / render
    scenes = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not scenes:
        raise FileNotFoundError(f"{folder}: no scenes of Sintel, expected {folder}/alley_1/frame_0001.png")
    return [partial(_scene, root / "training", render, scene.name) for scene in scenes]


def _pair(name: str, first: Path, second: Path, flow: Path) -> Clip:
    for path in (first, second, flow):
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}")
    size = image_size(first)
    return Clip(name, size, {"frame": partial(read_frame, [first, second], size, f"pair {name!r}"),
                             "flow": partial(_known_flow, [flow], [None], size)}, length=2,
                frame_names=(first.stem, second.stem))


def _scene(training: Path, render: str, name: str) -> Clip:
    frames = image_files(training / render / name)
    if not frames:
        raise FileNotFoundError(f"{training / render / name}: no frames")
    size = image_size(frames[0])
    flows = [training / "flow" / name / f"{path.stem}.flo" for path in frames[:-1]]
    for path in flows:
        if not path.is_file():
            raise FileNotFoundError(f"no file {path}, the flow that leaves a frame of scene {name!r}")
    invalid = [training / "invalid" / name / path.name for path in frames]
    readers: dict[str, Reader] = {
        "frame": partial(read_frame, frames, size, f"scene {name!r}"),
        "flow": partial(_known_flow, flows, [path if path.is_file() else None for path in invalid], size)}
    hidden = [training / "occlusions" / name / path.name for path in frames[:-1]]
    if all(path.is_file() for path in hidden):
        readers["occlusion"] = partial(_marked, hidden, size)
    return Clip(name, size, readers, length=len(frames), frame_names=tuple(path.stem for path in frames))


def _known_flow(paths: Sequence[Path], invalid: Sequence[Path | None], size: tuple[int, int], t: int) -> Tensor:
    flow, known = read_flow(paths[t])
    check_size(paths[t], flow, size, "its frame")
    if invalid[t] is not None:
        known = known & ~_marked(invalid, size, t)
    return flow.where(known, torch.nan)


def _marked(paths: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    return check_size(paths[t], read_labels(paths[t]), size, "its frame") > 0
