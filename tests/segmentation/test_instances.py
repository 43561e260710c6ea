"""Several masks of one frame: a loss that leaves their order open, and superpixels that go to the likeliest."""

import pytest
import torch

from diffslic.segmentation import UNet, UNetConfig, body_logits, matched_loss, network_proposals, regions_of


def stripes() -> torch.Tensor:
    """Labels (1, 8, 12): bodies 3 and 7 with background between."""
    labels = torch.zeros(1, 8, 12, dtype=torch.int64)
    labels[:, :, :3], labels[:, :, 8:] = 3, 7
    return labels


def test_the_loss_knows_no_order_of_masks():
    logits, labels = torch.randn(2, 5, 8, 12, dtype=torch.float64), stripes().repeat(2, 1, 1)
    for order in ([0, 2, 1, 4, 3], [0, 4, 3, 2, 1]):
        torch.testing.assert_close(matched_loss(logits[:, order], labels), matched_loss(logits, labels))
    assert not torch.allclose(matched_loss(logits[:, [1, 0, 2, 3, 4]], labels), matched_loss(logits, labels))


def test_the_loss_by_hand():
    labels = stripes()
    masks = torch.stack([labels[0] == 0, labels[0] == 7, labels[0] < 0, labels[0] == 3]).float()
    assert float(matched_loss((20 * masks)[None], labels)) < 1e-3
    even = torch.zeros(1, 3, 8, 12)
    dice = [1 - (2 * n / 3 + 1) / (96 / 3 + n + 1) for n in (24, 32)]
    assert float(matched_loss(even, labels)) == pytest.approx(float(torch.tensor(3.0).log()) + sum(dice) / 2, rel=1e-5)


def test_void_and_bodies_beyond_the_masks_count_for_nothing():
    labels = stripes()
    labels[0, :2] = 255
    logits = torch.randn(1, 2, 8, 12, requires_grad=True)   # a mask for two bodies: the smaller one is left out
    (slope,) = torch.autograd.grad(matched_loss(logits, labels).sum(), logits)
    assert (slope[..., :2, :] == 0).all() and (slope[..., :3] == 0).all() and (slope[..., 2:, 3:] != 0).all()
    logits = logits.detach()
    assert float(matched_loss(logits, torch.full_like(labels, 255))) == 0
    assert float(matched_loss(logits, 0 * labels)) > 0      # a mask without a body learns to be empty


def test_the_gradient_is_that_of_the_loss():
    logits = torch.randn(1, 4, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: matched_loss(x, stripes()[:, ::2, ::2]), logits, eps=1e-5)


def test_superpixels_go_to_the_likeliest_body_and_pieces_stay_one():
    superpixels = (torch.arange(24) // 4).repeat(16, 1)
    foreground = superpixels < 5
    logits = torch.zeros(4, 16, 24)
    logits[1, :, :4], logits[1, :, 12:16] = 5, 5            # one body in two pieces around another
    logits[3, :, 4:12] = 5
    logits[0, :, 16:20] = 5                                 # the network doubts it, the foreground does not
    regions = regions_of(superpixels, torch.rand(3, 16, 24), torch.zeros(2, 16, 24), foreground)
    found = network_proposals(logits, regions, smallest=10)
    assert found[0] == found[3] != found[1] == found[2] and found[5] == -1 and found[4] >= 0
    assert set(network_proposals(logits, regions, smallest=10_000).tolist()) == {-1}
    for wrong in (logits[:, 1:], logits[0], logits[:1]):
        with pytest.raises(ValueError, match="logits must be"):
            network_proposals(wrong, regions)


def test_the_loss_refuses_nonsense():
    for logits, size in ((torch.zeros(1, 1, 4, 4), (1, 4, 4)), (torch.zeros(1, 3, 4, 4), (4, 4))):
        with pytest.raises(ValueError, match="logits must be"):
            matched_loss(logits, torch.zeros(size, dtype=torch.int64))


@pytest.mark.parametrize("size", [(16, 24), (15, 21)])
def test_logits_have_the_size_of_the_frame(size):
    net = UNet(UNetConfig(3, 4, (4, 8)))
    assert body_logits(net, torch.randn(2, 3, *size)).shape == (2, 4, *size)


def test_a_network_gets_a_new_head_and_keeps_what_it_knows():
    net = UNet(UNetConfig(3, 1, (4, 8)))
    wide = net.widened(5, ("a",), 4)
    assert (wide.config.in_channels, wide.config.out_channels, wide.config.inputs) == (5, 4, ("a",))
    assert wide(torch.randn(1, 5, 8, 8)).shape == (1, 4, 8, 8)
    before, after = net.state_dict(), wide.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before
               if not name.startswith("head") and before[name].shape == after[name].shape)
