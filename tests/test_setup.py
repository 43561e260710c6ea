"""The files that set the project up agree with each other."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from diffslic import datasets
from diffslic.datasets import io

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch", "msgpack": "msgpack-python"}


def split(requirement: str) -> tuple[str, str]:
    """ "numpy>=2.0" to ("numpy", ">=2.0")."""
    name, bounds = re.fullmatch(r"([A-Za-z0-9_.-]+)(.*)", requirement).groups()
    return name, bounds


def required() -> dict[str, str]:
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    return dict(split(line) for line in PROJECT["dependencies"] + extras)


def test_conda_and_pip_ask_for_the_same():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    by_pip = next(line["pip"] for line in lines if isinstance(line, dict))
    by_conda = dict(split(line) for line in lines if isinstance(line, str))
    assert by_conda.pop("python") == PROJECT["requires-python"]
    assert by_conda.pop("pip") == ""
    assert by_pip[-1] == "-e ."
    asked = by_conda | dict(split(line) for line in by_pip[:-1])
    assert len(asked) == len(by_conda) + len(by_pip) - 1
    assert asked == {CONDA_NAMES.get(name, name): bounds for name, bounds in required().items()}


def test_what_the_library_imports_is_what_it_requires():
    named = {"skimage": "scikit-image", "PIL": "pillow", "cv2": "opencv-python-headless", "bs4": "beautifulsoup4"}
    optional = {"wandb", "lightning", "airsim"}  # loggers, where a user has them; and what joins in its own way, below
    trees = [ast.parse(path.read_text()) for path in (ROOT / "lib").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"diffslic"} - optional
    packages = {named.get(name, name).replace("_", "-") for name in packages}
    asked = {split(line)[0] for line in PROJECT["dependencies"]}
    assert packages <= asked
    assert asked - packages <= {"ipykernel"}  # papermill starts it


def test_airsim_joins_in_the_same_way_everywhere():
    for name in ("Makefile", "environment.yml"):
        text = (ROOT / name).read_text()
        steps = r"numpy setuptools wheel rpc-msgpack.*--no-deps --no-build-isolation airsim==1.8.1"
        assert re.search(steps, text, re.DOTALL)
    assert "airsim" not in required()


def test_the_pin_lies_within_the_bounds():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    lowest = required()["torch"].removeprefix(">=")
    assert tuple(map(int, pins["torch"].split("."))) >= tuple(map(int, lowest.split(".")))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_gitignore_spares_the_sources_and_takes_the_results():
    def ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=ROOT).returncode == 0

    assert not any(map(ignored, ["lib/diffslic/datasets/io.py", "lib/diffslic/data/x.py", "data/README.md",
                                 "data/weights/raft-small.safetensors", "tests/baselines/cpu-smoke.json"]))
    assert all(map(ignored, ["runs/a.html", "cache/a.h5", "data/DAVIS/a.png", ".venv/a", "lib/diffslic.egg-info/a"]))


@pytest.fixture
def copy(tmp_path):
    """The files that make needs to decide whether to install, with an installation that is up to date."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "lib").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make on this machine")
class TestMake:
    def test_a_second_call_installs_nothing(self, copy):
        assert "pip install" not in make(copy, "-n", "run").stdout

    @pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
    def test_a_change_of_the_requirements_installs(self, copy, changed):
        now = (copy / ".venv" / ".installed").stat().st_mtime
        os.utime(copy / changed, (now + 10, now + 10))
        assert "pip install" in make(copy, "-n", "run").stdout

    @pytest.mark.parametrize("given, asked", [([], "--device cuda --profile full"),
                                              (["DEVICE=cpu", "PROFILE=smoke"], "--device cpu --profile smoke")])
    def test_the_regression_run_is_of_a_gpu_in_full_unless_told(self, copy, given, asked):
        assert f"diffslic regression {asked} --out runs/gpu" in make(copy, "-n", "gpu", *given).stdout
        assert "--device cpu --profile default" in make(copy, "-n", "run").stdout

    def test_an_old_python_is_refused_in_one_line(self, copy):
        (copy / ".venv" / ".installed").unlink()
        old = copy / "old-python"
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
        old.chmod(0o755)
        done = make(copy, "install", f"PYTHON={old}")
        assert done.returncode != 0
        assert done.stderr.splitlines()[0].startswith("diffslic needs Python 3.11 or newer")
        assert "Python 3.9.1" in done.stderr and not (copy / ".venv" / ".installed").exists()


def lines_under(heading: str) -> str:
    """The first block of commands under a heading of README."""
    text = (ROOT / "README.md").read_text().split(f"\n## {heading}\n")[1]
    return re.search(r"```bash\n(.*?)```", text, re.DOTALL)[1]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_readme_leads_to_a_first_clip_of_ones_own_in_three_commands(tmp_path):
    commands = lines_under("Your own video, in three commands").splitlines()
    assert len(commands) == 3
    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=3, size=(96, 160), seed=5)[0]
    frames, bin_ = tmp_path / "diffslic" / "my_frames", Path(sys.executable).parent
    commands[0] = commands[0].replace("<this repository>", ROOT.as_uri())
    # Its packages are those of this environment, whose installation is up to date: nothing is fetched from a network.
    ready = f"mkdir .venv && ln -s {bin_} .venv/bin && touch .venv/.installed && mv ../my_frames ."
    for t in range(3):
        io.write_image(tmp_path / "my_frames" / f"{t}.png", clip.frame(t))
    script = "\n".join(["set -e", commands[0], ready, *commands[1:]])
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "diffslic" / "lib")})
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (frames.parent / "masks" / "masks").iterdir()) == ["0.png", "1.png", "2.png"]
    assert io.read_labels(frames.parent / "masks" / "masks" / "0.png").shape == (96, 160)
    assert (frames.parent / "masks" / "overlay.mp4").stat().st_size > 0
