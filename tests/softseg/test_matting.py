"""The matting Laplacian against exact arithmetic and another implementation; alphas that a blend was made with."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from skimage import data

from diffslic import softseg
from diffslic.softseg import matting


def photograph(rows=60, columns=80):
    return torch.from_numpy(data.astronaut()[100:100 + rows, 150:150 + columns]).permute(2, 0, 1) / 255


def inverse(matrix):
    """Of a 3 x 3 matrix of fractions, by cofactors."""
    minor = [[matrix[i - 2][j - 2] * matrix[i - 1][j - 1] - matrix[i - 2][j - 1] * matrix[i - 1][j - 2]
              for j in range(3)] for i in range(3)]
    determinant = sum(matrix[0][j] * minor[0][j] for j in range(3))
    return [[minor[j][i] / determinant for j in range(3)] for i in range(3)]


def exact_laplacian(image, regularisation):
    """The definition word by word, in fractions: no digit is lost."""
    _, height, width = image.shape
    pixel = [[[Fraction(float(image[c, y, x])) for c in range(3)] for x in range(width)] for y in range(height)]
    laplacian = [[Fraction(0)] * (height * width) for _ in range(height * width)]
    for top in range(height - 2):
        for left in range(width - 2):
            places = [(top + i, left + j) for i in range(3) for j in range(3)]
            colours = [pixel[y][x] for y, x in places]
            mean = [sum(colour[c] for colour in colours) / 9 for c in range(3)]
            centred = [[colour[c] - mean[c] for c in range(3)] for colour in colours]
            covariance = [[sum(v[a] * v[b] for v in centred) / 9 + (Fraction(regularisation) / 9 if a == b else 0)
                           for b in range(3)] for a in range(3)]
            metric = inverse(covariance)
            for i, (y, x) in enumerate(places):
                for j, (v, u) in enumerate(places):
                    product = sum(centred[i][a] * metric[a][b] * centred[j][b] for a in range(3) for b in range(3))
                    laplacian[y * width + x][v * width + u] += (i == j) - (1 + product) / 9
    return np.array([[float(value) for value in row] for row in laplacian])


@pytest.mark.parametrize("regularisation", [1e-7, 1e-3])
@pytest.mark.parametrize("flat", [False, True])
def test_the_laplacian_is_that_of_exact_arithmetic(regularisation, flat):
    image = torch.rand(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if flat:  # windows whose covariance is near the regularisation, where digits are lost
        image = 0.5 + 1e-4 * image
    ours = softseg.matting_laplacian(image, regularisation).to_dense().numpy()
    np.testing.assert_allclose(ours, exact_laplacian(image, regularisation), rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(3, 3), (4, 9), (60, 80)])
def test_rows_sum_to_zero_and_no_eigenvalue_is_negative(size):
    laplacian = softseg.matting_laplacian(photograph(*size)).to_dense()
    assert torch.allclose(laplacian, laplacian.T)
    assert laplacian.sum(1).abs().max() < 1e-10
    assert torch.linalg.eigvalsh(laplacian).min() > -1e-9


@pytest.mark.parametrize("size", [(1, 1), (2, 7)])
def test_an_image_without_a_window_has_no_line_to_follow(size):
    assert softseg.matting_laplacian(torch.rand(3, *size)).to_dense().count_nonzero() == 0
    segments = torch.rand(2, *size).softmax(0)
    assert torch.allclose(softseg.refine(segments, torch.rand(3, *size)), segments)


def test_it_is_pymattings():
    pymatting = pytest.importorskip("pymatting", reason="pip install pymatting to compare with it")
    # Of noise: in flat windows of a photograph pymatting's inverse of the covariance is off by up to 4e-6 itself.
    image = torch.rand(3, 40, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = pymatting.cf_laplacian(image.permute(1, 2, 0).numpy(), epsilon=1e-7, radius=1).toarray()
    np.testing.assert_allclose(softseg.matting_laplacian(image).to_dense().numpy(), theirs, rtol=0, atol=1e-10)


def blend(rows=48, columns=64):
    """Two plain colours mixed by a soft edge: image, and the alphas (2, H, W) it was made with."""
    alpha = torch.sigmoid((torch.arange(columns) - columns / 2) / 3.0).expand(rows, -1)
    colours = torch.tensor([[0.9, 0.2, 0.1], [0.1, 0.3, 0.8]])
    shares = torch.stack([alpha, 1 - alpha])
    return torch.einsum("lhw,lc->chw", shares, colours), shares


def test_a_blend_gets_the_alphas_it_was_made_with():
    image, truth = blend()
    hard = torch.stack([truth[0] > 0.5, truth[0] <= 0.5]).float()
    refined = softseg.refine(hard, image, strength=1e-4)
    assert (hard - truth).abs().max() > 0.4
    assert (refined - truth).abs().max() < 0.06
    assert (refined - truth).abs().mean() < 0.25 * (hard - truth).abs().mean()


def test_alphas_lie_between_zero_and_one_and_sum_to_one():
    image = photograph()
    segments = (10 * torch.rand(4, 6, 8, generator=torch.Generator().manual_seed(2))).softmax(0)
    segments = segments.repeat_interleave(10, 1).repeat_interleave(10, 2)
    alphas = softseg.refine(segments, image)
    assert alphas.min() >= 0 and alphas.max() <= 1
    assert (alphas.double().sum(0) - 1).abs().max() < 1e-6
    assert alphas.dtype == segments.dtype


def test_the_equations_are_solved_to_the_tolerance():
    q = torch.rand(480, 3, generator=torch.Generator().manual_seed(3))
    laplacian = softseg.matting_laplacian(photograph(20, 24))
    exact = torch.linalg.solve(laplacian.to_dense() + 1e-2 * torch.eye(480), 1e-2 * q.double())
    found = matting._conjugate_gradients(laplacian, 1e-2, q, 1e-5)
    assert (q - exact).abs().max() > 0.1
    assert (found - exact).abs().max() < 1e-3


def test_a_segment_that_is_everywhere_stays_so():
    empty = torch.stack([torch.ones(20, 20), torch.zeros(20, 20)])
    assert torch.allclose(softseg.refine(empty, photograph(20, 20)), empty, atol=1e-5)


@pytest.mark.parametrize(("segments", "options", "message"), [
    (torch.ones(2, 20, 20), {}, "sum to one"),
    (torch.stack([torch.full((20, 20), 2.0), torch.full((20, 20), -1.0)]), {}, "from 0"),
    (torch.full((2, 20, 20), float("nan")), {}, "from 0"),
    (torch.ones(1, 20, 21), {}, r"of the image's \(20, 20\)"),
    (torch.ones(1, 20, 20), {"strength": 0.0}, "strength must be above 0")])
def test_nonsense_is_refused(segments, options, message):
    with pytest.raises(ValueError, match=message):
        softseg.refine(segments, photograph(20, 20), **options)
    with pytest.raises(ValueError, match="image must be finite"):
        softseg.refine(torch.ones(1, 20, 20), photograph(20, 20) / 0)


def test_the_laplacian_refuses_nonsense():
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\)"):
        softseg.matting_laplacian(torch.rand(1, 3, 5, 5))
    with pytest.raises(ValueError, match="regularisation must be above 0"):
        softseg.matting_laplacian(torch.rand(3, 5, 5), 0.0)
