"""Pre-generate, then train: flow and superpixels of clips, computed once and kept on disk.

Under torchrun the processes share the work: all call with the same clips, each computes every n-th of them and takes
the files of the others when they are there, so that all return all clips. They need one file system. Waiting has no
limit of its own: torchrun ends all processes when one of them dies.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, tee
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffslic import datasets
from diffslic.datasets.clip import Clip
from diffslic.datasets.composite_flow import flow_both_ways
from diffslic.flow import RAFT, BothWays, occlusion, polish, polish_settings, tvl1
from diffslic.pipeline.inputs import N_SPIXELS, Superpixels, find_superpixels
from diffslic.superpixels import SSN
from diffslic.training import device_of, own_share, speaks

POLL, PATIENCE = 0.2, 60.0  # seconds: between two looks for the file of another process; before it is told of


def video_flow(raft: RAFT, frames: Iterable[Tensor], n_iters: int = 12,
               polished: str = "variational") -> Iterator[Tensor]:
    """Flow from each frame to the next as it is used here: RAFT's, polished.

    Args:
        frames: (3, H, W) RGB in [0, 1] each, all of one size; read one at a time.
        n_iters: RAFT's corrections per pair.
        polished: how it is brought to a fraction of a pixel, a way of :func:`diffslic.flow.polish`; "none": RAFT's own.

    Yields:
        (2, H, W) flow in pixels, one less than there are frames.
    """
    ahead, seen = tee(frames)
    for flow, (first, second) in zip(raft.video(ahead, n_iters), pairwise(seen)):
        yield polish(first[None], second[None], flow[None], polished)[0]


def video_flow_both_ways(raft: RAFT, frames: Iterable[Tensor], n_iters: int = 12,
                         polished: str = "variational") -> Iterator[BothWays]:
    """As :func:`video_flow`, between neighbouring frames there and back, with occlusion."""
    ahead, seen = tee(frames)
    for both, (first, second) in zip(raft.video_both_ways(ahead, n_iters), pairwise(seen)):
        if polished == "none":
            yield both
            continue
        images = torch.stack([first, second])
        flows = polish(images, images.flip(0), torch.stack([both.forward, both.backward]), polished)
        yield BothWays(*flows, *occlusion(flows, flows.flip(0)))


def precompute_flow(clips: Sequence[Clip], raft: RAFT, folder: str | Path, n_iters: int = 12,
                    polished: str = "variational", both_ways: bool = False, progress: bool = True) -> list[Clip]:
    """Keep the flow of clips, one HDF5 file each, and return the clips with it as their ``flow``.

    A file that is whole and made with the same weights and settings from a clip of the same length, first and last
    frame is kept as it is, so a stopped run goes on where it was. A file with both ways serves for one as well.

    Args:
        folder: where the files go; ``<clip name>.h5`` each.
        n_iters, polished: see :func:`video_flow`.
        both_ways: keep the flow to the frame before too, as ``backward_flow``.
    """
    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        frames = (clip.frame(t) for t in range(len(clip)))
        if not both_ways:
            return {"flow": video_flow(raft, frames, n_iters, polished)}
        there, back = tee(video_flow_both_ways(raft, frames, n_iters, polished))
        return {"flow": (pair.forward for pair in there), "backward_flow": (pair.backward for pair in back)}

    settings = {"flow": fingerprint(raft), "n_iters": n_iters, "polished": polish_settings(polished),
                "both_ways": True}
    accepted = [settings] if both_ways else [{**settings, "both_ways": False}, settings]
    return _precompute(clips, Path(folder), accepted, fields, "flow", progress)


def precompute_tvl1(clips: Sequence[Clip], folder: str | Path, progress: bool = True) -> list[Clip]:
    """Keep TV-L1 flow of clips, as :func:`precompute_flow` keeps RAFT's: the opponent's input."""
    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        return {"flow": tvl1(clip.frame(t) for t in range(len(clip)))}

    return _precompute(clips, Path(folder), [{"flow": "tvl1"}], fields, "TV-L1 flow", progress)


def precompute_superpixels(clips: Sequence[Clip], ssn: SSN, folder: str | Path, n_spixels: int = N_SPIXELS,
                           progress: bool = True) -> list[Clip]:
    """Keep the superpixels of clips and their features, as :func:`precompute_flow` keeps the flow.

    A composite sees the flow that the clips have, there and back; with another flow its superpixels are made again.
    """
    device = device_of(ssn)

    def found_in(clip: Clip, t: int) -> Superpixels:
        extra = flow_both_ways(clip, t).to(device) if ssn.extra_channels else None
        return find_superpixels(ssn, clip.frame(t).to(device), n_spixels, extra)

    def fields(clip: Clip) -> dict[str, Iterable[Tensor]]:
        found = (found_in(clip, t) for t in range(len(clip)))
        labels, vectors = tee(found)
        return {"superpixel_labels": (frame.labels for frame in labels),
                "superpixel_vectors": (frame.vectors for frame in vectors)}

    def of_flow(clip: Clip) -> dict[str, Any]:
        return {"of_flow": _digest([flow_both_ways(clip, 0), flow_both_ways(clip, len(clip) - 1)])}

    settings = {"superpixels": fingerprint(ssn), "vectors": "appearance", "n_spixels": n_spixels}
    return _precompute(clips, Path(folder), [settings], fields, "superpixels", progress,
                       of_flow if ssn.extra_channels else None)


def fingerprint(model: nn.Module) -> str:
    """A short hash of a network's weights: other weights, another fingerprint."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def ends(clip: Clip) -> str:
    """A hash of the first and the last frame, which stand for the clip: other pictures, another hash."""
    return _digest([clip.frame(0), clip.frame(len(clip) - 1)])


