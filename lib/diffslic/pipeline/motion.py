"""Flow to layers of coherent motion: MotionNet and EM on clips."""

from collections.abc import Collection, Iterable

import numpy as np
import torch
from torch import Tensor

from diffslic import geometry, viz
from diffslic.datasets.clip import Clip
from diffslic.segmentation import MotionNet, expectation_maximisation, moving_layers
from diffslic.segmentation.parametric import UNKNOWN_FLOW
from diffslic.training import device_of

EM_ROWS = 96  # height at which EM works: all pixels of 240 rows would take six times as long for the same layers


def motion_fields(clip: Clip, frames: Iterable[int], names: Collection[str] = ("flow",)) -> dict[str, Tensor]:
    """What a MotionNet reads of some frames of a clip, by name: (T, C, H, W) each.

    Args:
        names: of "flow", "image", "flow_rgb"; a clip without pictures of its flow gets them painted.

    Raises:
        ValueError: unknown flow; clip and frame are named.
    """
    frames = list(frames)
    read = {"flow": clip.flow, "image": clip.frame,
            "flow_rgb": clip.flow_rgb if clip.has("flow_rgb") else lambda t: painted(clip.flow(t))}
    fields = {name: torch.stack([read[name](t) for t in frames]) for name in names}
    if "flow" in fields:
        for t, known in zip(frames, (fields["flow"].abs() < UNKNOWN_FLOW).flatten(1).all(1).tolist()):
            if not known:
                raise ValueError(f"clip {clip.name!r}, frame {t}: its flow is not known everywhere")
    return fields


def painted(flow: Tensor) -> Tensor:
    """Flow (2, H, W) as a picture (3, H, W) in [0, 1], the fastest pixel in the strongest colours."""
    return torch.from_numpy(viz.flow_to_color(flow)).permute(2, 0, 1).to(flow) / 255


def predict_motion(model: MotionNet, clip: Clip, window: int | None = None, repeat_last: bool = False) -> np.ndarray:
    """Labels of a clip by the flow that it holds: (T, H, W) uint8, 0 background, moving layers from 1.

    The last frame, which no flow leaves, is seen by the flow that leads back from it, turned around, where the clip
    holds that; otherwise, or with ``repeat_last``, it repeats the frame before. See :meth:`MotionNet.segment` for
    ``window``.
    """
    fields = motion_fields(clip, clip.frames_with("flow"), model.config.fields)
    last = len(clip) - 1
    seen = not repeat_last and clip.has("backward_flow")
    if seen:
        flow = -clip.backward_flow(last)
        of_last = {"flow": lambda: flow, "image": lambda: clip.frame(last), "flow_rgb": lambda: painted(flow)}
        fields = {name: torch.cat([field, of_last[name]()[None]]) for name, field in fields.items()}
    device = device_of(model)
    labels = model.segment(**{name: field.to(device) for name, field in fields.items()}, window=window)
    labels = labels if seen else torch.cat([labels, labels[-1:]])
    return labels.byte().cpu().numpy()


def em_mask(flow: Tensor, n_layers: int = 2, seed: int = 0) -> Tensor:
    """What moves in one flow field, by EM without a network: (1, 2, H, W) to (1, H, W) bool."""
    height, width = flow.shape[-2:]
    rows = min(EM_ROWS, height)
    small = geometry.resize_flow(flow, (rows, max(1, round(width * rows / height))))
    masks = geometry.resize(expectation_maximisation(small, n_layers, n_starts=2, seed=seed).masks, (height, width))
    return moving_layers(masks.argmax(1), flow)
