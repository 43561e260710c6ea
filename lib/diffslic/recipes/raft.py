"""How RAFT is trained: pairs of scenes, collages or clips with flow, the paper's sequence loss, end-point error."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffslic import datasets, geometry, metrics, training
from diffslic.datasets import collages, scenes
from diffslic.datasets.clip import Clip, check_apart
from diffslic.datasets.flow_sets import CHAIRS_SPLIT, PASSES
from diffslic.datasets.photographs import photographs
from diffslic.flow import RAFT, RAFTConfig, matching_loss, sequence_loss
from diffslic.flow.layers import BatchNorm
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card

SIZE = (320, 448)  # of the rendered frames
CROP = (256, 320)  # networks trained on smaller crops do not carry over to whole frames
LOG_SCALE = (-0.4, 0.6)  # windows are enlarged by two to this power, shrunk as far as the picture reaches
LARGEST = 200  # pixels of flow that are taught
LONGEST_STEP = 3  # frames between the two of a pair of a scene: slow and fast motion
COLLAGES = 0.5  # the share of collages beside scenes
COLORED = 0.6  # the share of pairs whose colours change
FLOW_SETS = ("flyingchairs", "sintel", "kitti", "tartanair")
SCENES_PER_SEED = 10_000
MEASURING_SEED = 500_000  # scenes from this seed on are never trained on
VALIDATION_SEED = 900_000
VALIDATION_CLIPS = 100  # of a set of files, at most
WHAT = "Optical flow (Teed and Deng 2020)"
GPU_COMMAND = ("diffslic train raft --out runs/raft --steps 60000 --batch-size 12 --n-scenes 1000 --workers 0 "
               "--device cuda --precision bf16-mixed --textures BSDS500/data/images/train")
LIMITS = {"drawn": "Scenes move rigidly, collages bend but are flat, and neither has motion blur, shadows, water or "
                   "smoke: expect less on real video than the figures say, above all for thin and very fast things.",
          "clips": "Trained on one kind of video: what it has lost on others is not known. Measure it on them too."}


class Sample(NamedTuple):
    """Two images, where the pixels of the first go, and where that is known."""

    images: Tensor  # (2, 3, H, W) RGB in [0, 1]
    flow: Tensor  # (2, H, W) pixels
    valid: Tensor  # (H, W) bool


Source = Callable[[np.random.Generator], Sample]


class Pairs:
    """Batches of image pairs with their flow, each cut, scaled, mirrored, coloured and blurred anew.

    Args:
        sources: where pairs come from, and how often each is asked, summing to one.
        batch_size: pairs per batch.
        seed: chooses everything random; a pair depends on it and on the pair's position, not on how many a batch has.
    """

    def __init__(self, sources: Mapping[Source, float], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.sources, self.shares = list(sources), list(sources.values())
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: image1, image2 (B, 3, h, w), flow (B, 2, h, w), valid (B, h, w)."""
        # Apart from the numbers [seed, scene] of :func:`scene_pairs`.
        samples = [self._sample(np.random.default_rng([self.seed, 11, number * self.batch_size + item]))
                   for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        images, flow, valid = self.sources[int(rng.choice(len(self.sources), p=self.shares))](rng)
        # Cut a window of another size and bring it to that of all: things near and far, fast and slow motion.
        scale = 2 ** rng.uniform(*LOG_SCALE)
        rows, columns = augment.crop_window(tuple(flow.shape[-2:]), (round(CROP[0] / scale), round(CROP[1] / scale)),
                                            rng)
        mirror = rng.random() < 0.5, rng.random() < 0.1
        images = augment.flip_image(images[..., rows, columns], *mirror)
        flow = augment.flip_flow(flow[:, rows, columns], *mirror)
        valid = augment.flip_image(valid[rows, columns], *mirror)
        # A point that comes close to the camera can move by thousands of pixels: no lesson in that.
        valid = valid & (flow.norm(dim=0) < LARGEST)
        flow, valid = geometry.resize_known_flow(flow[None], valid[None], CROP)
        images = geometry.resize(images, CROP)
        if rng.random() < COLORED:
            images = augment.jitter_colors(images, rng)
        images = augment.blur(images, rng)
        return {"image1": images[0], "image2": images[1], "flow": flow[0], "valid": valid[0]}


def scene_pairs(n_scenes: int, n_frames: int, seed: int, textures: str | Path | None = None,
                device: str = "cpu") -> Source:
    """Pairs of frames of ray-cast scenes, up to :data:`LONGEST_STEP` apart.

    A scene's frames are drawn once, when it is first asked for, and kept as bytes, its flow as half floats: a thousand
    pairs take 1.4 GB, in every process that draws.

    Args:
        textures: a folder of photographs for the surfaces; None for those of scikit-image.
        device: where scenes are drawn and kept.

    Raises:
        ValueError: a seed whose scenes would reach those that are kept for measuring.
    """
    if seed * SCENES_PER_SEED + n_scenes > MEASURING_SEED:
        raise ValueError(f"seed must be below {(MEASURING_SEED - n_scenes) // SCENES_PER_SEED + 1} for {n_scenes} "
                         f"scenes, got {seed}: scenes from {MEASURING_SEED} on are never trained on")
    presets = ("lab", "street", "crowd", "static")

    @cache
    def draw(number: int) -> list[tuple[Tensor, Tensor]]:
        rng = np.random.default_rng([seed, number])
        scene = scenes.Scene(presets[number % len(presets)], n_frames, SIZE, seed * SCENES_PER_SEED + number,
                             lighting=0.1, textures=textures, device=device)
        views = [scene.view([t]) for t in range(n_frames)]
        pairs = []
        for t in range(n_frames - 1):
            step = int(rng.integers(1, min(LONGEST_STEP, n_frames - 1 - t) + 1))
            flow = scene.motion([t], views[t], step).flow[0]
            images = torch.cat([views[t].image, views[t + step].image])
            pairs.append(((images * 255).round().byte(), flow.clamp(-2 * LARGEST, 2 * LARGEST).half()))
        return pairs

    def sample(rng: np.random.Generator) -> Sample:
        images, flow = draw(int(rng.integers(n_scenes)))[int(rng.integers(n_frames - 1))]
        return Sample(images.float() / 255, flow.float(), torch.ones_like(flow[0], dtype=torch.bool))

    return sample


def collage_pairs(textures: str | Path | None = None, device: str = "cpu") -> Source:
    """Pairs of :func:`diffslic.datasets.collages.collages`, drawn anew each time."""
    def sample(rng: np.random.Generator) -> Sample:
        pair = collages.collages(photographs(textures), 1, CROP, rng, device=device)
        return Sample(torch.cat([pair.image1, pair.image2]), pair.flow[0], torch.ones_like(pair.pieces[0]) > 0)

    return sample


def clip_pairs(clips: Sequence[Clip]) -> Source:
    """Pairs of neighbouring frames of clips with flow; where it is NaN it is not taught."""
    places = [(clip, t) for clip in clips for t in clip.frames_with("flow")]

    def sample(rng: np.random.Generator) -> Sample:
        clip, t = places[int(rng.integers(len(places)))]
        flow = clip.flow(t)
        return Sample(torch.stack([clip.frame(t), clip.frame(t + 1)]), flow, flow.isfinite().all(0))

    return sample


def prepare(dataset: str, root: str | Path | None = None) -> tuple[list[Clip], list[Clip]]:
    """Clips with flow to train on and to validate on, or none to train on where pairs are drawn.

    Args:
        dataset: "scenes", or a set of files with flow: "flyingchairs", "sintel", "kitti", "tartanair".
        root: the folder of a set of files. One clip in ten validates, one at least and 100 at most; of Sintel both
            passes are taken, a scene on one side with both. FlyingChairs is split by its own file where it is there.

    Raises:
        ValueError: another dataset, no ``root``, or a single clip.
    """
    if dataset == "scenes":
        return [], validation_clips()
    if dataset not in FLOW_SETS:
        raise ValueError(f"RAFT learns on scenes, {', '.join(FLOW_SETS)}, got {dataset!r}")
    if root is None:
        raise ValueError(f"{dataset} needs root=..., its folder on disk (see data/README.md)")
    if dataset == "flyingchairs" and (Path(root) / CHAIRS_SPLIT).is_file():
        return (datasets.open(dataset, root=root, split="train"),
                datasets.open(dataset, root=root, split="val")[:VALIDATION_CLIPS])
    passes = [datasets.open(dataset, root=root, render=render) for render in PASSES
              if (Path(root) / "training" / render).is_dir()] if dataset == "sintel" else []
    passes = [[clip for clip in clips if clip.has("flow")] for clips in passes or [datasets.open(dataset, root=root)]]
    if len(passes[0]) < 2:
        raise ValueError(f"{root}: training needs two clips with flow at least, one of them to validate, "
                         f"got {len(passes[0])}")
    last = len(passes[0]) - 1
    held_out = set(range(9, last + 1, 10)) or {last}
    return ([clip for clips in passes for i, clip in enumerate(clips) if i not in held_out],
            [clip for clips in passes for i, clip in enumerate(clips) if i in held_out][:VALIDATION_CLIPS])


def network(variant: str | None, start: str | Path | None) -> RAFT:
    """A network to train: a new one, or that of the weights ``start``.

    Raises:
        ValueError: a variant that is not that of ``start``.
    """
    if start is None:
        return RAFT(RAFTConfig(variant or "small"))
    known = RAFT.from_pretrained(start)
    if variant not in (None, known.config.variant):
        raise ValueError(f"{start} is a {known.config.variant} RAFT, asked was for a {variant} one")
    return known


def train(out_dir: str | Path, *, variant: str | None = None, steps: int = 2200, batch_size: int = 4, n_iters: int = 12,
          learning_rate: float = 4e-4, matching_weight: float = 1.0, power: float = 1.0, freeze_features: bool = False,
          clips: Sequence[Clip] = (), validation: Sequence[Clip] = (), n_scenes: int = 160, n_frames: int = 6,
          textures: str | Path | None = None, start: str | Path | None = None,
          validate_every: int = 500, seed: int = 1, device: str = "auto", devices: int = 1,
          precision: str = "32-true", workers: int = 1, resume: bool = True, loggers: Sequence[Any] = (),
          command: str = "", progress: bool = True) -> training.FitResult:
    """Train RAFT on scenes and collages, or on clips with flow; ``out_dir`` gets what :func:`training.fit` says.

    Args:
        variant: "small" or "large"; None: that of ``start``, or "small".
        n_iters: corrections per pair while training. With none, the features alone are trained, by the matching
            loss: several times faster, and a good start for the whole; in a single process only.
        matching_weight: of :func:`diffslic.flow.matching_loss` beside the paper's loss.
        power: see :func:`diffslic.flow.sequence_loss`.
        freeze_features: train all but what is compared; a third less work, for features that are trained already.
        clips: with flow, to train on; where there are none, scenes and collages are drawn.
        validation: clips with flow; by default :func:`validation_clips`.
        n_scenes, n_frames: the pool of scenes, drawn on the fly.
        textures: a folder of photographs for scenes and collages; None for those of scikit-image.
        start: weights to start from, or None. Batch norms keep their moments then.
        workers: processes that draw; with none, pairs are drawn where the network is.
        command: what the card says makes these weights again; by default the call of this function.

    Raises:
        ValueError: stages that train nothing, a power that is not positive, clips on both sides, a variant that is not
            that of ``start``, and what :func:`training.fit` raises.
    """
    if power <= 0 or n_iters < 0:
        raise ValueError(f"power must be above 0 and n_iters at least 0, got {power} and {n_iters}")
    if n_iters == 0 and (freeze_features or devices > 1 or "WORLD_SIZE" in os.environ):
        raise ValueError("n_iters=0 trains the features alone: they cannot be frozen, and one process does it")
    check_apart(clips, validation)
    torch.manual_seed(seed)
    model = network(variant, start)
    variant = model.config.variant
    model.fnet.requires_grad_(not freeze_features)
    if start is not None:  # small batches of another kind of video would spoil what many pairs have settled
        for layer in model.modules():
            if isinstance(layer, BatchNorm):
                layer.frozen = True
    where = "cpu" if workers else training.own_device(
        ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    sources = {collage_pairs(textures, where): COLLAGES,
               scene_pairs(n_scenes, n_frames, seed, textures, where): 1 - COLLAGES}
    pairs = Pairs({clip_pairs(clips): 1.0} if clips else sources, batch_size, seed)
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        if n_iters == 0:
            return matching_loss(network.similarity(batch["image1"], batch["image2"]), batch["flow"], batch["valid"])
        flows, similarity = network.predictions(batch["image1"], batch["image2"], n_iters)
        correcting = sequence_loss(flows, batch["flow"], batch["valid"], power=power)
        if freeze_features or matching_weight == 0:
            return correcting
        return correcting + matching_weight * matching_loss(similarity, batch["flow"], batch["valid"])

    validation = validation or validation_clips()
    settings = {"variant": variant, "batch_size": batch_size, "n_iters": n_iters, "matching_weight": matching_weight,
                "power": power, "freeze_features": freeze_features, "n_scenes": n_scenes, "n_frames": n_frames,
                "textures": str(textures), "start": str(start), "clips": [clip.name for clip in clips], "seed": seed}
    weigh, monitor = (evaluate, "epe") if n_iters else (matched, "nats")
    fit = training.fit(model, training.Batches(pairs), loss, lambda network: weigh(network, validation),
                       schedule, out_dir, monitor=monitor, higher_is_better=False, settings=settings, device=device,
                       devices=devices, precision=precision, workers=workers,
                       forward_methods=["predictions", "similarity"], resume=resume, loggers=loggers, progress=progress)
    write_card(out_dir, fit, name=f"RAFT, {variant}",
               what=f"{WHAT}, trained on {'clips with flow' if clips else 'procedural scenes and collages'}"
                    f"{f', from {start}' if start else ''}.",
               limits=LIMITS["clips" if clips else "drawn"], gpu_command=GPU_COMMAND,
               data=(f"{len(clips)} clips, " if clips else
                     f"{COLLAGES:.0%} collages, else {n_scenes} scenes of {n_frames} frames at {SIZE[0]}x{SIZE[1]}, ")
               + f"scaled crops of {CROP[0]}x{CROP[1]}, {batch_size} pairs a step, {n_iters} corrections",
               validation=f"{len(validation)} other clips, 12 corrections; epe in pixels, px1, px3, fl_all are shares",
               command=command or f"diffslic.recipes.raft.train({str(out_dir)!r}, steps={steps}, "
                                  f"learning_rate={learning_rate}, **{settings})")
    return fit


def validation_clips(n_clips: int = 8) -> list[Clip]:
    """Scenes that no training run uses: 8 clips of 3 frames at 240x320."""
    return scenes.clips("lab+street+crowd+static", n_clips, 3, (240, 320), seed=VALIDATION_SEED)


def evaluate(model: RAFT, clips: Sequence[Clip], n_iters: int = 12) -> dict[str, float]:
    """Means over all pairs of the clips: epe in pixels, shares px1, px3, fl_all.

    Where all clips tell what is hidden, ``epe_visible`` leaves it out.
    """
    device = training.device_of(model)
    rows, tell_hidden = [], all(clip.has("occlusion") for clip in clips)
    for clip in clips:
        frames = [clip.frame(t).to(device) for t in range(len(clip))]
        for t, flow in enumerate(model.video(frames, n_iters)):
            figures = metrics.flow(flow.cpu(), clip.flow(t))
            if tell_hidden:
                figures["epe_visible"] = metrics.flow(flow.cpu(), clip.flow(t), ~clip.occlusion(t))["epe"]
            rows.append(figures)
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def matched(model: RAFT, clips: Sequence[Clip]) -> dict[str, float]:
    """The matching loss of the features in nats, mean over all pairs of the clips."""
    device, values = training.device_of(model), []
    for clip in clips:
        for t in clip.frames_with("flow"):
            flow = clip.flow(t)[None].to(device)
            similarity = model.similarity(*(clip.frame(i)[None].to(device) for i in (t, t + 1)))
            values.append(float(matching_loss(similarity, flow.nan_to_num(), flow.isfinite().all(1))))
    return {"nats": float(np.mean(values))}
