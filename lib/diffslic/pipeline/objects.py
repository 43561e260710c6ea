"""Flow, superpixels and what moves to several objects with names."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffslic.datasets.clip import VOID, Clip
from diffslic.flow import occlusion
from diffslic.segmentation import Regions, Tracker, regions_of


def predict_objects(clip: Clip, masks: NDArray[np.integer], tracker: Tracker | None = None) -> NDArray[np.int64]:
    """Objects of a clip from what it already holds (see ``precompute_*``), superpixels and flow both ways.

    Labels go from frame to frame by the way back, and borders with occluded pixels count as the edge of something in
    front.

    Args:
        masks: (T, H, W), above 0 where something moves by itself, such as :func:`predict` gives.
        tracker: None: a new one with its defaults.

    Returns:
        (T, H, W) labels: 0 background, from 1 objects.

    Raises:
        ValueError: a single frame, masks of another size or number of frames.
        LookupError: a clip without flow both ways or superpixels.
    """
    if masks.shape != (len(clip), *clip.size):
        raise ValueError(f"masks must be {(len(clip), *clip.size)}, got {masks.shape}")
    tracker, labels = tracker or Tracker(), []
    for t in range(len(clip)):
        regions, back = _regions(clip, t, torch.from_numpy(masks[t] > 0))
        labels.append(tracker.step(regions, back).labels.numpy())
    return np.stack(labels)


def propagate_objects(clip: Clip, given: Mapping[int, Tensor]) -> NDArray[np.int64]:
    """Objects whose masks are given in the first frame, or in that in which they enter, followed to the last.

    Args:
        clip: as for :func:`predict_objects`.
        given: by frame, labels (H, W): 0 and 255, void, say nothing; other ids are objects, with gaps or without.

    Returns:
        (T, H, W) labels with the ids given; a given mask stays as it is, but for void, which is background.

    Raises:
        ValueError: no mask, one of a frame that there is not, or of another size.
    """
    if not given or not set(given) <= set(range(len(clip))):
        raise ValueError(f"masks must be given of some of {len(clip)} frames, got those of {sorted(given)}")
    tracker, labels = Tracker(births=False), []
    for t in range(len(clip)):
        regions, back = _regions(clip, t, torch.zeros(clip.size, dtype=torch.bool))
        now = tracker.step(regions, back).labels
        if t in given:
            known = torch.where(given[t] == VOID, 0, given[t])
            tracker.give(regions, known)
            now = torch.where(known > 0, known, now)
        labels.append(now.numpy())
    return np.stack(labels)


def _regions(clip: Clip, t: int, foreground: Tensor) -> tuple[Regions, Tensor | None]:
    """A frame as a graph, and the flow back to the one before; the last is seen by that, turned around."""
    if len(clip) < 2:
        raise ValueError(f"clip {clip.name!r} has a single frame: motion needs at least two")
    back = clip.backward_flow(t) if t else None
    if t < len(clip) - 1:
        flow = clip.flow(t)
        hidden = occlusion(flow[None], clip.backward_flow(t + 1)[None])[0]
    else:
        flow, hidden = -clip.backward_flow(t), None
    return regions_of(clip.superpixel_labels(t), clip.frame(t), flow, foreground, hidden), back
