"""The door of the data room: names, options, and check."""

import pytest
import torch

from diffslic import datasets
from diffslic.datasets.io import write_image


def test_open_gives_the_dataset_by_name(tmp_path):
    for t in range(3):
        write_image(tmp_path / f"{t}.png", torch.rand(3, 8, 8))
    (clip,) = datasets.open("folder", root=tmp_path, resolution=4)
    assert isinstance(clip, datasets.Clip) and clip.size == (4, 4)


def test_scenes_are_opened_without_a_root():
    clips = datasets.open("scenes", n_clips=1, n_frames=2, size=(24, 32))
    assert len(clips) == 1 and clips[0].frame(0).shape == (3, 24, 32)


def test_unknown_dataset_option_and_missing_root(tmp_path):
    known = "scenes, davis2016, davis2017, tartanair, airsim, bsds500, ade20k, flyingchairs, sintel, kitti, folder"
    with pytest.raises(ValueError, match=f"unknown dataset 'davis', known are {known}"):
        datasets.open("davis", root=tmp_path)
    with pytest.raises(ValueError, match="dataset 'folder' has no option 'size', it has root, resolution"):
        datasets.open("folder", root=tmp_path, size=3)
    with pytest.raises(ValueError, match="dataset 'scenes' has no option 'frames', it has preset, n_clips"):
        datasets.open("scenes", frames=3)
    for name in ("davis2016", "davis2017", "tartanair", "folder"):
        with pytest.raises(ValueError, match=rf"dataset '{name}' needs root=..., its place on disk"):
            datasets.open(name)


def test_check_knows_which_datasets_have_files(tmp_path):
    with pytest.raises(ValueError, match="unknown dataset 'nothing'"):
        datasets.check("nothing", tmp_path)
    with pytest.raises(ValueError, match="made by the program"):
        datasets.check("scenes", tmp_path)
    assert "no images here" in datasets.check("folder", tmp_path)[0]


def test_every_dataset_of_files_can_be_checked():
    assert set(datasets.CHECKS) == set(datasets.DATASETS) - {"scenes"}
