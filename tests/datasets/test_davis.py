"""DAVIS: both layouts, lists and plain folders, splits, and every trap of the real files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import datasets
from diffslic.datasets import davis
from diffslic.datasets.io import write_image, write_labels

SIZE = (6, 10)


def _tree(root: Path, names=("bear", "rhino", "bus"), n_frames: int = 3, resolution: str = "480p",
          levels: tuple[int, ...] = (0, 255)) -> Path:
    for name in names:
        for t in range(n_frames):
            write_image(root / "JPEGImages" / resolution / name / f"{t:05d}.jpg", torch.rand(3, *SIZE))
            mask = np.resize(np.array(levels, np.uint8), SIZE)
            path = root / "Annotations" / resolution / name / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root


def _list(root: Path, where: str, lines: list[str]) -> None:
    path = root / "ImageSets" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def _pairs(names, resolution: str = "480p") -> list[str]:
    return [f"/JPEGImages/{resolution}/{name}/{t:05d}.jpg /Annotations/{resolution}/{name}/{t:05d}.png "
            for name in names for t in range(3)]


def test_2016_reads_masks_of_0_and_255_as_0_and_1(tmp_path):
    clip = davis.davis2016(_tree(tmp_path))[0]
    assert (clip.name, len(clip), clip.size, clip.frame_name(2)) == ("bear", 3, SIZE, "00002")
    assert clip.frame(2).shape == (3, *SIZE)
    assert clip.labels(2).unique().tolist() == [0, 1] and clip.labels(2)[0, :3].tolist() == [0, 1, 0]
    assert not clip.has("flow")


def test_2017_keeps_ids_and_void(tmp_path):
    labels = torch.tensor([0, 1, 2, 255]).repeat(15).reshape(SIZE)
    for t in range(2):
        write_image(tmp_path / f"JPEGImages/Full-Resolution/tennis/{t:05d}.jpg", torch.rand(3, *SIZE))
        write_labels(tmp_path / f"Annotations/Full-Resolution/tennis/{t:05d}.png", labels)
    (clip,) = davis.davis2017(tmp_path, resolution="Full-Resolution")
    assert torch.equal(clip.labels(1), labels)


def test_an_empty_mask_is_a_frame_without_object(tmp_path):
    clip = davis.davis2016(_tree(tmp_path, ["surf"], levels=(0,)))[0]
    assert clip.labels(0).sum() == 0


def test_splits_of_the_2016_lists(tmp_path):
    _tree(tmp_path)
    _list(tmp_path, "480p/train.txt", _pairs(["rhino", "bear"]) + [""])
    _list(tmp_path, "480p/val.txt", _pairs(["bus"]))
    assert {split: [clip.name for clip in davis.davis2016(tmp_path, split)] for split in davis.SPLITS} == {
        "all": ["bear", "bus", "rhino"], "train": ["rhino", "bear"], "val": ["bus"],
        "dev_train": ["bear"], "dev_val": ["rhino"]}
    assert [clip.name for clip in davis.davis2016(tmp_path, "all", sequences=["rhino"])] == ["rhino"]


def test_lists_of_another_resolution_and_of_the_2017_package_serve_too(tmp_path):
    _tree(tmp_path, resolution="240p")
    _list(tmp_path, "2016/train.txt", ["bus"])
    assert [clip.name for clip in davis.davis2016(tmp_path, "train", "240p")] == ["bus"]
    _list(tmp_path, "480p/train.txt", _pairs(["bear"]))
    assert [clip.name for clip in davis.davis2016(tmp_path, "train", "240p")] == ["bear"]
    _list(tmp_path, "2017/train.txt", ["rhino", "bus"])
    assert [clip.name for clip in davis.davis2017(tmp_path, "train", "240p")] == ["rhino", "bus"]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="JPEGImages/480p: no such folder; DAVIS has JPEGImages/<resolution>"):
        davis.davis2016(tmp_path)
    _tree(tmp_path, ["bear"])
    with pytest.raises(FileNotFoundError, match="JPEGImages/1080p: no such folder"):
        davis.davis2016(tmp_path, resolution="1080p")
    with pytest.raises(FileNotFoundError, match="480p/val.txt: no such list of the split 'val'; split='all'"):
        davis.davis2016(tmp_path, "val")
    with pytest.raises(ValueError, match="unknown split 'test', known are all, train"):
        davis.davis2016(tmp_path, "test")
    with pytest.raises(ValueError, match="no sequence 'cat' in split 'all', there are bear"):
        davis.davis2016(tmp_path, sequences=["cat"])
    _list(tmp_path, "480p/train.txt", _pairs(["bear", "bus"]))
    with pytest.raises(FileNotFoundError, match="JPEGImages/480p/bus: no such folder, but the list"):
        davis.davis2016(tmp_path, "train")
    with pytest.raises(ValueError, match="split 'dev_val' at 480p has no sequence"):
        davis.davis2016(tmp_path, "dev_val")
    (tmp_path / "JPEGImages/480p/empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no frames, expected 00000.jpg"):
        davis.davis2016(tmp_path)


def test_fewer_masks_than_frames(tmp_path):
    _tree(tmp_path, ["bear"])
    (tmp_path / "Annotations/480p/bear/00001.png").unlink()
    for load in (davis.davis2016, davis.davis2017):
        with pytest.raises(FileNotFoundError, match="bear: 2 masks for 3 frames, the first missing is 00001.png"):
            load(tmp_path)
    (clip,) = davis.davis2017(tmp_path, partial_masks=True)
    assert clip.labels(2).shape == SIZE
    with pytest.raises(LookupError, match="clip 'bear' has no mask for frame 1, there are masks for 0, 2"):
        clip.labels(1)
    for path in (tmp_path / "Annotations/480p/bear").iterdir():
        path.unlink()
    assert not davis.davis2017(tmp_path, partial_masks=True)[0].has("labels")


def test_a_mask_or_frame_of_another_size_names_the_file(tmp_path):
    _tree(tmp_path, ["bear"])
    write_labels(tmp_path / "Annotations/480p/bear/00001.png", torch.zeros(6, 9).long())
    write_image(tmp_path / "JPEGImages/480p/bear/00002.jpg", torch.zeros(3, 5, 10))
    (clip,) = davis.davis2016(tmp_path)
    with pytest.raises(ValueError, match=r"bear/00001.png: expected 6x10 .* as clip 'bear' has, got 6x9"):
        clip.labels(1)
    with pytest.raises(ValueError, match=r"bear/00002.jpg: expected 6x10 .* got 5x10"):
        clip.frame(2)


def test_a_second_file_for_one_frame(tmp_path):
    _tree(tmp_path, ["bear"])
    write_image(tmp_path / "JPEGImages/480p/bear/00001.png", torch.rand(3, *SIZE))
    with pytest.raises(ValueError, match="a second file for the frame of 00001.jpg"):
        davis.davis2016(tmp_path)


def test_check_names_every_problem_once(tmp_path):
    _tree(tmp_path)
    _list(tmp_path, "480p/train.txt", _pairs(["bear", "swing"]))
    assert len(datasets.check("davis2016", tmp_path)) == 6  # 3 frames and 3 masks of swing
    _list(tmp_path, "480p/train.txt", _pairs(["bear"]))
    assert datasets.check("davis2016", tmp_path) == []
    (tmp_path / "Annotations/480p/bear/00001.png").unlink()
    write_labels(tmp_path / "Annotations/480p/bus/00001.png", torch.zeros(6, 9).long())
    frame = tmp_path / "JPEGImages/480p/rhino/00002.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])
    found = datasets.check("davis2016", tmp_path)
    for text in ("bear/00001.png: missing, but", "bear: 2 masks for 3 frames", "bus/00001.png: expected 6x10",
                 "rhino/00002.jpg: not a whole image file"):
        assert sum(text in line for line in found) == 1, text
    assert len(found) == 4 and not any("\n" in line for line in found)
    assert len(datasets.check("davis2016", tmp_path, deep=False)) == 2


def test_check_of_nothing_and_of_2017_lists(tmp_path):
    assert "no such folder" in datasets.check("davis2017", tmp_path)[0]
    (tmp_path / "JPEGImages").mkdir()
    assert "expected a folder per resolution" in datasets.check("davis2017", tmp_path)[0]
    _tree(tmp_path, ["bear"])
    _list(tmp_path, "2017/val.txt", ["bear", "judo"])
    (line,) = datasets.check("davis2017", tmp_path)
    assert "JPEGImages/480p/judo: missing, but" in line


# ---------------------------------------------------------------- real files


def test_real_2016(reference):
    root = reference / "data/DAVIS2016"
    development = davis.davis2016(root, "dev_val", "240p")
    assert tuple(clip.name for clip in development) == davis.HELD_OUT
    train = davis.davis2016(root, "dev_train", "240p")
    assert len(train) == 22 and sum(map(len, train + development)) == 2079
    surf = davis.davis2016(root, "train", "240p", ["surf"])[0]
    assert surf.labels(len(surf) - 1).sum() == 0 and surf.labels(0).unique().tolist() == [0, 1]
    bear = davis.davis2016(root, "train", sequences=["bear"])[0]
    assert len(bear) == 10 and bear.frame(9).shape == (3, 480, 854) and bear.labels(9).max() == 1


def test_real_2016_mask_with_alpha(tmp_path, reference):
    source = reference / "data/DAVIS2016"
    write_image(tmp_path / "JPEGImages/480p/bear/00077.jpg", torch.rand(3, 480, 854))
    mask = tmp_path / "Annotations/480p/bear/00077.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes((source / "edge_LA_mask_bear_00077.png").read_bytes())
    labels = davis.davis2016(tmp_path)[0].labels(0)
    assert labels.unique().tolist() == [0, 1] and 0 < labels.float().mean() < 0.5


def test_real_2017(reference):
    root = reference / "data/davis2017_format"
    with pytest.raises(FileNotFoundError, match="judo: 4 masks for 16 frames, the first missing is 00001.png"):
        davis.davis2017(root)
    judo, tennis = davis.davis2017(root, partial_masks=True)
    assert tennis.labels(1).unique().tolist() == [0, 1, 2, 255]
    assert set(judo.labels(13).unique().tolist()) - {0, 255}
    with pytest.raises(ValueError, match=r"judo/00005.png: expected 480x854 .* got 480x853"):
        judo.labels(5)
