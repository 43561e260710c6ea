"""What is it worth to train end to end? The same data and steps with all parts learning, with some, and with one.

Every arm starts from the same weights of flow and superpixels and a new head, and every arm's batches hold the same
frames in the same order, mirrored alike and disguised alike in distribution. The pre-generated arms also change the
colours of the image that the head sees; elsewhere flow and superpixels see the same image, and it stays as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats

from diffslic import datasets, pipeline
from diffslic.datasets.clip import Clip
from diffslic.files import written_whole
from diffslic.flow import RAFT
from diffslic.pipeline import EndToEnd
from diffslic.recipes import end_to_end, unet
from diffslic.segmentation import UNet
from diffslic.superpixels import SSN
from diffslic.training import device_of

BASE, POLISHED = "pre-generated", "pre-generated, 12 corrections, polished"
# What learns by name of the arm, and with which head. The pre-generated arms learn the head alone: from the very flow
# and superpixels that the others start with, or from those that the commands make.
ARMS: dict[str, dict[str, Any]] = {
    BASE: {}, POLISHED: {},
    "end to end": {"frozen": ()},
    "flow frozen": {"frozen": ("flow",)},
    "superpixels frozen": {"frozen": ("superpixels",)},
    "head frozen": {"frozen": ("head",)},  # it is that of the pre-generated arm, which has learned before
    "transformer alone": {"frozen": ("flow", "superpixels"), "head": "transformer"},
    "transformer, end to end": {"frozen": (), "head": "transformer"},
}


class Clips(NamedTuple):
    """No scene is in two of them."""

    train: list[Clip]
    validation: list[Clip]
    test: list[Clip]


def scenes(size: tuple[int, int], n_train: int, n_validation: int, n_test: int, n_frames: int = 6,
           device: str = "cpu") -> Clips:
    """Procedural scenes of the preset "lab" for a comparison."""
    n_clips = n_train + n_validation + n_test
    drawn = [_remembered(clip) for clip in
             datasets.open("scenes", preset="lab", n_clips=n_clips, n_frames=n_frames, size=size, seed=600_000,
                           lighting=0.1, noise=0.01, device=device)]
    return Clips(drawn[:n_train], drawn[n_train:-n_test], drawn[-n_test:])


def _remembered(clip: Clip) -> Clip:
    """The clip with its frames and labels in memory: they are read again by every arm and seed."""
    frames, labels = ([read(t) for t in range(len(clip))] for read in (clip.frame, clip.labels))
    return clip.with_readers(frame=frames.__getitem__, labels=labels.__getitem__)


def compare(folder: str | Path, clips: Clips, *, arms: Iterable[str] = ARMS, seeds: Sequence[int] = (0, 1, 2),
            steps: int = 300, batch_size: int = 2, n_iters: int = 4, n_spixels: int = 150, device: str = "cpu",
            precision: str = "32-true", progress: bool = True) -> pd.DataFrame:
    """Train every arm with every seed, and score it on clips that none has seen.

    Trained networks, flow and superpixels stay below ``folder``; what is there already is not made again.

    Args:
        arms: of :data:`ARMS`.
        n_iters, n_spixels: see :class:`diffslic.pipeline.EndToEnd`.

    Returns:
        A row per arm, seed and test clip: arm, seed, clip, j, f, seconds (of the training).
    """
    folder, rows = Path(folder), []
    how = {"steps": steps, "batch_size": batch_size, "validate_every": max(1, steps // 3), "device": device,
           "precision": precision, "workers": 0, "progress": progress}
    for arm in arms:
        out = folder / _folder_name(arm)
        test = clips.test
        if arm in (BASE, POLISHED):
            train, validation, test = (_pre_generated(part, out / "cache", arm == POLISHED, n_iters, n_spixels, device,
                                                      progress) for part in clips)
            train = [clip.part(1, len(clip)) for clip in train]  # as elsewhere, frames with two neighbours
        for seed in seeds:
            here = out / str(seed)
            if arm in (BASE, POLISHED):
                fit = unet.train(here, train, validation, seed=seed, **how)
                masks_of = _from_cache(UNet.from_pretrained(fit.weights, device))
            else:
                shape = {"n_iters": n_iters, "n_spixels": n_spixels, **ARMS[arm]}
                if "head" in shape["frozen"]:
                    shape["start"] = folder / _folder_name(BASE) / str(seed) / "best.safetensors"
                fit = end_to_end.train(here, clips.train, clips.validation, frozen=shape.pop("frozen"), shape=shape,
                                       seed=seed, **how)
                masks_of = _straight(EndToEnd.from_pretrained(fit.weights, device))
            scores = _scores(here / "scores.csv", masks_of, test)
            rows.append(scores.assign(arm=arm, seed=seed, seconds=fit.seconds))
    return pd.concat(rows, ignore_index=True)[["arm", "seed", "clip", "j", "f", "seconds"]]


def _folder_name(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "_")


def _scores(path: Path, masks_of: Callable[[Clip], np.ndarray], clips: Sequence[Clip]) -> pd.DataFrame:
    """Columns clip, j and f, from the file where they are known for these clips."""
    names = [clip.name for clip in clips]
    if not path.is_file() or list(pd.read_csv(path)["clip"]) != names:
        scores = [unet.score(masks_of(clip), clip) for clip in clips]
        with written_whole(path) as temporary:
            pd.DataFrame({"clip": names, "j": [score["J-Mean"] for score in scores],
                          "f": [score["F-Mean"] for score in scores]}).to_csv(temporary, index=False)
    return pd.read_csv(path)


def _pre_generated(clips: Sequence[Clip], kept: Path, polished: bool, n_iters: int, n_spixels: int, device: str,
                   progress: bool) -> list[Clip]:
    """Clips with flow and superpixels of a cache: those of the other arms, or ``polished`` as commands make them."""
    raft = RAFT.from_pretrained("small", device)
    ssn = SSN.from_pretrained("scenes" if polished else "composite-davis2016", device)
    clips = pipeline.precompute_flow(clips, raft, kept / "flow", 12 if polished else n_iters, polished, both_ways=True,
                                     progress=progress)
    return pipeline.precompute_superpixels(clips, ssn, kept / "superpixels", n_spixels, progress=progress)


def _straight(network: EndToEnd) -> Callable[[Clip], np.ndarray]:
    return lambda clip: end_to_end.predict(network, clip)


def _from_cache(network: UNet) -> Callable[[Clip], np.ndarray]:
    """Clip to masks (T, H, W) from one view of each frame, as the other arms have; the last repeats the one before."""
    def masks(clip: Clip) -> np.ndarray:
        with torch.no_grad():
            found = [network(pipeline.clip_input(clip, t, network.config.inputs)[None].to(device_of(network)))[0, 0] > 0
                     for t in clip.frames_with("flow")]
        return np.stack([mask.byte().cpu().numpy() for mask in (*found, found[-1])])

    return masks


def table(rows: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """A row per arm of what :func:`compare` returned.

    The clips are what a score should hold for beyond these: intervals are Student's over clips, each clip's score the
    mean over the seeds. ``gain`` is the difference from the first arm on the same clips, whose interval is narrower
    than that of the scores, for all arms find the same clips hard.

    Returns:
        Columns J, its half interval "+-", "between seeds" (standard deviation of the seeds' means), "gain" and its
        half interval, F, and "seconds" of a training.
    """
    order = list(dict.fromkeys(rows["arm"]))
    by_clip = rows.groupby(["arm", "clip"])["j"].mean().unstack("clip")

    def half(values: np.ndarray) -> float:
        return float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)

    columns: Mapping[str, Callable[[str], float]] = {
        "J": lambda arm: by_clip.loc[arm].mean(),
        "+-": lambda arm: half(by_clip.loc[arm].to_numpy()),
        "between seeds": lambda arm: rows[rows["arm"] == arm].groupby("seed")["j"].mean().std(),
        "gain": lambda arm: (by_clip.loc[arm] - by_clip.loc[order[0]]).mean(),
        "gain +-": lambda arm: half((by_clip.loc[arm] - by_clip.loc[order[0]]).to_numpy()),
        "F": lambda arm: rows[rows["arm"] == arm]["f"].mean(),
        "seconds": lambda arm: rows[rows["arm"] == arm]["seconds"].mean(),
    }
    return pd.DataFrame({name: [of(arm) for arm in order] for name, of in columns.items()}, index=order)
