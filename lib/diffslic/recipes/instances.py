"""How the U-Net learns to tell several bodies apart: a mask for each, matched to the bodies of scenes.

It goes on from the network that knows what moves, with a new head and the place of each pixel as further input: which
of two alike bodies a mask is for can only be told from where they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffslic import metrics, pipeline, training
from diffslic.datasets.clip import VOID, Clip, check_apart
from diffslic.recipes.cards import write_card
from diffslic.recipes.unet import CROP, Samples, read_by
from diffslic.segmentation import UNet, body_logits, matched_loss

N_BODIES = 6  # masks: a crowd has up to five bodies, and static things that seem to move make more
PRESETS = "crowd+plaza"  # of scenes
CARD = {"what": "A mask for each of several bodies that move by themselves, in no order.",
        "gpu_command": "diffslic train instances --out runs/instances --n-clips 1000 --steps 20000 --workers 12 "
                       "--device cuda",
        "limits": "It sees one flow field at a time, and learned on rigid bodies: limbs that move apart may become "
                  "bodies of their own. Of more than six bodies it joins some."}


def train(out_dir: str | Path, clips: Sequence[Clip], validation: Sequence[Clip], *,
          start: str | Path = "motion", n_bodies: int = N_BODIES, steps: int = 1500, batch_size: int = 4,
          learning_rate: float = 1e-3, validate_every: int = 500, seed: int = 5, device: str = "auto",
          devices: int = 1, precision: str = "32-true", workers: int = 1, resume: bool = True,
          loggers: Sequence[Any] = (), command: str = "", progress: bool = True) -> training.FitResult:
    """Train a U-Net of several masks on clips; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        clips, validation: with labels, flow and superpixels (``recipes.unet.prepare``); split by sequence.
        start: weights of a U-Net, of one mask or of several, to go on from.
        n_bodies: masks beside that of the background; of a start with several, its own.
        command: what the card says makes these weights again.

    Raises:
        ValueError: a clip in both parts, weights of another network or of another number of masks.
    """
    check_apart(clips, validation)
    torch.manual_seed(seed)
    model = network(start, n_bodies)
    samples = Samples(clips, model.config.inputs, batch_size, seed)
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        return matched_loss(body_logits(network, batch["input"]), batch["labels"], VOID)

    settings = {**settings_of(start, n_bodies, batch_size, seed), "clips": [clip.name for clip in clips]}
    settings |= read_by(model.config.inputs, clips[0])
    fit = training.fit(model, training.Batches(samples), loss, lambda network: evaluate(network, validation), schedule,
                       out_dir, monitor="j", higher_is_better=True, settings=settings, device=device, devices=devices,
                       precision=precision, workers=workers, resume=resume, loggers=loggers, progress=progress)
    write_card(out_dir, fit, name="U-Net of several masks", **CARD,
               data=f"{len(clips)} clips ({clips[0].name} ...), {len(samples.frames)} frames, crops of "
                    f"{CROP[0]}x{CROP[1]}, {batch_size} a step, from `{start}`",
               validation=f"{len(validation)} other clips ({validation[0].name} ...): intersection over union of every "
                          "body with the mask assigned to it, frame by frame",
               command=command or f"diffslic.recipes.instances.train({str(out_dir)!r}, ..., steps={steps})")
    return fit


def settings_of(start: str | Path, n_bodies: int, batch_size: int, seed: int) -> dict[str, Any]:
    """What makes a run what it is, but for its clips: known before they are prepared. See :func:`train`."""
    return {"n_bodies": n_bodies, "batch_size": batch_size, "start": str(start), "seed": seed}


def network(start: str | Path, n_bodies: int = N_BODIES) -> UNet:
    """The network of the weights ``start``, that of one mask with a new head and the position as further input.

    Raises:
        ValueError: the weights are of another number of masks, or there is to be none.
    """
    if n_bodies < 1:
        raise ValueError(f"several masks are those of one body at least, got {n_bodies}")
    known = UNet.from_pretrained(start).train()
    if known.config.out_channels == 1:
        return known.widened(known.config.in_channels + 2, (*known.config.inputs, "position"), n_bodies + 1)
    if known.config.out_channels != n_bodies + 1:
        raise ValueError(f"{start} has masks of {known.config.out_channels - 1} bodies, asked was for {n_bodies}")
    return known


@torch.no_grad()
def evaluate(model: UNet, clips: Sequence[Clip]) -> dict[str, float]:
    """Means over frames: loss, and j over the bodies of a frame, each with the mask that is assigned to it."""
    device = training.device_of(model)
    losses: list[float] = []
    scores: list[float] = []
    for clip in clips:
        for t in clip.frames_with("flow"):
            logits = body_logits(model, pipeline.clip_input(clip, t, model.config.inputs, device)[None]).cpu()
            truth = clip.labels(t)
            losses.append(float(matched_loss(logits, truth[None], VOID)))
            scores += metrics.assigned_iou(logits[0].argmax(0), truth, VOID).values()
    return {"val_loss": float(np.mean(losses)), "j": float(np.mean(scores)) if scores else 0.0}
