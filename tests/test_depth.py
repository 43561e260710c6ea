"""Two-view depth: against reference figures, the truth of scenes, and what has no depth."""

import numpy as np
import pytest
import torch

from diffslic import datasets, depth, geometry, metrics
from diffslic.superpixels import grid_for, soft_slic

CASES = ("lateral", "forward", "rot_trans", "moving")
K = torch.tensor([[320., 0, 319.5], [0, 320, 239.5], [0, 0, 1]])


def case(reference, name):
    with np.load(reference / f"reference/flow/depth_{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = torch.from_numpy(arrays["R"]), torch.from_numpy(arrays["t"])
    return arrays, torch.from_numpy(arrays["K"]), pose


def field(array):
    return torch.from_numpy(array).permute(2, 0, 1)[None]


@pytest.mark.parametrize("name", CASES)
def test_reference_depths(reference, name):
    arrays, intrinsics, pose = case(reference, name)
    noisy, mask = field(arrays["flow_noisy"]), arrays["mask"]
    linear = depth.linear_depth(noisy, intrinsics, pose)[0, 0].numpy()
    assert np.abs(linear / arrays["Z_linear"] - 1)[mask].max() < 1e-9
    found = depth.from_flow(noisy, intrinsics, pose, min_parallax=2.0, only_inside=False)
    assert np.array_equal(found.valid[0, 0].numpy(), mask)
    assert np.abs(found.depth[0, 0].numpy() / arrays["Z_gn"] - 1)[mask].max() < 1e-7
    assert np.abs(found.parallax[0, 0].numpy() - arrays["parallax"]).max() < 1e-9
    seen = arrays["parallax"] > 0.05
    assert np.abs(found.residual[0, 0].numpy() - arrays["epi_residual_noisy"])[seen].max() < 1e-8


@pytest.mark.parametrize("name", CASES)
def test_reference_figures_with_exact_flow(reference, name):
    arrays, intrinsics, pose = case(reference, name)
    exact, still = field(arrays["flow"]), ~arrays["moving"]
    linear = depth.linear_depth(exact, intrinsics, pose)[0, 0].numpy()
    seen = arrays["parallax_exactflow"] > 0.05
    assert np.abs(linear / arrays["depth"] - 1)[still & seen].max() < 1e-9
    found = depth.from_flow(exact, intrinsics, pose, noise=float(arrays["sigma_px"]), min_parallax=0.05,
                            only_inside=False)
    valid = found.valid[0, 0].numpy() & still
    assert np.abs((found.sigma / found.depth)[0, 0].numpy() / arrays["relsigma_full"] - 1)[valid].max() < 1e-7
    assert np.abs(found.residual[0, 0].numpy() - arrays["epi_residual"])[seen].max() < 1e-8
    assert np.abs(found.residual[0, 0].numpy())[valid].max() < 1e-9


@pytest.mark.parametrize("name", CASES)
def test_reference_errors(reference, name):
    arrays, intrinsics, pose = case(reference, name)
    noisy, truth = field(arrays["flow_noisy"]), torch.from_numpy(arrays["depth"])
    names = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3")
    linear = depth.linear_depth(noisy, intrinsics, pose)
    found = depth.from_flow(noisy, intrinsics, pose, min_parallax=2.0, only_inside=False)
    for estimate, expected in ((linear, "metrics_linear"), (found.depth, "metrics_gn")):
        figures = metrics.depth(estimate[0, 0], truth, arrays["mask"])
        assert [figures[name] for name in names] == pytest.approx(list(arrays[expected]), abs=1e-7)


# ---------------------------------------------------------------- scenes


def a_pose(turn, step):
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = geometry.axis_angle_to_matrix(torch.tensor(turn, dtype=torch.float64))
    pose[:3, 3] = torch.tensor(step, dtype=torch.float64)
    return pose


MOTIONS = {"lateral": a_pose([0, 0, 0], [-0.3, 0, 0]), "forward": a_pose([0, 0, 0], [0, 0, -0.4]),
           "rotating": a_pose([0.05, 0.1, -0.1], [-0.3, 0.1, -0.2]),
           "turned far": a_pose([0, 0.6, 0.8], [-0.5, 0.2, 0.1])}


@pytest.fixture(scope="module")
def room():
    """Depth (1, 1, 480, 640) of a room."""
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=2, size=(480, 640), seed=600_003)[0].depth(0)[None]


