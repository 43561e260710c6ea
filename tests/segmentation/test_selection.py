"""Which layers move: the two rules, and the oracles against counting by hand."""

from itertools import product

import pytest
import torch

from diffslic.segmentation.selection import (
    ORACLES,
    SELECTIONS,
    all_but_largest,
    matched_layers,
    moving_layers,
    oracle_assignment,
    oracle_exhaustive,
    oracle_fair,
    oracle_top_iou,
    renumbered,
)


def layers_and_flow(*boxes: tuple[slice, slice, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Layers (2, 40, 60) and flow: a still ground, and boxes that move to the right."""
    layers, flow = torch.zeros(2, 40, 60, dtype=torch.int64), torch.zeros(2, 2, 40, 60)
    for label, (rows, columns, speed) in enumerate(boxes, 1):
        layers[:, rows, columns] = label
        flow[:, 0, rows, columns] = speed
    return layers, flow


def test_a_body_larger_than_the_background_still_moves():
    layers, flow = layers_and_flow((slice(4, 36), slice(4, 50), 3.0))
    assert (layers == 1).float().mean() > 0.5
    assert torch.equal(moving_layers(layers, flow), layers == 1)
    assert torch.equal(all_but_largest(layers, flow), layers == 0)  # the published rule takes it for the ground


def test_a_slow_layer_beside_a_fast_body_is_background():
    layers, flow = layers_and_flow((slice(10, 20), slice(10, 20), 3.0), (slice(25, 30), slice(30, 40), 1.0),
                                   (slice(5, 9), slice(45, 50), 2.5))
    assert torch.equal(moving_layers(layers, flow), (layers == 1) | (layers == 3))


def test_one_layer_does_not_move():
    layers, flow = layers_and_flow()
    for select in SELECTIONS.values():
        assert not select(layers, flow).any()


@pytest.mark.parametrize("select", SELECTIONS.values())
def test_rules_refuse_nonsense(select):
    layers, flow = layers_and_flow()
    with pytest.raises(ValueError, match="integers"):
        select(layers.float(), flow)
    with pytest.raises(ValueError, match="size"):
        select(layers, flow[:, :, 1:])
    with pytest.raises(ValueError, match="known"):
        select(layers, flow / 0)


def test_oracles_on_a_case_by_hand():
    layers = torch.tensor([[[0, 0, 0, 1, 1, 1, 2, 2, 3, 3]]])
    truth = torch.tensor([[[0, 0, 0, 1, 1, 1, 1, 0, 0, 1]]]).bool()
    assert oracle_assignment(layers, truth).int().tolist() == [[[0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]]
    assert oracle_fair(layers, truth).int().tolist() == [[[0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]]
    # layer 2: 1 of 6 with the truth, 1 of 6 with the rest, so it is not more like the truth
    assert oracle_top_iou(layers, truth).int().tolist() == [[[0, 0, 0, 1, 1, 1, 0, 0, 0, 0]]]
    # 3 of 5 alone, 4 of 6 with one of the halves, 5 of 7 with both
    assert oracle_exhaustive(layers, truth).int().tolist() == [[[0, 0, 0, 1, 1, 1, 1, 1, 1, 1]]]


def test_no_set_of_layers_beats_the_exhaustive_oracle():
    layers, truth = torch.randint(4, (2, 12, 15)), torch.rand(2, 12, 15) > 0.6

    def iou(mask: torch.Tensor) -> float:
        return float((mask & truth).sum() / (mask | truth).sum())

    best = max(iou(torch.isin(layers, torch.tensor([i for i, keep in enumerate(chosen) if keep])))
               for chosen in product((False, True), repeat=4))
    assert iou(oracle_exhaustive(layers, truth)) == best
    assert all(iou(oracle(layers, truth)) <= best for oracle in ORACLES.values())


def test_oracles_on_a_truth_without_object_choose_nothing():
    layers = torch.randint(3, (1, 6, 6))
    nothing = torch.zeros(1, 6, 6, dtype=torch.bool)
    assert not oracle_exhaustive(layers, nothing).any()
    assert not oracle_fair(layers, nothing).any()


def test_objects_are_matched_one_to_one_over_all_frames():
    layers = torch.tensor([[[0, 0, 2, 2, 1, 1]], [[0, 2, 2, 1, 1, 1]]])
    truth = torch.tensor([[[0, 0, 1, 1, 2, 2]], [[0, 1, 1, 2, 2, 255]]])
    assert matched_layers(layers, truth).tolist() == [2, 1]
    assert sorted(matched_layers(torch.zeros_like(layers), truth).tolist()) == [-1, 0]
    assert matched_layers(layers, torch.zeros_like(truth)).tolist() == []


def test_moving_layers_are_renumbered_from_one():
    layers = torch.tensor([[[0, 3, 3, 1, 2]]])
    assert renumbered(layers, torch.tensor([[[False, True, True, True, False]]])).tolist() == [[[0, 2, 2, 1, 0]]]
