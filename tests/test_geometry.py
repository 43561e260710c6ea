"""Conventions of pixels, flow, cameras and poses, as small truths and against the reference figures."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffslic import geometry as g


def smooth_image(height: int, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """(1, 2, H, W), linear in x and y, so that bilinear sampling is exact."""
    x, y = g.pixel_grid(height, width, dtype=dtype)
    return torch.stack([2 * x + 3 * y, x - y])[None]


# ---------------------------------------------------------------- sampling and warping


def test_pixel_grid_has_x_first_and_integer_centres() -> None:
    grid = g.pixel_grid(2, 3)
    assert grid.tolist() == [[[0, 1, 2], [0, 1, 2]], [[0, 0, 0], [1, 1, 1]]]


@pytest.mark.parametrize("size", [(5, 7), (1, 7), (5, 1), (1, 1)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_zero_flow_leaves_the_image(size: tuple[int, int], mode: str) -> None:
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(g.warp(image, torch.zeros(2, 2, *size, dtype=torch.float64), mode), image)


@pytest.mark.parametrize(("u", "v"), [(2, 0), (0, 1), (-3, 2)])
def test_a_translation_reads_where_the_flow_points(u: int, v: int) -> None:
    image = torch.randn(1, 3, 8, 9, dtype=torch.float64)
    flow = torch.tensor([u, v], dtype=torch.float64)[None, :, None, None].expand(1, 2, 8, 9)
    rows, columns = torch.arange(8) + v, torch.arange(9) + u
    inside = ((rows >= 0) & (rows < 8))[:, None] & ((columns >= 0) & (columns < 9))
    expected = image[..., rows.clamp(0, 7), :][..., columns.clamp(0, 8)]
    torch.testing.assert_close(g.warp(image, flow), expected * inside)
    torch.testing.assert_close(g.warp(image, flow, padding="border"), expected)


def test_sampling_a_linear_image_between_pixels_is_exact() -> None:
    xy = torch.rand(1, 2, 4, 6, dtype=torch.float64) * torch.tensor([10., 6]).reshape(1, 2, 1, 1)
    x, y = xy.unbind(1)
    torch.testing.assert_close(g.sample(smooth_image(7, 11), xy), torch.stack([2 * x + 3 * y, x - y], dim=1))


@pytest.mark.parametrize(("dtype", "tolerance"), [
    (torch.float32, 1e-3),
    (torch.float64, 1e-9)])
def test_warp_equals_the_reference(reference: Path, dtype: torch.dtype, tolerance: float) -> None:
    arrays = np.load(reference / "reference/flow/flowio_warp.npz")
    image, flow = (torch.from_numpy(arrays[key]).permute(2, 0, 1)[None].to(dtype) for key in ("image", "flow"))
    warped = g.warp(image, flow)[0].permute(1, 2, 0)
    assert np.abs(warped.numpy() - arrays["warped"]).max() < tolerance
    assert np.array_equal(g.lands_inside(flow)[0].numpy(), arrays["inside"])


def test_lands_inside_counts_the_last_pixel_centre_and_nothing_beyond() -> None:
    flow = torch.zeros(1, 2, 3, 4)
    assert g.lands_inside(flow).all()
    flow[:, 0] = 1
    assert g.lands_inside(flow)[0].tolist() == [[True, True, True, False]] * 3
    flow[:, 0], flow[:, 1] = 0, -0.001
    assert g.lands_inside(flow)[0].tolist() == [[False] * 4, [True] * 4, [True] * 4]


def test_sampling_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"xy must be \(B, 2, h, w\)"):
        g.sample(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"flow is \(4, 5\) but the image is \(4, 4\)"):
        g.warp(torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 4, 5))


# ---------------------------------------------------------------- resizing, flipping, padding


def test_resized_flow_still_points_to_the_resized_place() -> None:
    """A camera turns; the flow of the small picture is that of the small camera."""
    intrinsics = g.intrinsics_from_fov(70, 48, 64).double()
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = g.axis_angle_to_matrix(torch.tensor([0.02, -0.03, 0.05], dtype=torch.float64))
    large = g.flow_from_depth(torch.ones(1, 1, 48, 64, dtype=torch.float64), intrinsics, turn)
    small_size = (24, 16)  # the aspect changes too
    small = g.flow_from_depth(torch.ones(1, 1, *small_size, dtype=torch.float64),
                              g.resize_intrinsics(intrinsics, (48, 64), small_size), turn)
    resized = g.resize_flow(large, small_size)
    torch.testing.assert_close(resized[..., 2:-2, 2:-2], small[..., 2:-2, 2:-2], atol=5e-3, rtol=0)


def test_resized_intrinsics_project_to_the_same_place_of_the_scene() -> None:
    intrinsics = g.intrinsics_from_fov(80, 30, 50)
    points = torch.randn(1, 3, 4, 4) + torch.tensor([0., 0, 5]).reshape(3, 1, 1)
    before = g.project(points, intrinsics)
    after = g.project(points, g.resize_intrinsics(intrinsics, (30, 50), (60, 25)))
    scale = torch.tensor([0.5, 2]).reshape(2, 1, 1)
    torch.testing.assert_close(after, (before + 0.5) * scale - 0.5)


def test_resize_keeps_means_and_constants() -> None:
    image = torch.rand(1, 3, 12, 18)
    assert g.resize(image, (12, 18)) is image
    torch.testing.assert_close(g.resize(image, (6, 9)).mean((2, 3)), image.mean((2, 3)), atol=2e-2, rtol=0)
    torch.testing.assert_close(g.resize(torch.full((1, 1, 12, 18), 0.3), (5, 7)), torch.full((1, 1, 5, 7), 0.3))


def test_resized_labels_are_labels_of_the_place() -> None:
    labels = torch.tensor([[[0, 1], [2**40, 255]]])
    large = g.resize_labels(labels, (4, 6))
    assert torch.equal(large, labels.repeat_interleave(2, 1).repeat_interleave(3, 2))
    assert torch.equal(g.resize_labels(large, (2, 2)), labels)
    assert g.resize_labels(labels, (2, 2)) is labels


def test_flipping_image_and_flow_flips_the_warped_image() -> None:
    image, flow = torch.rand(1, 3, 9, 12), 2 * torch.randn(1, 2, 9, 12)
    flipped = g.warp(g.flip_horizontal(image), g.flip_flow_horizontal(flow))
    torch.testing.assert_close(flipped, g.flip_horizontal(g.warp(image, flow)), atol=1e-5, rtol=0)
    assert torch.equal(g.flip_flow_horizontal(g.flip_flow_horizontal(flow)), flow)


@pytest.mark.parametrize("size", [(16, 24), (15, 17), (1, 9), (1, 1)])
def test_padding_reaches_the_multiple_and_repeats_the_edge(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size)
    padded, (rows, columns) = g.pad_to_multiple(image, 8)
    assert (rows, columns) == size
    assert padded.shape[-2] % 8 == 0 and padded.shape[-1] % 8 == 0
    assert padded.shape[-2] - rows < 8 and padded.shape[-1] - columns < 8
    assert torch.equal(padded[..., :rows, :columns], image)
    assert torch.equal(padded[..., -1, -1], image[..., -1, -1])


# ---------------------------------------------------------------- cameras and poses


def random_pose(*batch: int) -> torch.Tensor:
    pose = torch.eye(4, dtype=torch.float64).repeat(*batch, 1, 1)
    pose[..., :3, :3] = g.axis_angle_to_matrix(torch.randn(*batch, 3, dtype=torch.float64))
    pose[..., :3, 3] = torch.randn(*batch, 3, dtype=torch.float64)
    return pose


def test_field_of_view_reaches_the_outer_edges_of_the_longer_side() -> None:
    for height, width in [(48, 64), (64, 48)]:
        intrinsics = g.intrinsics_from_fov(90, height, width)
        assert intrinsics[0, 0].item() == pytest.approx(32)
        assert intrinsics[0, 2] == (width - 1) / 2 and intrinsics[1, 2] == (height - 1) / 2
    with pytest.raises(ValueError, match="field of view"):
        g.intrinsics_from_fov(180, 48, 64)


def test_backprojected_points_project_onto_their_pixels() -> None:
    depth, intrinsics = torch.rand(2, 1, 5, 7, dtype=torch.float64) + 1, g.intrinsics_from_fov(60, 5, 7).double()
    points = g.backproject(depth, intrinsics)
    torch.testing.assert_close(points[:, 2:], depth)
    pixels = g.pixel_grid(5, 7, dtype=torch.float64).expand(2, -1, -1, -1)
    torch.testing.assert_close(g.project(points, intrinsics), pixels)
    batched = g.backproject(depth, torch.stack([intrinsics, intrinsics]))
    torch.testing.assert_close(batched, points)


def test_axes_are_x_right_y_down_z_forward() -> None:
    """A camera that moves right sees the world move left; one that moves forward sees it spread."""
    intrinsics, depth = g.intrinsics_from_fov(90, 9, 9).double(), torch.full((1, 1, 9, 9), 2., dtype=torch.float64)
    here, right, ahead = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    right[0, 3], ahead[2, 3] = 0.5, 0.5
    flow = g.flow_from_depth(depth, intrinsics, g.second_from_first(here, right))
    torch.testing.assert_close(flow[:, 0], torch.full((1, 9, 9), -4.5 * 0.5 / 2, dtype=torch.float64))
    torch.testing.assert_close(flow[:, 1], torch.zeros(1, 9, 9, dtype=torch.float64))
    flow = g.flow_from_depth(depth, intrinsics, g.second_from_first(here, ahead))[0]
    assert (flow[0, :, 5:] > 0).all() and (flow[0, :, :4] < 0).all()
    assert (flow[1, 5:] > 0).all() and (flow[1, :4] < 0).all()


@pytest.mark.parametrize("case", ["lateral", "forward", "rot_trans", "moving"])
def test_flow_of_static_pixels_equals_the_reference(reference: Path, case: str) -> None:
    arrays = np.load(reference / f"reference/flow/depth_{case}.npz")
    pose = g.second_from_first(torch.from_numpy(arrays["T1"]), torch.from_numpy(arrays["T2"]))
    assert np.abs(pose[:3, :3].numpy() - arrays["R"]).max() < 1e-10
    assert np.abs(pose[:3, 3].numpy() - arrays["t"]).max() < 1e-10
    flow = g.flow_from_depth(torch.from_numpy(arrays["depth"])[None, None], torch.from_numpy(arrays["K"]), pose)
    difference = np.abs(flow[0].permute(1, 2, 0).numpy() - arrays["flow"]).max(-1)
    assert difference[~arrays["moving"]].max() < 1e-10
    if arrays["moving"].any():
        assert difference[arrays["moving"]].min() > 1


@pytest.mark.parametrize("case", ["lateral", "forward", "rot_trans", "moving"])
def test_ned_lines_equal_the_reference_poses(reference: Path, case: str) -> None:
    arrays = np.load(reference / f"reference/flow/depth_{case}.npz")
    for line, expected in zip(arrays["tartan_lines"], (arrays["T1"], arrays["T2"])):
        numbers = torch.tensor([float(word) for word in str(line).split()], dtype=torch.float64)
        ned = torch.eye(4, dtype=torch.float64)
        ned[:3, :3], ned[:3, 3] = g.quaternion_to_matrix(numbers[3:]), numbers[:3]
        assert np.abs(g.pose_from_ned(ned).numpy() - expected).max() < 1e-10
        back = g.pose_to_ned(torch.from_numpy(expected))
        torch.testing.assert_close(torch.cat([back[:3, 3], g.matrix_to_quaternion(back[:3, :3])]), numbers,
                                   atol=1e-10, rtol=0)


def test_ned_forward_becomes_z_and_down_becomes_y() -> None:
    step = torch.eye(4)
    step[:3, 3] = torch.tensor([1., 2, 3])  # north, east, down
    assert g.pose_from_ned(step)[:3, 3].tolist() == [2, 3, 1]
    pose = random_pose(4)
    torch.testing.assert_close(g.pose_to_ned(g.pose_from_ned(pose)), pose)


def test_inverse_and_relative_pose() -> None:
    first, second = random_pose(5), random_pose(5)
    torch.testing.assert_close(g.invert_pose(first) @ first, torch.eye(4, dtype=torch.float64).expand(5, 4, 4))
    points = torch.randn(5, 3, 2, 3, dtype=torch.float64)
    through_world = g.transform(g.invert_pose(second), g.transform(first, points))
    torch.testing.assert_close(g.transform(g.second_from_first(first, second), points), through_world)


def test_axis_angle_turns_right_handed() -> None:
    quarter = g.axis_angle_to_matrix(torch.tensor([0, 0, math.pi / 2], dtype=torch.float64))
    expected = torch.tensor([[0., -1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(quarter, expected)
    assert torch.equal(g.axis_angle_to_matrix(torch.zeros(2, 3)), torch.eye(3).expand(2, 3, 3))


def test_quaternions_and_matrices_round_trip() -> None:
    quaternion = torch.nn.functional.normalize(torch.randn(50, 4, dtype=torch.float64), dim=-1)
    quaternion = torch.where(quaternion[:, 3:] < 0, -quaternion, quaternion)
    matrix = g.quaternion_to_matrix(quaternion)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(3, dtype=torch.float64).expand(50, 3, 3))
    torch.testing.assert_close(g.matrix_to_quaternion(matrix), quaternion)
    torch.testing.assert_close(g.quaternion_to_matrix(3 * quaternion), matrix)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quaternion_of_a_half_turn(axis: int) -> None:
    """The angle at which the formula by the trace divides by zero."""
    turn = torch.zeros(3, dtype=torch.float64)
    turn[axis] = math.pi
    matrix = g.axis_angle_to_matrix(turn)
    quaternion = g.matrix_to_quaternion(matrix)
    assert quaternion[axis].abs().item() == pytest.approx(1)
    torch.testing.assert_close(g.quaternion_to_matrix(quaternion), matrix)


def test_quaternion_has_its_scalar_last() -> None:
    half_angle = math.pi / 8
    matrix = g.quaternion_to_matrix(torch.tensor([0, 0, math.sin(half_angle), math.cos(half_angle)]))
    torch.testing.assert_close(matrix, g.axis_angle_to_matrix(torch.tensor([0, 0, math.pi / 4])))


def test_flow_known_in_part_is_resized_from_what_is_known():
    flow, known = torch.full((1, 2, 8, 12), 3.0), torch.ones(1, 8, 12, dtype=torch.bool)
    flow[:, :, :, 6:], known[:, :, 6:] = torch.nan, False
    known[:, 0, 0], flow[:, :, 0, 0] = False, 1e9
    small, where = g.resize_known_flow(flow, known, (4, 6))
    assert where[0, 1:, :3].all() and not where[0, :, 4:].any()
    assert torch.allclose(small.permute(0, 2, 3, 1)[where], torch.tensor(1.5))
    same, where = g.resize_known_flow(flow, known, (8, 12))
    assert torch.equal(where, known) and torch.equal(same.permute(0, 2, 3, 1)[where], torch.full((46 + 1, 2), 3.0))


def test_intrinsics_follow_a_crop():
    camera, point = g.intrinsics_from_fov(70, 40, 60), torch.tensor([0.3, -0.2, 2.0]).reshape(1, 3, 1, 1)
    window = g.crop_intrinsics(camera, top=7, left=11)
    difference = g.project(point, camera) - g.project(point, window)
    assert difference.flatten().tolist() == pytest.approx([11, 7], abs=1e-5)


@pytest.mark.parametrize(("size", "other", "alike"), [((128, 224), (480, 854), True), ((480, 854), (1080, 1920), True),
                                                      ((6, 8), (6, 9), False), ((480, 640), (480, 854), False)])
def test_sizes_of_one_aspect(size, other, alike):
    assert g.same_aspect(size, other) == g.same_aspect(other, size) == alike
