"""diffslic flow and precompute flow: files, restarts after kills, shares under torchrun, and bad input."""

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from diffslic import cli, datasets, viz
from diffslic.datasets import io
from diffslic.flow import RAFT

SIZE = (48, 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "raft.safetensors"
    RAFT().save(path)
    return str(path)


@pytest.fixture
def frames(tmp_path):
    clip = datasets.open("scenes", n_clips=1, n_frames=4, size=SIZE)[0]
    for t in range(4):
        io.write_image(tmp_path / "frames" / f"{t}.png", clip.frame(t))
    return tmp_path / "frames"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_flow_writes_fields_pictures_and_a_film(frames, tmp_path, weights, capsys):
    out = tmp_path / "out"
    arguments = ["flow", str(frames), "--out", str(out), "--weights", weights, "--iters", "2", "--both-ways"]
    assert cli.main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["pairs"] == 3 and figures["mean_motion"] > 0 and 0 <= figures["occluded"] <= 1
    assert names(out / "flow") == ["0.flo", "1.flo", "2.flo"] and names(out / "backward") == ["1.flo", "2.flo", "3.flo"]
    assert names(out / "colors") == names(out / "occlusion") == ["0.png", "1.png", "2.png"]
    assert (out / "colors.mp4").stat().st_size > 0
    flow = io.read_flow(out / "flow" / "1.flo").flow
    shown = torch.from_numpy(viz.flow_to_color(flow, figures["largest"])).permute(2, 0, 1).float() / 255
    assert torch.equal(io.read_image(out / "colors" / "1.png"), shown)


def test_files_of_another_run_are_not_mixed_with(frames, tmp_path, weights, capsys):
    arguments = ["flow", str(frames), "--out", str(tmp_path / "out"), "--weights", weights, "--iters", "1"]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0  # the same once more
    before = {path.name: path.read_bytes() for path in (tmp_path / "out" / "flow").iterdir()}
    for more, told in ((["--polish", "none"], "polished"), (["--rows", "40"], "ends"), (["--bfloat16"], "raft")):
        assert cli.main([*arguments, *more]) == 2
        assert f"holds other flow (of other {told}): choose another" in capsys.readouterr().err
    (frames / "3.png").unlink()
    for more in ([], ["--format", "png"]):
        assert cli.main([*arguments, *more]) == 2
        assert "of another run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out" / "flow").iterdir()} == before


def test_frames_that_are_no_tensors_are_named(weights):
    raft = RAFT.from_pretrained(weights)
    for wrong in ("frames/", [torch.rand(3, 16, 16).numpy()]):
        with pytest.raises(ValueError, match="must be tensors"):
            next(raft.video(wrong))


def test_flow_in_kittis_format_by_chosen_colors(frames, tmp_path, weights, capsys):
    out = tmp_path / "out"
    common = ["flow", str(frames), "--weights", weights, "--iters", "1", "--polish", "none", "--json"]
    assert cli.main([*common, "--out", str(out), "--format", "png", "--largest", "9"]) == 0
    assert json.loads(capsys.readouterr().out)["largest"] == 9
    assert cli.main([*common, "--out", str(tmp_path / "flo")]) == 0
    exact = io.read_flow(tmp_path / "flo" / "flow" / "0.flo").flow
    assert (io.read_flow(out / "flow" / "0.png").flow - exact).abs().max() <= 1 / 64
    assert not (out / "backward").exists()
    assert cli.main([*common, "--out", str(tmp_path / "half"), "--bfloat16", "--rows", "40"]) == 0
    assert io.read_flow(tmp_path / "half" / "flow" / "0.flo").flow.shape[1:] == (40, 53)


@pytest.mark.parametrize(("options", "words"), [
    (["--format", "bmp"], ["flo or png", "'bmp'"]), (["--iters", "0"], ["n_iters must be at least 1"]),
    (["--polish", "both"], ["one of variational, search, none, got 'both'"]),
    (["--largest", "-1"], ["must be above 0"]), (["--weights", "huge"], ["no raft weights named 'huge'"]),
    (["--device", "tpu"], ["tpu"])])
def test_flow_names_a_bad_option(frames, tmp_path, options, words, capsys):
    assert cli.main(["flow", str(frames), "--out", str(tmp_path / "out"), *options]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("diffslic: ") and all(word in lines[-1] for word in words)
    assert not (tmp_path / "out" / "flow").exists()


def test_flow_names_a_bad_frame(tmp_path, weights, capsys):
    for count, (rows, reason) in {1: (48, "at least two frames, got one"), 2: (40, "1.png")}.items():
        folder = tmp_path / str(count)
        io.write_image(folder / "0.png", torch.rand(3, 48, 64))
        if count == 2:
            io.write_image(folder / "1.png", torch.rand(3, rows, 64))
        assert cli.main(["flow", str(folder), "--out", str(tmp_path / "out"), "--weights", weights]) == 2
        assert reason in capsys.readouterr().err


# ---------------------------------------------------------------- precompute


@pytest.fixture
def davis(tmp_path):
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "3", "--n-frames", "4",
                     "--size", *map(str, SIZE)]) == 0
    return tmp_path / "davis"


