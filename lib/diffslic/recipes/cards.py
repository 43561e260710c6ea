"""Model cards: what a network was trained on, how, for how long, on what, and how good it is."""

import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from diffslic.files import written_whole
from diffslic.training import FitResult

CARD = """# {name}

{what}

| | |
|---|---|
| data | {data} |
| validation | {validation} |
| steps | {steps} (best at {best_step}) |
| command | `{command}` |
| seconds | {seconds:.0f} |
| hardware | {hardware} |

## Figures at the best step

| figure | value |
|---|---|
{figures}

## Limits

{limits}

For a longer training on a GPU: `{gpu_command}`{measured}
"""
UNMEASURED = ". Not yet trained or measured on a GPU."


def write_card(folder: str | Path, fit: FitResult, *, name: str, what: str, data: str, validation: str, command: str,
               gpu_command: str, limits: str, more: Callable[[], Mapping[str, float]] = dict) -> None:
    """Write ``card.md`` into the folder of a training run; under torchrun the first process does.

    Args:
        fit: the run's result; the figures of its best step enter the card.
        name, what: of the network, a title and a sentence or two.
        data, validation: what it learned from and was weighed on.
        command, gpu_command: what makes these weights again, and what would make better ones.
        limits: what it should not be trusted with.
        more: makes figures beside those of the validation; called by the process that writes.
    """
    if not fit.first:
        return
    history = fit.history
    best = history[history["step"] == fit.best_step].iloc[-1].drop(["step", "seconds", "rate"])
    figures = {**best.to_dict(), **more()}
    path = Path(folder) / "card.md"
    with written_whole(path) as temporary:
        temporary.write_text(CARD.format(
            name=name, what=what, data=data, validation=validation, steps=int(history["step"].max()),
            best_step=fit.best_step, command=command, seconds=fit.seconds, hardware=describe_hardware(),
            figures="\n".join(f"| {key} | {value:.4g} |" for key, value in figures.items()), limits=limits,
            gpu_command=gpu_command, measured="" if _used_a_gpu() else UNMEASURED), encoding="utf-8")


def describe_hardware() -> str:
    """The processor's kind and number of cores, the GPU if one was used, and torch's version."""
    gpu = f", {torch.cuda.get_device_name()}" if _used_a_gpu() else ""
    return f"{os.cpu_count()} cores ({platform.machine()}){gpu}, torch {torch.__version__}"


def _used_a_gpu() -> bool:
    """Whether this process has had anything on a GPU; that there is one does not say so."""
    return torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
