"""Explorers driven through their widgets: moving a slider changes the picture that the browser is sent."""

import io
import json
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from ipyevents import Event
from ipywidgets.embed import dependency_state, embed_data
from matplotlib.image import imread

from diffslic import viz, widgets
from diffslic.widgets import (
    depth_explorer,
    flow_explorer,
    frame_player,
    layer_explorer,
    overlay_explorer,
    panel,
    superpixel_explorer,
)

FRAMES = [torch.full((3, 24, 40), level) for level in (0.1, 0.5, 0.9)]
MASKS = [torch.zeros(24, 40, dtype=torch.int64) for _ in FRAMES]
for step, mask in enumerate(MASKS):
    mask[6:18, 4 + 8 * step:16 + 8 * step] = 1


def parts(box: ipywidgets.VBox) -> tuple[ipywidgets.Image, ipywidgets.Label, dict[str, ipywidgets.Widget]]:
    """The picture, the caption, and the controls by their description."""
    image, caption, controls, *_ = box.children
    return image, caption, {control.description: control for control in controls.children}


def decoded(image: ipywidgets.Image) -> np.ndarray:
    return imread(io.BytesIO(image.value), format="jpeg").astype(int)


def test_the_player_shows_the_frame_of_its_slider() -> None:
    image, caption, controls = parts(frame_player(FRAMES, labels=["one", "two", "three"]))
    assert np.abs(decoded(image) - viz.picture(FRAMES[0])).max() < 4
    assert caption.value == "one"
    controls["frame"].value = 2
    assert np.abs(decoded(image) - viz.picture(FRAMES[2])).max() < 4
    assert caption.value == "three"


def test_play_and_slider_cover_the_video_at_its_rate() -> None:
    _, _, controls = parts(frame_player(FRAMES, fps=12))
    play, slider = controls["play the frames"], controls["frame"]
    assert isinstance(play, ipywidgets.Play)
    assert (play.min, play.max, play.interval) == (0, 2, 83)
    assert (slider.min, slider.max) == (0, 2)


def test_a_player_of_one_frame() -> None:
    image, caption, controls = parts(frame_player(FRAMES[:1]))
    assert controls["frame"].max == 0 and caption.value == "" and len(image.value) > 0


def test_the_explorer_answers_to_frame_and_opacity() -> None:
    image, caption, controls = parts(overlay_explorer(FRAMES, MASKS, scores=[0.5, 0.25, 1]))
    assert np.abs(decoded(image) - viz.overlay(FRAMES[0], MASKS[0], 0.5)).mean() < 4
    assert caption.value == "score 0.500"
    before = image.value
    controls["opacity"].value = 1
    assert image.value != before
    assert np.abs(decoded(image) - viz.overlay(FRAMES[0], MASKS[0], 1)).mean() < 4
    controls["frame"].value = 1
    assert np.abs(decoded(image) - viz.overlay(FRAMES[1], MASKS[1], 1)).mean() < 4
    assert caption.value == "score 0.250"


def test_the_explorer_asks_a_function_for_the_frame_on_show_only() -> None:
    asked = []

    def mask_of(t: int) -> torch.Tensor:
        asked.append(t)
        return MASKS[t]

    _, caption, controls = parts(overlay_explorer(FRAMES, mask_of))
    controls["frame"].value = 2
    assert asked == [0, 2]
    assert caption.value == ""


def test_objects_are_hidden_one_by_one_and_no_picture_is_drawn_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    overlay = viz.overlay
    monkeypatch.setattr(viz, "overlay", lambda *what: drawn.append(what) or overlay(*what))
    both = [torch.where(torch.arange(40) >= 30, 7, mask) for mask in MASKS]
    image, _, controls = parts(overlay_explorer(FRAMES, both, objects=[1, 7]))
    controls["object 7"].value = False
    assert np.abs(decoded(image) - overlay(FRAMES[0], MASKS[0] * (torch.arange(40) < 30), 0.5)).mean() < 4
    controls["object 1"].value = False
    assert np.abs(decoded(image) - viz.picture(FRAMES[0])).max() < 4
    controls["object 1"].value = controls["object 7"].value = True
    assert np.abs(decoded(image) - overlay(FRAMES[0], both[0], 0.5)).mean() < 4
    before = len(drawn)
    controls["object 7"].value = False
    controls["object 7"].value = True
    assert len(drawn) == before
    assert isinstance(controls["play the frames"], ipywidgets.Play) and "object 0" not in controls


