"""Motion models: exact on their own flows, equal to a naive solver and the reference, robust where they claim it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffslic.segmentation import camera_motion, coherence_loss, fit_motion, motion_basis, motion_flow, spacetime_loss

CASES = ["blackswan_crop_64x96_L4", "blackswan_resize_32x48_L2", "poly_32x48_L4", "poly_64x96_L2"]


def reconstruction_loss(flow: Tensor, masks: Tensor, theta: Tensor, model: str, distance: str) -> Tensor:
    """(B,): mean over pixels of the masks' distances between the fitted and the given flow."""
    residual = motion_flow(theta, *flow.shape[-2:], model) - flow[:, None]
    lengths = {"l1": residual.abs().sum(2), "l2": residual.norm(dim=2), "squared": residual.square().sum(2)}
    return (masks * lengths[distance]).sum(1).mean((1, 2))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["affine", "quadratic"])
def test_least_squares_equal_the_reference_losses(reference: Path, case: str, model: str) -> None:
    arrays = np.load(reference / f"reference/motion/coherence_em_{case}.npz")
    for dtype, atol, rtol in [(torch.float64, 1e-5, 1e-5), (torch.float32, 3e-4, 0)]:
        flow, masks = (torch.from_numpy(arrays[key]).to(dtype) for key in ("flow", "masks"))
        theta = fit_motion(flow, masks, model)
        for distance in ("l1", "l2", "squared"):
            expected = torch.from_numpy(arrays[f"ols_loss_{model.title()}_{distance}"]).to(dtype)
            torch.testing.assert_close(reconstruction_loss(flow, masks, theta, model, distance), expected,
                                       atol=atol, rtol=rtol)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["affine", "quadratic"])
@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_reweighting_reaches_what_an_optimiser_reached(reference: Path, case: str, model: str, distance: str) -> None:
    arrays = np.load(reference / f"reference/motion/coherence_em_{case}.npz")
    flow, masks = (torch.from_numpy(arrays[key]).double() for key in ("flow", "masks"))
    theta = fit_motion(flow, masks, model, fit="irls", distance=distance)
    loss = reconstruction_loss(flow, masks, theta, model, distance).numpy()
    peer = arrays[f"optim_loss_{model.title()}_{distance}"]
    assert (loss <= peer + 1e-3).all() and (loss <= 1.01 * peer).all()


def test_basis_is_centred_with_square_pixels() -> None:
    basis = motion_basis(3, 5, "quadratic")
    assert basis.shape == (6, 3, 5)
    assert basis[:, 1, 2].tolist() == [1, 0, 0, 0, 0, 0]
    torch.testing.assert_close(basis[1, 0], torch.tensor([-0.8, -0.4, 0, 0.4, 0.8], dtype=torch.float64))
    torch.testing.assert_close(basis[2, :, 0], torch.tensor([-0.4, 0, 0.4], dtype=torch.float64))
    assert torch.equal(basis[:3], motion_basis(3, 5, "affine"))
    torch.testing.assert_close(basis[3:], torch.stack([basis[1]**2, basis[1] * basis[2], basis[2]**2]))


@pytest.mark.parametrize(("model", "n_monomials"), [("affine", 3), ("quadratic", 6)])
@pytest.mark.parametrize("fit", ["ls", "irls"])
def test_each_layer_finds_its_own_motion(model: str, n_monomials: int, fit: str) -> None:
    theta = torch.randn(2, 3, n_monomials, 2, dtype=torch.float64)
    owner = torch.randint(3, (2, 12, 17))
    masks = torch.nn.functional.one_hot(owner, 3).permute(0, 3, 1, 2).double()
    flow = (motion_flow(theta, 12, 17, model) * masks[:, :, None]).sum(1)
    torch.testing.assert_close(fit_motion(flow, masks, model, fit), theta, atol=1e-7, rtol=1e-7)


def test_least_squares_equal_a_solver_that_sees_each_layer_alone() -> None:
    flow, masks = torch.randn(2, 2, 9, 11, dtype=torch.float64), torch.rand(2, 3, 9, 11, dtype=torch.float64)
    basis, theta = motion_basis(9, 11).flatten(1), fit_motion(flow, masks)
    for b in range(2):
        for layer in range(3):
            root = masks[b, layer].flatten().sqrt()
            expected = torch.linalg.lstsq((basis * root).T, (flow[b].flatten(1) * root).T).solution
            torch.testing.assert_close(theta[b, layer], expected, atol=1e-8, rtol=1e-8)


