"""Pictures whose pixels are known, and the flow colours of the reference."""

import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

matplotlib.use("Agg")

from diffslic import metrics, viz  # noqa: E402
from diffslic.datasets import io as dataset_io  # noqa: E402

GREY = torch.full((3, 4, 6), 0.5)


def test_picture_takes_what_datasets_give() -> None:
    image = torch.rand(3, 4, 5)
    shown = viz.picture(image)
    assert shown.shape == (4, 5, 3) and shown.dtype == np.uint8
    assert np.abs(shown / 255 - image.permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(viz.picture(shown), shown)
    assert np.array_equal(viz.picture(image[:1]), viz.picture(image[0]))
    assert viz.picture(torch.tensor([[[-1., 2, float("nan")]]]))[0, :, 0].tolist() == [0, 255, 0]


@pytest.mark.parametrize("image", [torch.zeros(2, 4, 5), torch.zeros(3, 4, 5, dtype=torch.int64),
                                   np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5), np.uint8)])
def test_what_is_no_image_is_refused(image: viz.Arraylike) -> None:
    with pytest.raises(ValueError, match="an image must be"):
        viz.picture(image)


# ---------------------------------------------------------------- flow


def test_flow_colours_equal_the_reference(reference: Path) -> None:
    arrays = np.load(reference / "reference/flow/flowio_color.npz")
    assert np.array_equal(viz.color_wheel(), arrays["wheel"])
    for name in ("disc", "field"):
        colors = viz.flow_to_color(arrays[f"{name}_flow"].transpose(2, 0, 1), float(arrays["max_radius"]))
        level = arrays[f"{name}_float255"]
        sure = np.abs(level - np.round(level)) > 1e-4
        difference = np.abs(colors.astype(int) - arrays[f"{name}_rgb"])
        assert difference[sure].max() == 0 and difference.max() <= 1
    automatic = viz.flow_to_color(torch.from_numpy(arrays["field_flow"]).permute(2, 0, 1))
    assert np.abs(automatic.astype(int) - arrays["field_rgb_flow_vis_auto"]).max() <= 1


def test_directions_have_their_colours() -> None:
    flow = np.zeros((2, 1, 5))
    flow[:, 0] = [[1, 0, -1, 0, 0], [0, 1, 0, -1, 0]]
    right, down, left, up, still = viz.flow_to_color(flow, 1)[0].astype(int)
    assert right[0] == 255 and right[1:].max() < 60      # red
    assert down[0] > 200 and down[1] > 200 and down[2] == 0  # yellow
    assert left[2] == 255 and left[0] == 0               # blue to cyan
    assert up[0] > 60 and up[2] == 255                   # violet
    assert still.tolist() == [255, 255, 255]


def test_a_fixed_radius_keeps_colours_over_a_video_and_darkens_what_exceeds_it() -> None:
    flow = torch.zeros(2, 1, 3)
    flow[0, 0] = torch.tensor([1., 2, 8])
    first, second, beyond = viz.flow_to_color(flow, 4)[0]
    assert np.array_equal(viz.flow_to_color(flow[..., :1], 4)[0, 0], first)
    assert not np.array_equal(viz.flow_to_color(flow[..., :1])[0, 0], first)
    assert second[1] < first[1]
    assert beyond[0] == int(0.75 * 255)


def test_unknown_flow_is_black_and_does_not_set_the_scale() -> None:
    flow = torch.ones(2, 2, 3)
    expected = viz.flow_to_color(flow)
    flow[0, 0, 0], flow[1, 0, 1], flow[0, 1, 2] = float("nan"), float("inf"), 1.7e9
    colors = viz.flow_to_color(flow)
    unknown = np.array([[True, True, False], [False, False, True]])
    assert (colors[unknown] == 0).all()
    assert np.array_equal(colors[~unknown], expected[~unknown])


def test_flow_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"flow must be \(2, H, W\)"):
        viz.flow_to_color(np.zeros((4, 5, 2)))
    for radius in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="max_radius must be"):
            viz.flow_to_color(np.zeros((2, 4, 5)), radius)


