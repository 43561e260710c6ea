"""The training loop: an exact resume, files that are whole, and weights that load without running code."""

import os
import pickle
import signal

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
                       higher_is_better=False, device=options.pop("device", "cpu"),
                       progress=options.pop("progress", False), **options)
    return model, fit


def test_a_stopped_run_ends_as_an_unbroken_one(tmp_path, capsys):
    whole, fit = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", stop_at=6)
    assert len(pd.read_csv(tmp_path / "broken" / "metrics.csv")) == 1
    resumed, fit_resumed = run(tmp_path / "broken", progress=True)
    assert f"{tmp_path / 'broken'}: going on from step 4 of 12\n" in capsys.readouterr().err
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
    with pytest.raises(ValueError, match=r"last.ckpt is of another run: steps 12 there, 13 here; remove it or choose"):
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


class NoSlope(torch.autograd.Function):
    """As it is; the gradient of what is above a limit is NaN, as that of a root at zero."""

    @staticmethod
    def forward(ctx, x, broken):
        ctx.broken = broken
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * (float("nan") if ctx.broken else 1.0), None


@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize("what", ["loss", "norm of the gradient"])
def test_what_is_not_finite_is_told_of_its_step_and_never_kept(tmp_path, what, step):
    """Validations are after steps 2 and 4: NaN never passes one, also where it is the last step before it."""
    model = Line()

    def loss(network, batch):
        broken = torch.equal(batch["x"], make(step - 1)["x"])
        values = (network(batch["x"]) - batch["y"]).square()[:, 0]
        return values * float("nan") if broken and what == "loss" else NoSlope.apply(values, broken)

    with pytest.raises(ValueError, match=f"the {what} became nan at step {step}; the learning rate is"):
        training.fit(model, training.Batches(make), loss, lambda network: {"error": float(network.line.weight)},
                     training.Schedule(5, 0.1, validate_every=2), tmp_path, monitor="error", higher_is_better=False,
                     device="cpu", progress=False)
    assert (tmp_path / "metrics.csv").exists() == (step > 2)
    if step > 2:
        assert list(pd.read_csv(tmp_path / "metrics.csv")["step"]) == [2]
        kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["model"]
        assert all(value.isfinite().all() for value in kept.values())
        assert training.load_weights("line", tmp_path / "best.safetensors").state["line.weight"].isfinite().all()


def test_a_network_that_refuses_nan_does_not_hide_where_it_came_from(tmp_path):
    """The gradient of step 2 breaks the weights; the network of step 3 says that they are not finite."""
    def loss(network, batch):
        if not network.line.weight.isfinite().all():
            raise ValueError("features must be finite")
        broken = torch.equal(batch["x"], make(1)["x"])
        return NoSlope.apply((network(batch["x"]) - batch["y"]).square()[:, 0], broken)

    with pytest.raises(ValueError, match="the norm of the gradient became nan at step 2; the learning rate is"):
        training.fit(Line(), training.Batches(make), loss, lambda network: {"error": 0.0},
                     training.Schedule(5, 0.1, validate_every=5), tmp_path, monitor="error", higher_is_better=False,
                     device="cpu", progress=False)


def test_the_rate_rises_then_falls():
    schedule = training.Schedule(100, 0.5, warmup=0.1)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == pytest.approx(0.5)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 0.01
    with pytest.raises(ValueError, match="training needs one step at least"):
        training.Schedule(0, 0.1)
    assert training.Schedule(3, 0.1, validate_every=500).validate_every == 3


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
    with pytest.raises(FileNotFoundError, match=r"no raft weights named 'huge': shipped are small;"):
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
    with pytest.raises(ValueError, match="precision 32-true there, bf16-mixed here"):
        run(tmp_path, precision="bf16-mixed")


@pytest.mark.gpu
def test_steps_never_wait(device, tmp_path):
    """Between validations the host reads the loss, but nothing makes it wait for all that a GPU has to do."""
    where, steps = torch.device(device), []

    def watch(mode):
        if where.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    def before_step(step):
        watch("error" if step else "default")  # the optimiser makes its moments in the first
        steps.append(step)

    def validate(network):
        watch("default")
        return {"error": 0.0}

    try:
        training.fit(Line(), training.Batches(make), lambda network, batch: network(batch["x"]).square().sum(1),
                     validate, training.Schedule(6, 0.1, validate_every=3), tmp_path, monitor="error",
                     higher_is_better=False, device=device, progress=False, before_step=before_step)
    finally:
        watch("default")
    assert steps == list(range(6))


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


