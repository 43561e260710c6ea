"""How MotionNet learns motion segmentation from flow alone: the coherence of what it calls one body.

No mask is ever shown to it. Clips with labels are scored during validation, and what is kept is the state with the
least validation *loss*.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffslic import datasets, pipeline, training
from diffslic.datasets.clip import Clip, check_apart
from diffslic.flow import RAFT
from diffslic.recipes import augment
from diffslic.recipes.cards import write_card
from diffslic.recipes.unet import MEMORY, score
from diffslic.segmentation import (
    MotionNet,
    MotionNetConfig,
    coherence_loss,
    motion_basis,
    spacetime_loss,
    spline_basis,
    temporal_consistency,
)
from diffslic.segmentation.motionnet import CHANNELS, at_size, parse_input
from diffslic.segmentation.parametric import FITS, check_distance, check_model
from diffslic.segmentation.spacetime import SPACING, entropy, potts

TRAINING_SEED, VALIDATION_SEED = 30_000, 900_000  # of scenes
STRENGTHS = {"none": 0.0, "light": 2.0, "medium": 4.0, "strong": 8.0}  # of global motion, to the flow's mean length
SCALES = {"none": 1.0, "light": 4.0, "medium": 8.0, "strong": 10.0}  # of the flow, one end of a window to the other
SPACETIME = MotionNetConfig()
EM = MotionNetConfig(window=1, widths=(16, 32, 64, 128, 128))
SYSTEMS = {
    "em": "Layers of coherent motion, frame by frame, learned from flow without masks.",
    "spacetime": "Layers of coherent motion over windows of frames, learned from flow without masks; a layer keeps its "
                 "number over a clip.",
}
LIMITS = ("It sees flow alone: what stands still is lost, parts of the static world at another depth can be taken for "
          "moving ones, and which layer is the background is a guess from where it lies.")


@dataclass(frozen=True)
class Loss:
    """What is minimised."""

    model: str = "quadratic"        # of a layer's motion: constant, affine or quadratic
    spacing: int = SPACING          # frames between the control points of a window's motion
    published: bool = False         # splines as published, which fade at both ends of a window
    distance: str = "l1"            # of the flow to it: l1, l2, squared or charbonnier
    fit: str = "ls"                 # how the motion is fitted: ls, as published, or irls
    normalised: bool = True         # count in units of the frame's mean motion
    consistency: float = 0.3        # weight of Euler-Potts, of windows only
    potts: float = 0.0              # weight of Potts, of windows only
    entropy: float = 0.02           # weight of the entropy

    def __post_init__(self) -> None:
        check_model(self.model)
        check_distance(self.distance)
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if min(self.consistency, self.potts, self.entropy) < 0 or self.spacing < 1:
            raise ValueError(f"spacing must be from 1 and weights from 0, got spacing {self.spacing}, consistency "
                             f"{self.consistency}, potts {self.potts} and entropy {self.entropy}")

    def __call__(self, masks: Tensor, flow: Tensor) -> Tensor:
        """(B,) of masks (B, L, T, H, W) and flow (B, 2, T, H, W)."""
        if flow.shape[2] == 1:
            return coherence_loss(masks[:, :, 0], flow[:, :, 0], self.model, self.distance, self.fit,
                                  normalised=self.normalised, entropy=self.entropy)
        loss = spacetime_loss(masks, flow, self.model, self.spacing, self.distance, self.fit,
                              normalised=self.normalised, published=self.published)
        for weight, term in ((self.consistency, lambda: temporal_consistency(masks, flow)),
                             (self.potts, lambda: potts(masks)), (self.entropy, lambda: entropy(masks))):
            loss = loss + weight * term() if weight else loss
        return loss


@dataclass(frozen=True)
class Augmentation:
    """What is done to the flow of training windows."""

    global_motion: str = "light"    # strength of an added parametric motion of the whole frame: see ``STRENGTHS``
    temporal_scale: str = "none"    # how much faster one end of a window moves: see ``SCALES``
    crop: int | None = None         # side of square crops, in pixels of the network's size
    noise: float = 0.0              # deviation of noise on the flow that is read, in units of its strength
    null: float = 0.0               # share of windows in which the flow that is read of one frame is nothing at all

    def __post_init__(self) -> None:
        for name, known in (("global_motion", STRENGTHS), ("temporal_scale", SCALES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.noise < 0 or not 0 <= self.null <= 1 or (self.crop is not None and self.crop < 8):
            raise ValueError(f"noise must be from 0, null a share from 0 to 1 and crop from 8, got noise {self.noise}, "
                             f"null {self.null} and crop {self.crop}")


class Windows:
    """Batches of windows of flow: a random one of every clip, however long it is, then of every clip again.

    Args:
        clips: with flow, and images where the network reads them. model: whose configuration says what it reads.
        seed: of everything random. loss: which motions it explains, those that augmentation may add.
    """

    def __init__(self, clips: Sequence[Clip], model: MotionNet, augmentation: Augmentation, batch_size: int,
                 seed: int, loss: Loss = Loss()) -> None:
        self.config, self.augmentation, self.batch_size, self.seed = model.config, augmentation, batch_size, seed
        self.loss = loss
        self._channels = model.channels
        window = model.config.window
        self.starts = [len(clip) - window for clip in clips]  # how many windows each clip has
        self.clips = [i for i, count in enumerate(self.starts) if count > 0]
        if not self.clips or batch_size < 1:
            raise ValueError(f"training needs a clip with {window + 1} frames and a batch_size from 1, got "
                             f"{max(map(len, clips), default=0)} frames at most and {batch_size}")
        rows, columns = self.config.size
        if (augmentation.crop or 0) > min(rows, columns):
            raise ValueError(f"square crops of {augmentation.crop} do not fit into {rows}x{columns}")
        self._read = lru_cache(MEMORY // (2 * 8 * rows * columns))(lambda clip, t: self._frame(clips[clip], t))

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: input (B, C, T, h, w), flow (B, 2, T, h, w) in pixels of the network's size."""
        samples = [self._sample(number * self.batch_size + item) for item in range(self.batch_size)]
        return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _frame(self, clip: Clip, t: int) -> dict[str, Tensor]:
        """Fields of a frame at the network's size, in few bytes."""
        return {name: field.half() for name, field in _fields(clip, [t], self.config).items()}

    def _sample(self, position: int) -> dict[str, Tensor]:
        epoch, place = divmod(position, len(self.clips))
        clip = self.clips[np.random.default_rng([self.seed, epoch]).permutation(len(self.clips))[place]]
        rng = np.random.default_rng([self.seed, epoch, place])
        start = int(rng.integers(self.starts[clip]))
        numbers, inner = _with_neighbours(range(start, start + self.config.window), self.config,
                                          self.starts[clip] + self.config.window - 1)
        frames = [self._read(clip, t) for t in numbers]
        fields = {name: torch.cat([frame[name] for frame in frames]).float() for name in frames[0]}
        fields = augmented(fields, self.augmentation, rng, self.loss, inner)
        with torch.no_grad():
            channels = perturbed(self._channels(fields)[inner], self.augmentation, rng, self.config.inputs)
        return {"input": channels.transpose(0, 1), "flow": fields["flow"][inner].transpose(0, 1)}