@pytest.mark.parametrize("name", list(MOTIONS))
def test_there_and_back(room, name):
    flow = geometry.flow_from_depth(room.double(), K.double(), MOTIONS[name])
    found = depth.from_flow(flow.float(), K, MOTIONS[name], min_parallax=2.0)
    assert found.valid.float().mean() > (0.2 if name == "turned far" else 0.6) and found.depth.dtype == torch.float32
    figures = metrics.depth(found.depth, room, found.valid)
    assert figures["abs_rel"] < 1e-4 and found.residual[found.valid].abs().max() < 1e-3
    again = geometry.flow_from_depth(found.depth.double(), K.double(), MOTIONS[name])
    assert (again - flow)[found.valid.expand_as(flow)].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["lateral", "forward", "rotating"])
def test_sigma_tells_the_error(room, name):
    chance = torch.Generator().manual_seed(0)
    flow = geometry.flow_from_depth(room.double(), K.double(), MOTIONS[name]).float()
    noisy = flow + 0.5 * torch.randn(flow.shape, generator=chance)
    found = depth.from_flow(noisy, K, MOTIONS[name], noise=0.5, min_parallax=2.0)
    assert metrics.depth(found.depth, room)["abs_rel"] < {"lateral": 0.048, "forward": 0.066, "rotating": 0.081}[name]
    score = ((found.depth - room) / found.sigma)[found.valid]
    assert 0.9 < score.abs().median() / 0.6745 < 1.1
    each = depth.from_flow(noisy, K, MOTIONS[name], noise=torch.full_like(room, 0.5), min_parallax=2.0)
    assert torch.equal(each.sigma[found.valid], found.sigma[found.valid])


def test_noise_is_estimated_from_what_should_be_zero():
    chance = torch.Generator().manual_seed(0)
    pose, camera = MOTIONS["lateral"], geometry.intrinsics_from_fov(90, 96, 128)
    flow = geometry.flow_from_depth(torch.full((1, 1, 96, 128), 4.0), camera, pose.float())  # the same everywhere
    for sigma in (0.3, 1.0):
        noisy, back = (x + sigma * torch.randn(x.shape, generator=chance) for x in (flow, -flow))
        found = depth.estimate_noise(noisy, back, camera, pose)
        assert found.shape == (1, 1, 96, 128) and 0.85 < (found.square() - 0.01).mean().sqrt() / sigma < 1.1
    for field, motion in ((flow, pose), (torch.zeros_like(flow), torch.eye(4))):  # no line to be beside: the gap alone
        assert torch.allclose(depth.estimate_noise(field, -field, camera, motion), torch.tensor(0.1), atol=1e-4)
    back = -flow
    flow[0, 0, 40, 50] = torch.nan
    found = depth.estimate_noise(flow, back, camera, pose)
    assert found.isnan().sum() == 1 and found.nan_to_num(0.1).max() < 0.11
    assert depth.from_flow(flow, camera, pose, noise=found).valid.any()
    with pytest.raises(ValueError, match="an odd window"):
        depth.estimate_noise(flow, -flow, camera, pose, window=4)


