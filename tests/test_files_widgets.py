"""Files that cross between a browser and the kernel, message by message, and the page of the app around them."""

import gc
from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import pytest
import torch

from diffslic.widgets import FileDrop, FileOffer, workbench
from diffslic.widgets import files as module


@pytest.fixture
def drop(monkeypatch):
    """A field, what it received, and how a browser speaks to it: say() gives the answer."""
    received, answers = [], []
    field = FileDrop(received.append, [".PNG", ".mp4"], "here", most=1, most_files=3)
    monkeypatch.setattr(field, "send", lambda content, *_: answers.append(content))

    def say(kind, *buffers, **content):
        field._handle_custom_msg({"kind": kind, "number": len(answers), **content}, list(buffers))
        assert answers[-1]["number"] == len(answers) - 1 and answers[-1]["kind"] == "next"
        return answers[-1]

    def send(**files):
        paths = list(files)
        assert say("begin", paths=paths, sizes=[len(content) for content in files.values()])["goes_on"]
        for index, content in enumerate(files.values()):
            assert say("piece", content, index=index)["goes_on"]
        return say("end")["goes_on"]

    return SimpleNamespace(field=field, received=received, say=say, send=send)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_arrives_whole_and_in_pieces(drop):
    paths = ["my/b.png", "my/a.PNG", "my/notes.txt", "my/.hidden.png", "my/back\\slash.png", "my/tab\t.png"]
    begun = drop.say("begin", paths=paths, sizes=[4, 2, 9, 9, 9, 9])
    assert drop.field.label == "here" and begun["take"] == [0, 1]
    assert drop.say("piece", b"123", index=0)["goes_on"] and drop.say("piece", b"4", index=0)["goes_on"]
    assert drop.field.status == "receiving, 0.0 kB to come" and drop.received == []
    assert drop.say("piece", b"56", index=1)["goes_on"] and drop.say("end")["goes_on"]
    assert contents(*drop.received) == {"a.PNG": b"56", "b.png": b"1234"}
    assert drop.field.status == "2 files received"


def test_a_video_arrives_as_a_file_and_takes_the_place_of_the_one_before(drop):
    for content in (b"one", b"two"):
        assert drop.send(**{"film.mp4": content})
        assert drop.received[-1].name == "film.mp4" and drop.received[-1].read_bytes() == content
    assert drop.field.status == "1 file received" and len(list(drop.received[0].parent.iterdir())) == 1


def test_of_a_folder_its_top_counts_or_its_frames(drop):
    def taken(*paths):
        return drop.say("begin", paths=paths, sizes=[1] * len(paths)).get("take")

    assert taken("clip/frames/0.png", "clip/frames/1.png", "clip/masks/0.png", "clip/masks/1.png") == [0, 1]
    assert taken("clip/0.png", "clip/1.png", "clip/masks/0.png") == [0, 1]
    assert taken("all/one/0.png", "all/one/1.png") == [0, 1]
    assert taken("all/one/0.png", "all/two/1.png") is None
    assert drop.field.status == "there are files in several folders (one, two): drop one of them"


@pytest.mark.parametrize(("paths", "sizes", "reason"), [
    ([], [], "nothing that can be read: files must end in .png, .mp4"),
    (["..", "", ".", "a.png/.."], [1] * 4, "nothing that can be read: files must end in .png, .mp4"),
    (["a.png", "a.png"], [1, 1], "two files have the same name: drop one folder at a time"),
    (["a.png"], [2_000_000], "1 files of 2.0 MB are more than is taken at once, 3 of 1 MB"),
    ([f"{i}.png" for i in range(4)], [1] * 4, "4 files of 0.0 kB are more than is taken at once, 3 of 1 MB"),
    (["a.png"], [float("nan")], "sizes of files must be numbers of bytes"),
    (["a.png"], [-5], "sizes of files must be numbers of bytes"),
    (["a.png"], [], "list index out of range"),
])
def test_what_cannot_be_taken_is_refused_in_one_line(drop, paths, sizes, reason):
    assert not drop.say("begin", paths=paths, sizes=sizes)["goes_on"]
    assert drop.field.status == reason
    assert not drop.say("piece", b"1", index=0)["goes_on"] and not drop.say("end")["goes_on"]  # nor what follows
    assert drop.received == [] and drop.send(**{"b.png": b"1"})  # and the field works on


def test_a_path_leads_nowhere_else(drop):
    assert drop.send(**{"../../../somewhere/a.png": b"1"})
    assert drop.received[0].parent == drop.field._into and drop.received[0].name == "a.png"


