"""Files that cross between a browser and the kernel, message by message, and the page of the app around them."""

from pathlib import Path
from types import SimpleNamespace

import ipywidgets
import pytest
import torch

from diffslic.widgets import FileDrop, FileOffer, workbench
from diffslic.widgets import files as module


@pytest.fixture
def drop(monkeypatch):
    """A field, what it received, and what it answered."""
    received, answers = [], []
    field = FileDrop(received.append, [".PNG", ".mp4"], "here", most=1)
    monkeypatch.setattr(field, "send", lambda content, *_: answers.append(content["goes_on"]))

    def say(kind, *buffers, **content):
        field._handle_custom_msg({"kind": kind, **content}, list(buffers))
        return answers[-1]

    return SimpleNamespace(field=field, received=received, say=say)


def test_a_folder_arrives_whole_and_in_pieces(drop):
    assert drop.field.suffixes == [".png", ".mp4"] and drop.field.label == "here"
    assert drop.say("begin", names=["b.png", "a.png"], total=6)
    assert drop.say("piece", b"123", name="b.png") and drop.say("piece", b"4", name="b.png")
    assert drop.field.status == "0.0 kB of 0.0 kB received" and drop.received == []
    assert drop.say("piece", b"56", name="a.png") and drop.say("end")
    [folder] = drop.received
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a.png": b"56", "b.png": b"1234"}
    assert drop.field.status == "2 files received"


def test_a_video_arrives_as_a_file_and_a_second_one_beside_it(drop):
    for content in (b"one", b"two"):
        assert drop.say("begin", names=["film.mp4"], total=3) and drop.say("piece", content, name="film.mp4")
        assert drop.say("end")
    assert [path.read_bytes() for path in drop.received] == [b"one", b"two"]
    assert drop.field.status == "1 file received"


@pytest.mark.parametrize(("names", "total", "reason"), [
    ([], 0, "nothing that can be read: files must end in .png, .mp4"),
    (["a.png", "a.png"], 2, "two files are called a.png: drop one folder at a time"),
    (["../a.png"], 2, "../a.png is no file's name"),
    (["a.png"], 2_000_000, "2.0 MB are more than the 1 MB that are taken at once"),
])
def test_what_cannot_be_taken_is_refused_in_one_line(drop, names, total, reason):
    assert not drop.say("begin", names=names, total=total)
    assert drop.field.status == reason and drop.received == []


def test_more_than_was_announced_is_refused(drop):
    assert drop.say("begin", names=["a.png"], total=3)
    assert not drop.say("piece", b"1", name="b.png") and drop.field.status == "b.png was not announced"
    assert not drop.say("piece", b"1234", name="a.png")
    assert drop.field.status == "more came than was announced: 0.0 kB of 0.0 kB"


def test_a_file_is_taken_away_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE", 4)
    (tmp_path / "masks.zip").write_bytes(b"0123456789")
    offer, sent = FileOffer(tmp_path / "masks.zip"), []
    monkeypatch.setattr(offer, "send", lambda content, buffers=(): sent.append((content["kind"], *buffers)))
    assert (offer.name, offer.size) == ("masks.zip", "0.0 kB")
    offer._handle_custom_msg({"kind": "wanted"}, [])
    assert sent == [("piece", b"0123"), ("piece", b"4567"), ("piece", b"89"), ("end",)]
    with pytest.raises(FileNotFoundError, match=r"no file .*other.zip to offer"):
        FileOffer(tmp_path / "other.zip")


def surveyed(folder: Path, masks: torch.Tensor) -> SimpleNamespace:
    (folder / "masks.zip").write_bytes(b"1")
    frames = [torch.rand(3, 24, 40) for _ in masks]
    return SimpleNamespace(frames=frames, superpixels=[torch.arange(40).expand(24, 40) // 10 for _ in masks],
                           flows=[torch.zeros(2, 24, 40) for _ in masks[1:]], masks=list(masks),
                           files=[folder / "masks.zip"])


def test_the_page_shows_what_was_found_and_says_what_was_wrong(tmp_path):
    asked, masks = [], torch.zeros(3, 24, 40, dtype=torch.int64)
    masks[:, 5:9, 5:9], masks[1:, 15:20, 20:30] = 2, 5

    def survey(source, folder, *, objects, tell):
        asked.append((source, objects))
        if source == "broken":
            raise ValueError("nothing\nto read")
        assert folder.is_dir() and not any(folder.iterdir())
        tell(2, 3)
        return surveyed(folder, masks if objects else (masks > 0).long())

    page = workbench(survey, [".png"], example="a clip")
    drop, bar, shown = page.children
    apart, button, progress, message = bar.children
    assert shown.children == () and progress.layout.visibility == "hidden"
    button.click()
    [tabs] = shown.children
    assert list(tabs.titles) == ["What moves", "Flow", "Superpixels", "Downloads"]
    assert message.value == "3 frames: done" and progress.layout.visibility == "hidden" and progress.max == 3
    assert not any(isinstance(control, ipywidgets.Checkbox) for control in tabs.children[0].children[2].children)
    assert tabs.children[2].children[1].value == "4 superpixels"
    assert tabs.children[3].children[0].name == "masks.zip"
    apart.value = True
    drop._received(tmp_path)
    boxes = [control.description for control in shown.children[0].children[0].children[2].children
             if isinstance(control, ipywidgets.Checkbox)]
    assert boxes == ["object 2", "object 5"] and asked == [("a clip", False), (tmp_path, True)]
    drop._received("broken")
    assert message.value == "nothing to read" and shown.children == ()
    assert len(workbench(survey, [".png"]).children[1].children) == 3  # no button where there is no example
