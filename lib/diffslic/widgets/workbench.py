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

MOST_OBJECTS = 20


class Surveyed(Protocol):
    """What was found in a video of T frames, such as a ``pipeline.Survey``."""

    frames: list[Tensor]  # T of (3, h, w) in [0, 1]
    superpixels: list[Tensor]  # T of (h, w)
    flows: list[Tensor]  # T - 1 of (2, h, w) in pixels
    masks: list[Tensor]  # T of (h, w): 0 the world, from 1 what moves
    files: list[Path]


Tell = Callable[[int, int], object]  # frames that are done, and of how many


class Surveys(Protocol):
    """What looks at a video, such as ``pipeline.survey``."""

    def __call__(self, source: Any, folder: Path, *, objects: bool, tell: Tell) -> Surveyed:
        """A file or folder, where files may be left, whether to tell objects apart, whom to tell of the progress."""


def workbench(survey: Surveys, suffixes: Sequence[str], example: Any = None) -> ipywidgets.VBox:
    """Drop a folder of frames or a video, wait, look: superpixels, flow and masks under tabs, and files to take away.

    Args:
        survey: what looks at it. ValueError and OSError of it are shown in one line.
        suffixes: of files that can be read.
        example: another source that ``survey`` takes, for somebody without a video; a button then offers it.
    """
    apart = ipywidgets.Checkbox(description="tell objects apart", indent=False)
    progress = ipywidgets.IntProgress(layout=ipywidgets.Layout(visibility="hidden"))
    message, shown = ipywidgets.Label(), ipywidgets.VBox()
    kept = tempfile.TemporaryDirectory(prefix="diffslic-")  # as long as the page has a kernel

    def tell(done: int, total: int) -> None:
        progress.max, progress.value = total, done
        message.value = f"frame {done} of {total}"

    def received(source: Any) -> None:
        shown.children = ()
        progress.value, progress.layout.visibility, message.value = 0, "visible", "loading the networks"
        try:
            found = survey(source, Path(tempfile.mkdtemp(dir=kept.name)), objects=apart.value, tell=tell)
            shown.children = (_tabs(found),)
            message.value = f"{len(found.frames)} frames: done"
        except (ValueError, OSError) as error:
            message.value = " ".join(str(error).split())
        progress.layout.visibility = "hidden"

    drop = FileDrop(received, suffixes, "Drop a folder of frames or a video here.")

    button = ipywidgets.Button(description="Show me an example", layout=ipywidgets.Layout(width="auto"))
    button.on_click(lambda _: received(example))
    bar = ipywidgets.HBox([apart, *[button] * (example is not None), progress, message])
    return ipywidgets.VBox([drop, bar, shown])


def _tabs(found: Surveyed) -> ipywidgets.Tab:
    ids = torch.stack(found.masks).unique().tolist()
    objects = [thing for thing in ids if thing > 0][:MOST_OBJECTS]
    counts = [f"{len(labels.unique())} superpixels" for labels in found.superpixels]

    def likeness(t: int, row: int, column: int) -> Tensor:
        """How near the colours of the next frame are to those of the pixel."""
        return torch.exp(-8 * (found.frames[t + 1] - found.frames[t][:, row, column, None, None]).norm(dim=0))

    tabs = {
        "What moves": overlay_explorer(found.frames, found.masks, objects=objects if len(objects) > 1 else ()),
        "Flow": flow_explorer(found.frames, [flow[None] for flow in found.flows], likeness),
        "Superpixels": frame_player([viz.boundaries(frame, labels) for frame, labels in
                                     zip(found.frames, found.superpixels)], counts),
        "Downloads": ipywidgets.VBox([FileOffer(path) for path in found.files]),
    }
    return ipywidgets.Tab(children=list(tabs.values()), titles=list(tabs))
