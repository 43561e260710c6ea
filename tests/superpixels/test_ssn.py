"""Superpixel sampling networks: features, released weights end to end, saving, and input that is refused."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from kornia.color import rgb_to_lab

from diffslic import training
from diffslic.superpixels import SSN, SpixelFCN, SSNConfig, connect, label_reconstruction, soft_slic


def small(features: str = "deep", **options) -> SSN:
    return SSN(SSNConfig(features=features, width=8, out_channels=4, n_spixels=12, **options)).eval()


@pytest.fixture(scope="module")
def base(reference):
    """The released network at its training scale of positions, and the stored figures."""
    figures = np.load(reference / "reference/ssn/ssn_net_base.npz")
    net = SSN.from_pretrained(reference / "data/weights/ssn_rgb_best_model.pth")
    net.config = dataclasses.replace(net.config, pos_scale=float(figures["pos_scale"]))
    return net, figures


def test_the_released_network_computes_the_stored_features(base):
    net, figures = base
    image = torch.from_numpy(figures["image"]).permute(2, 0, 1)[None] / 255
    np.testing.assert_allclose(rgb_to_lab(image)[0], figures["lab"], rtol=0, atol=1e-3)
    with torch.no_grad():
        features = net.features(image, int(figures["n_spixels"]))[0].numpy()
    np.testing.assert_allclose(features[:15], figures["deep_features"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(features[15:18], figures["color_scale"] * figures["lab"], rtol=0, atol=3e-4)
    y, x = np.mgrid[:features.shape[1], :features.shape[2]]
    np.testing.assert_allclose(features[18:], figures["pos_factor"] * np.stack([y, x]), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_stored_features_give_the_stored_superpixels(base, dtype):
    _, figures = base
    y, x = np.mgrid[:figures["lab"].shape[1], :figures["lab"].shape[2]]
    # In single precision, as the stored figures were made.
    features = np.concatenate([figures["deep_features"], np.float32(figures["color_scale"]) * figures["lab"],
                               np.float32(figures["pos_factor"]) * np.stack([y, x]).astype(np.float32)])
    soft = soft_slic(torch.from_numpy(features)[None].to(dtype), (int(figures["nh"]), int(figures["nw"])), 5)
    exact = dtype == torch.float64
    np.testing.assert_allclose(soft.affinity[0], figures["naive_aff_5"], rtol=0, atol=1e-6 if exact else 2e-3)
    np.testing.assert_allclose(soft.centroids[0], figures["naive_centroids_5"], rtol=0, atol=1e-9 if exact else 1e-3)
    equal = soft.labels[0].numpy() == figures["naive_labels_5"]
    assert equal[figures["naive_sure_5"]].all()
    assert equal.mean() >= 0.999


def test_the_released_network_gives_the_stored_labels_from_the_image(base):
    net, figures = base
    image = torch.from_numpy(figures["image"]).permute(2, 0, 1)[None] / 255
    labels = net.segment(image, int(figures["n_spixels"]), connected=False)
    assert (labels[0].numpy() == figures["naive_labels_5"]).mean() >= 0.995


def test_pixel_features_are_scaled_lab_and_position():
    images = torch.rand(2, 3, 6, 10)
    features = small("pix", color_scale=0.5, pos_scale=3).features(images, 10)
    assert features.shape == (2, 5, 6, 10)
    torch.testing.assert_close(features[:, :3], 0.5 * rgb_to_lab(images))
    assert features[1, 3:, 4, 7].tolist() == pytest.approx([3 * 3 / 6 * 4, 3 * 3 / 6 * 7])  # floor(sqrt(10)) = 3


def test_learned_features_stand_before_pixel_features():
    images, net = torch.rand(2, 3, 13, 10), small()
    features = net.features(images)
    assert features.shape == (2, 9, 13, 10)
    assert torch.equal(features[:, 4:], small("pix").features(images))
    assert torch.equal(features[:, :4], net.net(features[:, 4:]))


def test_appearance_does_not_tell_the_place():
    torch.manual_seed(1)
    net = SSN(SSNConfig(width=8, out_channels=4)).eval()
    picture = torch.rand(1, 3, 136, 136)
    here, shifted = net.appearance(picture[..., :128, :128]), net.appearance(picture[..., 8:, 4:132])
    assert here.shape == (1, 7, 128, 128)
    torch.testing.assert_close(here[..., 56:80, 56:80], shifted[..., 48:72, 52:76], rtol=0, atol=1e-5)
    grey = net.appearance(torch.full((1, 3, 128, 128), 0.5))[..., 48:80, 48:80]
    assert grey.flatten(2).std(-1).max() < 1e-5
    # Features do tell it: of a grey picture they are not the same everywhere.
    assert net.features(torch.full((1, 3, 128, 128), 0.5), 100)[:, :4, 48:80, 48:80].flatten(2).std(-1).max() > 1e-3


def test_appearance_of_pixel_features_is_their_lab():
    net, picture = SSN(SSNConfig("pix")), torch.rand(2, 3, 20, 30)
    torch.testing.assert_close(net.appearance(picture), net.features(picture, 30)[:, :3], rtol=0, atol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (17, 30)])
def test_any_size_goes(size):
    labels = small().segment(torch.rand(2, 3, *size), n_spixels=1)
    assert labels.shape == (2, *size)
    assert (labels == 0).all()
    count = math.prod(size)
    assert small().segment(torch.rand(2, 3, *size), n_spixels=count, connected=False).max() < count


def test_two_flat_colours_are_never_mixed():
    image = torch.zeros(1, 3, 40, 60)
    image[:, 0, :, :25] = 1
    labels = small("pix").segment(image, n_spixels=24)[0]
    assert not set(labels[:, :25].unique().tolist()) & set(labels[:, 25:].unique().tolist())


def test_segment_connects_and_is_alone_in_its_batch():
    images, net = torch.rand(2, 3, 30, 40), small()
    labels = net.segment(images, n_spixels=20)
    assert labels.dtype == torch.int64
    grid_labels = net.segment(images, n_spixels=20, connected=False)
    assert torch.equal(grid_labels, net(images, 20).labels)
    assert torch.equal(labels, connect(grid_labels, int(0.25 * 30 * 40 / 15)))
    torch.testing.assert_close(net.segment(images[1:], n_spixels=20)[0], labels[1])


def test_exactly_as_many_as_requested():
    net, images = SSN(SSNConfig("pix")), torch.rand(2, 3, 40, 50)
    for n_spixels in (1, 7, 50, 333):
        labels = net.segment(images, n_spixels, exact=True)
        assert [len(image.unique()) for image in labels] == [n_spixels] * 2


def test_the_configuration_is_the_default_and_a_call_may_differ():
    images, net = torch.rand(1, 3, 24, 24), small(n_iters=3, distance="squared")
    features = net.features(images)
    assert torch.equal(net(images).affinity, soft_slic(features, (3, 3), 3, "squared").affinity)
    assert torch.equal(net(images, n_iters=7).affinity, soft_slic(features, (3, 3), 7, "squared").affinity)
    assert net(images, n_spixels=4).grid == (2, 2)


@pytest.mark.parametrize("features", ["deep", "pix"])
def test_compactness_changes_the_clustering_and_not_the_features(features):
    images, flat = torch.rand(1, 3, 48, 48), torch.full((1, 3, 48, 48), 0.5)
    net, round_net = small(features), small(features, compactness=20.0)
    round_net.load_state_dict(net.state_dict())
    assert torch.equal(net.features(images), round_net.features(images))
    soft = net.cluster(net.features(images), compactness=20)
    assert torch.equal(soft.affinity, round_net(images).affinity)
    assert (soft.labels[0] == net(flat).labels[0]).float().mean() > (net(images).labels == net(flat).labels
                                                                     ).float().mean()


def test_training_reaches_every_weight_and_lowers_the_loss():
    net = small().train()
    images = torch.rand(2, 3, 24, 24)
    labels = (torch.arange(24) // 7).expand(2, 24, 24)
    optimiser = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = label_reconstruction(net(images), labels).mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(weight.grad.abs().sum() > 0 for weight in net.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_saved_weights_come_back_with_their_configuration(tmp_path):
    net, images = small(pos_scale=1.5), torch.rand(1, 3, 20, 20)
    net.net.fine[0][1].running_mean += 1  # the statistics of batch norm travel too
    net.save(tmp_path / "net.safetensors")
    loaded = SSN.from_pretrained(tmp_path / "net.safetensors")
    assert loaded.config == net.config
    assert not loaded.training
    assert torch.equal(loaded(images).affinity, net(images).affinity)
    small("pix").save(tmp_path / "pix.safetensors")
    assert SSN.from_pretrained(tmp_path / "pix.safetensors").config.features == "pix"


def test_autocast_leaves_colour_and_clustering_in_single_precision():
    net, images = small("pix"), torch.rand(1, 3, 20, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        soft = net(images)
    assert torch.equal(soft.affinity, net(images).affinity)


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    training.save_weights(path, {"layer.weight": torch.zeros(2)}, {})
    with pytest.raises(ValueError, match="other.safetensors does not hold the weights of an SSN"):
        SSN.from_pretrained(path)
    training.save_weights(path, small().state_dict(), {"n_superpixels": 3})
    with pytest.raises(ValueError, match="does not hold the weights of an SSN: .*n_superpixels"):
        SSN.from_pretrained(path)
    torch.save({"feature_extract.scale1.0.0.weight": torch.zeros(2)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth .*output_conv.0.weight"):
        SSN.from_pretrained(tmp_path / "part.pth")


@pytest.mark.parametrize(("images", "message"), [
    (torch.rand(1, 4, 8, 8), r"RGB \(B, 3, H, W\), got \(1, 4, 8, 8\)"),
    (torch.rand(1, 1, 8, 8), r"got \(1, 1, 8, 8\)"),
    (torch.rand(3, 8, 8), r"got \(3, 8, 8\)"),
    (torch.rand(1, 3, 0, 8), r"got \(1, 3, 0, 8\)"),
    (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating point.*got torch.uint8"),
    (255 * torch.rand(1, 3, 8, 8), r"\[0, 1\], got values from"),
    (torch.full((1, 3, 8, 8), -0.5), "got values from -0.5 to -0.5"),
    (torch.rand(1, 3, 8, 8).index_fill(3, torch.tensor([4]), torch.nan), "got values from nan"),
])
def test_wrong_images_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        small().segment(images)


@pytest.mark.parametrize("n_spixels", [0, -1, 65])
def test_wrong_counts_are_refused(n_spixels):
    with pytest.raises(ValueError, match=f"between 1 and the 64 pixels of the 8 x 8 image, got {n_spixels}"):
        small().segment(torch.rand(1, 3, 8, 8), n_spixels)


def test_unknown_features_are_refused():
    with pytest.raises(ValueError, match="'deep' or 'pix', got 'lab'"):
        SSN(SSNConfig(features="lab"))


@pytest.mark.parametrize("network", [small, lambda: small().composite(2, extra_width=4), SpixelFCN])
def test_other_precisions_of_images_are_taken(network):
    net, images = network().eval(), torch.rand(1, 3, 20, 24)
    extra = {"extra": torch.rand(1, 2, 20, 24)} if getattr(net, "extra_net", None) is not None else {}
    single = net.segment(images, 12, **extra)
    doubled = {name: value.double() for name, value in extra.items()}
    assert (net.segment(images.double(), 12, **doubled) == single).float().mean() > 0.99
    assert net.segment(images.half(), 12, **extra).shape == single.shape


def test_what_is_free_at_use_is_free_in_segment():
    net, images = small("pix"), torch.rand(1, 3, 30, 30)
    changed = small("pix")
    changed.config = dataclasses.replace(net.config, n_iters=2, compactness=3.0)
    assert torch.equal(net.segment(images, 9, n_iters=2, compactness=3.0), changed.segment(images, 9))
    with pytest.raises(ValueError, match="an exact count needs connected labels"):
        net.segment(images, 9, connected=False, exact=True)


def test_a_configuration_is_changed_as_it_is_loaded(tmp_path):
    small("pix").save(tmp_path / "a.safetensors")
    assert SSN.from_pretrained(tmp_path / "a.safetensors", n_iters=3).config.n_iters == 3
    with pytest.raises(TypeError, match="pos_sclae"):
        SSN.from_pretrained(tmp_path / "a.safetensors", pos_sclae=2)


def test_released_composites_that_are_cut_short_are_told(tmp_path):
    names = ["feature_extract_color.output_conv.0.weight", "feature_extract_optflow.output_conv.0.weight"]
    torch.save({name: torch.zeros(15, 17, 3, 3) for name in names}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="cut.pth does not hold the weights of an SSN"):
        SSN.from_pretrained(tmp_path / "cut.pth")
