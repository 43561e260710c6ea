"""FlyingChairs, Sintel and KITTI: their layouts, unknown flow, and what is missing."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import datasets
from diffslic.datasets import io

SIZE = (6, 9)


def an_image(value):
    return torch.full((3, *SIZE), value)


def a_flow(value=2.0):
    return torch.full((2, *SIZE), value)


def write_ppm(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path)


def make_chairs(root, names=("_img1.ppm", "_img2.ppm", "_flow.flo"), folder="data"):
    for number in ("00001", "00002"):
        write_ppm(root / folder / f"{number}{names[0]}", an_image(0.2))
        write_ppm(root / folder / f"{number}{names[1]}", an_image(0.4))
        io.write_flo(root / folder / f"{number}{names[2]}", a_flow())


def make_sintel(root):
    for render, value in (("clean", 0.2), ("final", 0.6)):
        for t in range(3):
            io.write_image(root / f"training/{render}/alley_1/frame_{t + 1:04d}.png", an_image(value))
    for t in range(2):
        io.write_flo(root / f"training/flow/alley_1/frame_{t + 1:04d}.flo", a_flow(t + 1.0))


def make_kitti(root, images="image_2"):
    known = torch.ones(SIZE, dtype=torch.bool)
    known[0] = False
    for number in ("000000", "000001"):
        for which in ("10", "11"):
            io.write_image(root / f"training/{images}/{number}_{which}.png", an_image(0.2))
        io.write_kitti_png(root / f"training/flow_occ/{number}_10.png", a_flow(-1.5), known)


MAKERS = {"flyingchairs": make_chairs, "sintel": make_sintel, "kitti": make_kitti}


@pytest.mark.parametrize(("names", "folder"), [(("_img1.ppm", "_img2.ppm", "_flow.flo"), "data"),
                                               (("-img0.ppm", "-img1.ppm", "-gt.flo"), "")])
def test_flyingchairs(tmp_path, names, folder):
    make_chairs(tmp_path, names, folder)
    clips = datasets.open("flyingchairs", root=tmp_path)
    assert [clip.name for clip in clips] == ["00001", "00002"] and {len(clip) for clip in clips} == {2}
    assert clips[1].frame(1).mean() > clips[1].frame(0).mean() and torch.equal(clips[0].flow(0), a_flow())


def test_the_split_of_flyingchairs(tmp_path):
    make_chairs(tmp_path)
    with pytest.raises(FileNotFoundError, match="FlyingChairs_train_val.txt"):
        datasets.open("flyingchairs", root=tmp_path, split="val")
    (tmp_path / "FlyingChairs_train_val.txt").write_text("2\n1\n")
    assert [[clip.name for clip in datasets.open("flyingchairs", root=tmp_path, split=split)]
            for split in ("train", "val", "all")] == [["00002"], ["00001"], ["00001", "00002"]]
    with pytest.raises(ValueError, match="all, train or val, got 'test'"):
        datasets.open("flyingchairs", root=tmp_path, split="test")
    for text in ("2\n", "2\n3\n"):
        (tmp_path / "FlyingChairs_train_val.txt").write_text(text)
        with pytest.raises(ValueError, match="1 or 2 for each of 2 pairs"):
            datasets.open("flyingchairs", root=tmp_path, split="val")


def test_sintel(tmp_path):
    make_sintel(tmp_path)
    clean, final = (datasets.open("sintel", root=tmp_path, render=name)[0] for name in ("clean", "final"))
    assert (clean.name, len(clean), clean.has("occlusion")) == ("alley_1", 3, False)
    assert final.frame(0).mean() > clean.frame(0).mean() and torch.equal(clean.flow(1), a_flow(2.0))
    mark = np.zeros(SIZE, np.uint8)
    mark[2, 3] = 255
    for kind, stems in (("occlusions", ("0001", "0002")), ("invalid", ("0001", "0002", "0003"))):
        for stem in stems:
            path = tmp_path / f"training/{kind}/alley_1/frame_{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mark).save(path)
    clip = datasets.open("sintel", root=tmp_path)[0]
    assert clip.occlusion(0).nonzero().tolist() == [[2, 3]]
    assert clip.flow(0).isnan().any(0).nonzero().tolist() == [[2, 3]]
    with pytest.raises(ValueError, match="clean or final, got 'dirty'"):
        datasets.open("sintel", root=tmp_path, render="dirty")


@pytest.mark.parametrize("images", ["image_2", "colored_0"])
def test_kitti(tmp_path, images):
    make_kitti(tmp_path, images)
    clips = datasets.open("kitti", root=tmp_path)
    assert [clip.name for clip in clips] == ["000000", "000001"]
    flow = clips[0].flow(0)
    assert flow[:, 0].isnan().all() and torch.equal(flow[:, 1:], a_flow(-1.5)[:, 1:])


@pytest.mark.parametrize("name", list(MAKERS))
def test_what_is_missing_or_broken_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="expected"):
        datasets.open(name, root=tmp_path / "nowhere")
    assert len(datasets.check(name, tmp_path / "nowhere")) == 1
    MAKERS[name](tmp_path)
    assert datasets.check(name, tmp_path) == []
    flows = sorted(path for path in tmp_path.rglob("*") if path.suffix == ".flo" or "flow_occ" in str(path.parent))
    moved = flows[-1].rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=flows[-1].name):
        datasets.open(name, root=tmp_path)
    assert any(flows[-1].name in line for line in datasets.check(name, tmp_path))
    shutil.move(moved, flows[-1])
    flows[-1].write_bytes(flows[-1].read_bytes()[:20])
    assert any(flows[-1].name in line for line in datasets.check(name, tmp_path))


def test_the_real_chairs(reference):
    clips = datasets.open("flyingchairs", root=reference / "data/flow/flyingchairs")
    assert [(len(clip), clip.size) for clip in clips] == [(2, (384, 512))] * 2
    assert clips[0].flow(0).isfinite().all() and clips[0].frame(1).shape == (3, 384, 512)
