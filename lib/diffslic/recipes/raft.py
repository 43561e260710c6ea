"""How RAFT is trained on scenes: pairs of frames with exact flow, the paper's sequence loss, end-point error."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffslic import geometry, metrics, training
from diffslic.datasets import scenes
from diffslic.datasets.clip import Clip
from diffslic.flow import RAFT, RAFTConfig, matching_loss, sequence_loss
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card

SIZE = (240, 320)  # of the rendered frames
CROP = (160, 224)
LOG_SCALE = (-0.5, 0.7)  # crops are shrunk by up to 1.4 and enlarged by up to 1.6, to this power of two
LARGEST = 200  # pixels of flow that are taught
VALIDATION_SEED = 900_000  # scenes from this seed on are never trained on
CARD = {"what": "Optical flow (Teed and Deng 2020), trained on procedural scenes only.",
        "gpu_command": "diffslic train raft --out runs/raft --steps 60000 --batch-size 12 --workers 12 --device cuda",
        "limits": "The scenes move rigidly and have no motion blur, shadows, water or smoke: expect less on real video "
                  "than the figures say, above all for thin, deforming and very fast things."}


class Pairs:
    """Batches of frame pairs with their flow, drawn from a pool of scenes.

    A scene's frames are drawn once and kept as bytes; every batch then cuts, scales, mirrors, colours and blurs them
    anew.

    Args:
        n_scenes: size of the pool. n_frames: frames per scene.
        batch_size: pairs per batch.
        seed: chooses the scenes and everything random.
    """

    def __init__(self, n_scenes: int, n_frames: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed, self.n_frames = batch_size, seed, n_frames
        pool = scenes.clips("lab+street+crowd+static", n_scenes, n_frames, SIZE, seed=seed * 10_000, lighting=0.1)
        self.n_scenes, self._drawn = n_scenes, lru_cache(maxsize=None)(lambda scene: _draw_pairs(pool[scene]))

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: image1, image2 (B, 3, h, w), flow (B, 2, h, w), valid (B, h, w)."""
        samples = [self._sample(np.random.default_rng([self.seed, number, item])) for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        scene, t = int(rng.integers(self.n_scenes)), int(rng.integers(self.n_frames - 1))
        images, flow = self._drawn(scene)[t]
        # Cut a window of another size and bring it to that of all: things near and far, fast and slow motion.
        scale = 2 ** rng.uniform(*LOG_SCALE)
        rows, columns = augment.crop_window(SIZE, (round(CROP[0] / scale), round(CROP[1] / scale)), rng)
        mirror = rng.random() < 0.5, rng.random() < 0.1
        images = augment.flip_image(images[..., rows, columns].float() / 255, *mirror)
        flow = augment.flip_flow(flow[:, rows, columns].float(), *mirror)
        # A point that comes close to the camera can move by thousands of pixels: no lesson in that, nor in what the
        # resize would mix with it.
        wild = (flow.norm(dim=0) >= LARGEST).float()[None, None]
        images, flow = geometry.resize(images, CROP), geometry.resize_flow(flow[None].clamp(-LARGEST, LARGEST), CROP)[0]
        images = augment.blur(augment.jitter_colors(images, rng), rng)
        return {"image1": images[0], "image2": images[1], "flow": flow,
                "valid": geometry.resize(wild, CROP)[0, 0] == 0}


def _draw_pairs(clip: Clip) -> list[tuple[Tensor, Tensor]]:
    """The pairs of a scene, in bytes and half floats: a thousand pairs take 0.7 GB."""
    read = [((clip.frame(t) * 255).round().byte(), clip.flow(t).half() if t + 1 < len(clip) else None)
            for t in range(len(clip))]
    return [(torch.stack([frame, read[t + 1][0]]), flow) for t, (frame, flow) in enumerate(read[:-1])]


def train(out_dir: str | Path, *, variant: str = "small", steps: int = 2200, batch_size: int = 4, n_iters: int = 6,
          learning_rate: float = 4e-4, matching_weight: float = 1.0, n_scenes: int = 160, n_frames: int = 8,
          start: str | Path | None = None,
          validate_every: int = 500, seed: int = 1, device: str = "auto", devices: int = 1,
          precision: str = "32-true", workers: int = 1, resume: bool = True, loggers: Sequence[Any] = (),
          command: str = "", progress: bool = True) -> training.FitResult:
    """Train RAFT on scenes; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        variant: "small" or "large".
        n_iters: corrections per pair while training.
        matching_weight: of :func:`diffslic.flow.matching_loss` beside the paper's loss.
        n_scenes, n_frames: the pool of scenes, drawn on the fly.
        start: weights to start from (their variant counts then), or None.
        command: what the card says makes these weights again; by default the call of this function.
    """
    torch.manual_seed(seed)
    model = RAFT(RAFTConfig(variant)) if start is None else RAFT.from_pretrained(start).train()
    variant = model.config.variant
    pairs = Pairs(n_scenes, n_frames, batch_size, seed)
    schedule = training.Schedule(steps, learning_rate, validate_every=min(validate_every, steps))

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        flows, similarity = network.predictions(batch["image1"], batch["image2"], n_iters)
        matching = matching_loss(similarity, batch["flow"], batch["valid"])
        return sequence_loss(flows, batch["flow"], batch["valid"]) + matching_weight * matching

    validation = validation_clips()
    settings = {"variant": variant, "batch_size": batch_size, "n_iters": n_iters, "matching_weight": matching_weight,
                "n_scenes": n_scenes, "n_frames": n_frames, "start": str(start), "seed": seed}
    fit = training.fit(model, training.Batches(pairs), loss, lambda network: evaluate(network, validation), schedule,
                       out_dir, monitor="epe", higher_is_better=False, settings=settings, device=device,
                       devices=devices, precision=precision, workers=workers,
                       forward_methods=["predictions"], resume=resume, loggers=loggers, progress=progress)
    write_card(out_dir, fit, name=f"RAFT, {variant}", **CARD,
               data=f"{n_scenes} scenes of {n_frames} frames at {SIZE[0]}x{SIZE[1]}, "
                    f"scaled crops of {CROP[0]}x{CROP[1]}, {batch_size} pairs a step, {n_iters} corrections",
               validation=f"{len(validation)} other scenes, 12 corrections; epe in pixels, px1, px3, fl_all are shares",
               command=command or f"diffslic.recipes.raft.train({str(out_dir)!r}, steps={steps}, **{settings})")
    return fit


def validation_clips(n_clips: int = 8) -> list[Clip]:
    """Scenes that no training run uses: 8 clips of 3 frames at 240x320."""
    return scenes.clips("lab+street+crowd+static", n_clips, 3, SIZE, seed=VALIDATION_SEED)


def evaluate(model: RAFT, clips: Sequence[Clip], n_iters: int = 12) -> dict[str, float]:
    """Means over all pairs of the clips: epe in pixels, shares px1, px3, fl_all; epe_visible skips what is hidden."""
    device = training.device_of(model)
    rows = []
    for clip in clips:
        frames = [clip.frame(t).to(device) for t in range(len(clip))]
        for t, flow in enumerate(model.video(frames, n_iters)):
            truth, visible = clip.flow(t), ~clip.occlusion(t)
            figures = metrics.flow(flow.cpu(), truth)
            rows.append({**figures, "epe_visible": metrics.flow(flow.cpu(), truth, visible)["epe"]})
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
