"""The commands on small real input, and bad input: one line that names the file, and nothing half-written."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from diffslic import cli, datasets, pipeline
from diffslic.datasets import io
from diffslic.flow import RAFT
from diffslic.recipes import ssn
from diffslic.segmentation import UNet, UNetConfig
from diffslic.superpixels import SSN, SSNConfig

SIZE = (48, 64)
SHIPPED = Path(__file__).resolve().parents[1] / "data" / "weights"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Options that name small untrained networks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    RAFT().save(folder / "raft.safetensors")
    SSN(SSNConfig(width=4)).save(folder / "ssn.safetensors")
    UNet(UNetConfig(25, widths=(4, 8), inputs=pipeline.INPUTS)).save(folder / "unet.safetensors")
    return ["--weights", str(folder / "unet.safetensors"), "--raft", str(folder / "raft.safetensors"),
            "--ssn", str(folder / "ssn.safetensors")]


@pytest.fixture
def frames(tmp_path):
    clip = datasets.open("scenes", n_clips=1, n_frames=3, size=SIZE)[0]
    for t in range(3):
        io.write_image(tmp_path / "frames" / f"{t}.png", clip.frame(t))
    return tmp_path / "frames"


@pytest.fixture
def davis(tmp_path):
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "2", "--n-frames", "3", "--size", "48", "64"]) == 0
    return tmp_path / "davis"


def fails(capsys, arguments, *words):
    """The command ends with code 2 and one line on stderr that holds the words."""
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("diffslic: ")
    for word in words:
        assert word in line


def test_segment(capsys, frames, weights, tmp_path):
    assert cli.main(["segment", str(frames), "--out", str(tmp_path / "out"), "--json", *weights]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["frames"] == 3
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 3
    assert (tmp_path / "out" / "overlay.mp4").stat().st_size > 0


def test_segment_a_dataset_and_evaluate_it(capsys, davis, weights, tmp_path):
    capsys.readouterr()
    assert cli.main(["segment", str(davis), "--dataset", "davis2016", "--resolution", "48p", "--no-overlay", "--json",
                     "--out", str(tmp_path / "out"), *weights]) == 0
    assert json.loads(capsys.readouterr().out) == {"clips": 2, "frames": 6, "out": str(tmp_path / "out")}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["lab-00000", "lab-00001"]
    truth = davis / "Annotations" / "48p"
    assert cli.main(["evaluate", "davis2016", str(tmp_path / "out"), str(truth), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["J-Mean"] <= 1


def test_the_resolution_that_is_there_is_told(capsys, davis, weights, tmp_path):
    fails(capsys, ["segment", davis, "--dataset", "davis2016", "--out", tmp_path / "out", *weights],
          "JPEGImages/480p: no such folder; there is 48p")


def test_precompute_twice(capsys, davis, weights, tmp_path):
    for command, network in (("flow", weights[3]), ("superpixels", weights[5])):
        arguments = ["precompute", command, str(davis), "--resolution", "48p", "--cache", str(tmp_path),
                     "--weights", network]
        assert cli.main(arguments) == 0
        folder = tmp_path / "davis2016" / "48p" / command
        times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert sorted(times) == ["lab-00000.h5", "lab-00001.h5"]
        assert cli.main(arguments) == 0
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == times


def test_evaluate(capsys, davis, tmp_path):
    truth = davis / "Annotations" / "48p"
    capsys.readouterr()
    assert cli.main(["evaluate", "davis2016", str(truth), str(truth), "--out", str(tmp_path / "s.csv"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["J-Mean"] == figures["F-Mean"] == figures["J&F-Mean"] == 1
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + 2 * 1


def test_scenes_in_both_layouts(davis, tmp_path):
    assert datasets.check("davis2016", davis) == datasets.check("davis2017", davis) == []
    assert cli.main(["scenes", str(tmp_path / "t"), "--layout", "tartanair", "--n-clips", "1", "--n-frames", "2",
                     "--size", "48", "64"]) == 0
    assert datasets.check("tartanair", tmp_path / "t") == []


def test_train_ssn_shows_the_best_state(capsys, tmp_path, monkeypatch):
    few, other = (datasets.open("scenes", n_clips=1, n_frames=2, size=SIZE, seed=seed) for seed in (0, 5))
    monkeypatch.setattr(ssn, "prepare", lambda *_, **__: (few, other))
    arguments = ["train", "ssn", "--out", str(tmp_path), "--steps", "1", "--width", "2", "--workers", "0", "--json",
                 "--device", "cpu"]
    assert cli.main(arguments) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["best_step"] == 1
    assert 0 < figures["asa"] <= 1
    assert SSN.from_pretrained(figures["weights"]).config.width == 2
    card = (tmp_path / "card.md").read_text()
    assert "diffslic train ssn" in card and "GPU" not in card.split("| hardware |")[1].splitlines()[0]
    assert card.endswith("--device cuda`. Not yet trained or measured on a GPU.\n")


@pytest.mark.parametrize("card", sorted(SHIPPED.glob("*.md")), ids=lambda path: path.stem)
def test_a_shipped_card_ends_with_its_command_for_a_gpu(capsys, card):
    """Its options are those of the command, and where no GPU has been it says so."""
    text = card.read_text()
    command, after = re.search(r"\nFor a longer training on a GPU: `diffslic (.+?)`(.*)$", text, re.DOTALL).groups()
    assert "NVIDIA" in text or after == ". Not yet trained or measured on a GPU.\n"
    words = shlex.split(command)
    assert cli.main([*words[:2], "--help"]) == 0
    told = capsys.readouterr().out
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[\w-]+", told))
    assert words[-2:] == ["--device", "cuda"] or "--device cuda" in command


@pytest.mark.parametrize("fps", ["-5", "0", "nan", "inf"])
def test_a_film_needs_a_rate_and_nothing_is_written_without(capsys, frames, weights, tmp_path, fps):
    fails(capsys, ["segment", frames, "--out", tmp_path / "out", "--fps", fps, *weights], "fps must lie between 0 and")
    assert not (tmp_path / "out").exists()


def test_segment_bad_input(capsys, frames, weights, tmp_path):
    out = tmp_path / "out"
    fails(capsys, ["segment", tmp_path / "gone", "--out", out, *weights], "gone")
    (tmp_path / "empty").mkdir()
    fails(capsys, ["segment", tmp_path / "empty", "--out", out, *weights], "empty", "no")
    (tmp_path / "film.mp4").write_bytes(b"no film" * 99)
    fails(capsys, ["segment", tmp_path / "film.mp4", "--out", out, *weights], "film.mp4")
    fails(capsys, ["segment", frames, "--out", out, "--weights", "none"], "no unet weights named 'none'")
    assert not out.exists()
    content = (frames / "1.png").read_bytes()
    (frames / "1.png").write_bytes(content[:len(content) // 2])
    fails(capsys, ["segment", frames, "--out", out, *weights], "1.png")
    (frames / "1.png").unlink()
    (frames / "2.png").unlink()
    fails(capsys, ["segment", frames, "--out", out, *weights], "two")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["segmentation.json"]


def test_segment_where_nothing_can_be_written(capsys, frames, weights, tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails(capsys, ["segment", frames, "--out", tmp_path / "file" / "out", *weights], "file/out")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_dataset_with_fewer_masks_than_frames(capsys, davis, weights, tmp_path):
    (davis / "Annotations" / "48p" / "lab-00001" / "00002.png").unlink()
    told = "lab-00001: 2 masks for 3 frames, the first missing is 00002.png"
    fails(capsys, ["precompute", "flow", davis, "--resolution", "48p", "--cache", tmp_path / "c"], told)
    assert not (tmp_path / "c").exists()
    capsys.readouterr()
    assert cli.main(["data", "check", "davis2016", str(davis)]) == 1
    assert told in capsys.readouterr().out


def test_who_interrupts_a_command_is_told_so(capsys, frames, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "save_flow", interrupted)
    assert cli.main(["flow", str(frames), "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err == "diffslic: interrupted\n"


@pytest.mark.parametrize("arguments, words", [
    (["precompute", "flow", "x", "--dataset", "sintell"], ["unknown dataset 'sintell', known are"]),
    (["data", "check", "sintell", "x"], ["unknown dataset 'sintell', known are"]),
    (["evaluate", "kitti", "x", "y"], ["No such command 'kitti'"]),
    (["scenes", "x", "--layout", "kitti"], ["unknown layout 'kitti'"]),
    (["scenes", "x", "--preset", "beach"], ["unknown preset 'beach'"]),
    (["train", "raft", "--out", "x", "--logger", "comet"], ["tensorboard or wandb"]),
    (["train", "raft", "--out", "x", "--steps", "0"], ["training needs one step at least"]),
    (["train", "raft", "--out", "x", "--rate", "nan"], ["the learning rate must be finite and above 0, got nan"]),
    (["segment", "x", "--out", "y", "--split", "val"], ["--split is of DAVIS: --dataset folder has none"]),
    (["segment", "x", "--out", "y", "--resolution", "480p"], ["--resolution is of DAVIS: --dataset folder has none"]),
    (["segment", "x", "--out", "y", "--method", "em", "--ssn", "scenes"], ["--ssn is not for em, which sees no"]),
    (["segment", "x", "--out", "y", "--method", "end-to-end", "--raft", "small"], ["--raft is not for a network"]),
    (["segment", "x", "--out", "y", "--no-overlay", "--fps", "9"], ["--fps is of the film, which --official and"]),
    (["precompute", "flow", "x", "--dataset", "sintel", "--split", "val"], ["--split is of DAVIS"]),
    (["train", "unet", "--out", "x", "--dataset", "davis2016"], ["davis2016 needs root"]),
    (["train", "instances", "--out", "x", "--bodies", "0"], ["one body at least, got 0"]),
    (["train", "unet", "--out", "x", "--start", "instances"], ["has 7 masks: train instances goes on from it"]),
    (["train", "instances", "--out", "x", "--bodies", "2", "--start", "instances"], ["masks of 6 bodies"]),
    (["train", "instances", "--out", "x", "--start", "ssn"], ["no unet weights named 'ssn'"]),
    (["train", "unet", "--out", "x", "--inputs", "flow,foo"], ["the input 'foo' is unknown"]),
    (["train", "unet", "--out", "x", "--inputs", "image", "--start", "flow"], ["inputs must begin with those of flow"]),
    (["scenes", "x", "--device", "foo"], ["a device is cpu, cuda, cuda:1 ..., got 'foo'"]),
    (["segment", "x", "--out", "y", "--rows", "0"], ["rows must be at least 8"]),
    (["train", "raft", "--out", "x", "--batch-size", "0"], ["batch_size must be at least 1"]),
    (["train", "ssn", "--out", "x", "--device", "foo"], ["a device is cpu, cuda, cuda:1 ..., got 'foo'"]),
    (["notebooks", "-p", "sede", "3"], ["sede"]),
    (["notebooks", "--only", "motion"], ["no notebook motion"]),
])
def test_words_that_mean_nothing(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, arguments, *words)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_a_mask_of_another_size(capsys, davis, tmp_path):
    for t in range(3):
        io.write_labels(tmp_path / "pred" / "lab-00000" / f"{t:05d}.png", torch.ones(48, 60, dtype=torch.int64))
    fails(capsys, ["evaluate", "davis2016", tmp_path / "pred", davis / "Annotations" / "48p"], "00000.png",
          "expected 48x64", "got 48x60")
    assert not (tmp_path / "pred" / "scores.csv").exists()
