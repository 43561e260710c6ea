"""The page of a regression run: what it ran on, what passed, every figure beside its baseline, what was measured."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffslic import report
from diffslic.gate import Outcome

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>body {{ font: 16px/1.5 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }}
table {{ border-collapse: collapse; margin: 1em 0 }} th, td {{ text-align: left; padding: .2em 1em .2em 0;
border-bottom: 1px solid #ddd; vertical-align: top }} td {{ font-variant-numeric: tabular-nums }}
.bad {{ color: #b00020; font-weight: bold }} .off {{ color: #666 }}</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


class Step(NamedTuple):
    """One part of a regression run. ``error`` is empty where it went well."""

    name: str
    command: str  # as one would type it
    error: str
    seconds: float


def write(folder: Path, device: str, profile: str, hardware: Mapping[str, str], steps: Sequence[Step],
          outcomes: Sequence[Outcome], tests: Mapping[str, str], measured: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write ``index.html`` into the folder of a run, readable offline, with links to the files beside it.

    Args:
        hardware: see :func:`diffslic.hardware.describe`.
        steps: those that have ended.
        outcomes: of the notebooks.
        tests: each with what went wrong, see :func:`diffslic.regression.test_cases`.
        measured: by headline what a benchmark wrote, or nothing: ``notes``, and ``rows`` with the same keys each.

    Returns:
        The page.
    """
    body = [_hardware(device, hardware), _steps(steps), _tests(tests), _notebooks(outcomes, folder),
            _figures(outcomes), *(_benchmark(headline, told) for headline, told in measured.items())]
    path = folder / "index.html"
    title = html.escape(f"diffslic on {device}, profile {profile}")
    report.write_text(path, PAGE.format(title=title, body="\n".join(body)))
    return path


def _hardware(device: str, hardware: Mapping[str, str]) -> str:
    told = table(["", ""], [[key, value] for key, value in hardware.items()])
    return told if device.startswith("cuda") else f"<p>This run was not made on a GPU.</p>\n{told}"


def _steps(steps: Sequence[Step]) -> str:
    rows = [[step.name, "FAILED: " + step.error if step.error else "passed", f"{step.seconds:.0f}", step.command]
            for step in steps]
    return "<h2>Steps</h2>\n" + table(["step", "outcome", "seconds", "command"], rows)


def _tests(tests: Mapping[str, str]) -> str:
    passed = sum(not told for told in tests.values())
    skipped = sum(told.startswith("skipped") for told in tests.values())
    count = f"{passed} passed, {skipped} skipped, {len(tests) - passed - skipped} failed"
    rows = [[name, told.replace("failed", "FAILED", 1)] for name, told in tests.items() if told]
    return f"<h2>Tests</h2>\n<p>{count if tests else 'none ran'}</p>\n" + table(["test", "outcome"], rows)


def _notebooks(outcomes: Sequence[Outcome], folder: Path) -> str:
    rows = []
    for outcome in outcomes:
        pages = [name for name in (f"{outcome.notebook}.html", f"{outcome.notebook}.ipynb",
                                   f"{outcome.notebook}.failed.ipynb") if (folder / name).exists()]
        told = f"FAILED: {outcome.error}" if outcome.error else ("passed" if outcome.passed else "FAILED: a figure")
        rows.append([outcome.notebook, told, f"{outcome.seconds:.0f}", _number(outcome.memory),
                     " ".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a>' for name in pages)])
    return "<h2>Notebooks</h2>\n" + table(["notebook", "outcome", "seconds", "peak memory, MB", "pages"], rows,
                                          markup={4})


def _figures(outcomes: Sequence[Outcome]) -> str:
    rows = [[outcome.notebook, row.figure, _number(row.value), _number(row.baseline), _number(row.tolerance),
             row.verdict] for outcome in outcomes for row in outcome.rows]
    return "<h2>Figures</h2>\n" + table(["notebook", *report.Row._fields], rows)


def _benchmark(headline: str, measured: Mapping[str, Any]) -> str:
    rows = measured.get("rows", [])
    notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in measured.get("notes", ["nothing was measured"]))
    return f"<h2>{headline}</h2>\n{notes}" + table(list(rows[0]) if rows else [], [
        [value if isinstance(value, str) else _number(value) for value in row.values()] for row in rows])


def table(header: Sequence[str], rows: Iterable[Sequence[str]], markup: Iterable[int] = ()) -> str:
    """A table of texts, whose columns in ``markup`` are HTML already; nothing where there are no rows."""
    lines = []
    for row in rows:
        cells = [cell if column in markup else html.escape(cell) for column, cell in enumerate(row)]
        lines.append("".join(f"<td{_colour(plain)}>{cell}</td>" for plain, cell in zip(row, cells)))
    if not lines:
        return ""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "\n</table>"


def _colour(text: str) -> str:
    if text.startswith("FAIL"):
        return ' class="bad"'
    return ' class="off"' if text.startswith(("skipped", "new", "not compared")) else ""


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.5g}"
