"""AirSim's recordings: real ones, broken ones, and the flip of their depth."""

import pytest
import torch

from diffslic import datasets
from diffslic.datasets import io

NAMES = "VehicleName\tTimeStamp\tPOS_X\tPOS_Y\tPOS_Z\tQ_W\tQ_X\tQ_Y\tQ_Z\tImageFile"


def a_line(number, quaternion="1\t0\t0\t0", files="a{0}.png"):
    return f"drone\t{number}\t{number}\t2\t-3\t{quaternion}\t{files.format(number)}"


def write(root, lines):
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "airsim_rec.txt").write_text("\n".join([NAMES, *lines]) + "\n")
    for number in (1, 2):
        io.write_image(root / "images" / f"a{number}.png", torch.rand(3, 6, 8))


def test_a_drone_with_depth(tmp_path):
    depth = torch.arange(48.0).reshape(1, 6, 8) + 1
    write(tmp_path, [a_line(number, files="a{0}.png;d{0}.pfm") for number in (1, 2, 3)])  # the third has no image
    for number in (1, 2):
        io.write_pfm(tmp_path / "images" / f"d{number}.pfm", depth.flip(-2))  # as AirSim does, from the top
    clip = datasets.open("airsim", root=tmp_path)[0]
    assert (len(clip), clip.size, clip.frame_name(1)) == (2, (6, 8), "a2")
    assert torch.equal(clip.depth(0), depth)
    assert clip.camera_to_world(1)[:3, 3].tolist() == [2, -3, 2]  # north 2, east 2, down -3
    assert clip.intrinsics[0, 0] == pytest.approx(4)
    tilted = torch.eye(4)
    tilted[2, 3] = 0.5
    clip = datasets.open("airsim", root=tmp_path, fov=60.0, body_from_camera=tilted)[0]
    assert clip.camera_to_world(1)[:3, 3].tolist() == [2, -3, 2.5] and clip.intrinsics[0, 0] > 6
    assert datasets.check("airsim", tmp_path) == []


@pytest.mark.parametrize(("lines", "reason"), [
    ([a_line(1), "drone\t2\t0.5"], "line 3: expected 10 fields, got 3; the recording broke off"),
    ([a_line(1, "1\t0\tx\t0")], "line 2: could not convert"), ([a_line(1, "0.5\t0\t0\t0")], "length 0.500, not 1"),
    ([a_line(1, "nan\t0\t0\t0")], "line 2: the quaternion has length nan"),
    ([a_line("inf")], "line 2: the position is not finite"), ([a_line(1, files="a.txt")], "line 2: names no image"),
    ([a_line(1, files="img_drone_0_5_{0}.png")], "names no image of the scene"), ([a_line(9)], "none of the images")])
def test_a_broken_recording_is_named(tmp_path, lines, reason):
    write(tmp_path, lines)
    with pytest.raises((ValueError, FileNotFoundError), match=reason):
        datasets.open("airsim", root=tmp_path)
    assert len(datasets.check("airsim", tmp_path)) == 1


def test_frames_and_depth_are_told_by_their_type(tmp_path):
    files = ["img_drone_0_5_{0}.png", "img_drone_0_0_{0}.png", "img_drone_0_2_{0}.pfm", "img_drone_0_1_{0}.pfm"]
    write(tmp_path, [a_line(number, files=";".join(files)) for number in (1, 2)])
    for number in (1, 2):
        for value, name in enumerate(files, start=1):
            path = tmp_path / "images" / name.format(number)
            if path.suffix == ".pfm":
                io.write_pfm(path, torch.full((1, 6, 8), float(value)))
            else:
                io.write_image(path, torch.full((3, 6, 8), value / 10))
    clip = datasets.open("airsim", root=tmp_path)[0]
    assert clip.frame(0).mean().item() == pytest.approx(0.2, abs=0.01) and clip.depth(1).unique().tolist() == [4]


def test_a_folder_without_a_recording(tmp_path):
    with pytest.raises(FileNotFoundError, match="airsim_rec.txt"):
        datasets.open("airsim", root=tmp_path)
    (tmp_path / "airsim_rec.txt").write_text("TimeStamp\tPOS_X\n")
    with pytest.raises(ValueError, match="line 1: .* no POS_Y"):
        datasets.open("airsim", root=tmp_path)


def test_the_real_recording(reference):
    clip = datasets.open("airsim", root=reference / "data/airsim")[0]
    assert (len(clip), clip.size) == (40, (144, 256)) and not clip.has("depth")
    way = (clip.camera_to_world(39)[:3, 3] - clip.camera_to_world(0)[:3, 3]).norm()
    assert 0.1 < way < 200 and clip.frame(39).std() > 0.05
