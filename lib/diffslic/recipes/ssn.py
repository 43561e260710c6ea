"""How superpixel networks are trained: the segments that somebody drew, or a program knows, must be respected.

On procedural scenes every visible surface is a segment; on BSDS500 a random annotator's segments are taken at every
step and all annotators count in the validation; for a composite, DAVIS has objects as segments and cached flow beside
the frames.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diffslic import datasets, pipeline, training
from diffslic.datasets.clip import Clip, check_apart
from diffslic.datasets.composite_flow import flow_both_ways, with_flow_from
from diffslic.evaluation import evaluate_superpixels, segments_of, superpixels_of
from diffslic.flow import RAFT
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card
from diffslic.superpixels import (
    SSN,
    SpixelFCN,
    SSNConfig,
    classical_slic,
    compactness,
    label_reconstruction,
    soft_iou,
)

SIZE = (240, 320)  # of the scenes
CROP = (160, 160)
CELLS = (16, 160)  # superpixels per crop: between these, the same for all crops of a batch (so of one process)
PRESETS = "lab+street+crowd+static"
N_SCENES, VALIDATION_SCENES = 160, 16
TRAINING_SEED, VALIDATION_SEED = 20_000, 900_000  # of scenes
MEMORY = 250_000_000  # bytes of pictures that are kept at a time: all scenes, most of BSDS500, a part of DAVIS
COUNTS, FRAMES = (100, 200, 500), 4  # of the validation: superpixels requested, frames of a video
ON_A_GPU = ("diffslic train ssn --out runs/ssn {network} {data} --steps 100000 --batch-size 8 --rate 1e-3 --workers 12 "
            "--device cuda")
NETWORK_ON_A_GPU = {"ssn": "--width 64", "composite": "--model composite --start bsds500",
                    "spixelfcn": "--model spixelfcn"}
DATA_ON_A_GPU = {"scenes": "--n-scenes 2000", "bsds500": "--dataset bsds500 --root BSDS500",
                 "davis2016": "--dataset davis2016 --root DAVIS"}
RECONSTRUCTIONS = {"probability": label_reconstruction, "iou": soft_iou,
                   "logsoftmax": partial(label_reconstruction, form="logsoftmax")}
WHAT = {"ssn": "Superpixel sampling network (Jampani et al. 2018).",
        "composite": "Superpixel sampling network with a second network over flow.",
        "spixelfcn": "Superpixels in one pass of a network (Yang et al. 2020)."}
LIMITS = {"scenes": "It knows the textures of scikit-image's photographs on flat and round surfaces; hair, foliage and "
                    "text are new to it.",
          "bsds500": "It has learned what people outline in photographs: fine texture inside an object is not "
                     "respected, and night, fog and drawings are new to it.",
          "davis2016": "The second network knows the flow of one method and the objects of some twenty videos."}


class _Picture(NamedTuple):
    """What training needs of one frame, in few bytes."""

    image: Tensor  # (3, H, W) uint8
    annotations: Tensor  # (A, H, W) int16: the segments of each annotator
    flow: Tensor | None  # (4, H, W) half: there and back, u and v in pixels
    superpixels: Tensor | None  # (H, W) int16: of classical SLIC


class Crops:
    """Batches of crops with the segments of one annotator each, in random order; smaller images are taken whole.

    Args:
        clips: with frames and annotations, segments or labels, the first of these that a clip has.
        batch_size: crops per batch.
        seed: of everything random.
        flow: also give the flow there and back.
        size: rows and columns of a crop, by default :data:`CROP`.
        upside_down: mirror half of them from top to bottom too, where up and down do not matter.
        superpixel_size: also give classical superpixels of about so many pixels, found once in each picture.
    """

    def __init__(self, clips: Sequence[Clip], batch_size: int, seed: int, flow: bool = False,
                 size: tuple[int, int] | None = None, upside_down: bool = True,
                 superpixel_size: int | None = None) -> None:
        if not clips or batch_size < 1:
            raise ValueError(f"training needs a clip and a batch_size from 1, got {len(clips)} clips and {batch_size}")
        self.batch_size, self.seed, self.size, self.upside_down = batch_size, seed, size or CROP, upside_down
        self.frames = [(i, t) for i, clip in enumerate(clips) for t in range(len(clip))]
        clips = list(clips)
        # Colour, the segments of one truth or about five annotators, flow both ways, superpixels.
        each = 3 + (10 if clips[0].has("annotations") else 2) + 8 * flow + 2 * (superpixel_size is not None)
        bytes_each = each * max(clip.size[0] * clip.size[1] for clip in clips)
        self._read = lru_cache(maxsize=MEMORY // bytes_each)(lambda clip, t: _read_picture(clips[clip], t, flow,
                                                                                              superpixel_size))

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: image (B, 3, h, w), segments (B, h, w) from 0, n_spixels (B,), and flow (B, 4, h, w)."""
        batch = self.cut(number)
        # Numbered anew within the crop: the loss takes one channel per segment.
        segments = torch.stack([each.unique(return_inverse=True)[1] for each in batch["segments"]])
        count = int(np.random.default_rng([self.seed, 7, number]).integers(*CELLS, endpoint=True))
        return {**batch, "segments": segments, "n_spixels": torch.full((self.batch_size,), count)}

    def cut(self, number: int) -> dict[str, Tensor]:
        """Batch ``number`` with segments (B, h, w) as the annotator numbered them, and superpixels (B, h, w) from 0."""
        samples = [self._sample(number * self.batch_size + item) for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _sample(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.frames))
        order = np.random.default_rng([self.seed, 8, epoch]).permutation(len(self.frames))
        picture = self._read(*self.frames[order[place]])
        rng = np.random.default_rng([self.seed, 9, epoch, place])
        window = augment.crop_window(tuple(picture.image.shape[1:]), self.size, rng)
        mirror = rng.random() < 0.5, rng.random() < 0.5 and self.upside_down
        # Nothing else is changed: blurred by a zoom or tinted, photographs taught less about photographs.
        segments = augment.flip_image(picture.annotations[rng.integers(len(picture.annotations))][window], *mirror)
        sample = {"image": augment.flip_image(picture.image[:, *window].float() / 255, *mirror),
                  "segments": segments.long()}
        if picture.superpixels is not None:
            superpixels = augment.flip_image(picture.superpixels[window], *mirror)
            sample["superpixels"] = superpixels.unique(return_inverse=True)[1]
        if picture.flow is not None:
            flow = picture.flow[:, *window].float().unflatten(0, (2, 2))
            sample["flow"] = augment.flip_flow(flow, *mirror).flatten(0, 1)
        return sample


