"""The command line: exit codes, one line on bad input, help with an example."""

import json
import math
import subprocess
import sys

import pytest

from diffslic import cli, datasets


def commands(typer_app, *path):
    """Every command as the words that reach it."""
    for command in typer_app.registered_commands:
        yield [*path, command.name or command.callback.__name__.replace("_", "-")]
    for group in typer_app.registered_groups:
        yield from commands(group.typer_instance, *path, group.name)


@pytest.mark.parametrize("words", list(commands(cli.app)), ids=" ".join)
def test_every_command_helps_with_an_example_of_itself(capsys, words):
    assert cli.main([*words, "--help"]) == 0
    _, _, example = " ".join(capsys.readouterr().out.split()).partition("Example: ")
    assert f"diffslic {' '.join(words)}" in example.partition("Options:")[0]


@pytest.mark.parametrize("error, told", [
    (ValueError("flow of 3 frames,\n  masks of 4"), "flow of 3 frames, masks of 4"),
    (FileNotFoundError("no file a.flo"), "no file a.flo"),
    (LookupError("clip bear has no depth"), "clip bear has no depth"),
    (PermissionError(13, "Permission denied", "runs"), "[Errno 13] Permission denied: 'runs'"),
    (OSError(), "OSError"),
])
def test_bad_input_is_one_line_and_exit_code_2(monkeypatch, capsys, error, told):
    def check(name, root):
        raise error

    monkeypatch.setattr(datasets, "check", check)
    assert cli.main(["data", "check", "davis2016", "somewhere"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"diffslic: {told}\n" and captured.out == ""


def test_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(datasets, "check", lambda name, root: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["data", "check", "davis2016", "somewhere"])


@pytest.mark.parametrize("arguments", [["nonsense"], ["data"], ["data", "check"], ["data", "check", "a", "b", "-x"]])
def test_a_bad_command_line_is_one_line_and_exit_code_2(capsys, arguments):
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 1 and captured.err.startswith("diffslic: ")


@pytest.mark.parametrize("problems, code, text", [([], 0, "ok\n"), (["a: gone", "b: cut"], 1, "a: gone\nb: cut\n")])
def test_data_check_names_each_problem(monkeypatch, capsys, problems, code, text):
    monkeypatch.setattr(datasets, "check", lambda name, root: problems)
    assert cli.main(["data", "check", "davis2016", "somewhere"]) == code
    assert capsys.readouterr().out == text
    assert cli.main(["data", "check", "davis2016", "somewhere", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == problems


def test_show_for_a_person_and_for_a_machine(capsys):
    cli.show({"j": 0.123456789, "frames": 3, "f": math.nan}, as_json=False)
    assert capsys.readouterr().out == "j       0.12346\nframes  3\nf       nan\n"
    cli.show({"j": 0.123456789, "frames": 3, "f": math.nan}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"j": 0.123456789, "frames": 3, "f": None}


@pytest.mark.parametrize("before, after", [
    (["notebooks", "-p", "a", "1", "-p", "b", "2"], ["notebooks", "-p", "a=1", "-p", "b=2"]),
    (["notebooks", "-p", "a=1", "--only", "x"], ["notebooks", "-p", "a=1", "--only", "x"]),
    (["notebooks", "-p", "a"], ["notebooks", "-p", "a"]),
    (["notebooks", "-p"], ["notebooks", "-p", ""]),
    (["evaluate", "-p", "a", "b"], ["evaluate", "-p", "a", "b"]),
])
def test_parameters_as_papermill_takes_them(before, after):
    assert cli._join_pairs(before) == after


def test_no_arguments_show_the_help(capsys):
    assert cli.main([]) == 0
    assert "Usage: diffslic" in capsys.readouterr().out


def test_help_does_not_load_torch():
    script = "import sys; from diffslic.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60).returncode == 0


def test_the_package_is_a_command_too():
    done = subprocess.run([sys.executable, "-m", "diffslic", "nonsense"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "diffslic: No such command 'nonsense'.\n"