def _with_neighbours(window: range, config: MotionNetConfig, count: int) -> tuple[range, slice]:
    """A window with the frames around it that the network reads, of ``count`` there are; and where in them it lies."""
    before, after = config.margin
    start = max(0, window.start - before)
    return range(start, min(count, window.stop + after)), slice(window.start - start, window.stop - start)


def _fields(clip: Clip, frames: Sequence[int], config: MotionNetConfig) -> dict[str, Tensor]:
    """Flow (T, 2, h, w) and what else the network reads of a clip, at its size."""
    return at_size(pipeline.motion_fields(clip, frames, config.fields), config.size)


def augmented(fields: dict[str, Tensor], how: Augmentation, rng: np.random.Generator, loss: Loss = Loss(),
              inner: slice = slice(None)) -> dict[str, Tensor]:
    """Fields of a window (T, C, h, w), mirrored at random, cut, and with the motion of another camera.

    See :func:`global_motion` for ``loss`` and ``inner``.
    """
    size = fields["flow"].shape[-2:]
    mirror = rng.random() < 0.5, False
    window = augment.crop_window(tuple(size), (how.crop or size[0], how.crop or size[1]), rng)
    fields = {name: (augment.flip_flow if name == "flow" else augment.flip_image)(field[..., *window], *mirror)
              for name, field in fields.items()}
    flow = scaled_in_time(fields["flow"], SCALES[how.temporal_scale], rng)
    fields["flow"] = flow + global_motion(flow, STRENGTHS[how.global_motion], rng, loss, inner)
    if "flow_rgb" in fields:  # a picture of the flow that it was
        fields["flow_rgb"] = torch.stack([pipeline.painted(frame) for frame in fields["flow"]])
    return fields


