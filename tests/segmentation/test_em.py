"""EM by hand: what it finds, and that every round is at least as likely as the one before."""

import pytest
import torch

from diffslic.segmentation import expectation_maximisation, grown_layers, grown_windows, motion_flow
from diffslic.segmentation.em import random_masks


@pytest.fixture
def two_motions() -> tuple[torch.Tensor, torch.Tensor]:
    """Flow (1, 2, 40, 56) of a ground and a box that move differently, with noise, and the box."""
    box = torch.zeros(40, 56, dtype=torch.bool)
    box[10:28, 20:44] = True
    flow = torch.where(box, torch.tensor([3.0, -1.0])[:, None, None], torch.tensor([-1.0, 0.5])[:, None, None])
    return (flow + 0.1 * torch.randn(2, 40, 56))[None], box


def test_em_finds_two_motions(two_motions):
    flow, box = two_motions
    result = expectation_maximisation(flow, model="affine")
    layers = result.masks.argmax(1)[0]
    inside = layers[box].mode().values
    assert ((layers == inside) == box).float().mean() > 0.99
    assert result.masks.sum(1).allclose(torch.ones(1, 40, 56))
    moved = motion_flow(result.theta, 40, 56, "affine")[0, inside]
    assert moved[:, box].mean(1).allclose(torch.tensor([3.0, -1.0]), atol=0.05)


def test_no_round_is_less_likely_than_the_one_before(two_motions):
    flow = torch.cat([two_motions[0], torch.randn(1, 2, 40, 56)])
    likelihoods = expectation_maximisation(flow, n_layers=3, n_starts=2).likelihoods
    assert likelihoods.shape == (30, 2)
    assert (likelihoods.diff(dim=0) > -1e-3).all()


def test_more_starts_are_never_less_likely_and_each_field_keeps_its_own_best(two_motions):
    flow = torch.cat([two_motions[0], torch.randn(1, 2, 40, 56)])
    one, four = (expectation_maximisation(flow, 4, n_starts=n).likelihoods[-1] for n in (1, 4))
    assert (four >= one).all()
    alone = expectation_maximisation(flow[:1], 4, n_starts=4).likelihoods[-1]
    torch.testing.assert_close(alone, four[:1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("flow", [torch.zeros(1, 2, 8, 9), torch.full((1, 2, 8, 9), 4.0), torch.ones(1, 2, 1, 1)])
def test_flow_that_is_the_same_everywhere_gives_finite_masks(flow):
    result = expectation_maximisation(flow, 3, n_iters=5)
    assert result.masks.isfinite().all()
    assert result.theta.isfinite().all()


def test_one_layer_takes_everything():
    assert expectation_maximisation(torch.randn(1, 2, 8, 9), 1).masks.allclose(torch.ones(1, 1, 8, 9))


@pytest.mark.parametrize("wrong", [{"n_layers": 0}, {"n_iters": 0}, {"n_starts": 0}, {"model": "cubic"}])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError):
        expectation_maximisation(torch.zeros(1, 2, 8, 9), **wrong)
    with pytest.raises(ValueError, match="known"):
        expectation_maximisation(torch.full((1, 2, 8, 9), float("nan")))


def test_random_masks_sum_to_one_and_differ():
    masks = random_masks(3, 20, 30, torch.Generator().manual_seed(1))
    assert masks.sum(0).allclose(torch.ones(20, 30))
    assert len(masks.argmax(0).unique()) == 3


def test_small_bodies_get_layers_of_their_own():
    """Two boxes of under a hundred pixels move over a ground that turns; each keeps its layer in all frames."""
    truth = torch.zeros(7, 48, 64, dtype=torch.long)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    flow = torch.stack([0.02 * (y - 24), -0.02 * (x - 32)])[None].repeat(7, 1, 1, 1)
    for t in range(7):
        for body, (row, column, move) in enumerate(((8, 6 + 2 * t, (2.0, 0.0)), (30, 50 - t, (-1.0, 0.5))), 1):
            truth[t, row:row + 9, column:column + 9] = body
            flow[t][:, truth[t] == body] = torch.tensor(move)[:, None]
    masks = grown_layers(flow + 0.05 * torch.randn_like(flow), 3)
    assert masks.shape == (3, 7, 48, 64) and masks.sum(0).allclose(torch.ones(7, 48, 64))
    layers = masks.argmax(0)
    names = [layers[truth == body].mode().values for body in range(3)]
    assert len(set(map(int, names))) == 3
    for body, name in enumerate(names):
        assert ((layers == name) == (truth == body)).float().mean() > 0.99


@pytest.mark.parametrize("flow", [torch.zeros(3, 2, 8, 9), torch.full((2, 2, 4, 5), 4.0), torch.ones(1, 2, 1, 1)])
def test_grown_layers_of_flow_that_is_the_same_everywhere_are_finite(flow):
    masks = grown_layers(flow, 3)
    assert masks.isfinite().all() and masks.sum(0).allclose(torch.ones_like(flow[:, 0]))


def test_growing_refuses_nonsense():
    with pytest.raises(ValueError, match="a layer and a round"):
        grown_layers(torch.zeros(3, 2, 8, 9), 0)
    with pytest.raises(ValueError, match="known"):
        grown_layers(torch.full((3, 2, 8, 9), 1e9))
    with pytest.raises(ValueError, match="cubic"):
        grown_layers(torch.zeros(3, 2, 8, 9), 2, model="cubic")


def crossing_boxes(n_frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels (T, H, W) and flow (T, 2, H, W): two boxes that pass one above the other; a third comes in later."""
    labels = torch.zeros(n_frames, 48, 64, dtype=torch.long)
    flow = torch.zeros(n_frames, 2, 48, 64)
    for t in range(n_frames):
        for body, (row, column) in enumerate(((6, 2 + 2 * t), (22, 54 - 2 * t), (36, 74 - 3 * t)), 1):
            if column < 64:
                labels[t, row:row + 10, max(0, column):max(0, column + 10)] = body
        flow[t, 0] = torch.tensor([0.0, 2.0, -2.0, -3.0])[labels[t]]
    return labels, flow


def test_windows_that_go_on_call_the_same_thing_a_layer():
    labels, flow = crossing_boxes(20)
    flow = flow + 0.05 * torch.randn_like(flow)
    windows = list(grown_windows(flow, length=8, overlap=3, n_layers=4))
    assert [window.start for window in windows] == [0, 5, 10, 12]
    for window in windows:
        assert window.masks.sum(0).allclose(torch.ones(8, 48, 64)) and torch.equal(window.flow, flow[window.start:][:8])
    names = [[int(window.masks.argmax(0)[labels[window.start:][:8] == body].mode().values) for body in (0, 1, 2)]
             for window in windows]
    assert all(found == names[0] for found in names)
    last = windows[-1].masks.argmax(0)
    name = last[labels[12:] == 3].mode().values     # what came into view has a layer too
    assert int(name) not in names[0] and ((last == name) == (labels[12:] == 3)).float().mean() > 0.99


def test_going_on_beside_a_single_layer_and_a_single_window():
    flow = torch.randn(6, 2, 8, 9)
    (window,) = grown_windows(flow, n_layers=2)
    assert torch.equal(window.masks, grown_layers(flow, 2))
    assert all((w.masks == 1).all() for w in grown_windows(flow, length=3, overlap=0, n_layers=1))
    with pytest.raises(ValueError, match="overlap"):
        list(grown_windows(flow, length=3, overlap=3))
    flow[5] = torch.nan
    with pytest.raises(ValueError, match="known"):
        list(grown_windows(flow, length=3, overlap=1))
