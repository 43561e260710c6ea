"""A video seen in all ways at once: its superpixels, its flow, what moves in it, and files of each to take away."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import torch
from torch import Tensor

from diffslic import datasets, geometry
from diffslic.datasets import io
from diffslic.datasets.clip import Clip
from diffslic.datasets.video import FPS, write_video
from diffslic.files import written_whole
from diffslic.pipeline.objects import graph_proposals, moving, track
from diffslic.pipeline.segment import UNetSegmentation, overlays, segment
from diffslic.segmentation import Tracker

LONGEST = 300  # frames of which all pictures are kept in memory


class Survey(NamedTuple):
    """What was found in a video of T frames, at the height of the networks (h, w), and where its files are."""

    frames: list[Tensor]  # T of (3, h, w) in [0, 1]
    superpixels: list[Tensor]  # T of (h, w) int32
    flows: list[Tensor]  # T - 1 of (2, h, w) in pixels
    masks: list[Tensor]  # T of (h, w) uint8: 0 the world, from 1 what moves
    files: list[Path]  # to take away


def survey(source: str | Path | Clip, folder: str | Path, *, objects: bool = False, rows: int = 240,
           device: str = "cpu", tell: Callable[[int, int], object] = lambda done, total: None) -> Survey:
    """Superpixels, flow and moving things of a video in one pass, for a person who looks at them.

    ``folder`` gets ``masks/``, ``superpixels/`` (of the frames' own size) and ``flow/`` (at the height of the
    networks), each as a zip as well, and ``overlay.mp4``. For a video of any length there are
    :func:`diffslic.pipeline.segment`, :func:`save_flow` and :func:`save_superpixels`.

    Args:
        source: a folder of frames, a video file, or a clip.
        folder: empty, or not there yet.
        objects: part what moves into objects that keep their names.
        rows: height at which the networks work.
        tell: called after each frame with how many are done, and of how many.

    Raises:
        FileNotFoundError, ValueError: nothing to read, one frame only, more than :data:`LONGEST`, a folder in use.
    """
    clip, folder = source if isinstance(source, Clip) else datasets.open("folder", root=source)[0], Path(folder)
    if len(clip) > LONGEST:
        raise ValueError(f"{clip.name} has {len(clip)} frames, more than the {LONGEST} that are kept in memory: "
                         "diffslic segment takes a video of any length")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: choose another folder")
    job = segment(clip, rows=rows, device=device)
    found = _seen(job, objects, tell)
    names = [clip.frame_name(t) for t in range(len(clip))]
    for name, superpixels, mask in zip(names, found.superpixels, found.masks):
        superpixels, mask = geometry.resize_labels(torch.stack([superpixels, mask]).long(), clip.size)
        io.write_segments(folder / "superpixels" / f"{name}.png", superpixels)
        io.write_labels(folder / "masks" / f"{name}.png", mask)
    for name, flow in zip(names, found.flows):
        io.write_flo(folder / "flow" / f"{name}.flo", flow)
    painted = overlays(clip, [folder / "masks" / f"{name}.png" for name in names])
    write_video(folder / "overlay.mp4", painted, clip.fps or FPS)
    zips = [_zipped(folder / kind) for kind in ("masks", "superpixels", "flow")]
    return found._replace(files=[*zips, folder / "overlay.mp4"])


def _seen(job: UNetSegmentation, objects: bool, tell: Callable[[int, int], object]) -> Survey:
    found, tracker = Survey([], [], [], [], []), Tracker()
    for view in job.views(job.ssn):
        mask = moving(job.unet, view)
        if objects:
            [frame] = track([view], [mask], graph_proposals, tracker)
        found.frames.append(view.frame.cpu())
        found.superpixels.append(view.superpixels.labels.int().cpu())
        found.flows.append(view.flow.cpu())
        found.masks.append(frame.labels.byte() if objects else mask.byte())
        tell(len(found.frames), len(job.clip))
    return found._replace(flows=found.flows[:-1])  # that of the last frame is the way back


def _zipped(folder: Path) -> Path:
    """The files of a folder in one, beside it."""
    path = folder.with_suffix(".zip")
    with written_whole(path) as temporary, ZipFile(temporary, "w", ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"{folder.name}/{file.name}")
    return path
