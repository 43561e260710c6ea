"""What all explorers are made of: a picture above its caption and controls, in JPEG, chosen by click or by slider."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import ipywidgets
from ipyevents import Event
from matplotlib.image import imsave

from diffslic import viz

HIGHEST = "58vh"  # of a picture, as a share of the window


class Jpeg(NamedTuple):
    """An encoded picture."""

    data: bytes
    aspect: float  # width over height


class Panel(ipywidgets.VBox):
    """A picture above its caption and controls; picture and caption are renewed whenever a slider moves.

    Args:
        draw: the picture, from the sliders' values.
        caption: its line of text.
        controls: further ones, that move a slider themselves.
        below: what stays as it is, under the controls.
    """

    def __init__(self, draw: Callable[[], Jpeg], caption: Callable[[], str], sliders: Sequence[ipywidgets.Widget],
                 *controls: ipywidgets.Widget, below: Sequence[ipywidgets.Widget] = ()) -> None:
        self._draw, self._caption, self._held = draw, caption, False
        self.clicks: Event | None = None
        first = draw()
        # Not so high that the controls would leave the window; the width follows, or clicks would miss.
        self.picture = ipywidgets.Image(value=first.data, format="jpeg",
                                        layout={"width": f"min(100%, {HIGHEST} * {first.aspect:.4f})"})
        self.text = ipywidgets.Label(caption())
        bar = ipywidgets.HBox([*controls, *sliders], layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([self.picture, self.text, bar, *below])
        for slider in sliders:
            slider.observe(self._renew, names="value")

    def _renew(self, _change: object = None) -> None:
        if not self._held:
            self.text.value, self.picture.value = self._caption(), self._draw().data

    def close(self) -> None:
        """Forget it in the kernel as well, with the clicks that it listens to; children are closed one by one."""
        if self.clicks is not None:
            self.clicks.close()
        super().close()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Sliders that move within are answered once, by one picture."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self._renew()


def chosen_by_click(panel: Panel, row: ipywidgets.IntSlider, column: ipywidgets.IntSlider, pictures: int = 1) -> Panel:
    """A panel whose sliders also follow a click on its picture, or on any of several side by side."""
    height, width = row.max + 1, column.max + 1
    panel.clicks = Event(source=panel.picture, watched_events=["click"])

    def pick(event: dict[str, Any]) -> None:
        with panel.together():
            row.value = min(max(int(event["dataY"]), 0), height - 1)
            column.value = min(max(int(event["dataX"]), 0), pictures * width - 1) % width

    panel.clicks.on_dom_event(pick)
    return panel


def pixel_sliders(height: int, width: int) -> tuple[ipywidgets.IntSlider, ipywidgets.IntSlider]:
    """Row and column of a pixel, from the middle on."""
    return (ipywidgets.IntSlider(value=height // 2, max=height - 1, description="row"),
            ipywidgets.IntSlider(value=width // 2, max=width - 1, description="column"))


def frame_slider(n_frames: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(min=0, max=n_frames - 1, description="frame")


class Player(ipywidgets.Play):
    """A play button that moves a slider at so many frames per second, over and over.

    Raises:
        ValueError: a rate that is not positive.
    """

    _link: ipywidgets.Widget | None = None

    def __init__(self, slider: ipywidgets.IntSlider, fps: float) -> None:
        if not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        super().__init__(max=slider.max, interval=round(1000 / fps), description="play the frames", repeat=True)
        self._link = ipywidgets.jslink((self, "value"), (slider, "value"))

    def close(self) -> None:
        """Forget it in the kernel as well, and the link to the slider; what plays in a browser stops first."""
        self.playing = False
        if self._link is not None:
            self._link.close()
        super().close()


def check_lengths(frames: Sequence, **others: Sequence) -> None:
    """Raise ValueError unless there is a frame, and of all others one for each or (but for masks) none."""
    if not len(frames):
        raise ValueError("there must be one frame at least, got none")
    for name, values in others.items():
        if len(values) != len(frames) and not (name != "masks" and len(values) == 0):
            raise ValueError(f"{name} must be one for each of the {len(frames)} frames, got {len(values)}")


def jpeg(image: viz.Arraylike) -> Jpeg:
    """A picture as :func:`diffslic.viz.picture` takes it, encoded."""
    buffer, picture = io.BytesIO(), viz.picture(image)
    # Without chroma subsampling, which would smear contours one pixel wide.
    imsave(buffer, picture, format="jpeg", pil_kwargs={"quality": 90, "subsampling": 0})
    return Jpeg(buffer.getvalue(), picture.shape[1] / picture.shape[0])