def test_the_wheel_is_drawn_in_pixels_of_flow() -> None:
    ax = matplotlib.figure.Figure().subplots()
    assert viz.flow_wheel(ax, max_radius=6) is ax
    shown = ax.images[0]
    assert shown.get_extent() == [-6, 6, 6, -6]
    colors = np.asarray(shown.get_array())
    assert (colors[0, 0] == 255).all()
    right = colors[75, 147].astype(int)
    assert right[0] == 255 and right[1] < 70


def test_arrows_stand_on_the_grid_in_true_length() -> None:
    flow = torch.zeros(2, 32, 48)
    flow[0], flow[1] = 3, -2
    flow[0, 8, 8] = float("nan")
    ax = matplotlib.figure.Figure().subplots()
    assert viz.flow_arrows(ax, flow, step=16) is ax
    arrows = ax.collections[0]
    assert arrows.XY.tolist() == [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]
    assert arrows.U[1:].tolist() == [3] * 5 and arrows.V[1:].tolist() == [-2] * 5
    assert arrows.Umask.tolist() == [True] + [False] * 5
    assert arrows.scale == 1 and arrows.angles == "xy" and arrows.scale_units == "xy"


# ---------------------------------------------------------------- labels


def test_objects_have_colours_that_differ_in_lightness_or_hue() -> None:
    colors = viz.object_colors()
    assert colors.shape == (256, 3) and colors[:3].tolist() == [[0, 0, 0], [213, 94, 0], [86, 180, 233]]
    apart = np.linalg.norm(colors[:22, None].astype(float) - colors[None, :22], axis=-1) + 999 * np.eye(22)
    assert apart.min() > 30                                                # twenty objects and the ground
    # To somebody without the cones for red or green, of whom blue and a mix of red and green are left.
    dull = np.stack([colors[:8, :2].mean(1), colors[:8, 2]], axis=-1).astype(float)
    assert (np.linalg.norm(dull[:, None] - dull[None], axis=-1) + 999 * np.eye(8)).min() > 20


def test_overlay_mixes_inside_keeps_the_background_and_draws_the_contour() -> None:
    labels = torch.zeros(5, 7, dtype=torch.int64)
    labels[1:4, 1:5] = 1
    grey = torch.full((3, 5, 7), 0.5)
    mixed = viz.overlay(grey, labels, opacity=0.25)
    inner = np.zeros((5, 7), bool)
    inner[2, 2:4] = True
    assert (mixed[labels.numpy() == 0] == 128).all()
    assert (mixed[inner] == [149, 120, 96]).all()
    assert (mixed[(labels.numpy() == 1) & ~inner] == [213, 94, 0]).all()


def test_touching_objects_have_a_contour_each_and_the_border_of_the_frame_none() -> None:
    labels = np.ones((4, 6), np.uint8)
    labels[:, 3:] = 2
    mixed = viz.overlay(GREY, labels, opacity=0)
    assert (mixed[:, 2] == [213, 94, 0]).all() and (mixed[:, 3] == [86, 180, 233]).all()
    assert (mixed[:, [0, 1, 4, 5]] == 128).all()


def test_overlay_takes_masks_and_many_ids() -> None:
    mask = torch.zeros(4, 6, dtype=torch.bool)
    mask[1:3, 1:3] = True
    assert np.array_equal(viz.overlay(GREY, mask), viz.overlay(GREY, mask.long()))
    assert np.array_equal(viz.overlay(GREY, mask * 257), viz.overlay(GREY, mask.long()))


def test_boundaries_are_one_pixel_wide() -> None:
    labels = np.zeros((4, 6), np.int64)
    labels[:, 3:] = 7
    drawn = viz.boundaries(GREY, labels, color=(1, 2, 3))
    assert (drawn[:, 2] == [1, 2, 3]).all()
    assert (np.delete(drawn, 2, axis=1) == 128).all()
    drawn = viz.boundaries(torch.full((3, 6, 4), 0.5), labels.T)
    assert (drawn[2] == [255, 255, 0]).all() and (np.delete(drawn, 2, axis=0) == 128).all()


def test_mean_color_is_the_mean_of_each_region() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    labels = np.arange(30).reshape(5, 6) % 4 * 1000
    drawn = viz.mean_color(image, labels)
    for label in np.unique(labels):
        expected = (image[labels == label].mean(0) + 0.5).astype(np.uint8)
        assert (drawn[labels == label] == expected).all()


