"""Windows become a clip: layers keep their order whatever order each window has."""

import pytest
import torch

from diffslic.segmentation import Window, link, window_starts
from diffslic.segmentation.linking import carried


def moving_boxes(n_frames: int = 30, stop: range = range(0)) -> tuple[torch.Tensor, torch.Tensor]:
    """Layers (T, 20, 40) and flow (T, 2, 20, 40): two boxes that pass each other on a ground; 1 may stop for a time."""
    layers = torch.zeros(n_frames, 20, 40, dtype=torch.int64)
    flow = torch.zeros(n_frames, 2, 20, 40)
    at = 0
    for t in range(n_frames):
        layers[t, 2:8, at:at + 8] = 1
        layers[t, 12:18, 30 - t:38 - t] = 2
        flow[t, 0] = (layers[t] == 1).float() * (t not in stop) - (layers[t] == 2).float()
        at += t not in stop
    return layers, flow


def shuffled(layers: torch.Tensor, flow: torch.Tensor, n_layers: int = 3) -> list[Window]:
    """Windows of 9 frames whose layers come in any order but in the first."""
    return [Window(start, soft(layers[start:start + 9], n_layers)[torch.randperm(n_layers) if start else
                                                                  torch.arange(n_layers)],
                   flow[start:start + 9]) for start in window_starts(len(layers), 9, 4)]


def soft(layers: torch.Tensor, n_layers: int = 3) -> torch.Tensor:
    """Masks (L, T, H, W) that are nearly sure of their layers."""
    return torch.nn.functional.one_hot(layers, n_layers).movedim(-1, 0).float() * 0.9 + 0.1 / n_layers


@pytest.mark.parametrize(("n_frames", "length", "overlap"), [(1, 9, 4), (9, 9, 4), (10, 9, 4), (30, 9, 4), (30, 9, 0),
                                                             (31, 7, 6), (5, 1, 0)])
def test_windows_cover_a_clip_and_overlap(n_frames, length, overlap):
    starts = window_starts(n_frames, length, overlap)
    covered = [set(range(start, min(n_frames, start + length))) for start in starts]
    assert set().union(*covered) == set(range(n_frames))
    assert all(len(a & b) >= min(overlap, n_frames) for a, b in zip(covered, covered[1:]))


@pytest.mark.parametrize("wrong", [(0, 9, 4), (5, 9, 9), (5, 0, 0), (5, 4, -1)])
def test_windows_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        window_starts(*wrong)


def test_layers_keep_their_order_whatever_order_a_window_has():
    layers, flow = moving_boxes()
    assert torch.equal(torch.stack(list(link(shuffled(layers, flow)))).argmax(1), layers)


def test_a_body_that_stops_for_more_than_an_overlap_keeps_its_layer():
    layers, flow = moving_boxes(stop=range(10, 22))
    layers[10:22][layers[10:22] == 1] = 0  # box 1 stands still, and only the ground is left of it
    assert torch.equal(torch.stack(list(link(shuffled(layers, flow)))).argmax(1), layers)


def test_a_body_that_one_window_gives_to_another_layer_keeps_its_own():
    layers, flow = moving_boxes()
    windows = shuffled(layers, flow)
    mistaken = layers[10:19].clone()
    mistaken[mistaken == 1] = 2                    # both boxes in one layer,
    mistaken[:, 18:] = 1                           # and a strip of ground in the other
    windows[2] = Window(10, soft(mistaken), flow[10:19])
    labels = torch.stack(list(link(windows))).argmax(1)
    assert torch.equal(labels[:10], layers[:10])
    assert torch.equal(labels[19:], layers[19:])


@pytest.mark.parametrize("n_layers", [4, 5])
def test_bodies_that_cross_do_not_swap(n_layers):
    """Nor does one that is hidden for a frame take the name of a layer that nothing is in."""
    for seed in range(10):
        torch.manual_seed(seed)
        layers, flow = torch.zeros(30, 20, 40, dtype=torch.int64), torch.zeros(30, 2, 20, 40)
        for t in range(30):
            layers[t, 7:13, 30 - t:36 - t] = 2
            layers[t, 5:15, t:t + 10] = 1                                       # in front
            flow[t, 0] = (layers[t] == 1).float() - (layers[t] == 2).float()
        assert torch.equal(torch.stack(list(link(shuffled(layers, flow, n_layers)))).argmax(1), layers)


