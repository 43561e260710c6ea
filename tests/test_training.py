"""The training loop: an exact resume, files that are whole, and weights that load without running code."""

import os
import pickle
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffslic import training


class Line(nn.Module):
    """y = a x + b, with dropout, so that a resume must also restore the random state."""

    def __init__(self) -> None:
        super().__init__()
        self.line, self.drop = nn.Linear(1, 1), nn.Dropout(0.2)

    def forward(self, x):
        return self.line(self.drop(x))

    def save(self, path):
        training.save_weights(path, self.state_dict(), {"kind": "line"})


def make(number):
    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(number))
    return {"x": x, "y": 3 * x - 1}


def interrupt():
    raise KeyboardInterrupt


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def run(folder, steps=12, stop_at=None, stop=interrupt, **options):
    torch.manual_seed(5)
    model = Line()

    def loss(network, batch):
        if stop_at is not None and batch["x"][0].cpu() == make(stop_at)["x"][0]:
            stop()
        return (network(batch["x"]) - batch["y"]).square().mean(1)

    def validate(network):
        x = torch.linspace(-1, 1, 9, device=training.device_of(network))[:, None]
        return {"error": (network(x) - (3 * x - 1)).abs().mean().item()}

    schedule = options.pop("schedule", training.Schedule(steps, 0.1, validate_every=4))
    fit = training.fit(model, training.Batches(make), loss, validate, schedule, folder, monitor="error",
                       higher_is_better=False, device=options.pop("device", "cpu"), progress=False,
                       **options)
    return model, fit


def test_a_stopped_run_ends_as_an_unbroken_one(tmp_path):
    whole, fit = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=6)
    assert len(pd.read_csv(tmp_path / "broken" / "metrics.csv")) == 1
    resumed, fit_resumed = run(tmp_path / "broken")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))
    columns = ["step", "loss", "rate", "error"]
    first, second = (pd.read_csv(tmp_path / name / "metrics.csv")[columns] for name in ("whole", "broken"))
    pd.testing.assert_frame_equal(first, second)
    assert fit.best_step == fit_resumed.best_step


def test_it_learns_keeps_the_best_and_leaves_no_other_file(tmp_path):
    _, fit = run(tmp_path, steps=60)
    history = fit.history
    assert history["error"].min() < 0.3 * history["error"].iloc[0]
    assert fit.best_step == history.loc[history["error"].idxmin(), "step"]
    assert training.load_weights("line", fit.weights).config == {"kind": "line"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "last.ckpt", "metrics.csv"]


def test_worker_processes_change_nothing(tmp_path):
    alone, _ = run(tmp_path / "a")
    helped, _ = run(tmp_path / "b", workers=2)
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), helped.state_dict().values()))


def test_a_finished_run_is_not_trained_again(tmp_path):
    _, fit = run(tmp_path)
    _, again = run(tmp_path)
    pd.testing.assert_frame_equal(fit.history, again.history)


def test_without_resume_it_starts_anew(tmp_path):
    run(tmp_path)
    _, fit = run(tmp_path, steps=4, resume=False)
    assert list(fit.history["step"]) == [4]


def test_another_schedule_or_model_does_not_resume(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match=r"last.ckpt belongs to a run with another schedule; remove it"):
        run(tmp_path, steps=13)
    (tmp_path / "last.ckpt").write_bytes((tmp_path / "last.ckpt").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"last.ckpt is not a whole checkpoint"):
        run(tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_told(tmp_path):
    run(tmp_path)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del kept["identity"]["number of processes"]
    torch.save(kept, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="last.ckpt was written by an earlier version"):
        run(tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"the loss became nan at step 1"):
        training.fit(Line(), training.Batches(make), lambda network, batch: network(batch["x"]).sum(1) * float("nan"),
                     lambda network: {"error": 0.0}, training.Schedule(2, 0.1), tmp_path, monitor="error",
                     higher_is_better=False, device="cpu", progress=False)


def test_the_rate_rises_then_falls():
    schedule = training.Schedule(100, 0.5, warmup=0.1)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.5)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.01
    with pytest.raises(ValueError, match="steps >= 1"):
        training.Schedule(0, 0.1)


def test_weights_round_trip(tmp_path):
    state = {"a": torch.randn(3, 2), "b": torch.arange(4)}
    training.save_weights(tmp_path / "new" / "x.safetensors", state, {"width": 3, "names": ["u", "v"]})
    weights = training.load_weights("any", tmp_path / "new" / "x.safetensors")
    assert weights.config == {"width": 3, "names": ["u", "v"]}
    assert all(torch.equal(weights.state[key], value) for key, value in state.items())


