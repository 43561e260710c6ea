"""How flow, superpixels and masks learn together: one graph, one loss, parts that begin to learn one after the other.

The head starts from nothing and would at first send noise to parts that are trained already. So it learns alone for a
while; then the superpixels join, then the flow.
"""

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffslic import pipeline, training
from diffslic.datasets.clip import VOID, Clip, check_apart
from diffslic.flow import RAFT, photometric_loss, polish_settings
from diffslic.pipeline import PARTS, EndToEnd, Prediction
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card
from diffslic.recipes.unet import MEMORY, WIDTHS, WITHHELD, check_inputs, check_shape, score
from diffslic.segmentation import SuperpixelTransformer, SuperpixelTransformerConfig, UNet, UNetConfig, bce_dice
from diffslic.superpixels import SSN, compactness, label_reconstruction

CROP = (240, 432)  # of frames; smaller ones are taken whole
JOINS = {"head": 0.0, "superpixels": 0.1, "flow": 0.2}  # share of the steps after which a part learns
DEFAULTS = {"head": "unet", "raft": "small", "ssn": "composite-davis2016", "inputs": None, "widths": WIDTHS,
            "residual": False, "start": None, "n_iters": 12, "n_spixels": pipeline.N_SPIXELS,
            "polished": "variational"}  # of a network
RATES = {"superpixels": 0.1, "flow": 0.1}  # of the head's: what is trained already moves slowly
CARD = {"what": "Masks of what moves by itself, from three frames: flow, superpixels and masks learned together.",
        "gpu_command": "diffslic train unet --end-to-end --out runs/end-to-end --n-clips 1000 --n-frames 6 "
                       "--steps 20000 --precision bf16-mixed --recompute --workers 12 --device cuda",
        "limits": "It sees three frames at a time. Its flow is made for masks: what it has lost as flow is not known."}


class Weights(NamedTuple):
    """Of the losses beside that of the mask."""

    reconstruction: float = 1.0  # of moving and static, by the superpixels: cross-entropy
    compactness: float = 1e-5    # of the superpixels, the paper's weight
    polish: float = 2.0          # of what RAFT's own flow lacks of the polished: the mean distance in pixels
    photometric: float = 0.0     # of the flow's consistency with the frames


WEIGHTS = Weights()


class Triples:
    """Batches of three neighbouring frames and the labels of the one in the middle, in random order.

    Every triple is cut and mirrored at random. What the head is to see is changed as the recipe of the U-Net changes it
    (:class:`diffslic.recipes.unet.Samples`), by the same draws: the image in other colours, the flow stronger or
    weaker, looks disguised or withheld; all but the first as a matrix, for the channels are not there yet.

    Args:
        clips: with frames and labels, three frames at least.
        inputs: see ``pipeline.INPUTS``, and how many channels each has.
        batch_size: triples per batch.
        seed: of everything random.
    """

    def __init__(self, clips: Sequence[Clip], inputs: Mapping[str, int], batch_size: int, seed: int) -> None:
        if not clips or batch_size < 1:
            raise ValueError(f"training needs a clip and a batch_size from 1, got {len(clips)} clips and {batch_size}")
        self.inputs, self.batch_size, self.seed = dict(inputs), batch_size, seed
        self.frames = [(i, t) for i, clip in enumerate(clips) for t in range(1, len(clip) - 1)]
        if not self.frames:
            raise ValueError(f"training needs a clip of three frames, the longest has {max(map(len, clips))}")
        clips, pixels = list(clips), max(clip.size[0] * clip.size[1] for clip in clips)
        frames = MEMORY // (4 * pixels)  # that fit, with their labels
        self._read = lru_cache(frames)(lambda i, t: (clips[i].frame(t) * 255).round().byte())
        self._labels = lru_cache(frames)(lambda i, t: clips[i].labels(t).byte())

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: before, frame, after, shown (B, 3, h, w), labels (B, h, w) int64, mixing (B, C, C)."""
        samples = [self._sample(number * self.batch_size + item) for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, position: int) -> dict[str, Tensor]:
        number, rng = augment.shuffled(position, len(self.frames), self.seed)
        i, t = self.frames[number]
        labels = self._labels(i, t)
        window = augment.crop_window(tuple(labels.shape), CROP, rng)
        mirror = rng.random() < 0.5, False  # gravity: nothing is ever seen upside down
        before, frame, after = (self._read(i, t + step)[:, *window].float() / 255 for step in (-1, 0, 1))
        shown, mixing = self._seen_by_the_head(frame, rng)
        images = {"before": before, "frame": frame, "after": after, "shown": shown}
        return {**{name: augment.flip_image(image, *mirror) for name, image in images.items()}, "mixing": mixing,
                "labels": augment.flip_image(labels[window], *mirror).long()}

    def _seen_by_the_head(self, frame: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The image (3, h, w) in other colours, and the matrix (C, C) that changes the channels."""
        shown, parts = frame, {}
        for name, count in self.inputs.items():
            if name == "image":
                shown = augment.jitter_colors(frame[None], rng)[0]
            parts[name] = (float(rng.uniform(0.7, 1.4)) * torch.eye(count) if name == "flow"
                           else augment.disguise(torch.eye(count), rng))
        if "flow" in parts and rng.random() < WITHHELD:
            parts = {name: part if name == "flow" else torch.zeros_like(part) for name, part in parts.items()}
        return shown, torch.block_diag(*parts.values())


