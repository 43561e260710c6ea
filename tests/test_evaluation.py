"""Scores of masks on disk by each protocol and what is missing or broken; scores of superpixels over counts."""

from functools import partial

import pandas as pd
import pytest
import torch

from diffslic import datasets, metrics
from diffslic.datasets import io
from diffslic.evaluation import (
    SuperpixelScores,
    classical_slic,
    evaluate_davis,
    evaluate_superpixels,
    segments_of,
    superpixels_of,
)
from diffslic.superpixels import SSN, SSNConfig


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


# ---------------------------------------------------------------- superpixels


def test_superpixels_are_scored_over_counts_frames_and_methods(tmp_path):
    clips = datasets.open("scenes", preset="lab", n_clips=2, n_frames=5, size=(48, 64))
    methods = {"pix": partial(superpixels_of, SSN(SSNConfig("pix")).eval()), "SLIC": classical_slic}
    scores = evaluate_superpixels(methods, clips, (12, 40), every=3, progress=False)
    assert len(scores.rows) == 2 * 2 * 2 * 2  # clips, frames 0 and 3, methods, counts
    assert set(scores.rows["frame"]) == {"00000", "00003"}
    row = scores.rows[(scores.rows["clip"] == clips[1].name) & (scores.rows["frame"] == "00003")].iloc[0]
    labels = SSN(SSNConfig("pix")).eval().segment(clips[1].frame(3)[None], 12)[0]
    expected = metrics.superpixels(labels, [clips[1].segments(3)], clips[1].frame(3))
    assert {key: row[key] for key in expected} == pytest.approx(expected)
    curve = scores.curve
    assert list(curve.index) == [("pix", 12), ("pix", 40), ("SLIC", 12), ("SLIC", 40)]
    first = scores.rows[(scores.rows["method"] == "pix") & (scores.rows["requested"] == 12)]
    assert curve.loc[("pix", 12), "asa"] == pytest.approx(first["asa"].mean())
    assert curve.loc[("pix", 40), "asa"] > curve.loc[("pix", 12), "asa"]
    scores.save(tmp_path / "out")
    assert len((tmp_path / "out/scores.csv").read_text().splitlines()) == 17
    assert len((tmp_path / "out/curve.csv").read_text().splitlines()) == 5
    assert io.image_size(tmp_path / "out/curve.png")[1] > 500


def test_the_lead_is_read_at_equal_achieved_counts():
    rows = [("a", 10, 100, 0.90), ("a", 20, 200, 0.95), ("a", 40, 800, 0.99),
            ("b", 10, 50, 0.80), ("b", 20, 200, 0.90), ("b", 40, 400, 0.96)]
    scores = SuperpixelScores(pd.DataFrame([{"method": method, "clip": "x", "frame": "0", "requested": requested,
                                             "count": count, "asa": asa} for method, requested, count, asa in rows]))
    # b at 100, half way from 50 to 200 by the logarithm: 0.85. It does not reach 800.
    assert scores.lead("a", "b").to_dict() == pytest.approx({10: 0.05, 20: 0.05})


def test_a_composite_sees_the_clips_flow():
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=3, size=(48, 64))[0]
    torch.manual_seed(0)
    net = SSN(SSNConfig(width=4, out_channels=2)).composite(4, extra_width=4).eval()
    labels = superpixels_of(net, clip, 1, 20)
    still = clip.with_readers(flow=lambda t: torch.zeros(2, *clip.size))
    assert not torch.equal(labels, superpixels_of(net, still, 1, 20))


def test_all_annotators_count_and_labels_stand_in():
    maps = torch.stack([torch.zeros(4, 6, dtype=torch.int64), torch.arange(24).reshape(4, 6) // 12])
    clip = datasets.Clip("a", (4, 6), {"frame": lambda t: torch.rand(3, 4, 6), "annotations": lambda t: maps}, 1)
    scores = evaluate_superpixels({"one": lambda clip, t, n: torch.zeros(4, 6, dtype=torch.int64)}, [clip], [1],
                                  progress=False)
    assert scores.rows["asa"].item() == pytest.approx((1 + 0.5) / 2)
    labelled = datasets.Clip("a", (4, 6), {"labels": lambda t: maps[1]}, 1)
    assert torch.equal(segments_of(labelled, 0), maps[1:])


def test_no_superpixels_to_score():
    with pytest.raises(ValueError, match="scores need a method, a clip, a count and every from 1, got 0, 0, 1 and 1"):
        evaluate_superpixels({}, [], [5])
