"""The training loop in several processes: they agree, go on together, and end together with what one of them says."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from test_training import run

from diffslic import training

PROCESSES = """
import atexit, os, sys, torch
sys.path[:0] = {path!r}
# The first to be registered is the last to be called: what is left when the process ends?
note = open(f"{folder}/group{{os.environ['RANK']}}", "w")
atexit.register(lambda: print(torch.distributed.is_initialized(), end="", file=note, flush=True))
from test_training import run
model, fit = run({folder!r}, steps=6)
assert list(fit.history["step"]) == [4, 6]
torch.save(model.state_dict(), f"{folder}/rank{{torch.distributed.get_rank()}}.pt")
"""


def test_two_processes_share_the_batches_and_agree(tmp_path, torchrun):
    """torchrun on the CPU: both end with the same weights and history, and one of them writes."""
    (tmp_path / "run.py").write_text(PROCESSES.format(path=[str(Path(__file__).parent)], folder=str(tmp_path)))
    done = torchrun("run.py")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert list(pd.read_csv(tmp_path / "metrics.csv")["step"]) == [4, 6]
    assert [(tmp_path / f"group{rank}").read_text() for rank in (0, 1)] == ["False", "False"]
    with pytest.raises(ValueError, match="last.ckpt is of another run: number of processes 2 there, 1 here;"):
        run(tmp_path, steps=6)


KILLED = """
import sys
sys.path[:0] = {path!r}
from test_training import kill, run
if sys.argv[1] == "first":
    run("whole")
    run("broken", stop_at=13, stop=kill)  # the batch of the second process in the seventh step
run("broken")
"""


def test_a_process_that_is_killed_ends_the_run_and_the_same_command_goes_on_exactly(tmp_path, torchrun):
    """Dropout draws from the random numbers of each process: those of the second must be taken up as well."""
    (tmp_path / "run.py").write_text(KILLED.format(path=[str(Path(__file__).parent)]))
    killed = torchrun("run.py", "first")
    assert killed.returncode != 0 and "SIGKILL" in killed.stderr
    assert sorted(path.name for path in (tmp_path / "broken").iterdir()) == ["best.safetensors", "last.ckpt",
                                                                             "metrics.csv"]
    assert list(pd.read_csv(tmp_path / "broken" / "metrics.csv")["step"]) == [4]
    assert torchrun("run.py", "again").returncode == 0
    whole, broken = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "broken"))
    assert all(torch.equal(value, broken["model"][key]) for key, value in whole["model"].items())
    assert torch.equal(whole["random"], broken["random"]) and not torch.equal(*whole["random"])
    columns = ["step", "loss", "rate", "error"]
    first, second = (pd.read_csv(tmp_path / name / "metrics.csv")[columns] for name in ("whole", "broken"))
    pd.testing.assert_frame_equal(first, second, check_exact=True)


NOT_FINITE = """
import os, sys
sys.path[:0] = {path!r}
from test_training import Line, make, training
rank = os.environ["RANK"]

def loss(network, batch):
    failed = rank == "1" and batch["x"][0] == make(5)["x"][0]  # in the third step
    return network(batch["x"]).square().sum(1) * (float("nan") if failed else 1.0)

try:
    training.fit(Line(), training.Batches(make), loss, lambda network: {{"error": 0.0}}, training.Schedule(9, 0.1),
                 "out", monitor="error", higher_is_better=False, device="cpu", progress=False)
except ValueError as error:
    open("told" + rank, "w").write(str(error))
"""


def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path, torchrun):
    (tmp_path / "run.py").write_text(NOT_FINITE.format(path=[str(Path(__file__).parent)]))
    done = torchrun("run.py")
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / f"told{rank}").read_text() for rank in (0, 1)]
    assert told[0] == told[1] and told[0].startswith("the loss became nan at step 3")


def test_under_torchrun_a_process_takes_its_gpu(monkeypatch):
    assert training.own_device("cuda") == "cuda" and training.own_share("abc") == ["a", "b", "c"]
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "5"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert [training.own_device(device) for device in ("cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:3", "cpu"]
    assert training.own_share(range(16)) == [5, 13]


FAILING = """
import os, sys
sys.path[:0] = {path!r}
from test_training import Line, make, training
rank, out = os.environ["RANK"], sys.argv[1]

def validate(network):
    if out == "validation":
        raise LookupError("there are no labels of frame 7")
    return {{"error": 0.0}}

class Full(Line):
    def save(self, path):
        raise OSError("no space left")

try:
    training.fit(Full() if out == "disk" else Line(), training.Batches(make),
                 lambda network, batch: network(batch["x"]).square().sum(1), validate, training.Schedule(4, 0.1), out,
                 monitor="error", higher_is_better=False, device="cpu", progress=False)
except (ValueError, LookupError, OSError) as error:
    open(out + "-told" + rank, "w").write(type(error).__name__ + ": " + str(error))
"""


@pytest.mark.parametrize("out, told", [("validation", ("LookupError", "there are no labels of frame 7")),
                                       ("disk", ("OSError", "no space left"))])
def test_what_stops_the_first_process_stops_all_with_one_line(tmp_path, torchrun, out, told):
    (tmp_path / "run.py").write_text(FAILING.format(path=[str(Path(__file__).parent)]))
    done = torchrun("run.py", out)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    first, second = ((tmp_path / f"{out}-told{rank}").read_text() for rank in (0, 1))
    assert first == ": ".join(told) and second == f"ValueError: the first process stopped: {told[1]}"
    assert not (tmp_path / out / "last.ckpt").exists()
