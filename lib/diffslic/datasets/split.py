"""CSV DataSplit files: tables that name the flow, the image and the mask of every frame, relative to a base folder.

The files of the EM and of the long-term motion segmentation systems, ``NAME_train.csv``, ``NAME_val.csv`` ..., are read
as they are. A row is a frame and the flow that leaves it:

===================  ==================================================================================================
``Flow``             file of the flow from this frame to the next; blank in no row but the last of a sequence
``Flow+1, Flow-4``   the same for other frames of the sequence, which then need no row of their own
``Image``            optional, the frame
``GtMask``           optional, blank where a frame has none
``FlowRGB``          optional, the flow as a picture
``Sequence``         optional, the clip; without it, the folder of the flow file
``Sequence_Index``   optional, the number of the frame; without it, that in the name of its file
===================  ==================================================================================================

Other columns are of no account. The last frame of a sequence has no flow and is usually not listed: it is found in the
folder of the images where they are in order there, and is otherwise a frame without image. Where frames are left out,
as in tables of the annotated ones only, each run of consecutive frames is a clip, ``SEQUENCE/FRAME``. A sequence has
the size of its masks (without them, of its images): flow, vectors and all, and images of another size and the same
aspect are resized.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from diffslic.datasets.clip import Clip, Reader
from diffslic.datasets.folder import image_files
from diffslic.datasets.io import check_size, image_size, read_flow, read_image, read_labels
from diffslic.datasets.problems import problems_of
from diffslic.files import written_whole
from diffslic.geometry import resize, resize_known_flow, same_aspect

KINDS = {"Flow": "flow", "Image": "frame", "GtMask": "labels", "FlowRGB": "flow_rgb"}
PARTS = ("train", "val", "test")
FLOW_SUFFIXES = (".flo", ".pfm")  # of flow and nothing else


@dataclass
class _Sequence:
    """Files of a sequence by column, and within it by frame number."""

    name: str
    files: dict[str, dict[int, Path]] = field(default_factory=lambda: {column: {} for column in KINDS})
    rows: dict[int, int] = field(default_factory=dict)  # line of the csv by frame number, for what is said of it


def clips(root: str | Path, file: str | Path, split: str | None = None,
          sequences: Sequence[str] | None = None) -> list[Clip]:
    """One clip per sequence of a DataSplit, in the order of the file; several where it leaves out frames in between.

    Args:
        root: the base folder of the paths in the table.
        file: the csv, or with ``split`` its name without ``_<split>.csv``; a path as it is, or else from ``root`` on.
        split: "train", "val" or "test".
        sequences: only these.

    Raises:
        FileNotFoundError: no such table, or a file that it names is missing (the row is told).
        ValueError: no table, a missing column, one frame twice, an unknown sequence.
    """
    found = _read(Path(root), _table_path(Path(root), file, split))
    unknown = sorted(set(sequences or ()) - set(found))
    if unknown:
        raise ValueError(f"{file}: no sequence {unknown[0]!r}, it has {', '.join(list(found)[:10])}")
    return [_clip(part) for name, parts in found.items() if sequences is None or name in sequences for part in parts]


def sequence_of(clip_name: str) -> str:
    """The sequence of a clip, which has parts where a table leaves frames out: "bear01" of "bear01/00020"."""
    return re.sub(r"/\d{5,}$", "", clip_name)


def problems(root: str | Path, deep: bool) -> Iterator[str]:
    """What is missing or broken in the tables of a folder, one line each; see :func:`diffslic.datasets.check`.

    The tables are looked for in ``ROOT/DataSplit`` and in ``ROOT`` itself; their paths begin at ``ROOT``.
    """
    root = Path(root)
    tables = sorted({*(root / "DataSplit").glob("*.csv"), *root.glob("*.csv")})
    if not tables:
        yield f"{root}: no tables, expected DataSplit/NAME_train.csv or NAME_train.csv"
    for table in tables:
        try:
            found = _read(root, table)
        except (OSError, ValueError) as error:
            yield str(error)
            continue
        yield from problems_of([partial(_clip, part) for parts in found.values() for part in parts], deep)


def write_split(path: str | Path, root: str | Path, images: str, flows: str, masks: str | None = None) -> int:
    """Write a DataSplit for folders of files: a row for every frame that has flow.

    Args:
        path: the csv, such as ``DataSplit/MINE_val.csv``.
        root: the base folder. images, flows, masks: folders below it with ``*`` in the sequence's place, such as
            ``DAVIS/JPEGImages/480p/*``; without ``*`` there is one sequence. Files of one frame have the same stem, or
            where no stem fits the same number in it, ``OpticalFlowIntoFuture_0006_L.pfm`` beside ``0006.png``.

    Returns:
        The number of rows.

    Raises:
        FileNotFoundError: no images, none with flow, or no mask where masks are asked for. ValueError: ``*`` in one
            pattern and not in another.
    """
    root = Path(root)
    for pattern in (images, flows, masks):
        if pattern is not None and (Path(pattern).is_absolute() or pattern.count("*") > 1):
            raise ValueError(f"folders are named from {root} on, with one * at most, got {pattern!r}")
    if any(("*" in other) != ("*" in images) for other in (flows, masks) if other is not None):
        raise ValueError(f"the sequence's * belongs into all patterns or none, got {images!r}, {flows!r}, {masks!r}")
    folders = sorted(folder for folder in root.glob(images) if folder.is_dir())
    rows = []
    for folder in folders:
        name = _starred(images, folder.relative_to(root).as_posix()) or folder.name
        frames = image_files(folder)
        of_flow = _beside(frames, root / flows.replace("*", name), FLOW_SUFFIXES)
        of_masks = _beside(frames, root / masks.replace("*", name), [".png"]) if masks is not None else {}
        for index, image in enumerate(frames):
            if image in of_flow:
                files = {"Image": image, "GtMask": of_masks.get(image), "Flow": of_flow[image]}
                rows.append({column: file.relative_to(root).as_posix() if file else "" for column, file in
                             files.items()} | {"Sequence": name, "Sequence_Index": index})
    if not rows:
        raise FileNotFoundError(f"{root}: no images {images} with flow {flows}, which names one file per frame by its "
                                "stem" if folders else f"{root}: no folder {images}")
    if masks is not None and not any(row["GtMask"] for row in rows):
        raise FileNotFoundError(f"{root}: no masks {masks} that belong to images {images}")
    with written_whole(path) as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)
    return len(rows)


def _beside(frames: Sequence[Path], folder: Path, suffixes: Collection[str]) -> dict[Path, Path]:
    """The file of each frame in another folder, as far as there is one: of the same stem, or of the same number.

    Files with one of the suffixes come before all others: pictures of flow often lie beside the flow.
    """
    files = sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    files = [file for file in files if file.suffix.lower() in suffixes] or files
    for key in (lambda path: path.stem, _number):
        known: dict[str | int | None, list[Path]] = {}
        for file in files:
            known.setdefault(key(file), []).append(file)
        found = {frame: known[key(frame)] for frame in frames if key(frame) is not None and key(frame) in known}
        for frame, of_frame in found.items():
            if len(of_frame) > 1:
                raise ValueError(f"{of_frame[0]} and {of_frame[1].name} could both belong to {frame.name}")
        if found:
            return {frame: of_frame[0] for frame, of_frame in found.items()}
    return {}


def _number(path: Path) -> int | None:
    """The number in a file's name: of several the one with the most digits, of several of those the last."""
    runs = re.findall(r"\d+", path.stem)
    return int(max(reversed(runs), key=len)) if runs else None


def _starred(pattern: str, path: str) -> str:
    """What stands in the place of ``*``."""
    match = re.fullmatch(re.escape(pattern).replace(r"\*", "([^/]*)", 1), path)
    return match.group(1) if match and match.groups() else ""


def _table_path(root: Path, file: str | Path, split: str | None) -> Path:
    path = Path(file)
    if split is not None:
        if split not in PARTS:
            raise ValueError(f"split must be one of {', '.join(PARTS)}, got {split!r}")
        path = path.with_name(f"{path.name.removesuffix('.csv')}_{split}.csv")
    found = next((place for place in (path, root / path) if place.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{path}: no such DataSplit, here or in {root}; with split= the name goes without "
                                "_train.csv")
    return found


def _read(root: Path, path: Path) -> dict[str, list[_Sequence]]:
    """Sequences by name, each in parts without gaps."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of comma separated values ({str(error).splitlines()[0]})") from error
    columns = {column: _place(column) for column in table.columns}
    used = {column: place for column, place in columns.items() if place is not None}
    if "Flow" not in used:
        raise ValueError(f"{path}: a DataSplit needs the column Flow, it has {', '.join(table.columns) or 'none'}")
    found: dict[str, _Sequence] = {}
    names = _folder_names({Path(file).parent for file in table["Flow"] if file})
    for line, row in enumerate(table.to_dict("records"), 2):  # the header is line 1
        name = row.get("Sequence") or names.get(Path(row["Flow"]).parent, "")
        if not name:
            raise ValueError(f"{path}, row {line}: neither a Sequence nor a Flow in a folder that could name it")
        sequence = found.setdefault(name, _Sequence(name))
        index = _index(path, line, row, max(sequence.rows, default=-1) + 1)
        if index in sequence.rows:
            raise ValueError(f"{path}, row {line}: frame {index} of {name!r} is in row {sequence.rows[index]} already")
        sequence.rows[index] = line
        for column, (kind, shift) in used.items():
            if not row[column]:
                continue
            file = root / row[column]
            if sequence.files[kind].setdefault(index + shift, file) != file:
                raise ValueError(f"{path}, row {line}: {column} names {file}, but frame {index + shift} of {name!r} "
                                 f"has {sequence.files[kind][index + shift]}")
            if not file.is_file():
                raise FileNotFoundError(f"{path}, row {line}: no file {file}, which {column} names")
    if not found:
        raise ValueError(f"{path}: a table without rows")
    return {name: _parts(path, sequence) for name, sequence in found.items()}


def _folder_names(folders: Collection[Path]) -> dict[Path, str]:
    """Their last parts, as many as it takes to tell them apart: left, or 0000/into_future/left beside 0001/..."""
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return {folder: "/".join(folder.parts[-depth:]) for folder in folders}


def _place(column: str) -> tuple[str, int] | None:
    """What a column holds and for which frame, counted from the row's; None where it is of no account."""
    match = re.fullmatch(rf"({'|'.join(KINDS)})([+-]\d+)?", column)
    return (match.group(1), int(match.group(2) or 0)) if match else None


def _index(path: Path, line: int, row: Mapping[str, str], following: int) -> int:
    """The frame of a row: its Sequence_Index, or else the number in the names of its files, or else the next one."""
    text = row.get("Sequence_Index", "")
    if not text:
        number = _number(Path(row["Flow"] or row.get("Image", "")))
        return following if number is None else max(number, following)
    try:
        number = float(text)  # pandas writes whole numbers beside blanks as 3.0
        if not number.is_integer():
            raise ValueError
        return int(number)
    except ValueError:
        raise ValueError(f"{path}, row {line}: Sequence_Index must be a whole number, got {text!r}") from None


def _parts(path: Path, sequence: _Sequence) -> list[_Sequence]:
    """The runs of consecutive frames that have flow, each a clip with the frame after it."""
    flows = sorted(sequence.files["Flow"])
    if not flows:
        raise ValueError(f"{path}: sequence {sequence.name!r} has no flow")
    for frame in sorted(sequence.rows):
        if frame not in sequence.files["Flow"] and frame < flows[-1]:
            raise ValueError(f"{path}, row {sequence.rows[frame]}: frame {frame} of {sequence.name!r} has no flow, one "
                             "after it has")
    starts = [frame for frame in flows if frame - 1 not in sequence.files["Flow"]]
    if len(starts) == 1:
        return [sequence]
    ends = [*starts[1:], flows[-1] + 2]
    return [_Sequence(f"{sequence.name}/{start:05d}",
                      {column: {frame: file for frame, file in files.items()
                                if start <= frame < end and (frame in sequence.files["Flow"]
                                                             or frame - 1 in sequence.files["Flow"])}
                       for column, files in sequence.files.items()})
            for start, end in zip(starts, ends)]


def _clip(sequence: _Sequence) -> Clip:
    files = {column: dict(by_frame) for column, by_frame in sequence.files.items()}
    first, last = min(files["Flow"]), max(files["Flow"]) + 1
    for column in ("Image", "GtMask"):  # those of the last frame, which no row lists
        beside = _after(files[column].get(last - 1))
        if last not in files[column] and beside is not None:
            files[column][last] = beside
    size = _size(files)
    read = {"Flow": partial(_flow, size=size), "Image": partial(_image, size=size), "GtMask": _mask,
            "FlowRGB": partial(_image, size=size)}
    readers: dict[str, Reader] = {
        kind: partial(_read_file, read[column], files[column], first, sequence.name, size)
        for column, kind in KINDS.items() if files[column]}
    names = [files["Image"].get(t, files["Flow"].get(t)) for t in range(first, last + 1)]
    stems = tuple(path.stem if path else f"{first + i:05d}" for i, path in enumerate(names))
    return Clip(sequence.name, size, readers, last - first + 1,
                frame_names=stems if len(set(stems)) == len(stems) else ())


def _after(path: Path | None) -> Path | None:
    """The file after this one in its folder, as people count; None where the numbers say that it is a later one."""
    if path is None:
        return None
    beside, number = image_files(path.parent), _number(path)
    place = beside.index(path) + 1 if path in beside else len(beside)
    return beside[place] if place < len(beside) and (number is None or _number(beside[place]) == number + 1) else None


def _size(files: Mapping[str, Mapping[int, Path]]) -> tuple[int, int]:
    """Rows and columns of a sequence: those of its masks, by which it is scored, or else of its images, or its flow."""
    for column in ("GtMask", "Image"):
        if files[column]:
            return image_size(files[column][min(files[column])])
    rows, columns = read_flow(files["Flow"][min(files["Flow"])]).flow.shape[1:]
    return rows, columns


def _read_file(read: Callable[[Path], Tensor], files: Mapping[int, Path], first: int, name: str,
               size: tuple[int, int], t: int) -> Tensor:
    if t + first not in files:
        raise LookupError(f"clip {name!r}: its table names no such file for frame {t + first}")
    path = files[t + first]
    return check_size(path, read(path), size, f"sequence {name!r}")


def _flow(path: Path, size: tuple[int, int]) -> Tensor:
    """Flow (2, H, W) of ``size``, NaN where it is not known; a smaller or larger field of this aspect is resized."""
    flow, known = read_flow(path)
    if flow.shape[1:] != size and same_aspect(tuple(flow.shape[1:]), size):
        flow, known = (values[0] for values in resize_known_flow(flow[None], known[None], size))
    return flow.where(known, torch.nan)


def _image(path: Path, size: tuple[int, int]) -> Tensor:
    """An image or a picture of flow (3, H, W), of ``size`` where it has this aspect."""
    image = read_image(path)
    return resize(image[None], size)[0] if same_aspect(tuple(image.shape[1:]), size) else image


def _mask(path: Path) -> Tensor:
    """Levels in any order count as ids in theirs, as tables of several datasets have them; 255 beside ids is void."""
    labels = read_labels(path)
    levels = labels.unique()
    if levels.max() <= 20 or (len(levels) > 2 and levels.max() == 255 and levels[-2] <= 20):
        return labels
    return torch.searchsorted(levels, labels) + int(levels[0] != 0)
