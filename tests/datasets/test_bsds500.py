"""BSDS500: photographs with the segments of several annotators, splits, damaged files."""

import numpy as np
import pytest
import scipy.io
import torch

from diffslic import datasets
from diffslic.datasets import bsds500
from diffslic.datasets.io import write_image

SIZE = (6, 9)


def _write_annotations(path, maps) -> None:
    cell = np.empty((1, len(maps)), dtype=object)
    for i, segments in enumerate(maps):
        cell[0, i] = {"Segmentation": segments.astype(np.uint16), "Boundaries": np.zeros_like(segments, np.uint8)}
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"groundTruth": cell}, do_compression=True)


@pytest.fixture
def halves():
    """Two annotators: one saw two halves, the other three thirds, numbered with a gap."""
    x = np.arange(SIZE[1])
    return [np.broadcast_to(1 + (x > 4), SIZE), np.broadcast_to(np.array([1, 2, 7])[x // 3], SIZE)]


@pytest.fixture
def root(tmp_path, halves):
    for split, count in (("train", 20), ("val", 2)):
        for i in range(count):
            write_image(tmp_path / f"data/images/{split}/{i}.png", torch.full((3, *SIZE), i / 20))
            _write_annotations(tmp_path / f"data/groundTruth/{split}/{i}.mat", halves)
    return tmp_path


def test_every_annotator_is_read_and_numbered_without_gaps(root):
    clip = datasets.open("bsds500", root=root, split="val")[1]
    assert (clip.name, len(clip), clip.size) == ("1", 1, SIZE)
    assert clip.frame(0).mean().item() == pytest.approx(1 / 20, abs=2e-3)
    maps = clip.annotations(0)
    assert maps.shape == (2, *SIZE) and maps.dtype == torch.int64
    assert maps[0, 0].tolist() == [0] * 5 + [1] * 4
    assert maps[1, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(clip.segments(0), maps[0])


def test_development_splits_part_train(root):
    names = {split: {clip.name for clip in bsds500.photographs(root, split)}
             for split in ("train", "dev_train", "dev_val", "all")}
    assert len(names["train"]) == 20 and len(names["dev_val"]) == 2
    assert names["dev_train"] == names["train"] - names["dev_val"]
    assert len(bsds500.photographs(root, "all")) == 22
    with pytest.raises(ValueError, match="unknown split 'trian'"):
        bsds500.photographs(root, "trian")


def test_what_is_missing_is_named(root, tmp_path):
    assert datasets.check("bsds500", root) == []
    (root / "data/groundTruth/val/1.mat").unlink()
    with pytest.raises(FileNotFoundError, match=r"val: 1 annotations for 2 photographs, the first missing is 1\.mat"):
        bsds500.photographs(root, "val")
    assert datasets.check("bsds500", root)[0].endswith("the first missing is 1.mat")
    with pytest.raises(FileNotFoundError, match="test: no such folder"):
        bsds500.photographs(root, "test")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        bsds500.photographs(root / "nowhere", "all")
    assert "expected the folders train, val, test" in datasets.check("bsds500", root / "nowhere")[0]


@pytest.mark.parametrize("length", [0, 60, 128, 200])
def test_a_damaged_annotation_is_named(root, length):
    path = root / "data/groundTruth/val/0.mat"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"0\.mat: expected a whole \.mat"):
        bsds500.photographs(root, "val")[0].annotations(0)
    assert "0.mat: expected a whole .mat" in datasets.check("bsds500", root)[0]


def test_an_annotation_must_have_the_photographs_size_and_hold_something(root):
    path = root / "data/groundTruth/val/0.mat"
    clip = bsds500.photographs(root, "val")[0]
    _write_annotations(path, [np.ones((9, 6))])
    with pytest.raises(ValueError, match=r"0\.mat: expected segments of 6x9 \(rows x columns\) .*, got 9x6"):
        clip.segments(0)
    _write_annotations(path, [])
    with pytest.raises(ValueError, match=r"0\.mat: expected"):
        clip.segments(0)
    scipy.io.savemat(path, {"something": np.ones(3)})
    with pytest.raises(ValueError, match=r"0\.mat: expected a whole \.mat"):
        clip.segments(0)


def test_the_real_photographs(reference):
    root = reference / "data/BSDS500"
    assert [len(bsds500.photographs(root, split)) for split in ("dev_train", "dev_val", "val")] == [180, 20, 100]
    clip = bsds500.photographs(root, "val")[0]
    maps = clip.annotations(0)
    assert maps.shape[1:] == clip.size and 4 <= len(maps) <= 9 and maps.amin((1, 2)).max() == 0
