"""Figures out of a notebook, and their comparison with baselines."""

import json
import math
import subprocess
import sys

import pytest
import torch

from diffslic import report
from diffslic.report import Baseline


def record(tmp_path, figures):
    return report.record(figures, out_dir=tmp_path, notebook="toy", profile="smoke", device="cpu")


def test_round_trip_through_the_file(tmp_path):
    path = record(tmp_path / "new", {"j": 0.5, "epe": torch.tensor(1.25), "count": 3})
    assert path == report.metrics_path(tmp_path / "new", "toy")
    found = report.load_figures(path)
    assert found[:4] == ("toy", "smoke", "cpu", {"j": 0.5, "epe": 1.25, "count": 3.0})
    assert found.hardware["torch"] == torch.__version__ and "cuda" not in found.hardware
    assert 10 < found.memory < 1e6  # MB of this process


def test_a_file_that_does_not_tell_hardware_and_memory_still_counts(tmp_path):
    path = tmp_path / "toy.metrics.json"
    path.write_text(json.dumps({"notebook": "toy", "profile": "smoke", "device": "cpu", "figures": {"j": 1}}))
    found = report.load_figures(path)
    assert found.figures == {"j": 1.0} and found.hardware == {} and math.isnan(found.memory)


def test_recording_does_not_load_torch(tmp_path):
    script = ("import sys; from diffslic import report; "
              f"report.record({{'j': 1}}, out_dir={str(tmp_path)!r}, notebook='toy', profile='smoke', device='cuda'); "
              "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == 0
    assert "torch" not in report.load_figures(report.metrics_path(tmp_path, "toy")).hardware


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_recorded_as_null_and_read_as_nan(tmp_path, value):
    path = record(tmp_path, {"j": value})
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["figures"] == {"j": None}
    assert math.isnan(report.load_figures(path).figures["j"])


def test_recording_nothing_or_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="toy: no figures"):
        record(tmp_path, {})
    with pytest.raises(ValueError, match="figure j must be a number, got 'high'"):
        record(tmp_path, {"j": "high"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_named_and_left_alone(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(OSError, match="runs"):
        record(tmp_path / "runs", {"j": 1})
    assert (tmp_path / "runs").read_text() == "mine"


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path):
    (tmp_path / "toy.metrics.json").mkdir()
    with pytest.raises(OSError, match="cannot write .*toy.metrics.json"):
        record(tmp_path, {"j": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["toy.metrics.json"]


@pytest.mark.parametrize("text, expected", [("{", "expected JSON"), ("[]", "expected a JSON object"),
                                            ('{"figures": 3}', "expected the figures")])
def test_a_damaged_metrics_file_is_named(tmp_path, text, expected):
    path = tmp_path / "toy.metrics.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"toy.metrics.json: {expected}"):
        report.load_figures(path)
    with pytest.raises(FileNotFoundError, match="no file .*other.metrics.json"):
        report.load_figures(tmp_path / "other.metrics.json")


@pytest.mark.parametrize(
    "direction, value, verdict",
    [("both", 0.81, "pass"), ("both", 0.83, "FAIL"), ("both", 0.77, "FAIL"),
     ("higher", 0.99, "pass"), ("higher", 0.79, "pass"), ("higher", 0.77, "FAIL"),
     ("lower", 0.10, "pass"), ("lower", 0.81, "pass"), ("lower", 0.83, "FAIL"),
     ("higher", math.inf, "FAIL"), ("lower", -math.inf, "FAIL"), ("both", math.nan, "FAIL")],
)
def test_each_figure_by_its_own_tolerance_and_direction(direction, value, verdict):
    rows = report.compare({"j": value}, {"j": Baseline(0.8, abs=0.02, rel=0.0, direction=direction)})
    assert [row.verdict for row in rows] == [verdict]


def test_the_larger_tolerance_counts():
    assert Baseline(-200.0, abs=1.0, rel=0.01, direction="both").tolerance == 2.0
    assert Baseline(2.0, abs=1.0, rel=0.01, direction="both").tolerance == 1.0


def test_new_missing_and_nan():
    rows = report.compare({"new": 1.0, "nan": math.nan}, {"gone": Baseline(1.0, 9.0, 9.0, "both")})
    assert [(row.figure, row.verdict) for row in rows] == [("new", "new"), ("nan", "FAIL"), ("gone", "FAIL")]
    rows = report.list_uncompared({"j": 1.0, "nan": math.nan})
    assert [row.verdict for row in rows] == ["not compared", "FAIL"]


def test_update_keeps_tolerances_and_other_notebooks_and_drops_what_is_gone(tmp_path):
    path = tmp_path / "new" / "cpu-smoke.json"
    report.update_baseline(path, "toy", {"j": 0.5, "gone": 1.0})
    content = json.loads(path.read_text())
    content["toy"]["j"].update(abs=0.001, direction="higher")
    path.write_text(json.dumps(content))
    report.update_baseline(path, "other", {"epe": 2.0})
    report.update_baseline(path, "toy", {"j": 0.6})
    assert report.load_baseline(path, "toy") == {"j": Baseline(0.6, 0.001, 0.05, "higher")}
    assert set(report.load_baseline(path, "other")) == {"epe"}
    assert report.load_baseline(path, "unknown") == {}


def test_nan_cannot_become_a_baseline(tmp_path):
    with pytest.raises(ValueError, match="figure j is nan"):
        report.update_baseline(tmp_path / "cpu-smoke.json", "toy", {"j": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry, expected",
    [({"value": 1, "abs": 0, "rel": 0}, "expected value, abs, rel and direction"),
     ({"value": 1, "abs": 0, "rel": 0, "direction": "up"}, "direction must be one of both, higher, lower, got 'up'"),
     ({"value": None, "abs": 0, "rel": 0, "direction": "both"}, "must be numbers")],
)
def test_a_damaged_baseline_is_named(tmp_path, entry, expected):
    path = tmp_path / "cpu-smoke.json"
    path.write_text(json.dumps({"toy": {"j": entry}}))
    with pytest.raises(ValueError, match=f"cpu-smoke.json: toy, j: .*{expected}"):
        report.load_baseline(path, "toy")


@pytest.mark.parametrize("values, tolerance", [
    ([1.0, 2.0, 3.0], 3.0),                     # three sample standard deviations
    ([0.5, 0.5, 0.5], 0.01),                    # the floor
    ([5000.0, 5000.0, 5000.0], 5.0),            # a thousandth
    ([0.0, 0.0, 0.0, 0.4], 0.6),
])
def test_the_tolerance_that_a_spread_makes(values, tolerance):
    assert report.tolerance_of(values) == pytest.approx(tolerance)


@pytest.mark.parametrize("count", range(2, 11))
def test_no_seed_of_up_to_ten_fails_by_its_own_baseline(count):
    values = [0.0] * (count - 1) + [1.0]        # nothing lies further from its mean, in standard deviations
    assert max(abs(value - sum(values) / count) for value in values) < report.tolerance_of(values)


def test_a_spread_of_one_value_is_none():
    with pytest.raises(ValueError, match="two values at least, got 1"):
        report.tolerance_of([1.0])


def test_tolerances_of_seeds_replace_those_by_hand_and_leave_the_direction(tmp_path):
    path = tmp_path / "cuda-full.json"
    report.update_baseline(path, "toy", {"j": 0.5})
    content = json.loads(path.read_text())
    content["toy"]["j"].update(abs=0.2, rel=0.5, direction="higher")
    path.write_text(json.dumps(content))
    report.update_baseline(path, "toy", {"j": 0.6}, {"j": 0.04}, {"name": "a GPU", "seeds": [0, 1, 2]})
    report.update_baseline(path, "other", {"epe": 1.0})
    assert report.load_baseline(path, "toy") == {"j": Baseline(0.6, 0.04, 0.0, "higher")}
    content = json.loads(path.read_text())
    assert list(content) == ["made_by", "other", "toy"]
    assert content["made_by"] == {"toy": {"name": "a GPU", "seeds": [0, 1, 2]}}
    # What made the file is no notebook.
    assert report.load_baseline(path, "made_by") == {}
    with pytest.raises(ValueError, match="cannot be called made_by"):
        report.update_baseline(path, "made_by", {"j": 1.0})


def test_every_cuda_device_shares_a_file(tmp_path):
    assert report.baseline_path(tmp_path, "cuda:1", "full") == tmp_path / "cuda-full.json"


def test_check_choice():
    report.check_choice("profile", "smoke", ("smoke", "default"))
    with pytest.raises(ValueError, match="profile must be one of 'smoke', 'default', got 'quick'"):
        report.check_choice("profile", "quick", ("smoke", "default"))


def test_table_aligns_and_shows_a_dash_for_no_number():
    lines = report.table([("toy", report.compare({"epe": 1.5}, {})[0])]).splitlines()
    assert lines[0].split() == ["notebook", *report.Row._fields]
    assert lines[1].split() == ["toy", "epe", "1.5", "-", "-", "new"]
    assert lines[0].index("value") == lines[1].index("1.5")


def test_a_folder_that_cannot_be_written_is_named_early(tmp_path):
    report.check_writable("out_dir", tmp_path / "new" / "runs")
    assert list((tmp_path / "new" / "runs").iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="out_dir: nothing can be written to .*file/runs"):
        report.check_writable("out_dir", tmp_path / "file" / "runs")
