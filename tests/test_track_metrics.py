"""CLEAR MOT by hand: switches, misses and false positives of small videos."""

import numpy as np
import pytest
import torch

from diffslic import metrics
from diffslic.metrics import ClearMOT, match_objects

TWO = np.array([[[1, 1, 0, 2, 2]]] * 4)  # two objects of two pixels, four frames


def test_labels_that_stay_are_perfect_whatever_their_names():
    names = np.array([0, 7, 3])
    score = metrics.clear_mot(torch.from_numpy(names[TWO]), torch.from_numpy(TWO))
    assert score == ClearMOT(0, 0, 0, 8) and score.mota == 1


def test_labels_that_change_places_switch_twice():
    pred = TWO.copy()
    pred[2:] = np.array([0, 2, 1])[pred[2:]]
    assert metrics.clear_mot(pred, TWO) == ClearMOT(2, 0, 0, 8)


def test_a_switch_is_counted_over_a_gap_and_coming_back_to_the_name_is_none():
    pred = TWO.copy()
    pred[1][pred[1] == 1] = 0
    assert metrics.clear_mot(pred, TWO) == ClearMOT(0, 1, 0, 8)
    pred[2:][pred[2:] == 1] = 5
    score = metrics.clear_mot(pred, TWO)
    assert score == ClearMOT(1, 1, 0, 8) and score.mota == pytest.approx(1 - 2 / 8)


def test_an_object_keeps_its_label_while_that_reaches_the_threshold_though_another_is_better():
    truth = np.ones((2, 1, 10), int)
    pred = np.array([[[1] * 10], [[2] * 6 + [1] * 4]])
    assert metrics.clear_mot(pred, truth, threshold=0.3) == ClearMOT(0, 0, 1, 2)
    assert metrics.clear_mot(pred, truth) == ClearMOT(1, 0, 1, 2)
    assert metrics.clear_mot(pred, truth, threshold=0.61) == ClearMOT(0, 1, 2, 2)


def test_a_label_is_kept_by_the_object_that_had_it_last():
    truth = np.array([[[1] * 10 + [0] * 10], [[0] * 10 + [2] * 10], [[1] * 10 + [2] * 10]])
    pred = np.array([[[4] * 10 + [0] * 10], [[0] * 10 + [4] * 10], [[4] * 16 + [3] * 4]])
    score = metrics.clear_mot(pred, truth, threshold=0.25)
    assert score == ClearMOT(0, 1, 1, 4)  # 2 keeps 4, though 1, which had it before, fits it better


def test_void_counts_for_nothing_and_one_label_matches_one_object():
    truth = np.array([[[1, 1, 255, 255, 0]]])
    assert metrics.clear_mot(np.array([[[1, 1, 1, 2, 0]]]), truth) == ClearMOT(0, 0, 0, 1)
    assert metrics.clear_mot(np.ones_like(TWO), TWO) == ClearMOT(0, 8, 4, 8)
    assert np.isnan(metrics.clear_mot(np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int)).mota)


@pytest.mark.parametrize(("pred", "threshold", "told"), [
    (TWO[:2], 0.5, "truth is"), (TWO[0], 0.5, "(T, H, W)"), (TWO / 2, 0.5, "integer"), (TWO, 0.0, "threshold")])
def test_nonsense_is_refused(pred, threshold, told):
    with pytest.raises(ValueError) as caught:
        metrics.clear_mot(pred, TWO, threshold)
    assert told in str(caught.value)


def test_matches_say_which_label_an_object_goes_under_and_where_it_changes():
    truth = np.array([[[1, 1, 0, 5, 5]]] * 4)
    truth[2:, :, :2] = 0                            # object 1 leaves
    pred = np.array([[[7, 7, 0, 3, 3]], [[3, 3, 0, 0, 0]], [[0, 0, 0, 4, 4]], [[0, 0, 0, 3, 3]]])
    matches = match_objects(pred, truth)
    assert matches.objects.tolist() == [1, 5]
    assert matches.labels.tolist() == [[7, 3], [3, 0], [-1, 4], [-1, 3]]
    assert matches.switches.tolist() == [[False, False], [True, False], [False, True], [False, True]]
    assert match_objects(0 * pred, 0 * truth).labels.shape == (4, 0)
