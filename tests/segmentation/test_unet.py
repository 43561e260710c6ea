"""The U-Net at awkward sizes, its weights file, and the mask loss against its definition."""

import math
from pathlib import Path

import pytest
import torch

from diffslic import training
from diffslic.segmentation import UNet, UNetConfig, bce_dice

SMALL = UNetConfig(in_channels=3, widths=(8, 12, 16), inputs=("flow", "magnitude"))


@pytest.mark.parametrize("size", [(24, 32), (23, 37), (1, 1), (1, 9), (5, 1)])
@pytest.mark.parametrize("residual", [False, True])
def test_any_size_gives_logits_of_that_size(size: tuple[int, int], residual: bool) -> None:
    net = UNet(UNetConfig(in_channels=2, out_channels=3, widths=(4, 6), residual=residual))
    logits = net(torch.randn(2, 2, *size))
    assert logits.shape == (2, 3, *size)
    assert logits.isfinite().all()


def test_padding_equals_an_image_padded_by_hand() -> None:
    net = UNet(SMALL)
    x = torch.randn(1, 3, 22, 27)
    by_hand = torch.nn.functional.pad(x, (0, 1, 0, 2), mode="replicate")
    torch.testing.assert_close(net(x), net(by_hand)[..., :22, :27])


def test_samples_of_a_batch_do_not_see_each_other_and_training_equals_use() -> None:
    net = UNet(SMALL).train()
    x = torch.randn(3, 3, 16, 20)
    alone = torch.cat([net(sample[None]) for sample in x])
    torch.testing.assert_close(net(x), alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net.eval()(x), alone, atol=1e-5, rtol=1e-5)


def test_every_parameter_learns() -> None:
    net = UNet(UNetConfig(in_channels=2, widths=(4, 8, 8), residual=True))
    net(torch.randn(2, 2, 16, 16)).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_residual_adds_a_projection_of_the_input() -> None:
    plain, residual = UNet(SMALL), UNet(UNetConfig(in_channels=3, widths=(8, 12, 16), residual=True))
    residual.load_state_dict(plain.state_dict(), strict=False)
    for block in [*residual.down, *residual.up]:
        torch.nn.init.zeros_(block.shortcut.weight)
        torch.nn.init.zeros_(block.shortcut.bias)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(residual(x), plain(x))
    torch.nn.init.ones_(residual.down[0].shortcut.weight)
    assert not torch.allclose(residual(x), plain(x))


def test_it_learns_a_disc_from_flow() -> None:
    y, x = torch.meshgrid(torch.arange(24.), torch.arange(24.), indexing="ij")
    labels = ((y - 10).square() + (x - 13).square() < 36).long()[None]
    flow = torch.stack([labels * 2., labels * -1.], dim=1) + 0.3 * torch.randn(1, 2, 24, 24)
    net = UNet(UNetConfig(in_channels=2, widths=(8, 16)))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        bce_dice(net(flow), labels).mean().backward()
        optimizer.step()
    assert ((net(flow)[:, 0] > 0) == labels.bool()).float().mean() > 0.98


def test_save_and_load_give_the_same_network(tmp_path: Path) -> None:
    net = UNet(SMALL)
    net.save(tmp_path / "small.safetensors")
    loaded = UNet.from_pretrained(tmp_path / "small.safetensors")
    assert loaded.config == SMALL
    assert not loaded.training
    x = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(loaded(x), net(x), atol=0, rtol=0)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    training.save_weights(path, {"weight": torch.ones(1)}, {"in_channels": 2})
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold the weights of a U-Net"):
        UNet.from_pretrained(path)
    training.save_weights(path, {"weight": torch.ones(1)}, {"depth": 2})
    with pytest.raises(ValueError, match=r"other\.safetensors does not hold the weights of a U-Net"):
        UNet.from_pretrained(path)
    with pytest.raises(FileNotFoundError, match="no-such"):
        UNet.from_pretrained("no-such")


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (3, 8, 8), (1, 3, 0, 8)])
def test_a_wrong_input_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\), got"):
        UNet(SMALL)(torch.zeros(shape))


@pytest.mark.parametrize("widths", [(), (8, 0)])
def test_a_wrong_configuration_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        UNetConfig(in_channels=2, widths=widths)


def naive_bce_dice(logits: torch.Tensor, labels: torch.Tensor) -> float:
    cross_entropy, pixels, overlap, total = 0.0, 0, 0.0, 0.0
    for logit, label in zip(logits.flatten().tolist(), labels.flatten().tolist()):
        if label == 255:
            continue
        truth, probability = float(label > 0), 1 / (1 + math.exp(-logit))
        cross_entropy -= math.log(probability if truth else 1 - probability)
        pixels += 1
        overlap += probability * truth
        total += probability + truth
    return cross_entropy / pixels + 1 - (2 * overlap + 1) / (total + 1)


def test_loss_equals_a_loop_over_pixels() -> None:
    logits = torch.randn(3, 1, 7, 9, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(4, (3, 7, 9))]
    expected = [naive_bce_dice(logits[b], labels[b]) for b in range(3)]
    torch.testing.assert_close(bce_dice(logits, labels), torch.tensor(expected, dtype=torch.float64))


def test_loss_of_right_and_wrong_and_void_masks() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, 2:5, 2:5] = 1
    right = (labels * 2. - 1)[:, None] * 40
    assert bce_dice(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert bce_dice(-right, labels).item() > 40
    assert bce_dice(torch.full((1, 1, 8, 8), -40.), torch.zeros_like(labels)).item() == pytest.approx(0, abs=1e-6)
    assert bce_dice(right, torch.full_like(labels, 255)).item() == 0


def test_void_pixels_have_no_gradient() -> None:
    logits = torch.randn(1, 1, 6, 6, requires_grad=True)
    labels = torch.randint(2, (1, 6, 6))
    labels[:, :2] = 255
    bce_dice(logits, labels).sum().backward()
    assert (logits.grad[0, 0, :2] == 0).all()
    assert (logits.grad[0, 0, 2:] != 0).all()


def test_sizes_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels \(B, H, W\)"):
        bce_dice(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"logits must be \(B, 1, H, W\)"):
        bce_dice(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("residual", [False, True])
def test_a_widened_network_says_the_same_until_it_is_trained(residual):
    torch.manual_seed(0)
    net = UNet(UNetConfig(2, widths=(4, 8), residual=residual, inputs=("flow",)))
    wide = net.widened(5, ("flow", "image"))
    x = torch.rand(1, 5, 16, 20)
    assert torch.allclose(wide(x), net(x[:, :2]), atol=1e-5) and wide.config.inputs == ("flow", "image")
    wide(x).square().mean().backward()
    assert wide.down[0].body[0].weight.grad[:, 2:].abs().min() > 0  # and then it learns
    with pytest.raises(ValueError, match="of 5 channels cannot be widened to 2"):
        wide.widened(2)
