"""What a run leaves in its folder, and whether a folder's run is this one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from diffslic.files import written_whole

TOLD = 4  # differences, and numbers of a list, that a message tells


def new_state() -> dict[str, Any]:
    """Of a run that has not begun."""
    return {"step": 0, "seconds": 0.0, "history": [], "best": None, "best_step": 0}


def read_checkpoint(path: Path, identity: Mapping[str, Any], partly: bool = False) -> dict[str, Any] | None:
    """The checkpoint of a run, or None where there is none yet.

    Args:
        identity: what makes the run what it is. partly: it is not whole, and the checkpoint may know more.

    Raises:
        ValueError: the file is damaged, or of another run: then it names what differs.
    """
    if not path.is_file():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here: unpickling, zip and end-of-file errors
        raise ValueError(f"{path} is not a whole checkpoint: {str(error).splitlines()[0]}") from error
    if "number of processes" not in kept["identity"]:
        raise ValueError(f"{path} was written by an earlier version; remove it or choose another folder")
    other = _differences({name: value for name, value in kept["identity"].items() if name in identity or not partly},
                         identity)
    if other:
        more = f"; and {len(other) - TOLD} more" if len(other) > TOLD else ""
        raise ValueError(f"{path} is of another run: {'; '.join(other[:TOLD])}{more}; remove it or choose another "
                         "folder")
    return kept


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Settings that differ, by name, with both values: "steps 300 there, 500 here"."""
    there, here = _flat(there), _flat(here)
    other = [path for path in {**there, **here} if there.get(path) != here.get(path)]
    names, found = [path[-1] for path in other], []
    for path, name in zip(other, names):
        name = name if names.count(name) == 1 else " ".join(path)
        values = [_told(each.get(path)) for each in (there, here)]
        found.append(f"{name} {values[0]} there, {values[1]} here" if values[0] != values[1] else f"other {name}")
    return found


def _flat(settings: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    flat: dict[tuple[str, ...], Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, (*path, name)) if isinstance(value, Mapping) else {(*path, name): value}
    return flat


def _told(value: Any) -> str:
    """A setting as one would type it; of a long list the first, and how many there are."""
    if isinstance(value, list):
        return (",".join(map(str, value)) or "none" if len(value) <= TOLD else
                f"{value[0]} ... ({len(value)} in all)")
    return "none" if value in (None, "None") else str(value)  # recipes name weights as text, None too


def load_model(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Put the checkpoint's weights into the model.

    Raises:
        ValueError: they are of another one.
    """
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise ValueError(f"{path} belongs to a run of another model: {str(error).splitlines()[-1].strip()}") from error


def keep(state: dict[str, Any], figures: Mapping[str, float], model: nn.Module, optimizer: Any,
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
