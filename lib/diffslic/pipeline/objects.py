"""Flow, superpixels and what moves to several objects with names."""

import numpy as np
import torch
from numpy.typing import NDArray

from diffslic.datasets.clip import Clip
from diffslic.flow import occlusion
from diffslic.segmentation import Tracker, regions_of


def predict_objects(clip: Clip, masks: NDArray[np.integer], tracker: Tracker | None = None) -> NDArray[np.int64]:
    """Objects of a clip from what it already holds (see ``precompute_*``), superpixels and flow.

    Labels go from frame to frame by the way back, and borders with occluded pixels count as the edge of something in
    front.

    Args:
        masks: (T, H, W), above 0 where something moves by itself, such as :func:`predict` gives.
        tracker: None: a new one with its defaults.

    Returns:
        (T, H, W) labels: 0 background, from 1 objects, as many as there are.

    Raises:
        ValueError: a single frame, masks of another size or number of frames.
        LookupError: a clip without flow both ways or superpixels.
    """
    if len(clip) < 2:
        raise ValueError(f"clip {clip.name!r} has a single frame: motion needs at least two")
    if masks.shape != (len(clip), *clip.size):
        raise ValueError(f"masks must be {(len(clip), *clip.size)}, got {masks.shape}")
    tracker, labels, last = tracker or Tracker(), [], len(clip) - 1
    for t in range(len(clip)):
        back = clip.backward_flow(t) if t else None
        flow = clip.flow(t) if t < last else -clip.backward_flow(t)
        hidden = occlusion(flow[None], clip.backward_flow(t + 1)[None])[0] if t < last else None
        regions = regions_of(clip.superpixel_labels(t), clip.frame(t), flow, torch.from_numpy(masks[t] > 0), hidden)
        labels.append(tracker.step(regions, back).labels.numpy())
    return np.stack(labels)
