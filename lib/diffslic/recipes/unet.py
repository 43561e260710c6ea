"""How the U-Net learns to segment what moves: cached flow and superpixel features, BCE + Dice, region J."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from diffslic import datasets, metrics, pipeline, training
from diffslic.datasets.clip import VOID, Clip, check_apart, labels_or_none
from diffslic.flow import RAFT
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card
from diffslic.segmentation import UNet, UNetConfig, bce_dice
from diffslic.superpixels import SSN

CROP = (192, 256)
WIDTHS = (16, 32, 64, 128, 128)  # of a new network
MEMORY, BYTES_PER_PIXEL = 2 << 30, 17  # frames kept by each process that makes batches: two gigabytes of them
WITHHELD = 0.4  # share of samples that show flow alone, so that looks help to read it and do not replace it
PRESETS = "lab+street+crowd"  # of scenes
# What makes flow and superpixels, where nothing else is said.
PARTS: dict[str, Any] = {"raft": "small", "ssn": "scenes", "n_iters": 12, "n_spixels": pipeline.N_SPIXELS,
                         "polished": "variational"}
Window = tuple[slice, slice]
CARD = {"what": "Masks of what moves by itself.",
        "gpu_command": "diffslic train unet --out runs/unet --n-clips 1000 --steps 20000 --workers 12 --device cuda",
        "limits": "It sees one flow field at a time: what stands still for a moment is lost for that moment, and near "
                  "parts of the static world can be taken for moving ones."}
TRAINING_SEED, VALIDATION_SEED = 30_000, 900_000  # of scenes


class _Frame(NamedTuple):
    """What training needs of one frame, in few bytes; None is what the inputs do not ask for."""

    mask: Tensor  # (H, W) uint8: ids of bodies, 0 or VOID
    flow: Tensor | None  # (4, H, W) half: see pipeline.flow_channels, taken before any crop
    image: Tensor | None  # (3, H, W) uint8
    labels: Tensor | None  # (H, W) int32 superpixels
    vectors: Tensor | None  # (S, C) half: see pipeline.superpixel_differences


class Samples:
    """Batches of network inputs and masks, cut from all frames of some clips in random order.

    Every crop is mirrored at random (the flow with it), and the flow's strength varies. What tells looks is disguised,
    and withheld from some samples where there is flow as well.

    Args:
        clips: with frames, labels, and cached flow and superpixels as far as ``inputs`` need them.
        inputs: see ``pipeline.INPUTS``.
        batch_size: crops per batch.
        seed: of everything random.
        crop: rows and columns; smaller frames are taken whole.
    """

    def __init__(self, clips: Sequence[Clip], inputs: Sequence[str], batch_size: int, seed: int,
                 crop: tuple[int, int] = CROP) -> None:
        if not clips or batch_size < 1:
            raise ValueError(f"training needs a clip and a batch_size from 1, got {len(clips)} clips and {batch_size}")
        self.inputs, self.batch_size, self.seed, self.crop = tuple(inputs), batch_size, seed, crop
        kind = "flow" if "flow" in inputs else "frame"
        self.frames = [(i, t) for i, clip in enumerate(clips) for t in clip.frames_with(kind)]
        clips, pixels = list(clips), max(clip.size[0] * clip.size[1] for clip in clips)
        self._read = lru_cache(MEMORY // (BYTES_PER_PIXEL * pixels))(
            lambda clip, t: _read_frame(clips[clip], t, inputs))

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: input (B, C, h, w), labels (B, h, w) int64."""
        samples = [self._sample(number * self.batch_size + item) for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, position: int) -> dict[str, Tensor]:
        number, rng = augment.shuffled(position, len(self.frames), self.seed)
        frame = self._read(*self.frames[number])
        window = augment.crop_window(tuple(frame.mask.shape), self.crop, rng)
        mirror = rng.random() < 0.5, False  # gravity: nothing is ever seen upside down
        make = {"flow": self._flow, "superpixels": self._superpixels, "image": self._image, "position": self._position}
        parts = {name: make[name](frame, window, mirror, rng) for name in self.inputs}
        if "flow" in parts and rng.random() < WITHHELD:
            parts = {name: torch.zeros_like(part) if name in ("superpixels", "image") else part
                     for name, part in parts.items()}
        return {"input": torch.cat(list(parts.values())),
                "labels": augment.flip_image(frame.mask[window], *mirror).long()}

    @staticmethod
    def _flow(frame: "_Frame", window: Window, mirror: tuple[bool, bool], rng: np.random.Generator) -> Tensor:
        flow = frame.flow[(slice(None), *window)].float() * float(rng.uniform(0.7, 1.4))
        return augment.flip_flow(flow.unflatten(0, (2, 2)), *mirror).flatten(0, 1)

    @staticmethod
    def _superpixels(frame: "_Frame", window: Window, mirror: tuple[bool, bool], rng: np.random.Generator) -> Tensor:
        vectors = augment.disguise(frame.vectors.float().T, rng)
        return vectors[:, augment.flip_image(frame.labels[window], *mirror).long()]

    @staticmethod
    def _image(frame: "_Frame", window: Window, mirror: tuple[bool, bool], rng: np.random.Generator) -> Tensor:
        image = augment.jitter_colors(frame.image[(slice(None), *window)][None].float() / 255, rng)[0]
        return augment.disguise(2 * augment.flip_image(image, *mirror) - 1, rng)

    @staticmethod
    def _position(frame: "_Frame", window: Window, mirror: tuple[bool, bool], rng: np.random.Generator) -> Tensor:
        return pipeline.position(*frame.mask[window].shape)  # a crop is a frame of its own


