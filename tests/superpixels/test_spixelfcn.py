"""SpixelFCN: affinities that are a soft assignment at any size, training, saving, wrong input."""

import pytest
import torch
from kornia.color import rgb_to_lab

from diffslic.superpixels import SSN, SpixelFCN, SpixelFCNConfig, SSNConfig, compactness, label_reconstruction


@pytest.fixture
def net():
    return SpixelFCN(SpixelFCNConfig(widths=(4, 4, 6, 6, 8), n_spixels=12)).eval()


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 80), (61, 47), (17, 130), (1, 40), (5, 5), (1, 1)])
def test_affinities_sum_to_one_over_the_cells_that_exist(net, size):
    images = torch.rand(2, 3, *size)
    for n_spixels in sorted({1, min(30, size[0] * size[1])}):
        soft = net(images, n_spixels)
        torch.testing.assert_close(soft.affinity.sum(1), torch.ones(2, *size))
        assert (soft.affinity[:, soft.candidates < 0] == 0).all()
        assert soft.centroids.shape == (2, soft.grid[0] * soft.grid[1], 5)
        labels = net.segment(images, n_spixels, exact=True)
        assert [len(image.unique()) for image in labels] == [n_spixels] * 2


@torch.no_grad()
def test_at_16_pixels_a_cell_the_image_is_seen_as_it_is(net):
    images = torch.rand(1, 3, 48, 64)
    soft = net(images, 12)
    assert soft.grid == (3, 4)
    inner = soft.affinity[..., 16:32, 16:48]  # whose nine cells all exist
    expected = net._logits(net.config.color_scale * rgb_to_lab(images)).softmax(1)[..., 16:32, 16:48]
    torch.testing.assert_close(inner, expected)


def test_training_reaches_every_weight_and_finds_the_border_of_two_colours(net):
    x = torch.arange(64)
    images = torch.stack([(x > border).float() for border in (23, 40)])[:, None, None].expand(-1, 3, 64, 64)
    labels = (images[:, 0] > 0).long()
    net.train()
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        soft = net(images, 16)
        loss = (label_reconstruction(soft, labels) + 1e-4 * compactness(soft, "soft")).mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(weight.grad.abs().sum() > 0 for weight in net.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_come_back_with_their_configuration(net, tmp_path):
    images = torch.rand(1, 3, 32, 32)
    net.save(tmp_path / "net.safetensors")
    loaded = SpixelFCN.from_pretrained(tmp_path / "net.safetensors")
    assert loaded.config == net.config and not loaded.training
    assert torch.equal(loaded(images).affinity, net(images).affinity)


def test_wrong_input_is_refused(net, tmp_path):
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        net(255 * torch.rand(1, 3, 32, 32))
    with pytest.raises(ValueError, match="n_spixels must be between 1 and the 1024 pixels"):
        net(torch.rand(1, 3, 32, 32), 0)
    with pytest.raises(ValueError, match="widths must be five positive numbers"):
        SpixelFCNConfig(widths=(4, 8))
    SSN(SSNConfig(width=4)).save(tmp_path / "ssn.safetensors")
    with pytest.raises(ValueError, match=r"ssn\.safetensors does not hold the weights of a SpixelFCN"):
        SpixelFCN.from_pretrained(tmp_path / "ssn.safetensors")
