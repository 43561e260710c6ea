"""A transformer whose tokens are superpixels."""

import pytest
import torch

from diffslic.segmentation import SuperpixelTransformer, SuperpixelTransformerConfig
from diffslic.superpixels import soft_slic


def network(**options):
    torch.manual_seed(0)
    return SuperpixelTransformer(SuperpixelTransformerConfig(3, width=16, depth=2, heads=2, **options)).eval()


@pytest.fixture
def superpixels():
    torch.manual_seed(1)
    return soft_slic(torch.rand(2, 5, 24, 36), (3, 4), 2)


def test_an_answer_is_spread_over_its_superpixel(superpixels):
    with torch.no_grad():
        logits = network()(torch.rand(2, 3, 24, 36), superpixels.harden())
    assert logits.shape == (2, 1, 24, 36)
    for each, labels in zip(logits[:, 0], superpixels.labels):
        for label in labels.unique():
            assert each[labels == label].std() < 1e-5
    assert logits.std() > 1e-3


def test_every_token_sees_all_others(superpixels):
    """A change in one corner changes the answer in the other."""
    x = torch.rand(2, 3, 24, 36)
    y = x.clone()
    y[:, :, :4, :4] += 1
    with torch.no_grad():
        change = (network()(x, superpixels) - network()(y, superpixels)).abs()
    assert change[..., -1, -1].min() > 1e-5


def test_it_learns_which_superpixels_differ_from_the_rest(superpixels):
    """The odd one out: no token can tell by itself."""
    torch.manual_seed(2)
    net = network().train()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(150):
        base, odd = torch.rand(2, 3, 1, 1), torch.randint(0, 12, (2,))
        truth = (superpixels.labels == odd[:, None, None]).float()[:, None]
        x = base + 0.5 * truth
        loss = torch.nn.functional.binary_cross_entropy_with_logits(net(x, superpixels.harden()), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.15  # the share of one of twelve has an entropy of 0.29


def test_the_borders_of_superpixels_learn_too():
    features = torch.rand(1, 5, 24, 36, requires_grad=True)
    network()(torch.rand(1, 3, 24, 36), soft_slic(features, (3, 4), 2)).sum().backward()
    assert features.grad.abs().max() > 0


def test_bad_input_is_named(superpixels):
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), got \(2, 4, 24, 36\)"):
        network()(torch.rand(2, 4, 24, 36), superpixels)
    with pytest.raises(ValueError, match="multiple of 4 and of the 3 heads, got 16"):
        SuperpixelTransformerConfig(3, width=16, heads=3)
    with pytest.raises(ValueError, match="must be positive"):
        SuperpixelTransformerConfig(0)