def _read_frame(clip: Clip, t: int, inputs: Sequence[str]) -> _Frame:
    mask = clip.labels(t).byte()
    flow = pipeline.flow_channels(clip.flow(t)[None])[0].half() if "flow" in inputs else None
    image = (clip.frame(t) * 255).round().byte() if "image" in inputs else None
    if "superpixels" not in inputs:
        return _Frame(mask, flow, image, None, None)
    found = pipeline.Superpixels(clip.superpixel_labels(t), clip.superpixel_vectors(t))
    return _Frame(mask, flow, image, found.labels.int(), pipeline.superpixel_differences(found).half())


def train(out_dir: str | Path, clips: Sequence[Clip], validation: Sequence[Clip], *,
          inputs: Sequence[str] | None = None, steps: int = 1500, batch_size: int = 4, learning_rate: float = 1e-3,
          widths: Sequence[int] | None = None, residual: bool | None = None, start: str | Path | None = None,
          crop: tuple[int, int] = CROP, validate_every: int = 500, seed: int = 3, device: str = "auto",
          devices: int = 1, precision: str = "32-true", workers: int = 1, resume: bool = True,
          loggers: Sequence[Any] = (), parts: Mapping[str, Any] | None = None, command: str = "",
          progress: bool = True) -> training.FitResult:
    """Train a U-Net on clips; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        clips, validation: with labels and what ``inputs`` need (``pipeline.precompute_*``); split by sequence.
        inputs: any of ``pipeline.INPUTS``, in order; None: those of ``start``, or all.
        widths, residual: the shape of a new network, by default :data:`WIDTHS` without residual blocks.
        start: weights to start from, which have a shape, or None; ``inputs`` may go on after theirs.
        crop: see :class:`Samples`.
        parts: what made flow and superpixels (:data:`PARTS`), if it is known: a run does not go on with others.
        command: what the card says makes these weights again.
    """
    check_apart(clips, validation)
    torch.manual_seed(seed)
    settings = settings_of(inputs, widths, residual, start, batch_size, seed, crop, parts)
    inputs = tuple(settings["inputs"])
    channels = pipeline.clip_input(clips[0], 0, inputs).shape[0]
    if start is None:
        model = UNet(UNetConfig(channels, widths=settings["widths"], residual=settings["residual"], inputs=inputs))
    else:
        model = UNet.from_pretrained(start).widened(channels, inputs).train()
    samples = Samples(clips, inputs, batch_size, seed, crop)
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        return bce_dice(network(batch["input"]), batch["labels"], VOID)

    settings |= {"clips": [clip.name for clip in clips], **read_by(inputs, clips[0])}
    fit = training.fit(model, training.Batches(samples), loss, lambda network: evaluate(network, validation), schedule,
                       out_dir, monitor="j", higher_is_better=True, settings=settings, device=device, devices=devices,
                       precision=precision, workers=workers, resume=resume, loggers=loggers, progress=progress)
    write_card(out_dir, fit, name=f"U-Net on {', '.join(inputs)}", **CARD,
               data=f"{len(clips)} clips ({clips[0].name} ...), {len(samples.frames)} frames, crops of "
                    f"{crop[0]}x{crop[1]}, {batch_size} a step",
               validation=f"{len(validation)} other clips ({validation[0].name} ...), DAVIS 2016 protocol",
               command=command or f"diffslic.recipes.unet.train({str(out_dir)!r}, ..., steps={steps})")
    return fit


