"""RAFT: reference figures of both variants, the parts against plain loops, and sizes that break other ports."""

import json
import math
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from diffslic import geometry
from diffslic.flow import RAFT, RAFTConfig, sequence_loss
from diffslic.flow.correlation import Volume, correlation_pyramid
from diffslic.flow.raft import convex_upsample
from diffslic.flow.released import own_keys

PARAMETERS = {"small": 990_162, "large": 5_257_536}


def recipe_weights(keys: dict, varied: bool = False) -> dict[str, torch.Tensor]:
    """The reference folder's weights, made by the recipe of its README."""
    state = {}
    for key, shape in keys["princeton_keys"].items():
        name = keys["aliases"].get(key, key)
        if name.endswith("num_batches_tracked"):
            state[key] = torch.tensor(0)
            continue
        noise = np.random.RandomState(zlib.crc32(name.encode()) ^ keys["seed"]).standard_normal(shape)
        if name.endswith("running_mean"):
            value = 0.1 * noise * varied
        elif name.endswith("running_var"):
            value = 0.5 + np.abs(noise) if varied else np.ones(shape)
        elif name.endswith("bias"):
            value = 0.02 * noise
        elif len(shape) == 1:  # a norm's weight
            value = 1 + 0.2 * noise * varied
        else:
            gain = (0.2 if "flow_head.conv2" in name else 3 if "mask.2" in name else
                    1 if ".gru." in name or name.startswith(("fnet.conv2", "cnet.conv2")) else 2**0.5)
            value = noise * (gain / np.sqrt(np.prod(shape[1:])))
        state[key] = torch.tensor(value, dtype=torch.float32)
    return state


def load_reference(reference, variant):
    folder = reference / "reference" / "flow"
    keys = json.loads((folder / f"raft_{variant}_keys.json").read_text())
    return keys, np.load(folder / f"raft_{variant}.npz"), np.load(folder / "raft_images.npz")


def image_pair(images, number):
    return [torch.from_numpy(images[f"pair{number}_img{i}"]).permute(2, 0, 1)[None].float() / 255 for i in (1, 2)]


@pytest.mark.parametrize(("variant", "case"), [("small", "pair0"), ("small", "pair1"), ("large", "pair0"),
                                               ("large", "pair1"), ("large", "pair1_bnvaried")])
@torch.no_grad()
def test_reference_figures(reference, variant, case):
    keys, figures, images = load_reference(reference, variant)
    net = RAFT(RAFTConfig(variant)).eval()
    net.load_state_dict(own_keys(recipe_weights(keys, varied="bnvaried" in case)))
    first, second = image_pair(images, case[4])
    y, x = figures[f"{case}_probe_yx"]
    features = net.features(first), net.features(second)
    volume, grid = net.correlate(*features), geometry.pixel_grid(*features[0].shape[-2:])[None]
    shift = torch.tensor([1.25, -0.6])[:, None, None]
    for name, found in {"fmap1": features[0], "fmap2": features[1], "cnet": net.cnet(2 * first - 1),
                        "corr_zero": volume(grid), "corr_shift": volume(grid + shift)}.items():
        expected = figures[f"{case}_probe_{name}"]
        assert np.abs(found[0, :, y, x].numpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name
    steps = list(net.refine(volume, net.context(first), 12))
    for n, tolerance in ((1, 1e-4), (4, 5e-4), (12, 2e-3)):
        cells, state = steps[n - 1]
        assert np.abs(cells[0].numpy() - figures[f"{case}_low_{n}"]).max() <= tolerance / 8
        full = net.upsample(cells, state, first.shape[-2:])[0].numpy()
        assert np.abs(full - figures[f"{case}_up_{n}"]).max() <= tolerance
        assert np.abs(net(first, second, n)[0].numpy() - figures[f"{case}_up_{n}"]).max() <= tolerance


@pytest.mark.parametrize("variant", ["small", "large"])
def test_reference_keys_of_both_other_implementations(reference, variant):
    keys, _, _ = load_reference(reference, variant)
    expected = {name: tuple(value.shape) for name, value in RAFT(RAFTConfig(variant)).state_dict().items()}
    theirs = {f"module.{key}": torch.zeros(shape) for key, shape in keys["princeton_keys"].items()}
    assert {key: tuple(value.shape) for key, value in own_keys(theirs).items()} == expected
    torchvision = {key: torch.zeros(shape) for key, shape in keys["torchvision_keys"].items()}
    assert {key: tuple(value.shape) for key, value in own_keys(torchvision).items()} == expected


@pytest.mark.parametrize("variant", ["small", "large"])
def test_number_of_parameters(variant):
    assert sum(p.numel() for p in RAFT(RAFTConfig(variant)).parameters()) == PARAMETERS[variant]


def test_lookup_against_a_plain_loop():
    radius, levels = 2, 3
    features1, features2 = torch.randn(2, 1, 8, 6, 9, dtype=torch.float64)
    pyramid = correlation_pyramid(features1, features2, levels)
    position = torch.rand(1, 2, 6, 9, dtype=torch.float64) * 14 - 3  # some of it far outside
    found = Volume(pyramid, radius)(position)
    channel = 0
    for level in range(levels):
        volume = torch.einsum("bchw,bcij->bhwij", features1, features2) / 8 ** 0.5
        volume = volume.reshape(54, 1, 6, 9)
        for _ in range(level):
            volume = F.avg_pool2d(volume, 2)  # pooled similarities, where the fast path pools features
        for dx in range(-radius, radius + 1):
            for dy in range(-radius, radius + 1):
                for i in range(0, 54, 7):
                    y, x = divmod(i, 9)
                    expected = bilinear(volume[i, 0], position[0, 0, y, x] / 2 ** level + dx,
                                        position[0, 1, y, x] / 2 ** level + dy)
                    assert abs(found[0, channel, y, x] - expected) < 1e-10
                channel += 1
    assert channel == found.shape[1]


def bilinear(image, x, y):
    total = 0.0
    left, top = math.floor(x), math.floor(y)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            total += float(image[row, column]) * (1 - abs(float(x) - column)) * (1 - abs(float(y) - row))
    return total


def test_convex_upsampling_keeps_constants_and_repeats_chosen_neighbours():
    flow = torch.randn(1, 2, 3, 4)
    constant = torch.ones(1, 2, 3, 4)
    mask = torch.zeros(1, 9, 8, 8, 3, 4)
    mask[:, 4] = 50  # all weight on the middle of the nine
    assert torch.allclose(convex_upsample(constant, mask.flatten(1, 3))[..., 8:-8, 8:-8], torch.ones(1))
    blocks = flow.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.allclose(convex_upsample(flow, mask.flatten(1, 3)), blocks)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (8, 8), (17, 130), (64, 33)])
