"""A video seen in all ways at once, and the files of it."""

import sys
import zipfile

import pytest
import torch

from diffslic import datasets, pipeline
from diffslic.datasets import io
from diffslic.datasets.video import Video


@pytest.fixture(scope="module")
def clip():
    return datasets.open("scenes", preset="crowd", n_clips=1, n_frames=3, size=(120, 216), seed=31)[0]


def test_everything_of_a_video_in_one_pass(clip, tmp_path):
    told = []
    found = pipeline.survey(clip, tmp_path / "out", rows=60, tell=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert [tuple(frame.shape) for frame in found.frames] == [(3, 60, 108)] * 3 and len(found.flows) == 2
    assert found.flows[0].shape == (2, 60, 108) and found.masks[0].shape == found.superpixels[0].shape == (60, 108)
    assert sorted(path.name for path in found.files) == ["flow.zip", "masks.zip", "overlay.mp4", "superpixels.zip"]
    names = [clip.frame_name(t) for t in range(3)]
    for kind, suffix, count in (("masks", "png", 3), ("superpixels", "png", 3), ("flow", "flo", 2)):
        with zipfile.ZipFile(tmp_path / "out" / f"{kind}.zip") as archive:
            assert archive.namelist() == [f"{kind}/{name}.{suffix}" for name in names[:count]]
            assert archive.testzip() is None
    assert io.read_labels(tmp_path / "out" / "masks" / f"{names[0]}.png").shape == (120, 216)
    assert torch.equal(io.read_flow(tmp_path / "out" / "flow" / f"{names[1]}.flo").flow, found.flows[1])
    assert Video(tmp_path / "out" / "overlay.mp4").count() == 3


def test_its_masks_are_those_of_segment_seen_once(clip, tmp_path):
    found = pipeline.survey(clip, tmp_path / "out")
    job = pipeline.segment(clip)
    views = list(job.views(job.ssn))
    assert all(torch.equal(mask > 0, pipeline.moving(job.unet, view)) for mask, view in zip(found.masks, views))
    objects = pipeline.survey(clip, tmp_path / "objects", objects=True).masks
    inside = torch.stack(objects) > 0
    assert inside.any() and not inside.all()


def test_a_video_too_long_and_a_folder_in_use_are_refused_before_any_work(clip, tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        pipeline.survey(clip, tmp_path)
    monkeypatch.setattr(sys.modules["diffslic.pipeline.survey"], "LONGEST", 2)
    with pytest.raises(ValueError, match="has 3 frames, more than the 2 that are kept in memory"):
        pipeline.survey(clip, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError):
        pipeline.survey(tmp_path / "nothing", tmp_path / "out")