def global_motion(flow: Tensor, strength: float, rng: np.random.Generator, loss: Loss = Loss(),
                  inner: slice = slice(None)) -> Tensor:
    """A random motion of the whole frame that changes smoothly over the window: (T, 2, h, w).

    It is one of those that a layer may have by ``loss``, which therefore does not see it: what the network learns from
    it is to look through the camera's motion. Its mean length is a random share of ``strength`` times the flow's.

    Args:
        flow: (T, 2, h, w) in pixels. inner: the frames that the loss is of; those around them, which a network may
            read beside, move as the nearest of these.
    """
    frames = np.arange(len(flow))
    numbers = torch.from_numpy(frames.clip(frames[inner][0], frames[inner][-1]) - frames[inner][0])
    splines = spline_basis(len(frames[inner]), loss.spacing, loss.published)[numbers]       # (T, K)
    basis = motion_basis(*flow.shape[-2:], loss.model)
    theta = torch.from_numpy(rng.uniform(-1, 1, (splines.shape[1], 2, len(basis))))
    motion = torch.einsum("tk,kcf,fhw->tchw", splines, theta, basis).to(flow)
    length = flow.norm(dim=1).mean() / motion.norm(dim=1).mean().clamp(min=1e-6)
    return float(rng.uniform()) * strength * length * motion


def scaled_in_time(flow: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """Flow (T, 2, h, w) whose speed grows over the window, or falls, by a factor of up to ``most``."""
    factors = torch.linspace(1, float(rng.uniform(1, most)), len(flow))
    return flow * (factors if rng.random() < 0.5 else factors.flip(0)).to(flow)[:, None, None, None]


def perturbed(channels: Tensor, how: Augmentation, rng: np.random.Generator,
              inputs: Sequence[str] = SPACETIME.inputs) -> Tensor:
    """Network input (T, C, h, w) whose channels of flow get noise, and at times are nothing in one of the frames."""
    names = [parse_input(spec)[0] for spec in inputs]
    of_flow = torch.tensor([name in ("residual", "flow") for name in names for _ in range(CHANNELS[name])])
    noise = torch.from_numpy(rng.standard_normal(channels.shape, dtype=np.float32)).to(channels)
    channels = channels + how.noise * noise * of_flow[:, None, None]
    if rng.random() < how.null:
        channels[int(rng.integers(len(channels))), of_flow] = 0
    return channels


def train(out_dir: str | Path, clips: Sequence[Clip], validation: Sequence[Clip], *,
          config: MotionNetConfig = SPACETIME, loss: Loss = Loss(), augmentation: Augmentation = Augmentation(),
          start: str | Path | None = None, steps: int = 1500, batch_size: int = 2, learning_rate: float = 1e-3,
          validate_every: int = 500, seed: int = 4, device: str = "auto", devices: int = 1,
          precision: str = "32-true", workers: int = 1, resume: bool = True, loggers: Sequence[Any] = (),
          command: str = "", progress: bool = True) -> training.FitResult:
    """Train a MotionNet on the flow of clips; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        clips, validation: with flow; labels of validation clips are scored, those of ``clips`` are not read.
        config: shape and inputs of the network; a window of one frame is the EM system, a longer one the space-time
            system. start: weights of such a network to go on from.

    Raises:
        ValueError: a clip in both parts, clips that are too short, weights of another network.
    """
    check_apart(clips, validation)
    torch.manual_seed(seed)
    model = network(config, start)
    samples = Windows(clips, model, augmentation, batch_size, seed, loss)
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)

    def batch_loss(network: nn.Module, batch: training.Batch) -> Tensor:
        return loss(network(batch["input"]).float().softmax(1), batch["flow"])

    settings = {**settings_of(config, loss, augmentation, start, batch_size, seed),
                "clips": [clip.name for clip in clips], "mean motion": pipeline.mean_motion(clips[0])}
    fit = training.fit(model, training.Batches(samples), batch_loss,
                       lambda network: evaluate(network, validation, loss), schedule, out_dir, monitor="val_loss",
                       higher_is_better=False, settings=settings, device=device, devices=devices, precision=precision,
                       workers=workers, resume=resume, loggers=loggers, progress=progress)
    name = "em" if model.config.window == 1 else "spacetime"
    write_card(out_dir, fit, name=f"MotionNet, {name}", what=SYSTEMS[name], limits=LIMITS,
               data=f"the flow of {len(clips)} clips ({clips[0].name} ...), windows of {model.config.window} "
                    f"frames, {batch_size} a step, every clip as often as any other",
               validation=f"{len(validation)} other clips ({validation[0].name} ...): the loss, and where there are "
                          "masks J and F by the DAVIS 2016 protocol",
               command=command or f"diffslic.recipes.motion.train({str(out_dir)!r}, ..., steps={steps})",
               gpu_command=f"diffslic train {name} --out runs/{name} --dataset davis2016 --root DAVIS2016 "
                           "--steps 20000 --batch-size 8 --workers 12 --device cuda")
    return fit


def settings_of(config: MotionNetConfig, loss: Loss, augmentation: Augmentation, start: str | Path | None,
                batch_size: int, seed: int) -> dict[str, Any]:
    """What makes a run what it is, but for its clips: known before they are prepared. See :func:`train`."""
    return {"config": asdict(config), "loss": asdict(loss), "start": str(start), "seed": seed,
            "augmentation": asdict(augmentation), "batch_size": batch_size}