def test_a_part_that_joins_does_not_slow_down_the_others(tmp_path):
    """The first line learns the same, whatever the size of the gradient of the second."""
    ends = []
    for size in (1.0, 1e4):
        torch.manual_seed(0)
        model = Two()

        def before_step(step, model=model):
            model.after.requires_grad_(step >= 4)

        def loss(network, batch, size=size):
            error = (Line.forward(network, batch["x"]) - batch["y"]).square()[:, 0]
            return error + size * network.after(batch["x"])[:, 0]

        training.fit(model, training.Batches(make), loss, lambda network: {"error": 0.0},
                     training.Schedule(12, 0.1, warmup=0), tmp_path / str(size), monitor="error",
                     higher_is_better=False, device="cpu", progress=False, rates={"after": 0.1},
                     before_step=before_step)
        ends.append(torch.cat([x.flatten() for name, x in model.named_parameters() if not name.startswith("after")]))
    torch.testing.assert_close(*ends)


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="a device is cpu, cuda, cuda:1 ..., got 'foo'"):
        training.check_device("foo")


def test_a_run_with_other_settings_is_not_taken_for_this_one(tmp_path):
    run(tmp_path, settings={"seed": 1})
    run(tmp_path, settings={"seed": 1})
    with pytest.raises(ValueError, match=r"last.ckpt is of another run: seed 1 there, 2 here;"):
        run(tmp_path, settings={"seed": 2})


@pytest.mark.parametrize("settings, told", [
    ({"shape": {"head": "unet", "inputs": ["flow"]}}, "inputs flow,image there, flow here;"),
    ({"shape": {"head": "mlp", "inputs": []}}, "head unet there, mlp here; inputs flow,image there, none here;"),
    ({"shape": {"head": "mlp"}, "joins": {"head": 0.5}}, "joins head 0.1 there, 0.5 here;"),  # two of one name
    ({"start": "motion"}, "start none there, motion here;"),
    ({"clips": ["a"] * 9}, r"clips a \.\.\. \(8 in all\) there, a \.\.\. \(9 in all\) here;"),
    ({"clips": [*"aaaaaaab"]}, "run: other clips;"),
    ({"frozen": ["flow"]}, "frozen none there, flow here;"),
    ({"one": 1, "two": 2, "three": 3, "four": 4, "five": 5},
     "four none there, 4 here; and 1 more; remove it"),
])
def test_what_differs_from_the_run_of_a_folder_is_named_with_both_values(tmp_path, settings, told):
    known = {"shape": {"head": "unet", "inputs": ["flow", "image"]}, "joins": {"head": 0.1}, "start": None,
             "clips": ["a"] * 8, "frozen": []}
    run(tmp_path, settings=known)
    with pytest.raises(ValueError, match=told):
        run(tmp_path, settings={**known, **settings})


def test_another_run_is_refused_by_what_is_known_of_it_before_its_data(tmp_path, monkeypatch):
    schedule = training.Schedule(12, 0.1, validate_every=4)
    training.check_resume(tmp_path, schedule, {"seed": 1})  # nothing is there
    run(tmp_path, settings={"seed": 1, "clips": ["a"]})
    training.check_resume(tmp_path, schedule, {"seed": 1})
    training.check_resume(tmp_path, schedule, {})
    with pytest.raises(ValueError, match=r"last.ckpt is of another run: seed 1 there, 2 here; remove"):
        training.check_resume(tmp_path, schedule, {"seed": 2})
    with pytest.raises(ValueError, match="learning_rate 0.1 there, 0.2 here; number of processes 1 there, 3 here"):
        training.check_resume(tmp_path, training.Schedule(12, 0.2, validate_every=4), {}, devices=3)
    with pytest.raises(ValueError, match="precision must be 32-true or bf16-mixed, got '16'"):
        training.check_resume(tmp_path, schedule, {}, precision="16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="number of processes 1 there, 4 here"):
        training.check_resume(tmp_path, schedule, {})


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
