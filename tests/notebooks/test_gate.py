"""The gate fails when it should: tiny notebooks, each wrong in one way."""

import json
import os
import sys
import threading
import time
from xml.etree import ElementTree

import nbformat
import psutil
import pytest

from diffslic import gate, report
from diffslic.cli import main

pytestmark = pytest.mark.notebook

PARAMETERS = 'device = "cpu"\nprofile = "default"\nout_dir = "runs"\nscale = 1.0\nroot = ""'
RECORD = ('from diffslic import report\n'
          'report.record({figures}, out_dir=out_dir, notebook="{name}", profile=profile, device=device)')


def write(folder, *sources, name="toy", figures='{"j": 0.5 * scale}', parameters=PARAMETERS):
    """A notebook with these code cells between the parameters and the record (none where ``figures`` is empty)."""
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    last = [RECORD.format(figures=figures, name=name)] if figures else []
    cells = [first, *map(nbformat.v4.new_code_cell, [*sources, *last])]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def baseline(folder, name="toy", **figures):
    """Baselines of value +- 0.01 by figure, as cpu-default."""
    path = report.baseline_path(folder, "cpu", "default")
    report.update_baseline(path, name, figures)
    return folder


def run(path, tmp_path, **options):
    return gate.run_notebook(path, options.pop("parameters", None), tmp_path / "runs",
                             baselines=tmp_path / "baselines", **options)


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "runs").iterdir())


def test_a_good_run_leaves_notebook_page_and_figures(tmp_path, monkeypatch):
    # The user's own kernel "python3" is a broken one, and the caller stands in another folder than the notebook.
    kernel = tmp_path / "data" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").mkdir()
    check = f"import os, sys\nassert os.path.isdir(root) and sys.executable == {sys.executable!r}"
    path = write(tmp_path / "books", check, figures='{"scale is text": float(scale == "3"), "relative": 1.0}')
    bar = []
    outcome = run(path, tmp_path, parameters={"root": "frames", "scale": "3"}, progress=bar.append)
    assert outcome.error == "" and outcome.passed
    assert outcome.figures == {"scale is text": 1.0, "relative": 1.0}
    assert {row.verdict for row in outcome.rows} == {"not compared"}
    assert left(tmp_path) == ["toy.html", "toy.ipynb", "toy.metrics.json"]
    assert "4/4" not in "".join(bar[:1]) and "4/4" in "".join(bar)


def test_each_figure_against_its_baseline(tmp_path):
    path = write(tmp_path / "books", figures='{"good": 1.0, "corrupted": 0.5, "nan": float("nan"), "new": 7}')
    baseline(tmp_path / "baselines", good=1.0, corrupted=0.8, nan=0.5, missing=1.0)
    outcome = run(path, tmp_path)
    verdicts = {row.figure: row.verdict for row in outcome.rows}
    assert verdicts == {"good": "pass", "corrupted": "FAIL", "nan": "FAIL", "new": "new", "missing": "FAIL"}
    assert not outcome.error and not outcome.passed


def test_a_mistyped_parameter_is_bad_input(tmp_path, capsys):
    write(tmp_path / "books")
    code = main(["notebooks", "-p", "sclae", "3", "--folder", str(tmp_path / "books"), "--out", str(tmp_path / "runs")])
    assert code == 2 and not (tmp_path / "runs").exists()
    told = capsys.readouterr().err.splitlines()
    assert told == ["diffslic: unknown parameter sclae: toy.ipynb knows device, profile, out_dir, scale, root"]


def test_a_raising_cell_fails_and_keeps_what_an_earlier_run_left(tmp_path):
    path = write(tmp_path / "books", "raise ValueError('masks of 3 frames, flow of 4')")
    (tmp_path / "runs").mkdir()
    for name in ("toy.html", "toy.ipynb", "toy.metrics.json"):
        (tmp_path / "runs" / name).write_text("{}")
    outcome = run(path, tmp_path)
    assert outcome.error == "ValueError: masks of 3 frames, flow of 4" and not outcome.passed
    # The stale figures are gone: they cannot be taken for this run's.
    assert left(tmp_path) == ["toy.failed.ipynb", "toy.html", "toy.ipynb"]
    assert (tmp_path / "runs" / "toy.html").read_text() == "{}"


