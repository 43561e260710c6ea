"""What the networks find, as files: superpixels of images, flow of a video."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffslic import metrics, viz
from diffslic.datasets import io
from diffslic.datasets.clip import Clip
from diffslic.datasets.video import FPS, write_video
from diffslic.files import claim
from diffslic.flow import RAFT, polish_settings
from diffslic.pipeline.precompute import ends, fingerprint, video_flow, video_flow_both_ways
from diffslic.pipeline.predict import check_length
from diffslic.superpixels import SSN, SpixelFCN
from diffslic.training import device_of

LAYOUTS = {"flo": io.write_flo, "png": io.write_kitti_png}  # of flow files


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


def save_flow(clip: Clip, folder: str | Path, raft: RAFT, n_iters: int = 12, polished: str = "variational",
              both_ways: bool = False, layout: str = "flo", largest: float | None = None,
              progress: bool = True) -> dict[str, float]:
    """Flow of a video: a file and a picture per pair of frames, and a film.

    ``FOLDER/flow/<frame>`` leads from that frame to the next, ``backward/<frame>``, with ``both_ways``, to the one
    before; ``occlusion/<frame>.png`` is 1 where the next frame does not show a pixel. ``colors/`` and ``colors.mp4``
    show all frames in one scale.

    Args:
        n_iters, polished: see :func:`diffslic.pipeline.video_flow`.
        layout: "flo" (Middlebury) or "png" (KITTI, 1/64 pixel).
        largest: the motion in pixels that gets the strongest colours; if None, the largest of the frames' 99th
            percentiles.

    Returns:
        pairs, the mean motion and the largest of the colours in pixels, and with ``both_ways`` the share occluded.

    Raises:
        ValueError: frames that RAFT does not take, one frame only, another layout, or a folder with flow of another
            run: ``flow.json`` tells whose it is. OSError: a file cannot be written.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"flow is written as {' or '.join(LAYOUTS)}, got {layout!r}")
    if largest is not None and not largest > 0:
        raise ValueError(f"the largest motion of the colours must be above 0, got {largest}")
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
    settings = {"frames": len(clip), "ends": ends(clip), "raft": fingerprint(raft), "n_iters": n_iters,
                "polished": polish_settings(polished)}
    folder, write = Path(folder), LAYOUTS[layout]
    names = [clip.frame_name(t) for t in range(len(clip))]
    check_length(clip)
    _refuse_others(folder, names, layout, both_ways)
    claim(folder / "flow.json", settings, (folder / "flow").is_dir(), "flow")
    device = device_of(raft)
    pairs = _pairs(raft, (clip.frame(t).to(device) for t in range(len(clip))), n_iters, polished, both_ways)
    lengths, peaks, occluded = [], [], []
    with tqdm(total=len(clip) - 1, desc=clip.name, unit="pair", disable=not progress) as bar:
        for pair, name, after in zip(pairs, names, names[1:]):
            write(folder / "flow" / f"{name}.{layout}", pair.forward)
            length = pair.forward.norm(dim=0).cpu()
            lengths.append(float(length.mean()))
            peaks.append(float(np.percentile(length.numpy(), 99)))
            if pair.backward is not None:
                write(folder / "backward" / f"{after}.{layout}", pair.backward)
                io.write_labels(folder / "occlusion" / f"{name}.png", pair.occlusion.long().cpu())
                occluded.append(float(pair.occlusion.float().mean()))
            bar.update()
    largest = largest or max(max(peaks), 1e-3)

    def pictures() -> Iterator[Tensor]:
        for name in names[:-1]:
            shown = viz.flow_to_color(io.read_flow(folder / "flow" / f"{name}.{layout}").flow, largest)
            yield torch.from_numpy(shown).permute(2, 0, 1).float() / 255

    for name, picture in zip(names, pictures()):
        io.write_image(folder / "colors" / f"{name}.png", picture)
    write_video(folder / "colors.mp4", pictures(), clip.fps or FPS)
    figures = {"pairs": len(clip) - 1, "mean_motion": float(np.mean(lengths)), "largest": largest}
    return {**figures, "occluded": float(np.mean(occluded))} if both_ways else figures


def _refuse_others(folder: Path, names: Sequence[str], layout: str, both_ways: bool) -> None:
    """A folder holds the flow of one run: whoever reads it takes every file there for its own."""
    own = {"flow": (names[:-1], layout), "colors": (names[:-1], "png"),
           "backward": (names[1:] if both_ways else [], layout), "occlusion": (names[:-1] if both_ways else [], "png")}
    for part, (stems, suffix) in own.items():
        known = {f"{stem}.{suffix}" for stem in stems}
        for path in sorted((folder / part).iterdir()) if (folder / part).is_dir() else ():
            if path.name not in known and not path.name.startswith("."):
                raise ValueError(f"{path} is of another run: remove the folder or choose another")


class _Pair(NamedTuple):
    """What is written of a pair of frames; the last two with both ways only."""

    forward: Tensor
    backward: Tensor | None = None
    occlusion: Tensor | None = None


def _pairs(raft: RAFT, frames: Iterator[Tensor], n_iters: int, polished: str, both_ways: bool) -> Iterator[_Pair]:
    if both_ways:
        for pair in video_flow_both_ways(raft, frames, n_iters, polished):
            yield _Pair(*pair[:3])
    else:
        yield from map(_Pair, video_flow(raft, frames, n_iters, polished))
