"""Notebooks over seeds, and the regression run: what is told when something fails."""

import json
import re
import statistics
from importlib import import_module

import pytest
from bs4 import BeautifulSoup
from test_gate import PARAMETERS, write

from diffslic import gate, regression, report, summary
from diffslic.cli import main

pytestmark = pytest.mark.notebook

SEEDED = PARAMETERS + "\nseed = 0"


@pytest.fixture
def command(tmp_path):
    return ["notebooks", "--folder", str(tmp_path / "books"), "--out", str(tmp_path / "runs"), "--baselines",
            str(tmp_path / "baselines")]


def test_a_baseline_over_seeds(tmp_path, command, capsys):
    write(tmp_path / "books", parameters=SEEDED, figures='{"j": 0.5 + 0.1 * seed, "still": 0.25}')
    path = tmp_path / "baselines" / "cpu-default.json"
    report.update_baseline(path, "toy", {"j": 1.0})
    content = json.loads(path.read_text())
    content["toy"]["j"]["direction"] = "higher"
    path.write_text(json.dumps(content))

    assert main([*command, "--seeds", "0,1,4", "--update-baseline"]) == 0
    content, values = json.loads(path.read_text()), [0.5, 0.6, 0.9]
    assert content["toy"]["j"] == {"value": pytest.approx(2 / 3), "abs": pytest.approx(3 * statistics.stdev(values)),
                                   "rel": 0.0, "direction": "higher"}
    assert content["toy"]["still"] == {"value": 0.25, "abs": 0.01, "rel": 0.0, "direction": "both"}
    made = content["made_by"]["toy"]
    assert made["seeds"] == [0, 1, 4] and made["seconds"] > 0 and made["memory_mb"] > 10
    assert {"name", "python", "diffslic"} <= set(made)
    assert sorted(folder.name for folder in (tmp_path / "runs").glob("seed*")) == ["seed0", "seed1", "seed4"]

    capsys.readouterr()
    assert main([*command, "--json"]) == 0  # the notebook's own seed lies within
    [told] = json.loads(capsys.readouterr().out)
    assert told["notebook"] == "toy" and told["memory_mb"] > 10
    assert [figure["verdict"] for figure in told["figures"]] == ["pass", "pass"]


def test_seeds_alone_show_the_spread_and_change_no_baseline(tmp_path, command, capsys):
    write(tmp_path / "books", parameters=SEEDED, figures='{"j": 0.5 + 0.1 * seed}')
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "toy.html").write_text("of another run")
    assert main([*command, "--seeds", "1,2", "--json"]) == 0
    [figure] = json.loads(capsys.readouterr().out)[0]["figures"]
    assert figure["value"] == pytest.approx(0.65) and figure["verdict"] == "not compared"
    assert figure["tolerance"] == pytest.approx(3 * statistics.stdev([0.6, 0.7]))
    assert not (tmp_path / "baselines").exists()
    assert main([*command, "--seeds", "1,2"]) == 0
    told = capsys.readouterr().out
    assert "seed1/toy.html" in told and "runs/toy.html" not in told


