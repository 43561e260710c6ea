"""Depth of clips on disk: pairs joined with RAFT, files, figures, and what lacks poses."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch

from diffslic import cli, datasets, metrics, pipeline
from diffslic.datasets import io, layouts
from diffslic.flow import RAFT, BothWays

SIZE = (64, 96)


@pytest.fixture(scope="module")
def clip():
    return datasets.open("scenes", preset="static", n_clips=1, n_frames=3, size=SIZE, seed=600_010)[0]


@pytest.fixture(scope="module")
def folder(clip, tmp_path_factory):
    root = tmp_path_factory.mktemp("tartan")
    layouts.write_tartanair([clip], root)
    return root


@pytest.fixture
def true_flow(clip, monkeypatch):
    """RAFT replaced by the truth of the scene, as far as neighbours are asked for."""
    frames = [clip.frame(t) for t in range(3)]

    def both_ways(raft, pair, n_iters, polished):
        t, other = (next(i for i, frame in enumerate(frames) if torch.equal(frame, shown)) for shown in pair)
        forward, backward = (clip.flow, clip.backward_flow) if other > t else (clip.backward_flow, clip.flow)
        hidden = clip.occlusion(t) if other > t else clip.backward_occlusion(t)
        yield BothWays(forward(t), backward(other), hidden, torch.zeros_like(hidden))

    monkeypatch.setattr(import_module("diffslic.pipeline.depth"), "video_flow_both_ways", both_ways)


def test_pairs_and_frames_with_true_flow(clip, true_flow):
    raft = RAFT()
    for t, other in ((0, 1), (1, 0), (2, 1)):
        found = pipeline.pair_depth(clip, t, other, raft, min_parallax=0.5)
        assert metrics.depth(found.depth[0], clip.depth(t))["abs_rel"] < 1e-3 and found.valid.float().mean() > 0.2
    one, two = (pipeline.frame_depth(clip, 1, raft, offsets, min_parallax=0.5) for offsets in ((1, 5), (-1, 0, 1)))
    assert two.valid.sum() > one.valid.sum()
    with pytest.raises(ValueError, match="frame 1 of clip .* has no other frame at the offsets .9, 0."):
        pipeline.frame_depth(clip, 1, raft, (9, 0))


def test_the_command_writes_what_it_says(folder, clip, tmp_path, capsys, monkeypatch):
    asked, module = [], import_module("diffslic.pipeline.depth")
    frames, flow = [clip.frame(t) for t in range(3)], module.video_flow_both_ways

    def counted(raft, pair, *how):
        asked.append(tuple(min(range(3), key=lambda i: float((frames[i] - shown).abs().mean())) for shown in pair))
        return flow(raft, pair, *how)

    monkeypatch.setattr(module, "video_flow_both_ways", counted)
    command = ["depth", str(folder), "--out", str(tmp_path / "out"), "--iters", "2", "--min-parallax", "0.5",
               "--offsets=-1,1"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and "000000: depth on" in printed[0] and "AbsRel" in printed[0]
    assert asked == [(0, 1), (1, 2)]  # each pair once, for both its frames
    name = datasets.open("tartanair", root=folder)[0].name
    depth, sigma = (np.load(tmp_path / "out" / name / f"000001{kind}.npy") for kind in ("", "_sigma"))
    assert depth.shape == SIZE and depth.dtype == np.float32 and np.array_equal(np.isnan(depth), np.isnan(sigma))
    assert np.nanmin(depth) > 0 and io.read_image(tmp_path / "out" / name / "000001_depth.png").shape == (3, *SIZE)
    assert cli.main([*command, "--superpixels", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["frame"] for row in rows] == ["000000", "000001", "000002"] and 0 < rows[0]["valid"] <= 1
    assert rows[0]["coverage"] == pytest.approx(rows[0]["valid"])  # here all pixels have a truth


def test_bad_input_is_one_line(folder, clip, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    without = tmp_path / "without"
    layouts.write_tartanair([clip], without)
    next(without.rglob("pose_left.txt")).unlink()
    missing, data = str(tmp_path / "no"), str(folder)
    for arguments, reason in (([data, "--offsets", "one"], "whole numbers such as -1,1, got 'one'"),
                              ([data, "--dataset", "kitti"], "dataset"), ([missing], "no trajectory"),
                              ([str(without)], "has no camera_to_world"),
                              ([data, "--offsets", "7"], "no other frame at"),
                              ([data, "--min-parallax", "0"], "above 0 pixels"),
                              ([data, "--fov", "80"], "--fov is for recordings"),
                              ([data, "--offsets", "2"], "no other frame at the offsets [2]")):
        assert cli.main(["depth", *arguments, *out]) == 2
        assert reason in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
    for arguments, reason in ((["--size", "big"], "rows x columns"), (["--scene", "moon"], "unknown preset 'moon'"),
                              (["--fov", "180"], "field of view")):
        assert cli.main(["airsim-server", "--port", "0", *arguments]) == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(ValueError, match="needs a clip, got none"):
        pipeline.save_depth([], tmp_path, RAFT())


def test_on_real_frames_fusion_is_better(reference):
    clip = datasets.open("tartanair", root=reference / "data/tartanair/trajectory")[0]
    raft = RAFT.from_pretrained("small")
    for t in (2, 8):  # one of each half
        z = clip.depth(t)[None]
        pair = pipeline.pair_depth(clip, t, t + 1, raft, min_parallax=1.0)
        fused = pipeline.frame_depth(clip, t, raft, (-1, 1), min_parallax=1.0)
        errors = []
        for estimate in (pair, fused):  # the half of the pixels that each is surest of
            relative = (estimate.sigma / estimate.depth).where(estimate.valid, torch.inf).flatten()
            surest = torch.zeros_like(relative, dtype=torch.bool)
            surest[relative.topk(len(relative) // 2, largest=False).indices] = True
            figures = metrics.depth(estimate.depth, z, surest.view_as(z))
            assert figures["coverage"] == pytest.approx(0.5)
            errors.append(figures["abs_rel"])
        assert errors[1] < errors[0] and errors[1] < {2: 0.1, 8: 0.3}[t]