def test_a_plain_pth_loads_and_one_with_code_does_not(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "plain.pth")
    assert torch.equal(training.load_weights("any", tmp_path / "plain.pth").state["a"], torch.ones(2))

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(ValueError, match=r"evil.pth is not a plain state dict"):
        training.load_weights("any", tmp_path / "evil.pth")
    assert not (tmp_path / "owned").exists()


def test_bad_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file .*gone.safetensors"):
        training.load_weights("raft", tmp_path / "gone.safetensors")
    with pytest.raises(FileNotFoundError, match=r"no raft weights named 'huge': shipped are \['small'\]"):
        training.load_weights("raft", "huge")
    save_file({"a": torch.ones(100)}, tmp_path / "short.safetensors")
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "short.safetensors").read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"short.safetensors is not a whole safetensors file"):
        training.load_weights("any", tmp_path / "short.safetensors")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must hold a state dict .* got list"):
        training.load_weights("any", tmp_path / "list.pth")


def test_loggers(tmp_path):
    with pytest.raises(ValueError, match="tensorboard or wandb, got 'comet'"):
        training.open_logger("comet", tmp_path)


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
    with pytest.raises(ValueError, match=r"last.ckpt belongs to a run with another number of processes"):
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


@pytest.mark.parametrize("precision, product", [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_mixed_precision_rounds_products_and_nothing_else(tmp_path, precision, product):
    seen = []

    def loss(network, batch):
        y = network(batch["x"])
        seen.append((y.dtype, batch["x"].dtype, network.line.weight.dtype))
        return (y.float() - batch["y"]).square().mean(1)

    def validate(network):
        seen.append((network(torch.ones(1, 1)).dtype, torch.float32, torch.float32))
        return {"error": 0.0}

    training.fit(Line(), training.Batches(make), loss, validate, training.Schedule(1, 0.1), tmp_path, monitor="error",
                 higher_is_better=False, device="cpu", precision=precision, progress=False)
    assert seen == [(product, torch.float32, torch.float32), (torch.float32,) * 3]


def test_another_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="precision must be 32-true or bf16-mixed, got '16-mixed'"):
        run(tmp_path, precision="16-mixed")
    run(tmp_path)
    with pytest.raises(ValueError, match="another precision"):
        run(tmp_path, precision="bf16-mixed")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_stopped_run_goes_on_on_a_gpu(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop_at=6, device="cuda")
    _, fit = run(tmp_path, device="cuda:0")
    assert list(fit.history["step"]) == [4, 8, 12]


class Two(Line):
    """Two lines in a row; the second may be frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.after = nn.Linear(1, 1)

    def forward(self, x):
        return self.after(super().forward(x))


def test_a_part_has_a_rate_of_its_own_and_may_join_later(tmp_path):
    torch.manual_seed(0)
    model, seen = Two(), []

    def before_step(step):
        seen.append((step, model.after.weight.item()))
        model.after.requires_grad_(step >= 2)

    def loss(network, batch):
        return (network(batch["x"]) - batch["y"]).square()[:, 0]

    training.fit(model, training.Batches(make), loss, lambda network: {"error": 0.0},
                 training.Schedule(4, 0.1, warmup=0, weight_decay=0), tmp_path, monitor="error", higher_is_better=False,
                 device="cpu", progress=False, rates={"after": 0.01}, before_step=before_step)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    values = [value for _, value in seen] + [model.after.weight.item()]
    assert values[0] == values[1] == values[2]
    # Adam's first step is as long as the rate, whatever the gradient.
    assert abs(values[3] - values[2]) == pytest.approx(0.01 * training.Schedule(4, 0.1, warmup=0).rate(2), rel=1e-3)


def test_under_torchrun_a_process_takes_its_gpu(monkeypatch):
    assert training.own_device("cuda") == "cuda" and training.own_share("abc") == ["a", "b", "c"]
    for name, value in (("LOCAL_RANK", "1"), ("RANK", "5"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert [training.own_device(device) for device in ("cuda", "cuda:3", "cpu")] == ["cuda:1", "cuda:3", "cpu"]
    assert training.own_share(range(16)) == [5, 13]


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no device 'foo' here"):
        training.check_device("foo")


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    run(tmp_path, settings={"seed": 1})
    run(tmp_path, settings={"seed": 1})
    with pytest.raises(ValueError, match=r"last.ckpt belongs to a run with another seed"):
        run(tmp_path, settings={"seed": 2})


class Note:
    """A logger that remembers what it was told."""

    def __init__(self):
        self.told = []

    def log_metrics(self, metrics, step):
        self.told.append((step, metrics))


def test_a_fabric_logger_hears_every_validation(tmp_path):
    note = Note()
    run(tmp_path, loggers=[note])
    assert [step for step, _ in note.told] == [4, 8, 12]
    assert {"loss", "rate", "error"} <= set(note.told[0][1])