class Halves:
    """Two superpixels, left and right of the middle, of which a pixel belongs to its own by three quarters."""

    candidates = torch.full((9, 24, 40), -1)
    candidates[3], candidates[4] = 0, 1
    labels = (torch.arange(40) >= 20).long().expand(1, 24, 40)
    affinity = torch.zeros(1, 9, 24, 40)
    affinity[0, 3] = torch.where(labels[0] == 0, 0.75, 0.25)
    affinity[0, 4] = 1 - affinity[0, 3]

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., :2]

    unpooled: list[int] = []

    def unpool(self, superpixels: torch.Tensor) -> torch.Tensor:
        self.unpooled.append(1)
        return torch.zeros(1, 3, 24, 40)


def test_the_superpixel_explorer_answers_to_every_control_and_computes_once() -> None:
    asked = []

    def cluster(name: str, *setting: float) -> Halves:
        asked.append((name, *setting))
        return Halves()

    box = superpixel_explorer(FRAMES[1], {name: partial(cluster, name) for name in ("learned", "colour")}, 500)
    image, caption, controls = parts(box)
    assert asked == [("learned", 100, 1, 5)]
    assert "2 superpixels; nine affinities of (12, 20): 0.00 0.00 0.00 / 0.25 0.75 0.00 / 0.00" in caption.value
    tinted = decoded(image)
    assert abs(tinted[2, 30] - 127).max() > 2 * abs(tinted[2, 5] - 127).max()  # three quarters against one
    controls["column"].value = 3
    assert "(12, 3): 0.00 0.00 0.00 / 0.75 0.25" in caption.value and len(asked) == 1
    controls["view"].value = "mean colours, soft"
    assert decoded(image)[2, 5].max() > 60 and len(asked) == 1
    unpooled = len(Halves.unpooled)
    controls["row"].value = 5
    controls["column"].value = 30
    assert len(Halves.unpooled) == unpooled                               # only the pixel is another
    controls["superpixels"].value, controls["iterations"].value = 300, 9
    controls["compactness"].value, controls["features"].value = 10, "colour"
    assert asked[-1] == ("colour", 300, 10, 9)
    controls["features"].value = "learned"
    before = len(asked)
    controls["features"].value = "colour"
    assert len(asked) == before


def test_a_click_picks_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    monkeypatch.setattr(panel, "Event", lambda **options: events.append(Event(**options)) or events[-1])
    box = superpixel_explorer(FRAMES[0], {"learned": lambda *_: Halves()})
    assert events[0].source is box.children[0] and events[0].watched_events == ["click"]
    events[0]._dom_handlers({"event": "click", "dataX": 7.6, "dataY": 99})
    _, caption, controls = parts(box)
    assert (controls["row"].value, controls["column"].value) == (23, 7)
    assert "(23, 7)" in caption.value


def test_the_flow_explorer_follows_a_pixel_into_the_next_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    events, asked = [], []
    monkeypatch.setattr(panel, "Event", lambda **options: events.append(Event(**options)) or events[-1])
    flows = [torch.full((1, 2, 24, 40), 3.0), torch.full((1, 2, 24, 40), -2.0)]

    def likeness(t: int, y: int, x: int) -> torch.Tensor:
        asked.append((t, y, x))
        field = torch.zeros(24, 40)
        field[:, 30:] = 5.0
        return field

    image, caption, controls = parts(flow_explorer(FRAMES, flows, likeness))
    shown = decoded(image)
    assert shown.shape == (24, 80, 3) and asked == [(0, 12, 20)] and "corrections" not in controls
    assert np.abs(shown[2, 75] - shown[2, 45]).max() > 60                 # the likely part is tinted
    assert shown[12, 20].min() > 240 and shown[15, 40 + 23 + 3].min() > 240   # a cross here, and where it goes
    assert caption.value == "row 12, column 20: moves +3.0 px to the right and +3.0 px down"
    events[0]._dom_handlers({"event": "click", "dataX": 40 + 7.2, "dataY": 5})  # on the right picture
    assert (controls["row"].value, controls["column"].value) == (5, 7)
    assert asked == [(0, 12, 20), (0, 5, 7)]                              # one answer to a click, not two
    controls["frame"].value = 1
    assert "moves -2.0 px" in caption.value
    before = len(asked)
    controls["left"].value = "flow"
    controls["frame"].value = 0
    strongest = viz.flow_to_color(flows[0][0], float(flows[0][0, :, 0, 0].norm()))
    assert np.abs(decoded(image)[2, 2] - strongest[2, 2]).max() < 8
    assert len(asked) == before
    with pytest.raises(ValueError, match="and hidden as many or none, got 2, 2 and 0"):
        flow_explorer(FRAMES[:2], flows, likeness)
    with pytest.raises(ValueError, match=r"must all be \(I, 2, H, W\), got \[\(2, 24, 40\)\]"):
        flow_explorer(FRAMES, [flow[0] for flow in flows], likeness)


