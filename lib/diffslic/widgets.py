"""Explorers for notebooks: a frame player, masks over frames with an opacity slider, flow, depth, and superpixels.

Frames are encoded in the kernel and shown by ``ipywidgets.Image``, one at a time: a new inline figure for each step
would play at half the speed, and a saved notebook holds the current frame only. Sliders answer to the arrow keys;
where a picture can be clicked, sliders do the same from the keyboard.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import ipywidgets
import numpy as np
import torch
from ipyevents import Event
from matplotlib.image import imsave
from torch import Tensor

from diffslic import viz


class SoftSuperpixels(Protocol):
    """What the superpixel explorer shows, such as a ``superpixels.SoftSLIC`` of one image."""

    affinity: Tensor  # (1, 9, H, W)
    candidates: Tensor  # (9, H, W) superpixels, -1 for none
    labels: Tensor  # (1, H, W)

    def pool(self, x: Tensor) -> Tensor: ...
    def unpool(self, superpixels: Tensor) -> Tensor: ...


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


def layer_explorer(image: viz.Arraylike, alphas: Sequence[viz.Arraylike]) -> ipywidgets.VBox:
    """The layers of an image one by one: in other colours within the image, or alone on white.

    Args:
        image: as ``viz.picture`` takes it.
        alphas: of each layer (H, W) in [0, 1].

    Raises:
        ValueError: no layer.
    """
    if not len(alphas) or alphas[0].ndim != 2:
        raise ValueError("alphas must be those of one layer at least, (H, W) each")
    shares = [np.asarray(alpha.detach().cpu() if isinstance(alpha, Tensor) else alpha) for alpha in alphas]
    layer = ipywidgets.IntSlider(value=1, min=1, max=len(alphas), description="layer")
    turn = ipywidgets.FloatSlider(value=0.4, min=0, max=1, step=0.02, description="hue")
    saturation = ipywidgets.FloatSlider(value=1.5, min=0, max=3, step=0.1, description="saturation")
    view = ipywidgets.Dropdown(options=["recoloured", "alone"], description="show")

    def draw() -> bytes:
        alpha = shares[layer.value - 1]
        if view.value == "recoloured":
            return _jpeg(viz.recolor(image, alpha, turn.value, saturation.value))
        return _jpeg((alpha[..., None] * viz.picture(image) + 255 * (1 - alpha[..., None]) + 0.5).astype(np.uint8))

    def text() -> str:
        return f"layer {layer.value} has {float(shares[layer.value - 1].mean()):.1%} of the image"

    return _explorer(draw, text, [layer, turn, saturation, view])


def flow_explorer(frames: Sequence[viz.Arraylike], flows: Sequence[Tensor],
                  likeness: Callable[[int, int, int], Tensor]) -> ipywidgets.VBox:
    """A frame or its flow, and beside it how alike the next frame is to one pixel.

    A click on a pixel, or the row and column sliders, chooses it; the flow's colours have one scale for all frames.

    Args:
        frames: T images of one size, as ``viz.picture`` takes them.
        flows: (2, H, W) in pixels from each frame to the next, T - 1.
        likeness: frame number, row and column to a map (H, W) over the next frame, of any scale. Results are kept.

    Raises:
        ValueError: no pair of frames, or not one flow for each.
    """
    if len(frames) < 2 or len(flows) != len(frames) - 1:
        raise ValueError(f"flows must be one less than frames, two at least, got {len(flows)} and {len(frames)}")
    height, width = flows[0].shape[-2:]
    largest = max(float(flow.norm(dim=0).max()) for flow in flows)
    likeness_of = lru_cache(maxsize=64)(likeness)
    frame = _frame_slider(len(flows))
    view = ipywidgets.Dropdown(options=["frame", "flow"], description="left")
    row = ipywidgets.IntSlider(value=height // 2, max=height - 1, description="row")
    column = ipywidgets.IntSlider(value=width // 2, max=width - 1, description="column")

    def draw() -> bytes:
        t, pixel = frame.value, (row.value, column.value)
        shown = frames[t] if view.value == "frame" else viz.flow_to_color(flows[t], largest)
        field = likeness_of(t, *pixel).detach().cpu()
        field = (field - field.min()) / (field.max() - field.min()).clamp(min=1e-9)
        u, v = (round(float(value)) for value in flows[t][:, pixel[0], pixel[1]])
        there = min(max(pixel[0] + v, 0), height - 1), min(max(pixel[1] + u, 0), width - 1)
        return _jpeg(np.concatenate([viz.tint(shown, field * 0, pixel), viz.tint(frames[t + 1], field, there)], axis=1))

    def text() -> str:
        u, v = flows[frame.value][:, row.value, column.value].tolist()
        return f"row {row.value}, column {column.value}: moves {u:+.1f} px to the right and {v:+.1f} px down"

    return _chosen_by_click(_explorer(draw, text, [frame, view, row, column]), row, column, pictures=2)


def motion_explorer(flow_of: Callable[[Tensor], Tensor], names: Sequence[str], largest: float = 4) -> ipywidgets.VBox:
    """Parametric motion: a slider in pixels for each factor of u and of v, and the colours of the flow that they make.

    Args:
        flow_of: factors (1, 1, F, 2) to flow (1, 1, 2, H, W) in pixels.
        names: F, of the monomials.
        largest: pixels, the end of the sliders and the motion of the strongest colour.
    """
    sliders = [ipywidgets.FloatSlider(value=float(component == "u" and i == 0), min=-largest, max=largest, step=0.1,
                                      description=f"{component}: {name}")
               for component in "uv" for i, name in enumerate(names)]

    def flow() -> Tensor:
        return flow_of(torch.tensor([slider.value for slider in sliders]).reshape(1, 1, 2, -1).transpose(-1, -2))[0, 0]

    def text() -> str:
        length = flow().norm(dim=0)
        return f"mean motion {float(length.mean()):.2f} px, largest {float(length.max()):.2f} px"

    return _explorer(lambda: _jpeg(viz.flow_to_color(flow(), largest)), text, sliders)


def depth_explorer(first: Tensor, second: Tensor, flow: Tensor, depth: Tensor, sigma: Tensor,
                   places: Callable[[tuple[int, int], Tensor], Tensor]) -> ipywidgets.VBox:
    """Two frames: of a pixel of the first, its epipolar line in the second, its match, and how sure its depth is.

    A click on a pixel, or the row and column sliders, chooses it. On the line, dark is anywhere, bright is within two
    standard deviations of the depth; a yellow square is where the flow ends.

    Args:
        first, second: (3, H, W) images.
        flow: (2, H, W) in pixels. depth, sigma: (H, W) in metres, NaN where there is none.
        places: pixel (row, column) and depths (M,) to places (M, 2) in the second frame, x first.
    """
    first, second, flow, depth, sigma = (x.detach().cpu() for x in (first, second, flow, depth, sigma))
    height, width = depth.shape
    view = ipywidgets.Dropdown(options=["frame", "depth"], description="left")
    row = ipywidgets.IntSlider(value=height // 2, max=height - 1, description="row")
    column = ipywidgets.IntSlider(value=width // 2, max=width - 1, description="column")
    known = depth[depth.isfinite()]
    nearest = 0.3 * float(known.quantile(0.01)) if len(known) else 1.0  # a single outlier would stretch the line
    nothing, left_views = depth.new_zeros(depth.shape), {"frame": first, "depth": viz.depth_to_color(depth)}

    def draw() -> bytes:
        pixel = row.value, column.value
        z, spread = float(depth[pixel]), float(sigma[pixel])
        # Even steps of inverse depth are about even steps along the line.
        line = places(pixel, 1 / torch.linspace(0, 1 / nearest, 4 * width))
        right = viz.dots(second, line, (70, 0, 110))
        if z == z:
            near, far = max(z - 2 * spread, 0.1 * z), z + 2 * spread
            right = viz.dots(right, places(pixel, 1 / torch.linspace(1 / far, 1 / near, 2 * width)), (255, 0, 160), 3)
        u, v = flow[:, pixel[0], pixel[1]].tolist()
        right = viz.dots(right, np.array([[pixel[1] + u, pixel[0] + v]]), (255, 220, 0), 5)
        return _jpeg(np.concatenate([viz.tint(left_views[view.value], nothing, pixel), right], axis=1))

    def text() -> str:
        z, spread = float(depth[row.value, column.value]), float(sigma[row.value, column.value])
        found = f"{z:.2f} m, give or take {spread:.2f} m" if z == z else "no depth here"
        return f"row {row.value}, column {column.value}: {found}"

    return _chosen_by_click(_explorer(draw, text, [view, row, column]), row, column, pictures=2)


def superpixel_explorer(image: Tensor, cluster: Mapping[str, Callable[[int, float, int], SoftSuperpixels]],
                        max_count: int = 1000) -> ipywidgets.VBox:
    """Superpixels of one image: their number, compactness and iterations, by several features, hard or soft.

    A click on a pixel, or the row and column sliders, colours its nine candidates by their affinity.

    Args:
        image: (3, H, W) in [0, 1].
        cluster: by the name of the features, a function of the number of superpixels, the compactness and the number
            of iterations. Results are kept: going back to a setting computes nothing.
        max_count: of superpixels.
    """
    image = image.detach().cpu()
    height, width = image.shape[-2:]
    soft_of = lru_cache(maxsize=64)(lambda name, *setting: cluster[name](*setting))
    features = ipywidgets.Dropdown(options=list(cluster), description="features")
    view = ipywidgets.Dropdown(options=["boundaries", "mean colours, hard", "mean colours, soft"], description="view")
    count = ipywidgets.IntSlider(value=min(100, max_count), min=4, max=max_count, description="superpixels",
                                 continuous_update=False)
    compactness = ipywidgets.FloatLogSlider(value=1, min=-1, max=1, step=0.1, description="compactness",
                                            continuous_update=False)
    iterations = ipywidgets.IntSlider(value=5, min=1, max=20, description="iterations", continuous_update=False)
    row = ipywidgets.IntSlider(value=height // 2, max=height - 1, description="row")
    column = ipywidgets.IntSlider(value=width // 2, max=width - 1, description="column")
    controls = [features, view, count, compactness, iterations, row, column]
    for control in controls:
        control.style.description_width = "initial"  # names longer than the default would be cut

    def soft() -> SoftSuperpixels:
        return soft_of(features.value, count.value, compactness.value, iterations.value)

    def draw() -> bytes:
        found, (y, x) = soft(), (row.value, column.value)
        labels = found.labels[0].cpu()
        if view.value == "boundaries":
            shown = viz.boundaries(image, labels)
        elif view.value.endswith("hard"):
            shown = viz.mean_color(image, labels)
        else:
            at = image[None].to(found.affinity)
            shown = viz.picture(found.unpool(found.pool(at))[0].clamp(0, 1))
        weight = np.zeros(labels.shape, dtype=np.float32)
        for candidate, affinity in zip(found.candidates[:, y, x].tolist(), found.affinity[0, :, y, x].tolist()):
            weight[labels.numpy() == candidate] = affinity
        return _jpeg(viz.tint(shown, weight, (y, x)))

    def caption() -> str:
        found = soft()
        nine = found.affinity[0, :, row.value, column.value].tolist()
        rows = " / ".join(" ".join(f"{value:.2f}" for value in nine[k:k + 3]) for k in (0, 3, 6))
        return f"{found.labels.unique().numel()} superpixels; nine affinities of ({row.value}, {column.value}): {rows}"

    return _chosen_by_click(_explorer(draw, caption, controls), row, column)


def _explorer(draw: Callable[[], bytes], caption: Callable[[], str], sliders: Sequence[ipywidgets.Widget],
              *controls: ipywidgets.Widget) -> ipywidgets.VBox:
    """A picture above its caption and controls; both are renewed whenever a slider moves."""
    shown, text = ipywidgets.Image(format="jpeg"), ipywidgets.Label()

    def renew(_change: object = None) -> None:
        shown.value, text.value = draw(), caption()

    for slider in sliders:
        slider.observe(renew, names="value")
    renew()
    bar = ipywidgets.HBox([*controls, *sliders], layout=ipywidgets.Layout(flex_flow="row wrap"))
    return ipywidgets.VBox([shown, text, bar])


def _chosen_by_click(explorer: ipywidgets.VBox, row: ipywidgets.IntSlider, column: ipywidgets.IntSlider,
                     pictures: int = 1) -> ipywidgets.VBox:
    """An explorer whose sliders also follow a click on its picture, or on any of several side by side."""
    height, width = row.max + 1, column.max + 1
    clicks = Event(source=explorer.children[0], watched_events=["click"])

    def pick(event: dict[str, Any]) -> None:
        row.value = min(max(int(event["dataY"]), 0), height - 1)
        column.value = min(max(int(event["dataX"]), 0), pictures * width - 1) % width

    clicks.on_dom_event(pick)
    return explorer


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
