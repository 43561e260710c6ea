"""Scores of layers without names: bIoU and box IoU by hand."""

import numpy as np
import pytest

from diffslic import metrics


def test_every_object_gets_its_best_layer_and_may_share_it():
    layers = np.array([[0, 0, 1, 1, 1, 2]])
    truth = np.array([[0, 0, 0, 3, 3, 255]])
    assert metrics.best_iou(layers, truth) == {0: 2 / 3, 3: 2 / 3}
    assert metrics.best_iou(np.zeros((1, 6), int), truth) == {0: 3 / 5, 3: 2 / 5}
    assert metrics.best_iou(np.zeros((2, 1, 3), int), np.full((2, 1, 3), 255)) == {}
    with pytest.raises(ValueError, match="truth"):
        metrics.best_iou(layers, truth[:, 1:])


def test_the_boxes_of_masks():
    mask, truth = np.zeros((10, 12), int), np.zeros((10, 12), int)
    assert metrics.box_iou(mask, truth) == 1
    mask[2, 3] = mask[5, 6] = 1  # a box of 4 by 4
    assert metrics.box_iou(mask, truth) == 0
    truth[4:8, 5:9] = 7
    assert metrics.box_iou(mask, truth) == pytest.approx(4 / 28)
    truth[:] = 0
    truth[9, 11] = 1
    assert metrics.box_iou(mask, truth) == 0
    with pytest.raises(ValueError, match="truth"):
        metrics.box_iou(mask, truth[1:])


def test_layers_are_assigned_to_objects_one_to_one():
    layers = np.array([[5, 5, 5, 5, 9, 0, 9]])
    truth = np.array([[1, 1, 1, 2, 2, 0, 255]])     # 5 is more like both
    assert metrics.assigned_iou(layers, truth) == {1: 3 / 4, 2: 1 / 2}
    assert metrics.assigned_iou(layers * (layers == 5), truth) == {1: 3 / 4, 2: 0}
    assert metrics.assigned_iou(layers, truth * 0) == {}
    with pytest.raises(ValueError, match="truth"):
        metrics.assigned_iou(layers, truth[:, 1:])
