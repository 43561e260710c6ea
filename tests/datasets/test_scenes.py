"""Scenes: the truths that make them a stand-in for a simulator."""

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader

from diffslic import datasets, geometry
from diffslic.datasets import scenes

SIZE = (96, 128)


def scene(preset, seed=0, **options):
    return scenes.Scene(preset, n_frames=6, size=SIZE, seed=seed, **options)


@pytest.mark.parametrize("preset", scenes.PRESETS)
@pytest.mark.parametrize("seed", [0, 7])
def test_the_next_frame_warped_by_the_flow_is_this_frame(preset, seed):
    drawn = scene(preset, seed)
    here, there = drawn.view([2]), drawn.view([3])
    motion = drawn.motion([2], here, 1)
    error = (geometry.warp(there.image, motion.flow, padding="border") - here.image).abs().mean(1)
    unmoved = (there.image - here.image).abs().mean(1)
    seen = ~motion.occlusion
    # What is left is the filter of the textures, which differs a little between two distances.
    assert error[seen].mean() < 0.02
    moves = seen & (motion.flow.norm(dim=1) > 0.5)
    assert error[moves].mean() < 0.5 * unmoved[moves].mean()


@pytest.mark.parametrize("preset", scenes.PRESETS)
@pytest.mark.parametrize("step", [1, -1])
def test_depth_and_poses_reproduce_the_flow_of_the_static_world(preset, step):
    drawn = scene(preset, 3)
    view = drawn.view([2])
    motion = drawn.motion([2], view, step)
    poses = drawn.world.camera_to_world
    relative = geometry.second_from_first(poses[2], poses[2 + step])
    expected = geometry.flow_from_depth(view.depth.double(), drawn.world.intrinsics.double(), relative)
    static = view.labels == 0
    assert static.any()
    assert (expected - motion.flow).abs().amax(1)[static].max() < 1e-3


def test_the_flow_of_a_body_follows_from_its_motion():
    drawn = scene("crowd", 1)
    world, view = drawn.world, drawn.view([2])
    motion = drawn.motion([2], view, 1)
    checked = 0
    for number in range(len(world.shape)):
        seen = view.hits.index == number
        if world.body[number] == 0 or not seen.any():
            continue
        # The camera's motion as the body sees it: the pose of one camera in the other, by way of the body.
        here, there = (geometry.invert_pose(world.camera_to_world[t]) @ world.object_to_world[number, t]
                       for t in (2, 3))
        expected = geometry.flow_from_depth(view.depth.double(), world.intrinsics.double(),
                                            there @ geometry.invert_pose(here))
        assert (expected - motion.flow).abs().amax(1)[seen].max() < 1e-3
        checked += 1
    assert checked >= 3


def test_forward_and_backward_flow_undo_each_other_where_nothing_is_hidden():
    drawn = scene("street", 5)
    here, there = drawn.view([2]), drawn.view([3])
    forward, backward = drawn.motion([2], here, 1), drawn.motion([3], there, -1)
    back = geometry.warp(backward.flow, forward.flow, padding="border")
    seen = ~forward.occlusion
    # Bilinear reading mixes two surfaces at their common edge, so a median says more than a maximum.
    assert (forward.flow + back).norm(dim=1)[seen].median() < 0.02


def test_what_a_nearer_body_covers_in_the_next_frame_is_occluded():
    drawn = scene("crowd", 2)
    view = drawn.view([2])
    motion = drawn.motion([2], view, 1)
    landing = (geometry.pixel_grid(*SIZE) + motion.flow[0]).round().long()
    x, y = landing
    inside = geometry.lands_inside(motion.flow)[0]
    assert motion.occlusion[0][~inside].all()
    # Independently of the ray caster's own test: the depth there, read from the other frame's picture.
    other = drawn.view([3]).depth[0, 0]
    moved = geometry.transform(geometry.second_from_first(*drawn.world.camera_to_world[2:4]).float(),
                               geometry.backproject(view.depth, drawn.world.intrinsics))[0, 2]
    static = (view.labels[0] == 0) & inside
    hidden = other[y.clamp(0, SIZE[0] - 1), x.clamp(0, SIZE[1] - 1)] < 0.7 * moved
    agree = (hidden == motion.occlusion[0])[static]
    assert agree.float().mean() > 0.97
    assert motion.occlusion[0][static].any()


def test_a_scene_is_determined_by_its_seed():
    options = {"noise": 0.02, "blur": 0.7, "lighting": 0.2}
    first, again, other = (scene("lab", seed, **options).view([1]) for seed in (4, 4, 5))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.depth, again.depth)
    assert not torch.equal(first.image, other.image)


def test_a_batch_of_frames_is_the_frames_one_by_one():
    drawn = scene("crowd", 6)
    together = drawn.view([1, 2, 4])
    moved = drawn.motion([1, 2, 4], together, 1)
    for place, t in enumerate([1, 2, 4]):
        alone = drawn.view([t])
        assert torch.equal(together.labels[place], alone.labels[0])
        assert (together.image[place] - alone.image[0]).abs().max() < 1e-4
        assert (moved.flow[place] - drawn.motion([t], alone, 1).flow[0]).abs().max() < 1e-3


