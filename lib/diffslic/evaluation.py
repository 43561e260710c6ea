"""Scores of masks on disk: what somebody's method wrote, against a dataset's truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from diffslic import metrics
from diffslic.datasets import io
from diffslic.datasets.folder import image_files
from diffslic.files import written_whole


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