def test_the_flow_explorer_shows_the_way_to_the_flow_arrows_and_what_is_hidden() -> None:
    steps = torch.stack([torch.full((2, 24, 40), pixels) for pixels in (1.0, 2.0, 6.0)])
    frames, hidden = [torch.full((3, 24, 40), 0.5)] * 2, [torch.arange(40).expand(24, 40) >= 20]
    box = flow_explorer(frames, [steps], lambda *_: torch.zeros(24, 40), hidden)
    image, caption, controls = parts(box)
    yellow = [(12 + pixels, 60 + pixels) for pixels in (0, 6)]              # on the right, from the same place on
    assert all(decoded(image)[place][2] < 130 < 180 < decoded(image)[place][0] for place in yellow)
    assert controls["corrections"].value == 3 and "moves +6.0 px" in caption.value
    controls["corrections"].value = 1
    assert "moves +1.0 px" in caption.value and decoded(image)[yellow[1]].min() > 90
    controls["corrections"].value = 0
    assert "moves +0.0 px" in caption.value
    controls["left"].value = "occlusion"
    left = decoded(image)[:, :40]
    assert left[2, 20:].max() > 230 and left[2, 20:].min() < 30 and np.abs(left[2, :19] - 128).max() < 40
    controls["left"].value, controls["corrections"].value = "arrows", 3
    assert np.abs(decoded(image)[8:12, 8:12] - 128).max() > 90
    disc = decoded(box.children[3].children[0])
    assert disc.shape == (61, 61, 3) and disc[2, 2].min() > 240 and disc[30, 58].max() > 240 > 60 > disc[30, 58].min()
    assert box.children[3].children[1].value == "colours of the flow; at the rim 8.5 px"
    assert "occlusion" not in parts(flow_explorer(frames, [steps], lambda *_: steps[0, 0]))[2]["left"].options


def test_the_motion_explorer_has_a_slider_for_every_factor() -> None:
    monomials = torch.stack([torch.ones(6, 10), torch.linspace(-1, 1, 10).expand(6, 10)])

    def flow_of(theta: torch.Tensor) -> torch.Tensor:
        return torch.einsum("blfc,fhw->blchw", theta, monomials)

    image, caption, controls = parts(widgets.motion_explorer(flow_of, ["1", "x"], largest=4))
    assert list(controls) == ["u: 1", "u: x", "v: 1", "v: x"]
    assert np.abs(decoded(image) - viz.flow_to_color(flow_of(torch.tensor([[[[1., 0], [0, 0]]]]))[0, 0], 4)).mean() < 4
    controls["u: 1"].value, controls["v: x"].value = 0, 3
    assert np.abs(decoded(image) - viz.flow_to_color(flow_of(torch.tensor([[[[0, 0], [0, 3.]]]]))[0, 0], 4)).mean() < 4
    assert caption.value == "mean motion 1.67 px, largest 3.00 px"


