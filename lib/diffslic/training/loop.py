"""One training loop on Lightning Fabric, for every network.

It knows Fabric and no model: what is trained, on what and how it is weighed comes from ``recipes``.
"""

import atexit
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from diffslic.training.checkpoint import keep, load_model, new_state, read_checkpoint
from diffslic.training.processes import (
    average_gradients,
    check_device,
    mean_of_all,
    of_the_first,
    random_states,
    set_random_state,
)

Batch = Mapping[str, Tensor]
PRECISIONS = ("32-true", "bf16-mixed")


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network is trained."""

    steps: int  # optimiser steps
    learning_rate: float  # its peak
    warmup: float = 0.05  # share of the steps in which the rate rises from zero
    validate_every: int = 500  # steps between validations; there is one at the end too
    weight_decay: float = 1e-4
    clip_norm: float = 1.0  # of the gradient; where modules have rates of their own, of each one's

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1:
            raise ValueError("training needs one step at least, and one between validations; got "
                             f"{self.steps} and {self.validate_every}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"the learning rate must be finite and above 0, got {self.learning_rate}")
        # A longer interval means the same: one validation, at the end.
        object.__setattr__(self, "validate_every", min(self.validate_every, self.steps))

    def rate(self, step: int) -> float:
        """Learning rate of a step: a linear rise, then half a cosine down to a hundredth of the peak."""
        rise = max(1, round(self.warmup * self.steps))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        share = (step - rise) / max(1, self.steps - rise)
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2)


class Batches(Dataset[Batch]):
    """Batches as a function of their number: what makes a resumed run see what an unbroken one would have seen.

    Args:
        make: number of the batch to the batch; it draws its randomness from that number alone.
    """

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Batch:
        return self.make(number)


class _From(Sampler[int]):
    """Batch numbers of one process of a run: first, first + stride, ... below ``stop``."""

    def __init__(self, first: int, stop: int, stride: int) -> None:
        self.numbers = range(first, stop, stride)

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


class FitResult(NamedTuple):
    """What a training run ends with."""

    history: pd.DataFrame  # one row per validation: step, seconds, loss, rate, and the validation's figures
    best_step: int
    seconds: float  # of training and validation, over all parts of a resumed run
    weights: Path  # the best model, as safetensors
    first: bool  # whether this is the process that writes; the only one outside torchrun


def fit(model: nn.Module, batches: Batches, loss: Callable[[nn.Module, Batch], Tensor],
        validate: Callable[[nn.Module], dict[str, float]], schedule: Schedule, out_dir: str | Path, *,
        monitor: str, higher_is_better: bool, settings: Mapping[str, Any] | None = None, resume: bool = True,
        device: str = "auto", devices: int = 1, precision: str = "32-true", workers: int = 0,
        rates: Mapping[str, float] | None = None, before_step: Callable[[int], None] | None = None,
        forward_methods: Sequence[str] = (), loggers: Sequence[Any] = (), progress: bool = True) -> FitResult:
    """Train a network and keep its best state.

    ``out_dir`` gets ``metrics.csv`` (rewritten after each validation), ``last.ckpt`` (everything that an exact
    resume needs) and ``best.safetensors``; each file is written whole or not at all. A run that was stopped goes on
    from ``last.ckpt`` and ends as it would have without the stop.

    Under torchrun process r of w takes batches r, r + w, r + 2w ..., the first one validates and writes, and all return
    the same result. Gradients and the losses of the history are means over the processes: where samples are drawn by
    their position in the order of batches, w processes with B samples a batch train as one with w B does. Random
    numbers that the network itself draws differ between processes.

    Args:
        model: has ``save(path)``, which writes its weights.
        batches: see :class:`Batches`.
        loss: (model, batch) to a loss per sample (B,); its mean is minimised.
        validate: model to figures, run by the first process without gradients.
        monitor: the figure of ``validate`` that chooses the best state.
        settings: whatever else makes this run what it is (data, seed ...), as JSON; a resume with others is refused.
        resume: go on from ``out_dir/last.ckpt`` if it is there; otherwise start anew.
        device: "auto", "cpu", "cuda", or one GPU such as "cuda:1". devices: how many on this machine; torchrun knows
            better, and its number counts. loggers: see Lightning Fabric.
        precision: "32-true", or "bf16-mixed", which is faster where the hardware knows bfloat16: weights and batches
            stay whole, ``loss`` runs under autocast, validation does not.
        workers: processes that make batches ahead of time.
        rates: factors of the learning rate by module of the model ("flow": 0.1); 1 for what is not named.
        before_step: told the number of each step, from 0, before it is taken: to freeze some parameters, or no longer;
            the same ones in all processes.
        forward_methods: methods of the model that ``loss`` calls instead of the model itself.

    Raises:
        ValueError: no such device or precision, a checkpoint of another run (or of another number of processes), or a
            loss or gradient that is not finite. What fails in one process, its validation too, ends all of them.
    """
    _check_precision(precision)
    out_dir = Path(out_dir)
    fabric = _open_fabric(device, devices, loggers)
    out_dir.mkdir(parents=True, exist_ok=True)
    identity = _identity(schedule, precision, fabric.world_size, settings or {})
    checkpoint = read_checkpoint(out_dir / "last.ckpt", identity) if resume else None
    state = checkpoint["state"] if checkpoint else new_state()
    if checkpoint:
        load_model(model, checkpoint, out_dir / "last.ckpt")
    optimizer = torch.optim.AdamW(_groups(model, rates or {}), lr=schedule.learning_rate,
                                  weight_decay=schedule.weight_decay)
    wrapped, optimizer = fabric.setup(model, optimizer)
    if checkpoint:  # after the set-up, which has brought the parameters to their device: the moments follow them there
        optimizer.load_state_dict(checkpoint["optimizer"])
        set_random_state(fabric, checkpoint["random"])
    elif fabric.global_rank:  # a mask of dropout that all processes shared would be one mask, not several
        torch.manual_seed(torch.initial_seed() + fabric.global_rank)
    for method in forward_methods:
        wrapped.mark_forward_method(method)
    # The loader draws from a generator of its own: the global one then stands, after a resume, where it stood before.
    # Workers are forked where that exists, since a clip may hold functions that cannot be sent to another process.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    # From memory that is not pinned a GPU's copy of a batch would wait for the step before; what is made in this
    # process may be on the GPU already.
    loader = DataLoader(batches, batch_size=None, num_workers=workers, generator=torch.Generator(),
                        multiprocessing_context="fork" if fork else None,
                        pin_memory=workers > 0 and fabric.device.type == "cuda",
                        sampler=_From(state["step"] * fabric.world_size + fabric.global_rank,
                                      schedule.steps * fabric.world_size, fabric.world_size))
    if checkpoint and progress and fabric.is_global_zero:
        on = f"going on from step {state['step']} of" if state["step"] < schedule.steps else "done are all"
        tqdm.write(f"{out_dir}: {on} {schedule.steps}", file=sys.stderr)
    bar = tqdm(total=schedule.steps, initial=state["step"], disable=not (progress and fabric.is_global_zero),
               desc=f"training {out_dir.name}", unit="step")
    started, before, running = time.perf_counter(), state["seconds"], []
    told: dict[str, Any] = {}
    norm = _Arriving(torch.zeros(()))  # of the gradient of the step before

    def note(figures: dict[str, float], random: Tensor) -> dict[str, Any]:
        state["seconds"] = before + time.perf_counter() - started
        keep(state, figures, model, optimizer, identity, random, out_dir, monitor, higher_is_better)
        fabric.log_dict(figures, step=state["step"])
        return state

    wrapped.train()
    # Not Fabric's own mixed precision: it would round the batches too, positions and pixels among them.
    half = torch.autocast(fabric.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    for batch in fabric.setup_dataloaders(loader, use_distributed_sampler=False):
        if before_step is not None:
            before_step(state["step"])
        # Where parts are frozen for a while DDP would search each step's graph for them, and warn once all learn: so it
        # leaves the gradients alone, and they are averaged below.
        with fabric.no_backward_sync(wrapped, enabled=before_step is not None):
            try:
                with half:
                    value = loss(wrapped, batch).mean()
            except Exception:  # networks refuse what is not finite: then the gradient of the step before is the cause
                _check_finite(norm, "norm of the gradient", schedule, state["step"] - 1)
                raise
            mean = _Arriving(mean_of_all(fabric, value.detach().float().clone()))
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(value)
        if before_step is not None:
            average_gradients(fabric, model)
        # What is queued for a GPU by now keeps it busy while the host waits for the loss. The norm comes with the end
        # of the step, for which nothing waits: it is looked at in the next one, or before the validation.
        _check_finite(norm, "norm of the gradient", schedule, state["step"] - 1)
        running.append(_check_finite(mean, "loss", schedule, state["step"]))
        norm = _step(optimizer, schedule, state["step"])
        state["step"] += 1
        bar.update()
        bar.set_postfix(loss=f"{running[-1]:.4f}", **told, refresh=False)
        if state["step"] % schedule.validate_every and state["step"] != schedule.steps:
            continue
        _check_finite(norm, "norm of the gradient", schedule, state["step"] - 1)
        figures = {"loss": sum(running) / len(running), "rate": schedule.rate(state["step"] - 1)}
        bar.set_description(f"validating {out_dir.name}")
        figures |= of_the_first(fabric, lambda: _validate(model, validate))
        bar.set_description(f"training {out_dir.name}")
        state, running = of_the_first(fabric, partial(note, figures, random_states(fabric))), []
        told = {monitor: f"{figures[monitor]:.4g}", "at": state["step"]}
    bar.close()
    return FitResult(pd.DataFrame(state["history"]), state["best_step"], state["seconds"],
                     out_dir / "best.safetensors", fabric.is_global_zero)


def check_resume(out_dir: str | Path, schedule: Schedule, settings: Mapping[str, Any], *, device: str = "auto",
                 devices: int = 1, precision: str = "32-true") -> None:
    """Refuse a folder that holds another run before hours of preparation for this one; :func:`fit` does it after.

    Args:
        settings: as of :func:`fit`, as far as they are known already. The other arguments are its as well.

    Raises:
        ValueError: the folder's checkpoint differs from what is given here, or there is no such precision or device.
    """
    _check_precision(precision)
    check_device(device if device != "auto" else "cpu")
    launched = "LOCAL_WORLD_SIZE" in os.environ
    processes = int(os.environ["WORLD_SIZE"]) if launched else 1 if ":" in device else devices
    read_checkpoint(Path(out_dir) / "last.ckpt", _identity(schedule, precision, processes, settings), partly=True)


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")


def _identity(schedule: Schedule, precision: str, processes: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run what it is, as JSON reads it."""
    return json.loads(json.dumps({"schedule": asdict(schedule), "precision": precision,
                                  "number of processes": processes, **settings}))


