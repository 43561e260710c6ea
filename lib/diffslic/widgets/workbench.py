"""A page on which somebody drops a video and looks at what is in it: what the app shows."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import ipywidgets
import torch
from torch import Tensor

from diffslic import viz
from diffslic.widgets.explorers import frame_player, overlay_explorer
from diffslic.widgets.files import FileDrop, FileOffer
from diffslic.widgets.matches import flow_explorer

MOST_OBJECTS = 20  # with a box to hide them


class Surveyed(Protocol):
    """What was found in a video of T frames, such as a ``pipeline.Survey``."""

    frames: list[Tensor]  # T of (3, h, w) in [0, 1]
    superpixels: list[Tensor]  # T of (h, w)
    flows: list[Tensor]  # T - 1 of (2, h, w) in pixels
    masks: list[Tensor]  # T of (h, w): 0 the world, from 1 what moves
    files: list[Path]


class Surveys(Protocol):
    """What looks at a video, such as ``pipeline.survey``."""

    def __call__(self, source: Any, folder: Path, *, tell: Callable[[int, int], object]) -> Surveyed:
        """A file or folder, where files may be left, whom to tell how many frames are done, and of how many."""


def workbench(survey: Surveys, suffixes: Sequence[str], example: Any = None, longest: int = 10_000) -> ipywidgets.VBox:
    """Drop a folder of frames or a video, wait, look: superpixels, flow and masks under tabs, and files to take away.

    Args:
        survey: what looks at it. Errors that say what was wrong with the files are shown in one line.
        suffixes: of files that can be read.
        example: another source that ``survey`` takes, for somebody without a video; a button then offers it.
        longest: video, in frames, of those that come as files.
    """
    progress = ipywidgets.IntProgress(description="frames", layout=ipywidgets.Layout(visibility="hidden"))
    shown, kept = ipywidgets.VBox(), tempfile.TemporaryDirectory(prefix="diffslic-")  # as long as the page has a kernel

    def received(source: Any) -> None:
        for child in shown.children:
            _close(child)
        shown.children, button.disabled, drop.status = (), True, "loading the networks"
        progress.value, progress.layout.visibility = 0, "visible"
        folder = tempfile.TemporaryDirectory(dir=kept.name)
        try:
            found = survey(source, Path(folder.name), tell=tell)
            shown.children = (_tabs(found, folder),)
            drop.status = f"{len(found.frames)} frames: done"
        except (ValueError, OSError, LookupError, RuntimeError) as error:
            drop.status = _said(error, source)
        finally:
            progress.layout.visibility, button.disabled = "hidden", False

    def tell(done: int, total: int) -> None:
        progress.max, progress.value = total, done
        drop.status = f"frame {done} of {total}"

    drop = FileDrop(received, suffixes, "Drop a folder of frames or a video here.", most_files=longest)
    button = ipywidgets.Button(description="Show me an example", layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: received(example))
    return ipywidgets.VBox([drop, ipywidgets.HBox([*[button] * (example is not None), progress]), shown])


def _tabs(found: Surveyed, folder: tempfile.TemporaryDirectory) -> ipywidgets.Tab:
    """What was found, each kind under its tab; the folder of its files lives as long."""
    ids = torch.stack(found.masks).unique().tolist()
    objects = [thing for thing in ids if thing > 0][:MOST_OBJECTS]

    def likeness(t: int, row: int, column: int) -> Tensor:
        """How near the colours of the next frame are to those of the pixel."""
        return torch.exp(-8 * (found.frames[t + 1] - found.frames[t][:, row, column, None, None]).norm(dim=0))

    tabs = {
        "What moves": overlay_explorer(found.frames, found.masks, objects=objects if len(objects) > 1 else ()),
        "Flow": flow_explorer(found.frames, [flow[None] for flow in found.flows], likeness),
        "Superpixels": frame_player([viz.boundaries(frame, labels) for frame, labels in
                                     zip(found.frames, found.superpixels)],
                                    [f"{len(labels.unique())} superpixels" for labels in found.superpixels]),
        "Downloads": ipywidgets.VBox([FileOffer(path) for path in found.files]),
    }
    tab = ipywidgets.Tab(children=list(tabs.values()), titles=list(tabs))
    tab.folder = folder
    return tab


def _close(widget: ipywidgets.Widget) -> None:
    """A widget and all that it shows or is laid out by: what is only taken off the page stays in the kernel."""
    for name in widget.keys:
        value = getattr(widget, name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, ipywidgets.Widget):
                _close(part)
    widget.close()


def _said(error: Exception, source: Any) -> str:
    """The error in one line, without where the server keeps the files."""
    line = " ".join(str(error).split())
    return line.replace(f"{source.parent}/", "") if isinstance(source, Path) else line
