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
def find_superpixels(ssn: SSN, frame: Tensor, n_spixels: int = N_SPIXELS, extra: Tensor | None = None) -> Superpixels:
    """Superpixels of a frame (3, H, W), RGB in [0, 1]; a frame too small for ``n_spixels`` gets fewer.

    Args:
        extra: (C, H, W) of a composite, see :meth:`diffslic.superpixels.SSN.features`.
    """
    n_spixels = min(n_spixels, frame.shape[-2] * frame.shape[-1])
    soft = ssn(frame[None], n_spixels, extra=None if extra is None else extra[None])
    return Superpixels(soft.labels[0], soft.pool(ssn.appearance(frame[None]))[0])


def superpixel_differences(superpixels: Superpixels) -> Tensor:
    """Superpixel features as a network likes them: (S, C), how each superpixel differs from its frame.

    Over the pixels of the frame each channel has mean 0 and standard deviation 1, so that the light and the colours of
    a video do not matter. Where a channel varies by less than :data:`LEAST_SPREAD` it is divided by that instead.
    """
    labels, vectors = superpixels
    # Not bincount: it waits for the device, to know its largest number. In float32, for bfloat16 counts to 256.
    ones = torch.ones_like(labels.flatten(), dtype=torch.float32)
    count = ones.new_zeros(len(vectors)).index_add_(0, labels.flatten(), ones)
    share = count.to(vectors.dtype) / labels.numel()
    differences = vectors - share @ vectors
    return differences / (share @ differences.square()).sqrt().clamp(min=LEAST_SPREAD)


def network_input(inputs: Sequence[str], flow: Tensor | None = None, superpixels: Superpixels | None = None,
                  frame: Tensor | None = None) -> Tensor:
    """Channels (C, H, W) in the order of ``inputs``, each one of :data:`INPUTS` or "position" (:func:`position`).

    Args:
        flow: (2, H, W) in pixels. frame: (3, H, W) RGB in [0, 1]. Only what ``inputs`` names is needed; of the
            position, anything that tells the size.

    Raises:
        ValueError: an unknown input, or one that was not given.
    """
    given: dict[str, Callable[[], Tensor] | None] = {
        "flow": None if flow is None else lambda: flow_channels(flow[None])[0],
        "superpixels": (None if superpixels is None
                        else lambda: superpixel_differences(superpixels).T[:, superpixels.labels]),
        "image": None if frame is None else lambda: 2 * frame - 1,
    }
    shown = next((x for x in (flow, frame, None if superpixels is None else superpixels.labels) if x is not None), None)
    given["position"] = None if shown is None else lambda: position(shown.shape[-2], shown.shape[-1]).to(shown.device)
    for name in inputs:
        if given.get(name) is None:
            raise ValueError(f"the input {name!r} is {'missing' if name in given else 'unknown'}; "
                             f"inputs are {', '.join(given)}")
    return torch.cat([given[name]() for name in inputs])


def position(height: int, width: int) -> Tensor:
    """Where a pixel lies: (2, H, W) from -1 to 1, to the right and down."""
    ends = torch.tensor([width - 1, height - 1])[:, None, None]
    return 2 * geometry.pixel_grid(height, width) / ends.clamp(min=1) - 1


def mirrored_input(channels: Tensor, inputs: Sequence[str]) -> Tensor:
    """What :func:`network_input` gives for the mirrored frame, from what it gave for the frame: (C, H, W)."""
    sizes = {"flow": 4, "image": 3, "position": 2}
    sizes["superpixels"] = len(channels) - sum(sizes.get(name, 0) for name in inputs)
    mirror: dict[str, Callable[[Tensor], Tensor]] = {
        "flow": lambda part: geometry.flip_flow_horizontal(part.unflatten(0, (2, 2))).flatten(0, 1),
        "position": lambda part: part,  # the frame is another, its places are the same
    }
    parts = zip(inputs, channels.split([sizes[name] for name in inputs]))
    return torch.cat([mirror.get(name, geometry.flip_horizontal)(part) for name, part in parts])


def clip_input(clip: Clip, t: int, inputs: Sequence[str], device: torch.device | str = "cpu") -> Tensor:
    """Channels (C, H, W) of frame t from what the clip holds; its flow is the one that leaves frame t.

    They are made on ``device``: what they are made from is less to bring there, and a GPU makes them sooner.
    """
    return network_input(inputs, clip.flow(t).to(device) if "flow" in inputs else None,
                         Superpixels(clip.superpixel_labels(t).to(device), clip.superpixel_vectors(t).to(device))
                         if "superpixels" in inputs else None,
                         clip.frame(t).to(device) if "image" in inputs else None)
