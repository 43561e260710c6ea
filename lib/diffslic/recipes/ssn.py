"""How the superpixel network is trained on scenes: every visible surface is a segment that superpixels must respect."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffslic import metrics, training
from diffslic.datasets import scenes
from diffslic.datasets.clip import Clip
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card
from diffslic.superpixels import SSN, SSNConfig, compactness, label_reconstruction

SIZE = (240, 320)  # of the rendered frames
CROP = (160, 160)
CROP_SPIXELS = 64  # cells of 20 x 20 pixels, as 200 superpixels have at 240x320
PRESETS = "lab+street+crowd+static"
VALIDATION_SEED = 900_000  # scenes from this seed on are never trained on
CARD = {"what": "Superpixel sampling network (Jampani et al. 2018), trained on procedural scenes only.",
        "gpu_command": "diffslic train ssn --out runs/ssn --steps 30000 --width 64 --workers 12 --device cuda",
        "limits": "It knows the textures of scikit-image's photographs on flat and round surfaces; hair, foliage and "
                  "text are new to it."}


class Frames:
    """Batches of single frames with their segments, drawn from a pool of scenes.

    Args:
        n_scenes: size of the pool; of each scene the first and the last of 8 frames are used.
        batch_size: frames per batch.
        seed: chooses the scenes and everything random.
    """

    def __init__(self, n_scenes: int, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.batch_size, self.seed = batch_size, seed
        pool = scenes.clips(PRESETS, n_scenes, 8, SIZE, seed=seed * 10_000, lighting=0.1)
        self.n_scenes, self._drawn = n_scenes, lru_cache(maxsize=None)(lambda scene: _draw_frames(pool[scene]))

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: image (B, 3, h, w) in [0, 1], segments (B, h, w) int64 from 0."""
        samples = [self._sample(np.random.default_rng([self.seed, number, item])) for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, rng: np.random.Generator) -> dict[str, Tensor]:
        image, segments = self._drawn(int(rng.integers(self.n_scenes)))[int(rng.integers(2))]
        window = augment.crop_window(SIZE, CROP, rng)
        mirror = rng.random() < 0.5, rng.random() < 0.5
        image = augment.flip_image(image[:, *window].float() / 255, *mirror)
        image = augment.jitter_colors(image[None], rng)[0]
        # Numbered anew within the crop: the loss takes one channel per segment.
        _, segments = augment.flip_image(segments[window], *mirror).unique(return_inverse=True)
        return {"image": image, "segments": segments}


def _draw_frames(clip: Clip) -> list[tuple[Tensor, Tensor]]:
    """The first and the last frame of a scene with their segments, in bytes: a thousand take 0.3 GB."""
    return [((clip.frame(t) * 255).round().byte(), clip.segments(t).byte()) for t in (0, len(clip) - 1)]


def train(out_dir: str | Path, *, steps: int = 800, batch_size: int = 6, width: int = 32, n_iters: int = 5,
          learning_rate: float = 1e-3, compactness_weight: float = 1e-5, n_scenes: int = 120,
          validate_every: int = 200, seed: int = 2, device: str = "auto", devices: int = 1,
          precision: str = "32-true", workers: int = 1, resume: bool = True, loggers: Sequence[Any] = (),
          command: str = "", progress: bool = True) -> training.FitResult:
    """Train SSN's feature net on scenes; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        width: channels of the net's inner convolutions; 64 in the paper, 32 is half as slow.
        n_iters: soft SLIC iterations, while training and by default afterwards.
        command: what the card says makes these weights again; by default the call of this function.
        compactness_weight: of the compactness loss beside the reconstruction of segments (the paper's 1e-5).
    """
    torch.manual_seed(seed)
    model = SSN(SSNConfig(width=width, n_iters=n_iters))
    schedule = training.Schedule(steps, learning_rate, validate_every=min(validate_every, steps))

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        soft = network(batch["image"], CROP_SPIXELS)
        return label_reconstruction(soft, batch["segments"]) + compactness_weight * compactness(soft)

    validation = validation_clips()
    settings = {"batch_size": batch_size, "width": width, "n_iters": n_iters, "compactness_weight": compactness_weight,
                "n_scenes": n_scenes, "seed": seed}
    fit = training.fit(model, training.Batches(Frames(n_scenes, batch_size, seed)), loss,
                       lambda network: evaluate(network, validation), schedule, out_dir, monitor="asa",
                       higher_is_better=True, settings=settings, device=device, devices=devices,
                       precision=precision, workers=workers, resume=resume, loggers=loggers, progress=progress)
    pixels = evaluate(SSN(SSNConfig(features="pix", n_iters=n_iters)).eval(), validation)
    write_card(out_dir, fit, name=f"SSN, {width} channels wide, trained on scenes", **CARD,
               data=f"{n_scenes} scenes, two frames each at {SIZE[0]}x{SIZE[1]}, crops of {CROP[0]}x{CROP[1]}, "
                    f"{batch_size} a step; every face of every object is a segment",
               validation=f"{len(validation)} other scenes, 200 superpixels, connected; the rows with pixel features "
                          "are the same clustering without a network",
               command=command or f"diffslic.recipes.ssn.train({str(out_dir)!r}, steps={steps}, **{settings})",
               more={f"{key}, pixel features": pixels[key] for key in ("asa", "br", "count")})
    return fit


def validation_clips(n_clips: int = 16) -> list[Clip]:
    """Scenes that no training run uses: clips of two frames at 240x320."""
    return scenes.clips(PRESETS, n_clips, 2, SIZE, seed=VALIDATION_SEED)


def evaluate(model: SSN, clips: Sequence[Clip], n_spixels: int = 200) -> dict[str, float]:
    """Means over the first frames of the clips: asa, br, ue, co and the achieved count of connected superpixels."""
    device = training.device_of(model)
    rows = []
    for clip in clips:
        labels = model.segment(clip.frame(0)[None].to(device), n_spixels)[0]
        figures = metrics.superpixels(labels.cpu(), [clip.segments(0)])
        rows.append({key: figures[key] for key in ("asa", "br", "ue", "co", "count")})
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
