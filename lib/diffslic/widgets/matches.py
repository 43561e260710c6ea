"""Explorers of two pictures side by side: a pixel of the first, and where it is in the second."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import ipywidgets
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffslic import viz
from diffslic.widgets.panel import Jpeg, Panel, chosen_by_click, frame_slider, jpeg, pixel_sliders


def flow_explorer(frames: Sequence[viz.Arraylike], estimates: Sequence[Tensor],
                  likeness: Callable[[int, int, int], Tensor], hidden: Sequence[Tensor] = ()) -> Panel:
    """A frame or its flow, and beside it how alike the next frame is to one pixel, and where it is looked for.

    A click on a pixel, or the row and column sliders, chooses it. Where the flow was found in several corrections one
    more slider shows the way to it from no motion at all. The flow's colours have one scale for all frames, with their
    legend below.

    Args:
        frames: T images of one size, as ``viz.picture`` takes them.
        estimates: (I, 2, H, W) in pixels from each frame to the next, T - 1: the flow after each of I corrections, one
            at least, the last one the best; such as ``RAFT.predictions`` gives.
        likeness: frame number, row and column to a map (H, W) over the next frame, of any scale. Results are kept.
        hidden: (H, W) bool for each flow, what the next frame does not show; it can be hatched. Or none.

    Raises:
        ValueError: no pair of frames, not one flow for each, or flows of other shapes.
    """
    if len(frames) < 2 or len(estimates) != len(frames) - 1 or len(hidden) not in (0, len(estimates)):
        raise ValueError(f"estimates must be one less than frames, two at least, and hidden as many or none, got "
                         f"{len(estimates)}, {len(frames)} and {len(hidden)}")
    if any(steps.ndim != 4 or steps.shape != estimates[0].shape for steps in estimates):
        shapes = sorted({tuple(steps.shape) for steps in estimates})
        raise ValueError(f"estimates must all be (I, 2, H, W), got {shapes}")
    n_steps, _, height, width = estimates[0].shape
    flows = [steps.detach().cpu() for steps in estimates]
    largest = max(float(steps[-1].norm(dim=0).max()) for steps in flows)
    likeness_of = lru_cache(maxsize=64)(likeness)
    frame, (row, column) = frame_slider(len(flows)), pixel_sliders(height, width)
    view = ipywidgets.Dropdown(options=["frame", "arrows", "flow", *["occlusion"] * (len(hidden) > 0)],
                               description="left")
    step = ipywidgets.IntSlider(value=n_steps, max=n_steps, description="corrections") if n_steps > 1 else None

    @lru_cache(maxsize=64)
    def left(t: int, name: str, steps: int) -> viz.Picture:
        if name in ("flow", "arrows"):
            field = flows[t][steps - 1] if steps else torch.zeros(2, height, width)
            return viz.arrows(frames[t], field) if name == "arrows" else viz.flow_to_color(field, max(largest, 1e-3))
        return viz.hatched(frames[t], hidden[t]) if name == "occlusion" else viz.picture(frames[t])

    def steps_taken() -> int:
        return n_steps if step is None else step.value

    def way() -> Tensor:
        """(1 + steps, 2) of the pixel, from no motion on."""
        return F.pad(flows[frame.value][:steps_taken(), :, row.value, column.value], (0, 0, 1, 0))

    def draw() -> Jpeg:
        t, pixel = frame.value, (row.value, column.value)
        field = likeness_of(t, *pixel).detach().cpu()
        field = (field - field.min()) / (field.max() - field.min()).clamp(min=1e-9)
        u, v = (round(float(value)) for value in way()[-1])
        there = min(max(pixel[0] + v, 0), height - 1), min(max(pixel[1] + u, 0), width - 1)
        right = viz.dots(viz.tint(frames[t + 1], field, there), way() + torch.tensor(pixel[::-1]), (255, 220, 0), 3)
        return jpeg(np.concatenate([viz.tint(left(t, view.value, steps_taken()), field * 0, pixel), right], axis=1))

    def text() -> str:
        u, v = way()[-1].tolist()
        return f"row {row.value}, column {column.value}: moves {u:+.1f} px to the right and {v:+.1f} px down"

    legend = ipywidgets.HBox([ipywidgets.Image(value=jpeg(viz.flow_disc(61)).data, format="jpeg", width=61, height=61),
                              ipywidgets.Label(f"colours of the flow; at the rim {largest:.1f} px"),
                              ipywidgets.Label("| right: the next frame, pink where it is like the pixel")])
    controls = [frame, view, row, column, *([] if step is None else [step])]
    return chosen_by_click(Panel(draw, text, controls, below=[legend]), row, column, pictures=2)


def depth_explorer(first: Tensor, second: Tensor, flow: Tensor, depth: Tensor, sigma: Tensor,
                   places: Callable[[tuple[int, int], Tensor], Tensor]) -> Panel:
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
    row, column = pixel_sliders(height, width)
    known = depth[depth.isfinite()]
    nearest = 0.3 * float(known.quantile(0.01)) if len(known) else 1.0  # a single outlier would stretch the line
    nothing, left_views = depth.new_zeros(depth.shape), {"frame": first, "depth": viz.depth_to_color(depth)}

    def draw() -> Jpeg:
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
        return jpeg(np.concatenate([viz.tint(left_views[view.value], nothing, pixel), right], axis=1))

    def text() -> str:
        z, spread = float(depth[row.value, column.value]), float(sigma[row.value, column.value])
        found = f"{z:.2f} m, give or take {spread:.2f} m" if z == z else "no depth here"
        return f"row {row.value}, column {column.value}: {found}"

    return chosen_by_click(Panel(draw, text, [view, row, column]), row, column, pictures=2)
