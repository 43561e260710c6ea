"""Joins the rooms for use: frames to flow to superpixels to masks, from a cache or straight through."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffslic import datasets, geometry, metrics, viz
from diffslic.datasets import io
from diffslic.datasets.clip import Clip
from diffslic.datasets.video import write_video
from diffslic.files import note_says, write_note
from diffslic.flow import POLISH, RAFT, polish, tvl1
from diffslic.segmentation import UNet, camera_motion
from diffslic.superpixels import SSN, SpixelFCN
from diffslic.training import device_of

INPUTS = ("flow", "superpixels", "image")
N_SPIXELS = 400  # superpixels per frame whose features the U-Net sees
LEAST_SPREAD = 0.1  # of a feature over a frame; Lab is scaled by about a quarter, so this is less than half a unit

# ---------------------------------------------------------------- what the U-Net sees


class Superpixels(NamedTuple):
    """Superpixels of one frame, and what they look like."""

    labels: Tensor  # (H, W) int64
    vectors: Tensor  # (S, C) means of ``SSN.appearance``: learned features and Lab, which do not tell the place


@torch.no_grad()
def find_superpixels(ssn: SSN, frame: Tensor, n_spixels: int = N_SPIXELS) -> Superpixels:
    """Superpixels of a frame (3, H, W), RGB in [0, 1]; a frame too small for ``n_spixels`` gets fewer."""
    n_spixels = min(n_spixels, frame.shape[-2] * frame.shape[-1])
    soft = ssn(frame[None], n_spixels)
    return Superpixels(soft.labels[0], soft.pool(ssn.appearance(frame[None]))[0])


def save_superpixels(images: Sequence[str | Path], folder: str | Path, model: SSN | SpixelFCN, n_spixels: int = 200,
                     exact: bool = False, extra: Tensor | None = None, progress: bool = True) -> list[dict[str, Any]]:
    """Superpixels of image files: ``FOLDER/<stem>.png`` (labels in 16 bits), ``_boundaries.png``, ``_colours.png``.

    Args:
        images: files of any size; two that would write the same file are refused.
        n_spixels, exact, extra: see :meth:`diffslic.superpixels.SSN.segment`; ``extra`` is that of a single image.

    Returns:
        A row per image: its name, the achieved count, compactness and explained variation.
    """
    paths, folder = [Path(path) for path in images], Path(folder)
    files = [f"{path.stem}{kind}.png" for path in paths for kind in ("", "_boundaries", "_colours")]
    twice = sorted({file for file in files if files.count(file) > 1})
    if not paths or twice:
        raise ValueError(f"{folder}: two images would write {twice[0]}" if twice else
                         "superpixels need an image, got none")
    if n_spixels > 2**16:
        raise ValueError(f"labels of 16 bits hold at most {2**16} superpixels, got {n_spixels}")
    if extra is not None and not model.extra_channels:
        raise ValueError("extra channels are for a composite, and this network is none")
    if any(path.resolve().parent == folder.resolve() for path in paths):
        raise ValueError(f"{folder}: holds the images themselves, which labels would overwrite; choose another folder")
    device, rows = device_of(model), []
    given = {} if extra is None else {"extra": extra[None].to(device)}
    for path in tqdm(paths, desc="superpixels", unit="image", disable=not progress):
        image = io.read_image(path)
        try:
            labels = model.segment(image[None].to(device), n_spixels, exact=exact, **given)[0].cpu()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        io.write_segments(folder / f"{path.stem}.png", labels)
        for name, shown in (("boundaries", viz.boundaries(image, labels)), ("colours", viz.mean_color(image, labels))):
            io.write_image(folder / f"{path.stem}_{name}.png", torch.from_numpy(shown).permute(2, 0, 1) / 255)
        rows.append({"image": path.name, "count": int(labels.max()) + 1, "co": metrics.compactness(labels),
                     "ev": metrics.explained_variation(labels, image)})
    return rows


def flow_channels(flow: Tensor) -> Tensor:
    """Flow as a network likes it: what the camera does not explain, and the whole.

    The residual to the dominant quadratic motion shows what moves by itself; the whole flow tells near from far.
    Each pair of channels is divided by its 95th percentile, or by one pixel where that is larger, so that fast and
    slow videos look alike and noise in a still frame stays small.

    Args:
        flow: (2, H, W) in pixels, finite.

    Returns:
        (4, H, W): residual u, v, then flow u, v.
    """
    residual = flow - camera_motion(flow[None])[0]
    return torch.cat([field / field.norm(dim=0).flatten()[::7].quantile(0.95).clamp(min=1)
                      for field in (residual, flow)])


def superpixel_differences(superpixels: Superpixels) -> Tensor:
    """Superpixel features as a network likes them: (S, C), how each superpixel differs from its frame.

    Over the pixels of the frame each channel has mean 0 and standard deviation 1, so that the light and the colours of
    a video do not matter. Where a channel varies by less than :data:`LEAST_SPREAD` it is divided by that instead.
    """
    labels, vectors = superpixels
    share = torch.bincount(labels.flatten(), minlength=len(vectors)).to(vectors) / labels.numel()
    differences = vectors - share @ vectors
    return differences / (share @ differences.square()).sqrt().clamp(min=LEAST_SPREAD)


def network_input(inputs: Sequence[str], flow: Tensor | None = None, superpixels: Superpixels | None = None,
                  frame: Tensor | None = None) -> Tensor:
    """Channels (C, H, W) in the order of ``inputs``, each one of :data:`INPUTS`.

    Args:
        flow: (2, H, W) in pixels. frame: (3, H, W) RGB in [0, 1]. Only what ``inputs`` names is needed.

    Raises:
        ValueError: an unknown input, or one that was not given.
    """
    given: dict[str, Callable[[], Tensor] | None] = {
        "flow": None if flow is None else lambda: flow_channels(flow),
        "superpixels": (None if superpixels is None
                        else lambda: superpixel_differences(superpixels).T[:, superpixels.labels]),
        "image": None if frame is None else lambda: 2 * frame - 1,
    }
    for name in inputs:
        if given.get(name) is None:
            raise ValueError(f"the input {name!r} is {'missing' if name in INPUTS else 'unknown'}; "
                             f"inputs are {', '.join(INPUTS)}")
    return torch.cat([given[name]() for name in inputs])


def mirrored_input(channels: Tensor, inputs: Sequence[str]) -> Tensor:
    """What :func:`network_input` gives for the mirrored frame, from what it gave for the frame: (C, H, W)."""
    mirrored = channels.flip(-1)
    if "flow" in inputs:
        sizes = {"flow": 4, "image": 3}
        sizes["superpixels"] = len(channels) - sum(sizes.get(name, 0) for name in inputs)
        start = sum(sizes[name] for name in inputs[:inputs.index("flow")])
        flow = slice(start, start + sizes["flow"])
        mirrored[flow] = geometry.flip_flow_horizontal(channels[flow].unflatten(0, (2, 2))).flatten(0, 1)
    return mirrored


# ---------------------------------------------------------------- flow of a video


def video_flow(raft: RAFT, frames: Iterable[Tensor], n_iters: int = 12, polished: bool = True) -> Iterator[Tensor]:
    """Flow from each frame to the next as everything here uses it: RAFT's, polished.

    Args:
        frames: (3, H, W) RGB in [0, 1] each, all of one size; read one at a time.
        n_iters: RAFT's corrections per pair.
        polished: bring it to a fraction of a pixel by :func:`diffslic.flow.polish`.

    Yields:
        (2, H, W) flow in pixels, one less than there are frames.
    """
    ahead, seen = tee(frames)
    for flow, (first, second) in zip(raft.video(ahead, n_iters), pairwise(seen)):
        yield polish(first[None], second[None], flow[None])[0] if polished else flow


@torch.no_grad()
def video_backward_flow(raft: RAFT, frames: Iterable[Tensor], n_iters: int = 12,
                        polished: bool = True) -> Iterator[Tensor]:
    """As :func:`video_flow`, from each frame but the first to the one before."""
    for before, frame in pairwise(frames):
        flow = raft(frame[None].to(device_of(raft)), before[None].to(device_of(raft)), n_iters)
        yield (polish(frame[None].to(flow), before[None].to(flow), flow) if polished else flow)[0]


# ---------------------------------------------------------------- pre-generate, then train


def precompute_flow(clips: Sequence[Clip], raft: RAFT, folder: str | Path, n_iters: int = 12, polished: bool = True,
                    progress: bool = True) -> list[Clip]:
    """Keep the flow of clips, one HDF5 file each, and return the clips with it as their ``flow``.

    A file that is whole and made with the same weights and settings from a clip of the same length, first and last
    frame is kept as it is, so a stopped run goes on where it was.

    Args:
        folder: where the files go; ``<clip name>.h5`` each.
        n_iters, polished: see :func:`video_flow`.
    """
    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        return {"flow": video_flow(raft, (clip.frame(t) for t in range(len(clip))), n_iters, polished)}

    settings = {"flow": fingerprint(raft), "n_iters": n_iters, "polished": POLISH if polished else ""}
    return _precompute(clips, Path(folder), settings, fields, "flow", progress)


def precompute_backward_flow(clips: Sequence[Clip], raft: RAFT, folder: str | Path, n_iters: int = 12,
                             polished: bool = True, progress: bool = True) -> list[Clip]:
    """Keep the flow of clips from each frame to the one before, as :func:`precompute_flow` keeps that to the next."""
    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        frames = (clip.frame(t) for t in range(len(clip)))
        return {"backward_flow": video_backward_flow(raft, frames, n_iters, polished)}

    settings = {"backward_flow": fingerprint(raft), "n_iters": n_iters, "polished": POLISH if polished else ""}
    return _precompute(clips, Path(folder), settings, fields, "backward flow", progress)


def precompute_tvl1(clips: Sequence[Clip], folder: str | Path, progress: bool = True) -> list[Clip]:
    """Keep TV-L1 flow of clips, as :func:`precompute_flow` keeps RAFT's: the opponent's input."""
    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        return {"flow": tvl1(clip.frame(t) for t in range(len(clip)))}

    return _precompute(clips, Path(folder), {"flow": "tvl1"}, fields, "TV-L1 flow", progress)


def precompute_superpixels(clips: Sequence[Clip], ssn: SSN, folder: str | Path, n_spixels: int = N_SPIXELS,
                           progress: bool = True) -> list[Clip]:
    """Keep the superpixels of clips and their features, as :func:`precompute_flow` keeps the flow."""
    device = device_of(ssn)

    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        found = (find_superpixels(ssn, clip.frame(t).to(device), n_spixels) for t in range(len(clip)))
        labels, vectors = tee(found)
        return {"superpixel_labels": (frame.labels for frame in labels),
                "superpixel_vectors": (frame.vectors for frame in vectors)}

    settings = {"superpixels": fingerprint(ssn), "vectors": "appearance", "n_spixels": n_spixels}
    return _precompute(clips, Path(folder), settings, fields, "superpixels", progress)


def fingerprint(model: nn.Module) -> str:
    """A short hash of a network's weights: other weights, another fingerprint."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _ends(clip: Clip) -> str:
    """A hash of the first and the last frame, which stand for the clip: other pictures, another hash."""
    return hashlib.sha256(torch.stack([clip.frame(0), clip.frame(len(clip) - 1)]).numpy().tobytes()).hexdigest()[:16]


