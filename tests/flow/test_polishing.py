"""Both polishes: rough flow becomes exact, exact flow stays, and bad input is told."""

import math

import pytest
import torch

from diffslic import datasets, geometry, metrics
from diffslic.flow import POLISHES, RAFT, polish, polish_settings

WAYS = ["search", "variational"]


def moved(by):
    """A frame of a scene, the frame with everything displaced, and the flow (2, 64, 80) between them."""
    frame = datasets.open("scenes", n_clips=1, n_frames=2, size=(64, 80))[0].frame(0)
    shift = torch.tensor(by)[:, None, None].expand(2, 64, 80)
    return frame, geometry.warp(frame[None], -shift[None], padding="border")[0], shift  # x has gone to x + shift


@pytest.mark.parametrize("way", WAYS)
def test_polish_turns_a_rough_flow_into_an_exact_one(way):
    """Far beyond what it could find by itself: the rough flow has to lead it there."""
    frame, second, shift = moved([24.3, -1.6])
    inside = (0, slice(None), slice(8, -8), slice(8, -32))  # what has not left the frame
    errors = []
    for seed in range(4):
        torch.manual_seed(seed)
        rough = shift[None] + geometry.resize(1.5 * torch.randn(1, 2, 8, 10), (64, 80))
        errors.append([metrics.flow(field[inside], shift[inside[1:]])["epe"]
                       for field in (rough, polish(frame[None], second[None], rough, way))])
    before, after = torch.tensor(errors).mean(0)
    alone = polish(frame[None], second[None], torch.zeros_like(rough), way)
    assert before > 1 and after < 0.2 and metrics.flow(alone[inside], shift[inside[1:]])["epe"] > 2


@pytest.mark.parametrize("way", WAYS)
def test_polish_treats_each_pair_by_itself_and_keeps_what_is_too_small(way):
    frame, second, shift = moved([1.0, 0.5])
    batch = torch.stack([frame, second]), torch.stack([second, frame]), torch.stack([shift, -shift])
    together = polish(*batch, way)
    assert torch.allclose(together[1], polish(*(part[1:] for part in batch), way)[0], atol=1e-4)
    small = torch.rand(1, 2, 15, 40)
    assert torch.equal(polish(torch.rand(1, 3, 15, 40), torch.rand(1, 3, 15, 40), small, way), small)


@pytest.mark.parametrize("way", WAYS)
def test_polish_keeps_an_exact_flow_and_its_jump(way):
    """Two halves that move apart, with texture everywhere: nothing to mend, and nothing is smoothed away."""
    torch.manual_seed(0)
    texture = geometry.resize(torch.rand(1, 3, 24, 40), (96, 160))
    shift = torch.zeros(1, 2, 96, 160)
    shift[:, 0, :48], shift[:, 0, 48:] = 3, -2
    polished = polish(geometry.warp(texture, shift, padding="border"), texture, shift, way)
    assert metrics.flow(polished[0, :, 8:-8, 8:-8], shift[0, :, 8:-8, 8:-8])["epe"] < 0.1


def test_the_variational_polish_follows_faint_texture_and_not_noise():
    """A sky with a contrast of a hundredth of that of the wall beside it: the wall's motion must not flow over."""
    torch.manual_seed(0)
    contrast, flow = torch.full((1, 1, 1, 160), 0.4), torch.zeros(1, 2, 96, 160)
    contrast[..., :80], flow[:, 0, :, :80], flow[:, 0, :, 80:] = 0.004, 1, 4
    second = 0.5 + contrast * (geometry.resize(torch.rand(1, 3, 24, 40), (96, 160)) - 0.5)
    first, rough = geometry.warp(second, flow, padding="border"), torch.zeros_like(flow)
    rough[:, 0] = 2.5
    sky = (0, slice(None), slice(8, -8), slice(8, 72))
    assert metrics.flow(polish(first, second, rough, "variational")[sky], flow[sky])["epe"] < 0.02
    noisy = [image + 0.01 * torch.randn(image.shape) for image in (first, second)]
    assert polish(*noisy, rough, "variational")[sky].diff(dim=-1).abs().mean() < 0.01


def test_the_variational_polish_of_images_in_bytes_is_finite():
    frame, second, shift = (part[None] for part in moved([1.0, 0.5]))
    frame[..., :40] = 0  # a plain half beside an edge
    assert polish(255 * frame, 255 * second, shift, "variational").isfinite().all()


def test_polish_names_sizes_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"of one size, got \(1, 3, 20, 20\), \(1, 3, 20, 20\) and \(1, 2, 20, 21\)"):
        polish(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20), torch.rand(1, 2, 20, 21))


def test_ways_that_there_are():
    images = torch.rand(2, 1, 3, 20, 24)
    rough = torch.rand(1, 2, 20, 24)
    assert torch.equal(polish(*images, rough, "none"), rough)
    assert len({polish_settings(way) for way in POLISHES}) == 3  # caches tell them apart
    with pytest.raises(ValueError, match="flow is polished by one of variational, search, none, got 'both'"):
        polish(*images, rough, "both")


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_search_refuses_what_is_not_finite(part, value):
    """The search itself would read outside of its memory."""
    given = [torch.rand(1, channels, 20, 20) for channels in (3, 3, 2)]
    given[part][0, 0, 10, 10] = value
    with pytest.raises(ValueError, match="finite"):
        polish(*given, "search")


def test_the_search_does_not_turn_the_brightest_pixels_black():
    """Resized frames overshoot 1 by a little; as bytes that must not wrap around."""
    frame, second, shift = (part[None] for part in moved([1.0, 0.5]))
    frame, second = (image.mean(1, keepdim=True).expand_as(image) for image in (frame, second))
    frame, second = 1.02 * frame / frame.max(), 1.02 * second / second.max()
    assert torch.equal(polish(frame, second, shift, "search"),
                       polish(frame.clamp(0, 1), second.clamp(0, 1), shift, "search"))


@pytest.mark.parametrize("way, at_most", [("search", 0.95), ("variational", 0.8)])
def test_polish_betters_the_flow_of_the_shipped_raft(way, at_most):
    raft = RAFT.from_pretrained("small")
    errors = []
    for clip in datasets.open("scenes", preset="lab+street", n_clips=2, n_frames=2, size=(120, 160), seed=7):
        first, second = clip.frame(0)[None], clip.frame(1)[None]
        with torch.no_grad():
            rough = raft(first, second)
        errors.append([metrics.flow(flow[0], clip.flow(0))["epe"]
                       for flow in (rough, polish(first, second, rough, way))])
    before, after = torch.tensor(errors).mean(0)
    assert after < at_most * before
