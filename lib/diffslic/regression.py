"""The regression run of a device: its tests, every notebook, its benchmark, and one page of them all.

Also what comes of many runs of notebooks: figures over seeds, and the report files for a sheet and a CI server.
"""

import csv
import io
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from diffslic import gate, hardware, report, summary
from diffslic.gate import ROOT, Outcome, Value
from diffslic.summary import Step

TEST_DEVICE = "DIFFSLIC_TEST_DEVICE"  # tells tests marked ``gpu`` which device to hold against the CPU


def run_seeds(notebooks: Iterable[Path], seeds: Sequence[int], parameters: Mapping[str, Value],
              out_dir: str | Path = gate.RUNS, **options: Any) -> Iterator[Outcome]:
    """Run notebooks once with each seed and yield one outcome per notebook: see :func:`over_seeds`.

    Args:
        seeds: values of the notebooks' parameter ``seed``; two at least, none twice.
        parameters, options: see :func:`diffslic.gate.run_notebooks`.
        out_dir: gets a folder ``seed<number>`` per seed.

    Raises:
        ValueError: fewer than two seeds, one twice, or ``seed`` among the parameters; else as there.
    """
    if len(seeds) < 2 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be two at least, all different, got {', '.join(map(str, seeds)) or 'none'}")
    if "seed" in parameters:
        raise ValueError("seed is given by --seeds already")
    paths = list(notebooks)
    for path in paths:
        gate.check_parameters(path, ["seed"])
    runs: dict[int, list[Outcome]] = {}
    for seed in seeds:
        runs[seed] = list(gate.run_notebooks(paths, {**parameters, "seed": seed}, Path(out_dir) / f"seed{seed}",
                                             **options))
        if not options.get("keep_going") and not all(outcome.passed for outcome in runs[seed]):
            break  # whatever the other seeds found, there would be no figure over all of them
    for number in range(len(paths)):
        yield over_seeds({seed: outcomes[number] for seed, outcomes in runs.items()})


def over_seeds(outcomes: Mapping[int, Outcome]) -> Outcome:
    """One notebook's outcomes by seed as one: mean figures, and in the rows what :func:`report.tolerance_of` allows.

    The mean stands for all seeds alike; any one seed's figure would be off by that seed's luck. Seconds are the mean
    run's, memory is the largest. A figure that one seed lacks is an error, one that is NaN with one seed is NaN.
    """
    first = next(iter(outcomes.values()))
    names = list(dict.fromkeys(name for outcome in outcomes.values() for name in outcome.figures))
    error = next((f"with seed {seed}: {outcome.error}" for seed, outcome in outcomes.items() if outcome.error), "")
    for seed, outcome in outcomes.items():
        missing = [name for name in names if name not in outcome.figures]
        if missing and not error:
            error = f"with seed {seed} there is no figure {', '.join(missing)}"
    if error:
        return Outcome(first.notebook, sum(outcome.seconds for outcome in outcomes.values()), error, {}, [])
    values = {name: [outcome.figures[name] for outcome in outcomes.values()] for name in names}
    figures = {name: math.fsum(each) / len(each) for name, each in values.items()}
    rows = [row if row.verdict == "FAIL" else row._replace(tolerance=report.tolerance_of(values[row.figure]))
            for row in report.list_uncompared(figures)]
    return Outcome(first.notebook, statistics.fmean(outcome.seconds for outcome in outcomes.values()), "", figures,
                   rows, max(outcome.memory for outcome in outcomes.values()), first.hardware)


