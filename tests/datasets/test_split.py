"""DataSplit tables: those of both systems as they are, and every way in which one can be broken."""

from pathlib import Path

import pytest
import torch

from diffslic import datasets
from diffslic.datasets import io
from diffslic.datasets.split import sequence_of, write_split


def write_clip(base: Path, name: str, n_frames: int, masks: bool = True) -> None:
    """Frames, flow of all but the last, and masks of a sequence."""
    for t in range(n_frames):
        io.write_image(base / "JPEGImages" / name / f"{t:05d}.png", torch.full((3, 6, 8), t / 10))
        if masks:
            mask = torch.zeros(6, 8, dtype=torch.int64)
            mask[1:3, t:t + 2] = 1
            io.write_labels(base / "Annotations" / name / f"{t:05d}.png", mask)
        if t < n_frames - 1:
            io.write_flo(base / "Flow" / name / f"{t:05d}.flo", torch.full((2, 6, 8), float(t)))


def table(base: Path, *rows: str, header: str = "Image,GtMask,Flow,Sequence,Sequence_Index") -> Path:
    path = base / "T_val.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_clip(tmp_path, "bear", 4)
    write_clip(tmp_path, "goat", 3, masks=False)
    return tmp_path


def rows_of(name: str, n_rows: int, masks: bool = True, sequence: bool = True) -> list[str]:
    return [f"JPEGImages/{name}/{t:05d}.png,{f'Annotations/{name}/{t:05d}.png' if masks else ''},"
            f"Flow/{name}/{t:05d}.flo{f',{name},{t}' if sequence else ''}" for t in range(n_rows)]


def test_a_table_is_written_and_read_again(base):
    path = base / "DataSplit" / "MINE_val.csv"
    assert write_split(path, base, "JPEGImages/*", "Flow/*", "Annotations/*") == 5
    bear, goat = datasets.open("split", root=base, file=base / "DataSplit" / "MINE", split="val")
    assert (bear.name, len(bear), bear.size, goat.name, len(goat)) == ("bear", 4, (6, 8), "goat", 3)
    assert torch.equal(bear.flow(2), torch.full((2, 6, 8), 2.0))
    assert bear.labels(1).sum() == 4
    assert bear.frame(3).mean() == pytest.approx(0.3, abs=0.01)  # no row lists it, its folder has it
    assert bear.frame_name(3) == "00003"
    assert not goat.has("labels")
    assert datasets.check("split", base) == []


def test_a_table_of_the_annotated_frames_alone_is_a_clip_for_each_run(base):
    write_clip(base, "cars", 8)
    header = "Image,GtMask,Flow,Sequence"
    rows = [row.removesuffix(f",{t}") for t, row in enumerate(rows_of("cars", 7)) if t in (0, 1, 4)]
    first, second = datasets.open("split", root=base, file=table(base, *rows, header=header))
    assert [(first.name, len(first)), (second.name, len(second))] == [("cars/00000", 3), ("cars/00004", 2)]
    assert torch.equal(second.flow(0), torch.full((2, 6, 8), 4.0))
    assert second.frame(1).mean() == pytest.approx(0.5, abs=0.01)
    assert {sequence_of(clip.name) for clip in (first, second)} == {"cars"}


def test_the_file_after_a_gap_is_not_the_frame_after_it(base):
    for t in (1, 2):
        (base / "JPEGImages" / "bear" / f"{t:05d}.png").unlink()
        (base / "Annotations" / "bear" / f"{t:05d}.png").unlink()
    clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 1)))
    assert len(clip) == 2
    with pytest.raises(LookupError):
        clip.frame(1)


def test_folders_of_the_same_name_are_not_one_sequence(base):
    for scene in ("0000", "0001"):
        io.write_flo(base / scene / "left" / "OpticalFlow_0006.flo", torch.zeros(2, 6, 8))
    path = table(base, "0000/left/OpticalFlow_0006.flo", "0001/left/OpticalFlow_0006.flo", header="Flow")
    assert [clip.name for clip in datasets.open("split", root=base, file=path)] == ["0000/left", "0001/left"]


def test_pictures_of_another_size_are_brought_to_that_of_the_masks(base):
    io.write_image(base / "JPEGImages" / "bear" / "00000.png", torch.rand(3, 12, 16))
    clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 3)))
    assert clip.frame(0).shape == (3, 6, 8)


def test_flow_of_another_size_is_brought_to_that_of_the_masks(base):
    for t in range(3):
        io.write_flo(base / "Flow" / "bear" / f"{t:05d}.flo", torch.full((2, 3, 4), float(t)))
    clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 3)))
    assert clip.size == clip.labels(0).shape == (6, 8)
    torch.testing.assert_close(clip.flow(2), torch.full((2, 6, 8), 4.0))  # the vectors grow with it


def test_flow_that_is_not_known_everywhere_is_so_after_resizing(base):
    flow = torch.arange(2 * 12 * 16).reshape(2, 12, 16).float()
    flow[:, :2, :2] = torch.inf
    io.write_flo(base / "Flow" / "bear" / "00000.flo", flow)
    clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 3)))
    assert clip.flow(0)[:, 0, 0].isnan().all()
    torch.testing.assert_close(clip.flow(0)[:, 2:-1, 2:-1],
                               (flow.unfold(1, 2, 2).unfold(2, 2, 2).mean((3, 4)) / 2)[:, 2:-1, 2:-1])