def test_gradients_pass_by_what_has_no_depth(room):
    pose = MOTIONS["rotating"]
    flow = geometry.flow_from_depth(room, K, pose.float())
    infinity = geometry.flow_from_depth(torch.full_like(room, 1e9), K, pose.float())
    flow[..., 100:110, 100:110] = infinity[..., 100:110, 100:110]           # no parallax
    flow[..., 200, 200] = torch.nan
    flow[..., 300, 300] += 1e6
    flow = flow.requires_grad_()
    found = depth.from_flow(flow, K, pose, noise=torch.full_like(room, 0.5))
    assert 0.5 < found.valid.float().mean() < 1 and found.sigma[found.valid].isfinite().all()
    (found.depth[found.valid].sum() + found.sigma[found.valid].sum()).backward()
    assert flow.grad.isfinite().all() and (flow.grad[found.valid.expand_as(flow)] != 0).any()
    # Beside the gradient, a difference: one pixel's depth over one component of its flow.
    y, x = found.valid[0, 0].nonzero()[1000].tolist()
    lone = flow.detach().double().nan_to_num()
    moved = [lone.clone() for _ in range(2)]
    for sign, field in zip((1, -1), moved):
        field[0, 0, y, x] += sign * 1e-4
    ends = [depth.from_flow(field, K, pose).depth[0, 0, y, x] for field in moved]
    lone.requires_grad_()
    depth.from_flow(lone, K, pose).depth[0, 0, y, x].backward()
    assert float(lone.grad[0, 0, y, x]) == pytest.approx(float(ends[0] - ends[1]) / 2e-4, rel=1e-3)


def test_without_parallax_there_is_no_depth(room):
    turn = a_pose([0.02, -0.05, 0.1], [0, 0, 0])
    chance = torch.Generator().manual_seed(0)
    flow = geometry.flow_from_depth(room, K, turn.float())
    for field in (flow, flow + torch.randn(flow.shape, generator=chance)):
        for pose in (turn, a_pose([0.02, -0.05, 0.1], [1e-7, 0, 0])):
            found = depth.from_flow(field, K, pose)
            assert not found.valid.any() and found.depth.isnan().all() and found.sigma.isnan().all()
    ahead = MOTIONS["forward"]
    found = depth.from_flow(geometry.flow_from_depth(room, K, ahead.float()), K, ahead)
    assert found.valid.float().mean() > 0.7 and not found.valid[0, 0, 237:243, 317:323].any()


def test_what_is_not_matched_has_no_depth(room):
    pose = MOTIONS["lateral"]
    flow = geometry.flow_from_depth(room, K, pose.float())
    flow[0, :, 10, 20] = torch.nan
    hidden = torch.zeros(1, 480, 640, dtype=torch.bool)
    hidden[0, 300:310] = True
    found = depth.from_flow(flow, K, pose, hidden=hidden, nearest=3.0, farthest=8.0)
    assert not found.valid[0, 0, 10, 20] and not found.valid[0, 0, 300:310].any() and found.valid.any()
    assert found.depth[found.valid].min() >= 3 and found.depth[found.valid].max() <= 8
    leaving = ~geometry.lands_inside(flow.nan_to_num())[:, None]
    assert leaving.any() and not (found.valid & leaving).any()
    assert (depth.from_flow(flow, K, pose, only_inside=False).valid & leaving).any()


def test_pairs_of_a_batch_are_independent(room):
    names = ["lateral", "rotating"]
    flow = torch.cat([geometry.flow_from_depth(room, K, MOTIONS[name].float()) for name in names])
    together = depth.from_flow(flow, K.expand(2, 3, 3), torch.stack([MOTIONS[name] for name in names]))
    for i, name in enumerate(names):
        alone = depth.from_flow(flow[i:i + 1], K, MOTIONS[name])
        for a, b in zip(alone, together):
            assert torch.equal(a[0].nan_to_num(), b[i].nan_to_num())


CAMERA = torch.tensor([[8., 0, 4], [0, 8, 4], [0, 0, 1]])


def test_a_crop_may_lie_off_the_centre(room):
    pose = MOTIONS["rotating"]
    flow = geometry.flow_from_depth(room, K, pose.float())[..., :100, :120]
    camera = geometry.crop_intrinsics(K, 0, 0)
    with pytest.raises(ValueError, match="off_centre=True"):
        depth.from_flow(flow, camera, pose)
    found = depth.from_flow(flow, camera, pose, off_centre=True, only_inside=False)
    assert metrics.depth(found.depth, room[..., :100, :120])["abs_rel"] < 1e-4


