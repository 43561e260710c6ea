"""DAVIS 2016 and 2017, at any resolution folder, with the official lists of sequences or with plain folders.

DAVIS 2016 (Perazzi et al., CVPR 2016) has one mask per frame, object or background. DAVIS 2017 (Pont-Tuset et al.,
arXiv 1704.00675) has ids in palette images, 255 for void. Both are laid out as::

    ROOT/JPEGImages/<resolution>/<sequence>/00000.jpg
    ROOT/Annotations/<resolution>/<sequence>/00000.png
    ROOT/ImageSets/<resolution>/train.txt    2016: a line is "/JPEGImages/... /Annotations/... "
    ROOT/ImageSets/2017/train.txt            2017: a line is the name of a sequence
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import image_files, read_frame
from diffslic.datasets.io import check_size, image_size, read_labels
from diffslic.datasets.problems import problems_of

# Train sequences that no network of this project is trained on: figures during development are means over these
# eight, so that the official val split stays unseen until the end.
HELD_OUT = ("breakdance-flare", "car-turn", "dance-jump", "dog-agility", "flamingo", "horsejump-low", "rhino",
            "soccerball")
SPLITS = ("all", "train", "val", "dev_train", "dev_val")


def davis2016(root: str | Path, split: str = "all", resolution: str = "480p",
              sequences: Sequence[str] | None = None) -> list[Clip]:
    """DAVIS 2016: every frame has a mask, labels are 0 and 1.

    Args:
        root: folder with JPEGImages and Annotations.
        split: "train" or "val" of the official lists; "dev_train" and "dev_val", which part the official train list
            by ``HELD_OUT``; "all" takes every sequence folder and needs no lists.
        resolution: name of the resolution folder: "480p", "1080p", ...
        sequences: only these of the split.

    Raises:
        FileNotFoundError, ValueError: a missing folder, list or mask; an unknown split or sequence. A mask whose
            size is not its frame's raises ValueError when it is read.
    """
    names = _sequence_names(Path(root), "2016", split, resolution, sequences)
    return [_clip(Path(root), name, resolution, "Annotations", binary=True, partial_masks=False) for name in names]


def davis2017(root: str | Path, split: str = "all", resolution: str = "480p",
              sequences: Sequence[str] | None = None, annotations: str = "Annotations",
              partial_masks: bool = False) -> list[Clip]:
    """DAVIS 2017: labels are the palette's ids, 0 background, 255 void.

    Args:
        root, split, resolution, sequences: see :func:`davis2016`.
        annotations: "Annotations", or "Annotations_unsupervised" of the unsupervised challenge.
        partial_masks: accept sequences with masks for some frames only, as in the test sets; ``labels(t)`` of a
            frame without one raises LookupError, and a sequence without any has no labels.
    """
    names = _sequence_names(Path(root), "2017", split, resolution, sequences)
    return [_clip(Path(root), name, resolution, annotations, binary=False, partial_masks=partial_masks)
            for name in names]


def problems2016(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken at every resolution, one line each; see :func:`diffslic.datasets.check`."""
    return _problems(Path(root), "2016", deep)


def problems2017(root: str | Path, deep: bool) -> Iterator[str]:
    """As :func:`problems2016`, for DAVIS 2017."""
    return _problems(Path(root), "2017", deep)


# ---------------------------------------------------------------- which sequences


def _folder_names(folder: Path) -> list[str]:
    """Names of the sub-folders; where there is no such folder, its neighbours or the official layout are told."""
    if not folder.is_dir():
        beside = sorted({path.parent.name for path in folder.parent.glob("*/*") if path.is_dir()})
        told = f"there is {', '.join(beside)}" if beside else \
            "DAVIS has JPEGImages/<resolution>/<sequence>/00000.jpg and Annotations/<resolution>/<sequence>/00000.png"
        raise FileNotFoundError(f"{folder}: no such folder; {told}")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _list_files(root: Path, year: str, resolution: str, split: str) -> list[Path]:
    """Where the official packages keep the list of a split, the resolution's own first."""
    folders = ("2017",) if year == "2017" else (resolution, "480p", "2016")
    return [root / "ImageSets" / folder / f"{split}.txt" for folder in folders]


