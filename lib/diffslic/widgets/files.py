"""Files between a browser and the kernel: a field to drop them on, and buttons to take them away.

ipywidgets has a button for uploads, which takes neither a drop nor a folder and sends a file as one message; servers
refuse those of more than some megabytes. Here files cross in pieces.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets

PIECE = 1 << 20  # bytes of a message
MEGABYTES = 1024  # that may be dropped at once


class FileDrop(anywidget.AnyWidget):
    """A field onto which a folder or some files are dropped; two buttons do the same from the keyboard.

    Args:
        received: called with the path of what has come: that of a single file, or of the folder that holds them.
        suffixes: of files that are taken, such as ".png"; others in a folder are left where they are.
        label: the line on the field.
        most: megabytes that are taken at once.
    """

    _esm = Path(__file__).with_name("files.js")
    role = traitlets.Unicode("drop").tag(sync=True)
    label = traitlets.Unicode().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    suffixes = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(self, received: Callable[[Path], object], suffixes: Sequence[str], label: str,
                 most: float = MEGABYTES) -> None:
        super().__init__(label=label, suffixes=[suffix.lower() for suffix in suffixes])
        self._received, self._most = received, most
        self._folder = tempfile.TemporaryDirectory(prefix="diffslic-")
        self._names: list[str] = []
        self._written = self._total = 0
        self._arrivals = 0
        self.on_msg(lambda _, content, buffers: self._take(content, buffers))

    @property
    def _into(self) -> Path:
        return Path(self._folder.name) / f"{self._arrivals:03}"

    def _take(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> None:
        """A message of the browser; it waits for the answer before it sends the next."""
        problem = {"begin": self._begin, "piece": self._piece, "end": lambda *_: ""}[content["kind"]](content, buffers)
        if problem:
            self.status = problem
        self.send({"kind": "next", "goes_on": not problem})
        if content["kind"] == "end":
            self.status = f"{len(self._names)} file{'s' * (len(self._names) > 1)} received"
            self._received(self._into / self._names[0] if len(self._names) == 1 else self._into)

    def _begin(self, content: dict[str, Any], _: object) -> str:
        names, self._total, self._written = content["names"], content["total"], 0
        if not names:
            return f"nothing that can be read: files must end in {', '.join(self.suffixes)}"
        if twice := next((name for name in names if names.count(name) > 1), ""):
            return f"two files are called {twice}: drop one folder at a time"
        if other := next((name for name in names if name != Path(name).name), ""):
            return f"{other} is no file's name"
        if self._total > self._most * 1e6:
            return f"{_size(self._total)} are more than the {self._most:g} MB that are taken at once"
        self._names, self._arrivals = names, self._arrivals + 1
        self._into.mkdir()
        return ""

    def _piece(self, content: dict[str, Any], buffers: Sequence[memoryview]) -> str:
        if content["name"] not in self._names:
            return f"{content['name']} was not announced"
        self._written += len(buffers[0])
        if self._written > self._total:
            return f"more came than was announced: {_size(self._written)} of {_size(self._total)}"
        with (self._into / content["name"]).open("ab") as file:
            file.write(buffers[0])
        self.status = f"{_size(self._written)} of {_size(self._total)} received"
        return ""


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
        with self._path.open("rb") as file:
            while piece := file.read(PIECE):
                self.send({"kind": "piece"}, [piece])
        self.send({"kind": "end"})


def _size(count: float) -> str:
    """Bytes, to be read by people."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
