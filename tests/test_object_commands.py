"""Several objects from the shell and from clips: found, given, in the official layout, and bad input in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import datasets, geometry, metrics, pipeline
from diffslic.datasets import io
from diffslic.superpixels import SSN


def test_objects_of_a_video_keep_their_numbers_and_a_stopped_run_goes_on(run, fails, tmp_path):
    """With the shipped networks: a crowd of a few small frames."""
    [clip] = datasets.open("scenes", preset="crowd", n_clips=1, n_frames=5, size=(96, 160), seed=970_000)
    for t in range(len(clip)):
        io.write_image(tmp_path / "frames" / f"{t:05d}.png", clip.frame(t))
    command = ["segment", tmp_path / "frames", "--out", tmp_path / "out", "--objects", "--no-overlay"]
    assert run(*command)["frames"] == 5
    masks = sorted((tmp_path / "out" / "masks").iterdir())
    whole = [path.read_bytes() for path in masks]
    labels = torch.stack([io.read_labels(path) for path in masks]).numpy()
    assert labels.shape == (5, 96, 160) and 1 <= labels.max() <= 20
    assert Image.open(masks[0]).mode == "P"
    for path in masks[3:]:
        path.unlink()
    run(*command)
    assert [path.read_bytes() for path in masks] == whole
    assert "is for the method unet" in fails(*command[:3], tmp_path / "x", "--objects", "--method", "em")
    assert "holds other masks (of other instances, seen)" in fails(*command[:4])


def crowd(folder, n_frames=4):
    """A crowd of a few small frames as DAVIS 2017 lays it out, masks of the first frame and of one later only."""
    [clip] = datasets.open("scenes", preset="crowd", n_clips=1, n_frames=n_frames, size=(96, 160), seed=970_000)
    for t in range(n_frames):
        io.write_image(folder / "JPEGImages" / "480p" / clip.name / f"{t:05d}.png", clip.frame(t))
    masks = folder / "Annotations" / "480p" / clip.name
    first = clip.labels(0)
    late = int(first.max())
    io.write_labels(masks / "00000.png", torch.where(first == late, 0, first))
    io.write_labels(masks / "00002.png", clip.labels(2))
    return clip, masks, late


def test_given_objects_in_the_official_layout(run, fails, tmp_path):
    clip, masks, late = crowd(tmp_path / "davis")
    command = ["segment", tmp_path / "davis", "--dataset", "davis2017", "--given", masks.parent, "--official"]
    assert run(*command, "--out", tmp_path / "out")["frames"] == 4
    files = sorted((tmp_path / "out" / clip.name).iterdir())
    assert [path.name for path in files] == [".segmentation.json", *(f"{t:05d}.png" for t in range(4))]
    labels = [io.read_labels(path) for path in files[1:]]
    assert torch.equal(labels[0], io.read_labels(masks / "00000.png"))
    assert not (labels[1] == late).any() and (labels[2] == late).any() and (labels[3] == late).any()
    for path in files[1:]:                          # ids, palette and all: the same bytes
        before = path.read_bytes()
        io.write_labels(path, io.read_labels(path))
        assert path.read_bytes() == before and Image.open(path).mode == "P"
    io.write_labels(tmp_path / "old" / clip.name / "masks" / "00000.png", labels[0])
    assert "in our own layout" in fails(*command, "--out", tmp_path / "old")
    io.write_image(tmp_path / "frames" / clip.name / "00001.jpg", clip.frame(1))
    assert "would be taken for frames" in fails(*command, "--out", tmp_path / "frames")
    frames = tmp_path / "davis/JPEGImages/480p" / clip.name
    assert "00000.png: a file, expected a folder" in fails("segment", frames, "--given", masks / "00000.png",
                                                           "--out", tmp_path / "x")
    assert "in the official layout" in fails(*command[:-1], "--out", tmp_path / "out")
    whole = files[3].read_bytes()
    files[3].unlink()                               # a stopped run goes on
    run(*command, "--out", tmp_path / "out")
    assert files[3].read_bytes() == whole
    io.write_labels(masks / "00000.png", (clip.labels(0) > 0).long())
    assert "holds other masks" in fails(*command, "--out", tmp_path / "out")


def test_given_masks_that_are_none(fails, tmp_path):
    clip, masks, _ = crowd(tmp_path / "davis")
    frames = tmp_path / "davis" / "JPEGImages" / "480p" / clip.name
    command = ["segment", frames, "--out", tmp_path / "out", "--given"]
    assert "no such folder" in fails(*command, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no mask of a frame" in fails(*command, tmp_path / "empty")
    labels = io.read_labels(masks / "00000.png")
    for name, wrong, told in (("void", 255 * (labels > 0), "no mask has"), ("none", 0 * labels, "no mask has"),
                              ("small", labels[:, :100], "expected 96x160")):
        io.write_labels(tmp_path / name / "00000.png", wrong)
        assert told in fails(*command, tmp_path / name)
    assert "give no method" in fails(*command, masks, "--objects")
    assert "motion has 1 mask: objects are parted" in fails(*command[:-1], "--objects", "--instances", "motion")
    assert "instances has 7 masks: what moves" in fails(*command[:-1], "--weights", "instances")
    assert "no unet weights named" in fails(*command[:-1], "--objects", "--weights", "foo")
    assert "--instances is the network of --objects" in fails(*command[:-1], "--instances", "instances")
    assert not (tmp_path / "out").exists()


def test_given_masks_of_nearly_the_size(tmp_path):
    """As DAVIS 2017 has them: a column less; ids with gaps; an empty first frame; colours for ids; many objects."""
    clip, masks, late = crowd(tmp_path / "davis")
    labels = io.read_labels(masks / "00002.png")
    io.write_labels(tmp_path / "given" / "00000.png", 0 * labels)
    io.write_labels(tmp_path / "given" / "00002.png", torch.where(labels == 1, 77, labels)[:, :-1])
    with pytest.warns(UserWarning, match="00002.png: 96x159") as told:
        given = datasets.given_masks(tmp_path / "given", clip)
    assert len(told) == 1
    assert list(given) == [2] and 77 in given[2] and given[2].shape == clip.size
    io.write_image(tmp_path / "given" / "00002.png", torch.from_numpy(io.PALETTE[labels]).permute(2, 0, 1) / 255)
    assert torch.equal(datasets.given_masks(tmp_path / "given", clip)[2], labels)
    big = geometry.resize_labels(labels[None], (192, 320))[0]
    io.write_labels(tmp_path / "given" / "00002.png", big)
    assert torch.equal(datasets.given_masks(tmp_path / "given", clip)[2], labels)
    many = torch.arange(1, 31).repeat_interleave(5)[None].repeat(96, 1)
    many = torch.nn.functional.pad(many, (0, 10))
    io.write_labels(tmp_path / "given" / "00000.png", many)
    assert len(datasets.given_masks(tmp_path / "given", clip)[0].unique()) == 31
    small = clip.resized(48)
    assert small.size == (48, 80) and small.frame(1).shape == (3, 48, 80)
    io.write_segments(tmp_path / "wide" / "00000.png", 300 * (labels > 0))
    with pytest.raises(ValueError, match="ids are 0 to 255, got 300"):
        datasets.given_masks(tmp_path / "wide", clip)
    with pytest.raises(ValueError, match="at least one row"):
        clip.resized(0)
    assert datasets.first_masks((t, small.labels(t)) for t in range(4))[0].shape == (48, 80)


def test_a_given_mask_ends_where_it_was_drawn_and_small_objects_are_left_a_pixel():
    [clip] = datasets.open("scenes", preset="crowd", n_clips=1, n_frames=2, size=(96, 160), seed=970_000)
    row, column = torch.meshgrid(torch.arange(96), torch.arange(160), indexing="ij")
    mask = 3 * ((row - 50) ** 2 + (column - 80) ** 2 < 400).long()
    mask[5, 7] = 9                                  # smaller than a pixel of the networks
    result = pipeline.segment(clip, rows=32, given={0: mask})
    assert result.polished == "search" and pipeline.segment(clip, rows=32).polished == "variational"
    assert pipeline.segment(clip, rows=32, given={0: mask}, polished="variational").polished == "variational"
    first = torch.from_numpy(next(iter(result.frames())))
    assert torch.equal(first.long(), mask)
    for wrong in (True, ""):
        with pytest.raises(ValueError, match="parted by 'graph' or by a network"):
            pipeline.segment(clip, objects=wrong)


def test_objects_from_what_a_clip_holds(tmp_path):
    scenes = datasets.open("scenes", preset="crowd", n_clips=1, n_frames=5, size=(96, 160), seed=970_000)
    assert scenes[0].has("backward_flow")
    ssn = SSN.from_pretrained("scenes")
    [clip] = pipeline.precompute_superpixels(scenes, ssn, tmp_path, progress=False)
    truth = np.stack([clip.labels(t).numpy() for t in range(len(clip))])
    labels = pipeline.predict_objects(clip, truth)  # true flow, true masks: what is left is to tell them apart
    assert metrics.davis(labels, truth, "unsupervised").summary()["J-Mean"] > 0.7
    first = clip.labels(0).clone()
    first[first == 2] = 7                       # ids with gaps
    void = first == 0
    first[:4][void[:4]] = 255
    other = 3 * (clip.labels(2) == 3)           # enters with the third frame
    first[first == 3] = 0
    carried = pipeline.propagate_objects(clip, {0: first, 2: other})
    assert set(np.unique(carried)) <= {0, *first.unique().tolist(), 3} - {255}
    assert (carried[0] == np.where(first.numpy() == 255, 0, first.numpy())).all()
    assert not (carried[:2] == 3).any() and ((carried[2] == 3) >= (other.numpy() == 3)).all()
    truth[truth == 2] = 7
    both, either = ([np.count_nonzero(way(carried[2:] == name, truth[2:] == name)) for name in np.unique(carried)[1:]]
                    for way in (np.logical_and, np.logical_or))
    assert sum(both) > 0.7 * sum(either)
    for wrong, told in (({}, "must be given"), ({0: 255 * (first > 0)}, "no given mask has an object"),
                        ({9: first}, "must be given"), ({0: first[1:]}, "mask given of frame 0"),
                        ({0: first / 2}, "mask given of frame 0"), ({0: first - 1}, "mask given of frame 0")):
        with pytest.raises(ValueError, match=told):
            pipeline.propagate_objects(clip, wrong)
    with pytest.raises(ValueError, match="masks must be"):
        pipeline.predict_objects(clip, truth[:, 1:])
    with pytest.raises(ValueError, match="single frame"):
        pipeline.predict_objects(clip.part(0, 1), truth[:1])