@pytest.mark.parametrize("variant", ["small", "large"])
def test_any_size_without_nan(variant, size):
    images = torch.rand(2, 1, 3, *size)
    with torch.no_grad():
        flow = RAFT(RAFTConfig(variant)).eval()(*images, n_iters=2)
    assert flow.shape == (1, 2, *size)
    assert flow.isfinite().all()


def test_video_is_the_pairs_one_by_one():
    net = RAFT().eval()
    frames = list(torch.rand(4, 3, 40, 56))
    flows = list(net.video(iter(frames), n_iters=3))
    assert len(flows) == 3
    with torch.no_grad():
        for t, flow in enumerate(flows):
            assert (flow - net(frames[t][None], frames[t + 1][None], n_iters=3)[0]).abs().max() < 1e-4


def test_a_start_near_the_end_is_where_it_starts():
    net = RAFT().eval()
    for parameter in net.update_block.flow_head.parameters():
        torch.nn.init.zeros_(parameter)  # no corrections: the start is the result
    images = torch.rand(2, 1, 3, 64, 80)
    start = torch.full((1, 2, 64, 80), 3.0)
    with torch.no_grad():
        assert torch.allclose(net(*images, n_iters=2, initial=start), start, atol=1e-4)
        assert torch.equal(net(*images, n_iters=2), torch.zeros(1, 2, 64, 80))


def test_sequence_loss_weighs_later_steps_more_and_skips_invalid_pixels():
    truth, valid = torch.zeros(2, 2, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1, :, :2] = False
    steps = [torch.ones(2, 2, 4, 4), torch.full((2, 2, 4, 4), 0.5)]
    steps[1][1, :, :, :2] = 100.0
    assert torch.allclose(sequence_loss(steps, truth, valid), torch.tensor(0.8 * 2 + 1.0))


def test_a_power_below_one_makes_far_misses_count_less():
    truth, valid = torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    near, far = (torch.full((1, 2, 2, 2), distance / 2) for distance in (1.0, 100.0))
    assert sequence_loss([near], truth, valid, power=0.5).item() == pytest.approx(1.01**0.5 - 0.1)
    assert sequence_loss([far], truth, valid, power=0.5).item() == pytest.approx(100.01**0.5 - 0.1)
    assert sequence_loss([truth], truth, valid, power=0.5).item() == 0


