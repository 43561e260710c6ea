"""Depth of a video whose camera's poses are known: flow to neighbouring frames, triangulated, and fused."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from diffslic import depth, geometry, metrics, viz
from diffslic.datasets import io
from diffslic.datasets.clip import Clip
from diffslic.depth import DepthEstimate
from diffslic.flow import RAFT, BothWays, check_polish
from diffslic.pipeline.precompute import video_flow_both_ways
from diffslic.superpixels import SSN
from diffslic.training import device_of

MIN_PARALLAX = 2.0  # pixels
SKY = 1000.0  # metres; a truth beyond is none
NEEDED = ("camera_to_world", "intrinsics")


def pair_depth(clip: Clip, t: int, other: int, raft: RAFT, n_iters: int = 12, polished: str = "variational",
               min_parallax: float = MIN_PARALLAX) -> DepthEstimate:
    """Depth of frame ``t`` from the flow to frame ``other``, what that does not show left out.

    Its sigma comes from :func:`diffslic.depth.estimate_noise`.

    Args:
        clip: with poses and intrinsics.
        n_iters, polished: see :func:`diffslic.pipeline.video_flow`.
        min_parallax: see :func:`diffslic.depth.from_flow`.

    Returns:
        An estimate with B = 1, on the network's device.

    Raises:
        LookupError: the clip has no poses or no intrinsics. IndexError: a frame that is not there.
    """
    return _Pairs(clip, raft, n_iters, polished, min_parallax).depth(t, other)


def frame_depth(clip: Clip, t: int, raft: RAFT, offsets: Sequence[int] = (-2, -1, 1, 2), n_iters: int = 12,
                polished: str = "variational", min_parallax: float = MIN_PARALLAX) -> DepthEstimate:
    """Depth of frame ``t``, fused from the pairs with the frames at ``offsets`` from it, as far as the clip has them.

    Raises:
        ValueError: the clip has none of them. Else as :func:`pair_depth`.
    """
    pairs = _Pairs(clip, raft, n_iters, polished, min_parallax)
    return depth.fuse([pairs.depth(t, other) for other in _others(clip, t, offsets)])


def save_depth(clips: Sequence[Clip], folder: str | Path, raft: RAFT, ssn: SSN | None = None, n_spixels: int = 400,
               offsets: Sequence[int] = (-2, -1, 1, 2), n_iters: int = 12, polished: str = "variational",
               min_parallax: float = MIN_PARALLAX, progress: bool = True) -> list[dict[str, float | str]]:
    """Depth of every frame as files: ``FOLDER/<clip>/<frame>.npy`` in metres, ``_sigma.npy``, and ``_depth.png``.

    Where there is no depth the arrays are NaN, and the picture is black; colours have one scale over a clip.

    Args:
        ssn: superpixels, to fit a plane to each; without, depth is per pixel.
        offsets: see :func:`frame_depth`. The flow between two frames is computed once, for both.

    Returns:
        A row per frame: its clip and name, ``valid`` the share of its pixels with a depth, and where the clip has a
        true depth, the errors; their ``coverage`` is the share of the pixels with a truth nearer than a kilometre.

    Raises:
        ValueError: no clips, one without poses or intrinsics, or a frame with no other at the offsets; before anything
            is written. OSError: the folder cannot be written.
    """
    lacking = [f"{clip.name!r} has no {kind}" for clip in clips for kind in NEEDED if not clip.has(kind)]
    if lacking or not clips:
        raise ValueError(f"depth needs the camera's poses and intrinsics: clip {lacking[0]}" if lacking else
                         "depth needs a clip, got none")
    frames = [(clip, t, _others(clip, t, offsets)) for clip in clips for t in range(len(clip))]
    rows: list[dict[str, float | str]] = []
    pairs, scale = None, (None, None)
    for clip, t, others in tqdm(frames, desc="depth", unit="frame", disable=not progress):
        if t == 0:
            pairs, scale = _Pairs(clip, raft, n_iters, polished, min_parallax), (None, None)
        estimate = depth.fuse([pairs.depth(t, other) for other in others])
        pairs.forget(t)
        if ssn is not None:
            with torch.no_grad():
                estimate = depth.by_superpixels(estimate, ssn(clip.frame(t)[None].to(device_of(ssn)), n_spixels))
        found, sigma = estimate.depth[0].cpu(), estimate.sigma[0].cpu()
        if scale == (None, None) and estimate.valid.any():
            scale = tuple(float(found[found.isfinite()].quantile(end)) for end in (0.01, 0.99))
        path = Path(folder) / clip.name / clip.frame_name(t)
        io.write_npy(path.with_name(f"{path.name}.npy"), found[0].numpy())
        io.write_npy(path.with_name(f"{path.name}_sigma.npy"), sigma[0].numpy())
        shown = torch.from_numpy(viz.depth_to_color(found[0], *scale)).permute(2, 0, 1) / 255
        io.write_image(path.with_name(f"{path.name}_depth.png"), shown)
        rows.append({"clip": clip.name, "frame": clip.frame_name(t), "valid": float(estimate.valid.float().mean())}
                    | _errors(found, clip, t))
    return rows


class _Pairs:
    """Flow between frames of a clip, there and back at once, kept until nobody asks for it any more."""

    def __init__(self, clip: Clip, raft: RAFT, n_iters: int, polished: str, min_parallax: float) -> None:
        check_polish(polished)
        self.clip, self.raft, self.how, self.min_parallax = clip, raft, (n_iters, polished), min_parallax
        self.kept: dict[tuple[int, int], BothWays] = {}

    def depth(self, t: int, other: int) -> DepthEstimate:
        """Of frame ``t``, from its flow to frame ``other``."""
        clip, pair = self.clip, (min(t, other), max(t, other))
        motion = geometry.second_from_first(clip.camera_to_world(t).double(), clip.camera_to_world(other).double())
        if pair not in self.kept:
            frames = [clip.frame(i).to(device_of(self.raft)) for i in pair]
            self.kept[pair] = next(video_flow_both_ways(self.raft, frames, *self.how))
        forward, backward, hidden, hidden_back = (field[None] for field in self.kept[pair])
        if t > other:
            forward, backward, hidden = backward, forward, hidden_back
        noise = depth.estimate_noise(forward, backward, clip.intrinsics, motion)
        return depth.from_flow(forward, clip.intrinsics, motion, noise=noise, min_parallax=self.min_parallax,
                               hidden=hidden)

    def forget(self, t: int) -> None:
        """Frames up to ``t`` are done with."""
        self.kept = {pair: flow for pair, flow in self.kept.items() if pair[1] > t}


def _others(clip: Clip, t: int, offsets: Sequence[int]) -> list[int]:
    others = [t + offset for offset in offsets if offset and 0 <= t + offset < len(clip)]
    if not others:
        raise ValueError(f"frame {t} of clip {clip.name!r} has no other frame at the offsets {list(offsets)}: give one "
                         f"before and one after, such as -1,1 ({len(clip)} frames)")
    return others


def _errors(found: torch.Tensor, clip: Clip, t: int) -> dict[str, float]:
    if not clip.has("depth"):
        return {}
    truth = clip.depth(t)
    truth = truth.where(truth < SKY, 0)
    return metrics.depth(found, truth) if (found.isfinite() & (truth > 0)).any() else {}
