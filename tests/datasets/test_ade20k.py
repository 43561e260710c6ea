"""ADE20K: the official layout and a flat one, classes that nobody named, damaged files."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import datasets
from diffslic.datasets import ade20k
from diffslic.datasets.io import write_image

SIZE = (8, 12)


def write(root, folder, name, classes):
    write_image(root / "images" / folder / f"{name}.png", torch.rand(3, *SIZE))
    path = root / "annotations" / folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(classes.astype(np.uint8)).save(path)


@pytest.fixture
def classes():
    return np.broadcast_to(np.array([0, 1, 150])[np.arange(SIZE[1]) // 4], SIZE)


@pytest.fixture
def root(tmp_path, classes):
    for folder, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            write(tmp_path, folder, f"ADE_{folder[:5]}_{i:08d}", classes)
    return tmp_path


def test_splits_classes_and_what_nobody_named(root):
    assert [len(datasets.open("ade20k", root=root, split=split)) for split in ade20k.SPLITS] == [5, 3, 2]
    clip = datasets.open("ade20k", root=root, split="validation")[0]
    assert (clip.name, clip.size, len(clip)) == ("ADE_valid_00000000", SIZE, 1)
    assert clip.classes(0)[0].tolist() == [255] * 4 + [1] * 4 + [150] * 4
    assert not clip.has("labels")


def test_images_alone_may_lie_flat(tmp_path, classes):
    write(tmp_path, "", "a", classes)
    assert [clip.name for clip in datasets.open("ade20k", root=tmp_path)] == ["a"]
    assert datasets.check("ade20k", tmp_path) == []


def test_classes_are_resized_by_nearest(root):
    clip = datasets.open("ade20k", root=root, resolution=16)[0]
    assert clip.size == (16, 24) and clip.frame(0).shape == (3, 16, 24)
    assert clip.classes(0).unique().tolist() == [1, 150, 255]


def test_what_is_missing_or_damaged_is_named(root, tmp_path, classes):
    with pytest.raises(ValueError, match="unknown split 'val'"):
        datasets.open("ade20k", root=root, split="val")
    (root / "annotations/training/ADE_train_00000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="2 annotations for 3 .* missing is ADE_train_00000001"):
        datasets.open("ade20k", root=root, split="training")
    write(root, "validation", "ADE_valid_00000001", classes[:, :-1])
    clip = datasets.open("ade20k", root=root, split="validation")[1]
    with pytest.raises(ValueError, match="expected 8x12 .* as its photograph has, got 8x11"):
        clip.classes(0)
    write(root, "validation", "ADE_valid_00000000", np.full(SIZE, 151))
    with pytest.raises(ValueError, match="classes up to 150, got 151"):
        datasets.open("ade20k", root=root, split="validation")[0].classes(0)
    problems = datasets.check("ade20k", root)
    assert len(problems) == 3 and "first missing" in problems[0]
    with pytest.raises(FileNotFoundError, match="no such folder; ADE20K has images/<split>"):
        datasets.open("ade20k", root=root / "elsewhere")


def test_names_of_classes(tmp_path):
    table = tmp_path / "objectInfo150.txt"
    table.write_text("Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n2\t0.1\t60\t61\tbuilding, edifice\n")
    assert ade20k.class_names(tmp_path) == {1: "wall", 2: "building"}
    table.write_text("Idx\n1 wall\n")
    with pytest.raises(ValueError, match="five columns"):
        ade20k.class_names(tmp_path)
    with pytest.raises(FileNotFoundError, match="objectInfo150"):
        ade20k.class_names(tmp_path / "other")


@pytest.mark.skipif("DIFFSLIC_REFERENCE" not in os.environ, reason="DIFFSLIC_REFERENCE is not set")
def test_the_real_photographs_are_read():
    root = Path(os.environ["DIFFSLIC_REFERENCE"]) / "data/ade20k"
    clips, names = datasets.open("ade20k", root=root), ade20k.class_names(root)
    assert len(clips) == 3 and len(names) == 150 and datasets.check("ade20k", root) == []
    assert "sky" in {names[number] for number in clips[0].classes(0).unique().tolist() if number != 255}