def cache_folder(cache: str | Path, dataset: str, resolution: str, kind: str) -> Path:
    """Where the flow, TV-L1 flow or superpixels (``kind``) of a dataset at a resolution are kept."""
    return Path(cache) / dataset / (resolution if dataset.startswith(("davis", "scenes")) else "") / kind


def _precompute(clips: Sequence[Clip], folder: Path, settings: Mapping[str, Any],
                fields: Callable[[Clip], dict[str, Iterable[Tensor]]], what: str, progress: bool) -> list[Clip]:
    cached = []
    for clip in tqdm(clips, desc=what, unit="clip", disable=not progress):
        path = folder / f"{clip.name}.h5"
        attributes = {**settings, "size": list(clip.size), "frames": _ends(clip)}
        if not datasets.is_current(path, attributes, len(clip)):
            datasets.write_clip_cache(path, fields(clip), len(clip), attributes)
        cached.append(datasets.cached_clip(clip, path))
    return cached


# ---------------------------------------------------------------- the whole job


def predict(unet: UNet, clip: Clip, progress: bool = False) -> np.ndarray:
    """Masks of a clip from what it already holds (see ``precompute_*``).

    Returns:
        (T, H, W) uint8: 1 where something moves by itself. No flow leaves the last frame: its mask repeats the one
        before (the DAVIS protocol leaves that frame out).
    """
    _check_length(clip)
    device = device_of(unet)
    masks = np.zeros((len(clip), *clip.size), dtype=np.uint8)
    for t in tqdm(clip.frames_with("flow"), desc=clip.name, unit="frame", disable=not progress):
        masks[t] = _mask(unet, clip_input(clip, t, unet.config.inputs).to(device), clip.size)
    masks[-1] = masks[-2]
    return masks


