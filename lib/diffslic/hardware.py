"""What figures were made on, and how much memory that took; torch is asked where it is loaded, never loaded for it."""

import os
import platform
import sys
from pathlib import Path
from typing import Any

from diffslic import __version__

MEBIBYTE = 2 ** 20


def describe(device: str) -> dict[str, str]:
    """The processor or GPU behind a device ("cpu", "cuda", "cuda:1"), and the versions at work.

    Returns:
        ``name``, ``python``, ``diffslic``; where this process has loaded torch also ``torch``, and ``cuda`` where the
        device is a GPU.
    """
    torch = _loaded_torch()
    told = {"name": f"{os.cpu_count()} cores ({platform.machine()})", "python": platform.python_version(),
            "diffslic": __version__}
    if torch is not None:
        told["torch"] = torch.__version__
    if _on_gpu(device):
        told |= {"name": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return told


def peak_memory(device: str = "cpu") -> float:
    """The most memory that this process has held so far, in MB: of a GPU what torch allocated there, or resident."""
    if _on_gpu(device):
        return _loaded_torch().cuda.max_memory_allocated(device) / MEBIBYTE
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before this program began
        return int(status.read_text(encoding="ascii").split("VmHWM:")[1].split()[0]) / 1024
    import resource  # of Unix alone
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (MEBIBYTE if sys.platform == "darwin" else 1024)


def _on_gpu(device: str) -> bool:
    torch = _loaded_torch()
    return device.startswith("cuda") and torch is not None and torch.cuda.is_available()


def _loaded_torch() -> Any:
    return sys.modules.get("torch")
