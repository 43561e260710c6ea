"""Explorers of one picture at a time: a video, masks over it, layers, motions as numbers, superpixels."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import ipywidgets
import numpy as np
import torch
from torch import Tensor

from diffslic import viz
from diffslic.widgets.panel import (
    Jpeg,
    Panel,
    Player,
    check_lengths,
    chosen_by_click,
    frame_slider,
    jpeg,
    pixel_sliders,
)

KEPT = 256  # pictures of an explorer that are not drawn again


class SoftSuperpixels(Protocol):
    """What the superpixel explorer shows, such as a ``superpixels.SoftSLIC`` of one image."""

    affinity: Tensor  # (1, 9, H, W)
    candidates: Tensor  # (9, H, W) superpixels, -1 for none
    labels: Tensor  # (1, H, W)

    def pool(self, x: Tensor) -> Tensor: ...
    def unpool(self, superpixels: Tensor) -> Tensor: ...


def frame_player(images: Sequence[viz.Arraylike], labels: Sequence[str] = (), fps: float = 15) -> Panel:
    """A video with a play button and a frame slider.

    Args:
        images: one for each frame, as ``viz.picture`` takes them; encoded once, here.
        labels: a line of text under each frame, or none.
        fps: frames per second while playing.

    Raises:
        ValueError: no image, labels for some only, or a rate that is not positive.
    """
    check_lengths(images, labels=labels)
    frames, slider = [jpeg(image) for image in images], frame_slider(len(images))
    return Panel(lambda: frames[slider.value], lambda: labels[slider.value] if labels else "", [slider],
                 Player(slider, fps))


def overlay_explorer(frames: Sequence[viz.Arraylike], masks: Sequence[viz.Arraylike] | Callable[[int], viz.Arraylike],
                     scores: Sequence[float] = (), objects: Sequence[int] = (), fps: float = 15) -> Panel:
    """Masks over frames: a play button, sliders for frame and opacity, a box for each object, the frame's score.

    A frame is drawn and encoded when it is first on show, and kept.

    Args:
        frames: one for each frame, as ``viz.picture`` takes them.
        masks: labels (H, W) for each frame, or a function from the frame's index to them.
        scores: one for each frame, such as its region similarity J, or none.
        objects: labels that get a box to hide them. The others are always shown.
        fps: frames per second while playing.

    Raises:
        ValueError: no frame, masks or scores for some only, or a rate that is not positive.
    """
    check_lengths(frames, scores=scores)
    if not callable(masks):
        check_lengths(frames, masks=masks)
    mask_of = lru_cache(maxsize=1)(masks) if callable(masks) else masks.__getitem__
    frame, colours = frame_slider(len(frames)), viz.object_colors()
    opacity = ipywidgets.FloatSlider(value=0.5, min=0, max=1, step=0.05, description="opacity")
    boxes = {thing: ipywidgets.Checkbox(value=True, description=f"object {thing}", indent=False,
                                        layout=ipywidgets.Layout(width="7em"),
                                        style={"background": "rgb({}, {}, {}, 0.6)".format(*colours[thing % 256])})
             for thing in objects}

    @lru_cache(maxsize=max(KEPT, 2 * len(frames)))  # or playing over and over would find none of them
    def drawn(t: int, strength: float, hidden: tuple[int, ...]) -> Jpeg:
        labels = torch.as_tensor(mask_of(t)).cpu().long()
        if hidden:
            labels = torch.where(torch.isin(labels, torch.tensor(hidden)), 0, labels)
        return jpeg(viz.overlay(frames[t], labels, strength))

    def draw() -> Jpeg:
        return drawn(frame.value, opacity.value, tuple(thing for thing, box in boxes.items() if not box.value))

    return Panel(draw, lambda: f"score {scores[frame.value]:.3f}" if len(scores) else "",
                 [frame, opacity, *boxes.values()], Player(frame, fps))


def layer_explorer(image: viz.Arraylike, alphas: Sequence[viz.Arraylike]) -> Panel:
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

    def draw() -> Jpeg:
        alpha = shares[layer.value - 1]
        if view.value == "recoloured":
            return jpeg(viz.recolor(image, alpha, turn.value, saturation.value))
        return jpeg((alpha[..., None] * viz.picture(image) + 255 * (1 - alpha[..., None]) + 0.5).astype(np.uint8))

    def text() -> str:
        return f"layer {layer.value} has {float(shares[layer.value - 1].mean()):.1%} of the image"

    return Panel(draw, text, [layer, turn, saturation, view])


def motion_explorer(flow_of: Callable[[Tensor], Tensor], names: Sequence[str], largest: float = 4) -> Panel:
    """Parametric motion: a slider in pixels for each factor of u and of v, and the colours of the flow that they make.

    Args:
        flow_of: factors (1, 1, F, 2) to flow (1, 1, 2, H, W) in pixels.
        names: F, of the monomials.
        largest: pixels, the end of the sliders and the motion of the strongest colour.
    """
    sliders = [ipywidgets.FloatSlider(value=float(component == "u" and i == 0), min=-largest, max=largest, step=0.1,
                                      description=f"{component}: {name}")
               for component in "uv" for i, name in enumerate(names)]

    @lru_cache(maxsize=1)
    def flow(*factors: float) -> Tensor:
        return flow_of(torch.tensor(factors).reshape(1, 1, 2, -1).transpose(-1, -2))[0, 0]

    def values() -> list[float]:
        return [slider.value for slider in sliders]

    def text() -> str:
        length = flow(*values()).norm(dim=0)
        return f"mean motion {float(length.mean()):.2f} px, largest {float(length.max()):.2f} px"

    return Panel(lambda: jpeg(viz.flow_to_color(flow(*values()), largest)), text, sliders)


def superpixel_explorer(image: Tensor, cluster: Mapping[str, Callable[[int, float, int], SoftSuperpixels]],
                        max_count: int = 1000) -> Panel:
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
    soft_of = lru_cache(maxsize=64)(lambda name, *how: cluster[name](*how))
    features = ipywidgets.Dropdown(options=list(cluster), description="features")
    view = ipywidgets.Dropdown(options=["boundaries", "mean colours, hard", "mean colours, soft"], description="view")
    count = ipywidgets.IntSlider(value=min(100, max_count), min=4, max=max_count, description="superpixels",
                                 continuous_update=False)
    compactness = ipywidgets.FloatLogSlider(value=1, min=-1, max=1, step=0.1, description="compactness",
                                            continuous_update=False)
    iterations = ipywidgets.IntSlider(value=5, min=1, max=20, description="iterations", continuous_update=False)
    row, column = pixel_sliders(height, width)
    controls = [features, view, count, compactness, iterations, row, column]
    for control in controls:
        control.style.description_width = "initial"  # names longer than the default would be cut

    def setting() -> tuple[str, int, float, int]:
        return features.value, count.value, compactness.value, iterations.value

    @lru_cache(maxsize=1)
    def shown(name: str, *how: Any) -> tuple[viz.Picture, int]:
        """A view without what depends on the pixel, and how many superpixels there are."""
        found = soft_of(*how)
        labels = found.labels[0].cpu()
        number = labels.unique().numel()
        if name == "boundaries":
            return viz.boundaries(image, labels), number
        if name.endswith("hard"):
            return viz.mean_color(image, labels), number
        at = image[None].to(found.affinity)
        return viz.picture(found.unpool(found.pool(at))[0].clamp(0, 1)), number

    def draw() -> Jpeg:
        found, (y, x) = soft_of(*setting()), (row.value, column.value)
        labels = found.labels[0].cpu().numpy()
        weight = np.zeros(labels.shape, dtype=np.float32)
        for candidate, affinity in zip(found.candidates[:, y, x].tolist(), found.affinity[0, :, y, x].tolist()):
            weight[labels == candidate] = affinity
        return jpeg(viz.tint(shown(view.value, *setting())[0], weight, (y, x)))

    def caption() -> str:
        nine = soft_of(*setting()).affinity[0, :, row.value, column.value].tolist()
        rows = " / ".join(" ".join(f"{value:.2f}" for value in nine[k:k + 3]) for k in (0, 3, 6))
        number = shown(view.value, *setting())[1]
        return f"{number} superpixels; nine affinities of ({row.value}, {column.value}): {rows}"

    return chosen_by_click(Panel(draw, caption, controls), row, column)