@pytest.mark.parametrize("draw", [viz.overlay, viz.boundaries, viz.mean_color])
def test_labels_of_another_size_or_kind_are_refused(draw: Callable) -> None:
    with pytest.raises(ValueError, match=r"labels must be integer \(4, 6\)"):
        draw(GREY, np.zeros((4, 5), np.int64))
    with pytest.raises(ValueError, match="got .* float32"):
        draw(GREY, torch.zeros(4, 6))
    with pytest.raises(ValueError, match="an image must be"):
        draw(torch.zeros(4, 6, 3), np.zeros((4, 6), np.int64))


def test_opacity_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"opacity must lie in \[0, 1\], got 1.5"):
        viz.overlay(GREY, np.zeros((4, 6), np.int64), opacity=1.5)


# ---------------------------------------------------------------- figures


def test_grid_shows_each_picture_with_its_title() -> None:
    images = [torch.rand(3, 20, 30) for _ in range(5)]
    figure = viz.grid(images, titles=list("abcde"), columns=3)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == list("abcde")
    assert len(figure.axes) == 6 and not any(ax.axison for ax in figure.axes)
    assert all(np.array_equal(ax.images[0].get_array(), viz.picture(image)) for ax, image in zip(shown, images))
    file = io.BytesIO()
    figure.savefig(file)
    assert len(file.getvalue()) > 1000


def test_grid_leaves_no_open_figure_and_follows_the_aspect() -> None:
    before = matplotlib.pyplot.get_fignums()
    wide = viz.grid([torch.rand(3, 10, 40)], width=8)
    tall = viz.grid([torch.rand(3, 40, 10)], width=8)
    assert matplotlib.pyplot.get_fignums() == before
    assert wide.get_size_inches()[1] < 3 < 30 < tall.get_size_inches()[1]


def test_grid_refuses_no_image_and_too_few_titles() -> None:
    with pytest.raises(ValueError, match="got 0 and 0"):
        viz.grid([])
    with pytest.raises(ValueError, match="got 2 and 1"):
        viz.grid([GREY, GREY], ["one"])


def test_what_viz_and_datasets_may_not_share_is_alike():
    """The import rules keep them apart: when flow counts as unknown."""
    assert viz.UNKNOWN_FLOW == dataset_io.UNKNOWN_FLOW
    flow = np.full((2, 1, 2), 1e9, dtype=np.float32)
    flow[:, 0, 1] = 1.001e9
    assert (viz.flow_to_color(flow, 1.0)[0, 0] > 0).any() and (viz.flow_to_color(flow, 1.0)[0, 1] == 0).all()
    assert np.isfinite(metrics.flow(flow, flow)["epe"])


def test_dots_are_squares_inside_the_picture():
    shown = viz.dots(np.zeros((5, 7, 3), np.uint8), np.array([[2.2, 3.4], [-1, 0], [np.nan, 1], [6, 4]]), (9, 8, 7), 3)
    assert (shown[2:5, 1:4] == (9, 8, 7)).all() and (shown[3:, 5:] == (9, 8, 7)).all()
    assert (shown.any(-1)).sum() == 9 + 4


def test_depth_has_even_colours_in_inverse_depth():
    depth = np.array([[1.0, 2.0, 4.0, np.nan, 0.0, np.inf]])
    shown = viz.depth_to_color(depth, 1, 4)
    assert shown.shape == (1, 6, 3) and (shown[0, 3:] == 0).all() and shown[0, 0, 0] > 250  # near is yellow
    assert np.array_equal(viz.depth_to_color(1 / np.array([[1, 0.625, 0.25]]), 1, 4)[0, 1],
                          viz.depth_to_color(torch.tensor([[[1.6, 1.6]]]), 1, 4)[0, 0])  # the middle of 1/1 and 1/4
    assert (viz.depth_to_color(np.full((2, 2), np.nan)) == 0).all()
    assert viz.depth_to_color(np.full((2, 2), 3.0)).any()
    with pytest.raises(ValueError, match=r"\(H, W\) or \(1, H, W\)"):
        viz.depth_to_color(np.zeros((2, 3, 4)))
    for ends in ((0, 4), (-1, 4), (4, 1)):
        with pytest.raises(ValueError, match="0 < nearest <= farthest"):
            viz.depth_to_color(depth, *ends)


