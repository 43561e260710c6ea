"""The figures of a notebook: written by its last cell, kept as baselines, compared, shown as a table.

A figure is a number with a name. It is never changed on its way: one that is not a number (NaN) is written down as
such (``null`` in JSON), and fails in the comparison.
"""

import json
import math
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffslic import hardware
from diffslic.files import written_whole

DIRECTIONS = ("both", "higher", "lower")
# Given to a figure that enters a baseline; edited by hand in the file where a figure deserves something tighter.
NEW_TOLERANCE: dict[str, Any] = {"abs": 0.01, "rel": 0.05, "direction": "both"}
ENOUGH_SEEDS = 3  # to make a tolerance of
ROUNDING = 1e-3  # by which, relative to itself, a figure of one seed may differ from machine to machine
MADE_BY = "made_by"  # in a file of baselines, beside the notebooks: what made each notebook's figures


class Record(NamedTuple):
    """What a notebook left: the figures, and under which profile and on which device they were made."""

    notebook: str
    profile: str
    device: str
    figures: dict[str, float]
    hardware: dict[str, str]  # see diffslic.hardware.describe; empty in a file that does not tell
    memory: float  # the most that its process held, in MB, on a GPU of the GPU's; NaN in a file that does not tell


class Baseline(NamedTuple):
    """What one figure should be. ``direction`` names the good side: with "higher" only a lower value fails."""

    value: float
    abs: float
    rel: float
    direction: str

    @property
    def tolerance(self) -> float:
        """The larger of the absolute and the relative tolerance, in the figure's own unit."""
        return max(self.abs, self.rel * math.fabs(self.value))


