"""ADE20K, scene parsing: photographs in which every pixel has one of 150 classes (Zhou et al., CVPR 2017).

A clip is one photograph. Laid out as::

    ROOT/images/<split>/ADE_val_00000001.jpg
    ROOT/annotations/<split>/ADE_val_00000001.png   grey levels: classes from 1, 0 where nobody named one
    ROOT/objectInfo150.txt                          names of the classes, tab-separated

with the splits training and validation; some images alone may lie in ``images`` and ``annotations`` themselves.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from diffslic.datasets.clip import VOID, Clip, Reader
from diffslic.datasets.folder import paired_files, read_frame
from diffslic.datasets.io import check_size, image_size, read_labels
from diffslic.datasets.problems import problems_of

OFFICIAL = ("training", "validation")
SPLITS = ("all", *OFFICIAL)
CLASSES = 150


def photographs(root: str | Path, split: str = "all", resolution: int | None = None) -> list[Clip]:
    """One clip per photograph, with ``frame(0)`` and ``classes(0)``: from 1 to 150, 255 where nobody named one.

    Args:
        root: folder with ``images`` and ``annotations``.
        split: "training", "validation", or "all" of what is there.
        resolution: rows to resize to, classes by nearest; None keeps each photograph's own size.

    Raises:
        FileNotFoundError, ValueError: a missing folder or annotation; an unknown split. A damaged annotation, or one of
            another size than its photograph, raises ValueError when it is read.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, known are {', '.join(SPLITS)}")
    clips = [_clip(*pair) for folder in _folders(Path(root), split) for pair in _files(Path(root), folder)]
    return clips if resolution is None else [clip.resized(resolution) for clip in clips]


def class_names(root: str | Path) -> dict[int, str]:
    """The names of the classes by number, of which the first: ``{1: "wall", 2: "building", ...}``.

    Raises:
        FileNotFoundError, ValueError: no ``objectInfo150.txt``, or not one.
    """
    path = Path(root) / "objectInfo150.txt"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
    if not all(len(row) == 5 and row[0].strip().isdecimal() for row in rows):
        raise ValueError(f"{path}: expected five columns with tabs between, the first a number and the last the names")
    return {int(row[0]): row[-1].split(",")[0].strip() for row in rows}


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken in what is there; see :func:`diffslic.datasets.check`."""
    root = Path(root)
    for folder in _folders(root, "all"):
        try:
            files = _files(root, folder)
        except (FileNotFoundError, ValueError) as error:
            yield str(error)
            continue
        yield from problems_of([partial(_clip, *pair) for pair in files], deep)


def _folders(root: Path, split: str) -> list[str]:
    """Folders below ``images`` that a split has; "" is that folder itself."""
    if split != "all":
        return [split]
    return [name for name in OFFICIAL if (root / "images" / name).is_dir()] or [""]


def _files(root: Path, folder: str) -> list[tuple[Path, Path]]:
    """Photographs and annotations in the order of their names."""
    return paired_files(root / "images" / folder, root / "annotations" / folder, ".png",
                        "ADE20K has images/<split>/NAME.jpg and annotations/<split>/NAME.png, the splits are "
                        f"{' and '.join(OFFICIAL)}")


def _clip(path: Path, png: Path) -> Clip:
    size = image_size(path)
    readers: dict[str, Reader] = {"frame": partial(read_frame, [path], size, f"photograph {path.stem!r}"),
                                  "classes": partial(_classes, png, size)}
    return Clip(path.stem, size, readers, 1, frame_names=(path.stem,))


def _classes(png: Path, size: tuple[int, int], t: int) -> Tensor:
    classes = check_size(png, read_labels(png), size, "its photograph")
    if classes.max() > CLASSES:
        raise ValueError(f"{png}: expected classes up to {CLASSES}, got {int(classes.max())}")
    return torch.where(classes == 0, VOID, classes)
