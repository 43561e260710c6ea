"""The loss by hand, pooling against SoftSLIC's, classes by vote."""

import math

import pytest
import torch
import torch.nn.functional as F

from diffslic import softseg
from diffslic.superpixels import soft_slic


def naive_loss(vectors, classes, ignore):
    """Pair by pair, as the formula stands."""
    losses = []
    for each, of in zip(vectors, classes):
        same, different = [], []
        for i in range(len(of)):
            for j in range(i):
                if ignore in (of[i], of[j]):
                    continue
                d = min(float((each[i] - each[j]).square().sum()), 50.0)
                if of[i] == of[j]:
                    same.append(math.log((1 + math.exp(d)) / 2))
                else:
                    different.append(math.log((1 + math.exp(-d)) / 2))
        losses.append(sum(sum(kind) / len(kind) for kind in (same, different) if kind))
    return losses


def test_the_loss_is_the_formula_over_pairs():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 9, 5, generator=generator, dtype=torch.float64)
    classes = torch.randint(0, 3, (3, 9), generator=generator)
    classes[0, 4] = classes[1, :5] = 255
    vectors[2, 0] *= 100  # beyond what counts
    assert softseg.n_pair_loss(vectors, classes).tolist() == pytest.approx(naive_loss(vectors, classes, 255))


def test_one_class_alone_no_class_and_a_single_superpixel():
    vectors = torch.randn(4, 6, 3, requires_grad=True)
    classes = torch.zeros(4, 6, dtype=torch.int64)
    classes[1] = 255            # an unlabelled image
    classes[2] = torch.arange(6)  # no pair is alike
    classes[3, 1:] = 255        # one is known
    loss = softseg.n_pair_loss(vectors, classes)
    assert loss[0] > 0 and loss[1] == 0 and loss[2] < 0 and loss[3] == 0
    loss.sum().backward()
    assert torch.isfinite(vectors.grad).all() and vectors.grad[1].count_nonzero() == 0


def test_gradients_are_those_of_differences():
    vectors = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([[0, 0, 1, 1, 255], [2, 2, 2, 3, 4]])
    assert torch.autograd.gradcheck(lambda x: softseg.n_pair_loss(x, classes), vectors)


def test_pooling_is_that_of_hard_superpixels():
    image = torch.rand(2, 3, 24, 30, dtype=torch.float64)
    soft = soft_slic(image, (4, 5)).harden()
    expected, found = soft.pool(image), softseg.pool(image, soft.labels, 20)
    assert torch.allclose(found, expected)


def test_coarse_values_are_pooled_as_the_pixels_would_have_them():
    coarse = torch.rand(2, 4, 5, 8, dtype=torch.float64, requires_grad=True)
    superpixels = torch.randint(0, 7, (2, 10, 16))
    fine = F.interpolate(coarse, scale_factor=2, mode="nearest")
    assert torch.allclose(softseg.pool(coarse, superpixels), softseg.pool(fine, superpixels))
    odd = torch.randint(0, 7, (2, 9, 15))  # cells that are cut at the end
    cells = torch.arange(9) * 5 // 9, torch.arange(15) * 8 // 15
    assert torch.allclose(softseg.pool(coarse, odd), softseg.pool(coarse[:, :, cells[0]][..., cells[1]], odd))
    assert torch.autograd.gradcheck(lambda x: softseg.pool(x, superpixels, 9), coarse)


def test_a_superpixel_without_pixels_has_zeros():
    pooled = softseg.pool(torch.ones(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64), 3)
    assert pooled[0].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_classes_go_by_the_vote_of_pixels():
    superpixels = torch.tensor([[[0, 0, 0, 1, 1, 1, 3]]])
    labels = torch.tensor([[[7, 7, 2, 255, 255, 4, 9]]])
    assert softseg.superpixel_classes(superpixels, labels, 5).tolist() == [[7, 255, 255, 9, 255]]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: softseg.n_pair_loss(torch.rand(2, 3), torch.zeros(2, 3)), "vectors must be"),
    (lambda: softseg.n_pair_loss(torch.rand(1, 2, 3), torch.zeros(1, 3)), "vectors must be"),
    (lambda: softseg.pool(torch.rand(1, 2, 8, 8), torch.zeros(1, 4, 4, dtype=torch.int64)), "or larger"),
    (lambda: softseg.pool(torch.rand(2, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)), "or larger"),
    (lambda: softseg.pool(torch.rand(1, 2, 4, 4), torch.full((1, 4, 4), 3), 3), "from 0 to 3 - 1, got 3 to 3"),
    (lambda: softseg.pool(torch.rand(1, 2, 4, 4), torch.full((1, 4, 4), -1)), "from 0 to S - 1, got -1"),
    (lambda: softseg.superpixel_classes(torch.zeros(1, 4, 4), torch.zeros(1, 4, 5)), "must be")])
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
