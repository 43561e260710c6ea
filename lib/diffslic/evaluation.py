"""Scores of a whole dataset: masks on disk, motion segmentation, and superpixels, against the truth."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffslic import geometry, metrics, pipeline, report, superpixels, viz
from diffslic.datasets import io
from diffslic.datasets.clip import VOID, Clip, labels_or_none
from diffslic.datasets.composite_flow import flow_both_ways
from diffslic.datasets.folder import image_files
from diffslic.datasets.split import sequence_of
from diffslic.files import written_whole
from diffslic.segmentation import MotionNet
from diffslic.segmentation.selection import ORACLES, SELECTIONS, renumbered
from diffslic.superpixels import SSN, SpixelFCN
from diffslic.training import device_of

# ---------------------------------------------------------------- masks on disk


class Evaluation(NamedTuple):
    """Scores of a folder of masks."""

    rows: pd.DataFrame  # sequence, frame, object, J, F: one row per evaluated frame and object
    summary: dict[str, float]  # the official names, over all objects of all sequences
    missing: list[str]  # sequences of the truth that have no predicted masks

    def save(self, path: str | Path) -> None:
        """Write the rows as csv."""
        with written_whole(path) as temporary:
            self.rows.to_csv(temporary, index=False)


def evaluate_davis(pred: str | Path, truth: str | Path, protocol: str = "davis2016",
                   progress: bool = True) -> Evaluation:
    """Score folders of masks, ``PRED/<sequence>/00000.png`` against ``TRUTH/<sequence>/00000.png``.

    What :meth:`Segmentation.save` wrote to ``PRED/<sequence>`` is found too, in ``masks`` there.

    Args:
        truth: DAVIS' own folder of one resolution, such as ``Annotations/480p``.
        protocol: see :func:`diffslic.metrics.davis`.

    Raises:
        FileNotFoundError: no such folder, a sequence without truth, fewer masks than frames. ValueError: a broken
            file, or a mask of another size than the first; names the file.
    """
    pred, truth = Path(pred), Path(truth)
    names = {folder: _sequences(folder) for folder in (pred, truth)}
    unknown = [name for name in names[pred] if name not in names[truth]]
    if unknown:
        raise FileNotFoundError(f"{truth / unknown[0]}: no such folder, but {pred / unknown[0]} holds masks")
    scores, rows = [], []
    for name in tqdm(names[pred], desc="evaluating", unit="sequence", disable=not progress):
        files = image_files(truth / name)
        if not files:
            raise FileNotFoundError(f"{truth / name}: no masks, expected 00000.png and so on")
        size = io.image_size(files[0])
        masks = [_read_masks(folder / name, files, size, protocol) for folder in (pred, truth)]
        try:
            score = metrics.davis(*masks, protocol)
        except ValueError as error:
            raise ValueError(f"{pred / name}: {error}") from error
        scores.append(score)
        rows += [{"sequence": name, "frame": files[t].stem, "object": int(n), "J": score.j[i, k], "F": score.f[i, k]}
                 for i, n in enumerate(score.objects) for k, t in enumerate(score.frames)]
    missing = [name for name in names[truth] if name not in names[pred]]
    return Evaluation(pd.DataFrame(rows), metrics.davis_summary(scores), missing)


def _sequences(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    if not names:
        raise FileNotFoundError(f"{folder}: expected masks in a folder per sequence, <sequence>/00000.png")
    return names


def _read_masks(folder: Path, like: Sequence[Path], size: tuple[int, int], protocol: str) -> np.ndarray:
    """(T, H, W) uint8 of the masks in ``folder`` that are named like the files of the truth."""
    masks = np.zeros((len(like), *size), dtype=np.uint8)
    folder = folder / "masks" if (folder / "masks").is_dir() else folder
    for t, file in enumerate(like):
        path = folder / f"{file.stem}.png"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing, {like[0].parent} has {len(like)} masks")
        labels = io.check_size(path, io.read_labels(path), size, f"{folder.name}'s truth")
        if labels.max() > 255:
            raise ValueError(f"{path}: ids must lie in 0..255, got {int(labels.max())}")
        masks[t] = (labels > 0 if protocol == "davis2016" else labels).numpy()
    return masks


# ---------------------------------------------------------------- motion segmentation

KEEP = ("masks", "pictures", "probabilities")


class MotionScores(NamedTuple):
    """Scores of a MotionNet, frame by frame."""

    rows: pd.DataFrame  # sequence, frame, J, F, box, bIoU, and J by the oracles; empty where a frame has no truth
    summary: dict[str, float]  # means over the frames of a sequence, then over sequences


def evaluate_motion(model: MotionNet, clips: Sequence[Clip], folder: str | Path, split: str = "val",
                    selection: str | None = None, window: int | None = None, low_memory: bool = True,
                    keep: Collection[str] = (), progress: bool = True) -> MotionScores:
    """Segment clips by their flow and score every frame that has flow and a mask, at the size of the masks.

    ``folder`` gets ``results_<split>.csv`` (a row per frame), ``results_<split>.json`` (the summary, and how it came
    about) and what ``keep`` names, below a folder per sequence.

    Args:
        clips: with flow, and labels in at least one frame of one clip.
        selection: which layers move, one of ``SELECTIONS``; None: the network's own.
        window, low_memory: see :meth:`MotionNet.segment`.
        keep: any of "masks" (png of labels), "pictures" (the layers over frame or flow) and "probabilities" (npy of
            (L, T, h, w) at the network's size).

    Raises:
        ValueError: no clip, no truth, an unknown selection or thing to keep.
    """
    selection = selection or model.config.selection
    report.check_choice("selection", selection, list(SELECTIONS))
    for name in keep:
        report.check_choice("keep", name, list(KEEP))
    if not clips:
        raise ValueError("an evaluation needs a clip, got none")
    if all(labels_or_none(clip, t) is None for clip in clips for t in clip.frames_with("flow")):
        raise ValueError(f"no frame of {clips[0].name} ... has a mask to score against")
    folder, rows = Path(folder), []
    for clip in tqdm(clips, desc="motion", unit="clip", disable=not progress):
        rows += _motion_rows(model, clip, folder, selection, window, low_memory, keep)
    table = pd.DataFrame(rows)
    by_sequence = table.drop(columns="frame").groupby("sequence")
    summary = by_sequence.mean().drop(columns="objects").mean().to_dict()
    of_objects = (table["bIoU"] * table["objects"]).groupby(table["sequence"]).sum() / by_sequence["objects"].sum()
    summary["bIoU"] = of_objects.mean()  # every object of a sequence counts alike, in whichever frame it is
    with written_whole(folder / f"results_{split}.csv") as temporary:
        table.to_csv(temporary, index=False)
    how = {"selection": selection, "window": window or model.config.window, "config": asdict(model.config)}
    with written_whole(folder / f"results_{split}.json") as temporary:
        temporary.write_text(report.to_json({**summary, "frames": len(table), "how": how}), encoding="utf-8")
    return MotionScores(table, summary)


def _motion_rows(model: MotionNet, clip: Clip, folder: Path, selection: str, window: int | None, low_memory: bool,
                 keep: Collection[str]) -> list[dict[str, Any]]:
    frames, device = list(clip.frames_with("flow")), device_of(model)
    fields = {name: field.to(device)
              for name, field in pipeline.motion_fields(clip, frames, model.config.fields).items()}
    masks = torch.stack(list(model.masks(**fields, window=window, low_memory=low_memory)), dim=1).cpu()  # (L, T, h, w)
    layers = torch.stack([geometry.resize(frame[None], clip.size)[0].argmax(0) for frame in masks.unbind(1)])
    pieces = [[i] for i in range(len(frames))] if model.config.window == 1 else [list(range(len(frames)))]
    moving = model.moving(layers, fields["flow"].cpu(), selection)
    _keep(clip, frames, masks, layers, moving, folder / clip.name, keep)
    truths = {i: truth for i, t in enumerate(frames) if (truth := labels_or_none(clip, t)) is not None}
    rows: list[dict[str, Any]] = [{"sequence": sequence_of(clip.name), "frame": clip.frame_name(t)} for t in frames]
    if not truths:
        return rows
    known = list(truths)
    counts = {i: truth != VOID for i, truth in truths.items()}
    bodies = {i: (truth > 0) & counts[i] for i, truth in truths.items()}
    score = _every_frame([moving[i] & counts[i] for i in known], list(bodies.values()))
    for n, i in enumerate(known):
        objects = metrics.best_iou(layers[i], truths[i]).values()
        rows[i] |= {"J": score.j[0, n], "F": score.f[0, n],
                    "box": metrics.box_iou((moving[i] & counts[i]).byte(), bodies[i].byte()),
                    "bIoU": float(np.mean(list(objects))), "objects": len(objects)}
    for piece in pieces:
        seen = [i for i in piece if i in truths]
        if seen:
            truth = [bodies[i] for i in seen]
            counted = torch.stack([counts[i] for i in seen])
            chosen = torch.zeros_like(counted)
            for name, oracle in ORACLES.items():
                chosen[counted] = oracle(layers[seen][counted], torch.stack(truth)[counted])
                best = _every_frame(list(chosen), truth).j[0]
                for i, value in zip(seen, best):
                    rows[i][f"J oracle {name}"] = value
    return rows


def _every_frame(masks: Sequence[Tensor], truth: Sequence[Tensor]) -> metrics.DavisScore:
    """J and F of masks (H, W) in every frame: the two that the protocol drops are put on for it to drop."""
    return metrics.davis(*(torch.stack([maps[0], *maps, maps[-1]]).byte() for maps in (masks, truth)))


def _keep(clip: Clip, frames: Sequence[int], masks: Tensor, layers: Tensor, moving: Tensor, folder: Path,
          keep: Collection[str]) -> None:
    if "probabilities" in keep:
        io.write_npy(folder / "probabilities.npy", masks.numpy())
    labels = renumbered(layers, moving)
    for i, t in enumerate(frames):
        name = clip.frame_name(t)
        if "masks" in keep:
            io.write_labels(folder / "masks" / f"{name}.png", labels[i])
        if "pictures" in keep:
            try:
                below = clip.frame(t)
            except LookupError:  # tables leave some frames without a picture
                below = viz.flow_to_color(clip.flow(t))
            picture = viz.overlay(below, layers[i] * moving[i] + moving[i])
            io.write_image(folder / "pictures" / f"{name}.png", torch.from_numpy(picture).permute(2, 0, 1) / 255)


# ---------------------------------------------------------------- superpixels

Method = Callable[[Clip, int, int], Tensor]  # clip, frame and requested count to labels (H, W)


def superpixels_of(model: SSN | SpixelFCN, clip: Clip, t: int, n_spixels: int) -> Tensor:
    """Connected superpixels (H, W) of a frame; a composite also gets the clip's flow there and back."""
    device = device_of(model)
    extra = {"extra": flow_both_ways(clip, t)[None].to(device)} if model.extra_channels else {}
    return model.segment(clip.frame(t)[None].to(device), n_spixels, **extra)[0].cpu()


def classical_slic(clip: Clip, t: int, n_spixels: int) -> Tensor:
    """Superpixels (H, W) of a frame by classical SLIC, see :func:`diffslic.superpixels.classical_slic`."""
    return superpixels.classical_slic(clip.frame(t), n_spixels)


def segments_of(clip: Clip, t: int) -> Tensor:
    """(A, H, W) what counts as segments of a frame: every annotator's, or the one truth that the clip has."""
    if clip.has("annotations"):
        return clip.annotations(t)
    return (clip.segments(t) if clip.has("segments") else clip.labels(t))[None]


class SuperpixelScores(NamedTuple):
    """Scores of superpixels by method, frame and requested count."""

    rows: pd.DataFrame  # method, clip, frame, requested, and the figures of ``metrics.superpixels``

    @property
    def curve(self) -> pd.DataFrame:
        """Means over the frames: a row per method and requested count."""
        return self.rows.drop(columns=["clip", "frame"]).groupby(["method", "requested"], sort=False).mean()

    def lead(self, method: str, over: str, score: str = "asa") -> pd.Series:
        """By how much a method's score lies above another's curve, at those of its counts that the other reaches.

        Between its points the other curve is taken to be straight over the logarithm of the achieved count.
        """
        ours, theirs = (self.curve.loc[name].sort_values("count") for name in (method, over))
        ours = ours[ours["count"].between(theirs["count"].min(), theirs["count"].max())]
        return ours[score] - np.interp(np.log(ours["count"]), np.log(theirs["count"]), theirs[score])

    def figure(self, scores: Sequence[str] = ("asa", "br")) -> viz.Figure:
        """Each score over the achieved count, a line per method."""
        methods = dict(list(self.curve.groupby(level="method", sort=False)))
        return viz.curves({score: {name: (rows["count"], rows[score]) for name, rows in methods.items()}
                           for score in scores}, "achieved superpixels")

    def save(self, folder: str | Path) -> None:
        """Write ``scores.csv`` (a row per frame), ``curve.csv`` (means) and ``curve.png``."""
        folder = Path(folder)
        with written_whole(folder / "scores.csv") as temporary:
            self.rows.to_csv(temporary, index=False)
        with written_whole(folder / "curve.csv") as temporary:
            self.curve.to_csv(temporary)
        with written_whole(folder / "curve.png") as temporary:
            self.figure().savefig(temporary, format="png", dpi=120)


def evaluate_superpixels(methods: Mapping[str, Method], clips: Sequence[Clip], counts: Sequence[int], every: int = 1,
                         first: int = 0, ignore: int | None = None, progress: bool = True) -> SuperpixelScores:
    """Score superpixels against all annotators of a dataset, over counts.

    Args:
        methods: by name, such as ``partial(superpixels_of, net)`` and :func:`classical_slic`.
        clips: with frames and segments, see :func:`segments_of`.
        counts: requested superpixels.
        every: of a video only each ``every``-th frame. first: the frame with which it begins.
        ignore: a segment that counts for nothing, see ``metrics.superpixels``.

    Raises:
        ValueError: no method, clip or count, ``every`` below 1, or ``first`` a frame that no clip has.
    """
    if not (methods and clips and counts) or every < 1:
        raise ValueError(f"scores need a method, a clip, a count and every from 1, got {len(methods)}, {len(clips)}, "
                         f"{len(counts)} and {every}")
    if not 0 <= first < max(map(len, clips)):
        raise ValueError(f"first must be a frame, 0 to {max(map(len, clips)) - 1}, got {first}")
    rows = []
    for clip in tqdm(clips, desc="superpixels", unit="clip", disable=not progress):
        for t in range(first, len(clip), every):
            image, truths = clip.frame(t), list(segments_of(clip, t))
            for (name, method), count in product(methods.items(), counts):
                figures = metrics.superpixels(method(clip, t, count), truths, image, ignore)
                rows.append({"method": name, "clip": clip.name, "frame": clip.frame_name(t), "requested": count,
                             **figures})
    return SuperpixelScores(pd.DataFrame(rows))