def test_reweighting_ignores_a_minority() -> None:
    theta = torch.randn(1, 1, 6, 2, dtype=torch.float64)
    flow = motion_flow(theta, 20, 20)[:, 0].clone()
    flow[:, :, 5:9, 6:12] += 4
    weights = torch.ones(1, 1, 20, 20, dtype=torch.float64)
    assert (fit_motion(flow, weights) - theta).abs().max() > 0.1
    for distance in ("l1", "l2"):
        torch.testing.assert_close(fit_motion(flow, weights, fit="irls", distance=distance), theta, atol=1e-2, rtol=0)


@pytest.mark.parametrize("size", [(6, 8), (1, 5), (5, 1), (1, 1)])
def test_layers_without_pixels_and_thin_frames_stay_finite(size: tuple[int, int]) -> None:
    flow = torch.full((1, 2, *size), 2.)
    weights = torch.stack([torch.ones(size), torch.zeros(size)])[None]
    theta = fit_motion(flow, weights)
    assert (theta[:, 1] == 0).all()
    torch.testing.assert_close(motion_flow(theta, *size)[:, 0], flow, atol=1e-4, rtol=0)


def test_small_masks_far_from_the_middle_are_fitted_in_single_precision() -> None:
    theta = torch.tensor([3., -1, 2, 4, -3, 1])[:, None].expand(1, 1, 6, 2)
    flow = motion_flow(theta, 128, 224)[:, 0]
    weights = torch.zeros(1, 3, 128, 224)
    for layer, place in enumerate(((3, 5), (120, 216), (2, 210))):
        weights[0, layer, place[0]:place[0] + 5, place[1]:place[1] + 7] = torch.rand(5, 7) ** 4
    fitted = motion_flow(fit_motion(flow, weights), 128, 224)
    assert ((fitted - flow[:, None]).abs() * (weights[:, :, None] > 0)).max() < 1e-4
    many = (40 * torch.randn(4, 16, 128, 224)).softmax(1) ** 3  # nearly nothing almost everywhere
    assert fit_motion(torch.randn(4, 2, 128, 224), many).isfinite().all()


def test_gradients_of_masks_and_flow() -> None:
    flow = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weights = (torch.rand(1, 2, 4, 5, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, w: fit_motion(f, w, "affine"), (flow, weights))


def moving_scene(seed: int, share: float) -> tuple[Tensor, Tensor]:
    """Noisy flow (1, 2, 60, 80) in which a rectangle moves otherwise, and the camera's part of it."""
    torch.manual_seed(seed)
    scale = torch.tensor([3, 1, 1, 0.5, 0.5, 0.5])[:, None]
    camera = motion_flow(torch.randn(1, 1, 6, 2) * scale, 60, 80)[:, 0]
    flow = camera + 0.1 * torch.randn_like(camera)
    rows, columns = int(60 * share**0.5), int(80 * share**0.5)
    flow[..., 20:20 + rows, 10:10 + columns] += torch.tensor([4., -3])[:, None, None]
    return flow, camera


@pytest.mark.parametrize("seed", range(5))
def test_camera_motion_is_that_of_the_background(seed: int) -> None:
    flow, camera = moving_scene(seed, share=0.2)
    assert (camera_motion(flow) - camera).norm(dim=1).mean() < 0.05


def test_camera_motion_fits_few_pixels_as_well() -> None:
    flow, camera = moving_scene(0, share=0.15)
    sparse = camera_motion(flow, max_pixels=500)
    assert sparse.shape == flow.shape
    assert (sparse - camera).norm(dim=1).mean() < 0.1


def test_camera_motion_of_a_batch_equals_each_alone() -> None:
    flow = torch.cat([moving_scene(seed, 0.2)[0] for seed in range(3)])
    alone = torch.cat([camera_motion(sample[None]) for sample in flow])
    torch.testing.assert_close(camera_motion(flow), alone, atol=1e-5, rtol=1e-5)


def test_affine_camera_motion_is_affine() -> None:
    theta = torch.randn(1, 1, 3, 2)
    flow = motion_flow(theta, 10, 14, "affine")[:, 0]
    torch.testing.assert_close(camera_motion(flow, "affine"), flow, atol=1e-5, rtol=0)


def test_wrong_arguments_are_refused() -> None:
    flow, weights = torch.zeros(1, 2, 4, 4), torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match="model must be one of"):
        motion_basis(4, 4, "cubic")
    with pytest.raises(ValueError, match="fit must be"):
        fit_motion(flow, weights, fit="huber")
    with pytest.raises(ValueError, match="distance must be"):
        fit_motion(flow, weights, fit="irls", distance="huber")
    with pytest.raises(ValueError, match=r"flow must be \(B, 2, H, W\)"):
        fit_motion(flow[:, :1], weights)
    with pytest.raises(ValueError, match="weights must be"):
        fit_motion(flow, torch.ones(1, 1, 4, 5))
    with pytest.raises(ValueError, match="flow must be known, that is finite"):
        camera_motion(flow / 0)
    with pytest.raises(ValueError, match=r"must be \(B, L, 6, 2\)"):
        motion_flow(torch.zeros(1, 1, 3, 2), 4, 4)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["affine", "quadratic"])
