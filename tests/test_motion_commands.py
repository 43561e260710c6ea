"""Motion segmentation from the shell: tables, training, masks and scores, and bad input in one line."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from diffslic import cli, datasets, evaluation, pipeline
from diffslic.datasets import io
from diffslic.datasets.clip import Clip
from diffslic.flow import RAFT
from diffslic.segmentation import MotionNet, MotionNetConfig
from diffslic.superpixels import SSN, SSNConfig

SMALL = {"size": (24, 32), "widths": (8, 8), "n_layers": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base folder with two scenes as files and their table, and untrained networks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    for clip in datasets.open("scenes", preset="lab", n_clips=2, n_frames=5, size=(32, 40)):
        for t in range(5):
            io.write_image(folder / "images" / clip.name / f"{t:05d}.png", clip.frame(t))
            io.write_labels(folder / "masks" / clip.name / f"{t:05d}.png", clip.labels(t))
        for t in clip.frames_with("flow"):
            io.write_flo(folder / "flow" / clip.name / f"{t:05d}.flo", clip.flow(t))
    for name, window in (("em", 1), ("spacetime", 3)):
        MotionNet(MotionNetConfig(window=window, **SMALL)).save(folder / f"{name}.safetensors")
    RAFT().save(folder / "raft.safetensors")
    for part, n_clips in (("train", 1), ("val", 2)):
        names = sorted(path.name for path in (folder / "images").iterdir())[2 - n_clips:]
        for name in names[:1]:
            assert cli.main(["data", "split", str(folder), "--out", str(folder / f"OWN_{part}.csv"), "--images",
                             f"images/{name}" if part == "train" else "images/*", "--flow",
                             f"flow/{name}" if part == "train" else "flow/*", "--masks",
                             f"masks/{name}" if part == "train" else "masks/*"]) == 0
    return folder


@pytest.mark.parametrize("name", ["em", "spacetime"])
def test_scores_of_a_table(run, base, tmp_path, name):
    figures = run("evaluate", "motion", base, "--file", base / "OWN", "--split", "val", "--out", tmp_path,
                  "--weights", base / f"{name}.safetensors", "--save-masks", "--save-pictures", "--save-probabilities")
    rows = pd.read_csv(tmp_path / "results_val.csv")
    assert len(rows) == 2 * 4
    assert list(rows.columns)[:6] == ["sequence", "frame", "J", "F", "box", "bIoU"]
    oracles = [column for column in rows if column.startswith("J oracle")]
    assert len(oracles) == 4
    assert (rows["J oracle exhaustive"] >= rows["J"] - 1e-9).all() or name == "spacetime"
    assert figures["val J"] == pytest.approx(rows.groupby("sequence")["J"].mean().mean())
    assert json.loads((tmp_path / "results_val.json").read_text())["how"]["selection"] == "moving"
    folder = tmp_path / rows["sequence"][0]
    assert len(list((folder / "masks").iterdir())) == len(list((folder / "pictures").iterdir())) == 4
    assert np.load(folder / "probabilities.npy").shape == (3, 4, 24, 32)
    clip = datasets.open("split", root=base, file=base / "OWN", split="val")[0]
    labels = pipeline.predict_motion(MotionNet.from_pretrained(base / f"{name}.safetensors"), clip)
    assert np.array_equal(np.stack([io.read_labels(path) for path in sorted((folder / "masks").iterdir())]), labels[:4])


def test_frames_without_a_mask_have_no_score(base, tmp_path):
    table = pd.read_csv(base / "OWN_val.csv")
    table.loc[1:, "GtMask"] = ""
    table.loc[2, "Image"] = ""
    table.to_csv(base / "BLANK_val.csv", index=False)
    clips = datasets.open("split", root=base, file=base / "BLANK", split="val")
    net = MotionNet.from_pretrained(base / "em.safetensors")
    scores = evaluation.evaluate_motion(net, clips, tmp_path, keep=["pictures"], progress=False)
    assert scores.rows["J"].notna().tolist() == [True] + [False] * 7
    with pytest.raises(ValueError, match="no frame of"):
        evaluation.evaluate_motion(net, clips[1:], tmp_path, progress=False)


@pytest.mark.parametrize("system", ["em", "spacetime"])
def test_training_on_a_table(run, base, tmp_path, system):
    names = sorted(path.name for path in (base / "images").iterdir())
    held = pd.read_csv(base / "OWN_val.csv")
    held[held["Sequence"] == names[0]].to_csv(base / "HALF_val.csv", index=False)
    (base / "HALF_train.csv").write_bytes((base / "OWN_train.csv").read_bytes())
    figures = run("train", system, "--out", tmp_path, "--dataset", "split", "--root", base, "--file",
                  base / "HALF", "--steps", 2, "--batch-size", 1, "--image-size", 24, 32, "--widths", "8,8", "--layers",
                  3, "--workers", 0, *(["--window", 3] if system == "spacetime" else []))
    assert {"val_loss", "j", "f"} <= set(figures)
    assert MotionNet.from_pretrained(tmp_path / "best.safetensors").config.n_layers == 3
    run("train", system, "--out", tmp_path / "on", "--dataset", "split", "--root", base, "--file", "HALF",
        "--steps", 1, "--batch-size", 1, "--workers", 0, "--start", tmp_path / "best.safetensors", "--selection",
        "largest")
    config = MotionNet.from_pretrained(tmp_path / "on" / "best.safetensors").config
    assert (config.size, config.widths, config.selection) == ((24, 32), (8, 8), "largest")


@pytest.mark.parametrize("method", ["em", "spacetime"])
def test_masks_of_a_video(run, fails, base, tmp_path, method):
    frames = next((base / "images").iterdir())
    how = ["--method", method, "--weights", base / f"{method}.safetensors", "--raft", base / "raft.safetensors"]
    run("segment", frames, "--out", tmp_path / "out", *how)
    masks = [io.read_labels(path) for path in sorted((tmp_path / "out" / "masks").iterdir())]
    assert len(masks) == 5
    assert masks[0].shape == (32, 40)
    if method == "spacetime":  # other windows, other masks
        assert "holds other masks" in fails("segment", frames, "--out", tmp_path / "out", *how, "--window", -1)


def test_a_stopped_run_goes_on_as_it_began(base, tmp_path):
    frames = next((base / "images").iterdir())
    result = pipeline.segment(frames, base / "spacetime.safetensors", base / "raft.safetensors", method="spacetime")
    result.save(tmp_path, overlay=False, progress=False)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()}
    for name in sorted(whole)[2:]:
        (tmp_path / "masks" / name).unlink()
    result.save(tmp_path, overlay=False, progress=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "masks").iterdir()} == whole


def test_the_last_frame_is_seen_by_the_way_back(base):
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=4, size=(32, 40))[0]
    net = MotionNet.from_pretrained(base / "em.safetensors")
    labels = pipeline.predict_motion(net, clip)
    assert labels.shape == (4, 32, 40)
    flows = torch.stack([*(clip.flow(t) for t in range(3)), -clip.backward_flow(3)])
    assert np.array_equal(labels, net.segment(flows).numpy())
    one_way = clip.with_readers()
    readers = {kind: read for kind, read in clip.readers.items() if kind != "backward_flow"}
    one_way = datasets.Clip(clip.name, clip.size, readers, len(clip))
    repeated = pipeline.predict_motion(net, one_way)
    assert np.array_equal(repeated[3], repeated[2])


def test_a_network_that_reads_images_sees_the_last_frame_too():
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=4, size=(32, 40))[0]
    torch.manual_seed(0)
    net = MotionNet(MotionNetConfig(window=1, **SMALL, inputs=("flow", "image", "flow_rgb"))).eval()
    flows = torch.stack([*(clip.flow(t) for t in range(3)), -clip.backward_flow(3)])
    labels = net.segment(flows, torch.stack([clip.frame(t) for t in range(4)]),
                         torch.stack([pipeline.painted(flow) for flow in flows]))
    assert np.array_equal(pipeline.predict_motion(net, clip), labels.numpy())


def test_every_object_of_a_sequence_counts_alike(base, tmp_path):
    """Two frames, of two and of three objects, the first all right: not the mean of the means of frames."""
    truth = torch.zeros(3, 32, 40, dtype=torch.int64)
    truth[:, :16, :20], truth[1:, 16:, 20:] = 1, 2
    clip = Clip("c", (32, 40), {"flow": lambda t: torch.rand(2, 32, 40), "labels": lambda t: truth[t]}, 3)

    class Halves(MotionNet):
        def masks(self, flow, *_, **__):
            for _ in flow:
                body = (truth[0] == 1).float()
                yield torch.stack([1 - body, body, 0 * body])

    net = Halves(MotionNetConfig(window=3, **SMALL | {"size": (32, 40)})).eval()
    scores = evaluation.evaluate_motion(net, [clip], tmp_path, progress=False)
    second = [1, 640 / 960, 320 / 960]  # the left body, the ground with the right one in its layer, the right one
    assert scores.rows["bIoU"].tolist() == pytest.approx([1, np.mean(second)])
    assert scores.summary["bIoU"] == pytest.approx(np.mean([1, 1, *second]))


def test_the_last_frame_is_seen_from_behind_or_repeated(base):
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=4, size=(32, 40), seed=2)[0]
    net = MotionNet.from_pretrained(base / "em.safetensors")
    seen, repeated = pipeline.predict_motion(net, clip), pipeline.predict_motion(net, clip, repeat_last=True)
    assert np.array_equal(seen[:3], repeated[:3]) and np.array_equal(repeated[2], repeated[3])
    assert not np.array_equal(seen[3], repeated[3])


def test_void_counts_for_nothing(base, tmp_path):
    """Perfect layers on a truth with void score one."""
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=4, size=(32, 40), seed=2)[0]

    def with_void(t):
        labels = clip.labels(t).clone()
        labels[:8] = 255
        return labels

    class Perfect(MotionNet):
        def masks(self, flow, *_, **__):
            for t in range(len(flow)):
                bodies = (clip.labels(t) > 0).float()
                yield torch.stack([1 - bodies, bodies, 0 * bodies])

    scores = evaluation.evaluate_motion(Perfect(MotionNetConfig(window=3, **SMALL | {"size": (32, 40)})).eval(),
                                        [clip.with_readers(labels=with_void)], tmp_path, progress=False)
    for column in ("fair", "top IoU", "assignment", "exhaustive"):
        assert scores.rows[f"J oracle {column}"].min() == 1


def test_em_without_a_network_finds_a_body():
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=2, size=(96, 160), seed=2)[0]
    mask, truth = pipeline.em_mask(clip.flow(0)[None]), clip.labels(0)[None] > 0
    assert mask.shape == truth.shape
    assert (mask & truth).sum() > 0.9 * (mask | truth).sum()


def test_bad_input_is_one_line(fails, base, tmp_path):
    frames = next((base / "images").iterdir())
    SSN(SSNConfig("pix")).save(base / "ssn.safetensors")
    assert "the method is one of" in fails("segment", frames, "--out", tmp_path, "--method", "magic")
    assert "does not hold the weights of a MotionNet" in fails(
        "segment", frames, "--out", tmp_path, "--method", "em", "--weights", base / "raft.safetensors")
    assert "window is for spacetime" in fails("segment", frames, "--out", tmp_path, "--method", "em", "--window", 5)
    assert "a window" in fails("segment", frames, "--out", tmp_path, "--method", "spacetime", "--weights",
                               base / "em.safetensors", "--window", 0)
    assert "window is for spacetime" in fails("segment", frames, "--out", tmp_path, "--window", 3)
    assert "is not of method em" in fails("segment", frames, "--out", tmp_path, "--method", "em", "--weights",
                                          base / "spacetime.safetensors")
    assert "with --file" in fails("segment", base, "--out", tmp_path, "--dataset", "split")
    assert "multiple of 4" in fails("train", "spacetime", "--out", tmp_path, "--widths", "8,8,10")
    assert "distance must be" in fails("train", "em", "--out", tmp_path, "--root", base, "--distance", "huber")
    assert "one needs the other" in fails("evaluate", "motion", base, "--out", tmp_path)
    assert "no such DataSplit" in fails("evaluate", "motion", base, "--out", tmp_path, "--file", "NONE",
                                        "--weights", base / "em.safetensors")
    assert "selection must be" in fails("evaluate", "motion", base, "--out", tmp_path, "--file", base / "OWN",
                                        "--weights", base / "em.safetensors", "--selection", "best")
    assert "no folder" in fails("data", "split", base, "--out", tmp_path / "x.csv", "--images", "no/*",
                                "--flow", "flow/*")
    assert "no masks none/*" in fails("data", "split", base, "--out", tmp_path / "x.csv", "--images",
                                      "images/*", "--flow", "flow/*", "--masks", "none/*")
    assert "n_layers of" in fails("train", "em", "--out", tmp_path, "--start", base / "em.safetensors",
                                  "--layers", 7)
    assert "window of" in fails("train", "em", "--out", tmp_path, "--start", base / "spacetime.safetensors")
    assert "is for train em" in fails("train", "spacetime", "--out", tmp_path, "--start",
                                       base / "em.safetensors")
    assert "whole numbers" in fails("train", "em", "--out", tmp_path, "--widths", "a,b")
    assert "got spacing 0" in fails("train", "spacetime", "--out", tmp_path, "--root", base, "--spacing", 0)
    assert "an input is one of" in fails("train", "em", "--out", tmp_path, "--inputs", "depth")
