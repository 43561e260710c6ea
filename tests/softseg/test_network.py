"""The embedding network, and vectors as a picture."""

import pytest
import torch

from diffslic import softseg
from diffslic.softseg import EmbeddingConfig, EmbeddingNet
from diffslic.training import save_weights

SMALL = EmbeddingConfig(widths=(8, 16), strides=(2, 2), out_channels=16)


@pytest.mark.parametrize(("size", "cells"), [((24, 32), (12, 16)), ((25, 33), (13, 17)), ((1, 1), (1, 1))])
def test_any_size_gets_vectors_at_the_first_blocks_scale(size, cells):
    assert EmbeddingNet(SMALL).eval()(torch.rand(2, 3, *size)).shape == (2, 16, *cells)


def test_the_papers_network_is_the_default():
    net = EmbeddingNet()
    assert net.config == EmbeddingConfig((64, 128, 256), (1, 2, 2), 1, 128)
    assert net(torch.rand(1, 3, 8, 8)).shape == (1, 128, 8, 8)


def test_the_last_three_channels_are_the_colour():
    net = EmbeddingNet(SMALL).eval()
    grey, red = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(1, 3, 8, 8)
    assert net(grey)[0, -2:].abs().max() < 1e-3  # no a and no b
    assert net(red)[0, -2:].min() > 0.5


def test_weights_come_back(tmp_path):
    net = EmbeddingNet(SMALL).eval()
    net.save(tmp_path / "net.safetensors")
    again, image = EmbeddingNet.from_pretrained(tmp_path / "net.safetensors"), torch.rand(1, 3, 9, 9)
    assert torch.equal(again(image), net(image)) and again.config == SMALL and not again.training


def test_shipped_weights_tell_a_texture_from_a_plain_wall():
    net = EmbeddingNet.from_pretrained("scenes")
    image = torch.full((1, 3, 64, 64), 0.5)
    image[..., 32:] += 0.25 * (torch.arange(32) % 4 < 2).float() - 0.125  # stripes, of the same mean
    halves = torch.zeros(1, 64, 64, dtype=torch.int64)
    halves[..., 16:] = 1
    halves[..., 32:] = 2
    halves[..., 48:] = 3
    with torch.no_grad():
        distances = softseg.squared_distances(softseg.pool(net(image), halves))[0]
    assert distances[0, 1] < distances[1, 2] and distances[2, 3] < distances[1, 2]


def test_other_weights_and_wrong_shapes_are_refused(tmp_path):
    save_weights(tmp_path / "other.safetensors", {"a": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="does not hold the weights of an embedding network"):
        EmbeddingNet.from_pretrained(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match="no softseg weights named 'x'"):
        EmbeddingNet.from_pretrained("x")
    with pytest.raises(ValueError, match="every block has a width and a stride"):
        EmbeddingConfig(widths=(8, 16), strides=(2,))
    with pytest.raises(ValueError, match="out_channels above 3"):
        EmbeddingConfig(out_channels=3)
    with pytest.raises(ValueError, match="images must be RGB"):
        EmbeddingNet(SMALL)(torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("size", [(40, 50), (7, 5), (2, 3), (1, 1)])
def test_a_picture_of_vectors_has_the_images_size_and_range(size):
    picture = softseg.feature_picture(torch.randn(8, *size), torch.rand(3, *size))
    assert picture.shape == (3, *size) and 0 <= picture.min() and picture.max() <= 1


def test_two_halves_have_two_colours_and_a_sharp_edge():
    image, vectors = torch.zeros(3, 30, 40), torch.zeros(6, 30, 40)
    image[..., 20:], vectors[2, :, 20:] = 1, 5.0
    noisy = vectors + 0.1 * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))
    first = softseg.feature_picture(noisy, image)[0]
    assert (first[:, 19] - first[:, 20]).abs().min() > 0.8
    assert first[:, :18].std() < 0.1 and first[:, 22:].std() < 0.1


def test_a_picture_of_nothing_is_grey_and_nonsense_is_refused():
    assert (softseg.feature_picture(torch.zeros(4, 6, 7), torch.rand(3, 6, 7)) - 0.5).abs().max() < 1e-6
    for vectors in (torch.rand(2, 6, 7), torch.rand(4, 6, 8), torch.rand(6, 7)):
        with pytest.raises(ValueError, match="3 channels or more"):
            softseg.feature_picture(vectors, torch.rand(3, 6, 7))
    with pytest.raises(ValueError, match="finite"):
        softseg.feature_picture(torch.full((4, 6, 7), float("nan")), torch.rand(3, 6, 7))
