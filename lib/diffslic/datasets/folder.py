"""Somebody's own material: a folder of frames, with masks or without, or a video file."""

import re
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from diffslic.datasets.clip import VOID, Clip, Reader, first_masks
from diffslic.datasets.io import IMAGE_SUFFIXES, check_size, image_size, read_image, read_labels
from diffslic.datasets.problems import problems_of
from diffslic.datasets.video import VIDEO_SUFFIXES, Video
from diffslic.geometry import resize_labels

SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES  # of what can be read as frames
LAYOUT = ("expected a video file, a folder of images, or a folder with frames/ and, where masks exist, "
          "masks/ with files of the same names")


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in the order people count: frame_2 before frame_10. Hidden files are skipped.

    Raises:
        ValueError: two files of one stem, e.g. 00000.jpg beside 00000.png.
    """
    files = sorted((path for path in folder.iterdir()
                    if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")), key=_natural)
    for first, second in zip(files, files[1:]):
        if first.stem == second.stem:
            raise ValueError(f"{second}: a second file for the frame of {first.name}, expected one image per frame")
    return files


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.stem)
    return [int(part) if part.isdecimal() else part.lower() for part in parts], path.name


def paired_files(images: Path, truth: Path, suffix: str, layout: str) -> list[tuple[Path, Path]]:
    """Photographs of a folder, in the order people count, and their annotations ``TRUTH/<stem><suffix>``.

    Args:
        layout: what the message says of a folder that is not there.

    Raises:
        FileNotFoundError: no folder, no image in it, or one without an annotation.
    """
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: no such folder; {layout}")
    pairs = [(path, truth / f"{path.stem}{suffix}") for path in image_files(images)]
    if not pairs:
        raise FileNotFoundError(f"{images}: no images here")
    missing = [annotation for _, annotation in pairs if not annotation.is_file()]
    if missing:
        raise FileNotFoundError(f"{truth}: {len(pairs) - len(missing)} annotations for {len(pairs)} photographs, "
                                f"the first missing is {missing[0].name}")
    return pairs


def read_frame(paths: Sequence[Path], size: tuple[int, int], owner: str, t: int) -> Tensor:
    """Frame t of a list of image files, which must have the clip's size."""
    return check_size(paths[t], read_image(paths[t]), size, owner)


