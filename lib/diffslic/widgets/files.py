"""Files between a browser and the kernel: a field to drop them on, and buttons to take them away.

ipywidgets has a button for uploads, which takes neither a drop nor a folder and sends a file as one message; servers
refuse those of more than some megabytes. Here files cross in pieces, each answered before the next is sent.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import anywidget
import traitlets

PIECE = 1 << 20  # bytes of a message
MEGABYTES = 1024  # that may be dropped at once
FRAMES = "frames"  # the folder within a folder that is taken where there are several


class FileDrop(anywidget.AnyWidget):
    """A field onto which a folder or some files are dropped; two buttons do the same from the keyboard.

    Of a folder the files at its top are taken, or those of ``frames`` within it. What came before is removed when new
    files come, and all of it with the widget.

    Args:
        received: called with the path of what has come: that of a single file, or of the folder that holds them.
        suffixes: of files that are taken, such as ".png"; others are left where they are.
        label: the line on the field.
        most: megabytes that are taken at once. most_files: the same in files.
    """

    _esm = Path(__file__).with_name("files.js")
    role = traitlets.Unicode("drop").tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)

    def __init__(self, received: Callable[[Path], object], suffixes: Sequence[str], label: str,
                 most: float = MEGABYTES, most_files: int = 10_000) -> None:
        super().__init__(label=label)
        self._received, self._most, self._most_files = received, most, most_files
        self._suffixes = tuple(suffix.lower() for suffix in suffixes)
        self._folder = tempfile.TemporaryDirectory(prefix="diffslic-")
        self._missing: dict[int, int] = {}  # bytes that are still to come, by the number of the file
        self._names: dict[int, str] = {}
        self.on_msg(lambda _, content, buffers: self._take(content, buffers))

    def _take(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """A message of the browser, which waits for the answer before it sends the next."""
        kind, arrived = content.get("kind"), None
        answer: dict[str, Any] = {"kind": "next", "number": content.get("number"), "goes_on": True}
        try:
            if kind == "begin":
                answer["take"] = self._begin(content["paths"], content["sizes"])
            elif kind == "piece":
                self._piece(content["index"], buffers[0])
            elif kind == "end":
                arrived = self._end()
            else:
                raise ValueError(f"no message of a browser: {kind!r}")
        except OSError as error:
            answer["goes_on"], self.status = False, f"the files could not be written: {error.strerror}"
        except (ValueError, LookupError, TypeError) as error:
            answer["goes_on"], self.status = False, " ".join(str(error).split())
        if not answer["goes_on"]:
            self._missing = {}
        self.send(answer)
        if arrived is not None:
            self._received(arrived)

    @property
    def _into(self) -> Path:
        return Path(self._folder.name) / "arrived"

    def _begin(self, paths: Sequence[str], sizes: Sequence[int]) -> list[int]:
        """The numbers of the files to be sent."""
        self._missing = {}
        chosen = self._chosen([PurePosixPath(path) for path in paths])
        if not all(isinstance(sizes[i], int) and sizes[i] >= 0 for i in chosen):
            raise ValueError("sizes of files must be numbers of bytes")
        total = sum(sizes[i] for i in chosen)
        if len(chosen) > self._most_files or total > self._most * 1e6:
            raise ValueError(f"{len(chosen)} files of {_size(total)} are more than is taken at once, "
                             f"{self._most_files} of {self._most:g} MB")
        shutil.rmtree(self._into, ignore_errors=True)
        self._into.mkdir()
        self._names = {i: PurePosixPath(paths[i]).name for i in chosen}
        self._missing = {i: sizes[i] for i in chosen}
        return chosen

    def _chosen(self, paths: Sequence[PurePosixPath]) -> list[int]:
        wanted = [i for i, path in enumerate(paths) if path.suffix.lower() in self._suffixes
                  and path.name.isprintable() and "\\" not in path.name and not path.name.startswith(".")]
        if not wanted:
            raise ValueError(f"nothing that can be read: files must end in {', '.join(self._suffixes)}")
        folders = {paths[i].parent for i in wanted}
        top = min(folders, key=lambda folder: len(folder.parts))
        frames = [folder for folder in folders if folder.name.lower() == FRAMES]
        if len(frames) == 1:
            top = frames[0]
        elif sum(len(folder.parts) == len(top.parts) for folder in folders) > 1:
            names = ", ".join(sorted(folder.name for folder in folders))
            raise ValueError(f"there are files in several folders ({names}): drop one of them")
        chosen = [i for i in wanted if paths[i].parent == top]
        if len({paths[i].name for i in chosen}) < len(chosen):
            raise ValueError("two files have the same name: drop one folder at a time")
        return chosen

    def _piece(self, index: int, piece: memoryview) -> None:
        if len(piece) > self._missing.get(index, -1):
            raise ValueError("more came than was announced")
        with (self._into / self._names[index]).open("ab") as file:
            file.write(piece)
        self._missing[index] -= len(piece)
        self.status = f"receiving, {_size(sum(self._missing.values()))} to come"

    def _end(self) -> Path:
        if not self._missing or any(self._missing.values()):
            raise ValueError("the files did not come whole: drop them again")
        count, self._missing = len(self._missing), {}
        self.status = f"{count} file{'s' * (count > 1)} received"
        return self._into / next(iter(self._names.values())) if count == 1 else self._into


class FileOffer(anywidget.AnyWidget):
    """A button that brings a file of the kernel's machine to the reader's.

    Args:
        path: of the file.

    Raises:
        FileNotFoundError: there is none.
    """

    _esm = Path(__file__).with_name("files.js")
    role = traitlets.Unicode("offer").tag(sync=True)
    name = traitlets.Unicode().tag(sync=True)
    size = traitlets.Unicode().tag(sync=True)

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no file {path} to offer")
        super().__init__(name=path.name, size=_size(path.stat().st_size))
        self._path = path
        self.on_msg(lambda *_: self._bring())

    def _bring(self) -> None:
        try:
            with self._path.open("rb") as file:
                while piece := file.read(PIECE):
                    self.send({"kind": "piece"}, [piece])
        except OSError:
            self.send({"kind": "gone"})
        else:
            self.send({"kind": "end"})


def _size(count: float) -> str:
    """Bytes, to be read by people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