def test_no_fresh_figures_fail(tmp_path):
    path = write(tmp_path / "books", "x = 1", figures="")
    report.record({"j": 1}, out_dir=tmp_path / "runs", notebook="toy", profile="default", device="cpu")
    outcome = run(path, tmp_path)
    assert "left no figures" in outcome.error and not outcome.passed


def test_figures_of_another_profile_fail(tmp_path):
    path = write(tmp_path / "books", "profile = 'smoke'")
    assert run(path, tmp_path).error == "recorded its figures as cpu-smoke, run as cpu-default"


def test_a_cell_that_takes_too_long_fails(tmp_path):
    path = write(tmp_path / "books", "import time\ntime.sleep(60)")
    outcome = run(path, tmp_path, cell_timeout=1)
    assert "timed out" in outcome.error and not outcome.passed


def test_a_run_that_takes_too_long_fails(tmp_path):
    outcome = run(write(tmp_path / "books", "import time\ntime.sleep(60)"), tmp_path, timeout=2)
    assert outcome.error == "ran past its 2 s" and not outcome.passed


def test_a_killed_kernel_fails(tmp_path):
    path = write(tmp_path / "books", "import os\nos.kill(os.getpid(), 9)")
    assert "Kernel died" in run(path, tmp_path).error


def test_a_killed_run_fails_and_a_rerun_sweeps_it(tmp_path):
    path = write(tmp_path / "books", "import os\nif scale == 1.0:\n    os.kill(os.getppid(), 9)")
    partial = tmp_path / "runs" / ".toy.partial"
    partial.mkdir(parents=True)
    (partial / "toy.ipynb").write_text("half of")
    assert run(path, tmp_path).error == "killed by signal 9"
    assert run(path, tmp_path, parameters={"scale": 2.0}).figures == {"j": 1.0}
    assert left(tmp_path) == ["toy.html", "toy.ipynb", "toy.metrics.json"]


def test_an_interrupted_run_ends_with_its_kernel(tmp_path):
    # The kernel says who it is by a folder's name, made in one step, and is then interrupted in its sleep.
    path = write(tmp_path / "books", "import os, time\nos.makedirs(f'{root}/{os.getpid()}')\ntime.sleep(60)")
    kernels, stop = tmp_path / "kernels", threading.Event()

    def interrupt():
        while not list(kernels.glob("*")):
            time.sleep(0.1)
        stop.set()

    kernels.mkdir()
    threading.Thread(target=interrupt, daemon=True).start()
    outcome = run(path, tmp_path, parameters={"root": str(kernels)}, stop=stop)
    assert outcome.error == "stopped"
    kernel = int(next(kernels.iterdir()).name)
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE


