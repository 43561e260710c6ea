"""Fixtures shared by the whole suite."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffslic import cli, regression


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder that ``DIFFSLIC_REFERENCE`` names: ``reference/`` (figures) and ``data/`` (real data)."""
    folder = os.environ.get("DIFFSLIC_REFERENCE")
    if not folder:
        pytest.skip("DIFFSLIC_REFERENCE is not set: no reference figures or real data here")
    if not Path(folder).is_dir():
        pytest.fail(f"DIFFSLIC_REFERENCE names {folder}, which is not a folder")
    return Path(folder)


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Start arguments of torchrun (a script with its own, or ``-m`` and a module) in two processes on the CPU."""
    def start(*arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                   "--local-addr", "127.0.0.1", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
    return start


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """A command that works: its figures."""
    def figures(*arguments: Any) -> Any:
        assert cli.main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return figures


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A command that is refused: the line that says why."""
    def reason(*arguments: Any) -> str:
        capsys.readouterr()
        assert cli.main([*map(str, arguments)]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    return reason


@pytest.fixture(scope="session")
def device() -> str:
    """What tests marked ``gpu`` hold against the CPU: a GPU, or what ``DIFFSLIC_TEST_DEVICE`` names, also "cpu"."""
    device = os.environ.get(regression.TEST_DEVICE, "cuda")
    if device.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return device


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