def test_flow_of_another_aspect_is_refused(base):
    io.write_flo(base / "Flow" / "bear" / "00001.flo", torch.zeros(2, 6, 9))
    clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 3)))
    with pytest.raises(ValueError, match="00001.flo: expected 6x8"):
        clip.flow(1)


def test_the_table_of_the_long_term_system(base):
    """An index column without a name, numbers from 1, blank masks, columns of no account."""
    path = table(base, ",JPEGImages/bear/00000.png,Flow/bear/00000.flo,Flow/bear/00000.flo.png,"
                       "Annotations/bear/00000.png,bear,1,DINO/a.npy",
                 "1,JPEGImages/bear/00001.png,Flow/bear/00001.flo,,,bear,2.0,",
                 header="Unnamed: 0,Image,Flow,FlowRGB,GtMask,Sequence,Sequence_Index,Dino")
    io.write_image(base / "Flow" / "bear" / "00000.flo.png", torch.rand(3, 6, 8))
    clip, = datasets.open("split", root=base, file=path)
    assert len(clip) == 3
    assert clip.flow_rgb(0).shape == (3, 6, 8)
    assert clip.labels(0).sum() == 4
    for missing in (lambda: clip.labels(1), lambda: clip.flow_rgb(1)):
        with pytest.raises(LookupError, match="no such file for frame 2"):
            missing()


def test_the_table_of_the_em_system(base):
    """No Sequence: the folder of the flow is the clip."""
    path = table(base, *rows_of("bear", 3, sequence=False), *rows_of("goat", 2, masks=False, sequence=False),
                 header="Image,GtMask,Flow")
    bear, goat = datasets.open("split", root=base, file=path)
    assert [(clip.name, len(clip)) for clip in (bear, goat)] == [("bear", 4), ("goat", 3)]


def test_columns_of_other_frames_need_no_rows_of_their_own(base):
    path = table(base, "Flow/bear/00001.flo,Flow/bear/00002.flo,Flow/bear/00000.flo,bear,1",
                 header="Flow,Flow+1,Flow-1,Sequence,Sequence_Index")
    clip, = datasets.open("split", root=base, file=path)
    assert [float(clip.flow(t).mean()) for t in clip.frames_with("flow")] == [0, 1, 2]
    assert not clip.has("frame")


def test_levels_of_masks_are_ids(base):
    grey = torch.zeros(6, 8, dtype=torch.int64)
    grey[0], grey[1] = 100, 200
    for name, mask, expected in (("grey", grey, [0, 1, 2]), ("binary", (grey > 0) * 255, [0, 1]),
                                 ("void", (grey > 100) * 255 + (grey == 100), [0, 1, 255]),
                                 ("full", torch.full((6, 8), 255), [1])):
        io.write_labels(base / "Annotations" / "bear" / "00000.png", mask)
        clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 1)))
        assert clip.labels(0).unique().tolist() == expected, name


def test_unknown_flow_is_nan(base):
    flow = torch.zeros(2, 6, 8)
    flow[:, 0] = 2e9
    io.write_flo(base / "Flow" / "bear" / "00000.flo", flow)
    clip, = datasets.open("split", root=base, file=table(base, *rows_of("bear", 1)))
    assert clip.flow(0).isnan().sum() == 16


