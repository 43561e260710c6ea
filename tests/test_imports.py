"""The import contracts of pyproject.toml hold, and each sort of them fails when a forbidden import is planted."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lib" / "diffslic"
FILES = sorted(PACKAGE.rglob("*.py"))

# Files are opened by datasets (images, flow, clips), training (weights), report (figures), gate and book (notebooks),
# regression (logs, and what its steps left) and hardware (what the system tells of a process).
OPENING = {"open", "imread", "imsave", "imwrite", "get_reader", "get_writer", "load", "save", "savez", "loadtxt",
           "savetxt", "fromfile", "tofile", "read_text", "read_bytes", "write_text", "write_bytes", "save_file",
           "safe_open", "File"}
OPENING_MODULES = {"builtins", "io", "np", "numpy", "torch", "skimage", "imageio", "Image", "cv2", "h5py", "path",
                   "json"}
ROOMS_WITH_FILES = {"datasets", "files.py", "training", "report.py", "gate.py", "book.py", "regression.py",
                    "hardware.py"}


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package that lies in ``folder`` (found before the installed one) against this project's contracts."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()",
               "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


def test_the_contracts_hold():
    done = lint(ROOT / "lib")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module, line, contract",
    [("geometry", "from diffslic import report", "Rooms stand side by side"),
     ("geometry", "from diffslic import files", "geometry, metrics and viz import nothing else"),
     ("flow.planted", "from diffslic.superpixels import slic", "Rooms stand side by side"),
     ("training.planted", "from diffslic.flow import raft", "Rooms stand side by side"),
     ("report", "from diffslic import gate", "Rooms stand side by side"),
     ("unheard_of", "import math", "Rooms stand side by side"),
     ("superpixels.planted", "from diffslic import report", "Rooms and training know nothing"),
     ("training.planted", "from diffslic import geometry", "training imports nothing else"),
     ("datasets.planted", "from diffslic import training", "datasets open no weights"),
     ("widgets", "from diffslic import geometry", "widgets import viz only"),
     ("gate", "from diffslic import geometry", "gate, book, regression and summary know notebooks"),
     ("regression", "from diffslic import geometry", "gate, book, regression and summary know notebooks"),
     ("geometry", "import matplotlib.pyplot", "matplotlib lives in viz"),
     ("geometry", "import h5py", "Images, videos and clips"),
     ("flow.planted", "from safetensors.torch import load_file", "Weights files and Fabric"),
     ("report", "import argparse", "Arguments are parsed in cli"),
     ("geometry", "import tests.conftest", "Nothing imports notebooks")],
)
def test_a_planted_import_is_found(tmp_path, module, line, contract):
    package = tmp_path / "diffslic"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    planted = package.joinpath(*module.split(".")).with_suffix(".py")
    text = planted.read_text() if planted.exists() else ""
    planted.write_text(f"{text}\n{line}\n")
    done = lint(tmp_path)
    told = " ".join(done.stdout.split())
    assert done.returncode == 1, told
    assert "BROKEN" in told and contract in told.partition("Broken contracts")[2], told


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_print_lives_in_cli(path):
    prints = [call.lineno for call in calls(path) if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert path.parent.name == "cli" or not prints


def opened(path: Path) -> list[str]:
    """The calls of a file that open another one, as "line: call"."""
    found = []
    for call in calls(path):
        name = ast.unparse(call.func)
        owner, _, last = name.rpartition(".")
        # A method of an object (net.load, report.write_text) is somebody else's door; those of pathlib are not.
        direct = owner.split(".")[0] in OPENING_MODULES | {""} or "Path(" in owner
        in_memory = bool(call.args) and ast.unparse(call.args[0]) in {"buffer", "memory", "io.BytesIO()"}
        if in_memory:
            continue
        if last in OPENING and direct or (last in {"read_text", "read_bytes"} and owner != "report"):
            found.append(f"{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_opened_in_their_rooms(path):
    assert path.relative_to(PACKAGE).parts[0] in ROOMS_WITH_FILES or opened(path) == []


def test_the_search_for_opened_files_sees_them(tmp_path):
    path = tmp_path / "planted.py"
    path.write_text("open('a')\nskimage.io.imread('b')\ntorch.load('c')\nPath('d').read_text()\ncv2.imread('e')\n"
                    "net.load('f')\n")
    assert [line.split(":")[0] for line in opened(path)] == ["1", "2", "3", "4", "5"]
