"""Masks of what moves in a clip, from what it already holds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffslic import geometry
from diffslic.datasets.clip import Clip
from diffslic.pipeline.inputs import clip_input, mirrored_input
from diffslic.segmentation import UNet
from diffslic.training import device_of


def predict(unet: UNet, clip: Clip, progress: bool = False) -> np.ndarray:
    """Masks of a clip from what it already holds (see ``precompute_*``).

    Returns:
        (T, H, W) uint8: 1 where something moves by itself. No flow leaves the last frame: its mask repeats the one
        before (the DAVIS protocol leaves that frame out).
    """
    check_length(clip)
    check_masks(unet, "the U-Net", several=False)
    device = device_of(unet)
    masks = np.zeros((len(clip), *clip.size), dtype=np.uint8)
    for t in tqdm(clip.frames_with("flow"), desc=clip.name, unit="frame", disable=not progress):
        masks[t] = mask_of(unet, clip_input(clip, t, unet.config.inputs, device), clip.size)
    masks[-1] = masks[-2]
    return masks


def predict_from_flow(method: Callable[[Tensor], Tensor], clip: Clip) -> np.ndarray:
    """Masks of a clip by a method that sees its flow alone, as :func:`predict` gives a network's.

    Args:
        method: (1, 2, H, W) flow in pixels to (1, H, W) bool, such as ``segmentation.camera_residual_mask``.

    Returns:
        (T, H, W) uint8; the last frame repeats the mask before it.
    """
    check_length(clip)
    masks = [method(clip.flow(t)[None])[0].byte().cpu().numpy() for t in clip.frames_with("flow")]
    return np.stack([*masks, masks[-1]])


def mask_of(unet: UNet, channels: Tensor, size: tuple[int, int]) -> np.ndarray:
    """The mask (H, W) uint8, of another ``size``, of a frame's channels (C, h, w), from both of its views."""
    logits = geometry.resize(logits_of_views(unet, channels)[None, None], size)
    return (logits[0, 0] > 0).byte().cpu().numpy()


@torch.no_grad()
def logits_of_views(unet: UNet, channels: Tensor) -> Tensor:
    """Logits (h, w) of a frame's channels (C, h, w), seen as it is and in a mirror, the sum of both.

    Mirrored channels get the mirrored mask.
    """
    as_it_is, mirrored = unet(torch.stack([channels, mirrored_input(channels, unet.config.inputs)]))
    return (as_it_is + mirrored.flip(-1))[0]


def check_length(clip: Clip) -> None:
    """Refuse a clip of a single frame."""
    if len(clip) < 2:
        raise ValueError(f"clip {clip.name!r} has a single frame: motion needs at least two")


def check_masks(unet: UNet, name: str | Path, several: bool) -> None:
    """Refuse a network of one mask where ``several`` are needed, and the other way round; ``name`` is told."""
    count = unet.config.out_channels
    if (count > 1) != several:
        raise ValueError(f"{name} has {count} mask{'s' * (count > 1)}: " + (
            "objects are parted by a network of several" if several else "what moves is found by a network of one"))
