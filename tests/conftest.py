"""Fixtures shared by the whole suite."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder that ``DIFFSLIC_REFERENCE`` names: ``reference/`` (figures) and ``data/`` (real data)."""
    folder = os.environ.get("DIFFSLIC_REFERENCE")
    if not folder:
        pytest.skip("DIFFSLIC_REFERENCE is not set: no reference figures or real data here")
    if not Path(folder).is_dir():
        pytest.fail(f"DIFFSLIC_REFERENCE names {folder}, which is not a folder")
    return Path(folder)


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