@pytest.mark.parametrize("n_layers", [3, 4])
def test_a_body_that_leaves_and_comes_back_gets_its_name_back(n_layers):
    for seed in range(10):
        torch.manual_seed(seed)
        layers, flow = torch.zeros(45, 20, 40, dtype=torch.int64), torch.zeros(45, 2, 20, 40)
        for t in range(45):
            left = 2 * abs(t - 22) - 30                                         # out of view from frame 12 to 32
            layers[t, 5:15, max(0, left):max(0, left + 10)] = 1
            flow[t, 0] = (layers[t] == 1).float() * (-2 if t < 22 else 2)
        assert torch.equal(torch.stack(list(link(shuffled(layers, flow, n_layers)))).argmax(1), layers)


def test_unknown_flow_is_refused():
    with pytest.raises(ValueError, match="known"):
        list(link([Window(0, torch.rand(2, 4, 5, 6), torch.full((4, 2, 5, 6), torch.nan))]))


def test_windows_of_one_frame_that_do_not_overlap_are_linked_by_the_flow():
    layers, flow = moving_boxes(8)
    windows = [Window(t, soft(layers[t:t + 1])[torch.randperm(3) if t else torch.arange(3)], flow[t:t + 1])
               for t in range(8)]
    assert torch.equal(torch.stack(list(link(windows))).argmax(1), layers)


def test_masks_of_an_overlap_are_the_mean():
    first, second = torch.randn(2, 4, 5, 6).softmax(0), torch.randn(2, 4, 5, 6).softmax(0)
    second[:, :2] = 0.9 * first[:, 2:] + 0.05
    still = torch.zeros(4, 2, 5, 6)
    linked = torch.stack(list(link([Window(0, first, still), Window(2, second, still)])), dim=1)
    assert linked.shape == (2, 6, 5, 6)
    torch.testing.assert_close(linked[:, 2:4], 0.95 * first[:, 2:] + 0.025)
    torch.testing.assert_close(linked[:, 4:], second[:, 2:])


def window(start: int, masks: torch.Tensor) -> Window:
    return Window(start, masks, torch.zeros(masks.shape[1], 2, *masks.shape[2:]))


def test_a_window_that_ends_too_early_is_refused() -> None:
    masks = torch.full((2, 10, 3, 4), 0.5)
    with pytest.raises(ValueError, match="does not go on"):
        list(link([window(0, masks), window(2, masks[:, :4])]))


def test_gaps_and_other_sizes_are_refused():
    masks = torch.randn(2, 4, 5, 6).softmax(0)
    for wrong in (window(5, masks), window(-1, masks), window(2, masks[:1]), window(2, masks[..., 1:])):
        with pytest.raises(ValueError, match="does not go on"):
            list(link([window(0, masks), wrong]))


@pytest.mark.parametrize("shape", [(3, 2, 5, 6), (4, 2, 5, 7), (4, 5, 6)])
def test_flow_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match="flow of a window"):
        list(link([Window(0, torch.rand(2, 4, 5, 6), torch.zeros(shape))]))


@pytest.mark.parametrize("factor", [0.2, 5.0, -1.0, float("nan")])
def test_masks_that_do_not_sum_to_one_are_refused(factor):
    masks = torch.full((2, 4, 5, 6), 0.5)
    with pytest.raises(ValueError, match="sum to one"):
        list(link([window(0, masks), window(2, factor * masks)]))


def test_any_precision_is_linked_and_no_gradient_is_asked_for():
    layers, flow = moving_boxes(12)
    windows = shuffled(layers, flow)
    expected = torch.stack(list(link(windows)), dim=1).argmax(0)
    for change in (lambda w: Window(w.start, w.masks.double(), w.flow.double()),
                   lambda w: Window(w.start, w.masks.clone().requires_grad_(), w.flow)):
        assert (torch.stack(list(link(map(change, windows))), dim=1).argmax(0) == expected).all()


def test_no_windows_are_no_frames():
    assert list(link([])) == []


def test_masks_go_along_the_flow_and_what_nothing_reaches_is_nobodys():
    masks = torch.zeros(2, 4, 6)
    masks[0, :, :2], masks[1, :, 2:] = 1, 1
    flow = torch.zeros(2, 2, 4, 6)
    flow[:, 0, :, 2:] = 1.0                         # the second layer goes to the right, a column a frame
    one, two = carried(masks, flow).unbind(1)
    assert torch.equal(one[0, 0], torch.tensor([1, 1, 0.5, 0, 0, 0])) and torch.equal(one.sum(0), torch.ones(4, 6))
    assert torch.equal(two[0, 0], torch.tensor([1, 1, 0.5, 0.5, 0, 0]))
