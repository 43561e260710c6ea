"""TartanAir: poses by frame number, both versions, depth, flow and occlusion codes, bad files."""

import cv2
import numpy as np
import pytest
import torch

from diffslic import datasets, geometry
from diffslic.datasets import tartanair
from diffslic.datasets.io import read_flow, read_image, write_image, write_npy

LINES = [f"{t}.5 {t} -2 0 0 {np.sin(0.1 * t)} {np.cos(0.1 * t)}" for t in range(6)]


def _trajectory(folder, numbers=(2, 3, 4), size=(6, 8), lines=LINES) -> None:
    for n in numbers:
        write_image(folder / f"image_left/{n:06d}_left.png", torch.full((3, *size), n / 10))
        write_npy(folder / f"depth_left/{n:06d}_left_depth.npy", np.full(size, n, np.float32))
        if n != numbers[-1]:
            write_npy(folder / f"flow/{n:06d}_{n + 1:06d}_flow.npy", np.dstack([np.full(size, n), np.zeros(size)]))
            codes = np.resize(np.array([0, 1, 10, 100, 200], np.uint8), size)
            write_npy(folder / f"flow/{n:06d}_{n + 1:06d}_mask.npy", codes)
    (folder / "pose_left.txt").write_text("\n".join(lines) + "\n")


def test_everything_is_read_by_the_frames_number(tmp_path):
    _trajectory(tmp_path / "office/Easy/P000")
    _trajectory(tmp_path / "office/Hard/P003")
    first, second = tartanair.clips(tmp_path)
    assert (first.name, second.name) == ("office-Easy-P000", "office-Hard-P003")
    assert len(first) == 3 and first.size == (6, 8) and first.frame_name(1) == "000003"
    assert first.frame(1)[0, 0, 0].item() == pytest.approx(0.3, abs=2e-3)
    assert first.depth(1).shape == (1, 6, 8) and first.depth(1).max() == 3
    assert first.flow(1).shape == (2, 6, 8) and first.flow(1)[0].unique().tolist() == [3.0]
    assert first.occlusion(0)[0, :5].tolist() == [False, True, True, True, False]
    # NED: the camera stands 3.5 m to the front, 3 to the right and 2 above; z is forward, y is down
    assert first.camera_to_world(1)[:3, 3].tolist() == pytest.approx([3, -2, 3.5])
    assert [clip.name for clip in tartanair.clips(tmp_path, ["office-Hard-P003"])] == ["office-Hard-P003"]
    assert tartanair.clips(tmp_path / "office/Easy/P000")[0].name == "P000"
    (tmp_path / "office").rename(tmp_path / "inner")
    (tmp_path / "office").mkdir()
    (tmp_path / "inner").rename(tmp_path / "office/office")
    assert tartanair.clips(tmp_path)[0].name == "office-office-Easy-P000"
    assert datasets.check("tartanair", tmp_path) == []


