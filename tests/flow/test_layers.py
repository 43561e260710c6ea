"""The encoders' layers equal those of torch, with and without gradient, at any size and layout."""

import pytest
import torch
from torch import nn

from diffslic.flow import layers
from diffslic.flow.layers import BatchNorm, InstanceNorm, StripConv2d


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (31, 9)])
@pytest.mark.parametrize("strip", [1, 2000, 6e6])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_in_strips(monkeypatch, size, strip, layout):
    monkeypatch.setattr(layers, "STRIP", strip)
    convolution = StripConv2d(4, 6, 3, padding=1)
    x = torch.randn(2, 4, *size).contiguous(memory_format=layout)
    expected = nn.functional.conv2d(x, convolution.weight, convolution.bias, padding=1)
    with torch.no_grad():
        assert (convolution(x) - expected).abs().max() < 1e-6
    assert convolution(x).requires_grad


@pytest.mark.parametrize("channels", [3, 32, 40])
def test_instance_norm(channels):
    x = 3 * torch.randn(2, channels, 9, 8) + 5
    expected = nn.functional.instance_norm(x)
    assert (InstanceNorm(channels)(x) - expected).abs().max() < 1e-5
    with torch.no_grad():
        assert (InstanceNorm(channels)(x.clone()) - expected).abs().max() < 1e-5


def test_batch_norm():
    torch.manual_seed(0)
    norm, usual = BatchNorm(5), nn.BatchNorm2d(5)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2)
    usual.load_state_dict(norm.state_dict())
    x = torch.randn(2, 5, 6, 7)
    assert torch.equal(norm(x), usual(x))                  # training: the batch's own moments
    usual.eval(), norm.eval()
    assert torch.equal(norm(x), usual(x))
    with torch.no_grad():
        assert (norm(x.clone()) - usual(x)).abs().max() < 1e-5


def test_a_frozen_batch_norm_keeps_its_moments():
    norm = BatchNorm(5)
    norm.frozen = True
    norm.train()
    x = torch.randn(2, 5, 6, 7) + 3
    assert torch.allclose(norm(x), x, atol=1e-3) and norm.running_mean.abs().max() == 0
    norm(x).sum().backward()
    assert norm.weight.grad is not None
