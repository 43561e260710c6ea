"""Composite SSN: a frozen base and a second network over flow, the released weights, and wrong channels."""

import dataclasses

import numpy as np
import pytest
import torch

from diffslic.superpixels import SSN, SSNConfig, label_reconstruction

BASE = SSNConfig(width=8, out_channels=4, n_spixels=12)


@pytest.fixture
def net():
    return SSN(BASE).composite(4, extra_width=4, extra_out_channels=3).eval()


@pytest.fixture(scope="module")
def released(reference):
    figures = np.load(reference / "reference/ssn/ssn_net_composite.npz")
    net = SSN.from_pretrained(reference / "data/weights/ssn_optflow_best_composite_model.pth")
    net.config = dataclasses.replace(net.config, pos_scale=float(figures["pos_scale"]),
                                     flow_scale=float(figures["optflow_scale"]))
    # The figures' flow is (v, u) there and back, ours (u, v).
    flow = torch.from_numpy(figures["flow"])[[1, 0, 3, 2]][None]
    return net, torch.from_numpy(figures["image"]).permute(2, 0, 1)[None] / 255, flow, figures


@torch.no_grad()
def test_the_released_composite_computes_the_stored_features(released):
    net, image, flow, figures = released
    features = net.features(image, int(figures["n_spixels"]), flow)[0].numpy()
    np.testing.assert_allclose(features[:15], figures["deep_features"], rtol=0, atol=5e-4)
    np.testing.assert_allclose(features[20:], figures["flow_features"], rtol=0, atol=5e-4)
    assert np.array_equal(net.base_features(image, int(figures["n_spixels"]))[0].numpy(), features[:20])


def test_the_released_composite_gives_the_stored_superpixels(released):
    net, image, flow, figures = released
    n_spixels = int(figures["n_spixels"])
    labels = net.segment(image, n_spixels, connected=False, extra=flow)[0].numpy()
    assert (labels == figures["naive_labels_5"]).mean() >= 0.995
    y, x = np.mgrid[:labels.shape[0], :labels.shape[1]]
    stored = np.concatenate([figures["deep_features"], np.float32(figures["color_scale"]) * figures["lab"],
                             np.float32(figures["pos_factor"]) * np.stack([y, x]).astype(np.float32),
                             figures["flow_features"]])
    for dtype, affinity, centroids in ((torch.float64, 1e-6, 1e-9), (torch.float32, 2e-3, 1e-3)):
        soft = net.cluster(torch.from_numpy(stored)[None].to(dtype), n_spixels)
        np.testing.assert_allclose(soft.affinity[0], figures["naive_aff_5"], rtol=0, atol=affinity)
        np.testing.assert_allclose(soft.centroids[0], figures["naive_centroids_5"], rtol=0, atol=centroids)
        equal = soft.labels[0].numpy() == figures["naive_labels_5"]
        assert equal[figures["naive_sure_5"]].all() and equal.mean() >= 0.999


def test_training_moves_the_second_network_and_never_the_base(net):
    images, flow = torch.rand(2, 3, 24, 24), torch.randn(2, 4, 24, 24)
    labels = (torch.arange(24) // 7).expand(2, 24, 24)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    optimiser = torch.optim.Adam([weight for weight in net.parameters() if weight.requires_grad], 1e-2)
    losses = []
    for _ in range(10):
        loss = label_reconstruction(net(images, extra=flow), labels).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"extra_net"}
    assert not net.net.training and net.extra_net.training


def test_the_base_of_a_composite_is_the_network_it_was_made_of():
    base, images = SSN(BASE).eval(), torch.rand(1, 3, 24, 24)
    composite = base.composite(2, extra_width=4).eval()
    assert torch.equal(composite.base_features(images), base.features(images))
    assert torch.equal(composite.appearance(images), base.appearance(images))
    assert composite.features(images, extra=torch.zeros(1, 2, 24, 24)).shape[1] == 4 + 5 + 10


def test_composite_weights_come_back(net, tmp_path):
    images, flow = torch.rand(1, 3, 20, 20), torch.randn(1, 4, 20, 20)
    net.save(tmp_path / "net.safetensors")
    loaded = SSN.from_pretrained(tmp_path / "net.safetensors")
    assert loaded.config == net.config
    assert torch.equal(loaded(images, extra=flow).affinity, net(images, extra=flow).affinity)


def test_wrong_channels_are_refused(net):
    images = torch.rand(1, 3, 20, 20)
    with pytest.raises(ValueError, match=r"extra must be \(1, 4, 20, 20\) for this composite, got None"):
        net(images)
    with pytest.raises(ValueError, match=r"extra must be \(1, 4, 20, 20\) for this composite, got \(1, 2, 20, 20\)"):
        net.segment(images, extra=torch.zeros(1, 2, 20, 20))
    with pytest.raises(ValueError, match="this network takes no extra channels"):
        SSN(BASE)(images, extra=torch.zeros(1, 4, 20, 20))
    with pytest.raises(ValueError, match="extra must be finite"):
        net(images, extra=torch.full((1, 4, 20, 20), float("nan")))