@pytest.mark.parametrize(("rows", "header", "says"), [
    (["a"], "Image", "needs the column Flow, it has Image"),
    ([], "Image,GtMask,Flow,Sequence,Sequence_Index", "without rows"),
    (["JPEGImages/bear/00000.png,,Flow/bear/00009.flo,bear,0"], None, "row 2: no file"),
    (["JPEGImages/bear/00000.png,,Flow/bear/00000.flo,bear,0",
      "JPEGImages/bear/00001.png,Annotations/no.png,Flow/bear/00001.flo,bear,1"], None, "row 3: no file"),
    (["JPEGImages/bear/00000.png,,Flow/bear/00000.flo,bear,0",
      "JPEGImages/bear/00001.png,,Flow/bear/00001.flo,bear,0"], None, "row 3: frame 0 of 'bear' is in row 2"),
    (["JPEGImages/bear/00000.png,,Flow/bear/00000.flo,bear,first"], None, "row 2: Sequence_Index"),
    (["JPEGImages/bear/00000.png,,Flow/bear/00000.flo,bear,0",
      "JPEGImages/bear/00001.png,,,bear,1",
      "JPEGImages/bear/00002.png,,Flow/bear/00002.flo,bear,2"], None, "row 3: frame 1 of 'bear' has no flow"),
    (["JPEGImages/bear/00000.png,,,bear,0"], None, "has no flow"),
    (["JPEGImages/bear/00000.png,,,,"], None, "row 2: neither a Sequence"),
])
def test_a_broken_table_is_told_by_its_row(base, rows, header, says):
    path = table(base, *rows, **({"header": header} if header else {}))
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        datasets.open("split", root=base, file=path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(datasets.check("split", base)) == 1


def test_a_column_that_contradicts_a_row_is_refused(base):
    path = table(base, "Flow/bear/00000.flo,Flow/bear/00002.flo,bear,0", "Flow/bear/00001.flo,,bear,1",
                 header="Flow,Flow+1,Sequence,Sequence_Index")
    with pytest.raises(ValueError, match="row 3"):
        datasets.open("split", root=base, file=path)


def test_a_table_is_found_from_here_or_from_the_root_on(base, monkeypatch):
    table(base, *rows_of("bear", 3))
    monkeypatch.chdir(base.parent)
    for file in ("T_val.csv", f"{base.name}/T_val.csv", base / "T_val.csv"):
        assert len(datasets.open("split", root=base, file=file)) == 1
    assert len(datasets.open("split", root=base.name, file="T", split="val")) == 1
    (base.parent / "T_val.csv").write_text("Flow\nA/here.flo\n")  # the one from here comes first
    with pytest.raises(FileNotFoundError, match="here.flo"):
        datasets.open("split", root=base, file="T_val.csv")


def test_no_table_no_sequence_no_split(base):
    path = table(base, *rows_of("bear", 3))
    for wrong, says in (({"file": base / "none.csv"}, "no such DataSplit"),
                        ({"file": base / "T", "split": "valid"}, "split must be"),
                        ({"file": path, "sequences": ["cat"]}, "no sequence 'cat'"),
                        ({}, "file")):
        with pytest.raises((ValueError, FileNotFoundError, TypeError), match=says):
            datasets.open("split", root=base, **wrong)
    (base / "T_val.csv").write_bytes(b"\xff\xfe\x00broken")
    with pytest.raises(ValueError, match="not a table"):
        datasets.open("split", root=base, file=path)


def test_writing_refuses_what_cannot_be(base):
    for wrong, says in ((("JPEGImages/*", "Flow/bear", None), "belongs into all"),
                        (("Nothing/*", "Flow/*", None), "no folder"),
                        (("JPEGImages/*", "Annotations_none/*", None), "no images")):
        with pytest.raises((ValueError, FileNotFoundError), match=says):
            write_split(base / "X.csv", base, *wrong)
    assert not (base / "X.csv").exists()


def test_files_of_other_names_are_matched_by_their_number(base):
    for t in range(3):
        flow = base / "future" / f"OpticalFlowIntoFuture_{t:05d}_L.flo"
        flow.parent.mkdir(exist_ok=True)
        flow.write_bytes((base / "Flow" / "bear" / f"{t:05d}.flo").read_bytes())
    assert write_split(base / "NUMBERS.csv", base, "JPEGImages/bear", "future") == 3
    clip, = datasets.open("split", root=base, file=base / "NUMBERS.csv")
    assert [float(clip.flow(t).mean()) for t in range(3)] == [0, 1, 2]


def test_one_folder_is_one_sequence(base):
    assert write_split(base / "ONE.csv", base, "JPEGImages/bear", "Flow/bear") == 3
    clip, = datasets.open("split", root=base, file=base / "ONE.csv")
    assert clip.name == "bear"


def test_pictures_beside_flow_are_not_the_flow(base):
    for path in list((base / "Flow" / "bear").iterdir()):
        io.write_image(path.with_suffix(".png"), torch.zeros(3, 6, 8))
    write_split(base / "OWN_val.csv", base, "JPEGImages/*", "Flow/*")
    assert torch.equal(datasets.open("split", root=base, file=base / "OWN", split="val")[0].flow(2),
                       torch.full((2, 6, 8), 2.0))


def test_of_equally_long_numbers_the_last_is_the_frame(base):
    for kind, suffix in (("JPEGImages", ".png"), ("Flow", ".flo")):
        for path in list((base / kind / "bear").iterdir()):
            path.rename(path.with_name(f"{kind.lower()}01_{int(path.stem) + 1:02d}{suffix}"))
    write_split(base / "OWN_val.csv", base, "JPEGImages/bear", "Flow/bear")
    assert [float(datasets.open("split", root=base, file=base / "OWN", split="val")[0].flow(t).mean())
            for t in range(3)] == [0, 1, 2]


def test_files_that_could_belong_to_one_frame_are_refused(base):
    io.write_flo(base / "Flow" / "bear" / "00001.FLO", torch.zeros(2, 6, 8))
    with pytest.raises(ValueError, match="could both belong to 00001.png"):
        write_split(base / "OWN_val.csv", base, "JPEGImages/*", "Flow/*")
    with pytest.raises(ValueError, match="folders are named from"):
        write_split(base / "OWN_val.csv", base, "/JPEGImages/*", "Flow/*")


@pytest.mark.parametrize("index", ["inf", "1.5", "nan"])
def test_numbers_of_frames_are_whole(base, index):
    table(base, f"JPEGImages/bear/00000.png,,Flow/bear/00000.flo,bear,{index}")
    with pytest.raises(ValueError, match="row 2: Sequence_Index must be a whole number"):
        datasets.open("split", root=base, file=base / "T", split="val")
