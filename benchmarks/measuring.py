"""What the benchmarks measure with: CPU time in turn, peak memory of a process (Linux)."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


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


def peak_memory() -> float:
    """The most resident memory of this process so far, in MB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def peak_growth(way: Callable[[], object]) -> float:
    """How far the resident memory of this process rises during one call, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = peak_memory()
    way()
    return peak_memory() - before