def network(head: str | None = None, *, raft: str | Path | None = None, ssn: str | Path | None = None,
            inputs: Sequence[str] | None = None, widths: Sequence[int] | None = None, residual: bool | None = None,
            start: str | Path | None = None, n_iters: int | None = None, n_spixels: int | None = None,
            polished: str | None = None, recompute: bool = False) -> EndToEnd:
    """The network before it is trained; what is not given is as :data:`DEFAULTS` say, or as ``start``.

    Args:
        head: "unet", or "transformer" over superpixels.
        raft, ssn: weights of the parts to start from, by name or file; the SSN is a composite.
        inputs: of the head, any of ``pipeline.INPUTS``; None: those of ``start``, or all. widths, residual: of a new
            U-Net.
        start: weights to start from: a U-Net's, for the head; or a file of :class:`diffslic.pipeline.EndToEnd`, from
            which all parts are taken, so that of the arguments only the four that follow go with it.
        n_iters, n_spixels, polished: see :class:`diffslic.pipeline.EndToEnd`. recompute: activations, in less memory.

    Raises:
        ValueError: what does not go together, or does not exist.
    """
    if start is not None and _holds_all_parts(start):
        check_shape(start, head=head, raft=raft, ssn=ssn, inputs=inputs, widths=widths, residual=residual)
        known = EndToEnd.from_pretrained(start)
        n_iters, n_spixels, polished = (
            before if value is None else value for before, value in
            ((known.n_iters, n_iters), (known.n_spixels, n_spixels), (known.polished, polished)))
        return EndToEnd(known.flow, known.superpixels, known.head, n_iters, n_spixels, polished, not recompute)
    head, raft, ssn, n_iters, n_spixels, polished = (
        DEFAULTS[name] if value is None else value for name, value in
        {"head": head, "raft": raft, "ssn": ssn, "n_iters": n_iters, "n_spixels": n_spixels,
         "polished": polished}.items())
    if head not in pipeline.HEADS:
        raise ValueError(f"the head is one of {', '.join(pipeline.HEADS)}, got {head!r}")
    if start is not None and head != "unet":
        raise ValueError("weights to start from are a U-Net's, or all parts; a transformer starts from nothing")
    check_shape(start, widths=widths, residual=residual)
    for name, value in (("widths", widths), ("residual", residual)):
        if head != "unet" and value is not None:
            raise ValueError(f"{name} is of a new U-Net: the head is a {head}")
    superpixels, inputs = SSN.from_pretrained(ssn), check_inputs(inputs, start)
    channels = sum(pipeline.channel_counts(superpixels)[name] for name in inputs)
    if start is not None:
        chosen: UNet | SuperpixelTransformer = UNet.from_pretrained(start).train()
        if chosen.config.inputs != inputs:
            raise ValueError(f"{start} reads {', '.join(chosen.config.inputs)}: that cannot become {', '.join(inputs)}")
    elif head == "unet":
        chosen = UNet(UNetConfig(channels, widths=tuple(widths or WIDTHS), residual=bool(residual), inputs=inputs))
    else:
        chosen = SuperpixelTransformer(SuperpixelTransformerConfig(channels, inputs=inputs))
    return EndToEnd(RAFT.from_pretrained(raft), superpixels, chosen, n_iters, n_spixels, polished, not recompute)