def _listed(root: Path, year: str, resolution: str, split: str) -> list[str]:
    files = _list_files(root, year, resolution, split)
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{files[0]}: no such list of the split {split!r}; split='all' takes every sequence")
    # A 2016 line is two paths, a 2017 line one name. dict keeps the order and drops the repetitions.
    lines = [line.split()[0] for line in found.read_text().splitlines() if line.strip()]
    return list(dict.fromkeys(Path(line).parent.name if "/" in line else line for line in lines))


def _sequence_names(root: Path, year: str, split: str, resolution: str, sequences: Sequence[str] | None) -> list[str]:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, known are {', '.join(SPLITS)}")
    folders = _folder_names(root / "JPEGImages" / resolution)
    if split == "all":
        names = folders
    else:
        official = "train" if split.startswith("dev_") else split
        names = _listed(root, year, resolution, official)
        if split.startswith("dev_"):
            names = [name for name in names if (name in HELD_OUT) == (split == "dev_val")]
    wanted = names if sequences is None else list(sequences)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"{root}: no sequence {unknown[0]!r} in split {split!r}, there are {', '.join(names)}")
    missing = [name for name in wanted if name not in folders]
    if missing:
        raise FileNotFoundError(f"{root / 'JPEGImages' / resolution / missing[0]}: no such folder, but the list of "
                                f"split {split!r} names it")
    if not wanted:
        raise ValueError(f"{root}: split {split!r} at {resolution} has no sequence")
    return wanted


# ---------------------------------------------------------------- one sequence


def _clip(root: Path, name: str, resolution: str, annotations: str, binary: bool, partial_masks: bool) -> Clip:
    folder = root / "JPEGImages" / resolution / name
    frames = image_files(folder)
    if not frames:
        raise FileNotFoundError(f"{folder}: no frames, expected 00000.jpg and so on")
    masks = _masks(root / annotations / resolution / name)
    if not partial_masks:
        _require_all(root / annotations / resolution / name, frames, masks)
    size, owner = image_size(frames[0]), f"clip {name!r}"
    readers: dict[str, Reader] = {"frame": partial(read_frame, frames, size, owner)}
    if masks:
        readers["labels"] = partial(_read_labels, [masks.get(path.stem) for path in frames], size, owner, binary)
    return Clip(name, size, readers, len(frames), frame_names=tuple(path.stem for path in frames))


def _masks(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in image_files(folder)} if folder.is_dir() else {}


def _require_all(folder: Path, frames: Sequence[Path], masks: dict[str, Path]) -> None:
    missing = [path.stem for path in frames if path.stem not in masks]
    if missing:
        raise FileNotFoundError(f"{folder}: {len(frames) - len(missing)} masks for {len(frames)} frames, "
                                f"the first missing is {missing[0]}.png")


def _read_labels(paths: Sequence[Path | None], size: tuple[int, int], owner: str, binary: bool, t: int) -> Tensor:
    path = paths[t]
    if path is None:
        raise LookupError(f"{owner} has no mask for frame {t}, there are masks for "
                          f"{', '.join(str(i) for i, other in enumerate(paths) if other)}")
    labels = check_size(path, read_labels(path), size, owner)
    return (labels > 0).long() if binary else labels  # levels 0 and 255 in most of 2016


# ---------------------------------------------------------------- check


def _problems(root: Path, year: str, deep: bool) -> Iterator[str]:
    try:
        resolutions = _folder_names(root / "JPEGImages")
    except FileNotFoundError as error:
        yield str(error)
        return
    if not resolutions:
        yield f"{root / 'JPEGImages'}: empty, expected a folder per resolution such as 480p"
    for resolution in resolutions:
        names = _folder_names(root / "JPEGImages" / resolution)
        yield from _missing_from_lists(root, year, resolution)
        for name in names:
            try:
                folder = root / "Annotations" / resolution / name
                _require_all(folder, image_files(root / "JPEGImages" / resolution / name), _masks(folder))
            except (FileNotFoundError, ValueError) as error:
                yield str(error)
        yield from problems_of([partial(_clip, root, name, resolution, "Annotations", year == "2016", True)
                                for name in names], deep)


def _missing_from_lists(root: Path, year: str, resolution: str) -> Iterator[str]:
    """Frames that a 2016 list names, and sequences that a 2017 list names, and that are not there."""
    for split in ("train", "val"):
        file = _list_files(root, year, resolution, split)[0]
        for line in file.read_text().splitlines() if file.is_file() else []:
            for entry in line.split():
                path = root / entry.lstrip("/") if "/" in entry else root / "JPEGImages" / resolution / entry
                if not path.exists():
                    yield f"{path}: missing, but {file} names it"
