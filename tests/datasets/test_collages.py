"""Collages: the flow is exact, the pictures follow it, and chance comes from the generator alone."""

import numpy as np
import pytest
import torch

from diffslic import geometry
from diffslic.datasets import collages as module
from diffslic.datasets.collages import _backwards, _forwards, _random_pieces, collages
from diffslic.datasets.io import write_image
from diffslic.datasets.photographs import SHIPPED, photographs
from diffslic.datasets.scenes import Scene

SIZE = (96, 128)


def some(seed=0, batch=6):
    return collages(photographs(), batch, SIZE, np.random.default_rng(seed))


def test_shapes_ranges_and_chance():
    pair = some()
    assert pair.image1.shape == pair.image2.shape == (6, 3, *SIZE) and pair.flow.shape == (6, 2, *SIZE)
    assert pair.image1.min() >= 0 and pair.image1.max() <= 1
    assert pair.pieces.dtype == torch.int64 and pair.pieces.unique().numel() > 3
    assert all(map(torch.equal, pair, some()))
    assert not torch.equal(pair.flow, some(1).flow)


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_the_flow_inverts_the_motion_that_was_drawn(seed):
    drawn = _random_pieces(4, 5, SIZE, np.random.default_rng(seed))
    pieces = module._Pieces(*map(torch.from_numpy, drawn))
    assert pieces.height.norm(dim=-1).max() > 0  # some of them bend
    here = torch.rand(5, 2, 300, dtype=torch.float64) * 100 - 50
    for number in range(5):
        there = _forwards(pieces, here[number:number + 1], torch.full((1, 300), number))
        one = module._Pieces(*(field[number:number + 1] for field in pieces))
        assert (_backwards(one, there) - here[number]).abs().max() < 2e-3  # pixels


def test_the_second_picture_shows_what_the_flow_says():
    pair = some(5, batch=12)
    error = (geometry.warp(pair.image2, pair.flow) - pair.image1).abs().mean(1)
    inside = geometry.lands_inside(pair.flow)
    for i in range(12):
        still = (pair.image2[i] - pair.image1[i]).abs().mean(0)
        assert error[i][inside[i]].median() < 0.01
        assert error[i][inside[i]].mean() < still[inside[i]].mean() or pair.flow[i].norm(dim=0).mean() < 1


def test_slow_and_fast():
    lengths = torch.cat([some(seed).flow.norm(dim=1).flatten(1).mean(1) for seed in range(8)])
    assert lengths.min() < 1 and lengths.max() > 10


def test_photographs_of_a_folder_are_used_by_collages_and_scenes(tmp_path):
    red = torch.tensor([1.0, 0.0, 0.0])[:, None, None].expand(3, 40, 50)
    for i in range(2):
        write_image(tmp_path / f"{i}.png", red * (1 - 0.2 * i))
    found = photographs(tmp_path)
    assert [image.shape for image in found] == [(3, 40, 50)] * 2 and found[0].dtype == torch.uint8
    pair = collages(found, 2, SIZE, np.random.default_rng(0))
    assert pair.image1.flatten(2).std(-1).max() < 0.35  # pieces of plain red on plain red
    scene, other = (Scene("lab", 2, (24, 32), textures=folder).view([0]).image for folder in (tmp_path, None))
    assert not torch.equal(scene, other)
    assert len(photographs()) == len(SHIPPED)


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of photographs"):
        photographs(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no images"):
        photographs(tmp_path)
    with pytest.raises(ValueError, match="at least 3 pieces, got 15 and 2"):
        collages(photographs(), 1, SIZE, np.random.default_rng(0), n_pieces=2)
    with pytest.raises(ValueError, match="got 0 and 6"):
        collages([], 1, SIZE, np.random.default_rng(0))
