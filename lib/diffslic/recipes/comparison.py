"""What is it worth to train end to end? The same data and steps with all parts learning, with some, and with one.

Every arm starts from the same weights of flow and superpixels and a new head. Every arm's batches hold the same frames
in the same order, cut, mirrored, coloured and disguised by the same draws; the step with the best validation is kept,
and masks are made as in use, by a U-Net from two views. The pre-generated arms have hard superpixels, the others soft.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from scipy import stats

from diffslic import datasets, pipeline
from diffslic.datasets.clip import Clip
from diffslic.files import note_says, write_note
from diffslic.flow import POLISHES, RAFT, polish_settings
from diffslic.pipeline import EndToEnd
from diffslic.recipes import end_to_end, unet
from diffslic.segmentation import UNet
from diffslic.superpixels import SSN

BASE = "pre-generated"
OF_FLOW, OF_IMAGES = "composite-davis2016", "scenes"  # superpixel networks: of colour and flow, and of colour alone
# From what the head alone learns, by name of the arm: the very flow and superpixels that the other arms start with, but
# for what is named.
PRE_GENERATED: dict[str, dict[str, Any]] = {
    BASE: {},
    "pre-generated, as commands do": {"n_iters": 12, "ssn": OF_IMAGES},
    "pre-generated, so by the search": {"n_iters": 12, "ssn": OF_IMAGES, "polished": "search"},
    "pre-generated, not polished": {"polished": "none"},
}
# What learns in one graph, and with which head.
IN_ONE_GRAPH: dict[str, dict[str, Any]] = {
    "head alone, in one graph": {"frozen": ("flow", "superpixels")},
    "end to end": {"frozen": ()},
    "flow frozen": {"frozen": ("flow",)},
    "superpixels frozen": {"frozen": ("superpixels",)},
    "head frozen": {"frozen": ("head",)},  # it is that of the pre-generated arm, which has learned before
    "transformer alone, in one graph": {"frozen": ("flow", "superpixels"), "head": "transformer"},
    "transformer, end to end": {"frozen": (), "head": "transformer"},
    "end to end, not polished": {"frozen": (), "polished": "none"},
}
ARMS = PRE_GENERATED | IN_ONE_GRAPH


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
            precision: str = "32-true", resume: bool = True, progress: bool = True) -> pd.DataFrame:
    """Train every arm with every seed, and score it on clips that none has seen.

    Args:
        folder: networks, flow and superpixels stay below it.
        arms: of :data:`ARMS`.
        n_iters, n_spixels: see :class:`diffslic.pipeline.EndToEnd`.
        resume: what is in the folder already is not made again.

    Returns:
        A row per arm, seed and test clip: arm, seed, clip, j, f, seconds (of the training, not of what was
        pre-generated).

    Raises:
        ValueError: there is no such arm, or the folder holds a comparison on other clips, of other networks or with
            other settings.
    """
    arms, folder, rows = list(arms), Path(folder), []
    if unknown := [arm for arm in arms if arm not in ARMS]:  # not after an hour
        raise ValueError(f"arms are {'; '.join(ARMS)}; not {unknown[0]}")
    how = {"steps": steps, "batch_size": batch_size, "validate_every": max(1, steps // 3), "device": device,
           "precision": precision, "workers": 0, "resume": resume, "progress": progress}
    _claim(folder, {"clips": _digest(clips), "steps": steps, "batch_size": batch_size, "n_iters": n_iters,
                    "n_spixels": n_spixels, "precision": precision}, resume)
    for arm in arms:
        out = folder / _folder_name(arm)
        if arm in PRE_GENERATED:
            parts = {"n_iters": n_iters, "n_spixels": n_spixels, **PRE_GENERATED[arm]}
            train, validation, test = (_pre_generated(part, out / "cache", device, progress, **parts)
                                       for part in clips)
            train = [clip.part(1, len(clip)) for clip in train]  # as elsewhere, frames with two neighbours
        for seed in seeds:
            here = out / str(seed)
            if arm in PRE_GENERATED:
                fit = unet.train(here, train, validation, seed=seed, crop=end_to_end.CROP, **how)
                head = UNet.from_pretrained(fit.weights, device)
                masks = [pipeline.predict(head, clip) for clip in test]
            else:
                shape = {"n_iters": n_iters, "n_spixels": n_spixels, **IN_ONE_GRAPH[arm]}
                if "head" in shape["frozen"]:
                    shape["start"] = weights_of(folder, BASE, seed)
                fit = end_to_end.train(here, clips.train, clips.validation, frozen=shape.pop("frozen"), shape=shape,
                                       seed=seed, **how)
                network = EndToEnd.from_pretrained(fit.weights, device)
                masks = [end_to_end.predict(network, clip) for clip in clips.test]
            scores = [unet.score(each, clip) for each, clip in zip(masks, clips.test)]
            rows += [{"arm": arm, "seed": seed, "clip": clip.name, "j": score["J-Mean"], "f": score["F-Mean"],
                      "seconds": fit.seconds} for clip, score in zip(clips.test, scores)]
    return pd.DataFrame(rows)


def weights_of(folder: str | Path, arm: str, seed: int) -> Path:
    """The best weights of an arm and seed, where :func:`compare` leaves them."""
    return Path(folder) / _folder_name(arm) / str(seed) / "best.safetensors"


def _folder_name(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "_")


def _digest(clips: Clips) -> str:
    """Other clips, or the same of another size: another digest."""
    return hashlib.sha256(" ".join(pipeline.ends(clip) for part in clips for clip in part).encode()).hexdigest()[:16]


def _claim(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Note what the folder holds; with ``resume``, refuse one that holds something else."""
    parts = [RAFT.from_pretrained("small"), *(SSN.from_pretrained(name) for name in (OF_FLOW, OF_IMAGES))]
    settings = {**settings, "networks": [pipeline.fingerprint(part) for part in parts],
                "arms": {arm: str(what) for arm, what in ARMS.items()},
                "polishes": [polish_settings(way) for way in POLISHES]}
    note = folder / "comparison.json"
    if resume and note.exists() and not note_says(note, settings):
        raise ValueError(f"{folder} holds another comparison: remove it or choose another folder")
    write_note(note, settings)


