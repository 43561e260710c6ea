"""Explorers for notebooks: a frame player, and masks over frames with an opacity slider.

Frames are encoded in the kernel and shown by ``ipywidgets.Image``, one at a time: a new inline figure for each step
would play at half the speed, and a saved notebook holds the current frame only. Sliders answer to the arrow keys.
"""

import io
from collections.abc import Callable, Sequence

import ipywidgets
from matplotlib.image import imsave

from diffslic import viz


def frame_player(images: Sequence[viz.Arraylike], labels: Sequence[str] = (), fps: float = 12) -> ipywidgets.VBox:
    """A video with a play button and a frame slider.

    Args:
        images: one for each frame, as ``viz.picture`` takes them; encoded once, here.
        labels: a line of text under each frame, or none.
        fps: frames per second while playing.

    Raises:
        ValueError: no image, labels for some only, or a rate that is not positive.
    """
    _check_lengths(images, labels=labels)
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    frames = [_jpeg(image) for image in images]
    slider = _frame_slider(len(frames))
    play = ipywidgets.Play(max=len(frames) - 1, interval=round(1000 / fps), description="play the frames")
    ipywidgets.jslink((play, "value"), (slider, "value"))
    return _explorer(lambda: frames[slider.value], lambda: labels[slider.value] if labels else "", [slider], play)


def overlay_explorer(frames: Sequence[viz.Arraylike], masks: Sequence[viz.Arraylike] | Callable[[int], viz.Arraylike],
                     scores: Sequence[float] = ()) -> ipywidgets.VBox:
    """Masks over frames: a slider for the frame, one for the opacity, and the frame's score under it.

    Only the frame on show is drawn and encoded.

    Args:
        frames: one for each frame, as ``viz.picture`` takes them.
        masks: labels (H, W) for each frame, or a function from the frame's index to them.
        scores: one for each frame, such as its region similarity J, or none.

    Raises:
        ValueError: no frame, or masks or scores for some only.
    """
    _check_lengths(frames, scores=scores)
    if not callable(masks):
        _check_lengths(frames, masks=masks)
    mask_of = masks if callable(masks) else masks.__getitem__
    frame = _frame_slider(len(frames))
    opacity = ipywidgets.FloatSlider(value=0.5, min=0, max=1, step=0.05, description="opacity")
    return _explorer(lambda: _jpeg(viz.overlay(frames[frame.value], mask_of(frame.value), opacity.value)),
                     lambda: f"score {scores[frame.value]:.3f}" if len(scores) else "", [frame, opacity])


def _explorer(draw: Callable[[], bytes], caption: Callable[[], str], sliders: Sequence[ipywidgets.Widget],
              *controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """A picture above its caption and controls; both are renewed whenever a slider moves."""
    shown, text = ipywidgets.Image(format="jpeg"), ipywidgets.Label()

    def renew(_change: object = None) -> None:
        shown.value, text.value = draw(), caption()

    for slider in sliders:
        slider.observe(renew, names="value")
    renew()
    return ipywidgets.VBox([shown, text, ipywidgets.HBox([*controls, *sliders])])


def _frame_slider(n_frames: int) -> ipywidgets.IntSlider:
    return ipywidgets.IntSlider(min=0, max=n_frames - 1, description="frame")


def _check_lengths(frames: Sequence, **others: Sequence) -> None:
    if not len(frames):
        raise ValueError("there must be one frame at least, got none")
    for name, values in others.items():
        if len(values) != len(frames) and not (name != "masks" and len(values) == 0):
            raise ValueError(f"{name} must be one for each of the {len(frames)} frames, got {len(values)}")


def _jpeg(image: viz.Arraylike) -> bytes:
    buffer = io.BytesIO()
    # Without chroma subsampling, which would smear contours one pixel wide.
    imsave(buffer, viz.picture(image), format="jpeg", pil_kwargs={"quality": 90, "subsampling": 0})
    return buffer.getvalue()
