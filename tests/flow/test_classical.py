"""Flow by libraries: known translations, and sizes that disagree."""

import pytest
import torch

from diffslic import datasets, geometry, metrics
from diffslic.flow import tvl1


def test_a_translation_is_found():
    frame = datasets.open("scenes", n_clips=1, n_frames=2, size=(64, 80))[0].frame(0)
    shift = torch.tensor([2.0, -1.0])[:, None, None].expand(2, 64, 80)
    second = geometry.warp(frame[None], -shift[None], padding="border")[0]
    found, = tvl1([frame, second])
    assert metrics.flow(found[:, 8:-8, 8:-8], shift[:, 8:-8, 8:-8])["epe"] < 0.3


def test_frames_of_two_sizes():
    with pytest.raises(ValueError, match="of one size"):
        list(tvl1([torch.rand(3, 8, 8), torch.rand(3, 8, 9)]))
