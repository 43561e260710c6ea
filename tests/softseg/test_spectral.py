"""Spectral segments of graphs whose parts are known."""

import pytest
import torch

from diffslic import softseg


def blobs(sizes=(12, 8, 5), channels=4, spread=0.05):
    """Vectors in well separated heaps, and which heap each is of."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.eye(len(sizes), channels)
    of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return centres[of] + spread * torch.randn(len(of), channels, generator=generator), of


def test_affinity_is_what_the_loss_says_of_a_pair():
    vectors, _ = blobs()
    weights = softseg.affinity(vectors)
    assert torch.allclose(weights, weights.T) and weights.diagonal().count_nonzero() == 0
    pair = vectors[None, [3, 7]]
    loss = softseg.n_pair_loss(pair, torch.zeros(1, 2, dtype=torch.int64))
    assert -weights[3, 7].log() == pytest.approx(loss.item(), abs=1e-5)


def test_superpixels_further_apart_than_the_radius_are_not_joined():
    vectors, centres = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
    assert softseg.affinity(vectors, centres, 1.5).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match="centres=... is missing"):
        softseg.affinity(vectors, None, 1.5)
    with pytest.raises(ValueError, match="radius must be above 0"):
        softseg.affinity(vectors, centres, 0.0)


def test_the_laplacian_of_a_known_graph():
    path = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
    root = 0.5 ** 0.5
    expected = torch.tensor([[1, -root, 0], [-root, 1, -root], [0, -root, 1]])
    assert torch.allclose(softseg.normalised_laplacian(path), expected)
    spectrum = softseg.spectrum(path, 3)
    assert torch.allclose(spectrum.values, torch.tensor([0.0, 1.0, 2.0]), atol=1e-6)
    assert torch.allclose(spectrum.vectors.norm(dim=0), torch.ones(3))


def test_an_isolated_node_has_a_row_of_its_own_and_belongs_nowhere():
    weights = torch.zeros(4, 4, dtype=torch.float64)
    weights[0, 1] = weights[1, 0] = 1
    weights[0, 2] = weights[2, 0] = 1  # node 3 is isolated
    assert softseg.normalised_laplacian(weights)[3].tolist() == [0, 0, 0, 1]
    spectrum = softseg.spectrum(weights, 2)
    assert torch.isfinite(spectrum.vectors).all() and spectrum.values[0].abs() < 1e-12
    shares = softseg.soft_assignment(spectrum.vectors, 2)
    assert torch.allclose(shares.sum(1), torch.ones(4, dtype=torch.float64))
    more = softseg.spectrum(weights, 3)  # of the eigenvalues 0, 1, 1, 2
    assert more.values[1:].tolist() == pytest.approx([1, 1])


def test_heaps_become_segments_the_largest_first():
    vectors, of = blobs()
    shares = softseg.soft_assignment(softseg.spectrum(softseg.affinity(vectors), 3).vectors, 3)
    assert torch.equal(shares.argmax(1), of)
    assert shares.max(1).values.min() > 0.99
    assert torch.allclose(shares.sum(1), torch.ones(len(of), dtype=torch.float64))


def test_what_lies_between_two_heaps_is_of_both():
    vectors, _ = blobs((10, 10))
    between = vectors.mean(0, keepdim=True)
    shares = softseg.soft_assignment(softseg.spectrum(softseg.affinity(torch.cat([vectors, between])), 2).vectors, 2)
    assert 0.2 < shares[-1, 0] < 0.8


def test_softness_and_the_same_answer_twice():
    points, _ = blobs(spread=0.6)
    hard, soft = (softseg.soft_assignment(points, 3, softness) for softness in (0.01, 1.0))
    assert hard.max(1).values.mean() > soft.max(1).values.mean()
    assert torch.equal(hard, softseg.soft_assignment(points, 3, 0.01))


def test_as_many_segments_as_superpixels_and_equal_vectors():
    vectors, _ = blobs((2, 1))
    spectrum = softseg.spectrum(softseg.affinity(vectors), 3)
    assert softseg.soft_assignment(spectrum.vectors, 3).shape == (3, 3)
    alike = softseg.spectrum(softseg.affinity(torch.zeros(6, 2)), 3)
    shares = softseg.soft_assignment(alike.vectors, 3)
    assert torch.isfinite(shares).all() and torch.allclose(shares.sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.equal(softseg.soft_assignment(alike.vectors, 1), torch.ones(6, 1, dtype=torch.float64))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: softseg.spectrum(torch.zeros(3, 3), 4), "graph of 3 nodes has as many eigenvectors, got n = 4"),
    (lambda: softseg.soft_assignment(torch.rand(3, 2), 4), "3 superpixels make from 1 to 3 segments, got 4"),
    (lambda: softseg.soft_assignment(torch.rand(3, 2), 2, 0.0), "softness must be above 0"),
    (lambda: softseg.normalised_laplacian(torch.rand(3, 4)), "symmetric"),
    (lambda: softseg.normalised_laplacian(torch.tensor([[0.0, -1], [-1, 0]])), "from 0"),
    (lambda: softseg.normalised_laplacian(torch.tensor([[0.0, 1], [2, 0]])), "symmetric")])
def test_nonsense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
