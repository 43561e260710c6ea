"""Correlation: all pairs at once, row by row, the other way round and in old memory give the same numbers."""

import pytest
import torch

from diffslic import geometry
from diffslic.flow import correlation as module
from diffslic.flow.correlation import RowBlocks, Volume, correlation, correlation_pyramid

LEVELS, RADIUS = 4, 3


def some_features(batch=2, size=(11, 17), dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(batch, 8, *size, generator=generator, dtype=dtype) for _ in range(2)]


def some_positions(batch, size, spread=4.0, dtype=torch.float64):
    noise = torch.randn(batch, 2, *size, generator=torch.Generator().manual_seed(4), dtype=dtype)
    return geometry.pixel_grid(*size, dtype=dtype) + spread * noise


def volume_of(features1, features2, levels=LEVELS):
    return Volume(correlation_pyramid(features1, features2, levels), RADIUS)


@pytest.mark.parametrize("size", [(11, 17), (1, 9), (9, 1), (2, 2), (40, 24)])
@pytest.mark.parametrize("spread", [0.0, 4.0, 100.0])
def test_rows_of_cells_give_what_all_pairs_give(monkeypatch, size, spread):
    features, position = some_features(size=size), some_positions(2, size, spread)
    expected = volume_of(*features)(position)
    for block in (1, 3 * 4 * 2 * size[1] * size[0] * size[1], 1e9):  # a row at a time, three rows, all
        monkeypatch.setattr(module, "BLOCK", block)
        assert (RowBlocks(*features, LEVELS, RADIUS)(position) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("levels", [1, 4])
def test_a_volume_the_other_way_round(levels):
    features1, features2 = some_features()
    position = some_positions(2, (11, 17))
    expected = volume_of(features2, features1, levels)(position)
    back = volume_of(features1, features2, levels).reversed(features1, features2)
    assert (back(position) - expected).abs().max() < 1e-12
    rows = RowBlocks(features1, features2, levels, RADIUS).reversed(features1, features2)
    assert (rows(position) - expected).abs().max() < 1e-12


def test_a_renewed_volume_uses_the_old_memory():
    features1, features2 = some_features()
    volume = volume_of(features1, features1)
    places = [level.data_ptr() for level in volume.pyramid]
    renewed = volume.renewed(features1, features2)
    assert [level.data_ptr() for level in renewed.pyramid] == places
    assert all(map(torch.equal, renewed.pyramid, correlation_pyramid(features1, features2, LEVELS)))


def test_the_size_decides_between_the_two(monkeypatch):
    features = some_features(batch=1, size=(8, 8))
    bytes_needed = 4 * 64 * (64 + 16 + 4 + 1)
    monkeypatch.setattr(module, "LARGEST_VOLUME", bytes_needed)
    assert isinstance(correlation(*features, LEVELS, RADIUS), Volume)
    monkeypatch.setattr(module, "LARGEST_VOLUME", bytes_needed - 1)
    assert isinstance(correlation(*features, LEVELS, RADIUS), RowBlocks)


@pytest.mark.parametrize("readings", [0, 1, 3])
def test_one_gradient_collects_all_readings(readings):
    """As if every reading had made its own: also of the volume's other uses, twice, and with no reading at all."""
    volume = torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)
    index = [torch.randint(12, (2, 5, 7)) for _ in range(readings)]

    def value(read):
        return sum((read(each).square().sum() for each in index), start=volume.square().sum())

    expected, = torch.autograd.grad(value(lambda each: volume.gather(2, each)), volume)
    for _ in range(2):
        found, = torch.autograd.grad(value(module._Taps(volume)), volume)
        assert (found - expected).abs().max() < 1e-12


def test_gradients_pass_through_both(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1)
    position = some_positions(1, (5, 6), 1.0)
    gradients = []
    for make in (volume_of, lambda *features: RowBlocks(*features, LEVELS, RADIUS)):
        features = [each.requires_grad_() for each in some_features(1, (5, 6))]
        make(*features)(position).square().sum().backward()
        gradients.append([each.grad for each in features])
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(*gradients))