def test_a_turn_to_the_right_is_a_turn_about_y_that_points_down():
    pose = tartanair.parse_poses(LINES[1])[0]
    forward = pose[:3, :3] @ torch.tensor([0, 0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(forward, torch.tensor([np.sin(0.2), 0, np.cos(0.2)], dtype=torch.float64))


def test_intrinsics_belong_to_the_original_size(tmp_path):
    _trajectory(tmp_path / "a")
    _trajectory(tmp_path / "b", size=(480, 640))
    small, full = tartanair.clips(tmp_path)
    assert torch.equal(full.intrinsics, torch.tensor(tartanair.INTRINSICS))
    with pytest.raises(LookupError, match="has no intrinsics"):
        _ = small.intrinsics
    (tmp_path / "a/intrinsics.txt").write_text("4 0 3.5\n0 4 2.5\n0 0 1\n")
    assert tartanair.clips(tmp_path)[0].intrinsics.tolist() == [[4, 0, 3.5], [0, 4, 2.5], [0, 0, 1]]
    for text in ("4 0 3.5", "4 0 3.5 0 4 2.5 0 0 one"):
        (tmp_path / "a/intrinsics.txt").write_text(text)
        with pytest.raises(ValueError, match="intrinsics.txt: expected the 9 numbers"):
            tartanair.clips(tmp_path)


def test_a_changed_pose_does_not_change_the_clip(tmp_path):
    _trajectory(tmp_path / "a")
    (clip,) = tartanair.clips(tmp_path)
    clip.camera_to_world(0).zero_()
    assert clip.camera_to_world(0).abs().sum() > 0


def test_bad_trajectories(tmp_path):
    with pytest.raises(FileNotFoundError, match="no trajectory here, expected <environment>"):
        tartanair.clips(tmp_path)
    assert "no trajectory here" in datasets.check("tartanair", tmp_path)[0]
    _trajectory(tmp_path / "a")
    with pytest.raises(ValueError, match="no trajectory 'b', there are a"):
        tartanair.clips(tmp_path, ["b"])
    (tmp_path / "a/pose_left.txt").write_text("\n".join(LINES[:4]))
    with pytest.raises(ValueError, match="pose_left.txt: expected a pose for every frame up to 4, got 4 lines"):
        tartanair.clips(tmp_path)
    for line, message in (("1 2 3", "got 3 numbers"), ("x 2 3 4 5 6 7", "got 'x 2 3 4 5 6 7'")):
        (tmp_path / "a/pose_left.txt").write_text(f"{LINES[0]}\n{line}\n")
        with pytest.raises(ValueError, match=f"pose_left.txt: line 2: expected tx ty tz qx qy qz qw, {message}"):
            tartanair.clips(tmp_path)
    _trajectory(tmp_path / "a", numbers=(2, 3, 5))
    (tmp_path / "a/image_left/000004_left.png").unlink()
    with pytest.raises(ValueError, match="image_left: frame 5 follows frame 3"):
        tartanair.clips(tmp_path)
    (tmp_path / "a/image_left/x.png").write_bytes((tmp_path / "a/image_left/000002_left.png").read_bytes())
    with pytest.raises(ValueError, match="x.png: expected a name like 000000_left.png"):
        tartanair.clips(tmp_path)
    (tmp_path / "b/image_left").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="image_left: no frames"):
        tartanair.clips(tmp_path / "b")


def test_missing_and_misshapen_files_are_named(tmp_path):
    _trajectory(tmp_path / "a")
    (tmp_path / "a/flow/000002_000003_flow.npy").unlink()
    write_npy(tmp_path / "a/depth_left/000003_left_depth.npy", np.zeros((6, 9), np.float32))
    (clip,) = tartanair.clips(tmp_path)
    with pytest.raises(FileNotFoundError, match="000002_000003_flow.npy"):
        clip.flow(0)
    with pytest.raises(ValueError, match=r"000003_left_depth.npy: expected 6x8 .* got 6x9"):
        clip.depth(1)
    found = datasets.check("tartanair", tmp_path)
    assert len(found) == 2 and "000003_left_depth.npy" in found[0] and "000002_000003_flow.npy" in found[1]


def test_reference_poses(reference):
    for case in ("lateral", "forward", "rot_trans", "moving"):
        data = np.load(reference / f"reference/flow/depth_{case}.npz")
        poses = tartanair.parse_poses("\n".join(data["tartan_lines"]))
        np.testing.assert_allclose(poses.numpy(), [data["T1"], data["T2"]], atol=1e-10)


def _change_after_warp(first: torch.Tensor, second: torch.Tensor, flow: torch.Tensor) -> float:
    """How much of the difference between two images is left once the flow has carried one onto the other."""
    inside = geometry.lands_inside(flow)[0]
    left, before = ((other - first).abs().mean(1)[0][inside].median()
                    for other in (geometry.warp(second, flow), second))
    return (left / before).item()


def test_real_trajectory_depth_and_poses_carry_one_frame_to_the_next(reference):
    (clip,) = tartanair.clips(reference / "data/tartanair")
    assert len(clip) == 12 and clip.frame_name(0) == "000060" and clip.has("intrinsics")
    motion = geometry.second_from_first(clip.camera_to_world(0), clip.camera_to_world(3))
    first, second = clip.frame(0)[None], clip.frame(3)[None]
    for pose, least, most in ((motion, 0, 0.5), (geometry.invert_pose(motion), 1, 10)):
        flow = geometry.flow_from_depth(clip.depth(0)[None], clip.intrinsics, pose)
        assert least < _change_after_warp(first, second, flow) < most


def test_real_flow_pair(reference):
    folder = reference / "data/tartanair/flow_pair"
    flow = read_flow(folder / "000380_000381_flow.npy").flow[None]
    first, second = (read_image(folder / f"{n:06d}_left.png")[None] for n in (380, 381))
    assert _change_after_warp(first, second, flow) < 0.5


def test_version_2(tmp_path):
    folder, chance = tmp_path / "House/Data_easy/P001", np.random.default_rng(0)
    depth = chance.uniform(0.5, 1e4, (2, 6, 8)).astype(np.float32)
    flow = np.round(chance.uniform(-500, 500, (6, 8, 2)) * 64) / 64
    codes = np.resize(np.array([0, 1, 10, 100, 200], np.uint8), (6, 8))
    for name in ("depth_lcam_front", "flow_lcam_front"):
        (folder / name).mkdir(parents=True)
    for n in (0, 1):  # written by OpenCV as the dataset's own tools read it
        write_image(folder / f"image_lcam_front/{n:06d}_lcam_front.png", torch.full((3, 6, 8), n / 10))
        cv2.imwrite(str(folder / f"depth_lcam_front/{n:06d}_lcam_front_depth.png"),
                    depth[n][..., None].view(np.uint8).reshape(6, 8, 4))
    cv2.imwrite(str(folder / "flow_lcam_front/000000_000001_flow.png"),
                np.dstack([flow * 64 + 32768, codes]).astype(np.uint16))
    (folder / "pose_lcam_front.txt").write_text("\n".join(LINES))
    (clip,) = tartanair.clips(tmp_path)
    assert (clip.name, len(clip), clip.has("intrinsics")) == ("House-Data_easy-P001", 2, False)
    assert np.array_equal(clip.depth(1)[0].numpy(), depth[1])
    assert np.array_equal(clip.flow(0).permute(1, 2, 0).numpy(), flow)
    assert clip.occlusion(0)[0, :5].tolist() == [False, True, True, True, False]
    assert datasets.check("tartanair", tmp_path) == []
    write_image(folder / "image_lcam_front/000000_lcam_front.png", torch.zeros(3, 640, 640))
    assert tartanair.clips(tmp_path)[0].intrinsics[0].tolist() == [320, 0, 320]


def test_a_quaternion_that_is_none(tmp_path):
    _trajectory(tmp_path / "a", lines=[*LINES[:3], "0 0 0 0 0 0 0.5", *LINES[4:]])
    with pytest.raises(ValueError, match="pose_left.txt: line 4: the quaternion has length 0.500, not 1"):
        tartanair.clips(tmp_path)
    for line, reason in (("0 0 0 0 0 0 nan", "length nan"), ("0 0 nan 0 0 0 1", "position is not finite")):
        with pytest.raises(ValueError, match=f"line 1: the .*{reason}"):
            tartanair.parse_poses(line)


def test_flow_that_is_missing_follows_from_depth_and_poses(reference, tmp_path):
    clip = datasets.open("tartanair", root=reference / "data/tartanair/trajectory")[0]
    assert clip.has("flow") and not clip.has("occlusion")
    pair = clip.frame(0), clip.frame(1)
    error = (geometry.warp(pair[1][None], clip.flow(0)[None])[0] - pair[0]).abs().mean(0)
    inside = geometry.lands_inside(clip.flow(0)[None])[0]
    assert error[inside].median() < 0.5 * (pair[1] - pair[0]).abs().mean(0)[inside].median()