def clips(root: str | Path, resolution: int | None = None) -> list[Clip]:
    """One clip from a folder of frames or a video file.

    Args:
        root: a video; or images; or ``frames/`` and ``masks/``. Images may stand beside a ``masks/`` as well.
            A mask of levels 0 and 255 alone is read as background and object 1, any other as object ids.
        resolution: rows to resize to, the columns follow; None keeps the size.

    Raises:
        FileNotFoundError, ValueError: nothing there, a single frame, frames of several sizes, fewer masks than
            frames, or a file that cannot be decoded.
    """
    root = Path(root)
    if resolution is not None and resolution < 1:
        raise ValueError(f"resolution is the number of rows to resize to, got {resolution}")
    clip = _from_folder(root) if root.is_dir() else _from_video(root)
    if len(clip) < 2:
        raise ValueError(f"{root}: motion needs at least two frames, got one")
    return [clip if resolution is None else clip.resized(resolution)]


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is wrong with the folder or video, one line each; see :func:`diffslic.datasets.check`."""
    return problems_of([lambda: clips(root)[0]], deep)


def _from_folder(root: Path) -> Clip:
    folder = root / "frames" if (root / "frames").is_dir() else root
    frames = image_files(folder)
    if not frames:
        raise FileNotFoundError(f"{folder}: no images here; {LAYOUT}")
    size, owner = image_size(frames[0]), f"its first frame {frames[0].name}"
    for path in frames:
        if image_size(path) != size:
            rows, columns = image_size(path)
            raise ValueError(f"{path}: expected {size[0]}x{size[1]} (rows x columns) as {owner} has, "
                             f"got {rows}x{columns}")
    readers: dict[str, Reader] = {"frame": partial(read_frame, frames, size, owner)}
    if (root / "masks").is_dir():
        masks = {path.stem: path for path in image_files(root / "masks")}
        missing = [path.stem for path in frames if path.stem not in masks]
        if missing:
            raise FileNotFoundError(f"{root / 'masks'}: expected a mask for each of {len(frames)} frames, "
                                    f"{len(missing)} are missing, the first is {missing[0]}.png")
        readers["labels"] = partial(_read_mask, [masks[path.stem] for path in frames], size)
    return Clip(root.resolve().name, size, readers, len(frames), frame_names=tuple(path.stem for path in frames))


def _read_mask(paths: Sequence[Path], size: tuple[int, int], t: int) -> Tensor:
    labels = check_size(paths[t], read_labels(paths[t]), size, "its frame")
    binary = ((labels == 0) | (labels == 255)).all()
    return labels // 255 if binary else labels


def given_masks(folder: str | Path, clip: Clip) -> dict[int, Tensor]:
    """Masks in files with which objects are given to be followed: see :func:`diffslic.datasets.clip.first_masks`.

    A mask of the same shape and another size is brought to that of the frames; so is, with a warning, one whose width
    differs by a column or a hundredth.

    Args:
        folder: ``<frame name>.png`` of some frames of the clip, or of all.

    Raises:
        FileNotFoundError: no folder, or no mask of a frame. ValueError: a mask of another shape than its frame, or no
            id in any: levels of 0 and 255 alone say which pixels are void, not whose they are.
    """
    folder, names = Path(folder), {clip.frame_name(t): t for t in range(len(clip))}
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise FileNotFoundError(f"{folder}: {what}, expected a folder with masks of frames, such as "
                                f"{clip.frame_name(0)}.png")
    paths = {names[path.stem]: path for path in image_files(folder) if path.stem in names}
    if not paths:
        raise FileNotFoundError(f"{folder}: no mask of a frame of clip {clip.name!r}, such as {clip.frame_name(0)}.png")
    odd = [path for _, path in sorted(paths.items())
           if _is_like(image_size(path), clip.size) and not _is_like(image_size(path), clip.size, rounding=True)]
    if odd:
        rows, columns = image_size(odd[0])
        more = f", as are {len(odd) - 1} more" if len(odd) > 1 else ""
        warnings.warn(f"{odd[0]}: {rows}x{columns} (rows x columns) is brought to {clip.size[0]}x{clip.size[1]} as "
                      f"clip {clip.name!r} has{more}", stacklevel=2)
    try:
        return first_masks((t, _fitted(path, read_labels(path), clip)) for t, path in sorted(paths.items()))
    except LookupError as error:
        raise ValueError(f"{folder}: {error}; an object in levels of 0 and 255 alone must be saved as id 1") from error


def _fitted(path: Path, labels: Tensor, clip: Clip) -> Tensor:
    if labels.max() > VOID:
        raise ValueError(f"{path}: ids are 0 to {VOID}, got {int(labels.max())}")
    if _is_like(tuple(labels.shape), clip.size):
        return resize_labels(labels[None], clip.size)[0]
    return check_size(path, labels, clip.size, f"clip {clip.name!r}")


def _is_like(found: tuple[int, ...], size: tuple[int, int], rounding: bool = False) -> bool:
    """Whether rows and columns, brought to the rows of ``size``, are its columns but for one or a hundredth of them.

    Args:
        rounding: but for what comes from rounding.
    """
    return abs(found[1] * size[0] / found[0] - size[1]) <= (0.5 if rounding else max(1.0, 0.01 * size[1]))


def _from_video(path: Path) -> Clip:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder; {LAYOUT}")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise ValueError(f"{path}: motion needs at least two frames, got one image")
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"{path}: not a video by its name (known: {' '.join(VIDEO_SUFFIXES)}); {LAYOUT}")
    video = Video(path)
    return Clip(path.stem, video.size, {"frame": video.frame}, video.count(), fps=video.fps)