def test_one_step_of_training_lowers_the_loss():
    net = RAFT()
    images, truth = torch.rand(2, 1, 3, 64, 64), torch.full((1, 2, 64, 64), 2.0)
    valid = torch.ones(1, 64, 64, dtype=torch.bool)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        loss = sequence_loss(net.predictions(*images, n_iters=3).flows, truth, valid).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_save_and_load(tmp_path):
    net = RAFT().eval()
    net.save(tmp_path / "own.safetensors")
    again = RAFT.from_pretrained(tmp_path / "own.safetensors")
    assert again.config == net.config
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), again.state_dict().values()))


def test_half_floats_are_read_as_floats(tmp_path):
    whole = RAFT().state_dict()
    torch.save({name: value.half() for name, value in whole.items()}, tmp_path / "half.pth")
    read = RAFT.from_pretrained(tmp_path / "half.pth").state_dict()
    assert {value.dtype for value in read.values()} == {torch.float32}


def test_bad_input(tmp_path):
    net = RAFT().eval()
    with pytest.raises(ValueError, match=r"of one size, got \(1, 3, 16, 16\) and \(1, 3, 16, 24\)"):
        net(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 24))
    with pytest.raises(ValueError, match=r"RGB images \(B, 3, H, W\) of one size, got \(1, 1, 16, 16\)"):
        net(*torch.rand(2, 1, 1, 16, 16))
    with pytest.raises(ValueError, match="values from nan to nan"):
        net(torch.rand(1, 3, 16, 16), torch.full((1, 3, 16, 16), math.nan))
    with pytest.raises(ValueError, match="values from 0 to 255"):
        net(torch.rand(1, 3, 16, 16), torch.linspace(0, 255, 768).reshape(1, 3, 16, 16))
    with pytest.raises(ValueError, match="in floats, got .* of torch.uint8"):
        net(*torch.ones(2, 1, 3, 16, 16, dtype=torch.uint8))
    for initial in (torch.zeros(1, 2, 16, 24), torch.zeros(2, 2, 16, 16), torch.full((1, 2, 16, 16), math.nan)):
        with pytest.raises(ValueError, match=r"initial flow must be finite and \(1, 2, 16, 16\), got"):
            net(*torch.rand(2, 1, 3, 16, 16), initial=initial)
    with pytest.raises(ValueError, match="n_iters must be at least 1"):
        net(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), n_iters=0)
    with pytest.raises(ValueError, match="'small' or 'large'"):
        RAFT(RAFTConfig("medium"))
    with pytest.raises(FileNotFoundError, match="no raft weights named 'huge'"):
        RAFT.from_pretrained("huge")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights of a RAFT: missing fnet.conv1.weight, "
                                         r"fnet.conv1.bias, .* and \d+ more; not of this network weight"):
        RAFT.from_pretrained(tmp_path / "other.pth")
    whole = RAFT().state_dict()
    torch.save({name: value for name, value in whole.items() if name != "cnet.conv2.bias"}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"cut.pth does not hold the weights of a RAFT: missing cnet.conv2.bias$"):
        RAFT.from_pretrained(tmp_path / "cut.pth")
    torch.save({**whole, "fnet.conv2.bias": torch.zeros(7)}, tmp_path / "size.pth")
    with pytest.raises(ValueError, match=r": of another size fnet.conv2.bias \(7,\) for \(128,\)$"):
        RAFT.from_pretrained(tmp_path / "size.pth")
    torch.save({**whole, "fnet.conv2.bias": torch.full((128,), math.nan)}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan.pth does not hold the weights of a RAFT: not finite fnet.conv2.bias$"):
        RAFT.from_pretrained(tmp_path / "nan.pth")


def test_mixed_precision_keeps_positions_and_similarities_whole():
    """A position of 40 cells has steps of a quarter of a cell in bfloat16: the flow must not be kept in it."""
    torch.manual_seed(0)
    net = RAFT().eval()
    first, second = torch.rand(2, 1, 3, 64, 320)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        flows, similarity = net.predictions(first, second, n_iters=3)
        features = net.features(first), net.features(second)
        mixed = correlation_pyramid(*features, levels=2)
    assert {flow.dtype for flow in flows} == {similarity.dtype} == {torch.float32}
    assert all(map(torch.equal, mixed, correlation_pyramid(*features, levels=2)))
    with torch.no_grad():
        exact = net.predictions(first, second, n_iters=3).flows[-1]
    assert (flows[-1] - exact).abs().max() < 0.02 * exact.abs().max()


def test_sequence_loss_ignores_what_is_not_known():
    truth, valid = torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    truth[:, :, 0], valid[:, 0] = math.nan, False
    prediction = torch.ones(1, 2, 4, 4, requires_grad=True)
    loss = sequence_loss([prediction], truth, valid)
    loss.sum().backward()
    assert loss.item() == 2 and prediction.grad.isfinite().all()
