"""Writing files whole or not at all: the one way in which anything of this package reaches the disk; and its notes."""

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends without an error.

    A writer that is killed leaves its temporary file behind; the next one that writes the same path removes it.
    The name carries the host and the process, so that a writer still at work is left alone.

    Raises:
        OSError: the folder cannot be made or written; names the file.
    """
    path = Path(path)
    host = re.sub(r"[^\w-]", "_", socket.gethostname())
    temporary = path.with_name(f".{path.stem}.{host}.{os.getpid()}.part{path.suffix}")
    leftover = re.compile(rf"\.{re.escape(path.stem)}\.{re.escape(host)}\.(\d+)\.part{re.escape(path.suffix)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for other in path.parent.iterdir():
            match = leftover.fullmatch(other.name)
            if match and not _process_lives(int(match[1])):
                other.unlink(missing_ok=True)
        temporary.touch()  # a folder that cannot be written shows here, before the work
    except OSError as error:
        raise OSError(error.errno, f"cannot write {path} ({error.strerror})") from error
    try:
        yield temporary
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise OSError(error.errno, f"cannot write {path} ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_note(path: str | Path, content: Any) -> None:
    """Write JSON that says what the files beside it are."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, sort_keys=True), encoding="utf-8")


def note_says(path: str | Path, content: Any) -> bool:
    """Whether the note is there and whole and says this."""
    return _read_note(path) == json.loads(json.dumps(content))


def claim(note: str | Path, settings: Mapping[str, Any], used: bool, what: str) -> None:
    """Write the note that says how the files of its folder are made; refuse those that were made otherwise.

    Args:
        used: whether there are files already. what: they are: "masks".

    Raises:
        ValueError: names the settings that differ, or says that nothing tells how the files were made.
    """
    note, here = Path(note), json.loads(json.dumps(settings))
    there = _read_note(note) or {}
    if used and there != here:
        other = ", ".join(name for name in {**here, **there} if there.get(name) != here.get(name))
        why = f"of other {other}" if there else "no note says how it was made"
        raise ValueError(f"{note.parent} holds other {what} ({why}): choose another folder, or remove that {what}")
    write_note(note, settings)


def _read_note(path: str | Path) -> Any:
    """What a note says; None where it is not there or not whole."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives and belongs to somebody else
        return True
    return True