@pytest.mark.parametrize("arguments, told", [
    (["--seeds", "0,1", "--update-baseline"], "tolerances need 3 seeds at least (--seeds 0,1,2), got 0, 1"),
    (["--seeds", "0", "--update-baseline"], "got 0"),
    (["--seeds", "3"], "--seeds must be two or more, all different, such as 0,1,2, for there is no spread over fewer; "
                       "got '3', a single one is -p seed 3"),
    (["--seeds", "0,0"], "two or more, all different, such as 0,1,2"), (["--seeds", ""], "such as 0,1,2, got ''"),
    (["--seeds", "1,2,1", "--update-baseline"], "all different"),
    (["--seeds", "a,b"], "--seeds must be whole numbers with commas between, such as 0,1,2, got 'a,b'"),
    (["--device", "cuda", "--update-baseline"], "tolerances need 3 seeds at least (--seeds 0,1,2), got none"),
    (["--device", "cuda:99"], "no device 'cuda:99' here"), (["--profile", "huge"], "profile must be one of 'smoke'"),
    (["--seeds", "0,1,2", "-p", "seed", "3"], "seed is given by --seeds already"),
    (["--seeds", "0,1,2", "-p", "scale", "3", "--update-baseline"], "not with scale set"),
])
def test_seeds_that_make_no_baseline_are_refused(tmp_path, command, capsys, arguments, told):
    write(tmp_path / "books", parameters=SEEDED)
    assert main([*command, *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and told in lines[0]
    assert not (tmp_path / "runs").exists() and not (tmp_path / "baselines").exists()


def test_a_notebook_without_a_seed_is_refused(tmp_path, command, capsys):
    write(tmp_path / "books")
    assert main([*command, "--seeds", "0,1,2"]) == 2
    assert "unknown parameter seed" in capsys.readouterr().err


def outcome(figures, error="", seconds=2.0, memory=100.0):
    rows = report.list_uncompared(figures)
    return gate.Outcome("toy", seconds, error, figures, rows, memory, {"name": "a GPU"})


def test_outcomes_over_seeds():
    both = regression.over_seeds({0: outcome({"j": 0.5}), 7: outcome({"j": 0.7}, seconds=4, memory=300.0)})
    assert both.figures == {"j": pytest.approx(0.6)} and both.seconds == 3 and both.memory == 300
    assert both.hardware == {"name": "a GPU"} and both.error == ""
    broken = regression.over_seeds({0: outcome({"j": 0.5}), 7: outcome({}, "ValueError: no")})
    assert broken.error == "with seed 7: ValueError: no" and not broken.passed
    lacking = regression.over_seeds({0: outcome({"j": 0.5, "f": 1}), 7: outcome({"j": 0.5})})
    assert lacking.error == "with seed 7 there is no figure f"
    nan = regression.over_seeds({0: outcome({"j": 0.5}), 7: outcome({"j": float("nan")})})
    assert not nan.passed and nan.rows[0].verdict == "FAIL"
    with pytest.raises(ValueError, match="figure j is nan"):
        report.update_baseline("never.json", "toy", nan.figures)


def test_a_failed_seed_leaves_the_baselines(tmp_path, command, capsys):
    write(tmp_path / "books", "assert seed < 2, 'no third'", parameters=SEEDED)
    assert main([*command, "--seeds", "0,1,2", "--update-baseline"]) == 2
    assert "baselines stay as they are: notebook toy: with seed 2: AssertionError: no third" in capsys.readouterr().err
    assert not (tmp_path / "baselines").exists()


# ---------------------------------------------------------------- the regression run


JUNIT = """<testsuites><testsuite><testcase classname="a" name="good"/><testcase classname="a" name="gone">
<skipped message="no CUDA device"/></testcase>{more}</testsuite></testsuites>"""
BAD = '<testcase classname="a" name="bad"><failure message="1 is not &lt;2&gt;">trace</failure></testcase>'


@pytest.fixture
def steps(monkeypatch):
    """Tests and benchmarks replaced by what they leave; with ``failed`` all end badly."""
    failed, called = [], []

    def call(name, arguments, log, device):
        called.append((name, arguments, device))
        if name == "tests":
            (log.parent / "tests.xml").write_text(JUNIT.format(more=BAD if failed else ""))
        elif not failed:
            rows = {"speed": {"what": "RAFT", "contestant": "ours & theirs", "milliseconds": 1.25, "memory, MB": None},
                    "memory": {"precision": "bf16", "memory, GB": 1.5}}
            (log.parent / f"{name}.json").write_text(json.dumps({"notes": [f"so much for {name}"],
                                                                 "rows": [rows[name]]}))
        return summary.Step(name, "python ...", "exit status 1, see x.log" if failed else "", 3.0)

    monkeypatch.setattr(regression, "_call", call)
    return failed, called


def page(folder):
    text = (folder / "index.html").read_text()
    assert not re.search(r"https?://|<script|<link", text)  # it can be read offline
    return BeautifulSoup(text, features="html.parser")


def test_one_page_of_a_run(tmp_path, steps):
    write(tmp_path / "books")
    path, passed = regression.run("cpu", "smoke", tmp_path / "runs", folder=tmp_path / "books")
    assert passed and path == tmp_path / "runs" / "index.html"
    shown = page(tmp_path / "runs")
    assert not shown.select(".bad")
    text = " ".join(shown.get_text(" ").split())
    for words in ("not made on a GPU", "1 passed, 1 skipped, 0 failed", "no CUDA device", "ours & theirs 1.25 -",
                  "so much for speed", "so much for memory", "bf16 1.5", "toy j 0.5 - - new"):
        assert words in text, words
    links = [link["href"] for link in shown.find_all("a")]
    assert links == ["toy.html", "toy.ipynb"] and all((tmp_path / "runs" / link).exists() for link in links)
    (_, tests, device), (_, speed, _), (_, memory, _) = steps[1]
    assert device == "cpu" and ["-m", "gpu"] == tests[2:4] and "--small" in speed and "--small" in memory


def test_what_fails_is_on_the_page_and_the_rest_still_runs(tmp_path, steps):
    write(tmp_path / "books", "raise ValueError('a < b')", name="broken")
    write(tmp_path / "books", name="sound")
    steps[0].append(True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "speed.json").write_text('{"rows": [{"what": "of another run"}]}')
    path, passed = regression.run("cpu", "smoke", tmp_path / "runs", folder=tmp_path / "books")
    assert not passed
    shown = page(tmp_path / "runs")
    bad = [cell.get_text() for cell in shown.select(".bad")]
    assert bad == ["FAILED: exit status 1, see x.log", "FAILED: failed: broken", "FAILED: exit status 1, see x.log",
                   "FAILED: exit status 1, see x.log", "FAILED: 1 is not <2>", "FAILED: ValueError: a < b"]
    text = shown.get_text(" ")
    assert "of another run" not in text and "nothing was measured" in text and "sound" in text
    assert "broken.failed.ipynb" in [link["href"] for link in shown.find_all("a")]


def test_after_a_failure_the_other_seeds_are_not_run(tmp_path, command):
    write(tmp_path / "books", "raise ValueError('no')", parameters=SEEDED)
    assert main([*command, "--seeds", "0,1,2"]) == 1
    assert [(tmp_path / "runs" / f"seed{seed}").exists() for seed in range(3)] == [True, False, False]


def test_without_the_device_it_is_one_line(tmp_path, capsys):
    out = tmp_path / "runs"
    assert main(["regression", "--device", "cuda:99", "--out", str(out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no device 'cuda:99' here" in lines[0] and not out.exists()


@pytest.mark.parametrize("passed", [True, False])
def test_the_exit_status_is_the_runs(tmp_path, monkeypatch, capsys, passed):
    asked = {}
    monkeypatch.setattr(regression, "run", lambda *where, **how: asked.update(how, where=where) or (tmp_path, passed))
    assert main(["regression", "--device", "cpu", "--profile", "smoke", "--only", "superpixels"]) == int(not passed)
    assert asked["where"] == ("cpu", "smoke", gate.RUNS / "gpu") and asked["only"] == ["superpixels"]
    assert ("passed" if passed else "FAILED") in capsys.readouterr().out


def test_a_step_that_ends_badly_is_told_with_its_log(tmp_path):
    script = "import os; print(os.environ['DIFFSLIC_TEST_DEVICE']); raise SystemExit(3)"
    step = regression._call("tests", ["-c", script], tmp_path / "tests.log", "cuda:1")
    assert step.error == "exit status 3, see tests.log" and step.seconds > 0
    assert (tmp_path / "tests.log").read_text() == "cuda:1\n"
    assert regression._call("tests", ["-c", "pass"], tmp_path / "tests.log", "cpu").error == ""


def test_the_small_benchmark_measures_what_it_says(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(gate.ROOT / "benchmarks"))
    gpu = import_module("gpu")
    bench = gpu.Bench("cpu", gpu.SMALL)
    calls = []

    def broken():
        raise RuntimeError("no compiler\nhere")

    bench.run(gpu.Contest("toy", {"first": lambda: calls.append("a") or gpu.torch.ones(3),
                                  "second": lambda: calls.append("b") or gpu.torch.ones(3) * 1.5, "third": broken}, 4))
    assert [(row["contestant"], row["largest difference"]) for row in bench.rows] == [("first", 0), ("second", 0.5)]
    assert all(row["per second"] == pytest.approx(4000 / row["milliseconds"]) for row in bench.rows)
    assert "toy, third: did not run (no compiler here)" in bench.notes[0] and "fastest is" in bench.notes[1]
    assert "".join(calls).startswith("aabb" + "aabb" * gpu.SMALL.rounds)  # warm, then in turn, the second call timed