@pytest.mark.parametrize(("change", "reason"), [
    ({"flow": torch.zeros(1, 3, 8, 8)}, r"\(B, 2, H, W\)"), ({"intrinsics": torch.eye(4)}, r"intrinsics \(3, 3\)"),
    ({"pose": torch.eye(4).expand(3, 4, 4)}, r"a pose \(4, 4\)"), ({"intrinsics": K}, "do not fit an image"),
    ({"intrinsics": CAMERA * torch.tensor([-1, 1, 1])}, "do not fit"), ({"pose": 2 * torch.eye(4)}, "not rigid"),
    ({"intrinsics": CAMERA * torch.tensor([[2], [2], [1]])}, "do not fit"),  # those of twice the size
    ({"intrinsics": 2 * CAMERA}, "transposed, scaled or skew"), ({"intrinsics": CAMERA.T}, "transposed"),
    ({"intrinsics": CAMERA + torch.tensor([[0, 0.1, 0], [0, 0, 0], [0, 0, 0]])}, "skew"),
    ({"pose": torch.full((4, 4), torch.nan)}, "not rigid"), ({"pose": torch.eye(4).flip(0)}, "not rigid"),
    ({"pose": torch.diag(torch.tensor([-1.0, 1, 1, 1]))}, "not rigid"),
    ({"pose": torch.diag(torch.tensor([1.0, 1, 1, 2]))}, "not rigid"), ({"noise": 0.0}, "above 0"),
    ({"min_parallax": 0.0}, "above 0"), ({"min_parallax": float("nan")}, "above 0"),
    ({"nearest": 3.0, "farthest": 2.0}, "nearest below farthest"), ({"noise": torch.zeros(1, 1, 8, 8)}, "got 0.0"),
    ({"noise": torch.ones(1, 1, 4, 4)}, r"a number or \(1, 1, 8, 8\)"), ({"noise": float("nan")}, "above 0"),
    ({"hidden": torch.zeros(1, 4, 4, dtype=torch.bool)}, r"hidden must be \(1, 8, 8\)")])
def test_bad_input_is_named(change, reason):
    arguments = {"flow": torch.zeros(1, 2, 8, 8), "intrinsics": CAMERA,
                 "pose": torch.eye(4)} | change
    pair = [arguments.pop(name) for name in ("flow", "intrinsics", "pose")]
    with pytest.raises(ValueError, match=reason):
        depth.from_flow(*pair, **arguments)


def test_the_epipolar_line_passes_where_the_flow_ends(room):
    pose = MOTIONS["rotating"]
    flow = geometry.flow_from_depth(room.double(), K.double(), pose)[0]
    for y, x in ((100, 200), (400, 50)):
        end = torch.tensor([x, y]) + flow[:, y, x]
        places = depth.epipolar_places((y, x), torch.tensor([float(room[0, 0, y, x]), float("inf"), 1e12]), K, pose)
        assert (places[0] - end).norm() < 1e-4 and (places[1] - places[2]).norm() < 1e-6
    ahead = depth.epipolar_places((100, 200), torch.tensor([0.1]), K, a_pose([0, 0, 0], [0, 0, -0.4]))
    assert ahead.isnan().all()  # behind the second camera


# ---------------------------------------------------------------- several pairs, superpixels, moving bodies


