"""Smoothing by superpixels: what is simple inside a superpixel stays, noise and single errors go."""

import pytest
import torch

from diffslic import geometry
from diffslic.flow import smooth_by_superpixels
from diffslic.superpixels import SoftSLIC, grid_for, soft_slic

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def superpixels() -> SoftSLIC:
    """About 24 superpixels of position alone."""
    grid = geometry.pixel_grid(HEIGHT, WIDTH)[None]
    return soft_slic(grid / 5, grid_for(24, HEIGHT, WIDTH), 3)


def an_affine_flow() -> torch.Tensor:
    x, y = geometry.pixel_grid(HEIGHT, WIDTH)
    return torch.stack([3 + 0.1 * x - 0.05 * y, -1 + 0.02 * x + 0.08 * y])[None]


@pytest.mark.parametrize("hard", [False, True])
def test_what_the_model_explains_stays(superpixels, hard):
    superpixels = superpixels.harden() if hard else superpixels
    constant = torch.tensor([2.0, -1.0])[:, None, None].expand(1, 2, HEIGHT, WIDTH)
    for model in ("constant", "affine"):
        assert (smooth_by_superpixels(constant, superpixels, model) - constant).abs().max() < 1e-3
    flow = an_affine_flow()
    assert (smooth_by_superpixels(flow, superpixels) - flow).abs().mean() < 0.05  # the stiffness leans a little
    assert (smooth_by_superpixels(flow, superpixels, "constant") - flow).abs().mean() > 0.1


def test_noise_goes_and_so_do_single_errors(superpixels):
    torch.manual_seed(0)
    flow = an_affine_flow()
    noisy = flow + 0.5 * torch.randn_like(flow)
    assert (smooth_by_superpixels(noisy, superpixels) - flow).norm(dim=1).mean() \
        < 0.4 * (noisy - flow).norm(dim=1).mean()
    wrong = flow.clone()
    wrong[:, :, ::7, ::7] += 30
    robust, plain = ((smooth_by_superpixels(wrong, superpixels, n_iters=n) - flow).norm(dim=1).mean() for n in (6, 1))
    assert robust < 0.3 * plain


def test_one_fit_of_a_constant_is_the_mean(superpixels):
    flow = torch.randn(2, 2, HEIGHT, WIDTH)
    double = SoftSLIC(superpixels.affinity.expand(2, -1, -1, -1), superpixels.centroids.expand(2, -1, -1),
                      superpixels.grid)
    expected = double.unpool(double.pool(flow))
    assert (smooth_by_superpixels(flow, double, "constant", n_iters=1) - expected).abs().max() < 1e-5


def test_empty_superpixels_do_no_harm_and_gradients_pass(superpixels):
    features = torch.zeros(1, 2, HEIGHT, WIDTH, requires_grad=True)
    empty = soft_slic(features, (6, 9), 1)  # nothing tells the pixels apart: hardened, most superpixels get none
    flow = an_affine_flow().requires_grad_()
    assert smooth_by_superpixels(flow, empty.harden()).isfinite().all()
    smooth_by_superpixels(flow, superpixels).sum().backward()
    assert flow.grad.isfinite().all() and flow.grad.abs().sum() > 0


def test_bad_input(superpixels):
    with pytest.raises(ValueError, match="flow must be"):
        smooth_by_superpixels(torch.zeros(1, 3, HEIGHT, WIDTH), superpixels)
    with pytest.raises(ValueError, match="constant or affine .* got 'cubic' and 3"):
        smooth_by_superpixels(an_affine_flow(), superpixels, "cubic")
    with pytest.raises(ValueError, match="got 'affine' and 0"):
        smooth_by_superpixels(an_affine_flow(), superpixels, n_iters=0)
