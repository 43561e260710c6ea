"""The ``diffslic`` command: parses, calls one function, prints.

To add a command: a function with ``@app.command()`` in the file of its subject, whose docstring ends with an example,
whose imports stand inside (so that ``--help`` need not load torch), and which prints with :func:`show`. Bad input is
an exception of the library; :func:`main` makes it one line on stderr and exit code 2. A command that finds something
wrong with good input (a figure out of tolerance, a damaged dataset) raises ``typer.Exit(1)``.
"""

import sys
from collections.abc import Sequence

import typer

# Importing them adds their commands.
from diffslic.cli import data, depth, evaluate, notebooks, train, train_motion, use  # noqa: F401
from diffslic.cli.common import app as app
from diffslic.cli.common import show as show

INTERRUPTED = 130
# The second class of BadParameter is what every bad command line raises; typer itself exports only the first.
BAD_INPUT = (ValueError, LookupError, OSError, typer.BadParameter.__mro__[1])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; the process's own where None.

    Returns:
        The exit code: 0, 1 (the work was done and something is wrong), 2 (bad input), 130 (interrupted).
    """
    arguments = _join_pairs(list(sys.argv[1:] if arguments is None else arguments))
    try:
        code = app(arguments or ["--help"], prog_name="diffslic", standalone_mode=False)
        if code == INTERRUPTED and arguments[:1] != ["airsim-server"]:  # typer says nothing; a server ends so
            print("diffslic: interrupted", file=sys.stderr)
    except (KeyError, IndexError):  # LookupErrors by class, but mistakes of ours: they keep their traceback
        raise
    except BAD_INPUT as error:
        print(f"diffslic: {_one_line(error)}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def _join_pairs(arguments: list[str]) -> list[str]:
    """``-p NAME VALUE``, as papermill has it, to ``-p NAME=VALUE``: typer knows no repeated option of two words."""
    if "notebooks" not in arguments[:1]:
        return arguments
    joined: list[str] = []
    rest = iter(arguments)
    for word in rest:
        joined.append(word)
        if word == "-p":
            name = next(rest, "")
            value = None if "=" in name else next(rest, None)
            joined.append(name if value is None else f"{name}={value}")
    return joined


def _one_line(error: BaseException) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(text.split()) or type(error).__name__
