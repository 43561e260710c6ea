"""The commands of superpixels: cut images, score them on a dataset; bad input is one line and leaves nothing."""

import json

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch

from diffslic import cli, datasets
from diffslic.datasets import io
from diffslic.datasets.composite_flow import read_flow_both_ways, with_composite_flow, write_composite_flow
from diffslic.recipes import ssn as recipe
from diffslic.superpixels import SSN, SpixelFCN, SpixelFCNConfig, SSNConfig


@pytest.fixture
def clip():
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=3, size=(40, 56))[0]


@pytest.fixture
def images(clip, tmp_path):
    for t, name in enumerate(("a.png", "b.jpg")):
        io.write_image(tmp_path / "images" / name, clip.frame(t))
    return [str(tmp_path / "images" / name) for name in ("a.png", "b.jpg")]


@pytest.fixture
def bsds(clip, tmp_path):
    for t in range(2):
        io.write_image(tmp_path / f"BSDS500/data/images/val/{t}.jpg", clip.frame(t))
        cell = np.empty((1, 2), dtype=object)
        for i, maps in enumerate((clip.segments(t), clip.labels(t))):
            cell[0, i] = {"Segmentation": 1 + maps.numpy().astype(np.uint16)}
        (tmp_path / "BSDS500/data/groundTruth/val").mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(tmp_path / f"BSDS500/data/groundTruth/val/{t}.mat", {"groundTruth": cell})
    return tmp_path / "BSDS500"


def error(capsys, arguments):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_images_are_cut(capsys, images, tmp_path):
    SSN(SSNConfig("pix")).save(tmp_path / "pix.safetensors")
    arguments = ["superpixels", *images, "--out", str(tmp_path / "cut"), "--n-spixels", "300", "--exact",
                 "--weights", str(tmp_path / "pix.safetensors")]
    assert cli.main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["count"] for row in rows] == [300, 300]
    labels = io.read_labels(tmp_path / "cut/a.png")
    assert torch.equal(labels.unique(), torch.arange(300))
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == sorted(
        f"{stem}{kind}.png" for stem in "ab" for kind in ("", "_boundaries", "_colours"))
    assert cli.main(arguments) == 0
    assert "b.jpg: 300 superpixels, compactness 0." in capsys.readouterr().out


def test_compactness_and_iterations_of_a_command_count(capsys, images, tmp_path):
    SSN(SSNConfig("pix")).save(tmp_path / "pix.safetensors")
    arguments = ["superpixels", images[0], "--out", str(tmp_path / "cut"), "--n-spixels", "30", "--json",
                 "--weights", str(tmp_path / "pix.safetensors")]
    found = []
    for more in ([], ["--compactness", "8"], ["--n-iters", "1"]):
        assert cli.main([*arguments, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)[0]["co"])
    assert found[1] > found[0] + 0.1 and found[2] != found[0]


def test_a_composite_is_trained_on_davis_with_the_flow_of_a_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "COUNTS", (12,))
    names = ["bear", "bus", "boat", "hike", "hockey", "lucia", "train"]  # the sixth validates
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "7", "--n-frames", "2", "--size", "40", "56"]) == 0
    root = tmp_path / "davis"
    lines = []
    for clip, name in zip(datasets.open("davis2016", root=root, resolution="40p"), names):
        for kind in ("JPEGImages", "Annotations"):
            (root / kind / "40p" / clip.name).rename(root / kind / "40p" / name)
        lines += [f"/JPEGImages/40p/{name}/{t:05d}.jpg /Annotations/40p/{name}/{t:05d}.png" for t in range(2)]
    (root / "ImageSets" / "40p").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "40p" / "train.txt").write_text("\n".join(lines))
    field = torch.zeros(2, 40, 56)
    for clip in datasets.open("davis2016", root=root, resolution="40p"):
        moving = clip.with_readers(flow=lambda t: field, backward_flow=lambda t: field)
        write_composite_flow(moving, tmp_path / "flow" / f"{clip.name}.h5")
    SSN(SSNConfig("pix")).save(tmp_path / "base.safetensors")
    arguments = ["train", "ssn", "--dataset", "davis2016", "--root", str(root), "--resolution", "40p", "--steps", "1",
                 "--batch-size", "2", "--device", "cpu", "--workers", "0", "--out", str(tmp_path / "run"), "--json"]
    capsys.readouterr()
    assert cli.main([*arguments, "--model", "composite", "--start", str(tmp_path / "base.safetensors"),
                     "--flow-root", str(tmp_path / "flow")]) == 0
    net = SSN.from_pretrained(tmp_path / "run/best.safetensors")
    assert net.config.extra_channels == 4 and net.config.features == "pix"
    card = (tmp_path / "run/card.md").read_text()
    assert "6 clips (bear ...), 12 frames" in card and "1 others" in card


