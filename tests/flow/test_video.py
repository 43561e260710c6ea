"""RAFT over a video: what streams out is what pairs give, both ways, from a cold and from a warm start."""

import math

import pytest
import torch

from diffslic import datasets, geometry
from diffslic.flow import RAFT, RAFTConfig, correlation, occlusion
from diffslic.flow.video import carried

TOLERANCE = 1e-3  # pixels


@pytest.fixture(params=["small", "large"])
def raft(request):
    torch.manual_seed(1)
    return RAFT(RAFTConfig(request.param)).eval()


def some_frames(count, size=(40, 56)):
    return list(torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(2)))


@torch.no_grad()
def test_there_and_back_is_each_on_its_own(raft):
    frames = some_frames(4)
    pairs = list(raft.video_both_ways(iter(frames), n_iters=3))
    assert len(pairs) == 3
    for first, second, pair in zip(frames, frames[1:], pairs):
        forward, backward = raft(first[None], second[None], 3), raft(second[None], first[None], 3)
        assert (pair.forward - forward[0]).abs().max() < TOLERANCE
        assert (pair.backward - backward[0]).abs().max() < TOLERANCE
        assert torch.equal(pair.occlusion, occlusion(pair.forward[None], pair.backward[None])[0])
        assert torch.equal(pair.backward_occlusion, occlusion(pair.backward[None], pair.forward[None])[0])


@torch.no_grad()
def test_large_images_take_another_way_to_the_same_flow(raft, monkeypatch):
    frames = some_frames(3)
    expected = list(raft.video_both_ways(frames, n_iters=3))
    monkeypatch.setattr(correlation, "LARGEST_VOLUME", 0)
    for found, known in zip(raft.video_both_ways(frames, n_iters=3), expected):
        assert (found.forward - known.forward).abs().max() < TOLERANCE
        assert (found.backward - known.backward).abs().max() < TOLERANCE


def test_frames_are_read_one_at_a_time_and_encoded_once(raft, monkeypatch):
    read, encoded = [], []
    features = raft.features
    monkeypatch.setattr(raft, "features", lambda image: encoded.append(1) or features(image))

    def frames():
        for t, frame in enumerate(some_frames(4)):
            read.append(t)
            yield frame

    for t, _ in enumerate(raft.video(frames(), n_iters=1)):
        assert read == list(range(t + 2)) and len(encoded) == t + 2


@torch.no_grad()
def test_a_warm_start_begins_where_the_flow_before_leads():
    raft = RAFT().eval()
    for parameter in raft.update_block.flow_head.parameters():
        torch.nn.init.zeros_(parameter)
    raft.update_block.flow_head.conv2.bias.copy_(torch.tensor([0.5, 0.0]))  # every correction adds half a cell
    frames = some_frames(4, (64, 96))
    cold = [flow.mean((1, 2)) for flow in raft.video(frames, n_iters=2)]
    warm = [flow.mean((1, 2)) for flow in raft.video(frames, n_iters=2, warm_start=True)]
    assert torch.allclose(torch.stack(cold), torch.tensor([8.0, 0.0]).expand(3, 2), atol=1e-3)
    assert torch.allclose(torch.stack(warm), torch.tensor([[8.0, 0.0], [16.0, 0.0], [24.0, 0.0]]), atol=1e-3)
    back = [pair.backward.mean((1, 2)) for pair in raft.video_both_ways(frames, n_iters=2, warm_start=True)]
    assert torch.allclose(torch.stack(back), torch.stack(warm), atol=1e-3)


def test_carrying_moves_a_field_along_and_keeps_what_nothing_reaches():
    field = torch.arange(12.0).reshape(1, 1, 3, 4)
    flow = torch.zeros(1, 2, 3, 4)
    assert torch.equal(carried(field, flow), field)
    flow[:, 0] = 1
    expected = field.clone()
    expected[..., 1:] = field[..., :-1]
    assert torch.equal(carried(field, flow), expected)
    flow[:, 0] = 0.5
    middle = carried(field, flow)[0, 0, :, 1:]
    assert torch.allclose(middle, (field[0, 0, :, 1:] + field[0, 0, :, :-1]) / 2)
    assert torch.equal(carried(field, torch.full_like(flow, 100.0)), field)


def test_carrying_keeps_the_sum_of_what_stays_inside():
    torch.manual_seed(0)
    flow = 0.8 * torch.randn(1, 2, 7, 9)
    grid = geometry.pixel_grid(7, 9)[None]
    flow = (grid + flow).clamp(torch.zeros(2)[:, None, None], torch.tensor([8.0, 6.0])[:, None, None]) - grid
    assert torch.allclose(carried(torch.full((1, 2, 7, 9), 3.0), flow), torch.tensor(3.0))


@torch.no_grad()
def test_weights_in_bfloat16_give_nearly_the_same_flow_in_float32():
    clip = datasets.open("scenes", n_clips=1, n_frames=3, size=(120, 208), seed=3)[0]
    frames = [clip.frame(t) for t in range(3)]
    exact = torch.stack(list(RAFT.from_pretrained("small").video(frames)))
    half = torch.stack(list(RAFT.from_pretrained("small").bfloat16().video(frames)))
    assert half.dtype == torch.float32
    assert 0 < (half - exact).norm(dim=1).mean() < 0.05


def test_bad_frames_are_named(raft):
    good = some_frames(2)
    for bad, reason in ((torch.rand(3, 40, 64), r"frame 2: RAFT takes .* got \(1, 3, 40, 56\) and \(1, 3, 40, 64\)"),
                        (torch.rand(1, 40, 56), r"frame 2: RAFT takes RGB images .* got .*\(1, 1, 40, 56\)"),
                        (torch.full((3, 40, 56), math.nan), "frame 2: .* values from nan"),
                        (torch.full((3, 40, 56), 255.0), r"frame 2: RAFT takes RGB in \[0, 1\], got values from 255")):
        with pytest.raises(ValueError, match=reason):
            list(raft.video([*good, bad], n_iters=1))
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"at least two frames, got {count}"):
            list(raft.video(good[:count]))
    with pytest.raises(ValueError, match="n_iters must be at least 1"):
        list(raft.video(good, n_iters=0))