@pytest.mark.parametrize(("preset", "low", "high"),
                         [("lab", 1, 2), ("street", 1, 3), ("crowd", 3, 5), ("static", 0, 0), ("plaza", 3, 5)])
def test_the_number_of_bodies_is_the_presets(preset, low, high):
    counts = {scene(preset, seed).n_bodies for seed in range(8)}
    assert min(counts) == low
    assert max(counts) == high


def test_bodies_of_a_plaza_stay_in_view_of_a_long_clip():
    frames = torch.arange(0, 200, 10)
    shares = []
    for seed in range(4):
        drawn = scenes.Scene("plaza", n_frames=200, size=(36, 64), seed=seed)
        labels = drawn.view(frames).labels
        shares += [(labels == body).flatten(1).any(1).float().mean() for body in range(1, drawn.n_bodies + 1)]
    assert sum(share > 0.5 for share in shares) >= 0.8 * len(shares)


def test_some_bodies_stop_and_some_leave_and_come_back():
    stops = returns = 0
    for seed in range(8):
        drawn = scenes.Scene("crowd", n_frames=40, size=(24, 32), seed=seed)
        frames = torch.arange(40)
        views = drawn.view(frames)
        for number in range(len(drawn.world.shape)):
            if drawn.world.body[number]:
                steps = drawn.world.object_to_world[number, :, :3, 3].diff(dim=0).norm(dim=1)
                stops += bool(steps[0] > 0.01 and steps[-1] < 0.01)
        for body in range(1, drawn.n_bodies + 1):
            seen = (views.labels == body).flatten(1).any(1)
            gone = torch.nonzero(~seen).flatten()
            returns += any(bool(seen[:t].any() and seen[t:].any()) for t in gone.tolist())
    assert stops >= 2
    assert returns >= 2


def test_colours_are_antialiased_and_in_range():
    view = scene("street", 2).view([0])
    assert view.image.min() >= 0
    assert view.image.max() <= 1
    assert view.depth.isfinite().all()


def test_options_change_what_they_name():
    plain = scene("lab", 8).view([1]).image
    noisy = scene("lab", 8, noise=0.05).view([1]).image
    blurred = scene("lab", 8, blur=1.5).view([1]).image
    lit = scene("lab", 8, lighting=0.5).view([1]).image
    assert 0.02 < (noisy - plain).std() < 0.06
    assert blurred.diff(dim=-1).abs().mean() < 0.8 * plain.diff(dim=-1).abs().mean()
    assert (lit.mean() - plain.mean()).abs() > 1e-3


def test_clips_give_every_truth_lazily():
    clip, other = datasets.open("scenes", preset="lab+crowd", n_clips=2, n_frames=3, size=SIZE)
    assert other.name.startswith("crowd")
    assert clip.frame(0).shape == (3, *SIZE)
    assert clip.labels(2).shape == SIZE
    assert clip.segments(0).unique().numel() > 5
    assert clip.flow(1).shape == clip.backward_flow(1).shape == (2, *SIZE)
    assert clip.occlusion(0).dtype == clip.backward_occlusion(2).dtype == torch.bool
    assert clip.depth(0).shape == (1, *SIZE)
    assert clip.camera_to_world(1).shape == (4, 4)
    assert clip.intrinsics.shape == (3, 3)
    with pytest.raises(IndexError, match=r"flow\(2\)"):
        clip.flow(2)


@pytest.mark.parametrize(("options", "message"), [
    ({"preset": "beach"}, "unknown preset 'beach': expected one of lab, street, crowd, static, plaza"),
    ({"n_frames": 1}, "n_frames >= 2"), ({"size": (0, 4)}, "positive size"), ({"seed": -1}, "seed >= 0"),
    ({"noise": -0.1}, "must be >= 0"), ({"n_clips": 0}, "n_clips must be at least 1"),
])
def test_bad_options_are_named_before_anything_is_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        datasets.open("scenes", **options)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_workers_draw_on_the_cpu(device):
    """A GPU is closed to a forked process whose parent uses it; here it need not even be there."""
    here, there = (datasets.open("scenes", n_clips=1, n_frames=3, size=(24, 32), device=where)[0]
                   for where in ("cpu", device))
    kinds = ("frame", "flow", "labels", "camera_to_world")
    expected = [getattr(here, kind)(1) for kind in kinds]
    if device == "cpu" or torch.cuda.is_available():
        there.frame(1)  # what this process has drawn already is not what a worker may use

    class Read(torch.utils.data.Dataset):
        def __len__(self):
            return len(kinds)

        def __getitem__(self, number):
            return getattr(there, kinds[number])(1)

    loader = DataLoader(Read(), batch_size=None, num_workers=1, multiprocessing_context="fork")
    for a, b in zip(expected, loader, strict=True):
        assert torch.equal(a, b)
