"""Windows become a clip: layers keep their order whatever order each window has."""

import pytest
import torch

from diffslic.segmentation import Window, link, window_starts


def moving_boxes(n_frames: int = 30) -> torch.Tensor:
    """Layers (T, 20, 40): two boxes that pass each other on a ground."""
    layers = torch.zeros(n_frames, 20, 40, dtype=torch.int64)
    for t in range(n_frames):
        layers[t, 2:8, t:t + 8] = 1
        layers[t, 12:18, 30 - t:38 - t] = 2
    return layers


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
    layers = moving_boxes()
    windows = []
    for start in window_starts(len(layers), 9, 4):
        order = torch.randperm(3) if start else torch.arange(3)
        windows.append(Window(start, soft(layers[start:start + 9])[order]))
    assert torch.equal(torch.stack(list(link(windows))).argmax(1), layers)


def test_a_body_that_stops_for_more_than_an_overlap_keeps_its_layer():
    layers = moving_boxes()
    layers[8:20][layers[8:20] == 1] = 0  # box 1 stands still, and only the ground is left of it
    layers[20:, :10] = 0
    for t in range(20, 30):  # it moves on from where it was
        layers[t, 2:8, t - 12:t - 4] = 1
    windows = [Window(start, soft(layers[start:start + 9])[torch.randperm(3) if start else torch.arange(3)])
               for start in window_starts(30, 9, 4)]
    assert torch.equal(torch.stack(list(link(windows))).argmax(1), layers)


def test_masks_of_an_overlap_are_the_mean():
    first, second = torch.rand(2, 4, 5, 6), torch.rand(2, 4, 5, 6)
    second[:, :2] = first[:, 2:] + 0.01
    linked = torch.stack(list(link([Window(0, first), Window(2, second)])), dim=1)
    assert linked.shape == (2, 6, 5, 6)
    torch.testing.assert_close(linked[:, 2:4], first[:, 2:] + 0.005)
    torch.testing.assert_close(linked[:, 4:], second[:, 2:])


def test_a_window_that_ends_too_early_is_refused() -> None:
    masks = torch.full((2, 10, 3, 4), 0.5)
    with pytest.raises(ValueError, match="does not go on"):
        list(link([Window(0, masks), Window(2, masks[:, :4])]))


def test_gaps_and_other_sizes_are_refused():
    masks = torch.rand(2, 4, 5, 6)
    for wrong in (Window(5, masks), Window(-1, masks), Window(2, masks[:1]), Window(2, masks[..., 1:])):
        with pytest.raises(ValueError, match="does not go on"):
            list(link([Window(0, masks), wrong]))


def test_no_windows_are_no_frames():
    assert list(link([])) == []
