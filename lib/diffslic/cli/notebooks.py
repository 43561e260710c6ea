"""Running the notebooks, and a site of them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffslic import report
from diffslic.cli.common import Json, app, numbers

PROFILES = ("smoke", "default", "full")


def _report_run(outcomes: Sequence[Any], out: Path, pages: Path, note: str, as_json: bool) -> None:
    """The end of ``diffslic notebooks``: the table of figures, what failed, and where to look."""
    if as_json:
        rows = [{"notebook": outcome.notebook, "seconds": outcome.seconds, "memory_mb": outcome.memory,
                 "error": outcome.error,
                 "figures": [row._asdict() for row in outcome.rows]} for outcome in outcomes]
        print(report.to_json(rows), end="")
        return
    print(report.table((outcome.notebook, row) for outcome in outcomes for row in outcome.rows))
    if note:
        print(note)
    # Paths as one would type them here, where that is shorter.
    out, pages = (each.relative_to(Path.cwd()) if each.is_relative_to(Path.cwd()) else each
                  for each in (out.resolve(), pages.resolve()))
    for outcome in outcomes:
        page = pages / f"{outcome.notebook}.{'failed.ipynb' if outcome.error else 'html'}"
        told = f"FAILED: {outcome.error}" if outcome.error else ("passed" if outcome.passed else "FAILED")
        print(f"{outcome.notebook}: {told} ({outcome.seconds:.0f} s){f', see {page}' if page.exists() else ''}")
    print(f"also: {out / 'report.csv'}, {out / 'report.xml'}")


@app.command()
def notebooks(
    only: Annotated[list[str] | None, typer.Option(help="Only this notebook; may be repeated.")] = None,
    p: Annotated[list[str] | None, typer.Option("-p", metavar="NAME VALUE",
                                                help="A parameter of the notebook; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    profile: Annotated[str, typer.Option(help="smoke, default or full.")] = "default",
    out: Annotated[Path | None, typer.Option(help="Where results go.", show_default="runs")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time.")] = 1,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Run the rest after a failure.")] = False,
    update_baseline: Annotated[bool, typer.Option("--update-baseline",
                                                  help="Make these figures the baselines.")] = False,
    seeds: Annotated[str | None, typer.Option(help="Run with each of these seeds, such as 0,1,2; with "
                                                   "--update-baseline tolerances are made of their spread.",
                                              show_default="each notebook's own, once")] = None,
    folder: Annotated[Path | None, typer.Option(help="The folder of notebooks.", show_default="notebooks")] = None,
    baselines: Annotated[Path | None, typer.Option(help="The folder of baselines.",
                                                   show_default="tests/baselines")] = None,
    cell_timeout: Annotated[int, typer.Option(help="Seconds for one cell.")] = 7200,
    timeout: Annotated[float, typer.Option(help="Seconds for one notebook.")] = 14400,
    as_json: Json = False,
) -> None:
    """Run notebooks and compare their figures with the baselines.

    Exit code 0: all pass; 1: a notebook failed or a figure is out of tolerance; 2: bad input. Relative paths among the
    parameters start from the folder where you are. With parameters or seeds of your own nothing is compared.

    Example: diffslic notebooks --only motion_segmentation -p dataset davis2016 -p root ../DAVIS2016

    Baselines of a GPU: diffslic notebooks --device cuda --profile full --seeds 0,1,2 --update-baseline
    """
    from diffslic import gate, regression
    from diffslic.training import check_device

    report.check_choice("profile", profile, PROFILES)
    values: dict[str, gate.Value] = {"device": device, "profile": profile}
    for pair in p or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"-p takes a name and a value, got only {pair!r}")
        values[name] = gate.parse_value(value)
    out, folder, baselines = out or gate.RUNS, folder or gate.NOTEBOOKS, baselines or gate.BASELINES
    drawn = [] if seeds is None else numbers(seeds, "--seeds", "0,1,2")
    if update_baseline:
        gate.check_baseline_parameters(values, drawn)
    if seeds is not None and (len(drawn) < 2 or len(set(drawn)) < len(drawn)):
        raise ValueError("--seeds must be two or more, all different, such as 0,1,2, for there is no spread over "
                         f"fewer; got {seeds!r}, a single one is -p seed {drawn[0]}")
    check_device(device)
    # The bar is for a person: it stays out of a log and away from --json.
    bar = None if as_json else lambda text: (sys.stderr.write(text), sys.stderr.flush())
    how = {"jobs": jobs, "progress": bar, "keep_going": keep_going, "baselines": baselines,
           "cell_timeout": cell_timeout, "timeout": timeout}
    paths, outcomes = gate.find_notebooks(only or (), folder), []
    for outcome in (regression.run_seeds(paths, drawn, values, out, **how) if drawn else
                    gate.run_notebooks(paths, values, out, **how)):
        outcomes.append(outcome)
        print(f"\n{outcome.notebook}: {outcome.seconds:.0f} s", file=sys.stderr)
    regression.write_reports(outcomes, out)
    note = "" if gate.is_comparable(values) else "not compared: the baselines hold for device and profile only"
    if drawn:
        note = f"means over seeds {seeds}, each with the tolerance that their spread makes"
    if update_baseline:
        note = f"baselines written to {gate.update_baselines(outcomes, values, baselines, drawn)}"
    # Of several seeds the first one's pages stand for all.
    _report_run(outcomes, out, out / f"seed{drawn[0]}" if drawn else out, note, as_json)
    if not update_baseline and not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def regression(
    device: Annotated[str, typer.Option(help="cuda, cuda:1, or cpu to try the run itself.")] = "cuda",
    profile: Annotated[str, typer.Option(help="Of the notebooks: smoke, default or full.")] = "full",
    out: Annotated[Path | None, typer.Option(help="Where results go.", show_default="runs/gpu")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this notebook; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time.")] = 1,
) -> None:
    """Tests, notebooks and benchmarks of a device, in turn; one page of them, readable offline.

    Exit code 0: all is well; 1: something failed, and the page says what; 2: there is no such device.

    Example: diffslic regression --device cuda --profile full --out runs/gpu
    """
    from diffslic import gate
    from diffslic import regression as whole
    from diffslic.training import check_device

    check_device(device)
    report.check_choice("profile", profile, PROFILES)
    page, passed = whole.run(device, profile, out or gate.RUNS / "gpu", only=only or (), jobs=jobs,
                             progress=lambda line: print(line, file=sys.stderr, flush=True))
    print(f"{'passed' if passed else 'FAILED'}, see {page}")
    if not passed:
        raise typer.Exit(1)


@app.command()
def book(
    runs: Annotated[Path | None, typer.Option(help="Where the executed notebooks are.", show_default="runs")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the site goes.", show_default="runs/book")] = None,
) -> None:
    """Make one static site, readable offline, of the executed notebooks, with and without solutions.

    Example: diffslic book --runs runs --out runs/book
    """
    from diffslic import book as pages
    from diffslic import gate

    runs = runs or gate.RUNS
    executed = [runs / path.name for path in gate.find_notebooks()]
    print(pages.build(executed, out or runs / "book", pictures=gate.NOTEBOOKS))