def test_the_depth_explorer_shows_line_match_and_error() -> None:
    depth, sigma = torch.full((24, 40), 4.0), torch.full((24, 40), 0.5)
    depth[0] = sigma[0] = torch.nan

    def places(pixel: tuple[int, int], depths: torch.Tensor) -> torch.Tensor:
        return torch.stack([pixel[1] - 20 / depths, torch.full_like(depths, pixel[0])], dim=1)

    flow = torch.zeros(2, 24, 40)
    flow[0] = -5
    image, caption, controls = parts(depth_explorer(FRAMES[0], FRAMES[1], flow, depth, sigma, places))
    controls["row"].value, controls["column"].value = 12, 30
    shown = decoded(image)
    assert caption.value == "row 12, column 30: 4.00 m, give or take 0.50 m"
    match, sure, anywhere = shown[12, 40 + 25], shown[12, 40 + 22], shown[12, 40 + 16]
    assert match[0] > 200 and match[1] > 170 and match[2] < 90          # a yellow square where the flow ends
    assert sure[0] > 200 and sure[1] < 80                              # pink within the error
    assert anywhere.max() < 120 and np.abs(shown[5, 40 + 16] - 128).max() < 30  # dark on the line, grey beside it
    controls["left"].value = "depth"
    assert np.abs(decoded(image)[5, 5] - viz.depth_to_color(depth)[5, 5]).max() < 20
    controls["row"].value = 0
    assert caption.value == "row 0, column 30: no depth here"


noise = SimpleNamespace(candidates=torch.zeros(9, 240, 428).long(), labels=torch.randint(99, (1, 240, 428)),
                        affinity=torch.rand(1, 9, 240, 428))


def saved_state(box: ipywidgets.VBox) -> dict[str, Any]:
    """What a notebook stores of a widget and all it depends on, by model."""
    return embed_data(views=[box], state=dependency_state([box]))["manager_state"]["state"]


@pytest.mark.parametrize("explorer", [
    frame_player,
    lambda frames: overlay_explorer(frames, frames[:, 0] > 0.5, objects=range(1, 21)),
    lambda frames: flow_explorer(frames, [torch.rand(3, 2, 240, 428)] * 29, lambda *_: torch.rand(240, 428)),
    lambda frames: layer_explorer(frames[0], frames[1]),
    lambda frames: superpixel_explorer(torch.from_numpy(frames[0]), {"noise": lambda *_: noise}),
], ids=["player", "overlay", "flow", "layers", "superpixels"])
def test_a_saved_notebook_holds_one_frame_only(explorer: Callable[[np.ndarray], ipywidgets.VBox]) -> None:
    video = np.random.default_rng(0).random((30, 3, 240, 428)).astype(np.float32)  # noise: the worst for JPEG
    box = explorer(video)
    image, _, controls = parts(box)
    if "frame" in controls:
        controls["frame"].value = 7
    assert len(image.value) < len(json.dumps(saved_state(box))) < 1_000_000


def test_play_drives_the_slider_in_the_browser() -> None:
    box = frame_player(FRAMES)
    _, _, controls = parts(box)
    links = [model["state"] for model in saved_state(box).values() if model["model_name"] == "LinkModel"]
    ends = {f"IPY_MODEL_{controls[name].model_id}" for name in ("play the frames", "frame")}
    assert [{link["source"][0], link["target"][0]} for link in links] == [ends]


def test_frames_without_their_masks_scores_or_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="one frame at least"):
        frame_player([])
    with pytest.raises(ValueError, match="labels must be one for each of the 3 frames, got 2"):
        frame_player(FRAMES, labels=["one", "two"])
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        frame_player(FRAMES, fps=0)
    with pytest.raises(ValueError, match="masks must be one for each of the 3 frames, got 0"):
        overlay_explorer(FRAMES, [])
    with pytest.raises(ValueError, match="scores must be one for each of the 3 frames, got 1"):
        overlay_explorer(FRAMES, MASKS, scores=[1])


def test_layers_are_recoloured_or_shown_alone() -> None:
    red = torch.tensor([0.8, 0.2, 0.2])[:, None, None].expand(3, 24, 40)
    alphas = [torch.zeros(24, 40), torch.ones(24, 40, requires_grad=True)]
    image, caption, controls = parts(layer_explorer(red, alphas))
    unchanged = image.value
    assert "layer 1 has 0.0%" in caption.value
    controls["layer"].value = 2
    assert image.value != unchanged and "100.0%" in caption.value
    controls["show"].value = "alone"
    controls["layer"].value = 1
    assert decoded(image).min() > 250  # nothing of it on white
    with pytest.raises(ValueError, match="one layer at least"):
        layer_explorer(red, [])
    with pytest.raises(ValueError, match=r"\(H, W\) each"):
        layer_explorer(red, alphas[0])