def predict_from_flow(method: Callable[[Tensor], Tensor], clip: Clip) -> np.ndarray:
    """Masks of a clip by a method that sees its flow alone, as :func:`predict` gives a network's.

    Args:
        method: (1, 2, H, W) flow in pixels to (1, H, W) bool, such as ``segmentation.camera_residual_mask``.

    Returns:
        (T, H, W) uint8; the last frame repeats the mask before it.
    """
    _check_length(clip)
    masks = [method(clip.flow(t)[None])[0].byte().cpu().numpy() for t in clip.frames_with("flow")]
    return np.stack([*masks, masks[-1]])


def clip_input(clip: Clip, t: int, inputs: Sequence[str]) -> Tensor:
    """Channels (C, H, W) of frame t from what the clip holds; its flow is the one that leaves frame t."""
    return network_input(inputs, clip.flow(t) if "flow" in inputs else None,
                         Superpixels(clip.superpixel_labels(t), clip.superpixel_vectors(t))
                         if "superpixels" in inputs else None, clip.frame(t) if "image" in inputs else None)


@dataclass(frozen=True)
class Segmentation:
    """What moves by itself in a video: computed when it is asked for, a frame at a time."""

    clip: Clip
    unet: UNet
    raft: RAFT
    ssn: SSN
    rows: int
    n_iters: int
    polished: bool

    @cached_property
    def masks(self) -> np.ndarray:
        """(T, H, W) uint8 of the whole video: 0 background, 1 moving."""
        return np.stack(list(self.frames()))

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Masks (H, W) uint8 of the frames from ``start`` on: frames to flow to superpixels to masks."""
        height, width = self.clip.size
        size = (self.rows, max(8, round(width * self.rows / height))) if self.rows < height else self.clip.size
        first = min(start, len(self.clip) - 2)  # flow needs two frames
        device, inputs = device_of(self.unet), self.unet.config.inputs
        pictures = (geometry.resize(self.clip.frame(t)[None].to(device), size)[0]
                    for t in range(first, len(self.clip)))
        pairs = _frames_with_flow(self.raft, pictures, self.n_iters, self.polished)
        for t, (frame, flow) in enumerate(pairs, first):
            if t >= start:
                superpixels = find_superpixels(self.ssn, frame) if "superpixels" in inputs else None
                yield _mask(self.unet, network_input(inputs, flow, superpixels, frame), self.clip.size)

    def save(self, folder: str | Path, overlay: bool = True, fps: float | None = None,
             progress: bool = True) -> None:
        """Write ``masks/*.png`` and, with ``overlay``, ``overlay/*.png`` and ``overlay.mp4``, each file whole.

        Masks are written as they are made, so a video may be of any length. A run that was stopped goes on after its
        last whole mask; ``segmentation.json`` tells it that the masks are its own.

        Args:
            folder: made where absent.
            fps: frames per second of the film; None: as the video has, or 24 where that is not known.

        Raises:
            ValueError: the folder holds the masks of another video, or of other networks.
        """
        if fps is not None and not 0 < fps < 1000:
            raise ValueError(f"fps must lie between 0 and 1000, got {fps}")
        folder, length = Path(folder), len(self.clip)
        self._claim(folder)
        paths = [folder / "masks" / f"{self.clip.frame_name(t)}.png" for t in range(length)]
        done = next((t for t, path in enumerate(paths) if not path.is_file()), length)
        with tqdm(total=length, initial=done, desc=self.clip.name, unit="frame", disable=not progress) as bar:
            for path, mask in zip(paths[done:], self.frames(done) if done < length else ()):
                io.write_labels(path, torch.from_numpy(mask.astype(np.int64)))
                bar.update()
        if overlay:
            for t, picture in enumerate(self._overlays(paths)):
                io.write_image(folder / "overlay" / f"{self.clip.frame_name(t)}.png", picture)
            write_video(folder / "overlay.mp4", self._overlays(paths), fps or self.clip.fps or 24)

    def _claim(self, folder: Path) -> None:
        """Note in the folder whose masks it holds; refuse one that holds others."""
        settings = {"frames": len(self.clip), "ends": _ends(self.clip), "rows": self.rows,
                    "n_iters": self.n_iters, "polished": POLISH if self.polished else "",
                    "networks": [fingerprint(net) for net in (self.unet, self.raft, self.ssn)]}
        note = folder / "segmentation.json"
        if (folder / "masks").is_dir() and not note_says(note, settings):
            raise ValueError(f"{folder} holds other masks: remove them or choose another folder")
        write_note(note, settings)

    def _overlays(self, paths: Sequence[Path]) -> Iterator[Tensor]:
        for t, path in enumerate(paths):
            picture = viz.overlay(self.clip.frame(t), io.read_labels(path))
            yield torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def segment(source: str | Path | Clip, weights: str | Path = "motion", raft: str | Path = "small",
            ssn: str | Path = "scenes", rows: int = 240, n_iters: int = 12, polished: bool = True,
            device: str = "cpu") -> Segmentation:
    """The whole job: ``segment("my_frames/").save("masks/")``.

    Args:
        source: a folder of frames, a video file, or a clip.
        weights, raft, ssn: shipped names or files of the U-Net, the flow and the superpixel network.
        rows: height at which the networks work, since they were trained near it; masks have the frames' own size.
        n_iters, polished: see :func:`video_flow`.

    Returns:
        A :class:`Segmentation`, nothing of which is computed yet.

    Raises:
        FileNotFoundError, ValueError: nothing to read, one frame only, no such weights or device.
    """
    if rows < 8 or n_iters < 1:
        raise ValueError(f"rows must be at least 8 and n_iters at least 1, got {rows} and {n_iters}")
    clip = source if isinstance(source, Clip) else datasets.open("folder", root=source)[0]
    _check_length(clip)
    return Segmentation(clip, UNet.from_pretrained(weights, device), RAFT.from_pretrained(raft, device),
                        SSN.from_pretrained(ssn, device), rows, n_iters, polished)


def segment_clips(clips: Sequence[Clip], folder: str | Path, overlay: bool = True, fps: float | None = None,
                  progress: bool = True, **how: Any) -> None:
    """Segment every clip of a dataset into ``folder/<clip name>``; see :func:`segment` and :meth:`Segmentation.save`.

    Args:
        how: arguments of :func:`segment`; the networks are loaded once.
    """
    first = segment(clips[0], **how)
    for clip in clips:
        _check_length(clip)
        replace(first, clip=clip).save(Path(folder) / clip.name, overlay, fps, progress)


def _check_length(clip: Clip) -> None:
    if len(clip) < 2:
        raise ValueError(f"clip {clip.name!r} has a single frame: motion needs at least two")


def _frames_with_flow(raft: RAFT, frames: Iterator[Tensor], n_iters: int,
                      polished: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Every frame (3, H, W) with a flow of its own pixels; the last one's is the way back, turned around."""
    ahead, seen = tee(frames)
    for flow, frame in zip(video_flow(raft, ahead, n_iters, polished), seen):  # zip leaves the last in ``seen``
        yield frame, flow
        before = frame
    last = next(seen)
    yield last, -next(video_flow(raft, (last, before), n_iters, polished))


@torch.no_grad()
def _mask(unet: UNet, channels: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Seen as it is and in a mirror, the logits averaged: mirrored channels get the mirrored mask."""
    views = torch.stack([channels, mirrored_input(channels, unet.config.inputs)])
    as_it_is, mirrored = unet(views)
    logits = geometry.resize((as_it_is + mirrored.flip(-1))[None], size)
    return (logits[0, 0] > 0).byte().cpu().numpy()
