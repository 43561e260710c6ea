"""The gate: notebooks run headlessly through papermill, each in its own process, and judged by their figures.

It stands beside ``report`` and apart from it: ``report`` is what a notebook calls and knows files only; this module
starts processes, watches their time and their end, and needs papermill.

What counts is the exit status of the run and the figures that it left, never what the executed notebook says of
itself: papermill leaves "completed" in its metadata after a timeout.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil
from papermill import inspect_notebook

from diffslic import book, report

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
BASELINES = ROOT / "tests" / "baselines"
RUNS = ROOT / "runs"
# With only these, a run is the one that the baselines were made with.
OWN_PARAMETERS = {"device", "profile", "out_dir"}
DEFAULTS: dict[str, str] = {"device": "cpu", "profile": "default"}

Value = str | int | float | bool | None


class Outcome(NamedTuple):
    """One notebook's run. ``error`` is empty where it ran to its end and left its figures."""

    notebook: str
    seconds: float
    error: str
    figures: dict[str, float]
    rows: list[report.Row]
    memory: float = math.nan  # the most that its kernel held, in MB
    hardware: Mapping[str, str] = {}  # see diffslic.hardware.describe

    @property
    def passed(self) -> bool:
        return not self.error and all(row.verdict != "FAIL" for row in self.rows)


def find_notebooks(names: Iterable[str] = (), folder: str | Path = NOTEBOOKS) -> list[Path]:
    """The notebooks of a folder in reading order: the order in which its README.md links them, then by name.

    Args:
        names: only these (without ``.ipynb``); all where empty.

    Raises:
        ValueError: names the notebook asked for and those that exist.
        FileNotFoundError: a folder without notebooks.
    """
    paths = {path.stem: path for path in sorted(Path(folder).glob("*.ipynb"))}
    if not paths:
        raise FileNotFoundError(f"no notebook (*.ipynb) in {folder}")
    for name in names:
        if name not in paths:
            raise ValueError(f"no notebook {name} in {folder}; it has {', '.join(paths)}")
    readme = Path(folder) / "README.md"
    linked = re.findall(r"\]\(([^)/]+)\.ipynb\)", readme.read_text(encoding="utf-8")) if readme.exists() else []
    order = list(dict.fromkeys([name for name in linked if name in paths] + list(paths)))
    return [paths[name] for name in order if not names or name in names]