def _pre_generated(clips: Sequence[Clip], kept: Path, device: str, progress: bool, *, n_iters: int, n_spixels: int,
                   ssn: str = OF_FLOW, polished: str = "variational") -> list[Clip]:
    """Clips with flow and superpixels of a cache."""
    raft, net = RAFT.from_pretrained("small", device), SSN.from_pretrained(ssn, device)
    clips = pipeline.precompute_flow(clips, raft, kept / "flow", n_iters, polished, both_ways=True, progress=progress)
    return pipeline.precompute_superpixels(clips, net, kept / "superpixels", n_spixels, progress=progress)


def table(rows: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """A row per arm of what :func:`compare` returned.

    A score should hold for other clips and other seeds than these: half intervals are Student's, with the variances
    between clips and between seeds added and Welch's degrees of freedom. ``gain`` is the difference from the first arm
    on the same clips and seeds, whose interval is narrower than that of the scores, for all arms find the same clips
    hard.

    Returns:
        Columns J, its half interval "+-", "gain" and its half interval, "least gain" and "most gain" of a seed, F, and
        "seconds" of a training. With a single seed the intervals are over clips alone.
    """
    order = list(dict.fromkeys(rows["arm"]))
    scores = {arm: rows[rows["arm"] == arm].pivot(index="clip", columns="seed", values="j") for arm in order}
    lines = {}
    for arm, score in scores.items():
        gain = score - scores[order[0]]
        of_seeds = gain.mean()
        lines[arm] = {"J": score.to_numpy().mean(), "+-": _half_interval(score, confidence),
                      "gain": gain.to_numpy().mean(), "gain +-": _half_interval(gain, confidence),
                      "least gain": of_seeds.min(), "most gain": of_seeds.max(),
                      "F": rows[rows["arm"] == arm]["f"].mean(), "seconds": rows[rows["arm"] == arm]["seconds"].mean()}
    return pd.DataFrame(lines).T


def markdown(compared: pd.DataFrame) -> str:
    """What :func:`table` returned, as a page tells it."""
    lines = ["| arm | J on unseen scenes | gain | gain by seed | F | seconds |",
             "|---|---|---|---|---|---|"]
    for number, (arm, row) in enumerate(compared.iterrows()):
        gain = [f"{row['gain']:+.3f} ± {row['gain +-']:.3f}", f"{row['least gain']:+.3f} to {row['most gain']:+.3f}"]
        lines.append(" | ".join([f"| {arm}", f"{row['J']:.3f} ± {row['+-']:.3f}", *(gain if number else ["", ""]),
                                 f"{row['F']:.3f}", f"{row['seconds']:.0f} |"]))
    return "\n".join(lines)


def _half_interval(values: pd.DataFrame, confidence: float) -> float:
    """Of the mean of values (clips, seeds). What clip and seed make together counts twice: rather too wide than not."""
    means = [values.mean(axis=axis).to_numpy() for axis in (1, 0)]            # of clips, of seeds
    parts = [(each.var(ddof=1) / len(each), len(each) - 1) for each in means if len(each) > 1]
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0
    freedom = variance ** 2 / sum(part ** 2 / degrees for part, degrees in parts)
    return float(stats.t.ppf(0.5 + confidence / 2, freedom) * variance ** 0.5)
