"""Scenes written in other datasets' layouts come back through those datasets' loaders."""

import pytest
import torch

from diffslic import datasets
from diffslic.datasets import layouts


@pytest.fixture(scope="module")
def clips():
    return datasets.open("scenes", preset="lab", n_clips=4, n_frames=3, size=(48, 64))


def test_davis_both_years(clips, tmp_path):
    layouts.write(clips, tmp_path, "davis")
    assert datasets.check("davis2016", tmp_path) == datasets.check("davis2017", tmp_path) == []
    train = datasets.open("davis2017", root=tmp_path, split="train", resolution="48p")
    val = datasets.open("davis2017", root=tmp_path, split="val", resolution="48p")
    assert [clip.name for clip in train + val] == [clip.name for clip in clips]
    assert torch.equal(train[0].labels(1), clips[0].labels(1))
    binary = datasets.open("davis2016", root=tmp_path, split="train", resolution="48p")[0]
    assert torch.equal(binary.labels(1), (clips[0].labels(1) > 0).long())
    assert (train[0].frame(1) - clips[0].frame(1)).abs().mean() < 0.05  # a jpg
    with pytest.raises(ValueError, match="holds other clips, such as lab-00002"):
        layouts.write(clips[:2], tmp_path, "davis")
    layouts.write(clips, tmp_path, "davis")  # the same ones again
    assert len(datasets.open("davis2017", root=tmp_path, split="train", resolution="48p")) == len(train)


def test_tartanair(clips, tmp_path):
    layouts.write(clips[:2], tmp_path, "tartanair")
    assert datasets.check("tartanair", tmp_path) == []
    for read, drawn in zip(datasets.open("tartanair", root=tmp_path), clips):
        assert torch.equal(read.depth(2), drawn.depth(2))
        assert torch.equal(read.flow(1), drawn.flow(1))
        assert torch.equal(read.occlusion(1), drawn.occlusion(1))
        assert (read.camera_to_world(2) - drawn.camera_to_world(2)).abs().max() < 1e-6
        assert (read.intrinsics - drawn.intrinsics).abs().max() < 1e-5


def test_unknown_layout(clips, tmp_path):
    with pytest.raises(ValueError, match="unknown layout 'kitti', known are davis, tartanair"):
        layouts.write(clips, tmp_path, "kitti")
    assert list(tmp_path.iterdir()) == []