def _open_fabric(device: str, devices: int, loggers: Sequence[Any]) -> Any:
    from lightning_fabric import Fabric  # importing it takes a second, and only training needs it

    check_device(device if device != "auto" else "cpu")
    accelerator, _, index = device.partition(":")
    launched = "LOCAL_WORLD_SIZE" in os.environ  # by torchrun, which has decided how many processes there are
    per_node = int(os.environ["LOCAL_WORLD_SIZE"]) if launched else devices
    nodes = int(os.environ["WORLD_SIZE"]) // per_node if launched else 1
    fabric = Fabric(accelerator=accelerator, devices=[int(index)] if index else per_node, num_nodes=nodes,
                    loggers=list(loggers))
    fabric.launch()
    if fabric.world_size > 1:
        # Fabric sees to this for NCCL alone; gloo's threads, left to themselves, can abort a process that is done.
        atexit.unregister(_leave_group)
        atexit.register(_leave_group)
    return fabric


def _leave_group() -> None:
    """Leave the group of processes before the interpreter ends; called twice, the second call does nothing."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _groups(model: nn.Module, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Parameters for the optimiser: those of each named module with the factor of its rate, and all others."""
    named = {name: list(model.get_submodule(name).parameters()) for name in rates}
    taken = {parameter for parameters in named.values() for parameter in parameters}
    others = [parameter for parameter in model.parameters() if parameter not in taken]
    return [{"params": others, "factor": 1.0},
            *({"params": parameters, "factor": rates[name]} for name, parameters in named.items())]