def parse_value(text: str) -> Value:
    """A parameter's value from the command line, read as ``papermill -p`` reads it: "3" is a number, "240p" is not."""
    words: dict[str, Value] = {"True": True, "False": False, "None": None}
    if text in words:
        return words[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def check_parameters(notebook: str | Path, names: Iterable[str]) -> None:
    """Hold parameter names against the notebook's cell tagged ``parameters``.

    Raises:
        ValueError: names the parameter, the notebook and the parameters that it knows.
        FileNotFoundError: names the notebook.
    """
    path = Path(notebook)
    if not path.is_file():
        raise FileNotFoundError(f"no notebook {path}")
    try:
        known = list(inspect_notebook(path))
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: expected a notebook with a kernel and a parameters cell ({error})") from error
    for name in names:
        if name not in known:
            raise ValueError(f"unknown parameter {name}: {path.name} knows {', '.join(known) or 'none'}")


def is_comparable(parameters: Iterable[str]) -> bool:
    """Whether the baselines hold under these parameters: device and profile choose one, any other leaves them."""
    return set(parameters) <= OWN_PARAMETERS


def run_notebook(notebook: str | Path, parameters: Mapping[str, Value] | None = None, out_dir: str | Path = RUNS, *,
                 baselines: str | Path = BASELINES, cell_timeout: int = 900, timeout: float = 3600,
                 threads: int | None = None, progress: Callable[[str], object] | None = None,
                 stop: threading.Event | None = None) -> Outcome:
    """Run one notebook and judge it.

    The kernel is this interpreter and works in the caller's folder, so a relative path among the parameters means what
    it means to the caller. ``<name>.ipynb`` and ``<name>.html`` in ``out_dir`` are replaced only by a run that ends
    well; what a failed run had executed is ``<name>.failed.ipynb``. ``<name>.metrics.json`` goes before the run, so
    that old figures never stand for new ones.

    Args:
        notebook: the file.
        parameters: scalars by name; ``device`` "cpu" and ``profile`` "default" where they are not among them. With any
            other parameter the baselines do not apply, and nothing is compared.
        out_dir: created where it is missing; the notebook gets its absolute path as ``out_dir``.
        baselines: the folder of ``<device>-<profile>.json``.
        cell_timeout, timeout: seconds for one cell, and for the whole run with the start of its kernel.
        threads: ``OMP_NUM_THREADS`` of the run; as inherited where None.
        progress: called with what papermill writes of its progress bar.
        stop: the run is ended when this is set.

    Raises:
        ValueError, FileNotFoundError: bad input, before anything runs.
        OSError: ``out_dir`` cannot be written.
    """
    source, out = Path(notebook), Path(out_dir).absolute()
    if "out_dir" in (parameters or {}):
        raise ValueError("out_dir is not given as a parameter: the gate sets it (--out)")
    values: dict[str, Value] = {**DEFAULTS, **(parameters or {}), "out_dir": str(out)}
    check_parameters(source, values)
    device, profile = str(values["device"]), str(values["profile"])
    baseline = report.load_baseline(report.baseline_path(baselines, device, profile), source.stem)

    out.mkdir(parents=True, exist_ok=True)
    metrics = report.metrics_path(out, source.stem)
    metrics.unlink(missing_ok=True)
    # One name per notebook, so that a rerun sweeps away what a killed run left.
    partial = out / f".{source.stem}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    start = time.monotonic()
    try:
        executed = partial / source.name
        error = _run_papermill(source, executed, values, cell_timeout, timeout, threads, progress, stop)
        if not error and not metrics.is_file():
            error = f"left no figures: its last cell should call report.record(..., notebook={source.stem!r})"
        failed = out / f"{source.stem}.failed.ipynb"
        failed.unlink(missing_ok=True)
        if not error:
            made = report.load_figures(metrics)
            if (made.profile, made.device) != (profile, device):
                error = f"recorded its figures as {made.device}-{made.profile}, run as {device}-{profile}"
        if error:
            if executed.is_file():
                os.replace(executed, failed)
            return Outcome(source.stem, time.monotonic() - start, error, {}, [])
        report.write_text(out / f"{source.stem}.html", book.to_html(executed, pictures=source.parent))
        os.replace(executed, out / source.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    rows = report.compare(made.figures, baseline) if is_comparable(values) else report.list_uncompared(made.figures)
    return Outcome(source.stem, time.monotonic() - start, "", made.figures, rows, made.memory, made.hardware)


def run_notebooks(notebooks: Iterable[Path], parameters: Mapping[str, Value], out_dir: str | Path = RUNS, *,
                  jobs: int = 1, keep_going: bool = False, progress: Callable[[str], object] | None = None,
                  baselines: str | Path = BASELINES, cell_timeout: int = 900,
                  timeout: float = 3600) -> Iterator[Outcome]:
    """Run several notebooks, ``jobs`` at a time, and yield their outcomes in the given order.

    The parameters are held against every notebook before the first one runs. After a failure the notebooks that have
    not started are not run, unless ``keep_going``.

    Raises:
        ValueError, FileNotFoundError, OSError: see :func:`run_notebook`.
    """
    paths = list(notebooks)
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    for path in paths:
        check_parameters(path, {**DEFAULTS, **parameters, "out_dir": None})
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    failed, stop = threading.Event(), threading.Event()

    def run_one(path: Path) -> Outcome:
        if failed.is_set():
            return Outcome(path.stem, 0.0, "not run: a notebook before it failed", {}, [])
        outcome = run_notebook(path, parameters, out_dir, baselines=baselines, cell_timeout=cell_timeout,
                               timeout=timeout, threads=threads, progress=progress if jobs == 1 else None, stop=stop)
        if not outcome.passed and not keep_going:
            failed.set()
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(run_one, paths)
        finally:
            # Reached early by Ctrl-C or an error: the runs in progress end, and their files are swept.
            failed.set()
            stop.set()


def check_baseline_parameters(parameters: Mapping[str, Value], seeds: Sequence[int] = ()) -> None:
    """Refuse to make baselines under parameters with which they would not be compared, or of too few seeds.

    Raises:
        ValueError: names those parameters, or the seeds; a GPU's baselines are made over seeds only.
    """
    if not is_comparable(parameters):
        extra = ", ".join(sorted(set(parameters) - OWN_PARAMETERS))
        raise ValueError(f"baselines hold for device and profile only, not with {extra} set")
    if len(seeds) < report.ENOUGH_SEEDS and (seeds or str(parameters.get("device", "cpu")).startswith("cuda")):
        raise ValueError(f"tolerances need {report.ENOUGH_SEEDS} seeds at least (--seeds 0,1,2), got "
                         f"{', '.join(map(str, seeds)) or 'none'}")


def update_baselines(outcomes: Iterable[Outcome], parameters: Mapping[str, Value],
                     baselines: str | Path = BASELINES, seeds: Sequence[int] = ()) -> Path:
    """Make the figures of these runs the baselines: the only way in which baselines change.

    Args:
        outcomes: of one run each, whose tolerances stay as they are; or, with ``seeds``, of
            :func:`diffslic.regression.run_seeds`: the tolerances are then those of the outcomes' rows.

    Returns:
        The file that was written.

    Raises:
        ValueError: a run that failed, other parameters than device and profile, too few seeds, or a figure that is
            NaN, named.
    """
    values = {**DEFAULTS, **parameters}
    check_baseline_parameters(values, seeds)
    outcomes = list(outcomes)
    for outcome in outcomes:
        if outcome.error:
            raise ValueError(f"baselines stay as they are: notebook {outcome.notebook}: {outcome.error}")
    path = report.baseline_path(baselines, str(values["device"]), str(values["profile"]))
    for outcome in outcomes:
        made_by = {**outcome.hardware, "seeds": list(seeds), "seconds": outcome.seconds, "memory_mb": outcome.memory}
        tolerances = {row.figure: row.tolerance for row in outcome.rows} if seeds else None
        report.update_baseline(path, outcome.notebook, outcome.figures, tolerances, made_by)
    return path


def _run_papermill(source: Path, executed: Path, values: Mapping[str, Value], cell_timeout: int, timeout: float,
                   threads: int | None, progress: Callable[[str], object] | None,
                   stop: threading.Event | None) -> str:
    """Run papermill in a process of its own. Returns why it failed, or an empty string."""
    kernels = executed.parent / "kernels" / "python3"
    kernels.mkdir(parents=True)
    # A kernel "python3" among the user's own would win over the environment's: this one, in JUPYTER_PATH, wins over it.
    launch = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": launch, "display_name": "Python 3", "language": "python"}
    (kernels / "kernel.json").write_text(json.dumps(kernel), encoding="utf-8")
    inherited = os.environ.get("JUPYTER_PATH")
    environment = {**os.environ, "JUPYTER_PATH": os.pathsep.join(filter(None, [str(executed.parent), inherited]))}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "papermill", str(source), str(executed), "--kernel", "python3",
               "--cwd", os.getcwd(), "--execution-timeout", str(cell_timeout), "--log-level", "ERROR",
               "--progress-bar" if progress else "--no-progress-bar"]
    for name, value in values.items():
        # A string goes in raw: "3" stays a string where the caller made it one.
        command += ["-r" if isinstance(value, str) else "-p", name, str(value)]
    log = executed.parent / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=sink)
    try:
        ended = _watch(process, log, timeout, progress, stop)
    finally:
        _end(process)
    if not ended:
        return "stopped" if stop is not None and stop.is_set() else f"ran past its {timeout:g} s"
    if process.returncode < 0:
        return f"killed by signal {-process.returncode}"
    return _reason(log.read_text(encoding="utf-8", errors="replace")) if process.returncode else ""


def _watch(process: subprocess.Popen[bytes], log: Path, timeout: float, progress: Callable[[str], object] | None,
           stop: threading.Event | None) -> bool:
    """Pass the log on while the process runs. False where it still runs at the end of its time or at ``stop``."""
    deadline = time.monotonic() + timeout
    with log.open(encoding="utf-8", errors="replace", newline="") as lines:
        while process.poll() is None:
            text = lines.read()
            # Only the bar: a traceback is told in one line at the end.
            if progress and text.startswith("\r"):
                progress(text)
            if time.monotonic() > deadline or (stop is not None and stop.is_set()):
                return False
            time.sleep(0.1)
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a run: papermill, its kernel (which leads a session of its own) and their children."""
    if process.poll() is not None:
        return
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    process.wait()
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=5)  # a killed process runs on for a moment


def _reason(log: str) -> str:
    """The line of a traceback that says what went wrong: the last that names an exception."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", log)
    errors = re.findall(r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", plain, re.MULTILINE)
    told = [line.strip() for line in errors if not line.rstrip().endswith(":")]
    return told[-1] if told else "papermill ended with an error and gave no reason"