def network(config: MotionNetConfig, start: str | Path | None = None) -> MotionNet:
    """A network to train: a new one, or that of the weights ``start``.

    Raises:
        ValueError: the weights are of another network; only its selection may be another.
    """
    if start is None:
        return MotionNet(config)
    model = MotionNet.from_pretrained(start).train()
    for name in ("window", "n_layers", "inputs", "widths", "size"):
        known, asked = getattr(model.config, name), getattr(config, name)
        if known != asked:
            raise ValueError(f"{name} of {start} is {known}, asked was for {asked}")
    model.config = config
    return model


@torch.no_grad()
def evaluate(model: MotionNet, clips: Sequence[Clip], loss: Loss = Loss()) -> dict[str, float]:
    """Means over the clips: the loss of windows side by side, and J and F of what moves where clips have masks."""
    losses, scores = [], []
    for clip in clips:
        losses.append(_clip_loss(model, clip, loss))
        if clip.has("labels") and len(clip) > 2:
            scores.append(score(pipeline.predict_motion(model, clip) > 0, clip))
    figures = {"val_loss": float(np.mean(losses))}
    return {**figures, **{key: float(np.mean([s[name] for s in scores])) for key, name in
                          (("j", "J-Mean"), ("f", "F-Mean")) if scores}}


def _clip_loss(model: MotionNet, clip: Clip, loss: Loss) -> float:
    window, device = min(model.config.window, len(clip) - 1), training.device_of(model)
    values = []
    for start in range(0, len(clip) - window, max(window, (len(clip) - window) // 8)):  # about eight windows
        numbers, inner = _with_neighbours(range(start, start + window), model.config, len(clip) - 1)
        fields = {name: field.to(device) for name, field in _fields(clip, numbers, model.config).items()}
        masks = model(model.channels(fields)[inner].transpose(0, 1)[None]).softmax(1)
        values.append(float(loss(masks, fields["flow"][inner].transpose(0, 1)[None])))
    return float(np.mean(values))


def prepare(dataset: str, cache: str | Path, *, root: str | Path | None = None, resolution: str = "480p",
            file: str | Path | None = None, n_clips: int = 40, n_frames: int = 17,
            size: tuple[int, int] = (240, 428), raft: str | Path = "small", device: str = "cpu",
            progress: bool = True) -> tuple[list[Clip], list[Clip]]:
    """Clips to train and to validate on, with RAFT's flow kept under ``cache``.

    Args:
        dataset: "scenes"; "davis2016" (its development split: eight sequences stay out of both parts);
            "davis2016+scenes", validated on DAVIS; or "split", tables with flow of their own.
        root: the folder of DAVIS or of the tables' paths. resolution: of DAVIS. file: of a split, without
            ``_train.csv`` and ``_val.csv``.
        n_clips, n_frames, size: of the scenes to train on; a tenth more validate.
    """
    parts = dataset.split("+")
    if not set(parts) <= {"scenes", "davis2016"} and parts != ["split"]:
        raise ValueError(f"motion is learned on scenes, davis2016, davis2016+scenes or split, got {dataset!r}")
    if parts != ["scenes"] and root is None:
        raise ValueError(f"{dataset} needs root=..., its folder on disk (see data/README.md)")
    if parts == ["split"]:
        if file is None:
            raise ValueError("a split needs file=..., its name without _train.csv")
        train, validation = (datasets.open("split", root=root, file=file, split=part) for part in ("train", "val"))
        return train, validation
    raft = RAFT.from_pretrained(raft, device)
    found: list[list[list[Clip]]] = []
    for part in parts:
        level = f"{size[0]}x{size[1]}" if part == "scenes" else resolution
        clips = (_scenes(n_clips, n_frames, size, device) if part == "scenes"
                 else _davis(root, resolution))
        folder = pipeline.cache_folder(cache, part, level, "flow")
        found.append([pipeline.precompute_flow(half, raft, folder, progress=progress) for half in clips])
    return [clip for train, _ in found for clip in train], found[0][1]


def _scenes(n_clips: int, n_frames: int, size: tuple[int, int], device: str) -> tuple[list[Clip], list[Clip]]:
    train, validation = (datasets.open("scenes", preset="lab+street+crowd", n_clips=count, n_frames=n_frames, size=size,
                                       seed=seed, lighting=0.1, noise=0.01, device=device)
                         for count, seed in ((n_clips, TRAINING_SEED), (max(2, n_clips // 10), VALIDATION_SEED)))
    return train, validation


def _davis(root: str | Path, resolution: str) -> tuple[list[Clip], list[Clip]]:
    sequences = datasets.open("davis2016", root=root, split="dev_train", resolution=resolution)
    return [clip for i, clip in enumerate(sequences) if i % 6 != 5], sequences[5::6]
