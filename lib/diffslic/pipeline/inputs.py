"""What the U-Net sees: flow, superpixels and the image as channels, made to look alike from video to video."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffslic import geometry
from diffslic.datasets.clip import Clip
from diffslic.segmentation import flow_channels
from diffslic.superpixels import SSN

INPUTS = ("flow", "superpixels", "image")
N_SPIXELS = 400  # superpixels per frame whose features the U-Net sees
LEAST_SPREAD = 0.1  # of a feature over a frame; Lab is scaled by about a quarter, so this is less than half a unit


class Superpixels(NamedTuple):
    """Superpixels of one frame, and what they look like."""

    labels: Tensor  # (H, W) int64
    vectors: Tensor  # (S, C) means of ``SSN.appearance``: learned features and Lab, which do not tell the place


@torch.no_grad()
def find_superpixels(ssn: SSN, frame: Tensor, n_spixels: int = N_SPIXELS) -> Superpixels:
    """Superpixels of a frame (3, H, W), RGB in [0, 1]; a frame too small for ``n_spixels`` gets fewer."""
    n_spixels = min(n_spixels, frame.shape[-2] * frame.shape[-1])
    soft = ssn(frame[None], n_spixels)
    return Superpixels(soft.labels[0], soft.pool(ssn.appearance(frame[None]))[0])


def superpixel_differences(superpixels: Superpixels) -> Tensor:
    """Superpixel features as a network likes them: (S, C), how each superpixel differs from its frame.

    Over the pixels of the frame each channel has mean 0 and standard deviation 1, so that the light and the colours of
    a video do not matter. Where a channel varies by less than :data:`LEAST_SPREAD` it is divided by that instead.
    """
    labels, vectors = superpixels
    share = torch.bincount(labels.flatten(), minlength=len(vectors)).to(vectors) / labels.numel()
    differences = vectors - share @ vectors
    return differences / (share @ differences.square()).sqrt().clamp(min=LEAST_SPREAD)


def network_input(inputs: Sequence[str], flow: Tensor | None = None, superpixels: Superpixels | None = None,
                  frame: Tensor | None = None) -> Tensor:
    """Channels (C, H, W) in the order of ``inputs``, each one of :data:`INPUTS`.

    Args:
        flow: (2, H, W) in pixels. frame: (3, H, W) RGB in [0, 1]. Only what ``inputs`` names is needed.

    Raises:
        ValueError: an unknown input, or one that was not given.
    """
    given: dict[str, Callable[[], Tensor] | None] = {
        "flow": None if flow is None else lambda: flow_channels(flow),
        "superpixels": (None if superpixels is None
                        else lambda: superpixel_differences(superpixels).T[:, superpixels.labels]),
        "image": None if frame is None else lambda: 2 * frame - 1,
    }
    for name in inputs:
        if given.get(name) is None:
            raise ValueError(f"the input {name!r} is {'missing' if name in INPUTS else 'unknown'}; "
                             f"inputs are {', '.join(INPUTS)}")
    return torch.cat([given[name]() for name in inputs])


def mirrored_input(channels: Tensor, inputs: Sequence[str]) -> Tensor:
    """What :func:`network_input` gives for the mirrored frame, from what it gave for the frame: (C, H, W)."""
    mirrored = channels.flip(-1)
    if "flow" in inputs:
        sizes = {"flow": 4, "image": 3}
        sizes["superpixels"] = len(channels) - sum(sizes.get(name, 0) for name in inputs)
        start = sum(sizes[name] for name in inputs[:inputs.index("flow")])
        flow = slice(start, start + sizes["flow"])
        mirrored[flow] = geometry.flip_flow_horizontal(channels[flow].unflatten(0, (2, 2))).flatten(0, 1)
    return mirrored


def clip_input(clip: Clip, t: int, inputs: Sequence[str]) -> Tensor:
    """Channels (C, H, W) of frame t from what the clip holds; its flow is the one that leaves frame t."""
    return network_input(inputs, clip.flow(t) if "flow" in inputs else None,
                         Superpixels(clip.superpixel_labels(t), clip.superpixel_vectors(t))
                         if "superpixels" in inputs else None, clip.frame(t) if "image" in inputs else None)
