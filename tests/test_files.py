"""Writing whole or not at all: failed, killed and refused writers."""

import os
import subprocess
import sys

import pytest

from diffslic import files


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with files.written_whole(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError, match="stopped"), files.written_whole(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stopped")
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_leftovers_of_dead_writers_go_and_living_ones_stay(tmp_path):
    path = tmp_path / "a.txt"
    killed = ("import os, signal, sys; from diffslic.files import written_whole\n"
              "with written_whole(sys.argv[1]) as t:\n    t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    (dead,) = tmp_path.iterdir()
    assert not path.exists()
    living = dead.with_name(dead.name.replace(dead.name.split(".")[-3], str(os.getppid())))
    living.write_text("at work")
    with files.written_whole(path) as temporary:
        temporary.write_text("whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([living.name, "a.txt"])


def test_a_folder_that_cannot_be_written_names_the_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot write .*file/a.png"):
        files.written_whole(tmp_path / "file" / "a.png").__enter__()


def test_a_note_says_what_was_written_and_a_broken_one_says_nothing(tmp_path):
    files.write_note(tmp_path / "note.json", {"rows": 240, "names": ("a", "b")})
    assert files.note_says(tmp_path / "note.json", {"names": ["a", "b"], "rows": 240})
    assert not files.note_says(tmp_path / "note.json", {"rows": 241})
    (tmp_path / "note.json").write_text('{"rows": 2')
    assert not files.note_says(tmp_path / "note.json", {"rows": 240})
    assert not files.note_says(tmp_path / "gone.json", {})


def test_files_that_were_made_otherwise_are_not_claimed_and_it_is_told_what_differs(tmp_path):
    note, own = tmp_path / "note.json", {"rows": 240, "names": ("a", "b")}
    files.claim(note, own, used=False, what="masks")
    files.claim(note, own, used=True, what="masks")
    before = note.read_bytes()
    with pytest.raises(ValueError, match=r"holds other masks \(of other rows, more, names\): choose another"):
        files.claim(note, {"rows": 120, "more": 1}, used=True, what="masks")
    assert note.read_bytes() == before
    note.unlink()
    with pytest.raises(ValueError, match="holds other masks \\(no note says how it was made\\)"):
        files.claim(note, own, used=True, what="masks")
    assert not note.exists()
    files.claim(note, {"rows": 120}, used=False, what="masks")
    assert files.note_says(note, {"rows": 120})