def test_timelines_have_a_row_of_colours_for_each_object():
    labels = np.array([[7, -1], [3, 0], [3, 4]])
    switches = np.array([[False, False], [True, False], [False, False]])
    figure = viz.timelines({"a": (labels, switches), "b": (labels, switches)}, [1, 5])
    first = figure.axes[0]
    shown, palette = first.images[0].get_array(), viz.object_colors()
    assert shown.shape == (2, 3, 3)
    assert (shown[0] == palette[[7, 3, 3]]).all() and (shown[1, 0] == 255).all() and (shown[1, 1] == 200).all()
    assert [line.get_xydata().tolist() for line in first.lines] == [[[1, 0]]]
    assert [label.get_text() for label in first.get_yticklabels()] == ["1", "5"]
    assert all(place == int(place) for place in first.get_xticks())
    for wrong in ({}, {"a": (labels, switches), "b": (labels[:, :1], switches[:, :1])}, {"a": (labels[:, :0],) * 2}):
        with pytest.raises(ValueError, match="a panel, and the same objects"):
            viz.timelines(wrong)
    for wrong in ((labels, switches[:2], [1, 5]), (labels, switches, [1])):
        with pytest.raises(ValueError, match="must be"):
            viz.timelines({"a": wrong[:2]}, wrong[2])


def test_a_layer_in_other_colours():
    image, alpha = torch.zeros(3, 4, 6), torch.zeros(4, 6)
    image[0], alpha[:, 3:], alpha[:, 2] = 1, 1, 0.5
    turned = viz.recolor(image, alpha, 1 / 3)
    assert turned[0].tolist() == [[255, 0, 0]] * 2 + [[128, 128, 0]] + [[0, 255, 0]] * 3
    assert np.array_equal(viz.recolor(image, alpha, 1.0), viz.picture(image))
    assert viz.recolor(image, alpha, 0, 0)[0, -1].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match=r"alpha must be of the image's \(4, 6\), got \(4, 5\)"):
        viz.recolor(image, alpha[:, 1:], 0.5)


def test_arrows_are_drawn_from_the_grid_along_the_flow():
    flow = np.zeros((2, 32, 32), np.float32)
    flow[0], flow[:, :, 16:] = 6, np.nan
    drawn = viz.arrows(np.full((3, 32, 32), 0.5, np.float32), flow)
    assert (drawn[8, 8:15] == 255).all() and (drawn[24, 8:15] == 255).all()  # the shafts, to the tips
    assert (drawn[7, 8:11] == 0).all() and (drawn[:, 18:] == 128).all()      # their dark rim; unknown flow has none
    assert (drawn[8, 2:7] == 128).all()
    head = np.argwhere((drawn == 255).all(-1) & (np.arange(32)[:, None] < 16))
    assert set(head[:, 0]) == {7, 8, 9} and head[:, 1].max() == 14           # barbs on both sides, none beyond the tip
    still = viz.arrows(np.full((3, 32, 32), 0.5, np.float32), np.zeros((2, 32, 32)))
    assert (still[8, 8] == 255).all() and (still == 128).all(-1).mean() > 0.95


def test_hatched_is_striped_where_the_mask_is():
    mask = np.arange(24).reshape(4, 6) % 6 >= 3
    drawn = viz.hatched(np.full((3, 4, 6), 0.5, np.float32), mask)
    assert (drawn[:, :3] == 128).all() and set(np.unique(drawn[:, 3:])) == {0, 255}
    with pytest.raises(ValueError):
        viz.hatched(np.full((3, 4, 6), 0.5, np.float32), mask[:2])


def test_the_disc_of_flow_colours_is_the_legend_of_the_wheel():
    disc = viz.flow_disc(41)
    assert (disc[0, 0] == 255).all() and disc[20, 20].min() > 240
    assert np.abs(disc[20, 40].astype(int) - viz.flow_to_color(np.array([[[1.0]], [[0.0]]]), 1)[0, 0]).max() < 3
