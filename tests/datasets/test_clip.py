"""Clip: ranges, missing kinds, parts and added readers."""

import pickle
from functools import partial

import pytest
import torch

from diffslic.datasets.clip import Clip


def _numbered(value: float, t: int) -> torch.Tensor:
    return torch.full((2, 4, 6), value + t)


def _clip(length: int = 5) -> Clip:
    readers = {kind: partial(_numbered, 100.0 * i) for i, kind in enumerate(["frame", "flow", "backward_flow"])}
    return Clip("bear", (4, 6), readers, length)


def test_each_kind_reads_its_own_reader():
    clip = _clip()
    assert len(clip) == 5
    assert clip.frame(3)[0, 0, 0] == 3
    assert clip.flow(3)[0, 0, 0] == 103
    assert clip.backward_flow(3)[0, 0, 0] == 203


@pytest.mark.parametrize(("kind", "good", "bad"), [("frame", (0, 4), (-1, 5)), ("flow", (0, 3), (-1, 4)),
                                                   ("backward_flow", (1, 4), (0, 5))])
def test_frame_numbers_outside_the_range_of_the_kind(kind, good, bad):
    clip = _clip()
    for t in good:
        getattr(clip, kind)(t)
    for t in bad:
        with pytest.raises(IndexError, match=rf"'bear' has 5 frames: {kind}\({t}\) is outside {good[0]}..{good[1]}"):
            getattr(clip, kind)(t)


@pytest.mark.parametrize("kind", ["labels", "segments", "depth", "occlusion", "backward_occlusion", "camera_to_world",
                                  "superpixel_labels", "superpixel_vectors"])
def test_missing_kind_names_the_clip_and_what_it_has(kind):
    clip = _clip()
    assert not clip.has(kind)
    with pytest.raises(LookupError, match=f"clip 'bear' has no {kind}, it has frame, flow, backward_flow"):
        getattr(clip, kind)(1)


def test_intrinsics():
    assert not _clip().has("intrinsics")
    with pytest.raises(LookupError, match="has no intrinsics"):
        _ = _clip().intrinsics
    clip = Clip("a", (4, 6), _clip().readers, 5, torch.eye(3))
    assert clip.has("intrinsics") and torch.equal(clip.intrinsics, torch.eye(3))


def test_part_is_numbered_from_zero_and_keeps_names():
    clip = Clip("bear", (4, 6), _clip().readers, 5, frame_names=("a", "b", "c", "d", "e"))
    part = clip.part(2, 4).part(0, 2)
    assert len(part) == 2 and part.frame_name(1) == "d"
    assert torch.equal(part.frame(1), clip.frame(3)) and torch.equal(part.flow(0), clip.flow(2))
    with pytest.raises(IndexError, match="2 frames"):
        part.flow(1)
    for start, stop in [(-1, 2), (3, 3), (0, 6)]:
        with pytest.raises(IndexError, match="is not inside"):
            clip.part(start, stop)


def test_with_readers_adds_and_replaces_without_touching_the_first():
    clip = _clip()
    other = clip.with_readers(flow=lambda t: torch.zeros(2, 4, 6), labels=lambda t: torch.ones(4, 6).long())
    assert other.flow(1).max() == 0 and clip.flow(1).max() == 101
    assert other.has("labels") and not clip.has("labels")


def test_all_kinds_of_labels_are_resized_by_nearest():
    blocks = torch.arange(24).view(4, 6)
    readers = {kind: lambda t: blocks for kind in ("labels", "segments", "classes")}
    readers["annotations"] = lambda t: torch.stack([blocks, blocks + 1])
    clip = Clip("a", (4, 6), {**_clip().readers, **readers}, 5)
    large = clip.resized(8)
    expected = blocks.repeat_interleave(2, 0).repeat_interleave(2, 1)
    for kind in ("labels", "segments", "classes"):
        assert torch.equal(getattr(large, kind)(0), expected)
    assert torch.equal(large.annotations(0), torch.stack([expected, expected + 1]))
    assert large.size == (8, 12) and not large.has("flow")


def test_frame_names_default_to_five_digits():
    assert _clip().frame_name(3) == "00003"


def test_guards():
    with pytest.raises(ValueError, match="unknown reader 'flows'"):
        Clip("a", (4, 6), {"flows": _clip().flow}, 5)
    with pytest.raises(ValueError, match="at least one frame"):
        _clip(0)
    with pytest.raises(ValueError, match="2 frame names for 5 frames"):
        Clip("a", (4, 6), _clip().readers, 5, frame_names=("x", "y"))


def test_repr_is_short_and_a_clip_of_plain_functions_travels_to_another_process():
    assert repr(_clip()) == "Clip('bear', 5 frames of 4x6: frame, flow, backward_flow)"
    part = pickle.loads(pickle.dumps(_clip().part(1, 4)))
    assert part.frame(0)[0, 0, 0] == 1
