"""The whole job, straight through: frames to flow to superpixels to masks of a video, each kind of them a class."""

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffslic import datasets, geometry, viz
from diffslic.datasets import given_masks, io
from diffslic.datasets.clip import VOID, Clip
from diffslic.datasets.video import FPS, write_video
from diffslic.files import claim
from diffslic.flow import RAFT, check_polish, polish_settings
from diffslic.pipeline.end_to_end import EndToEnd
from diffslic.pipeline.inputs import find_superpixels, network_input
from diffslic.pipeline.motion import painted
from diffslic.pipeline.objects import (
    View,
    check_given,
    graph_proposals,
    learned_proposals,
    moving,
    propagate,
    track,
)
from diffslic.pipeline.precompute import ends, fingerprint, video_flow, video_flow_both_ways
from diffslic.pipeline.predict import check_length, check_masks, mask_of
from diffslic.segmentation import MotionNet, Tracker, UNet
from diffslic.superpixels import SSN
from diffslic.training import device_of

METHODS = ("unet", "em", "spacetime", "end-to-end")


@dataclass(frozen=True)
class Segmentation(ABC):
    """What moves by itself in a video, computed when it is asked for."""

    clip: Clip
    raft: RAFT
    rows: int
    n_iters: int
    polished: str

    @property
    @abstractmethod
    def made_by(self) -> dict[str, Any]:
        """What takes part, as JSON: where anything of it is another, so are the masks."""

    @abstractmethod
    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        """Masks (H, W) uint8 of the frames from ``start`` on: 0 background, from 1 what moves."""

    @cached_property
    def masks(self) -> np.ndarray:
        """(T, H, W) uint8 of the whole video: 0 background, from 1 what moves."""
        return np.stack(list(self.frames()))

    def frames_with_flow(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Frames (3, h, w) at the height of the networks, each with a flow (2, h, w) of its own pixels.

        The last frame's flow is the way back, turned around.
        """
        return _frames_with_flow(self.raft, self._pictures(start), self.n_iters, self.polished)

    def views(self, ssn: SSN) -> Iterator[View]:
        """Frames at the height of the networks with flow both ways and superpixels."""
        read: deque[Tensor] = deque()
        back = revealed = None
        for both in video_flow_both_ways(self.raft, _noted(self._pictures(), read), self.n_iters, self.polished):
            frame = read.popleft()
            yield View(frame, both.forward, back, both.occlusion, revealed, find_superpixels(ssn, frame))
            back, revealed = both.backward, both.backward_occlusion
        assert back is not None  # there are two frames at least
        last = read.popleft()
        yield View(last, -back, back, None, revealed, find_superpixels(ssn, last))

    @property
    def working_size(self) -> tuple[int, int]:
        """Rows and columns at the height of the networks; a smaller video stays as it is."""
        height, width = self.clip.size
        return (self.rows, max(8, round(width * self.rows / height))) if self.rows < height else self.clip.size

    def _pictures(self, start: int = 0) -> Iterator[Tensor]:
        device = device_of(self.raft)
        for t in range(start, len(self.clip)):
            yield geometry.resize(self.clip.frame(t)[None].to(device), self.working_size)[0]

    def save(self, folder: str | Path, overlay: bool = True, fps: float | None = None, official: bool = False,
             progress: bool = True) -> None:
        """Write ``masks/*.png`` and, with ``overlay``, ``overlay/*.png`` and ``overlay.mp4``, each file whole.

        Masks are written as they are made, so a video may be of any length (of a MotionNet: as long as its flow fits
        into memory). A run that was stopped goes on after its last whole mask; ``segmentation.json`` tells it that
        the masks are its own.

        Args:
            folder: made where absent.
            fps: frames per second of the film; None: as the video has, or 24 where that is not known.
            official: write the masks as ``folder/*.png`` and nothing else (but a hidden note), as the official DAVIS
                evaluation reads them.

        Raises:
            ValueError: the folder holds the masks of another video, or of other networks.
        """
        if fps is not None and not 0 < fps < 1000:
            raise ValueError(f"fps must lie between 0 and 1000, got {fps}")
        folder, length = Path(folder), len(self.clip)
        masks, note = (folder, ".segmentation.json") if official else (folder / "masks", "segmentation.json")
        paths = [masks / f"{self.clip.frame_name(t)}.png" for t in range(length)]
        other = folder / ("masks" if official else ".segmentation.json")
        if other.exists():  # whoever reads the folder later would take one layout for the other
            raise ValueError(f"{folder} holds masks in {'our own' if official else 'the official'} layout: remove them "
                             "or choose another folder")
        names = {path.stem for path in paths}
        if official and any(path.stem in names and path.suffix != ".png" for path in folder.glob("*.*")):
            raise ValueError(f"{folder} holds images of the frames' names, beside which masks would be taken for "
                             "frames; choose another folder")
        settings = {"frames": length, "ends": ends(self.clip), "rows": self.rows, "n_iters": self.n_iters,
                    "polished": polish_settings(self.polished), **self.made_by}
        claim(folder / note, settings, any(path.exists() for path in paths) if official else masks.is_dir(), "masks")
        done = next((t for t, path in enumerate(paths) if not path.is_file()), length)
        with tqdm(total=length, initial=done, desc=self.clip.name, unit="frame", disable=not progress) as bar:
            for path, mask in zip(paths[done:], self.frames(done) if done < length else ()):
                io.write_labels(path, torch.from_numpy(mask.astype(np.int64)))
                bar.update()
        if overlay and not official:
            for t, picture in enumerate(overlays(self.clip, paths)):
                io.write_image(folder / "overlay" / f"{self.clip.frame_name(t)}.png", picture)
            write_video(folder / "overlay.mp4", overlays(self.clip, paths), fps or self.clip.fps or FPS)


@dataclass(frozen=True)
class UNetSegmentation(Segmentation):
    """By the U-Net that learned from masks: frames to flow to superpixels to masks, a frame at a time."""

    unet: UNet
    ssn: SSN

    @property
    def made_by(self) -> dict[str, Any]:
        return {"networks": [fingerprint(net) for net in (self.unet, self.raft, self.ssn)]}

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        inputs, first = self.unet.config.inputs, min(start, len(self.clip) - 2)  # flow needs two frames
        for t, (frame, flow) in enumerate(self.frames_with_flow(first), first):
            if t >= start:
                superpixels = find_superpixels(self.ssn, frame) if "superpixels" in inputs else None
                yield mask_of(self.unet, network_input(inputs, flow, superpixels, frame), self.clip.size)


@dataclass(frozen=True)
class ObjectSegmentation(UNetSegmentation):
    """Several objects: what the U-Net finds, parted on a graph or by a network and followed through the video.

    Names depend on all frames before, so a stopped run computes those once more.
    """

    instances: UNet | None

    @property
    def made_by(self) -> dict[str, Any]:
        return {**super().made_by, "instances": fingerprint(self.instances) if self.instances else "graph", "seen": 1}

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        propose, tracker = learned_proposals(self.instances) if self.instances else graph_proposals, Tracker()
        for t, view in enumerate(self.views(self.ssn)):
            [found] = track([view], [moving(self.unet, view)], propose, tracker)
            if t >= start:
                yield geometry.resize_labels(found.labels[None], self.clip.size)[0].byte().numpy()


@dataclass(frozen=True)
class GivenSegmentation(Segmentation):
    """Objects whose first masks are given, followed to the last frame; a stopped run begins at those anew."""

    ssn: SSN
    given: Mapping[int, Tensor]  # by frame, (H, W) ids of what enters with it

    @property
    def made_by(self) -> dict[str, Any]:
        digest = hashlib.sha256(b"".join(mask.byte().numpy().tobytes() for _, mask in sorted(self.given.items())))
        return {"networks": [fingerprint(net) for net in (self.raft, self.ssn)], "given": sorted(self.given),
                "masks": digest.hexdigest()[:16]}

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        given = {t: _smaller(mask, self.working_size) for t, mask in self.given.items()}
        for t, found in enumerate(propagate(self.views(self.ssn), given)):
            labels = geometry.resize_labels(found.labels[None], self.clip.size)[0]
            if t in self.given:
                told = torch.where(self.given[t] == VOID, 0, self.given[t])
                labels = torch.where(torch.isin(labels, told.unique()), 0, labels)  # a mask ends where it was drawn
                labels = torch.where(told > 0, told, labels)
            if t >= start:
                yield labels.byte().numpy()


@dataclass(frozen=True)
class MotionSegmentation(Segmentation):
    """By a MotionNet that never saw a mask: labels from 1 are layers that move, the same ones in all frames.

    Which layers move is decided over the whole video: its flow is computed, and kept in memory at ``rows``, before the
    first mask is there, and again where a stopped run goes on.
    """

    net: MotionNet
    window: int | None

    @property
    def made_by(self) -> dict[str, Any]:
        return {"networks": [fingerprint(net) for net in (self.net, self.raft)], "window": self.window,
                "selection": self.net.config.selection}

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        read = {"flow": lambda frame, flow: flow, "image": lambda frame, flow: frame,
                "flow_rgb": lambda frame, flow: painted(flow)}
        fields: dict[str, list[Tensor]] = {name: [] for name in self.net.config.fields}
        for frame, flow in self.frames_with_flow():
            for name, of_frames in fields.items():
                of_frames.append(read[name](frame, flow))
        labels = self.net.segment(**{name: torch.stack(of_frames) for name, of_frames in fields.items()},
                                  window=self.window)
        for label in labels[start:]:
            yield geometry.resize_labels(label[None], self.clip.size)[0].byte().cpu().numpy()


@dataclass(frozen=True)
class EndToEndSegmentation(Segmentation):
    """By a network whose flow, superpixels and masks were trained together."""

    net: EndToEnd

    @property
    def made_by(self) -> dict[str, Any]:
        return {"networks": [fingerprint(self.net)], "n_spixels": self.net.n_spixels}

    def frames(self, start: int = 0) -> Iterator[np.ndarray]:
        first = max(0, min(start - 1, len(self.clip) - 2))  # each frame is seen with the one before
        for t, logits in enumerate(self.net.video(self._pictures(first)), first):
            if t >= start:
                logits = geometry.resize(logits[None, None], self.clip.size)[0, 0]
                yield (logits > 0).byte().cpu().numpy()


def segment(source: str | Path | Clip, weights: str | Path | None = None, raft: str | Path = "small",
            ssn: str | Path = "scenes", rows: int = 240, n_iters: int = 12, polished: str | None = None,
            method: str = "unet", window: int | None = None, objects: str | None = None,
            given: Mapping[int, Tensor] | str | Path | None = None, device: str = "cpu") -> Segmentation:
    """The whole job: ``segment("my_frames/").save("masks/")``.

    Args:
        source: a folder of frames, a video file, or a clip.
        weights: a shipped name or file of the method's network; None: "motion" of the U-Nets, or the method's own.
            Of objects, a network of several masks may say what moves as well, by all of them together. A network
            trained end to end is always a file, which holds its own flow and superpixels.
        raft, ssn: the same of the flow and, for the U-Net, of the superpixel network.
        rows: height at which the networks work, since they were trained near it; masks have the frames' own size.
        method: "unet" (learned from masks), "em" or "spacetime" (learned from flow alone, see :class:`MotionNet`), or
            "end-to-end" (see :class:`EndToEnd`, which has its own flow and superpixels).
        n_iters: RAFT's corrections per pair.
        polished: see :func:`video_flow`; None: "variational", but of given objects "search", which follows small and
            fast ones better (``benchmarks/given.py``). window: see :meth:`MotionNet.segment`.
        objects: of the U-Net: part what moves into at most 20 objects that keep their names, by "graph" (see
            :func:`diffslic.segmentation.proposals`) or by a network of several masks (a shipped name or a file).
        given: instead of finding anything, follow objects whose masks are given, as :func:`propagate_objects` takes
            them or in a folder of files (:func:`diffslic.datasets.given_masks`).

    Returns:
        A :class:`Segmentation`, nothing of which is computed yet.

    Raises:
        FileNotFoundError, ValueError: nothing to read, one frame only, no such weights or device.
    """
    if objects is not None and (isinstance(objects, bool) or not str(objects)):
        raise ValueError(f"objects are parted by 'graph' or by a network, its name or file; got {objects!r}")
    if method not in METHODS:
        raise ValueError(f"the method is one of {', '.join(METHODS)}, got {method!r}")
    if rows < 8:
        raise ValueError(f"rows must be at least 8, got {rows}")
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
    of_parts = raft, ssn, n_iters, polished, window
    if method == "end-to-end" and of_parts != ("small", "scenes", 12, None, None):
        raise ValueError("a network trained end to end has its own flow and superpixels: no other raft, ssn, "
                         "corrections, polish or window can be given")
    if polished is None:
        polished = "variational" if given is None else "search"
    check_polish(polished)
    clip = source if isinstance(source, Clip) else datasets.open("folder", root=source)[0]
    check_length(clip)
    if method == "end-to-end":
        if given is not None:
            raise ValueError("given objects are followed, not found: give no method")
        if weights is None:
            raise ValueError("end-to-end needs weights: the best.safetensors of a training")
        if objects is not None:
            raise ValueError("end-to-end finds what moves as one: objects are for the method unet")
        net = EndToEnd.from_pretrained(weights, device)
        return EndToEndSegmentation(clip, net.flow, rows, net.n_iters, net.polished, net)
    flow = RAFT.from_pretrained(raft, device)
    if given is not None:
        if method != "unet" or objects or weights or window:
            raise ValueError("given objects are followed, not found: give no method, weights, window or objects")
        given = check_given(clip, given if isinstance(given, Mapping) else given_masks(given, clip))
        return GivenSegmentation(clip, flow, rows, n_iters, polished, _ssn_of_images(ssn, device), given)
    if method == "unet":
        if window is not None:
            raise ValueError("a U-Net sees one frame at a time: window is for spacetime")
        unet = UNet.from_pretrained(weights or "motion", device)
        if objects is None:
            check_masks(unet, weights or "motion", several=False)
        parts = (clip, flow, rows, n_iters, polished, unet, _ssn_of_images(ssn, device))
        if objects is None:
            return UNetSegmentation(*parts)
        instances = None if objects == "graph" else UNet.from_pretrained(objects, device)
        if instances is not None:
            check_masks(instances, objects, several=True)
        return ObjectSegmentation(*parts, instances)
    if objects is not None:
        raise ValueError(f"{method} numbers its own layers: objects is for the method unet")
    if window is not None and window != -1 and window < 1:
        raise ValueError(f"a window has at least one frame, or is -1 for the whole clip, got {window}")
    if window is not None and method == "em":
        raise ValueError("em sees one frame at a time: window is for spacetime")
    net = MotionNet.from_pretrained(weights or method, device)
    if (net.config.window == 1) != (method == "em"):
        raise ValueError(f"{weights} sees {net.config.window} frames at once and is not of method {method}")
    return MotionSegmentation(clip, flow, rows, n_iters, polished, net, window)


def _ssn_of_images(ssn: str | Path, device: str) -> SSN:
    net = SSN.from_pretrained(ssn, device)
    if net.extra_channels:
        raise ValueError(f"{ssn} is a composite, which sees flow as well: masks are made with an SSN of images alone")
    return net


def overlays(clip: Clip, paths: Sequence[Path]) -> Iterator[Tensor]:
    """Frames (3, H, W) in [0, 1] with their masks, read from files in order."""
    for t, path in enumerate(paths):
        picture = viz.overlay(clip.frame(t), io.read_labels(path))
        yield torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def segment_clips(clips: Sequence[Clip], folder: str | Path, overlay: bool = True, fps: float | None = None,
                  official: bool = False, given: str | Path | None = None, progress: bool = True, **how: Any) -> None:
    """Segment every clip of a dataset into ``folder/<clip name>``; see :func:`segment` and :meth:`Segmentation.save`.

    Args:
        given: a folder with the masks of objects to be followed, ``given/<clip name>``.
        how: arguments of :func:`segment`; the networks are loaded once.
    """
    masks = {clip.name: None if given is None else Path(given) / clip.name for clip in clips}
    for path in masks.values():
        if path is not None and not path.is_dir():  # before hours of work on the others
            raise FileNotFoundError(f"{path}: no such folder, expected the masks of objects to be followed")
    first = segment(clips[0], **how, given=masks[clips[0].name])
    for clip in clips:
        check_length(clip)
        path = masks[clip.name]
        its = {} if path is None else {"given": check_given(clip, given_masks(path, clip))}
        replace(first, clip=clip, **its).save(Path(folder) / clip.name, overlay, fps, official, progress)


def _frames_with_flow(raft: RAFT, frames: Iterator[Tensor], n_iters: int,
                      polished: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every frame (3, H, W) with a flow of its own pixels; the last one's is the way back, turned around."""
    read: deque[Tensor] = deque()
    for flow in video_flow(raft, _noted(frames, read), n_iters, polished):
        before = read.popleft()
        yield before, flow
    last = read.popleft()
    yield last, -next(video_flow(raft, (last, before), n_iters, polished))


def _noted(frames: Iterator[Tensor], read: deque[Tensor]) -> Iterator[Tensor]:
    """The same frames, each in ``read`` as well until it is taken from there; tee would keep the last 57."""
    for frame in frames:
        read.append(frame)
        yield frame


def _smaller(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (H, W) of another size, in which every id is left with a pixel."""
    small = geometry.resize_labels(mask[None], size)[0]
    for name in set(mask.unique().tolist()) - set(small.unique().tolist()):
        row, column = (mask == name).nonzero().T
        small[row * size[0] // mask.shape[0], column * size[1] // mask.shape[1]] = name
    return small