def test_fusion_is_better_than_either_pair(room):
    chance = torch.Generator().manual_seed(0)
    pairs = []
    for name in ("lateral", "rotating"):
        flow = geometry.flow_from_depth(room, K, MOTIONS[name].float())
        pairs.append(depth.from_flow(flow + 0.5 * torch.randn(flow.shape, generator=chance), K, MOTIONS[name]))
    fused = depth.fuse(pairs)
    both = pairs[0].valid & pairs[1].valid
    errors = [metrics.depth(each.depth, room, both)["abs_rel"] for each in (*pairs, fused)]
    assert errors[2] < 0.9 * min(errors[:2])
    assert torch.equal(fused.valid, pairs[0].valid | pairs[1].valid)
    assert (fused.sigma / fused.depth)[both].mean() < min((p.sigma / p.depth)[both].mean() for p in pairs)
    # Pairs that contradict each other are less sure; where none has a depth the line may yet be told from the match.
    far = pairs[0]._replace(depth=2 * pairs[0].depth, sigma=2 * pairs[0].sigma)
    apart, together = (depth.fuse([pairs[0], other]) for other in (far, pairs[0]))
    assert ((apart.sigma / apart.depth)[pairs[0].valid] > 2 * (together.sigma / together.depth)[pairs[0].valid]
            ).float().mean() > 0.9
    assert torch.equal(fused.residual.isfinite(), pairs[0].residual.isfinite() | pairs[1].residual.isfinite())
    alone = depth.fuse(pairs[:1])
    for a, b in zip(alone, pairs[0]):
        valid = pairs[0].valid
        assert torch.allclose(a[valid].double(), b[valid].double(), rtol=1e-4)
    for bad in ([], [pairs[0], pairs[1]._replace(depth=torch.ones(1, 1, 3, 3))]):
        with pytest.raises(ValueError, match="one frame"):
            depth.fuse(bad)


@pytest.fixture(scope="module")
def wall():
    """A slanted wall: flow and depth of 96x128 pixels, its camera, and square superpixels."""
    camera = geometry.intrinsics_from_fov(90, 96, 128)
    x, y = geometry.pixel_grid(96, 128)
    truth = (1 / (0.15 + 0.001 * x - 0.0005 * y))[None, None]
    return geometry.flow_from_depth(truth, camera, MOTIONS["lateral"].float()), truth, camera, squares(96, 128)


def squares(height, width, count=24):
    return soft_slic(geometry.pixel_grid(height, width)[None] / 5, grid_for(count, height, width), 3).harden()


@pytest.mark.parametrize("model", ["affine", "constant"])
def test_a_plane_per_superpixel(wall, model):
    flow, truth, camera, superpixels = wall
    chance = torch.Generator().manual_seed(0)
    noisy = (flow + 0.3 * torch.randn(flow.shape, generator=chance)).requires_grad_()
    estimate = depth.from_flow(noisy, camera, MOTIONS["lateral"], noise=0.3)
    smooth = depth.by_superpixels(estimate, superpixels, model)
    plain, fitted = (metrics.depth(each.depth.detach(), truth, estimate.valid)["abs_rel"]
                     for each in (estimate, smooth))
    assert fitted < (0.3 if model == "affine" else 0.9) * plain
    assert smooth.valid.float().mean() > estimate.valid.float().mean()
    assert torch.equal(smooth.depth.isfinite(), smooth.valid) and (smooth.sigma[smooth.valid] > 0).all()
    smooth.depth[smooth.valid].sum().backward()
    assert noisy.grad.isfinite().all() and noisy.grad.abs().sum() > 0