class Row(NamedTuple):
    """One figure beside its baseline. ``verdict``: "pass", "FAIL", "new" (no baseline) or "not compared"."""

    figure: str
    value: float
    baseline: float
    tolerance: float
    verdict: str


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def to_json(value: Any) -> str:
    """JSON that every reader accepts: what is not a finite number becomes ``null``."""

    def plain(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {str(key): plain(inner) for key, inner in item.items()}
        if isinstance(item, list | tuple):
            return [plain(inner) for inner in item]
        return None if isinstance(item, float) and not math.isfinite(item) else item

    return json.dumps(plain(value), indent=2) + "\n"


def metrics_path(out_dir: str | Path, notebook: str) -> Path:
    """Where :func:`record` writes the figures of a notebook."""
    return Path(out_dir) / f"{notebook}.metrics.json"


def check_choice(name: str, value: object, choices: Iterable[object]) -> None:
    """For the cell of a notebook that checks its parameters.

    Raises:
        ValueError: names the parameter, what was expected and what came.
    """
    choices = list(choices)
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_writable(name: str, folder: str | Path) -> None:
    """Make a folder that a parameter names, before hours of work have nowhere to go.

    Raises:
        OSError: it cannot be made, or nothing can be written there; names the parameter and the folder.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{name}: nothing can be written to {folder} ({error.strerror})") from error


def record(figures: Mapping[str, Any], *, out_dir: str | Path, notebook: str, profile: str, device: str) -> Path:
    """Write the figures of a notebook to ``<out_dir>/<notebook>.metrics.json``: its last cell.

    Beside them stand the hardware, the versions, and the most memory that this process has held.

    Args:
        figures: numbers by name; a tensor of one element counts as a number.
        out_dir: created where it is missing.
        notebook: its file name without ``.ipynb``.
        profile: "smoke", "default" or "full".
        device: "cpu", "cuda", "cuda:1" ...

    Raises:
        ValueError: no figure at all, or one that is no number, named.
        OSError: names the file that cannot be written.
    """
    if not figures:
        raise ValueError(f"notebook {notebook}: no figures to record")
    numbers = {}
    for name, value in figures.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"notebook {notebook}: figure {name} must be a number, got {value!r}") from error
    path = metrics_path(out_dir, notebook)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json({"notebook": notebook, "profile": profile, "device": str(device), "figures": numbers,
                              "hardware": hardware.describe(str(device)),
                              "memory": hardware.peak_memory(str(device))}))
    return path


def load_figures(path: str | Path) -> Record:
    """Read what :func:`record` wrote; ``null`` comes back as NaN.

    Raises:
        FileNotFoundError, ValueError: name the file.
    """
    content = _read_json(Path(path))
    try:
        figures = {name: _number(value) for name, value in content["figures"].items()}
        return Record(content["notebook"], content["profile"], content["device"], figures,
                      content.get("hardware", {}), _number(content.get("memory")))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: expected the figures that report.record writes, got something else") from error


def baseline_path(folder: str | Path, device: str, profile: str) -> Path:
    """``<folder>/<device>-<profile>.json``; every CUDA device shares one file."""
    return Path(folder) / f"{device.split(':')[0]}-{profile}.json"


def load_baseline(path: str | Path, notebook: str) -> dict[str, Baseline]:
    """The baselines of one notebook, by figure; empty where there is no file or no entry yet.

    Raises:
        ValueError: names the file, the figure and what is wrong with its entry.
    """
    if not Path(path).exists() or notebook == MADE_BY:
        return {}
    baselines = {}
    for name, entry in _read_json(Path(path)).get(notebook, {}).items():
        if set(entry) != set(Baseline._fields):
            raise ValueError(f"{path}: {notebook}, {name}: expected value, abs, rel and direction, "
                             f"got {', '.join(entry) or 'nothing'}")
        if entry["direction"] not in DIRECTIONS:
            raise ValueError(f"{path}: {notebook}, {name}: direction must be one of {', '.join(DIRECTIONS)}, "
                             f"got {entry['direction']!r}")
        numbers = [entry[key] for key in ("value", "abs", "rel")]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise ValueError(f"{path}: {notebook}, {name}: value, abs and rel must be numbers, got {numbers}")
        baselines[name] = Baseline(**entry)
    return baselines


def compare(figures: Mapping[str, float], baseline: Mapping[str, Baseline]) -> list[Row]:
    """Hold each figure against its own baseline.

    NaN fails, with or without a baseline; a figure of the baseline that is missing fails; a figure without a baseline
    is reported as new and does not fail.

    Returns:
        One row per figure in the order of ``figures``, then one per missing figure.
    """
    rows = [_judge(name, value, baseline.get(name)) for name, value in figures.items()]
    return rows + [_judge(name, math.nan, expected) for name, expected in baseline.items() if name not in figures]


def list_uncompared(figures: Mapping[str, float]) -> list[Row]:
    """The rows of figures for which no baseline can hold (other data than the baseline's); NaN still fails."""
    return [row._replace(verdict="not compared") if row.verdict == "new" else row for row in compare(figures, {})]


def tolerance_of(values: Sequence[float]) -> float:
    """How far a figure may lie from its mean over seeds, in its own unit: three sample standard deviations.

    At least the tolerance of a new figure, and a thousandth of the mean, since one seed's figure differs a little from
    machine to machine. Each of up to ten values lies within it: none of n is further from their mean than
    (n - 1) / sqrt(n) deviations. Of runs with another seed, were figures normally distributed, one in 8 would lie
    outside after three seeds, one in 19 after five, one in 50 after ten.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a spread needs two values at least, got {len(values)}")
    return max(3 * statistics.stdev(values), NEW_TOLERANCE["abs"], ROUNDING * math.fabs(statistics.fmean(values)))


def update_baseline(path: str | Path, notebook: str, figures: Mapping[str, float],
                    tolerances: Mapping[str, float] | None = None, made_by: Mapping[str, Any] | None = None) -> None:
    """Make these figures the baseline of a notebook. Directions of known figures stay as they are.

    Args:
        tolerances: of each figure, in its own unit; where not given those of known figures stay as they are.
        made_by: what made the figures, kept in the file under :data:`MADE_BY`.

    Raises:
        ValueError: a figure that is not a finite number, named.
    """
    path = Path(path)
    if notebook == MADE_BY:
        raise ValueError(f"a notebook cannot be called {MADE_BY}: in a file of baselines that is what made them")
    known = load_baseline(path, notebook)
    entries = {}
    for name, value in figures.items():
        if not math.isfinite(value):
            raise ValueError(f"notebook {notebook}: figure {name} is {value}, which cannot be a baseline")
        entries[name] = {**(known[name]._asdict() if name in known else NEW_TOLERANCE), "value": value}
        if tolerances is not None:
            entries[name] |= {"abs": tolerances[name], "rel": 0.0}
    content = _read_json(path) if path.exists() else {}
    origins = content.pop(MADE_BY, {})
    if made_by is not None:
        origins = dict(sorted({**origins, notebook: made_by}.items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json({**({MADE_BY: origins} if origins else {}),
                              **dict(sorted({**content, notebook: entries}.items()))}))


def table(rows: Iterable[tuple[str, Row]]) -> str:
    """Lines of text for (notebook, row) pairs, columns aligned; "-" where there is no number."""
    header = ("notebook", *Row._fields)
    lines = [header, *((notebook, *map(_cell, row)) for notebook, row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _cell(item: str | float) -> str:
    if isinstance(item, str):
        return item
    return "-" if math.isnan(item) else f"{item:.5g}"


def _judge(name: str, value: float, baseline: Baseline | None) -> Row:
    if baseline is None:
        return Row(name, value, math.nan, math.nan, "new" if math.isfinite(value) else "FAIL")
    difference = value - baseline.value
    allowed = {
        "both": math.fabs(difference) <= baseline.tolerance,
        "higher": difference >= -baseline.tolerance,
        "lower": difference <= baseline.tolerance,
    }[baseline.direction]
    # A comparison with NaN is false; an infinite value on the good side is no figure either.
    verdict = "pass" if allowed and math.isfinite(value) else "FAIL"
    return Row(name, value, baseline.value, baseline.tolerance, verdict)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