@pytest.mark.parametrize("wrong", [
    lambda say: say("piece", b"1", index=7), lambda say: say("piece", b"1234", index=0), lambda say: say("end"),
    lambda say: say("piece", index=0), lambda say: say("piece", b"1", index="x"), lambda say: say("begin"),
    lambda say: say("nonsense"),
])
def test_messages_out_of_turn_are_answered_and_end_the_arrival(drop, wrong):
    assert drop.say("begin", paths=["a.png", "b.png"], sizes=[3, 0])["goes_on"]
    assert not wrong(drop.say)["goes_on"] and "\n" not in drop.field.status
    assert not drop.say("piece", b"123", index=0)["goes_on"] and drop.received == []


def test_a_full_disk_is_said(drop, monkeypatch):
    assert drop.say("begin", paths=["a.png"], sizes=[3])["goes_on"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    assert not drop.say("piece", b"123", index=0)["goes_on"]
    assert drop.field.status == "the files could not be written: No space left on device"


def test_a_file_is_taken_away_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 4)
    (tmp_path / "masks.zip").write_bytes(b"0123456789")
    offer, sent = FileOffer(tmp_path / "masks.zip"), []
    monkeypatch.setattr(offer, "send", lambda content, buffers=(): sent.append((content["kind"], *buffers)))
    assert (offer.name, offer.size) == ("masks.zip", "0.0 kB")
    offer._handle_custom_msg({"kind": "wanted"}, [])
    assert sent == [("piece", b"0123"), ("piece", b"4567"), ("piece", b"89"), ("end",)]
    (tmp_path / "masks.zip").unlink()
    offer._handle_custom_msg({"kind": "wanted"}, [])
    assert sent[-1] == ("gone",)
    with pytest.raises(FileNotFoundError, match=r"no file .*other.zip to offer"):
        FileOffer(tmp_path / "other.zip")


def surveyed(folder: Path, masks: torch.Tensor) -> SimpleNamespace:
    (folder / "masks.zip").write_bytes(b"1")
    frames = [torch.rand(3, 24, 40) for _ in masks]
    return SimpleNamespace(frames=frames, superpixels=[torch.arange(40).expand(24, 40) // 10 for _ in masks],
                           flows=[torch.zeros(2, 24, 40) for _ in masks[1:]], masks=list(masks),
                           files=[folder / "masks.zip"])


def boxes(page) -> list[str]:
    return [control.description for control in page.children[2].children[0].children[0].children[2].children
            if isinstance(control, ipywidgets.Checkbox)]


def test_the_page_shows_what_was_found_and_says_what_was_wrong(tmp_path):
    asked, masks = [], torch.zeros(3, 24, 40, dtype=torch.uint8)
    masks[:, 5:9, 5:9] = 2

    def survey(source, folder, *, tell):
        asked.append((source, folder))
        if isinstance(source, type) and issubclass(source, Exception):
            raise source(f"nothing\nto read in {source.__name__}")
        if source == tmp_path / "0.png":
            raise ValueError(f"{source}: no video")
        assert folder.is_dir() and not any(folder.iterdir()) and button.disabled
        tell(2, 3)
        assert (progress.value, progress.max, drop.status) == (2, 3, "frame 2 of 3")
        return surveyed(folder, masks)

    page = workbench(survey, [".png"], example="a clip")
    drop, bar, shown = page.children
    button, progress = bar.children
    assert shown.children == () and progress.layout.visibility == "hidden"
    button.click()
    [tabs] = shown.children
    assert list(tabs.titles) == ["What moves", "Flow", "Superpixels", "Downloads"]
    assert drop.status == "3 frames: done" and progress.layout.visibility == "hidden" and not button.disabled
    assert boxes(page) == [] and tabs.children[2].children[1].value == "4 superpixels"  # one thing needs no box
    assert tabs.children[3].children[0].name == "masks.zip"
    masks[1:, 15:20, 20:30] = 5
    drop._received(tmp_path)
    assert boxes(page) == ["object 2", "object 5"] and [source for source, _ in asked] == ["a clip", tmp_path]
    for error in (ValueError, OSError, IndexError, RuntimeError):
        drop._received(error)
        assert drop.status == f"nothing to read in {error.__name__}" and shown.children == ()
        assert progress.layout.visibility == "hidden" and not button.disabled
    drop._received(tmp_path / "0.png")
    assert drop.status == "0.png: no video"  # not where the server keeps it
    assert len(workbench(survey, [".png"]).children[1].children) == 1  # no button where there is no example


def test_what_was_shown_before_leaves_the_kernel(tmp_path):
    folders = []

    def survey(source, folder, *, tell):
        folders.append(folder)
        return surveyed(folder, torch.ones(2, 24, 40, dtype=torch.uint8))

    page = workbench(survey, [".png"], example="a clip")
    counts = []
    for _ in range(3):
        page.children[1].children[0].click()
        gc.collect()
        counts.append(len(ipywidgets.widgets.widget._instances))
    assert counts[0] == counts[1] == counts[2]
    assert [folder.exists() for folder in folders] == [False, False, True]