def precompute(davis, out, weights, kind="flow"):
    options = ["--iters", "2", "--weights", weights] if kind == "flow" else ["--n-spixels", "24"]
    return [sys.executable, "-m", "diffslic", "precompute", kind, str(davis), "--out", str(out),
            "--resolution", "48p", "--json", *options]


def contents(folder):
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["flow", "superpixels"])
def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(davis, tmp_path, weights, kind):
    started = time.perf_counter()
    assert subprocess.run(precompute(davis, tmp_path / "whole", weights, kind), capture_output=True).returncode == 0
    whole, chance = time.perf_counter() - started, random.Random(kind)
    for _ in range(4):
        process = subprocess.Popen(precompute(davis, tmp_path / "killed", weights, kind), stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.5, 1) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in (tmp_path / "killed").rglob("[!.]*.h5"):  # what has its name is whole at any moment
            assert path.read_bytes() == (tmp_path / "whole" / path.relative_to(tmp_path / "killed")).read_bytes()
    assert subprocess.run(precompute(davis, tmp_path / "killed", weights, kind), capture_output=True).returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


NOTED = """
import os, signal, sys
from diffslic import cli, datasets

rank, killed, write = os.environ["RANK"], sys.argv[1] == "killed", datasets.write_clip_cache

def dying(frames):
    yield next(frames)
    os.kill(os.getpid(), signal.SIGKILL)

def noted(path, fields, *rest):
    if killed and rank == "1" and os.path.exists("computed1"):  # in the middle of its second clip
        fields = {name: dying(iter(frames)) for name, frames in fields.items()}
    write(path, fields, *rest)
    with open("computed" + rank, "a") as file:
        print(path.stem, file=file)

datasets.write_clip_cache = noted
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("kind", ["flow", "superpixels"])
def test_two_processes_share_the_clips_and_a_killed_run_computes_none_twice(tmp_path, weights, kind, torchrun):
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "5", "--n-frames", "3",
                     "--size", *map(str, SIZE)]) == 0
    (tmp_path / "run.py").write_text(NOTED)
    arguments = precompute(tmp_path / "davis", tmp_path / "shared", weights, kind)[3:]
    assert "SIGKILL" in torchrun("run.py", "killed", *arguments).stderr
    assert (tmp_path / "computed1").read_text().split() == ["lab-00001"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").rglob("[!.]*.h5")}
    assert 1 <= len(before) <= 4  # the first process has had time for some of its own, or for all
    done = torchrun("run.py", "whole", *arguments)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    first, second = ((tmp_path / f"computed{rank}").read_text().split() for rank in (0, 1))
    assert second == ["lab-00001", "lab-00003"]
    assert set(first) <= {"lab-00000", "lab-00002", "lab-00004"} and len(set(first)) == len(first)
    assert cli.main(precompute(tmp_path / "davis", tmp_path / "alone", weights, kind)[3:]) == 0
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_the_spelling_of_the_readme_shares_the_clips_and_the_first_process_speaks(davis, tmp_path, weights, torchrun):
    arguments = precompute(davis, tmp_path / "out", weights)[3:]
    done = torchrun("-m", "--", "diffslic", *arguments, "--export", tmp_path / "export")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"clips": 3, "out": str(tmp_path / "out" / "davis2016" / "48p" / "flow")}
    clips = [f"{clip.name}.h5" for clip in datasets.open("davis2016", root=davis, resolution="48p")]
    assert names(tmp_path / "out" / "davis2016" / "48p" / "flow") == names(tmp_path / "export") == clips


def test_a_corrupted_cache_is_made_anew(davis, tmp_path, weights):
    command = precompute(davis, tmp_path / "out", weights)[3:]
    assert cli.main(command) == 0
    before = contents(tmp_path / "out")
    path = next((tmp_path / "out").rglob("*.h5"))
    path.write_bytes(path.read_bytes()[:1000])
    assert cli.main(command) == 0
    assert contents(tmp_path / "out") == before


def test_a_full_disk_ends_in_a_line_and_leaves_nothing(davis, tmp_path, weights, monkeypatch, capsys):
    command = precompute(davis, tmp_path / "out", weights)[3:]

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("h5py.Dataset.__setitem__", full)
    assert cli.main(command) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("diffslic: ") and "No space left on device" in line
    assert contents(tmp_path / "out") == {}
