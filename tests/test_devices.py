"""What would fail or wait on a GPU, seen without one.

Tensors on the device "meta" have a shape and no data: mixed with others they are refused, and whatever asks for their
values, for which the host would wait, is an error. Only the checks of what a user gives may ask.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from diffslic import pipeline
from diffslic.flow import POLISHES, RAFT, polish
from diffslic.pipeline import EndToEnd
from diffslic.recipes import end_to_end
from diffslic.segmentation import UNet, UNetConfig
from diffslic.superpixels import SSN, SSNConfig

SIZE = (64, 96)


@pytest.fixture(autouse=True)
def meta(monkeypatch):
    """Without checks of values, and without autocast, which this device does not have."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "isfinite", lambda _: torch.ones(1, dtype=torch.bool))
    for name in ("flow.raft.check_images", "flow.video.check_image", "superpixels.ssn.check_images"):
        monkeypatch.setattr(f"diffslic.{name}", lambda *_: None)


def images(count: int) -> list[Tensor]:
    return [torch.rand(2, 3, *SIZE, device="meta") for _ in range(count)]


def frames() -> list[Tensor]:
    """Of a clip: they come from files, wherever the network is."""
    return [torch.rand(3, *SIZE) for _ in range(3)]


def test_this_device_refuses_what_a_gpu_would():
    with pytest.raises(RuntimeError, match="device"):
        torch.nn.functional.grid_sample(torch.rand(1, 3, *SIZE), torch.zeros(1, *SIZE, 2, device="meta"),
                                        align_corners=False)
    for values in (lambda x: x.sum().item(), lambda x: x.cpu(), lambda x: bool(x.sum() > 0)):
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
            values(torch.rand(3, device="meta"))


@pytest.mark.parametrize("way", [way for way in POLISHES if way != "search"])  # OpenCV's works on the host
def test_a_polish_brings_the_images_to_its_flow(way):
    there = polish(torch.rand(1, 3, *SIZE), torch.rand(1, 3, *SIZE), torch.zeros(1, 2, *SIZE, device="meta"), way)
    assert there.device.type == "meta"


@pytest.mark.parametrize("polished", [way for way in POLISHES if way != "search"])
def test_flow_of_a_video_whose_frames_come_from_files(polished):
    raft = RAFT().eval().to("meta")
    found = [*pipeline.video_flow(raft, frames(), 2, polished), *raft.video(frames(), 2, warm_start=True)]
    found += [field for pair in pipeline.video_flow_both_ways(raft, frames(), 2, polished) for field in pair]
    assert len(found) == 12 and {field.device.type for field in found} == {"meta"}


@pytest.mark.parametrize("head", ["unet", "transformer"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_step_of_training_end_to_end(head, keep):
    net = end_to_end.network(head, n_iters=2, n_spixels=20, recompute=not keep).train().to("meta")
    before, frame, after = images(3)
    seen = net(before, frame, after)
    batch = {"before": before, "frame": frame, "after": after,
             "labels": torch.zeros(2, *SIZE, dtype=torch.long, device="meta")}
    end_to_end.losses(seen, batch, end_to_end.Weights(photometric=0.1)).mean().backward()
    assert all(any(x.grad is not None for x in net.get_submodule(part).parameters()) for part in pipeline.PARTS)


def test_masks_of_a_video_by_a_network_that_was_trained_end_to_end():
    ssn = SSN(SSNConfig(width=4, extra_channels=4, extra_width=4, n_iters=3))
    net = EndToEnd(RAFT(), ssn, UNet(UNetConfig(25, widths=(4, 8), inputs=pipeline.INPUTS)), 2, 20).eval().to("meta")
    assert [mask.device.type for mask in net.video(frames())] == ["meta"] * 3
