"""What is it worth to train end to end? The same data and steps with all parts learning, with some, and with one.

Every arm starts from the same flow and superpixel networks and a new head, and every arm's batches hold the same frames
in the same order, mirrored and disguised alike in distribution.
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
from diffslic.flow import RAFT
from diffslic.pipeline import EndToEnd
from diffslic.recipes import end_to_end, unet
from diffslic.segmentation import UNet
from diffslic.superpixels import SSN

BASE, SSN_OF_IMAGES = "pre-generated", "scenes"
# What learns together with what, by the name of the arm; a frozen head is that of the pre-generated arm.
ARMS: dict[str, dict[str, Any]] = {
    BASE: {},
    "pre-generated, 12 corrections, polished": {},
    "end to end": {"frozen": ()},
    "flow frozen": {"frozen": ("flow",)},
    "superpixels frozen": {"frozen": ("superpixels",)},
    "U-Net frozen": {"frozen": ("head",)},
    "flow and superpixels frozen, transformer": {"frozen": ("flow", "superpixels"), "head": "transformer"},
    "end to end, transformer": {"frozen": (), "head": "transformer"},
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
    drawn = datasets.open("scenes", preset="lab", n_clips=n_clips, n_frames=n_frames, size=size, seed=600_000,
                          lighting=0.1, noise=0.01, device=device)
    return Clips(drawn[:n_train], drawn[n_train:-n_test], drawn[-n_test:])


def compare(folder: str | Path, clips: Clips, *, arms: Iterable[str] = ARMS, seeds: Sequence[int] = (0, 1, 2),
            steps: int = 300, batch_size: int = 2, n_iters: int = 4, n_spixels: int = 150, device: str = "cpu",
            precision: str = "32-true", progress: bool = True) -> pd.DataFrame:
    """Train every arm with every seed, and score it on clips that none has seen.

    Trained networks, flow and superpixels stay below ``folder``; what is there already is not made again.

    Args:
        arms: of :data:`ARMS`; "U-Net frozen" needs the base before it.
        n_iters, n_spixels: see :class:`diffslic.pipeline.EndToEnd`.

    Returns:
        A row per arm, seed and test clip: arm, seed, clip, j, f, seconds (of the training).
    """
    folder = Path(folder)
    how = {"steps": steps, "batch_size": batch_size, "validate_every": max(1, steps // 3), "device": device,
           "precision": precision, "workers": 0, "progress": progress}
    rows = []
    for arm in arms:
        prepared = _pre_generated(folder, clips, arm, n_iters, n_spixels, device, progress) if not ARMS[arm] else None
        for seed in seeds:
            out = folder / arm.replace(", ", "-").replace(" ", "_") / str(seed)
            if prepared is not None:
                within = [clip.part(1, len(clip)) for clip in prepared.train]  # as elsewhere, what has two neighbours
                fit = unet.train(out, within, prepared.validation, inputs=pipeline.INPUTS, seed=seed, **how)
                masks_of = _masks_from_cache(UNet.from_pretrained(fit.weights, device))
            else:
                options = dict(ARMS[arm])
                frozen = options.pop("frozen")
                if "head" in frozen:
                    options["start"] = folder / BASE / str(seed) / "best.safetensors"
                shape = {"n_iters": n_iters, "n_spixels": n_spixels, **options}
                fit = end_to_end.train(out, clips.train, clips.validation, shape=shape, frozen=frozen, seed=seed, **how)
                trained = EndToEnd.from_pretrained(fit.weights, device)
                masks_of = lambda clip, trained=trained: end_to_end.predict(trained, clip)  # noqa: E731
            for clip in clips.test if prepared is None else prepared.test:
                score = unet.score(masks_of(clip), clip)
                rows.append({"arm": arm, "seed": seed, "clip": clip.name, "j": score["J-Mean"], "f": score["F-Mean"],
                             "seconds": fit.seconds})
    return pd.DataFrame(rows)


def _pre_generated(folder: Path, clips: Clips, arm: str, n_iters: int, n_spixels: int, device: str,
                   progress: bool) -> Clips:
    """The clips with flow and superpixels from the cache: those of the other arms, or as commands make them."""
    raft = RAFT.from_pretrained("small", device)
    if arm == BASE:
        ssn, how = SSN.from_pretrained("composite-davis2016", device), {"n_iters": n_iters, "polished": False}
    else:
        ssn, how = SSN.from_pretrained(SSN_OF_IMAGES, device), {"n_iters": 12, "polished": True}
    kept = folder / "cache" / arm.replace(", ", "-").replace(" ", "_")
    parts = []
    for part in clips:
        part = pipeline.precompute_flow(part, raft, kept / "flow", both_ways=True, progress=progress, **how)
        parts.append(pipeline.precompute_superpixels(part, ssn, kept / "superpixels", n_spixels, progress=progress))
    return Clips(*parts)


@torch.no_grad()
def _masks_from_cache(network: UNet) -> Callable[[Clip], np.ndarray]:
    """Clip to masks (T, H, W) from one view of each frame, as the other arms have; the last repeats the one before."""
    device = next(network.parameters()).device

    def masks(clip: Clip) -> np.ndarray:
        with torch.no_grad():
            found = [network(pipeline.clip_input(clip, t, network.config.inputs)[None].to(device))[0, 0] > 0
                     for t in clip.frames_with("flow")]
        return np.stack([mask.byte().cpu().numpy() for mask in (*found, found[-1])])

    return masks


def table(rows: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """A row per arm of what :func:`compare` returned.

    The clips are what a score should hold for beyond these: intervals are Student's over clips, each clip's score the
    mean over the seeds. ``gain`` is the difference from the pre-generated arm on the same clips, whose interval is
    narrower than that of the scores, for all arms find the same clips hard.

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
        "gain": lambda arm: (by_clip.loc[arm] - by_clip.loc[BASE]).mean(),
        "gain +-": lambda arm: half((by_clip.loc[arm] - by_clip.loc[BASE]).to_numpy()),
        "F": lambda arm: rows[rows["arm"] == arm]["f"].mean(),
        "seconds": lambda arm: rows[rows["arm"] == arm]["seconds"].mean(),
    }
    return pd.DataFrame({name: [of(arm) for arm in order] for name, of in columns.items()}, index=order)