def _holds_all_parts(start: str | Path) -> bool:
    """Whether weights are those of a whole network, not of a U-Net alone."""
    return training.TOGETHER <= training.load_weights("end-to-end", training.find_weights("unet", start)).config.keys()


def first_steps(steps: int, frozen: Sequence[str] = (), joins: Mapping[str, float] = JOINS) -> dict[str, int]:
    """How many steps are taken before each part that is not frozen begins to learn; the first of them begins at once.

    Raises:
        ValueError: a part that does not exist is frozen, or all are.
    """
    for name in frozen:
        if name not in PARTS:
            raise ValueError(f"there is no part {name!r} to freeze; parts are {', '.join(PARTS)}")
    learning = [name for name in PARTS if name not in frozen]
    if not learning:
        raise ValueError(f"of {', '.join(PARTS)} one at least must learn: all are frozen")
    first = min(joins[name] for name in learning)
    return {name: math.ceil(max(0, joins[name] - first) * steps) for name in learning}


def told_in_order(first: Mapping[str, int]) -> str:
    """What :func:`first_steps` found, in words: "learning from step 1: head, from 31: superpixels"."""
    return "learning from step " + ", from ".join(f"{step + 1}: {name}" for name, step in first.items())


def losses(seen: Prediction, batch: training.Batch, weights: Weights) -> Tensor:
    """One value per frame (B,): of the mask, of the superpixels and of the flow."""
    labels = batch["labels"]
    reconstruction = label_reconstruction(seen.superpixels, (labels > 0).long(), known=labels != VOID, n_segments=2)
    value = (bce_dice(seen.logits, labels, VOID) + weights.reconstruction * reconstruction
             + weights.compactness * compactness(seen.superpixels))
    # RAFT is to learn what the polish makes of its flow: masks alone would have it learn errors that the polish mends.
    lacking = (seen.own_flow - seen.flow.detach()).unflatten(1, (2, 2)).norm(dim=2)
    value = value + weights.polish * lacking.mean((1, 2, 3))
    if weights.photometric:
        ahead, back = seen.flow.split(2, dim=1)
        value = value + weights.photometric * (photometric_loss(batch["frame"], batch["after"], ahead)
                                               + photometric_loss(batch["frame"], batch["before"], back)) / 2
    return value