def run(device: str, profile: str, out_dir: str | Path, *, only: Iterable[str] = (), jobs: int = 1,
        folder: str | Path = gate.NOTEBOOKS, progress: Callable[[str], object] | None = None) -> tuple[Path, bool]:
    """Everything that a device is judged by; a step that fails does not keep the next from running.

    Tests marked ``gpu`` hold the device and the CPU to the same results (the variable ``DIFFSLIC_TEST_DEVICE`` names
    it to them); notebooks are compared with the device's baselines; ``benchmarks/gpu.py`` measures speed and
    ``benchmarks/end_to_end_memory.py`` the memory of training end to end, both small on a CPU.

    Args:
        out_dir: gets the notebooks' files, the logs, ``report.csv``, ``report.xml`` and the page, which is written
            anew after each step.
        only, jobs, folder: of the notebooks, see :func:`diffslic.gate.find_notebooks`.
        progress: called with a line about each step as it begins.

    Returns:
        The page ``index.html``, and whether every step went well.

    Raises:
        ValueError, FileNotFoundError, OSError: bad input, before anything runs.
    """
    out = Path(out_dir).absolute()
    parameters: dict[str, Value] = {"device": device, "profile": profile}
    paths = gate.find_notebooks(only, folder)
    for path in paths:
        gate.check_parameters(path, [*parameters, "out_dir"])
    tests, speed, memory = out / "tests.xml", out / "speed.json", out / "memory.json"
    small = [] if device.startswith("cuda") else ["--small"]
    commands = {"tests": ["-m", "pytest", "-m", "gpu", f"--junitxml={tests}", str(ROOT / "tests")],
                "speed": [str(ROOT / "benchmarks/gpu.py"), "--device", device, "--json", str(speed), *small],
                "memory": [str(ROOT / "benchmarks/end_to_end_memory.py"), "--device", device, "--json", str(memory),
                           *small]}
    typed = f"diffslic notebooks --device {device} --profile {profile} --keep-going"
    out.mkdir(parents=True, exist_ok=True)
    for stale in (tests, speed, memory):
        stale.unlink(missing_ok=True)
    steps: list[Step] = []
    outcomes: list[Outcome] = []

    def write() -> Path:
        return summary.write(out, device, profile, hardware.describe(device), steps, outcomes,
                             test_cases(tests), {"Speed": _measured(speed), "Memory": _measured(memory)})

    def call(name: str) -> None:
        if progress:
            progress(f"{name} ...")
        steps.append(_call(name, commands[name], out / f"{name}.log", device))
        write()

    call("tests")
    start = time.monotonic()
    for outcome in gate.run_notebooks(paths, parameters, out, jobs=jobs, keep_going=True, cell_timeout=7200,
                                      timeout=14400):
        outcomes.append(outcome)
        if progress:
            progress(f"{outcome.notebook}: {'passed' if outcome.passed else 'FAILED'}")
    bad = [outcome.notebook for outcome in outcomes if not outcome.passed]
    steps.append(Step("notebooks", typed, f"failed: {', '.join(bad)}" if bad else "", time.monotonic() - start))
    write_reports(outcomes, out)
    call("speed")
    call("memory")
    return write(), not any(step.error for step in steps)


def test_cases(path: Path) -> dict[str, str]:
    """Every test of a JUnit file with "" where it passed, or else "skipped: ..." or "failed: ..."; none without it."""
    if not path.is_file():
        return {}
    cases = {}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        told = next((f"{'skipped' if child.tag == 'skipped' else 'failed'}: {child.get('message', '')}"
                     for child in case if child.tag in ("skipped", "failure", "error")), "")
        cases[f"{case.get('classname')}.{case.get('name')}"] = told
    return cases


def write_reports(outcomes: Iterable[Outcome], out_dir: str | Path) -> None:
    """Write ``report.csv`` (a row per figure) and ``report.xml`` (JUnit: a case per notebook and per figure)."""
    rows = io.StringIO()
    sheet = csv.writer(rows, lineterminator="\n")
    sheet.writerow(["notebook", "seconds", "memory_mb", "error", *report.Row._fields])
    suites = ElementTree.Element("testsuites")
    for outcome in outcomes:
        head = [outcome.notebook, f"{outcome.seconds:.1f}", f"{outcome.memory:.0f}", outcome.error]
        sheet.writerows([[*head, *row] for row in outcome.rows] or [head])
        suites.append(_junit_suite(outcome))
    report.write_text(Path(out_dir) / "report.csv", rows.getvalue())
    report.write_text(Path(out_dir) / "report.xml", ElementTree.tostring(suites, encoding="unicode") + "\n")


def _junit_suite(outcome: Outcome) -> ElementTree.Element:
    cases = [("runs to its end", outcome.error)]
    for row in outcome.rows:
        message = f"{row.value} against {row.baseline} +- {row.tolerance}" if row.verdict == "FAIL" else ""
        cases.append((row.figure, message))
    failures = sum(bool(message) for _, message in cases)
    suite = ElementTree.Element("testsuite", name=outcome.notebook, tests=str(len(cases)), failures=str(failures),
                                time=f"{outcome.seconds:.1f}")
    for name, message in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=outcome.notebook, name=name)
        if message:
            ElementTree.SubElement(case, "failure", message=message)
    return suite


def _call(name: str, arguments: list[str], log: Path, device: str) -> Step:
    """Run Python with these arguments in a process of its own; what it says goes into the log."""
    start = time.monotonic()
    with log.open("wb") as sink:
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**os.environ, TEST_DEVICE: device},
                              stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT)
    error = f"exit status {done.returncode}, see {log.name}" if done.returncode else ""
    return Step(name, shlex.join(["python", *arguments]), error, time.monotonic() - start)


def _measured(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
