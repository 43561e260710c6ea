"""Space-time motion: splines, fits and losses of the reference, exact on their own motions, any number of frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffslic.segmentation import (
    fit_spacetime,
    spacetime,
    spacetime_flow,
    spacetime_loss,
    spline_basis,
    temporal_consistency,
)

CASES = ["blackswan_32x48_L2", "blackswan_32x48_L4", "blackswan_64x96_L2"]


def load(reference: Path, case: str) -> tuple[dict[str, np.ndarray], Tensor, Tensor]:
    with np.load(reference / f"reference/motion/coherence_lt_{case}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return arrays, torch.from_numpy(arrays["flow"]).double(), torch.from_numpy(arrays["masks"]).double()


def test_the_published_splines(reference: Path) -> None:
    with np.load(reference / "reference/motion/coherence_lt_splinebasis.npz") as file:
        for name in (key for key in file.files if key.startswith("basis")):
            n_frames, spacing = (int(part.strip("Tfk")) for part in name.split("_")[1:])
            basis = spline_basis(n_frames, spacing, published=True)
            assert np.abs(basis.numpy() - file[name]).max() < 1e-6


@pytest.mark.parametrize("n_frames", [1, 2, 3, 4, 5, 9, 10, 31])
@pytest.mark.parametrize("spacing", [1, 2, 3, 7])
def test_our_splines_hold_what_is_constant_or_linear(n_frames: int, spacing: int) -> None:
    basis = spline_basis(n_frames, spacing)
    assert basis.shape == (n_frames, (n_frames - 2) // spacing + 2) and (basis >= 0).all()
    torch.testing.assert_close(basis.sum(1), torch.ones(n_frames).double())
    course = torch.arange(n_frames).double()[:, None] ** torch.arange(min(2, basis.shape[1]))
    best = basis @ torch.linalg.lstsq(basis, course, driver="gelsd").solution
    torch.testing.assert_close(best, course, atol=1e-9, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("distance", ["l1", "l2", "squared"])
def test_losses_equal_the_reference(reference: Path, case: str, distance: str) -> None:
    arrays, flow, masks = load(reference, case)
    for normalised, name in ((False, "pieceFit"), (True, "pieceFitScale")):
        loss = spacetime_loss(masks, flow, distance=distance, normalised=normalised, published=True)
        assert np.abs(loss.numpy() - arrays[f"ols_loss_{name}_{distance}"]).max() < 1e-5
        single = spacetime_loss(masks.float(), flow.float(), distance=distance, normalised=normalised, published=True)
        assert np.abs(single.numpy() - arrays[f"ols_loss_{name}_{distance}"]).max() < 1e-4
    if distance != "squared":
        robust = spacetime_loss(masks, flow, distance=distance, fit="irls", published=True)
        assert (robust.numpy() <= arrays[f"optim_loss_pieceFitScale_{distance}"] + 1e-3).all()


@pytest.mark.parametrize("case", CASES)
def test_fitted_flow_and_regularisers_equal_the_reference(reference: Path, case: str) -> None:
    arrays, flow, masks = load(reference, case)
    theta = fit_spacetime(flow, masks, published=True)
    corners = spacetime_flow(theta, 9, flow.shape[-2:], published=True)[..., [0, -1], :][..., [0, -1]]
    assert np.abs(corners.numpy() - arrays["ols_flow_corners"]).max() < 1e-4
    still = flow[:, :, :1].expand_as(flow)
    for name, value in (("EulerPottsl1R3", temporal_consistency(masks, flow)), ("Potts", spacetime.potts(masks)),
                        ("EulerPottsl1", temporal_consistency(masks)), ("Entropy", spacetime.entropy(masks)),
                        ("EulerPottsl1R3_staticflow", temporal_consistency(masks, still))):
        assert np.abs(value.numpy() - arrays[f"reg_{name}"]).max() < 1e-6


def motions(n_frames: int, degree: int) -> Tensor:
    """(1, 2, T, 20, 30): quadratic in the place, polynomial in time."""
    chance = torch.Generator().manual_seed(degree)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 30), indexing="ij")
    places = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y]).double()
    times = torch.linspace(-1, 1, n_frames).double()[:, None] ** torch.arange(degree + 1)
    factors = torch.randn(2, degree + 1, 6, generator=chance).double()
    return torch.einsum("cdf,td,fhw->cthw", factors, times, places)[None]


@pytest.mark.parametrize(("n_frames", "degree"), [(1, 0), (2, 1), (3, 1), (4, 1), (9, 0), (9, 1), (9, 2), (30, 2)])
@pytest.mark.parametrize("fit", ["ls", "irls"])
def test_motions_are_fitted_exactly(n_frames: int, degree: int, fit: str) -> None:
    flow = motions(n_frames, degree)
    masks = torch.ones(1, 1, n_frames, 20, 30).double()
    theta = fit_spacetime(flow, masks, fit=fit)
    assert (spacetime_flow(theta, n_frames, (20, 30))[:, 0] - flow).abs().max() < 1e-6
    assert spacetime_loss(masks, flow, fit=fit) < 1e-6


def test_the_published_splines_cannot_hold_a_constant() -> None:
    flow = motions(9, 0)
    masks = torch.ones(1, 1, 9, 20, 30).double()
    assert spacetime_loss(masks, flow, published=True) > 1e-3


def test_two_bodies_over_time_are_told_apart() -> None:
    left = (torch.arange(30) < 12).double().expand(1, 1, 9, 20, 30)
    masks = torch.cat([left, 1 - left], dim=1)
    flow = left * motions(9, 1) + (1 - left) * motions(9, 2)
    assert spacetime_loss(masks, flow) < 1e-6 < 0.1 < spacetime_loss(torch.full_like(masks, 0.5), flow)
    swapped = torch.cat([masks[:, :, :5], masks[:, :, 5:].flip(1)], dim=2)  # a layer that changes its body half way
    assert spacetime_loss(swapped, flow) > 0.05


def test_the_gradient_of_a_mask_is_its_distance() -> None:
    flow = motions(5, 2) + torch.randn(1, 2, 5, 20, 30, generator=torch.Generator().manual_seed(0)).double()
    masks = torch.rand(1, 3, 5, 20, 30, generator=torch.Generator().manual_seed(1)).double().softmax(1).requires_grad_()
    spacetime_loss(masks, flow, normalised=False).sum().backward()
    theta = fit_spacetime(flow, masks.detach())
    expected = (spacetime_flow(theta, 5, (20, 30)) - flow[:, None]).abs().sum(2) / (5 * 20 * 30)
    torch.testing.assert_close(masks.grad, expected, atol=1e-12, rtol=1e-6)


def test_frames_that_do_not_move_count_as_they_are() -> None:
    masks = torch.full((1, 2, 4, 8, 9), 0.5)
    for flow in (torch.zeros(1, 2, 4, 8, 9), torch.full((1, 2, 4, 8, 9), 2.0)):
        assert spacetime_loss(masks, flow, fit="irls") < 1e-5
    assert temporal_consistency(masks[:, :, :1], None) == 0 and spacetime.potts(masks[:, :, :1]) == 0


@pytest.mark.parametrize(("change", "reason"), [
    ({"flow": torch.zeros(1, 3, 3, 4, 5)}, "flow must be"), ({"flow": torch.full((1, 2, 3, 4, 5), torch.nan)}, "known"),
    ({"flow": torch.full((1, 2, 3, 4, 5), 1e9)}, "known"), ({"masks": torch.ones(1, 2, 3, 4, 5)}, "sum to one"),
    ({"masks": torch.ones(1, 1, 3, 4, 6)}, "masks must be"), ({"model": "cubic"}, "model must be"),
    ({"fit": "huber"}, "fit must be"), ({"distance": "l3"}, "distance must be"), ({"spacing": 0}, "spacing of 1")])
def test_bad_input_is_refused(change: dict, reason: str) -> None:
    arguments = {"masks": torch.ones(1, 1, 3, 4, 5), "flow": torch.zeros(1, 2, 3, 4, 5)} | change
    with pytest.raises(ValueError, match=reason):
        spacetime_loss(**arguments)


@pytest.mark.parametrize("flow", [torch.zeros(4), torch.full((1, 2, 3, 6, 8), torch.nan), torch.zeros(1, 2, 3, 6, 9)])
def test_flow_that_is_none_of_the_masks_is_refused(flow):
    masks = torch.ones(1, 1, 3, 6, 8)
    for function in (spacetime_loss, temporal_consistency):
        with pytest.raises(ValueError, match="must be"):
            function(masks, flow)
