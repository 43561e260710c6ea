"""Work that several processes share: which part of it is whose, on which device, with which random numbers."""

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


def speaks() -> bool:
    """Whether this process prints for all that share the work; the only one outside torchrun."""
    return int(os.environ.get("RANK", 0)) == 0


def own_share(items: Sequence[Any]) -> list[Any]:
    """What this process takes of work that several share: under torchrun every n-th of them, otherwise all."""
    return list(items)[int(os.environ.get("RANK", 0))::int(os.environ.get("WORLD_SIZE", 1))]


def own_device(device: str) -> str:
    """The device of this process: under torchrun "cuda" is the GPU of its number, otherwise what was asked for."""
    return f"cuda:{os.environ['LOCAL_RANK']}" if device == "cuda" and "LOCAL_RANK" in os.environ else device


def check_device(device: torch.device | str) -> torch.device:
    """The device, once it is known to be there.

    Raises:
        ValueError: names it: not a device, or not on this machine.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:  # torch would list every kind that was ever built
        raise ValueError(f"a device is cpu, cuda, cuda:1 ..., got {str(device)!r}") from error
    try:
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"no device {str(device)!r} here: {str(error).splitlines()[0]}") from error
    return found


def device_of(model: nn.Module) -> torch.device:
    """Where a network's weights are; the CPU where it has none."""
    return next(iter(model.state_dict().values()), torch.empty(0)).device


def random_states(fabric: Any) -> Tensor:
    """The state of torch's random numbers in every process, its GPU's behind it: (processes, bytes)."""
    states = [torch.get_rng_state()]
    if fabric.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(fabric.device))
    own = torch.cat(states).to(fabric.device)  # NCCL sends from one GPU to another
    every = [torch.empty_like(own) for _ in range(fabric.world_size)] if fabric.world_size > 1 else [own]
    if fabric.world_size > 1:
        torch.distributed.all_gather(every, own)
    return torch.stack(every).cpu()


def set_random_state(fabric: Any, states: Tensor) -> None:
    """Go on with this process's random numbers where :func:`random_states` found them."""
    size = len(torch.get_rng_state())
    # Copies: of a view torch reads the memory from its beginning on.
    of_cpu, of_gpu = (part.clone() for part in states[fabric.global_rank].tensor_split([size]))
    torch.set_rng_state(of_cpu)
    if fabric.device.type == "cuda" and len(of_gpu) > 0:
        torch.cuda.set_rng_state(of_gpu, fabric.device)


def mean_of_all(fabric: Any, values: Tensor) -> Tensor:
    """Mean over all processes, in place. Not Fabric's: that one has all wait for one another on the host first."""
    if fabric.world_size > 1:
        torch.distributed.all_reduce(values)
        values /= fabric.world_size
    return values


def average_gradients(fabric: Any, model: nn.Module) -> None:
    """Replace gradients by their means over all processes; the same parameters must have some in each.

    A parameter without one keeps none, so that the optimiser leaves it alone, as it does in one process.
    """
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if fabric.world_size == 1 or not found:
        return
    means = mean_of_all(fabric, torch.cat([gradient.flatten() for gradient in found]))
    for gradient, mean in zip(found, means.split([gradient.numel() for gradient in found])):
        gradient.copy_(mean.view_as(gradient))


def of_the_first(fabric: Any, work: Callable[[], T]) -> T:
    """What the first process makes, in all of them; it must be something that can be pickled.

    Raises:
        ValueError: in the others where ``work`` failed in the first, which raises its own error: they would wait.
    """
    made = None
    if fabric.is_global_zero:
        try:
            made = work()
        except Exception as error:  # whatever it is: the others are to know before it is raised
            fabric.broadcast((None, str(error) or type(error).__name__))
            raise
    made, told = fabric.broadcast((made, ""))
    if told:
        raise ValueError(f"the first process stopped: {told}")
    return made
