"""How the embedding network learns which superpixels are of one thing, from pairs of them within a picture.

What is compared is the recipe's choice: means over classical superpixels, as published; means over those of an SSN that
learns along with the network; or single pixels, drawn at random, which is what superpixels are there to replace.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia.color import rgb_to_lab
from torch import Tensor, nn

from diffslic import datasets, metrics, training
from diffslic.datasets.clip import VOID, Clip, check_apart
from diffslic.recipes import ssn as ssn_recipe
from diffslic.recipes.cards import write_card
from diffslic.softseg import EmbeddingConfig, EmbeddingNet, n_pair_loss, pool, superpixel_classes
from diffslic.superpixels import SSN, classical_slic, label_reconstruction

COMPARED = ("slic", "ssn", "pixels")
CROP = (240, 320)  # a whole scene: things that are apart must be compared too
PIXELS_EACH = 160  # of a superpixel: about 480 in a crop
STRIDES = (2, 2, 4)  # of the network's blocks
CARD = {"what": "Vectors of pixels, by which superpixels of one thing can be told (Verma, Nagar and Raman 2019)."}
ON_A_GPU = ("diffslic train softseg --out runs/softseg {data} --compared {compared} --widths 64,128,256 --steps 40000 "
            "--batch-size 16 --workers 12 --device cuda")
DATA_ON_A_GPU = {"scenes": "--n-scenes 2000", "bsds500": "--dataset bsds500 --root BSDS500",
                 "ade20k": "--dataset ade20k --root ADEChallengeData2016"}
LIMITS = {"scenes": "It knows the textures of scikit-image's photographs on flat and round surfaces.",
          "bsds500": "It has learned what people outline in two hundred photographs: it tells textures and colours "
                     "rather than sorts of things.",
          "ade20k": "It knows photographs of places; a single thing close to the camera is new to it."}


class Samples:
    """Batches of crops with classes, and what is to be compared in them.

    Args:
        clips: whose segments are the classes, see :func:`prepare`.
        compared: "slic", "ssn" or "pixels".
        batch_size: crops per batch. seed: of everything random.
    """

    def __init__(self, clips: Sequence[Clip], compared: str, batch_size: int, seed: int) -> None:
        self.compared, self.seed = compared, seed
        self._crops = ssn_recipe.Crops(clips, batch_size, seed, size=CROP, upside_down=False,
                                       superpixel_size=PIXELS_EACH if compared == "slic" else None)
        self.frames = self._crops.frames

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Batch ``number``: image (B, 3, h, w), segments (B, h, w), and superpixels (B, h, w) of "slic", or of "pixels"
        as many places (B, n), counted along the rows, as there would be superpixels."""
        batch = self._crops.cut(number)
        if self.compared == "pixels":
            images = batch["image"]
            positions = range(number * len(images), (number + 1) * len(images))
            places = [np.random.default_rng([self.seed, 10, position]).integers(images[0, 0].numel(),
                                                                                size=n_spixels(images))
                      for position in positions]
            batch["places"] = torch.from_numpy(np.stack(places))
        return batch


