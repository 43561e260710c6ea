"""Every explorer in a real JupyterLab: its notebook is run, a slider moved, a picture clicked, the answer read.

Screenshots of each after an interaction stay in ``runs/ui``, and the seconds that it took from the key or the click to
the picture.
"""

import re
import time

import numpy as np

SMOKE = {"profile": "smoke"}
PINK, YELLOW, WHITE = (255, 0, 160), (255, 255, 0), (255, 255, 255)


def share(picture, colour, near=60):
    """Of the pixels (H, W, 3), those about as coloured."""
    return float((np.abs(picture - np.array(colour)).max(axis=-1) < near).mean())


def changed(before, after):
    """Of the pixels, those that differ clearly."""
    return float((np.abs(before - after).max(axis=-1) > 30).mean())


def around(picture, x, y, half=12):
    """A square of a screenshot about a place, given in shares of its width and height."""
    row, column = round(y * len(picture)), round(x * picture.shape[1])
    return picture[row - half:row + half, column - half:column + half]


def test_superpixels(explorers, latencies):
    [explorer] = explorers("superpixels", **SMOKE)
    before = explorer.shot("superpixels-before")
    assert before.std() > 20 and share(before, YELLOW) > 0.05
    latencies["superpixels, fewer iterations"] = explorer.pressed("iterations", "Home")
    latencies["superpixels, a click"] = explorer.clicked(0.25, 0.2)
    row, column = explorer.place(0.25, 0.2)
    assert f"nine affinities of ({row}, {column}): " in explorer.caption
    nine = [float(number) for number in explorer.caption.split(": ")[1].replace("/", " ").split()]
    assert len(nine) == 9 and abs(sum(nine) - 1) < 0.06
    after = explorer.shot("superpixels")
    assert share(around(after, 0.25, 0.2), WHITE) > 0.1 and share(around(after, 0.25, 0.2, 40), PINK, 90) > 0.1
    latencies["superpixels, a row"] = explorer.pressed("row", "ArrowRight")
    assert f"({row + 1}, {column})" in explorer.caption
    latencies["superpixels, another view"] = explorer.chosen("view", "mean colours, hard")
    assert share(explorer.shot("superpixels-colours"), YELLOW) < share(after, YELLOW) / 3


def test_flow_and_depth(explorers, latencies):
    flow, depth = explorers("depthEstimation", **SMOKE)
    latencies["flow, next frame"] = flow.pressed("frame", "ArrowRight")
    latencies["flow, a click"] = flow.clicked(0.2, 0.7)
    first = flow.caption
    shown = flow.shot("flow")
    row, column = flow.place(0.2, 0.7, pictures=2)
    assert re.fullmatch(rf"row {row}, column {column}: moves .* px to the right and .* px down", first)
    assert share(around(shown, 0.2, 0.7), WHITE) > 0.1 and share(shown[:, shown.shape[1] // 2:], PINK, 120) > 0.001
    latencies["flow, no correction"] = flow.pressed("corrections", "Home")
    assert "moves +0.0 px to the right and +0.0 px down" in flow.caption
    flow.pressed("corrections", "End")
    assert flow.caption == first
    for view in ("flow", "arrows", "occlusion"):
        latencies[f"flow, {view}"] = flow.chosen("left", view)
        assert changed(shown, flow.shot(f"flow-{view}")) > 0.01, view
    legend = flow.box.locator("img.widget-image").nth(1)
    assert legend.bounding_box()["width"] > 50 and "at the rim" in flow.box.inner_text()
    before = depth.shot("depth-before")
    latencies["depth, a click"] = depth.clicked(0.15, 0.8)
    row, column = depth.place(0.15, 0.8, pictures=2)
    assert re.fullmatch(rf"row {row}, column {column}: \d+\.\d\d m, give or take \d+\.\d\d m", depth.caption)
    after = depth.shot("depth")
    assert changed(before, after) > 0.001 and share(around(after, 0.15, 0.8), WHITE) > 0.1
    assert share(after[:, after.shape[1] // 2:], (70, 0, 110)) > 0.001     # the epipolar line


def test_masks(explorers, latencies):
    *_, masks = explorers("motion_segmentation", **SMOKE)
    latencies["masks, next frame"] = masks.pressed("frame", "ArrowRight")
    latencies["masks, opaque"] = masks.pressed("opacity", "End")
    opaque = masks.shot("masks")
    masks.pressed("opacity", "Home")
    clear = masks.shot("masks-clear")
    palette = (213, 94, 0)
    assert share(opaque, palette, 12) > share(clear, palette, 12) and clear.std() > 20
    assert changed(opaque, clear) > 0.002


def test_objects(explorers, latencies):
    *_, objects = explorers("davis2017_multiobject", **SMOKE)
    objects.pressed("frame", "End")
    objects.pressed("opacity", "End")
    everything = objects.shot("objects")
    names = [box.inner_text() for box in objects.box.locator(".widget-checkbox").all()]
    before, seen = everything, []
    for name in names:                                                     # hidden one after the other
        objects.checkbox(name).press("Space")
        objects.page.wait_for_timeout(500)
        after = objects.shot("objects-hidden")
        seen += [name] * (changed(before, after) > 0.001)                  # some may not be in this frame
        before = after
    assert len(names) > 1 and seen and changed(everything, before) > 0.003
    latencies["objects, one shown"] = objects.ticked(seen[0])
    assert 0.001 < changed(objects.shot("objects-one"), before) <= changed(everything, before)


def test_motion(explorers, latencies):
    motion, layers = explorers("unsupervised_motion", **SMOKE)
    before = motion.shot("motion-before")
    assert motion.box.locator(".widget-hslider").count() == 12
    latencies["motion, a factor"] = motion.pressed("u: x", "End")
    assert changed(before, motion.shot("motion")) > 0.3 and motion.caption.startswith("mean motion")
    latencies["layers, next frame"] = layers.pressed("frame", "ArrowRight")
    assert layers.shot("layers").std() > 20
    layers.picture.evaluate("image => { window.shown = 0; image.addEventListener('load', () => window.shown++); }")
    layers.box.locator(".widget-play button").first.click()
    time.sleep(3)                                                          # the first round draws every frame
    begin, shown = time.perf_counter(), layers.page.evaluate("window.shown")
    time.sleep(5)
    played = layers.page.evaluate("window.shown") - shown
    latencies["layers, a frame of playback"] = (time.perf_counter() - begin) / max(1, played)
    assert played > 5


def test_soft_layers(explorers, latencies):
    [layers] = explorers("soft_segmentation", **SMOKE)
    before = layers.shot("layer-before")
    latencies["layers, a hue"] = layers.pressed("hue", "Home")
    assert changed(before, layers.shot("layer-hue")) > 0.01
    latencies["layers, the next"] = layers.pressed("layer", "ArrowRight")
    assert layers.caption.startswith("layer 2 has")
    latencies["layers, alone"] = layers.chosen("show", "alone")
    assert share(layers.shot("layer"), WHITE, 20) > 0.1
