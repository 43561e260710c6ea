"""Channels of flow: a batch beside each frame by itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffslic.segmentation import camera_motion, flow_channels
from diffslic.segmentation.inputs import checked_channels, of_like_strength


@pytest.fixture
def flow() -> Tensor:
    """(4, 2, 40, 60) that turns, with noise and a body, at speeds from nearly none to very fast."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 60), indexing="ij")
    flow = torch.stack([-y, x]) + 0.1 * torch.randn(4, 2, 40, 60)
    flow[..., 10:20, 20:35] += torch.tensor([1., -2])[:, None, None]
    return flow * torch.tensor([0.01, 1, 5, 100])[:, None, None, None]


def one(flow: Tensor) -> Tensor:
    """(2, H, W) to (4, H, W), straight from the definition."""
    fields = flow - camera_motion(flow[None])[0], flow
    return torch.cat([field / field.norm(dim=0).flatten()[::7].quantile(0.95).clamp(min=1) for field in fields])


def test_a_batch_equals_each_frame_alone(flow: Tensor) -> None:
    alone = torch.stack([one(frame) for frame in flow])
    torch.testing.assert_close(flow_channels(flow), alone, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_a_batch_equals_that_of_each_frame_alone(flow: Tensor) -> None:
    weights = torch.randn(4, 4, 40, 60)

    def gradient(channels: Callable[[Tensor], Tensor]) -> Tensor:
        x = flow.clone().requires_grad_()
        return torch.autograd.grad((channels(x) * weights).sum(), x)[0]

    alone = gradient(lambda x: torch.stack([one(frame) for frame in x]))
    scale = alone.abs().amax((1, 2, 3), keepdim=True)  # slow flow has the strongest gradient
    torch.testing.assert_close(gradient(flow_channels) / scale, alone / scale, rtol=0, atol=1e-6)


def test_every_frame_has_a_strength_of_its_own(flow: Tensor) -> None:
    lengths = of_like_strength(flow).norm(dim=1).flatten(1)
    slow, *others = lengths.quantile(0.95, dim=1).tolist()
    assert slow < 0.05  # less than a pixel stays small
    assert all(0.9 < length < 1.1 for length in others)


def test_nothing_waits_for_the_numbers() -> None:
    """Tensors of the meta device have none: whoever asks for one fails."""
    assert checked_channels(torch.empty(3, 2, 40, 60, device="meta")).shape == (3, 4, 40, 60)


@pytest.mark.parametrize(("flow", "message"), [(torch.zeros(2, 40, 60), r"\(B, 2, H, W\), got \(2, 40, 60\)"),
                                               (torch.full((1, 2, 40, 60), torch.nan), "must be known")])
def test_flow_of_another_shape_or_unknown_is_refused(flow: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        flow_channels(flow)


def test_a_still_frame_has_a_finite_gradient() -> None:
    flow = torch.zeros(2, 2, 40, 60, requires_grad=True)
    flow_channels(flow).square().sum().backward()
    assert flow.grad.isfinite().all()