def test_the_command_from_baseline_to_failure(tmp_path, capsys):
    """Write baselines, pass, corrupt one, fail; two notebooks at a time."""
    folder, runs, baselines = (tmp_path / name for name in ("books", "runs", "baselines"))
    for name in ("a", "b"):
        write(folder, name=name)
    command = ["notebooks", "--folder", str(folder), "--out", str(runs), "--baselines", str(baselines), "--jobs", "2"]
    assert main([*command, "--update-baseline"]) == 0
    path = baselines / "cpu-default.json"
    content = json.loads(path.read_text())
    assert content["b"]["j"]["value"] == 0.5
    capsys.readouterr()

    content["b"]["j"]["value"] = 0.7
    path.write_text(json.dumps(content))
    assert main([*command, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [outcome["figures"][0]["verdict"] for outcome in told] == ["pass", "FAIL"]
    sheet = (runs / "report.csv").read_text().splitlines()
    assert len(sheet) == 3 and sheet[1].startswith("a,") and sheet[2].endswith("FAIL")
    suites = ElementTree.parse(runs / "report.xml").getroot()
    assert [(suite.get("name"), suite.get("tests"), suite.get("failures")) for suite in suites] == [
        ("a", "2", "0"), ("b", "2", "1")]
    assert json.loads(path.read_text()) == content


@pytest.mark.parametrize("keep_going, ran", [(False, ["b"]), (True, ["a", "b"])])
def test_after_a_failure(tmp_path, capsys, keep_going, ran):
    write(tmp_path / "books", name="a", figures='{"j": float("nan")}')
    write(tmp_path / "books", name="b", figures="", parameters=PARAMETERS + "\nraise RuntimeError('first')")
    (tmp_path / "books" / "README.md").write_text("Read [b](b.ipynb), then [a](a.ipynb).")
    command = ["notebooks", "--folder", str(tmp_path / "books"), "--out", str(tmp_path / "runs")]
    assert main(command + ["--keep-going"] * keep_going) == 1
    told = capsys.readouterr().out
    assert ("a: FAILED: not run" in told) == (ran == ["b"])
    assert "b: FAILED: RuntimeError: first" in told and "b.failed.ipynb" in told


@pytest.mark.parametrize(
    "arguments, told",
    [(["--only", "nothing"], "no notebook nothing in"), (["-p", "scale"], "-p takes a name and a value"),
     (["-p", "out_dir", "x"], "out_dir is not given as a parameter"), (["--jobs", "0"], "jobs must be at least 1"),
     (["--update-baseline", "-p", "scale", "2"], "not with scale set"), (["--jobs", "many"], "--jobs"),
     (["--nonsense"], "--nonsense")],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, told):
    write(tmp_path / "books")
    assert main(["notebooks", "--folder", str(tmp_path / "books"), "--out", str(tmp_path / "runs"), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and told in captured.err
    assert not (tmp_path / "runs").exists()


def test_an_out_dir_that_cannot_be_made_is_named(tmp_path, capsys):
    write(tmp_path / "books")
    (tmp_path / "runs").write_text("mine")
    assert main(["notebooks", "--folder", str(tmp_path / "books"), "--out", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path / "runs") in told and (tmp_path / "runs").read_text() == "mine"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_dir_without_permission_is_named(tmp_path, capsys):
    write(tmp_path / "books")
    (tmp_path / "runs").mkdir(mode=0o500)
    assert main(["notebooks", "--folder", str(tmp_path / "books"), "--out", str(tmp_path / "runs")]) == 2
    assert str(tmp_path / "runs") in capsys.readouterr().err


def test_a_notebook_without_parameters_or_kernel_is_bad_input(tmp_path):
    path = write(tmp_path / "books", parameters="x = 1")
    with pytest.raises(ValueError, match="unknown parameter device: toy.ipynb knows x"):
        gate.run_notebook(path, out_dir=tmp_path / "runs")
    path.write_text("not a notebook")
    with pytest.raises(ValueError, match="toy.ipynb"):
        gate.check_parameters(path, ["device"])
    with pytest.raises(FileNotFoundError, match="no notebook .*gone.ipynb"):
        gate.check_parameters(tmp_path / "gone.ipynb", ["device"])


def test_baselines_are_not_made_of_a_failed_run(tmp_path):
    outcome = gate.Outcome("toy", 1.0, "ValueError: no", {}, [])
    with pytest.raises(ValueError, match="baselines stay as they are: notebook toy: ValueError: no"):
        gate.update_baselines([outcome], {}, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text, value", [("3", 3), ("1e-3", 1e-3), ("True", True), ("None", None), ("240p", "240p"),
                                         ("../shared", "../shared")])
def test_values_from_the_command_line(text, value):
    parsed = gate.parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_reading_order(tmp_path):
    for name in ("a", "b", "c"):
        write(tmp_path, name=name)
    (tmp_path / "README.md").write_text("[c](c.ipynb) and [b](b.ipynb), once more [c](c.ipynb), [gone](gone.ipynb)")
    assert [path.stem for path in gate.find_notebooks(folder=tmp_path)] == ["c", "b", "a"]
    assert [path.stem for path in gate.find_notebooks(["a", "c"], tmp_path)] == ["c", "a"]
    with pytest.raises(FileNotFoundError, match="no notebook"):
        gate.find_notebooks(folder=tmp_path / "empty")
