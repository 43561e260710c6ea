"""Soft segments of images and files, the command, its training; bad input is one line and leaves nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import datasets, geometry, metrics, pipeline, softseg
from diffslic.datasets import io
from diffslic.flow import RAFT, RAFTConfig
from diffslic.recipes import softseg as recipe
from diffslic.softseg import EmbeddingConfig, EmbeddingNet
from diffslic.superpixels import SSN, SSNConfig

SIZE = (48, 64)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return EmbeddingNet(EmbeddingConfig(widths=(8, 8), strides=(2, 2), out_channels=8)).eval()


@pytest.fixture(scope="module")
def clip():
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=2, size=SIZE, seed=4)[0]


@pytest.fixture
def files(clip, net, tmp_path):
    for t in range(2):
        io.write_image(tmp_path / f"{t}.png", clip.frame(t))
    net.save(tmp_path / "net.safetensors")
    RAFT(RAFTConfig()).save(tmp_path / "raft.safetensors")
    return tmp_path


def halves(rows=40, columns=60):
    """Two colours side by side."""
    image = torch.empty(3, rows, columns)
    image[:, :, :columns // 2] = torch.tensor([0.8, 0.3, 0.2])[:, None, None]
    image[:, :, columns // 2:] = torch.tensor([0.2, 0.3, 0.8])[:, None, None]
    return image


def test_two_colours_become_two_layers(net):
    made = pipeline.soft_segments(halves(), net, 2)
    truth = (torch.arange(60) >= 30).long().expand(40, -1)
    assert min(metrics.best_iou(made.alphas.argmax(0) + 1, truth + 1).values()) > 0.95
    assert made.alphas.min() >= 0 and (made.alphas.double().sum(0) - 1).abs().max() < 1e-6
    assert made.picture.shape == (3, 40, 60) and made.shares.shape == (len(made.vectors), 2)


def test_what_moves_gets_a_layer_of_its_own():
    """One colour everywhere and vectors that know nothing: motion alone parts a square from the rest."""
    blind = EmbeddingNet(EmbeddingConfig((8,), (2,), 1, 8)).eval()
    torch.nn.init.zeros_(blind.heads[0].weight)
    torch.nn.init.zeros_(blind.colour_weight)
    image = torch.full((3, 96, 128), 0.5)
    flow, body = torch.zeros(2, 96, 128), torch.zeros(96, 128, dtype=torch.int64)
    body[32:64, 48:88] = 1
    flow[0] += 1.5 + 4.0 * body  # the camera turns, and the square moves
    still = pipeline.soft_segments(image, blind, 2)
    moving = pipeline.soft_segments(image, blind, 2, flow=flow, strength=10)  # no colour holds it: only this does
    assert metrics.best_iou(still.alphas.argmax(0) + 1, body)[1] < 0.5
    assert metrics.best_iou(moving.alphas.argmax(0) + 1, body)[1] > 0.8
    assert moving.vectors.shape[1] == still.vectors.shape[1] + 2


def test_superpixels_of_an_ssn_and_a_radius(net):
    ssn = SSN(SSNConfig("pix")).eval()
    made = pipeline.soft_segments(halves(), net, 2, 60, ssn=ssn, radius=0.2)
    assert torch.equal(made.superpixels, ssn.segment(halves()[None], 60)[0])
    near = pipeline.soft_segments(halves(), net, 2, 60, ssn=ssn, radius=2.0)
    everywhere = pipeline.soft_segments(halves(), net, 2, 60, ssn=ssn)
    assert torch.allclose(near.spectrum.values, everywhere.spectrum.values)
    assert made.spectrum.values[1] < near.spectrum.values[1]  # fewer joints hold less together


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (3, 20)])
def test_an_image_smaller_than_its_superpixels_has_fewer(net, size):
    made = pipeline.soft_segments(torch.rand(3, *size), net, 1)
    assert made.alphas.shape == (1, *size) and torch.allclose(made.alphas, torch.ones(1, *size))


def test_a_small_image_of_two_colours_has_two_layers(net):
    made, truth = pipeline.soft_segments(halves(8, 16), net, 2), (torch.arange(16) >= 8).long().expand(8, -1)
    assert len(made.vectors) <= 8
    assert min(metrics.best_iou(made.alphas.argmax(0) + 1, truth + 1).values()) == 1


def test_more_layers_than_superpixels_and_other_flow_are_refused(net):
    with pytest.raises(ValueError, match="superpixels make from 1 to . layers, got n_layers = 100"):
        pipeline.soft_segments(torch.rand(3, 12, 12), net, 100)
    with pytest.raises(ValueError, match="n_spixels must be from 1 to 4000, got 0"):
        pipeline.soft_segments(torch.rand(3, 12, 12), net, 1, 0)
    with pytest.raises(ValueError, match=r"image must be \(3, H, W\)"):
        pipeline.soft_segments(torch.rand(1, 3, 12, 12), net, 1)
    with pytest.raises(ValueError, match="flow must be"):
        pipeline.soft_segments(halves(), net, 2, flow=torch.zeros(2, 8, 8))


def test_the_command_writes_pictures_and_layers(run, files):
    out = files / "layers"
    figures = run("softseg", files / "0.png", "--out", out, "--weights", files / "net.safetensors", "--layers", "3",
                  "--n-spixels", "60")
    assert sum(figures[f"layer{i}"] for i in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert sorted(path.name for path in out.iterdir()) == ["0_alphas.npy", "0_features.png", *(
        f"0_layer{i}.png" for i in (1, 2, 3))]
    alphas = np.load(out / "0_alphas.npy")
    assert alphas.shape == (3, *SIZE) and np.allclose(alphas.sum(0), 1, atol=1e-6)
    layer = np.asarray(Image.open(out / "0_layer2.png"))
    assert layer.shape == (*SIZE, 4) and np.abs(layer[..., 3] / 255 - alphas[1]).max() < 0.01
    run("softseg", files / "0.png", "--out", out, "--weights", files / "net.safetensors", "--layers", "2")
    assert not (out / "0_layer3.png").exists() and (out / "0_layer2.png").exists()  # none of the run before


def test_the_command_takes_the_frame_that_follows_and_a_smaller_size(run, files, clip):
    following = clip.frame(0).clone()
    following[:, 8:40, 20:48] = clip.frame(0)[:, 8:40, 14:42]  # a part of the picture moves by six pixels
    io.write_image(files / "1.png", following)
    run("softseg", files / "0.png", "--next", files / "1.png", "--out", files / "out", "--rows", "24", "--layers", "2",
        "--weights", files / "net.safetensors", "--raft", "small")
    moved = np.load(files / "out/0_alphas.npy")
    assert moved.shape == (2, 24, 32)
    options = "--out", files / "out", "--rows", "24", "--layers", "2", "--weights", files / "net.safetensors"
    run("softseg", files / "0.png", *options)
    alone = np.load(files / "out/0_alphas.npy")
    assert np.abs(moved - alone).max() > 0.01
    SSN(SSNConfig("pix")).save(files / "ssn.safetensors")
    figures = run("softseg", files / "0.png", *options, "--ssn", files / "ssn.safetensors")
    image = geometry.resize(io.read_image(files / "0.png")[None], (24, 32)).clamp(0, 1)
    assert figures["superpixels"] == int(SSN(SSNConfig("pix")).eval().segment(image, 24 * 32 // 16).max()) + 1


@pytest.mark.parametrize(("arguments", "message"), [
    (("missing.png",), "missing.png"), (("0.png", "--layers", "0"), "from 1 to"),
    (("0.png", "--layers", "5000"), "from 1 to"), (("0.png", "--weights", "nothing"), "no softseg weights"),
    (("0.png", "--rows", "0"), "--rows must be at least 1"), (("0.png", "--next", "other.png"), "as the frame before"),
    (("net.safetensors",), "net.safetensors")])
def test_bad_input_is_one_line_and_leaves_nothing(fails, files, arguments, message):
    io.write_image(files / "other.png", torch.rand(3, 20, 20))
    name, *more = arguments
    weights = [] if "--weights" in more else ["--weights", files / "net.safetensors"]
    more = [files / word if word.endswith(".png") else word for word in more]
    assert message in fails("softseg", files / name, *more, *weights, "--raft", files / "raft.safetensors",
                            "--out", files / "out")
    assert not (files / "out").exists()


# ---------------------------------------------------------------- training


def scenes(seed=0, n_clips=2):
    return datasets.open("scenes", preset="lab", n_clips=n_clips, n_frames=2, size=SIZE, seed=seed)


@pytest.mark.parametrize("compared", recipe.COMPARED)
def test_a_few_steps_of_training(tmp_path, compared):
    fit = recipe.train(tmp_path, scenes(), scenes(50, 1), compared=compared, widths=(8, 8, 8), steps=2, batch_size=2,
                       device="cpu", workers=0, progress=False)
    assert {"ap", "map", "chance"} <= set(fit.history) and np.isfinite(fit.history["loss"]).all()
    assert EmbeddingNet.from_pretrained(tmp_path / "best.safetensors").config.widths == (8, 8, 8)
    assert (tmp_path / "best-ssn.safetensors").is_file() == (compared == "ssn")
    assert "ap, Lab" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize("compared", recipe.COMPARED)
def test_training_in_half_precision(tmp_path, compared):
    fit = recipe.train(tmp_path, scenes(), scenes(50, 1), compared=compared, widths=(8,) * 3, steps=1, batch_size=1,
                       device="cpu", workers=0, precision="bf16-mixed", progress=False)
    assert np.isfinite(fit.history["loss"]).all()


def test_superpixels_learn_along_with_the_vectors():
    network = recipe.WithSSN(EmbeddingNet(EmbeddingConfig((8,), (2,), 1, 8)), SSN(SSNConfig(width=8)))
    image, classes = torch.rand(1, 3, 32, 32), (torch.arange(32) // 11).expand(1, 32, -1)
    network(image, classes).sum().backward()
    assert network.ssn.net.head.weight.grad.abs().sum() > 0
    assert network.embedding.heads[0].weight.grad.abs().sum() > 0


def test_pixels_get_the_vector_of_the_cell_they_lie_in():
    net = EmbeddingNet(EmbeddingConfig((8,), (2,), 1, 8)).eval()
    image, segments = torch.rand(1, 3, 9, 11), torch.arange(99).view(1, 9, 11) % 5
    places = torch.tensor([[0, 12, 50, 98]])
    loss = recipe.pair_loss(net, {"image": image, "segments": segments, "places": places})
    vectors, rows, columns = net(image)[0], places[0] // 11, places[0] % 11
    drawn = vectors[:, rows * 5 // 9, columns * 6 // 11].T[None]
    assert torch.allclose(loss, softseg.n_pair_loss(drawn, segments.flatten(1).gather(1, places)))


def test_batches_have_superpixels_of_their_crop():
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=2, size=(260, 340), seed=1)[0]
    batch = recipe.Samples([clip], "slic", 2, 0)(0)
    assert batch["image"].shape == (2, 3, *recipe.CROP) and batch["superpixels"].shape == (2, *recipe.CROP)
    for superpixels in batch["superpixels"]:
        assert torch.equal(superpixels.unique(), torch.arange(int(superpixels.max()) + 1))


def test_photographs_of_ade20k_are_prepared_by_class(tmp_path):
    for split in ("training", "validation"):
        for name, size in (("wide", (60, 100)), ("tall", (100, 60))):
            io.write_image(tmp_path / f"images/{split}/{split}-{name}.png", torch.rand(3, *size))
            (tmp_path / "annotations" / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.tile(np.arange(size[1], dtype=np.uint8) // 30, (size[0], 1))).save(
                tmp_path / f"annotations/{split}/{split}-{name}.png")
    clips, validation = recipe.prepare("ade20k", tmp_path)
    assert [clip.size for clip in clips] == [(534, 320), (240, 400)] and len(validation) == 2
    assert clips[0].segments(0).unique().tolist() == [1, 255]
    batch = recipe.Samples(clips, "pixels", 2, 0)(0)
    assert torch.isfinite(recipe.pair_loss(EmbeddingNet(EmbeddingConfig((8,), (2,), 1, 8)), batch)).all()


@pytest.mark.parametrize(("dataset", "message"), [("ade20k", "ade20k needs root"), ("davis2016", "dataset must be one"),
                                                  ("bsds500", "bsds500 needs root")])
def test_a_dataset_without_its_folder_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        recipe.prepare(dataset)


def test_the_same_clip_in_both_parts_and_something_else_to_compare_are_refused(tmp_path):
    with pytest.raises(ValueError, match="both trained on and validated on"):
        recipe.train(tmp_path, scenes(), scenes())
    with pytest.raises(ValueError, match="compared must be one of slic, ssn, pixels"):
        recipe.train(tmp_path, scenes(), scenes(9), compared="crumbs")
    with pytest.raises(ValueError, match="dataset must be one of scenes"):
        recipe.train(tmp_path, scenes(), scenes(9), dataset="mine")


def test_frames_that_nobody_labelled_cannot_judge():
    with pytest.raises(ValueError, match="no clip to judge by"):
        recipe.Judge([])
    unlabelled = [clip.with_readers(segments=lambda t: torch.full(SIZE, 255)) for clip in scenes()]
    with pytest.raises(ValueError, match="are they labelled"):
        recipe.Judge(unlabelled)
    assert recipe.Judge([*unlabelled, *scenes()])(lambda x: x)["ap"] > 0
