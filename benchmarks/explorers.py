"""How long the explorers take to answer at 240x428: from a slider's new value to the picture that the browser is sent.

Each is built as its notebook builds it. "computed": something is computed that was not there; "drawn": only the picture
is new; "kept": it was on show before. The browser adds the way there and back, some hundredths of a second; the tests
in ``tests/ui`` write what it sees to ``runs/ui``.

    python benchmarks/explorers.py
"""

import statistics
import time
from functools import lru_cache, partial

import torch

from diffslic import datasets, depth, flow, geometry, pipeline, segmentation, softseg, superpixels, widgets

SIZE, REPEATS = (240, 428), 9


def answers(control, values) -> float:
    """Median seconds until the explorer has answered, over new values of one of its controls."""
    seconds = []
    for value in values:
        begin = time.perf_counter()
        control.value = value
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(2)
    [clip] = datasets.open("scenes", preset="crowd", n_clips=1, n_frames=REPEATS + 1, size=SIZE, seed=5, lighting=0.1)
    frames = [clip.frame(t) for t in range(len(clip))]
    for name, kind, seconds in measured(clip, frames):
        print(f"{name:34} {kind:9} {seconds:.3f} s", flush=True)


def measured(clip, frames):
    """Explorer and control, what it costs, seconds."""
    yield from of_superpixels(frames[0])
    yield from of_flow(frames)
    yield from of_depth()
    yield from of_masks(clip, frames)
    yield from of_motion()
    yield from of_layers(frames[0])


def controls(explorer):
    return {getattr(control, "description", ""): control for control in explorer.children[2].children}


def of_superpixels(image):
    net = superpixels.SSN.from_pretrained("scenes")

    @lru_cache(maxsize=8)
    def features(count):
        return net.features(image[None], count)

    def cluster(count, compactness, iterations):
        return net.cluster(features(count), count, iterations, compactness)

    bar = controls(widgets.superpixel_explorer(image, {"learned": cluster}))
    yield "superpixels: iterations", "computed", answers(bar["iterations"], range(6, 6 + REPEATS))
    yield "superpixels: number", "computed", answers(bar["superpixels"], range(200, 200 + 50 * REPEATS, 50))
    yield "superpixels: pixel", "drawn", answers(bar["column"], range(0, 40 * REPEATS, 40))
    yield "superpixels: hard or soft", "drawn", answers(bar["view"], [*bar["view"].options[1:], bar["view"].options[0]])


def of_flow(frames):
    raft = flow.RAFT.from_pretrained("small")
    found = [raft.predictions(one[None], two[None]) for one, two in zip(frames, frames[1:])]
    estimates = [torch.cat(steps.flows) for steps in found]
    hidden = [flow.occlusion(steps[-1:], -steps[-1:])[0] for steps in estimates]
    columns = -(-SIZE[1] // 8)

    def likeness(t, y, x):
        field = found[t].similarity[0, y // 8 * columns + x // 8]
        field = field.flatten().softmax(0).view_as(field)
        return torch.nn.functional.interpolate(field[None, None], size=SIZE, mode="bilinear")[0, 0]

    bar = controls(widgets.flow_explorer(frames, estimates, likeness, hidden))
    yield "flow: pixel", "computed", answers(bar["column"], range(0, 40 * REPEATS, 40))
    yield "flow: pixel", "kept", answers(bar["column"], range(0, 40 * REPEATS, 40))
    yield "flow: correction", "drawn", answers(bar["corrections"], range(12 - REPEATS, 12))
    for view in ("flow", "arrows", "occlusion"):
        yield f"flow: {view}", "drawn", answers(bar["left"], [view])
    yield "flow: frame", "computed", answers(bar["frame"], range(1, REPEATS))


def of_depth():
    [clip] = datasets.open("scenes", preset="static", n_clips=1, n_frames=2, size=SIZE, seed=3)
    motion = geometry.second_from_first(clip.camera_to_world(0), clip.camera_to_world(1))
    found = depth.from_flow(clip.flow(0)[None], clip.intrinsics, motion)
    bar = controls(widgets.depth_explorer(
        clip.frame(0), clip.frame(1), clip.flow(0), found.depth[0, 0], found.sigma[0, 0],
        lambda pixel, depths: depth.epipolar_places(pixel, depths, clip.intrinsics, motion)))
    yield "depth: pixel", "drawn", answers(bar["column"], range(0, 40 * REPEATS, 40))
    yield "depth: depth or frame", "drawn", answers(bar["left"], ["depth", "frame"])


def of_masks(clip, frames):
    bar = controls(widgets.overlay_explorer(frames, [clip.labels(t) for t in range(len(clip))], objects=(1, 2)))
    yield "masks: frame", "drawn", answers(bar["frame"], range(1, REPEATS + 1))
    yield "masks: frame", "kept", answers(bar["frame"], range(REPEATS))
    yield "masks: opacity", "drawn", answers(bar["opacity"], [0.05 * step for step in range(1, REPEATS)])
    yield "masks: object", "drawn", answers(bar["object 1"], [False])


def of_motion():
    names = ["1", "x", "y", "x²", "xy", "y²"]
    bar = controls(widgets.motion_explorer(partial(segmentation.motion_flow, height=SIZE[0], width=SIZE[1]), names))
    yield "motion: a factor", "computed", answers(bar["u: x"], [0.3 * step for step in range(1, REPEATS)])


def of_layers(image):
    made = pipeline.soft_segments(image, softseg.EmbeddingNet.from_pretrained("scenes"), 4)
    bar = controls(widgets.layer_explorer(image, list(made.alphas.detach().numpy())))
    yield "layers: hue", "drawn", answers(bar["hue"], [0.02 * step for step in range(1, REPEATS)])
    yield "layers: layer", "drawn", answers(bar["layer"], [2, 3, 4])


if __name__ == "__main__":
    main()