class _Arriving:
    """A number on its way to the host: who reads it waits for it, but not for what a GPU was given to do after it."""

    def __init__(self, number: Tensor) -> None:
        self._number = number.to("cpu", non_blocking=True)
        self._there = torch.cuda.current_stream(number.device).record_event() if number.is_cuda else None

    def __float__(self) -> float:
        if self._there is not None:
            self._there.synchronize()
        return float(self._number)


def _check_finite(number: _Arriving, what: str, schedule: Schedule, step: int) -> float:
    """What arrived of a step, which is the same in all processes: they stop together, and none waits for another."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the {what} became {value} at step {step + 1}; the learning rate is {schedule.rate(step)}")
    return value


def _step(optimizer: Any, schedule: Schedule, step: int) -> _Arriving:
    """One optimiser step down the gradient that the parameters hold; its norm is returned.

    Each group of parameters is clipped by itself. By the norm of the whole, a part with a large gradient that joins
    later would shorten all others', and with it their steps: Adam measures them by what they were before.
    """
    norms = []
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * schedule.rate(step)
        if any(parameter.grad is not None for parameter in group["params"]):
            norms.append(nn.utils.clip_grad_norm_(group["params"], schedule.clip_norm))
    optimizer.step()
    return _Arriving(torch.stack(norms).norm())


def _validate(model: nn.Module, validate: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        figures = validate(model)
    model.train()
    return figures


def open_logger(name: str, folder: str | Path) -> Any:
    """A Fabric logger by name: "tensorboard" or "wandb"; its package is the user's to install.

    Raises:
        ValueError: another name, or the package is not there.
    """
    if name not in ("tensorboard", "wandb"):
        raise ValueError(f"the logger must be tensorboard or wandb, got {name!r}")
    try:
        if name == "tensorboard":
            from lightning_fabric.loggers import TensorBoardLogger

            return TensorBoardLogger(root_dir=str(folder), name="tensorboard")
        from wandb.integration.lightning.fabric import WandbLogger

        return WandbLogger(project="diffslic", name=Path(folder).name)
    except ImportError as error:
        raise ValueError(f"the logger {name} needs a package: pip install {name} ({error})") from error