@pytest.mark.parametrize("distance", ["l1", "l2", "squared"])
def test_the_loss_equals_the_reference(reference: Path, case: str, model: str, distance: str) -> None:
    arrays = np.load(reference / f"reference/motion/coherence_em_{case}.npz")
    flow, masks = (torch.from_numpy(arrays[key]).double() for key in ("flow", "masks"))
    expected = torch.from_numpy(arrays[f"ols_loss_{model.title()}_{distance}"])
    torch.testing.assert_close(coherence_loss(masks, flow, model, distance), expected, atol=1e-5, rtol=1e-5)
    if distance != "squared":
        rounds = 3 if model == "quadratic" else 20  # on few parameters twenty steps of L-BFGS come far
        robust = coherence_loss(masks, flow, model, distance, fit="irls", n_iters=rounds).numpy()
        assert (robust <= arrays[f"optim_loss_{model.title()}_{distance}"] + 1e-3).all()


def soft_masks(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).softmax(1)


@pytest.mark.parametrize("distance", ["l1", "l2", "squared", "charbonnier"])
@pytest.mark.parametrize("fit", ["ls", "irls"])
def test_the_gradient_of_a_mask_is_its_distance(distance: str, fit: str) -> None:
    flow, masks = moving_scene(0, 0.2)[0], soft_masks(1, 3, *moving_scene(0, 0.2)[0].shape[-2:]).requires_grad_()
    coherence_loss(masks, flow, distance=distance, fit=fit, n_iters=3).sum().backward()
    residual = motion_flow(fit_motion(flow, masks.detach(), fit=fit, distance=distance, n_iters=3),
                           *flow.shape[-2:]) - flow[:, None]
    length = {"l1": residual.abs().sum(2), "l2": residual.norm(dim=2), "squared": residual.square().sum(2),
              "charbonnier": (residual.square().sum(2) + 0.01).sqrt() - 0.1}[distance]
    torch.testing.assert_close(masks.grad, length / length[0, 0].numel(), atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("distance", ["l1", "l2", "charbonnier", "squared"])
def test_more_rounds_do_not_make_it_worse(distance: str) -> None:
    flow, masks = moving_scene(1, 0.3)[0], soft_masks(1, 4, *moving_scene(1, 0.3)[0].shape[-2:])
    plain = coherence_loss(masks, flow, distance=distance)
    robust = [coherence_loss(masks, flow, distance=distance, fit="irls", n_iters=n) for n in (1, 3, 20)]
    assert plain >= robust[0] - 1e-6 and robust[0] >= robust[1] - 1e-6 and robust[1] >= robust[2] - 1e-6


def test_right_masks_cost_less_than_wrong_ones() -> None:
    flow, _ = moving_scene(2, 0.2)
    theta = torch.randn(1, 2, 6, 2)
    left = (torch.arange(flow.shape[-1]) < flow.shape[-1] // 2).float().expand(1, 1, *flow.shape[-2:])
    right = torch.cat([left, 1 - left], dim=1)
    layers = motion_flow(theta, *flow.shape[-2:])
    flow = (right[:, :, None] * layers).sum(1)
    assert coherence_loss(right, flow) < 1e-4 < coherence_loss(torch.full_like(right, 0.5), flow)
    assert coherence_loss(right.flip(1), flow) < 1e-4                     # names of layers do not matter
    # What is unknown counts nowhere.
    known = torch.ones(1, *flow.shape[-2:], dtype=torch.bool)
    known[:, 3:6] = False
    spoiled = flow.clone()
    spoiled[:, :, 3:6] = torch.nan
    assert coherence_loss(right, spoiled, known=known) < 1e-4
    with pytest.raises(ValueError, match="flow must be known"):
        coherence_loss(right, spoiled)


def test_entropy_and_normalisation() -> None:
    flow, masks = moving_scene(3, 0.2)[0], soft_masks(1, 4, *moving_scene(3, 0.2)[0].shape[-2:])
    entropy = -(masks * masks.log()).sum(1).mean()
    more = coherence_loss(masks, flow, entropy=0.5) - coherence_loss(masks, flow)
    torch.testing.assert_close(more, 0.5 * entropy[None], atol=1e-4, rtol=1e-3)
    once, twice = (coherence_loss(masks, scale * flow, normalised=True) for scale in (1, 2))
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(once, coherence_loss(masks, flow) / flow.abs().sum(1).mean(), atol=1e-5, rtol=1e-4)
    for still in (torch.zeros_like(flow), torch.full_like(flow, 3.0)):   # nothing moves, or all of it alike
        for normalised in (False, True):
            loss = coherence_loss(masks, still, fit="irls", normalised=normalised)
            assert loss.abs().max() < 1e-5
    assert coherence_loss(torch.ones(1, 1, 8, 9), torch.randn(1, 2, 8, 9)).shape == (1,)  # a single layer


def test_wrong_masks_are_refused() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    for masks, reason in ((torch.ones(1, 2, 4, 4), "sum to one"), (torch.ones(1, 1, 4, 5), "masks must be"),
                          (torch.full((1, 1, 4, 4), torch.nan), "sum to one"), (torch.ones(4, 4), "masks must be"),
                          (torch.ones(1, 1, 4, 4, dtype=torch.bool), "floating point")):
        with pytest.raises(ValueError, match=reason):
            coherence_loss(masks, flow)
    with pytest.raises(ValueError, match="flow must be known"):
        coherence_loss(torch.ones(1, 1, 4, 4), torch.full((1, 2, 4, 4), 2e9))


@pytest.mark.parametrize("fit", ["ls", "irls"])
def test_mixed_precision_stops_at_the_loss(fit: str) -> None:
    flow = motion_flow(20 * torch.randn(1, 1, 6, 2), 24, 32)[:, 0]
    masks = torch.ones(1, 1, 24, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert coherence_loss(masks, flow, fit=fit) < 1e-3
        assert spacetime_loss(masks[:, :, None].expand(-1, -1, 3, -1, -1), flow[:, :, None].expand(-1, -1, 3, -1, -1),
                              fit=fit) < 1e-4


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_robust_fits_of_small_bodies_are_no_worse_than_plain_ones(distance: str) -> None:
    for seed in range(5):
        chance = torch.Generator().manual_seed(seed)
        flow = motion_flow(torch.randn(1, 1, 6, 2, generator=chance), 128, 224)[:, 0]
        flow = flow + 0.1 * torch.randn(flow.shape, generator=chance)
        wild = torch.rand(1, 1, 128, 224, generator=chance) < 0.25
        flow = flow + wild * 10 * torch.randn(flow.shape, generator=chance)
        masks = torch.zeros(1, 2, 128, 224)
        masks[:, 1, 60:66, 100:106] = 1
        masks[:, 0] = 1 - masks[:, 1]
        body = [reconstruction_loss(flow, masks[:, 1:], fit_motion(flow, masks, fit=fit, distance=distance)[:, 1:],
                                    "quadratic", distance) for fit in ("irls", "ls")]
        assert body[0] <= body[1] * 1.001


def test_masks_and_weights_that_are_none_are_refused() -> None:
    flow = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        coherence_loss(torch.tensor([2.0, -1.0])[None, :, None, None].expand(1, 2, 8, 8), flow)
    with pytest.raises(ValueError, match="finite and not negative"):
        fit_motion(flow, torch.full((1, 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match="flow must be"):
        coherence_loss(torch.ones(1, 1, 8, 8), torch.zeros(4))
    assert coherence_loss(torch.ones(1, 1, 8, 8, dtype=torch.float64), flow) == 0


@pytest.mark.parametrize("known", [torch.ones(1, 8, 9).bool(), torch.ones(1, 8, 10), torch.ones(8, 10).bool()])
def test_what_is_known_must_be_of_the_flow(known):
    with pytest.raises(ValueError, match="known must be"):
        coherence_loss(torch.ones(1, 1, 8, 10), torch.zeros(1, 2, 8, 10), known=known)


def test_masks_of_half_precision_sum_to_one_but_for_their_rounding():
    masks = torch.randn(1, 4, 16, 20).bfloat16().softmax(1)
    assert coherence_loss(masks, torch.randn(1, 2, 16, 20)).isfinite().all()
    with pytest.raises(ValueError, match="sum to one"):
        coherence_loss(masks / 2, torch.randn(1, 2, 16, 20))
