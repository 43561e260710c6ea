"""The baselines find what moves, ignore the camera where they promise to, and answer for frames without motion."""

from collections.abc import Callable

import pytest
import torch

from diffslic.segmentation import camera_residual_mask, flow_magnitude_mask, motion_flow

Baseline = Callable[[torch.Tensor], torch.Tensor]
BASELINES: list[Baseline] = [flow_magnitude_mask, camera_residual_mask]


def disc(height: int, width: int, radius: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((y - height / 3).square() + (x - width / 2).square() < radius**2)[None]


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("radius", [2, 4, 12])
def test_a_still_camera_shows_what_moves(baseline: Baseline, radius: float) -> None:
    truth = disc(60, 80, radius)
    flow = torch.stack([3. * truth, -2. * truth], dim=1) + 0.02 * torch.randn(1, 2, 60, 80)
    assert torch.equal(baseline(flow), truth)


def test_under_a_moving_camera_only_the_residual_finds_the_object() -> None:
    truth = disc(60, 80, 12)
    camera = motion_flow(torch.tensor([[4., 1], [3, 0], [0, 3], [0.5, 0], [0, 0.5], [0.2, 0]])[None, None], 60, 80)
    flow = camera[:, 0] + torch.stack([-2. * truth, 2. * truth], dim=1) + 0.05 * torch.randn(1, 2, 60, 80)
    residual, magnitude = camera_residual_mask(flow), flow_magnitude_mask(flow)
    assert (residual & truth).sum() / (residual | truth).sum() > 0.95
    assert (magnitude & truth).sum() / (magnitude | truth).sum() < 0.5


@pytest.mark.parametrize("baseline", BASELINES)
def test_wild_vectors_do_not_hide_the_object(baseline: Baseline) -> None:
    truth = disc(60, 80, 10)
    flow = torch.stack([2. * truth, 0. * truth], dim=1) + 0.02 * torch.randn(1, 2, 60, 80)
    flow[0, 0, 50, 10:14] = 30
    found = baseline(flow)
    assert found[truth].all()
    assert (found & ~truth).sum() == 4


@pytest.mark.parametrize("baseline", BASELINES)
def test_no_motion_gives_an_empty_mask(baseline: Baseline) -> None:
    still = torch.zeros(1, 2, 20, 30)
    assert not baseline(still).any()
    assert not baseline(still + 3).any()
    assert not baseline(0.01 * torch.randn(1, 2, 20, 30)).any()
    assert baseline(still).dtype == torch.bool and baseline(still).shape == (1, 20, 30)


def test_a_zoom_is_camera_motion_for_the_residual() -> None:
    y, x = torch.meshgrid(torch.arange(20.) - 10, torch.arange(30.) - 15, indexing="ij")
    flow = 0.2 * torch.stack([x, y])[None]
    assert flow_magnitude_mask(flow).any()
    assert not camera_residual_mask(flow).any()


@pytest.mark.parametrize("baseline", BASELINES)
def test_frames_of_a_batch_are_thresholded_each_by_itself(baseline: Baseline) -> None:
    truth = disc(40, 50, 8)
    flow = torch.cat([scale * torch.stack([truth, truth], dim=1) for scale in (1., 20.)])
    assert torch.equal(baseline(flow), truth.expand(2, -1, -1))
