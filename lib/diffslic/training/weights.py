"""Weights on the disk: found by name, read without running code, written whole."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffslic.files import written_whole

TOGETHER = {"flow", "superpixels", "head"}  # a file with these configurations holds the parts of a network, not one
WEIGHTS_FOLDER = Path(__file__).resolve().parents[3] / "data" / "weights"


class Weights(NamedTuple):
    """What a weights file holds: tensors by name, and the configuration kept beside them (empty for foreign files)."""

    state: dict[str, Tensor]
    config: dict[str, Any]


def find_weights(kind: str, name_or_path: str | Path) -> Path:
    """The file of shipped weights (``kind`` "raft", ``name`` "small") or of the path given.

    Raises:
        FileNotFoundError: names the file and the shipped weights of this kind.
    """
    shipped = WEIGHTS_FOLDER / f"{kind}-{name_or_path}.safetensors"
    path = Path(name_or_path)
    if path.suffix in (".safetensors", ".pth", ".pt"):
        if path.is_file():
            return path
        raise FileNotFoundError(f"no weights file {path}")
    if shipped.is_file():
        return shipped
    known = sorted(p.stem.removeprefix(f"{kind}-") for p in WEIGHTS_FOLDER.glob(f"{kind}-*.safetensors"))
    raise FileNotFoundError(f"no {kind} weights named {str(name_or_path)!r}: shipped are "
                            f"{', '.join(known) or 'none'}; a file must end in .safetensors or .pth")


def load_weights(kind: str, name_or_path: str | Path) -> Weights:
    """Read weights on the CPU without executing code from the file.

    Args:
        kind: the network's family, the first word of a shipped file's name: "ssn", "raft", "unet"; or "end-to-end".
        name_or_path: a shipped name, a ``.safetensors`` file, or a ``.pth`` with a plain state dict.

    Raises:
        FileNotFoundError: no such file. ValueError: the file is not what its name says, or holds several networks that
            were trained end to end where it should hold one.
    """
    weights = _read(find_weights(kind, name_or_path))
    if kind != "end-to-end" and weights.config.keys() >= TOGETHER:
        raise ValueError(f"{name_or_path} holds flow, superpixels and masks trained end to end: it is for segment "
                         "--method end-to-end --weights and for train unet --end-to-end --start")
    return weights


def _read(path: Path) -> Weights:
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                config = json.loads((file.metadata() or {}).get("config", "{}"))
                return Weights({key: file.get_tensor(key) for key in file.keys()}, config)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here: unpickling, zip and end-of-file errors
        raise ValueError(f"{path} is not a plain state dict that loads without running code: "
                         f"{str(error).splitlines()[0]}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} must hold a state dict (name to tensor), got {type(state).__name__}")
    return Weights(dict(state), {})


def fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put a state dict into a network.

    Raises:
        ValueError: names what is missing, what the network does not have, and what has another size or is not finite.
    """
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    sizes = [f"{name} {tuple(state[name].shape)} for {own[name]}" for name in own
             if name in state and tuple(state[name].shape) != own[name]]
    problems = {"missing": [name for name in own if name not in state],
                "not of this network": [name for name in state if name not in own], "of another size": sizes,
                "not finite": [name for name in state if not state[name].isfinite().all()]}
    if any(problems.values()):
        raise ValueError("; ".join(f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
                                   for what, names in problems.items() if names))
    model.load_state_dict(state)


def save_weights(path: str | Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights and their configuration as safetensors, whole or not at all."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    with written_whole(path) as temporary:
        temporary.write_bytes(save(tensors, metadata={"config": json.dumps(config)}))
