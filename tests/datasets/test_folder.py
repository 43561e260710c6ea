"""Somebody's own frames and videos."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import datasets
from diffslic.datasets import folder
from diffslic.datasets.io import write_image, write_labels
from diffslic.datasets.video import Video, write_video


def _frames(root, n: int = 12, size: tuple[int, int] = (4, 6), name: str = "frame_{}.png") -> None:
    for t in range(n):
        write_image(root / name.format(t + 1), torch.full((3, *size), t / 20))


def _value(frame: torch.Tensor) -> int:
    return round(frame.mean().item() * 20)


def test_frames_come_in_the_order_people_count(tmp_path):
    _frames(tmp_path / "ride")
    (tmp_path / "ride" / "notes.txt").write_text("not an image")
    (tmp_path / "ride" / "._frame_1.png").write_bytes(b"left by a file manager")
    (clip,) = folder.clips(tmp_path / "ride")
    assert (clip.name, len(clip), clip.size) == ("ride", 12, (4, 6))
    assert [_value(clip.frame(t)) for t in range(12)] == list(range(12))
    assert clip.frame_name(1) == "frame_2" and not clip.has("labels")


def test_masks_beside_frames(tmp_path):
    _frames(tmp_path / "frames", 3)
    labels = torch.arange(24).reshape(4, 6) % 3
    for t in range(3):
        write_labels(tmp_path / "masks" / f"frame_{t + 1}.png", labels)
    Image.fromarray((labels.numpy() > 0).astype(np.uint8) * 255).save(tmp_path / "masks" / "frame_2.png")
    (clip,) = folder.clips(tmp_path)
    assert torch.equal(clip.labels(0), labels)
    assert torch.equal(clip.labels(1), (labels > 0).long())
    (small,) = folder.clips(tmp_path, resolution=2)
    assert small.size == (2, 3) and small.frame(0).shape == (3, 2, 3) and small.frame_name(0) == "frame_1"
    assert set(small.labels(0).unique().tolist()) <= {0, 1, 2} and small.labels(0).shape == (2, 3)
    (tmp_path / "masks" / "frame_3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"masks: expected a mask for each of 3 frames, 1 .* frame_3.png"):
        folder.clips(tmp_path)


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images here; expected a video file, a folder of images"):
        folder.clips(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        folder.clips(tmp_path / "nowhere")
    _frames(tmp_path, 1)
    with pytest.raises(ValueError, match="motion needs at least two frames, got one"):
        folder.clips(tmp_path)
    _frames(tmp_path, 3)
    with pytest.raises(ValueError, match="resolution is the number of rows"):
        folder.clips(tmp_path, resolution=0)
    write_image(tmp_path / "frame_2.png", torch.zeros(3, 4, 7))
    with pytest.raises(ValueError, match=r"frame_2.png: expected 4x6 \(rows x columns\) .*frame_1.png has, got 4x7"):
        folder.clips(tmp_path)
    (tmp_path / "frame_2.png").write_bytes(b"")
    with pytest.raises(ValueError, match="frame_2.png: not a whole image file"):
        folder.clips(tmp_path)


def test_a_truncated_frame_and_a_mask_of_another_size(tmp_path):
    for t in range(2):
        write_image(tmp_path / "frames" / f"{t}.png", torch.rand(3, 64, 64))
        write_labels(tmp_path / "masks" / f"{t}.png", torch.zeros(64, 63).long())
    path = tmp_path / "frames" / "1.png"
    path.write_bytes(path.read_bytes()[:3000])
    (clip,) = folder.clips(tmp_path)
    with pytest.raises(ValueError, match=r"frames/1.png: not a whole image file \(.*truncated"):
        clip.frame(1)
    with pytest.raises(ValueError, match=r"masks/0.png: expected 64x64 .* got 64x63"):
        clip.labels(0)
    found = datasets.check("folder", tmp_path)
    assert len(found) == 3 and "frames/1.png" in found[0] and "masks/0.png" in found[1]


def test_real_frames(reference):
    (clip,) = folder.clips(reference / "data/flow/raft_demo", resolution=109)
    assert len(clip) == 4 and clip.size == (109, 256) and clip.frame_name(0) == "frame_0016"
    assert clip.frame(3).shape == (3, 109, 256)


# ---------------------------------------------------------------- video files


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "ride.mp4"
    write_video(path, (torch.full((3, 48, 64), t / 20) for t in range(20)), fps=10)
    return path


def test_video_gives_frames_by_number_in_any_order(video):
    (clip,) = folder.clips(video)
    assert (clip.name, len(clip), clip.size, clip.frame_name(3)) == ("ride", 20, (48, 64), "00003")
    for t in [0, 1, 1, 2, 10, 9, 3, 19]:
        assert _value(clip.frame(t)) == t
    assert Video(video).fps == clip.fps == 10
    assert folder.clips(video, resolution=24)[0].frame(5).shape == (3, 24, 32)


def test_reading_forwards_decodes_each_frame_once_and_keeps_two(video, monkeypatch):
    reader = Video(video)
    decoded = []
    once = Video._decode_one
    monkeypatch.setattr(Video, "_decode_one", lambda self: (decoded.append(self._next), once(self)))
    for t in range(9):
        reader.frame(t)
        reader.frame(t + 1)
        assert len(reader._newest) <= 2
    assert decoded == list(range(10))


def test_forked_readers_do_not_disturb_the_first(video):
    reader = Video(video)
    reader.frame(3)
    child = os.fork()
    if child == 0:
        good = [_value(reader.frame(t)) for t in (4, 5)] == [4, 5]
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [_value(reader.frame(t)) for t in (4, 5, 6)] == [4, 5, 6]


def test_the_end_of_a_video(video):
    with pytest.raises(IndexError, match="ride.mp4: the video ends after 20 frames"):
        Video(video).frame(20)


def test_unreadable_videos_name_the_file(tmp_path, video):
    (tmp_path / "text.mp4").write_text("not a video" * 1000)
    (tmp_path / "empty.mp4").write_bytes(b"")
    content = video.read_bytes()
    (tmp_path / "half.mp4").write_bytes(content[:len(content) // 2])
    for name in ("text", "empty", "half"):
        with pytest.raises(ValueError, match=f"{name}.mp4: not a video that can be decoded") as caught:
            folder.clips(tmp_path / f"{name}.mp4")
        assert "\n" not in str(caught.value)
    (tmp_path / "a.doc").write_text("x")
    with pytest.raises(ValueError, match="a.doc: not a video by its name"):
        folder.clips(tmp_path / "a.doc")
    with pytest.raises(FileNotFoundError, match="no video file"):
        Video(tmp_path / "none.mp4")
    write_video(tmp_path / "one.mp4", [torch.zeros(3, 16, 16)])
    with pytest.raises(ValueError, match="one.mp4: motion needs at least two frames"):
        folder.clips(tmp_path / "one.mp4")
    assert "text.mp4" in datasets.check("folder", tmp_path / "text.mp4")[0]


def test_write_video_is_whole_or_absent(tmp_path):
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [])
    with pytest.raises(ValueError, match=r"a.mp4: every frame must be \(3, H, W\) of one size, got \(3, 16, 18\)"):
        write_video(tmp_path / "a.mp4", [torch.zeros(3, 16, 16), torch.zeros(3, 16, 18)])
    assert list(tmp_path.iterdir()) == []
    write_video(tmp_path / "odd.mp4", [torch.zeros(3, 15, 17)] * 2)
    assert Video(tmp_path / "odd.mp4").size == (16, 18)
