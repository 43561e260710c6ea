"""The ray caster: shapes against their equations, windows against trying everything, textures against their texels."""

import math
from unittest import mock

import pytest
import torch

from diffslic import geometry
from diffslic.datasets import raycast, scenes

SIZE = (41, 61)


def world_of(shape, half_size, position, hollow=False, outline=None):
    """One object straight ahead of a camera at the origin, inside nothing."""
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 3] = torch.tensor(position)
    return raycast.World(
        shape=[shape], hollow=[hollow], half_size=torch.tensor([half_size]),
        outline=torch.zeros(1, 2, 4) if outline is None else outline, object_to_world=pose[None, None],
        body=torch.tensor([1]), faces=torch.zeros(1, 3, dtype=torch.int64),
        textures=torch.rand(1, 3, raycast.TEXTURE_SIZE, raycast.TEXTURE_SIZE), texel_density=torch.tensor([50.0]),
        camera_to_world=torch.eye(4, dtype=torch.float64)[None], intrinsics=geometry.intrinsics_from_fov(60.0, *SIZE),
        size=SIZE, light=torch.tensor([0.0, 0.0, -1.0]), gain=torch.ones(1, 3))


def cast(world):
    xy = geometry.pixel_grid(*SIZE)[None]
    return xy, raycast.cast(world, xy, torch.tensor([0]))


def middle(image):
    return image[..., SIZE[0] // 2, SIZE[1] // 2]


@pytest.mark.parametrize(("shape", "hollow", "depth"), [
    (raycast.BOX, False, 4.0), (raycast.BOX, True, 6.0), (raycast.ELLIPSOID, False, 4.0),
    (raycast.ELLIPSOID, True, 6.0), (raycast.CARD, False, 5.0)])
def test_depth_straight_ahead(shape, hollow, depth):
    _, hits = cast(world_of(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 5.0), hollow))
    assert middle(hits.depth).item() == pytest.approx(depth, abs=1e-5)


def test_the_silhouette_of_a_sphere_is_its_tangent_cone():
    world = world_of(raycast.ELLIPSOID, (1.0, 1.0, 1.0), (0.0, 0.0, 5.0))
    xy, hits = cast(world)
    rays = geometry.backproject(torch.ones(1, 1, *SIZE), world.intrinsics)
    angle = torch.atan2(rays[:, :2].norm(dim=1), rays[:, 2])
    assert torch.equal(hits.depth.isfinite(), angle < math.asin(1 / 5))


def test_the_edges_of_a_box_are_where_its_corners_project():
    world = world_of(raycast.BOX, (0.5, 0.25, 0.5), (0.0, 0.0, 4.0))
    seen = cast(world)[1].depth[0].isfinite()
    corner = geometry.project(torch.tensor([0.5, 0.25, 3.5]).reshape(1, 3, 1, 1), world.intrinsics)[0, :, 0, 0]
    rows, columns = seen.any(1).nonzero().flatten(), seen.any(0).nonzero().flatten()
    assert columns[-1].item() == math.floor(corner[0])
    assert rows[-1].item() == math.floor(corner[1])


def test_a_card_has_a_hole_free_outline_within_its_half_size():
    plain = cast(world_of(raycast.CARD, (1.0, 1.0, 0.0), (0.0, 0.0, 4.0)))[1].depth[0].isfinite()
    bumpy = cast(world_of(raycast.CARD, (1.0, 1.0, 0.0), (0.0, 0.0, 4.0),
                          outline=torch.full((1, 2, 4), 0.2)))[1].depth[0].isfinite()
    assert bumpy.sum() < plain.sum()
    assert not (bumpy & ~plain).any()
    assert bumpy[SIZE[0] // 2, SIZE[1] // 2]


def test_what_lies_behind_the_camera_is_not_seen():
    _, hits = cast(world_of(raycast.BOX, (1.0, 1.0, 1.0), (0.0, 0.0, -5.0)))
    assert not hits.depth.isfinite().any()


@pytest.mark.parametrize("preset", scenes.PRESETS)
def test_windows_skip_nothing_that_is_seen(preset):
    scene = scenes.Scene(preset, n_frames=3, size=SIZE, seed=9)
    view = scene.view([0, 1])
    motion = scene.motion([0, 1], view, 1)

    def everything(world, number, camera_from_object, spans):
        return slice(0, spans.row_low.shape[1]), slice(0, spans.column_low.shape[1])

    with mock.patch.object(raycast, "_window", everything):
        plain = scene.view([0, 1])
        plain_motion = scene.motion([0, 1], plain, 1)
    assert torch.equal(view.hits.index, plain.hits.index)
    assert torch.equal(view.depth, plain.depth)
    assert torch.equal(motion.occlusion, plain_motion.occlusion)


def test_a_face_shows_the_texels_of_its_photograph():
    """A card one metre wide at 50 texels a metre, so near that a texel covers many pixels."""
    world = world_of(raycast.CARD, (5.0, 5.0, 0.0), (0.0, 0.0, 0.4))
    xy, hits = cast(world)
    seen = raycast.surface(world, xy, hits, torch.tensor([0]))
    colors = raycast.Painter(world).colors(hits, seen, torch.tensor([0]))
    # At the middle u = v = 0: the corner where the texture meets its mirror image.
    expected = world.textures[0, :, 0, 0]  # lit head-on, so at full strength
    assert torch.allclose(middle(colors.movedim(-1, 1))[0], expected, atol=0.02)


def test_moving_points_back_and_forth_changes_nothing():
    scene = scenes.Scene("crowd", n_frames=3, size=SIZE, seed=3)
    view = scene.view([0])
    xy, frames = geometry.pixel_grid(*SIZE)[None], torch.tensor([0])
    still = raycast.move(scene.world, xy, view.hits, frames, frames)
    assert (geometry.project(still, scene.world.intrinsics) - xy).abs().max() < 1e-3
    assert (still[:, 2:] - view.depth).abs().max() < 1e-3
