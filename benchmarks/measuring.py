"""What the benchmarks measure with: CPU time or a device's time in turn, peak memory of a process (Linux) or device."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from diffslic.hardware import MEBIBYTE, peak_memory


def medians(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, measured in turn: A B A B.

    Of two calls the second is timed: the first would pay for returning the memory that the contestant before it used.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, way in contestants.items():
            way()
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_growth(way: Callable[[], object]) -> float:
    """How far the resident memory of this process rises during one call, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = peak_memory()
    way()
    return peak_memory() - before


def device_medians(contestants: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, float]:
    """Median seconds of each on a device, measured in turn: A B A B.

    On a GPU between two events of its stream, so that waiting for the host counts; elsewhere on the wall's clock.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, way in contestants.items():
            way()
            seconds[name].append(_gpu_seconds(way, device) if device.startswith("cuda") else _wall_seconds(way))
    return {name: statistics.median(values) for name, values in seconds.items()}


def device_growth(way: Callable[[], object], device: str) -> float:
    """How far what torch has allocated on a GPU rises during one call, in MB; NaN on the CPU."""
    if not device.startswith("cuda"):
        return float("nan")
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    way()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / MEBIBYTE


def _gpu_seconds(way: Callable[[], object], device: str) -> float:
    torch.cuda.synchronize(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    way()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def _wall_seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start