def read_by(inputs: Sequence[str], clip: Clip) -> dict[str, str]:
    """What tells the flow and the superpixels of a clip from most others: a run that was stopped asks them."""
    told = {"mean motion": pipeline.mean_motion(clip)} if "flow" in inputs else {}
    if "superpixels" in inputs:
        vectors = clip.superpixel_vectors(0)
        told["superpixels"] = f"{len(vectors)} of mean {vectors.abs().mean():.4f}"
    return told


def settings_of(inputs: Sequence[str] | None, widths: Sequence[int] | None, residual: bool | None,
                start: str | Path | None, batch_size: int, seed: int, crop: tuple[int, int] = CROP,
                parts: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What makes a run what it is, but for its clips: known before they are prepared. See :func:`train`.

    Raises:
        ValueError: inputs that cannot be, or a shape beside that of ``start``.
    """
    check_shape(start, widths=widths, residual=residual)
    return {"inputs": list(check_inputs(inputs, start)), "batch_size": batch_size, "widths": list(widths or WIDTHS),
            "residual": bool(residual), "start": str(start), "seed": seed, "crop": list(crop),
            **{name: str(value) for name, value in (parts or {}).items()}}


def check_shape(start: str | Path | None, **shape: Any) -> None:
    """Refuse what shapes a new network where there are weights to start from, which have a shape.

    Raises:
        ValueError: names what was given beside them.
    """
    for name, value in shape.items():
        if start is not None and value is not None:
            raise ValueError(f"{name} is of a new network: {start} has its own")


def check_inputs(inputs: Sequence[str] | None, start: str | Path | None) -> tuple[str, ...]:
    """The inputs that training will use; see :func:`train`.

    Raises:
        ValueError: an unknown input, or one that does not go on after those of ``start``.
    """
    config = UNet.from_pretrained(start).config if start is not None else None
    if config is not None and config.out_channels > 1:
        raise ValueError(f"{start} has {config.out_channels} masks: train instances goes on from it")
    known = config.inputs if config is not None else ()
    inputs = tuple(inputs or known or pipeline.INPUTS)
    unknown = [name for name in inputs if name not in pipeline.INPUTS]
    if unknown:
        raise ValueError(f"the input {unknown[0]!r} is unknown; inputs are {', '.join(pipeline.INPUTS)}")
    if inputs[:len(known)] != known:
        raise ValueError(f"inputs must begin with those of {start}, {', '.join(known)}; got {', '.join(inputs)}")
    return inputs


def evaluate(model: UNet, clips: Sequence[Clip]) -> dict[str, float]:
    """Mean over the clips of region J and boundary F, by the DAVIS 2016 protocol."""
    scores = [score(pipeline.predict(model, clip), clip) for clip in clips]
    return {"j": float(np.mean([s["J-Mean"] for s in scores])), "f": float(np.mean([s["F-Mean"] for s in scores]))}


def score(masks: np.ndarray, clip: Clip) -> dict[str, float]:
    """DAVIS 2016 figures of masks (T, H, W) against the clip's labels, where it has some, all objects together.

    Void pixels count as background of both.
    """
    truths = {t: labels for t in range(len(clip)) if (labels := labels_or_none(clip, t)) is not None}
    labels = np.stack([labels.numpy() for labels in truths.values()])
    counts = labels != VOID
    return metrics.davis(masks[list(truths)] * counts, (labels > 0) & counts, protocol="davis2016").summary()


def table(scores: Mapping[str, Sequence[dict[str, float]]]) -> pd.DataFrame:
    """Means over clips of J, its recall and F: a row per method, from what :func:`score` gave for each of its clips."""
    columns = ["J-Mean", "J-Recall", "F-Mean"]
    return pd.DataFrame({name: {key: np.mean([row[key] for row in rows]) for key in columns}
                         for name, rows in scores.items()}).T


def prepare(dataset: str, cache: str | Path, *, root: str | Path | None = None, resolution: str = "480p",
            presets: str = PRESETS, n_clips: int = 160, n_frames: int = 4, size: tuple[int, int] = (240, 428),
            raft: str | Path = "small", ssn: str | Path = "scenes", n_iters: int = 12,
            n_spixels: int = pipeline.N_SPIXELS, polished: str = "variational",
            inputs: Sequence[str] = pipeline.INPUTS, device: str = "cpu",
            progress: bool = True) -> tuple[list[Clip], list[Clip]]:
    """Clips to train and to validate on, with RAFT's flow and SSN's superpixels kept under ``cache``.

    Args:
        dataset, root, resolution, presets, n_clips, n_frames, size: see :func:`open_clips`.
        raft, ssn: weights by name or file. n_iters, polished, n_spixels: see ``pipeline.precompute_*``.
        inputs: what a network is to read (``pipeline.INPUTS``): nothing else is computed, but the flow that a composite
            ``ssn`` needs.
    """
    parts = open_clips(dataset, root=root, resolution=resolution, presets=presets, n_clips=n_clips, n_frames=n_frames,
                       size=size, device=device)
    level = f"{size[0]}x{size[1]}" if dataset == "scenes" else resolution
    flow_folder, superpixel_folder = (pipeline.cache_folder(cache, dataset, level, kind)
                                      for kind in ("flow", "superpixels"))
    ssn_net = SSN.from_pretrained(ssn, device) if "superpixels" in inputs else None
    of_flow = ssn_net is not None and ssn_net.config.extra_channels > 0  # there and back
    if "flow" in inputs or of_flow:
        flow_net = RAFT.from_pretrained(raft, device)
        parts = [pipeline.precompute_flow(part, flow_net, flow_folder, n_iters, polished, of_flow, progress)
                 for part in parts]
    if ssn_net is not None:
        parts = [pipeline.precompute_superpixels(part, ssn_net, superpixel_folder, n_spixels, progress)
                 for part in parts]
    return parts[0], parts[1]


def open_clips(dataset: str, *, root: str | Path | None = None, resolution: str = "480p", presets: str = PRESETS,
               n_clips: int = 160, n_frames: int = 4, size: tuple[int, int] = (240, 428),
               device: str = "cpu") -> tuple[list[Clip], list[Clip]]:
    """Clips to train and to validate on, with frames and labels.

    Args:
        dataset: "scenes", or "davis2016" (its development split: eight sequences stay out of both parts).
        root, resolution: of DAVIS. presets, n_clips, n_frames, size: of the scenes to train on; a tenth more validate.
        device: where scenes are drawn.
    """
    if dataset == "scenes":
        parts = [datasets.open("scenes", preset=presets, n_clips=count, n_frames=n_frames, size=size,
                               seed=seed, lighting=0.1, noise=0.01, device=device)
                 for count, seed in ((n_clips, TRAINING_SEED), (max(2, n_clips // 10), VALIDATION_SEED))]
        return parts[0], parts[1]
    if dataset != "davis2016":
        raise ValueError(f"the U-Net is trained on scenes or davis2016, got {dataset!r}")
    if root is None:
        raise ValueError("davis2016 needs root=..., its folder on disk (see data/README.md)")
    sequences = datasets.open("davis2016", root=root, split="dev_train", resolution=resolution)
    if len(sequences) < 6:
        raise ValueError(f"{root}: every sixth sequence of the training split validates, so it needs six at least, "
                         f"got {len(sequences)}")
    return [clip for i, clip in enumerate(sequences) if i % 6 != 5], sequences[5::6]