@pytest.mark.parametrize("count", [12, 48])
@pytest.mark.parametrize("correlated", [1, 16])
def test_the_sigma_of_planes_tells_their_error(wall, count, correlated):
    flow, truth, camera, _ = wall
    side, superpixels, scores = int(correlated ** 0.5), squares(96, 128, count), []
    for seed in range(6):
        noise = torch.randn(1, 2, 96 // side, 128 // side, generator=torch.Generator().manual_seed(seed))
        noise = 0.3 * noise.repeat_interleave(side, -1).repeat_interleave(side, -2)  # one error for so many pixels
        smooth = depth.by_superpixels(depth.from_flow(flow + noise, camera, MOTIONS["lateral"], noise=0.3),
                                      superpixels, correlated=correlated)
        scores.append(((smooth.depth - truth) / smooth.sigma)[smooth.valid])
    assert 0.6 < torch.cat(scores).square().mean().sqrt() < 1.4


def test_planes_of_all_kinds_of_superpixels(wall):
    flow, truth, camera, superpixels = wall
    estimate = depth.from_flow(flow, camera, MOTIONS["lateral"])
    each = squares(96, 128, 96 * 128)
    tiny = depth.by_superpixels(estimate, each, "constant")
    assert (tiny.sigma[tiny.valid] > 0).all() and depth.fuse([tiny, estimate]).depth[tiny.valid].isfinite().all()
    # However unsure a superpixel is beside the others, it gets its own depth or none.
    unsure = torch.where(superpixels.labels[:, None] == 7, 1e5, 1.0)
    for model in ("constant", "affine"):
        found = depth.by_superpixels(estimate._replace(sigma=1e-3 * unsure * estimate.depth), superpixels, model)
        assert not (found.valid & (unsure > 1)).any()
        found = depth.by_superpixels(estimate._replace(sigma=1e-7 * unsure * estimate.depth), superpixels, model)
        error = ((found.depth - truth) / truth).abs()
        assert found.valid[unsure > 1].float().mean() > 0.5 and error[found.valid & (unsure > 1)].max() < 0.2


def test_what_the_second_frame_hides():
    clip = datasets.open("scenes", preset="static", n_clips=1, n_frames=8, size=(120, 160), seed=600_011)[0]
    motion = geometry.second_from_first(clip.camera_to_world(0), clip.camera_to_world(1))
    found = depth.hidden_by_depth(clip.depth(0)[None], clip.depth(1)[None], clip.intrinsics, motion)[0]
    truth = clip.occlusion(0)
    assert (found & truth).sum() > 0.8 * truth.sum() and (found & ~truth).float().mean() < 0.005
    unknown = clip.depth(0)[None].clone()
    unknown[..., 50, 60] = torch.nan
    assert depth.hidden_by_depth(unknown, clip.depth(1)[None], clip.intrinsics, motion)[0, 50, 60]
    flow = geometry.flow_from_depth(unknown, clip.intrinsics, motion)
    assert flow[0, :, 50, 60].isnan().all() and flow.isnan().sum() == 2


def test_a_sky_has_no_depth_and_behind_the_camera_there_is_no_flow(room):
    sky = room.clone()
    sky[..., :200, :] = 1e4
    flow = geometry.flow_from_depth(sky, K, MOTIONS["lateral"].float())
    found = depth.from_flow(flow, K, MOTIONS["lateral"])
    assert not found.valid[..., :200, :].any() and found.valid[..., 300:, :].any()
    back = geometry.flow_from_depth(torch.full((1, 1, 480, 640), 0.3), K, MOTIONS["forward"].float())
    assert back.isnan().all() and not depth.from_flow(back, K, MOTIONS["forward"]).valid.any()


def test_a_superpixel_with_few_depths_has_none(wall):
    flow, _, camera, superpixels = wall
    estimate = depth.from_flow(flow, camera, MOTIONS["lateral"])
    half = estimate._replace(valid=estimate.valid & (geometry.pixel_grid(96, 128)[0] < 64))
    assert not depth.by_superpixels(half, superpixels).valid[..., 100:].any()
    none = depth.by_superpixels(estimate._replace(valid=torch.zeros_like(estimate.valid)), superpixels)
    assert not none.valid.any() and none.depth.isnan().all()


def test_bodies_that_move_by_themselves_show(wall):
    flow, _, camera, _ = wall
    superpixels = squares(96, 128, 200)
    chance = torch.Generator().manual_seed(0)
    flow = flow + 0.5 * torch.randn(flow.shape, generator=chance)
    flow[:, 1, 30:60, 40:80] += 3
    pooled = depth.pooled_residual(depth.from_flow(flow, camera, MOTIONS["lateral"]), superpixels)
    assert pooled[0, 0, 40:50, 50:70].min() > 1.5 and pooled[0, 0, 80:, 100:].max() < 0.5
    still = depth.from_flow(torch.zeros_like(flow), camera, torch.eye(4))
    assert depth.pooled_residual(still, superpixels).max() == 0