def n_spixels(images: Tensor) -> int:
    """How many superpixels of about :data:`PIXELS_EACH` pixels an image (..., H, W) has."""
    return max(1, images.shape[-2] * images.shape[-1] // PIXELS_EACH)


class WithSSN(nn.Module):
    """An embedding network and a superpixel network that learn together."""

    def __init__(self, embedding: EmbeddingNet, ssn: SSN) -> None:
        super().__init__()
        self.embedding, self.ssn = embedding, ssn

    def save(self, path: str | Path) -> None:
        """Write the embedding network, and the superpixel network beside it as ``<stem>-ssn.safetensors``."""
        path = Path(path)
        self.ssn.save(path.with_name(f"{path.stem}-ssn.safetensors"))
        self.embedding.save(path)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        """The loss (B,) of images (B, 3, H, W) with classes (B, H, W), with gradients into both networks."""
        soft = self.ssn(images, n_spixels(images))
        vectors = nn.functional.interpolate(self.embedding(images), images.shape[-2:])
        of_each = superpixel_classes(soft.labels, classes, soft.centroids.shape[1], VOID)
        numbers = torch.stack([each.unique(return_inverse=True)[1] for each in classes])
        # By pairs alone superpixels would leave the outlines where that makes their means alike.
        return n_pair_loss(soft.pool(vectors), of_each, VOID) + label_reconstruction(soft, numbers)


def pair_loss(network: nn.Module, batch: training.Batch) -> Tensor:
    """The loss (B,) of a batch of :class:`Samples`; of "ssn" the network is a :class:`WithSSN`."""
    images, segments = batch["image"], batch["segments"]
    if "superpixels" in batch:
        superpixels = batch["superpixels"]
        count = int(superpixels.max()) + 1
        classes = superpixel_classes(superpixels, segments, count, VOID)
        return n_pair_loss(pool(network(images), superpixels, count), classes, VOID)
    if "places" in batch:
        places, vectors = batch["places"], network(images)
        row, column = places // images.shape[-1], places % images.shape[-1]
        cell = (row * vectors.shape[-2] // images.shape[-2] * vectors.shape[-1]
                + column * vectors.shape[-1] // images.shape[-1])
        drawn = vectors.flatten(2).gather(2, cell[:, None].expand(-1, vectors.shape[1], -1)).mT
        return n_pair_loss(drawn, segments.flatten(1).gather(1, places), VOID)
    return network(images, segments)


class Judge:
    """How well distances between superpixels tell which are of one class, on some clips.

    Args:
        clips: whose segments are the classes, one frame of each counts.

    Raises:
        ValueError: no clip, or none with two classes.
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        if not clips:
            raise ValueError("there is no clip to judge by")
        self._frames = []
        for clip in clips:
            image = clip.frame(0)
            superpixels = classical_slic(image, n_spixels(image))[None]
            self._frames.append((image[None], superpixels, superpixel_classes(superpixels, clip.segments(0)[None],
                                                                              ignore=VOID)[0]))
        if all(len(classes[classes != VOID].unique()) < 2 for *_, classes in self._frames):
            raise ValueError("no frame to judge by has superpixels of two classes: are they labelled?")

    @torch.no_grad()
    def __call__(self, features: Callable[[Tensor], Tensor], device: torch.device | str = "cpu") -> dict[str, float]:
        """Means over frames of the figures of ``metrics.retrieval``.

        Args:
            features: images (B, 3, H, W) to vectors (B, C, h, w), such as the network; classical superpixels are
                compared whatever made them, so that figures can be compared.
        """
        figures = [metrics.retrieval(pool(features(image.to(device)).cpu(), superpixels)[0], classes, VOID)
                   for image, superpixels, classes in self._frames]
        return {name: float(np.nanmean([each[name] for each in figures])) for name in figures[0]}


def train(out_dir: str | Path, clips: Sequence[Clip], validation: Sequence[Clip], *, compared: str = "slic",
          widths: Sequence[int] = (32, 64, 128), ssn: str | Path = "scenes", steps: int = 2000, batch_size: int = 2,
          learning_rate: float = 1e-3, validate_every: int = 500, seed: int = 6, device: str = "auto",
          devices: int = 1, precision: str = "32-true", workers: int = 1, resume: bool = True,
          loggers: Sequence[Any] = (), dataset: str = "scenes", command: str = "",
          progress: bool = True) -> training.FitResult:
    """Train an embedding network; see :func:`diffslic.training.fit` for what ``out_dir`` gets.

    Args:
        clips, validation: of :func:`prepare`.
        compared: "slic", the means of classical superpixels; "ssn", those of a superpixel network that learns too;
            "pixels", single ones.
        widths: of the network's blocks; the paper's are 64, 128 and 256, and a quarter as fast.
        ssn: weights that the superpixel network of "ssn" starts from.
        dataset: what the clips are of: "scenes", "bsds500" or "ade20k".
        command: what the card says makes these weights again.

    Raises:
        ValueError: a clip in both parts, something else to compare.
    """
    if compared not in COMPARED:
        raise ValueError(f"compared must be one of {', '.join(COMPARED)}, got {compared!r}")
    if dataset not in LIMITS:
        raise ValueError(f"dataset must be one of {', '.join(LIMITS)}, got {dataset!r}")
    check_apart(clips, validation)
    torch.manual_seed(seed)
    embedding = EmbeddingNet(_configuration(widths))
    network = WithSSN(embedding, SSN.from_pretrained(ssn).train()) if compared == "ssn" else embedding
    samples, judge = Samples(clips, compared, batch_size, seed), Judge(validation)
    schedule = training.Schedule(steps, learning_rate, validate_every=validate_every)
    settings = {**settings_of(compared, widths, ssn, batch_size, seed), "clips": [clip.name for clip in clips]}
    fit = training.fit(network, training.Batches(samples), pair_loss,
                       lambda trained: judge(getattr(trained, "embedding", trained), training.device_of(trained)),
                       schedule, out_dir, monitor="ap", higher_is_better=True, settings=settings, device=device,
                       devices=devices, precision=precision, workers=workers, resume=resume, loggers=loggers,
                       progress=progress)
    write_card(out_dir, fit, name=f"Embedding network, trained on {dataset}", limits=LIMITS[dataset], **CARD,
               gpu_command=ON_A_GPU.format(data=DATA_ON_A_GPU[dataset], compared=compared),
               data=f"{len(clips)} clips ({clips[0].name} ...), {len(samples.frames)} frames, crops of "
                    f"{CROP[0]}x{CROP[1]}, {batch_size} a step, compared by {compared}",
               validation=f"{len(validation)} others ({validation[0].name} ...): average precision of pairs of "
                          "classical superpixels, ranked by distance (`metrics.retrieval`); the rows of Lab are the "
                          "same for mean colours",
               command=command or f"diffslic.recipes.softseg.train({str(out_dir)!r}, ..., steps={steps})",
               more=lambda: {f"{name}, Lab": value for name, value in judge(rgb_to_lab).items()})
    return fit


def settings_of(compared: str, widths: Sequence[int], ssn: str | Path, batch_size: int, seed: int) -> dict[str, Any]:
    """What makes a run what it is, but for its clips: known before they are prepared. See :func:`train`."""
    return {"compared": compared, "batch_size": batch_size, "configuration": asdict(_configuration(widths)),
            "seed": seed, "ssn": str(ssn)}


def _configuration(widths: Sequence[int]) -> EmbeddingConfig:
    return EmbeddingConfig(widths=tuple(widths), strides=STRIDES)


def prepare(dataset: str, root: str | Path | None = None, *, n_scenes: int = 160,
            device: str = "cpu") -> tuple[list[Clip], list[Clip]]:
    """Clips to train and to validate on, whose segments are what is to be told apart.

    Args:
        dataset: "scenes", every surface a segment of its own; "bsds500", its development split with what people
            outlined; or "ade20k", its official split with classes as segments.
        root: of BSDS500 or ADE20K. n_scenes: to train on, two frames of each.
        device: where scenes are drawn.

    Raises:
        ValueError: another dataset, no root. FileNotFoundError: something is not where the layout has it.
    """
    if dataset not in LIMITS:
        raise ValueError(f"dataset must be one of {', '.join(LIMITS)}, got {dataset!r}")
    if dataset != "ade20k":
        return ssn_recipe.prepare(dataset, root, n_scenes=n_scenes, device=device)
    if root is None:
        raise ValueError("ade20k needs root=..., its folder on disk (see data/README.md)")
    clips, validation = ([_by_class(clip) for clip in datasets.open("ade20k", root=root, split=split)]
                         for split in ("training", "validation"))
    return clips, validation


def _by_class(clip: Clip) -> Clip:
    """A photograph as small as it can be for a crop, with its classes as segments."""
    rows, columns = clip.size
    clip = clip.resized(max(CROP[0], math.ceil(CROP[1] * rows / columns)))
    return clip.with_readers(segments=clip.readers["classes"])
