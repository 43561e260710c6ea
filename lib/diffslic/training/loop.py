"""One training loop on Lightning Fabric, for every network.

It knows Fabric and no model: what is trained, on what and how it is weighed comes from ``recipes``.
"""

import atexit
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm.auto import tqdm

from diffslic.files import written_whole
from diffslic.training.processes import check_device, random_states, set_random_state

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
    clip_norm: float = 1.0  # of the whole gradient

    def __post_init__(self) -> None:
        if self.steps < 1 or self.validate_every < 1 or self.learning_rate <= 0:
            raise ValueError(f"a schedule needs steps >= 1, validate_every >= 1 and learning_rate > 0, got {self}")

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
        before_step: told the number of each step, from 0, before it is taken: to freeze some parameters, or no longer.
        forward_methods: methods of the model that ``loss`` calls instead of the model itself.

    Raises:
        ValueError: no such device or precision, a checkpoint of another run (or of another number of processes), or a
            loss that is not finite, in whichever process: then all of them raise.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be {' or '.join(PRECISIONS)}, got {precision!r}")
    out_dir = Path(out_dir)
    fabric = _open_fabric(device, devices, loggers, some_unused=before_step is not None)
    out_dir.mkdir(parents=True, exist_ok=True)
    identity = json.loads(json.dumps({"schedule": asdict(schedule), "precision": precision,
                                      "number of processes": fabric.world_size, **(settings or {})}))
    checkpoint = _read_checkpoint(out_dir / "last.ckpt", identity) if resume else None
    state = checkpoint["state"] if checkpoint else _new_state()
    if checkpoint:
        _load_model(model, checkpoint, out_dir / "last.ckpt")
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
    loader = DataLoader(batches, batch_size=None, num_workers=workers, generator=torch.Generator(),
                        multiprocessing_context="fork" if fork else None,
                        sampler=_From(state["step"] * fabric.world_size + fabric.global_rank,
                                      schedule.steps * fabric.world_size, fabric.world_size))
    bar = tqdm(total=schedule.steps, initial=state["step"], disable=not (progress and fabric.is_global_zero),
               desc=f"training {out_dir.name}", unit="step")
    started, before, running = time.perf_counter(), state["seconds"], []
    told: dict[str, Any] = {}
    wrapped.train()
    # Not Fabric's own mixed precision: it would round the batches too, positions and pixels among them.
    half = torch.autocast(fabric.device.type, torch.bfloat16, enabled=precision == "bf16-mixed")
    for batch in fabric.setup_dataloaders(loader, use_distributed_sampler=False):
        if before_step is not None:
            before_step(state["step"])
        with half:
            value = loss(wrapped, batch).mean()
        running.append(_step(fabric, wrapped, optimizer, value, schedule, state["step"]))
        state["step"] += 1
        bar.update()
        bar.set_postfix(loss=f"{running[-1]:.4f}", **told, refresh=False)
        if state["step"] % schedule.validate_every and state["step"] != schedule.steps:
            continue
        figures = {"loss": sum(running) / len(running), "rate": schedule.rate(state["step"] - 1)}
        if fabric.is_global_zero:
            bar.set_description(f"validating {out_dir.name}")
            figures |= _validate(model, validate)
            bar.set_description(f"training {out_dir.name}")
        random = random_states(fabric)  # here the others wait for the first
        if fabric.is_global_zero:
            state["seconds"] = before + time.perf_counter() - started
            _keep(state, figures, model, optimizer, identity, random, out_dir, monitor, higher_is_better)
            fabric.log_dict(figures, step=state["step"])
            told = {monitor: f"{figures[monitor]:.4g}", "at": state["step"]}
        state, running = fabric.broadcast(state), []
    bar.close()
    return FitResult(pd.DataFrame(state["history"]), state["best_step"], state["seconds"],
                     out_dir / "best.safetensors", fabric.is_global_zero)


def _open_fabric(device: str, devices: int, loggers: Sequence[Any], some_unused: bool) -> Any:
    from lightning_fabric import Fabric  # importing it takes a second, and only training needs it

    check_device(device if device != "auto" else "cpu")
    accelerator, _, index = device.partition(":")
    launched = "LOCAL_WORLD_SIZE" in os.environ  # by torchrun, which has decided how many processes there are
    per_node = int(os.environ["LOCAL_WORLD_SIZE"]) if launched else devices
    nodes = int(os.environ["WORLD_SIZE"]) // per_node if launched else 1
    strategy = "ddp_find_unused_parameters_true" if some_unused and per_node * nodes > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=[int(index)] if index else per_node, num_nodes=nodes,
                    strategy=strategy, loggers=list(loggers))
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


def _step(fabric: Any, model: nn.Module, optimizer: Any, value: Tensor, schedule: Schedule, step: int) -> float:
    """One optimiser step down the gradient of the loss's ``value``; its mean over all processes is returned."""
    rate = schedule.rate(step)
    for group in optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    # Before the gradients are: what is not finite in one process stops all of them, and none waits for another.
    mean = fabric.all_reduce(value.detach().float().clone(), reduce_op="mean").item()
    if not math.isfinite(mean):
        raise ValueError(f"the loss became {mean} at step {step + 1}; the learning rate is {rate}")
    optimizer.zero_grad(set_to_none=True)
    fabric.backward(value)
    fabric.clip_gradients(model, optimizer, max_norm=schedule.clip_norm)
    optimizer.step()
    return mean


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


def _new_state() -> dict[str, Any]:
    return {"step": 0, "seconds": 0.0, "history": [], "best": None, "best_step": 0}


def _read_checkpoint(path: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here: unpickling, zip and end-of-file errors
        raise ValueError(f"{path} is not a whole checkpoint: {str(error).splitlines()[0]}") from error
    if "number of processes" not in kept["identity"]:
        raise ValueError(f"{path} was written by an earlier version; remove it or choose another folder")
    if kept["identity"] != identity:
        other = [key for key in {**kept["identity"], **identity} if kept["identity"].get(key) != identity.get(key)]
        raise ValueError(f"{path} belongs to a run with another {', '.join(other)}; remove it or choose another folder")
    return kept


def _load_model(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to a run of another model: {str(error).splitlines()[-1].strip()}") from error


def _keep(state: dict[str, Any], figures: dict[str, float], model: nn.Module, optimizer: torch.optim.Optimizer,
          identity: Mapping[str, Any], random: Tensor, out_dir: Path, monitor: str, higher_is_better: bool) -> None:
    """Note the figures, keep the best weights, and write the checkpoint, in this order."""
    state["history"].append({"step": state["step"], "seconds": state["seconds"], **figures})
    value = figures[monitor]
    if state["best"] is None or (value > state["best"] if higher_is_better else value < state["best"]):
        state["best"], state["best_step"] = value, state["step"]
        model.save(out_dir / "best.safetensors")
    with written_whole(out_dir / "metrics.csv") as temporary:
        pd.DataFrame(state["history"]).to_csv(temporary, index=False)
    raw = optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer
    with written_whole(out_dir / "last.ckpt") as temporary:
        torch.save({"state": state, "identity": identity, "model": model.state_dict(),
                    "optimizer": raw.state_dict(), "random": random}, temporary)
