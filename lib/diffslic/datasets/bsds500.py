"""BSDS500: photographs, each cut into segments by several people (Arbelaez et al., PAMI 2011).

A clip is one photograph. Laid out as::

    ROOT/data/images/<split>/100075.jpg
    ROOT/data/groundTruth/<split>/100075.mat    a cell "groundTruth" of one struct per annotator

with the splits train, val and test; the ``BSDS500/`` folder of the archive is ROOT.
"""

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import paired_files, read_frame
from diffslic.datasets.io import image_size
from diffslic.datasets.problems import problems_of

OFFICIAL = ("train", "val", "test")
SPLITS = ("all", *OFFICIAL, "dev_train", "dev_val")
HELD_OUT_EVERY = 10  # one train photograph in ten chooses between models, so that val is seen once, at the end


def photographs(root: str | Path, split: str = "train") -> list[Clip]:
    """One clip per photograph, with ``frame(0)``, ``annotations(0)`` and the first annotator's ``segments(0)``.

    Args:
        root: folder with ``data/images`` and ``data/groundTruth``.
        split: "train", "val" or "test"; "dev_train" and "dev_val", which part train; "all" of what is there.

    Raises:
        FileNotFoundError, ValueError: a missing folder or annotation; an unknown split. A damaged annotation, or one of
            another size than its photograph, raises ValueError when it is read.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, known are {', '.join(SPLITS)}")
    root = Path(root)
    if split == "all":
        there = [name for name in OFFICIAL if (root / "data" / "images" / name).is_dir()]
        return [clip for name in there or OFFICIAL[:1] for clip in photographs(root, name)]
    clips = [_clip(path, mat) for path, mat in _files(root, "train" if split.startswith("dev_") else split)]
    if split.startswith("dev_"):
        clips = [clip for i, clip in enumerate(clips)
                 if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == (split == "dev_val")]
    return clips


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken in the splits that are there; see :func:`diffslic.datasets.check`."""
    root = Path(root)
    splits = [name for name in OFFICIAL if (root / "data" / "images" / name).is_dir()]
    if not splits:
        yield f"{root / 'data' / 'images'}: expected the folders {', '.join(OFFICIAL)}, or one of them"
    for name in splits:
        try:
            files = _files(root, name)
        except (FileNotFoundError, ValueError) as error:
            yield str(error)
            continue
        yield from problems_of([partial(_clip, *pair) for pair in files], deep)


def read_annotations(path: str | Path) -> list[np.ndarray]:
    """The segments (H, W) uint16 of each annotator of a .mat file, as it numbers them, from 1.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a whole one of BSDS500.
    """
    try:
        # Only the arrays are read: a .mat of this version holds no code.
        cell = scipy.io.loadmat(path, variable_names=["groundTruth"])["groundTruth"]
        return [np.asarray(entry["Segmentation"][0, 0]) for entry in cell[0]]
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (ValueError, TypeError, KeyError, IndexError, NotImplementedError, EOFError, OSError, zlib.error,
            struct.error, scipy.io.matlab.MatReadError) as error:
        raise ValueError(f"{path}: expected a whole .mat (version 5) with a cell 'groundTruth' of structs "
                         f"with 'Segmentation' ({type(error).__name__})") from error


def _files(root: Path, split: str) -> list[tuple[Path, Path]]:
    """Photographs and annotations of an official split, in the order of their names."""
    images, truth = (root / "data" / kind / split for kind in ("images", "groundTruth"))
    return paired_files(images, truth, ".mat", f"BSDS500 has data/images/{split}/100075.jpg and "
                                               f"data/groundTruth/{split}/100075.mat")


def _clip(path: Path, mat: Path) -> Clip:
    size = image_size(path)
    readers: dict[str, Reader] = {"frame": partial(read_frame, [path], size, f"clip {path.stem!r}"),
                                  "annotations": partial(_annotations, mat, size),
                                  "segments": lambda t: _annotations(mat, size, t)[0]}
    return Clip(path.stem, size, readers, 1, frame_names=(path.stem,))


def _annotations(mat: Path, size: tuple[int, int], t: int) -> Tensor:
    """(A, H, W) int64, every annotator's segments numbered from 0 without gaps."""
    maps = read_annotations(mat)
    if not maps:
        raise ValueError(f"{mat}: expected at least one annotator, got none")
    for segments in maps:
        if segments.shape != size:
            raise ValueError(f"{mat}: expected segments of {size[0]}x{size[1]} (rows x columns) as the photograph has, "
                             f"got {'x'.join(map(str, segments.shape))}")
    return torch.from_numpy(np.stack([np.unique(segments, return_inverse=True)[1].reshape(size) for segments in maps]))
