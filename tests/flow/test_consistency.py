"""Occlusion and motion boundaries on fields whose answer is known, and against the reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffslic.flow.consistency import motion_boundaries, occlusion


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_occlusion_equals_the_reference(reference: Path, dtype: torch.dtype) -> None:
    arrays = np.load(reference / "reference/flow/flowio_occlusion.npz")
    forward, backward = (torch.from_numpy(arrays[f"flow_{way}"]).permute(2, 0, 1)[None].to(dtype)
                         for way in ("fw", "bw"))
    assert np.array_equal(occlusion(forward, backward)[0].numpy(), arrays["fw_occluded"])
    assert np.array_equal(occlusion(backward, forward)[0].numpy(), arrays["bw_occluded"])


def test_a_pan_occludes_what_leaves_the_frame() -> None:
    forward = torch.zeros(1, 2, 6, 8)
    forward[:, 0] = 3
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    expected[:, :, 5:] = True
    assert torch.equal(occlusion(forward, -forward), expected)


def test_a_square_occludes_what_it_moves_over() -> None:
    forward, backward = torch.zeros(2, 1, 2, 12, 20)
    forward[:, 0, 4:8, 4:8] = 4
    backward[:, 0, 4:8, 8:12] = -4
    expected = torch.zeros(1, 12, 20, dtype=torch.bool)
    expected[:, 4:8, 8:12] = True
    assert torch.equal(occlusion(forward, backward), expected)


def test_the_tolerance_has_an_absolute_and_a_relative_part() -> None:
    forward = torch.zeros(1, 2, 5, 40)
    assert not occlusion(forward, forward + 0.5).any()       # 2 * 0.5^2 = 0.5 is not more than 0.5
    assert occlusion(forward, forward + 0.52).all()          # 2 * 0.52^2 = 0.5408 > 0.01 * 0.5408 + 0.5
    forward[:, 0] = 10
    backward = -forward
    backward[:, 0] += 1.5                                    # 2.25 > 0.01 (100 + 72.25) + 0.5 = 2.2225
    assert occlusion(forward, backward)[:, :, :30].all()
    assert not occlusion(forward, backward, relative=0.02)[:, :, :30].any()


def test_unknown_flow_counts_as_occluded() -> None:
    still, unknown = torch.zeros(2, 1, 2, 4, 4)
    unknown[0, 0, 1, 2] = float("nan")
    assert occlusion(unknown, still).nonzero().tolist() == [[0, 1, 2]]
    assert occlusion(still, unknown)[0, 1, 2]


def naive_boundaries(flow: torch.Tensor) -> torch.Tensor:
    _, height, width = flow.shape
    out = torch.zeros(height, width, dtype=torch.bool)
    for r in range(height):
        for c in range(width):
            change = 0.0
            for channel in flow:
                right, left = channel[r, min(c + 1, width - 1)], channel[r, max(c - 1, 0)]
                below, above = channel[min(r + 1, height - 1), c], channel[max(r - 1, 0), c]
                change += ((right - left) / 2) ** 2 + ((below - above) / 2) ** 2
            out[r, c] = change > 0.01 * (flow[:, r, c] ** 2).sum() + 0.002
    return out


@pytest.mark.parametrize("size", [(9, 11), (1, 7), (7, 1), (1, 1)])
def test_boundaries_equal_a_loop(size: tuple[int, int]) -> None:
    flow = torch.randn(2, 2, *size).cumsum(-1) * 0.3
    expected = torch.stack([naive_boundaries(sample) for sample in flow])
    assert torch.equal(motion_boundaries(flow), expected)


def test_boundaries_surround_a_moving_square_only() -> None:
    flow = torch.zeros(1, 2, 12, 12)
    flow[:, 1, 4:8, 4:8] = 3
    found = motion_boundaries(flow)[0]
    assert found[4, 4] and found[3, 5] and found[7, 8]
    assert not found[5:7, 5:7].any() and not found[:3].any() and not found[:, 9:].any()


def test_what_is_no_flow_is_refused() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    with pytest.raises(ValueError, match="both flows must be"):
        occlusion(flow, torch.zeros(1, 2, 4, 5))
    with pytest.raises(ValueError, match="both flows must be"):
        occlusion(flow[:, :1], flow[:, :1])
    with pytest.raises(ValueError, match="flow must be"):
        motion_boundaries(flow[0])