def test_scenes_teach_and_davis_judges(tmp_path):
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "6", "--n-frames", "2", "--size", "40", "56"]) == 0
    lines = [f"/JPEGImages/40p/lab-{i:05d}/00000.jpg /Annotations/40p/lab-{i:05d}/00000.png" for i in range(6)]
    (tmp_path / "davis/ImageSets/40p").mkdir(parents=True, exist_ok=True)
    (tmp_path / "davis/ImageSets/40p/train.txt").write_text("\n".join(lines))
    clips, validation = recipe.prepare("scenes", n_scenes=2, davis=tmp_path / "davis", resolution="40p")
    assert len(clips) == 2 and [clip.name for clip in validation] == ["lab-00005"] and validation[0].has("labels")


def test_a_composite_takes_the_flow_of_a_frame(capsys, clip, images, tmp_path):
    write_composite_flow(clip, tmp_path / "flow.h5")
    SSN(SSNConfig(width=4)).composite(4, extra_width=4).save(tmp_path / "net.safetensors")
    arguments = ["superpixels", images[0], "--out", tmp_path / "cut", "--weights", tmp_path / "net.safetensors"]
    assert cli.main([*map(str, arguments), "--flow", str(tmp_path / "flow.h5"), "--frame", "1"]) == 0
    assert "net.safetensors is a composite: it needs --flow and --frame" in error(capsys, arguments)
    assert "there is no frame 7" in error(capsys, [*arguments, "--flow", tmp_path / "flow.h5", "--frame", "7"])
    assert "--flow is the flow of one image, got 2" in error(
        capsys, [*arguments, images[1], "--flow", tmp_path / "flow.h5", "--frame", "1"])


def test_scores_over_counts(capsys, bsds, tmp_path):
    SpixelFCN(SpixelFCNConfig(widths=(4, 4, 4, 4, 4))).save(tmp_path / "fcn.safetensors")
    arguments = ["evaluate", "superpixels", str(bsds), "--out", str(tmp_path / "out"), "--counts", "12,30",
                 "--model", "spixelfcn", "--weights", str(tmp_path / "fcn.safetensors")]
    assert cli.main(arguments) == 0
    assert "scikit-image SLIC" in capsys.readouterr().out
    curve = pd.read_csv(tmp_path / "out/curve.csv")
    assert list(curve["method"].unique()) == ["fcn", "pixel features", "scikit-image SLIC"]
    assert len(pd.read_csv(tmp_path / "out/scores.csv")) == 2 * 2 * 3
    assert cli.main([*arguments, "--no-baselines", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["requested"] for row in rows] == [12, 30] and 0 < rows[0]["asa"] <= rows[1]["asa"] <= 1


def test_scores_on_davis_with_a_composite_and_without_the_background(capsys, clip, tmp_path):
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "1", "--n-frames", "3", "--size", "40", "56"]) == 0
    write_composite_flow(clip, tmp_path / "flow" / "lab-00000.h5")
    SSN(SSNConfig(width=4)).composite(4, extra_width=4).save(tmp_path / "net.safetensors")
    arguments = ["evaluate", "superpixels", str(tmp_path / "davis"), "--dataset", "davis2016", "--resolution", "40p",
                 "--split", "all", "--out", str(tmp_path / "out"), "--counts", "20", "--every", "2", "--no-baselines",
                 "--weights", str(tmp_path / "net.safetensors"), "--flow-root", str(tmp_path / "flow"), "--json"]
    capsys.readouterr()
    assert cli.main(arguments) == 0
    whole = json.loads(capsys.readouterr().out)[0]
    assert cli.main([*arguments, "--ignore-background"]) == 0
    objects = json.loads(capsys.readouterr().out)[0]
    masks = datasets.open("davis2016", root=tmp_path / "davis", resolution="40p")[0]
    net = SSN.from_pretrained(tmp_path / "net.safetensors")
    expected = []
    for t in (0, 2):
        flow = read_flow_both_ways(tmp_path / "flow/lab-00000.h5", t)
        labels, truth = net.segment(masks.frame(t)[None], 20, extra=flow[None])[0], masks.labels(t) > 0
        won = torch.stack([truth[labels == s].float().mean() > 0.5 for s in range(int(labels.max()) + 1)])[labels]
        expected.append((won & truth).sum() / truth.sum())
    assert objects["asa"] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-6)
    assert objects["asa"] not in (1, whole["asa"])
    assert objects["br"] == whole["br"]
    assert len(pd.read_csv(tmp_path / "out/scores.csv")) == 2  # frames 0 and 2
    assert cli.main([*arguments, "--first", "1"]) == 0
    assert pd.read_csv(tmp_path / "out/scores.csv")["frame"].tolist() == [1]
    assert "first must be a frame, 0 to 2, got 3" in error(capsys, [*arguments, "--first", "3"])
    (tmp_path / "flow" / "lab-00000.h5").unlink()
    assert "lab-00000.h5" in error(capsys, arguments)


def test_flow_is_for_a_composite_alone(capsys, clip, images, tmp_path):
    write_composite_flow(clip, tmp_path / "flow.h5")
    SpixelFCN(SpixelFCNConfig(widths=(4, 4, 4, 4, 4))).save(tmp_path / "fcn.safetensors")
    assert "--flow is for a composite" in error(capsys, [
        "superpixels", images[0], "--out", tmp_path / "cut", "--model", "spixelfcn", "--flow", tmp_path / "flow.h5",
        "--frame", "1", "--weights", tmp_path / "fcn.safetensors"])