def mean_motion(clip: Clip) -> str:
    """Mean length of the first flow to a thousandth of a pixel: that of another network or polish has another.

    By it a training that was stopped knows whether it goes on with the flow on which it began.
    """
    return f"{clip.flow(0).norm(dim=0).mean():.3f} px"


def _digest(tensors: Sequence[Tensor]) -> str:
    return hashlib.sha256(torch.stack(list(tensors)).numpy().tobytes()).hexdigest()[:16]


def cache_folder(cache: str | Path, dataset: str, resolution: str, kind: str) -> Path:
    """Where the flow, TV-L1 flow or superpixels (``kind``) of a dataset at a resolution are kept."""
    return Path(cache) / dataset / (resolution if dataset.startswith(("davis", "scenes")) else "") / kind


def _precompute(clips: Sequence[Clip], folder: Path, accepted: Sequence[Mapping[str, Any]],
                fields: Callable[[Clip], dict[str, Iterable[Tensor]]], what: str, progress: bool,
                more: Callable[[Clip], dict[str, Any]] | None = None) -> list[Clip]:
    """Write what is not there yet, with the first of the settings that are accepted in a file that is there.

    ``more`` tells what else a clip's file depends on.

    Whose a clip is depends on its place in the list, not on what is missing: that changes while others look.
    """
    paths = [folder / f"{clip.name}.h5" for clip in clips]
    own = own_share(range(len(clips)))
    others = sorted(set(range(len(clips))) - set(own))
    for i in tqdm([*own, *others], desc=what, unit="clip", disable=not (progress and speaks())):
        clip, is_of = clips[i], {"size": list(clips[i].size), "frames": ends(clips[i]),
                                 **(more(clips[i]) if more else {})}
        configurations = [{**settings, **is_of} for settings in accepted]
        if i in others:
            _wait_for(paths[i], configurations, len(clip))
        elif not _is_there(paths[i], configurations, len(clip)):
            try:
                datasets.write_clip_cache(paths[i], fields(clip), len(clip), configurations[0])
            except ValueError as error:
                raise ValueError(f"clip {clip.name!r}: {error}") from error
    return [datasets.cached_clip(clip, path) for clip, path in zip(clips, paths)]


def _wait_for(path: Path, configurations: Sequence[Mapping[str, Any]], length: int) -> None:
    """Until another process has written the file; who waits for long is told what for."""
    told = time.monotonic()
    while not _is_there(path, configurations, length):
        time.sleep(POLL)
        if time.monotonic() - told > PATIENCE:
            told = time.monotonic()
            warnings.warn(f"waiting for {path}, which another process is to write; where none does, RANK and "
                          "WORLD_SIZE are set without reason, or it sees other frames", stacklevel=2)


def _is_there(path: Path, configurations: Sequence[Mapping[str, Any]], length: int) -> bool:
    return any(datasets.is_current(path, configuration, length) for configuration in configurations)