def train(out_dir: str | Path, clips: Sequence[Clip], validation: Sequence[Clip], *,
          shape: Mapping[str, Any] | None = None, frozen: Sequence[str] = (), weights: Weights = WEIGHTS,
          joins: Mapping[str, float] = JOINS, steps: int = 1500, batch_size: int = 4, learning_rate: float = 1e-3,
          validate_every: int = 500, seed: int = 3, device: str = "auto", devices: int = 1,
          precision: str = "32-true", workers: int = 1, resume: bool = True,
          loggers: Sequence[Any] = (), command: str = "", progress: bool = True) -> training.FitResult:
    """Train a network end to end; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        clips, validation: with frames and labels, three frames at least; split by sequence.
        shape: arguments of :func:`network`; what is None counts as not given.
        frozen: parts (``pipeline.PARTS``) that never learn. joins: share of the steps after which the others do.
        weights: of the losses beside that of the mask.
        learning_rate: of the head; the other parts have :data:`RATES` of it.
        command: what the card says makes these weights again.
    """
    check_apart(clips, validation)
    first = first_steps(steps, frozen, joins)
    torch.manual_seed(seed)
    model = network(**(shape or {})).train()
    channels = pipeline.channel_counts(model.superpixels)
    triples = Triples(clips, {name: channels[name] for name in model.head.config.inputs}, batch_size, seed)
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        seen = network(batch["before"], batch["frame"], batch["after"], batch["mixing"], batch["shown"])
        return losses(seen, batch, weights)

    def unfreeze(step: int) -> None:
        model.learn([name for name in first if step >= first[name]])

    settings = {**settings_of(model, shape or {}, frozen, weights, joins, batch_size, seed),
                "clips": [clip.name for clip in clips]}
    if progress and training.speaks():
        tqdm.write(told_in_order(first), file=sys.stderr)
    fit = training.fit(model, training.Batches(triples), loss, lambda network: evaluate(network, validation), schedule,
                       out_dir, monitor="j", higher_is_better=True, settings=settings, rates=RATES,
                       before_step=unfreeze, device=device, devices=devices, precision=precision, workers=workers,
                       resume=resume, loggers=loggers, progress=progress)
    write_card(out_dir, fit, name=f"End to end: {', '.join(PARTS[::-1])}", **CARD,
               data=f"{len(clips)} clips ({clips[0].name} ...), {len(triples.frames)} triples, {batch_size} a step and "
                    f"process; {model.n_iters} corrections of the flow"
                    f" (polish: {model.polished}), {model.n_spixels} superpixels"
                    f"; {told_in_order(first)}" + (f"; frozen: {', '.join(frozen)}" if frozen else ""),
               validation=f"{len(validation)} other clips ({validation[0].name} ...), DAVIS 2016 protocol",
               command=command or f"diffslic.recipes.end_to_end.train({str(out_dir)!r}, ..., steps={steps})")
    return fit


def settings_of(model: EndToEnd, shape: Mapping[str, Any], frozen: Sequence[str] = (), weights: Weights = WEIGHTS,
                joins: Mapping[str, float] = JOINS, batch_size: int = 4, seed: int = 3) -> dict[str, Any]:
    """What makes a run what it is, but for its clips: known before they are drawn. See :func:`train`.

    Raises:
        ValueError: a weight that is negative or not finite, or a head that is frozen as it was drawn.
    """
    if "head" in frozen and shape.get("start") is None:
        raise ValueError("a frozen head must have learned before: give weights to start from")
    for name, weight in weights._asdict().items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of a loss must be finite and not negative, got {name} {weight}")
    # A default that is named is the same run.
    asked = {name: value for name, value in shape.items() if value is not None and name != "recompute"}
    asked |= {"n_iters": model.n_iters, "n_spixels": model.n_spixels,
              "polished": model.polished, "inputs": tuple(model.head.config.inputs),
              "widths": getattr(model.head.config, "widths", None)}
    constants = hashlib.sha256(polish_settings(model.polished).encode()).hexdigest()[:6]
    return {"frozen": list(frozen), "weights": weights._asdict(), "joins": dict(joins), "batch_size": batch_size,
            "shape": {name: str(value) for name, value in {**DEFAULTS, **asked}.items()}, "seed": seed,
            "constants of the polish": constants}


def predict(model: EndToEnd, clip: Clip) -> np.ndarray:
    """Masks (T, H, W) uint8 of a clip: 1 where something moves by itself."""
    logits = model.video(clip.frame(t) for t in range(len(clip)))
    return np.stack([(each > 0).byte().cpu().numpy() for each in logits])


def evaluate(model: EndToEnd, clips: Sequence[Clip]) -> dict[str, float]:
    """Mean over the clips of region J and boundary F, by the DAVIS 2016 protocol."""
    scores = [score(predict(model, clip), clip) for clip in clips]
    return {"j": float(np.mean([s["J-Mean"] for s in scores])), "f": float(np.mean([s["F-Mean"] for s in scores]))}