def test_flow_is_exported_for_a_composite(capsys, tmp_path):
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "1", "--n-frames", "3", "--size", "40", "56"]) == 0
    arguments = ["precompute", "flow", str(tmp_path / "davis"), "--resolution", "40p", "--iters", "1",
                 "--cache", str(tmp_path / "cache"), "--export", str(tmp_path / "export")]
    assert cli.main(arguments) == 0
    clip = with_composite_flow(datasets.open("davis2016", root=tmp_path / "davis", resolution="40p")[0],
                               tmp_path / "export/lab-00000.h5")
    assert clip.flow(1).shape == clip.backward_flow(2).shape == (2, 40, 56)
    cached = tmp_path / "cache/davis2016/40p/flow/lab-00000.h5"
    for t in range(3):  # the cache says what the export says
        torch.testing.assert_close(read_flow_both_ways(cached, t),
                                   read_flow_both_ways(tmp_path / "export/lab-00000.h5", t), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("arguments, told", [
    (["superpixels", "none.png", "--out", "cut"], "none.png"),
    (["superpixels", "IMAGE", "--out", "cut", "--n-spixels", "0"], "n_spixels must be between 1 and the 2240 pixels"),
    (["superpixels", "IMAGE", "--out", "cut", "--n-spixels", "9999"], "got 9999"),
    (["superpixels", "IMAGE", "IMAGE", "--out", "cut"], "two images would write a.png"),
    (["superpixels", "IMAGE", "--out", "images"], "images: holds the images themselves"),
    (["superpixels", "IMAGE", "--out", "cut", "--model", "slic"], "model must be one of 'ssn', 'spixelfcn'"),
    (["superpixels", "IMAGE", "--out", "cut", "--weights", "nothing"], "nothing"),
    (["superpixels", "IMAGE", "--out", "cut", "--frame", "2"], "one needs the other"),
    (["superpixels", "IMAGE", "--out", "cut", "--n-iters", "0"], "--n-iters must be at least 1"),
    (["superpixels", "IMAGE", "--out", "cut", "--compactness", "-1"], "--compactness must be above 0"),
    (["superpixels", "IMAGE", "--out", "cut", "--model", "spixelfcn", "--n-iters", "2"], "--n-iters is of an SSN"),
    (["superpixels", "IMAGE", "a_boundaries.png", "--out", "cut"], "two images would write a_boundaries.png"),
    (["evaluate", "superpixels", "nowhere", "--out", "cut", "--ignore-background"], "no segment of bsds500"),
    (["train", "ssn", "--out", "cut", "--loss", "l2"], "loss must be one of 'probability', 'iou', 'logsoftmax'"),
    (["train", "ssn", "--out", "cut", "--n-scenes", "1", "--model", "composite"], "a composite needs start"),
    (["train", "ssn", "--out", "cut", "--n-scenes", "1", "--width", "8", "--start", "scenes"], "width is of a new SSN"),
    (["train", "ssn", "--out", "cut", "--n-scenes", "1", "--model", "spixelfcn", "--n-iters", "2"],
     "spixelfcn does not iterate"),
    (["superpixels", "IMAGE", "--out", "cut", "--flow", "IMAGE"], "one needs the other"),
    (["superpixels", "IMAGE", "--out", "cut", "--flow", "IMAGE", "--frame", "0"], "bsds500 is none"),
    (["superpixels", "IMAGE", "--out", "cut", "--flow", "IMAGE", "--frame", "0", "--weights", "composite-davis2016"],
     "a.png: not a whole HDF5 file"),
    (["superpixels", "IMAGE", "--out", "cut", "--n-spixels", "70000"], "16 bits hold at most 65536"),
    (["superpixels", "IMAGE", "--out", "cut", "--n-spixels", "9000"], "a.png: n_spixels must be between"),
    (["evaluate", "superpixels", "nowhere", "--out", "cut"], "nowhere/data/images/val: no such folder"),
    (["evaluate", "superpixels", "nowhere", "--out", "cut", "--counts", "a,b"], "--counts must be whole numbers"),
    (["evaluate", "superpixels", "nowhere", "--out", "cut", "--dataset", "coco"], "dataset must be one of 'bsds500'"),
    (["train", "ssn", "--out", "cut", "--dataset", "bsds500"], "bsds500 needs root"),
    (["train", "ssn", "--out", "cut", "--dataset", "bsds500", "--root", "x", "--model", "composite", "--start",
      "bsds500"], "nothing moves in a photograph"),
    (["train", "ssn", "--out", "cut", "--model", "slic"], "model must be one of 'ssn', 'composite', 'spixelfcn'"),
])
def test_bad_input(capsys, images, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert told in error(capsys, [images[0] if word == "IMAGE" else word for word in arguments])
    assert not (tmp_path / "cut").exists() or not any((tmp_path / "cut").rglob("*.*"))