def _read_picture(clip: Clip, t: int, flow: bool, superpixel_size: int | None) -> _Picture:
    image = clip.frame(t)
    superpixels = None
    if superpixel_size is not None:
        superpixels = classical_slic(image, max(1, image[0].numel() // superpixel_size)).short()
    return _Picture((image * 255).round().byte(), segments_of(clip, t).short(),
                    flow_both_ways(clip, t).half() if flow else None, superpixels)


def train(out_dir: str | Path, clips: Sequence[Clip], validation: Sequence[Clip], *, model: str = "ssn",
          width: int | None = None, n_iters: int | None = None, start: str | Path | None = None, steps: int = 800,
          batch_size: int = 6, learning_rate: float = 1e-3, reconstruction: str = "probability",
          compactness_weight: float = 1e-5, validate_every: int = 500, seed: int = 2,
          device: str = "auto", devices: int = 1, precision: str = "32-true", workers: int = 1, resume: bool = True,
          loggers: Sequence[Any] = (), command: str = "", progress: bool = True) -> training.FitResult:
    """Train a superpixel network; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        clips, validation: with frames and segments, see :class:`Crops`; for a composite with flow there and back too.
        model: "ssn", "composite" (``start`` is its base), or "spixelfcn".
        width: channels of a new SSN's inner convolutions: 64 in the paper, by default 32, which is half as slow.
        n_iters: soft SLIC iterations of an SSN, while training and by default afterwards: 5, or those of ``start``.
        start: weights to start from.
        reconstruction: of segments: "probability" or "logsoftmax", see :func:`label_reconstruction`; or "iou", see
            :func:`soft_iou`.
        compactness_weight: of the compactness loss beside the reconstruction of segments (the paper's 1e-5).
        command: what the card says makes these weights again; by default the call of this function.
    """
    check_apart(clips, validation)
    torch.manual_seed(seed)
    network = new_network(model, width, n_iters, start)
    crops = Crops(clips, batch_size, seed, flow=model == "composite")
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)

    def loss(network: nn.Module, batch: training.Batch) -> Tensor:
        extra = {"extra": batch["flow"]} if model == "composite" else {}
        soft = network(batch["image"], int(batch["n_spixels"][0]), **extra)
        compact = compactness(soft, "soft" if model == "spixelfcn" else "hard")  # without centroids, only soft teaches
        return RECONSTRUCTIONS[reconstruction](soft, batch["segments"]) + compactness_weight * compact

    settings = {**settings_of(model, network, start, reconstruction, compactness_weight, batch_size, seed),
                "clips": [clip.name for clip in clips]}
    settings |= {"mean motion": pipeline.mean_motion(clips[0])} if model == "composite" else {}
    fit = training.fit(network, training.Batches(crops), loss, lambda trained: evaluate(trained, validation), schedule,
                       out_dir, monitor="asa", higher_is_better=True, settings=settings, device=device,
                       devices=devices, precision=precision, workers=workers, resume=resume, loggers=loggers,
                       progress=progress)

    def without_a_network() -> dict[str, float]:
        pixels = evaluate(SSN(SSNConfig(features="pix", n_iters=10)).eval(), validation)
        return {f"{key}, pixel features": pixels[key] for key in ("asa", "br", "count")}

    kind = "bsds500" if clips[0].has("annotations") else "scenes" if clips[0].has("segments") else "davis2016"
    write_card(out_dir, fit, name=f"{WHAT[model].split('(')[0].strip(' .')}, trained on {kind}", what=WHAT[model],
               limits=LIMITS[kind],
               gpu_command=ON_A_GPU.format(network=NETWORK_ON_A_GPU[model], data=DATA_ON_A_GPU[kind]),
               data=f"{len(clips)} clips ({clips[0].name} ...), {len(crops.frames)} frames, crops of "
                    f"{CROP[0]}x{CROP[1]} with {CELLS[0]} to {CELLS[1]} superpixels, {batch_size} a step",
               validation=f"{len(validation)} others ({validation[0].name} ...), all annotators, connected, mean over "
                          f"{', '.join(map(str, COUNTS))} superpixels; the rows with pixel features are the same "
                          "clustering without a network",
               command=command or f"diffslic.recipes.ssn.train({str(out_dir)!r}, ..., steps={steps})",
               more=without_a_network)
    return fit


def settings_of(model: str, network: SSN | SpixelFCN, start: str | Path | None, reconstruction: str,
                compactness_weight: float, batch_size: int, seed: int) -> dict[str, Any]:
    """What makes a run what it is, but for its clips: known before they are prepared. See :func:`train`.

    Raises:
        ValueError: no such reconstruction.
    """
    if reconstruction not in RECONSTRUCTIONS:
        raise ValueError(f"reconstruction must be one of {', '.join(RECONSTRUCTIONS)}, got {reconstruction!r}")
    return {"model": model, "batch_size": batch_size, "start": str(start), "configuration": asdict(network.config),
            "reconstruction": reconstruction, "compactness_weight": compactness_weight, "seed": seed}


def new_network(model: str, width: int | None, n_iters: int | None, start: str | Path | None) -> SSN | SpixelFCN:
    """The network before it is trained; see :func:`train`.

    Raises:
        ValueError: no such model, or one that does not go with the rest.
    """
    if model not in WHAT:
        raise ValueError(f"model must be one of {', '.join(WHAT)}, got {model!r}")
    if width is not None and (model == "spixelfcn" or start is not None):
        raise ValueError("width is of a new SSN: spixelfcn has none, and weights to start from have theirs")
    if model == "spixelfcn":
        if n_iters is not None:
            raise ValueError("n_iters is of an SSN: spixelfcn does not iterate")
        return (SpixelFCN() if start is None else SpixelFCN.from_pretrained(start)).train()
    changes = {} if n_iters is None else {"n_iters": n_iters}
    if start is None:
        if model == "composite":
            raise ValueError("a composite needs start=..., the weights of its base")
        return SSN(SSNConfig(width=32 if width is None else width, **changes)).train()
    network = SSN.from_pretrained(start, **changes)
    if network.extra_net is not None and model == "ssn":
        raise ValueError(f"{start} is a composite: it is trained on as model 'composite'")
    return (network.composite() if model == "composite" and network.extra_net is None else network).train()


def evaluate(model: SSN | SpixelFCN, clips: Sequence[Clip], counts: Sequence[int] = COUNTS) -> dict[str, float]:
    """Means over clips and counts: asa, br, ue, co and the achieved count of connected superpixels.

    A photograph is judged by all annotators, a video by ``FRAMES`` frames amid it: at its ends flow goes one way only.
    """
    every = -(-max(map(len, clips)) // FRAMES)
    scores = evaluate_superpixels({"": partial(superpixels_of, model)}, clips, counts, every, every // 2,
                                  progress=False)
    return scores.rows[["asa", "br", "ue", "co", "count"]].mean().to_dict()


def prepare(dataset: str, root: str | Path | None = None, *, n_scenes: int = N_SCENES, resolution: str = "480p",
            davis: str | Path | None = None, flow: bool = False, flow_root: str | Path | None = None,
            cache: str | Path = "cache", raft: str | Path = "small", device: str = "cpu",
            progress: bool = True) -> tuple[list[Clip], list[Clip]]:
    """Clips to train and to validate on.

    Args:
        dataset: "scenes"; "bsds500", its official train split, every tenth photograph of which validates; or
            "davis2016", its development split by sequence (eight sequences stay out of both parts).
        root: of BSDS500 or DAVIS. resolution: of DAVIS. n_scenes: to train on, two frames of each.
        davis: DAVIS's folder, to train on photographs or scenes and validate on the validating part of its split.
        flow: a composite needs flow both ways. Of scenes it is exact; of DAVIS it is read from ``flow_root``/<clip>.h5,
            or computed by ``raft`` and kept under ``cache``.
    """
    if dataset not in ("scenes", "bsds500", "davis2016"):
        raise ValueError(f"superpixels are learned on scenes, bsds500 or davis2016, got {dataset!r}")
    if flow and dataset == "bsds500":
        raise ValueError("a composite is learned on scenes or davis2016: nothing moves in a photograph of bsds500")
    if dataset != "scenes" and root is None:
        raise ValueError(f"{dataset} needs root=..., its folder on disk (see data/README.md)")
    if dataset == "davis2016":
        clips, validation = _davis(root, resolution)
    elif dataset == "bsds500":
        clips, validation = (datasets.open("bsds500", root=root, split=split) for split in ("dev_train", "dev_val"))
    else:
        clips, validation = (datasets.open("scenes", preset=PRESETS, n_clips=count, n_frames=2, size=SIZE, seed=seed,
                                           lighting=0.1, device=device)
                             for count, seed in ((n_scenes, TRAINING_SEED), (VALIDATION_SCENES, VALIDATION_SEED)))
    if davis is not None:
        validation = _davis(davis, resolution)[1]

    def with_flow(clips: list[Clip]) -> list[Clip]:
        if clips[0].has("backward_flow"):
            return clips
        if flow_root is not None:
            return [with_flow_from(clip, flow_root) for clip in clips]
        network = RAFT.from_pretrained(raft, device)
        folder = pipeline.cache_folder(cache, "davis2016", resolution, "flow")
        return pipeline.precompute_flow(clips, network, folder, both_ways=True, progress=progress)

    return (with_flow(clips), with_flow(validation)) if flow else (clips, validation)


def _davis(root: str | Path, resolution: str) -> tuple[list[Clip], list[Clip]]:
    """The development split by sequence, for training and for validation."""
    clips = datasets.open("davis2016", root=root, split="dev_train", resolution=resolution)
    return [clip for i, clip in enumerate(clips) if i % 6 != 5], clips[5::6]
