"""Scores of masks on disk: each protocol, and what is missing or broken."""

import pytest
import torch

from diffslic.datasets import io
from diffslic.evaluation import evaluate_davis


def write_masks(folder, masks):
    for t, mask in enumerate(masks):
        io.write_labels(folder / f"{t:05d}.png", mask)


@pytest.fixture
def two_objects():
    masks = torch.zeros(5, 30, 40, dtype=torch.int64)
    for t in range(5):
        masks[t, 5:15, 4 + t:14 + t] = 1
        masks[t, 18:26, 20 - t:30 - t] = 2
    return masks


def test_evaluate_by_each_protocol(two_objects, tmp_path):
    write_masks(tmp_path / "truth" / "walk", two_objects)
    write_masks(tmp_path / "truth" / "unseen", two_objects)
    swapped = torch.tensor([0, 2, 1])[two_objects]
    write_masks(tmp_path / "pred" / "walk", swapped)
    for protocol, score in (("davis2016", 1.0), ("unsupervised", 1.0), ("semi-supervised", 0.0)):
        result = evaluate_davis(tmp_path / "pred", tmp_path / "truth", protocol, progress=False)
        assert result.summary["J-Mean"] == score
        assert result.missing == ["unseen"]
    assert list(result.rows.columns) == ["sequence", "frame", "object", "J", "F"]
    assert len(result.rows) == 2 * 3  # objects by evaluated frames
    result.save(tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text().startswith("sequence,frame,object,J,F\nwalk,00001,1,0.0")


def test_evaluate_bad_input(two_objects, tmp_path):
    truth, pred = tmp_path / "truth", tmp_path / "pred"
    with pytest.raises(FileNotFoundError, match="pred: expected masks in a folder per sequence"):
        evaluate_davis(pred, truth, progress=False)
    write_masks(pred / "walk", two_objects[:4])
    write_masks(truth / "other", two_objects)
    with pytest.raises(FileNotFoundError, match="truth/walk: no such folder"):
        evaluate_davis(pred, truth, progress=False)
    write_masks(truth / "walk", two_objects)
    with pytest.raises(FileNotFoundError, match=r"pred/walk/00004.png: missing, .*truth/walk has 5 masks"):
        evaluate_davis(pred, truth, progress=False)
    io.write_labels(pred / "walk" / "00004.png", two_objects[4, :, :30])
    with pytest.raises(ValueError, match=r"walk/00004.png: expected 30x40 .* got 30x30"):
        evaluate_davis(pred, truth, progress=False)
    whole = (truth / "walk" / "00004.png").read_bytes()
    (pred / "walk" / "00004.png").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r"walk/00004.png"):
        evaluate_davis(pred, truth, progress=False)
