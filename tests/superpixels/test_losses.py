"""Losses on soft superpixels: figures of other implementations, and cases with a known answer."""

import math

import numpy as np
import pytest
import torch

from diffslic.superpixels import (
    SoftSLIC,
    compactness,
    label_reconstruction,
    property_reconstruction,
    reconstruct,
    soft_iou,
    soft_slic,
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", ["sq", "l2"])
@pytest.mark.parametrize("loss", ["recon", "compact_hard", "compact_soft"])
def test_values_and_gradients_equal_the_reference(reference, loss, distance, dtype):
    figures = np.load(reference / "reference/ssn/losses_small.npz")
    features = torch.from_numpy(figures["features"])[None].to(dtype).requires_grad_()
    soft = soft_slic(features, (int(figures["nh"]), int(figures["nw"])), int(figures["n_iter"]),
                     {"sq": "squared", "l2": "l2"}[distance])
    if loss == "recon":
        value = label_reconstruction(soft, torch.from_numpy(figures["labels"]).long()[None])
    else:
        value = compactness(soft, loss.removeprefix("compact_"))
    value.sum().backward()
    expected, gradient = figures[f"{distance}_{loss}"], figures[f"{distance}_grad_{loss}"]
    np.testing.assert_allclose(value.detach(), [expected], rtol=1e-10 if dtype == torch.float64 else 1e-4)
    np.testing.assert_allclose(features.grad[0], gradient, rtol=0,
                               atol=1e-10 if dtype == torch.float64 else 1e-3 * np.abs(gradient).max())


def halves() -> SoftSLIC:
    """A 4 x 8 image cut hard into its left and right half, twice."""
    affinity = torch.zeros(2, 9, 4, 8)
    affinity[:, 4] = 1
    return SoftSLIC(affinity, torch.zeros(2, 2, 1), (1, 2))


def test_labels_that_superpixels_respect_cost_nothing():
    labels = torch.zeros(2, 4, 8, dtype=torch.int64)
    labels[:, :, 4:] = 1
    torch.testing.assert_close(label_reconstruction(halves(), labels), torch.zeros(2))
    torch.testing.assert_close(label_reconstruction(halves(), 7 - labels), torch.zeros(2))


def test_a_half_split_in_two_costs_log_two_on_its_pixels():
    labels = torch.zeros(2, 4, 8, dtype=torch.int64)
    labels[1, :2, :4] = 1
    torch.testing.assert_close(label_reconstruction(halves(), labels), torch.tensor([0, math.log(2) / 2]))
    for some in (labels, torch.zeros_like(labels)):  # of both segments, of the first alone
        torch.testing.assert_close(label_reconstruction(halves(), some, n_segments=2),
                                   label_reconstruction(halves(), some))


def test_logsoftmax_takes_the_reconstruction_for_logits():
    labels = torch.zeros(2, 4, 8, dtype=torch.int64)
    labels[:, :, 6:] = 1
    # The left half is 1 for segment 0, the right half a half for both.
    expected = 0.5 * math.log(1 + math.exp(-1)) + 0.5 * math.log(2)
    torch.testing.assert_close(label_reconstruction(halves(), labels, "logsoftmax"), torch.full((2,), expected))
    with pytest.raises(ValueError, match="form must be 'probability' or 'logsoftmax', got 'log'"):
        label_reconstruction(halves(), labels, "log")


def test_soft_iou_weighs_segments_alike():
    labels = torch.zeros(2, 4, 8, dtype=torch.int64)
    labels[:, :, 4:] = 5  # segments 1 to 4 do not occur
    torch.testing.assert_close(soft_iou(halves(), labels), torch.zeros(2))
    labels = torch.zeros(2, 4, 8, dtype=torch.int64)
    labels[:, :, 6:] = 1
    # Of segment 0 (24 pixels) 16 + 4 are seen among 16 + 8, of segment 1 (8 pixels) 4 among 8.
    torch.testing.assert_close(soft_iou(halves(), labels), torch.full((2,), 1 - (20 / 28 + 4 / 12) / 2))


def test_property_reconstruction_is_the_mean_distance_to_the_superpixels_means():
    x = torch.zeros(2, 2, 4, 8)
    x[1, 0, :2, :4] = 6       # in the left half the mean is 3, so each of its pixels is off by 3
    x[1, 1, :, 4:] = 5        # constant over the right half: no error
    torch.testing.assert_close(property_reconstruction(halves(), x), torch.tensor([0, 1.5]))
    assert reconstruct(halves(), x)[1, :, 0, 0].tolist() == [3, 0]
    assert reconstruct(halves(), x)[1, :, 0, 7].tolist() == [0, 5]


def test_compactness_of_blocks_is_their_variance():
    variance = ((16 - 1) / 12 + (16 - 1) / 12) / 2  # of 4 x 4 pixels: (n^2 - 1) / 12 along each side
    for assignment in ("hard", "soft"):
        torch.testing.assert_close(compactness(halves(), assignment), torch.full((2,), variance))


def test_losses_of_a_batch_are_those_of_its_images():
    features, labels = torch.randn(3, 4, 11, 13), torch.randint(0, 5, (3, 11, 13))
    together = soft_slic(features, (2, 3))
    for image in range(3):
        alone = soft_slic(features[image:image + 1], (2, 3))
        one = slice(image, image + 1)
        torch.testing.assert_close(label_reconstruction(together, labels)[one],
                                   label_reconstruction(alone, labels[one]))
        torch.testing.assert_close(compactness(together)[one], compactness(alone))
        torch.testing.assert_close(property_reconstruction(together, features)[one],
                                   property_reconstruction(alone, features[one]))


def test_the_hard_choice_has_no_gradient_but_the_centres_have():
    features = torch.randn(1, 4, 11, 13, dtype=torch.float64, requires_grad=True)
    soft = soft_slic(features, (2, 3))
    assert not soft.harden().affinity.requires_grad
    compactness(soft).sum().backward()
    assert features.grad.abs().max() > 0


@pytest.mark.parametrize(("labels", "message"), [
    (torch.zeros(2, 4, 9, dtype=torch.int64), r"labels are \(2, 4, 9\) but the superpixels are of \(2, 4, 8\) pixels"),
    (torch.full((2, 4, 8), -1), "from 0, got torch.int64 from -1"),
    (torch.zeros(2, 4, 8), "whole numbers from 0, got torch.float32"),
])
def test_wrong_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        label_reconstruction(halves(), labels)


def test_an_unknown_assignment_is_refused():
    with pytest.raises(ValueError, match="'hard' or 'soft', got 'medium'"):
        compactness(halves(), "medium")
