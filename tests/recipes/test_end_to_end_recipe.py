"""The recipe that trains all parts together, the comparison with training one, and their commands."""

import json

import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from diffslic import cli, datasets, gate, pipeline
from diffslic.datasets.clip import VOID
from diffslic.flow import RAFT
from diffslic.pipeline import PARTS, EndToEnd
from diffslic.recipes import augment, comparison, end_to_end, unet
from diffslic.segmentation import MotionNet, MotionNetConfig, UNet
from diffslic.superpixels import SSN, SSNConfig, label_reconstruction, soft_slic

SIZE = (48, 64)
SHAPE = {"widths": (4, 8), "n_iters": 1, "n_spixels": 20}
COUNTS = {"flow": 4, "superpixels": 4, "image": 3}


@pytest.fixture(scope="module")
def clips():
    return datasets.open("scenes", preset="lab", n_clips=3, n_frames=4, size=SIZE)


@pytest.fixture(scope="module")
def ssn(tmp_path_factory):
    """A small composite."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "ssn.safetensors"
    SSN(SSNConfig(width=4, out_channels=1, extra_channels=4, extra_width=4, extra_out_channels=2, n_iters=2)).save(path)
    return path


def trained(folder, clips, ssn, **options):
    how = {"steps": 4, "batch_size": 1, "validate_every": 2, "device": "cpu", "workers": 0, "progress": False}
    return end_to_end.train(folder, clips[:2], clips[2:], **{"shape": {**SHAPE, "ssn": ssn}, **how, **options})


def test_a_batch_depends_on_its_number_alone_and_holds_neighbours(clips):
    first, second = (end_to_end.Triples(clips, COUNTS, 2, seed=1) for _ in range(2))
    second(5)
    batch = first(3)
    assert all(torch.equal(value, second(3)[key]) for key, value in batch.items())
    assert batch["frame"].shape == (2, 3, *SIZE) and batch["mixing"].shape == (2, 11, 11)
    order, mirrored = np.random.default_rng([1, 0]).permutation(len(first.frames)), 0
    for item, place in enumerate(order):
        sample, (i, t) = first._sample(item), first.frames[place]
        frames = [(clips[i].frame(t + step) * 255).round() / 255 for step in (-1, 0, 1)]
        labels = clips[i].labels(t)
        if not torch.equal(sample["frame"], frames[1]):
            mirrored, frames, labels = mirrored + 1, [frame.flip(-1) for frame in frames], labels.flip(-1)
        for name, frame in zip(("before", "frame", "after"), frames):
            assert torch.equal(sample[name], frame)
        assert torch.equal(sample["labels"], labels)
    assert 0 < mirrored < len(order)


def test_the_head_sees_what_the_other_recipe_shows(clips):
    """The same draws: flow stronger or weaker, other colours, looks disguised or withheld, as a matrix or in place."""
    inputs = {"flow": 4, "image": 3}
    samples = unet.Samples([clip.part(1, 4) for clip in clips], tuple(inputs), 1, seed=2)
    triples = end_to_end.Triples(clips, inputs, 1, seed=2)
    assert len(samples.frames) == len(triples.frames) == 6
    withheld = 0
    for number in range(12):
        sample, triple = samples(number), triples(number)
        assert torch.equal(sample["labels"], triple["labels"])
        i, t = triples.frames[np.random.default_rng([2, number // 6]).permutation(6)[number % 6]]
        flow = pipeline.flow_channels(clips[i].flow(t)[None])[0].half().float()
        if not torch.equal(triple["frame"][0], (clips[i].frame(t) * 255).round() / 255):
            flow = augment.flip_flow(flow.unflatten(0, (2, 2)), True, False).flatten(0, 1)
        channels = torch.cat([flow, 2 * triple["shown"][0] - 1])
        seen = torch.einsum("ij,jhw->ihw", triple["mixing"][0], channels)
        assert (seen - sample["input"][0]).abs().max() < 1e-4
        withheld += not triple["mixing"][0, 4:].any()
    assert 0 < withheld < 12


def test_mixing_leaves_kinds_apart_and_withholds_looks_as_often_as_it_should(clips):
    triples = end_to_end.Triples(clips, COUNTS, 1, seed=0)
    image = torch.rand(3, 8, 8)
    matrices = [triples._seen_by_the_head(image, np.random.default_rng(seed))[1] for seed in range(200)]
    assert 0.5 < sum(bool(matrix[4:].any()) for matrix in matrices) / 200 < 0.7  # withheld: 40 %
    for matrix in matrices:
        assert torch.equal(matrix[:4, :4], matrix[0, 0] * torch.eye(4)) and 0.7 <= matrix[0, 0] <= 1.4
        assert not matrix[:4, 4:].any() and not matrix[4:8, 8:].any()


def test_parts_begin_to_learn_one_after_the_other(clips, ssn, tmp_path, monkeypatch):
    told, learn = [], EndToEnd.learn
    monkeypatch.setattr(EndToEnd, "learn", lambda self, parts: (told.append(tuple(parts)), learn(self, parts)))
    joins = {"head": 0.0, "superpixels": 0.25, "flow": 0.5}
    trained(tmp_path / "all", clips, ssn, joins=joins)
    assert told[1:] == [PARTS[:1], PARTS[:2], PARTS, PARTS][:4] + told[5:]  # the first call makes the network
    EndToEnd.from_pretrained(tmp_path / "all" / "best.safetensors").head.save(tmp_path / "head.safetensors")
    told.clear()
    shape = {**SHAPE, "widths": None, "ssn": ssn, "start": tmp_path / "head.safetensors"}
    trained(tmp_path / "head", clips, ssn, joins=joins, frozen=["head"], shape=shape)
    assert told[1:3] == [("superpixels",), ("superpixels", "flow")]  # the first that learns does so from the start


def test_what_is_frozen_stays_as_it_was(clips, ssn, tmp_path):
    start = end_to_end.network(**SHAPE, ssn=ssn)
    start.save(tmp_path / "start.safetensors")
    for frozen in PARTS:
        fit = trained(tmp_path / frozen, clips, ssn, frozen=[frozen], joins=dict.fromkeys(PARTS, 0.0),
                      shape={"start": tmp_path / "start.safetensors"})
        made = EndToEnd.from_pretrained(fit.weights)
        for part in PARTS:
            same = all(torch.equal(value, dict(made.get_submodule(part).named_parameters())[name])
                       for name, value in start.get_submodule(part).named_parameters())
            assert same == (part == frozen)


def test_it_learns(clips, ssn, tmp_path):
    fit = trained(tmp_path, clips, ssn, steps=24, validate_every=8, joins=dict.fromkeys(PARTS, 0.0))
    losses = fit.history["loss"].to_numpy()
    assert losses[-1] < losses[0]
    card = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert "End to end: flow, superpixels, head" in card
    assert "; learning from step 1: head, from 1: superpixels, from 1: flow |" in card
    masks = end_to_end.predict(EndToEnd.from_pretrained(fit.weights), clips[2])
    assert masks.shape == (4, *SIZE) and masks.dtype == np.uint8


def test_a_default_that_is_named_is_the_same_run(clips, ssn, tmp_path):
    trained(tmp_path, clips, ssn)
    again = trained(tmp_path, clips, ssn, shape={**SHAPE, "ssn": ssn, "head": "unet", "recompute": True})
    assert list(again.history["step"]) == [2, 4]
    with pytest.raises(ValueError, match="last.ckpt is of another run: head unet there, transformer here; widths"):
        trained(tmp_path, clips, ssn, shape={"n_iters": 1, "n_spixels": 20, "ssn": ssn, "head": "transformer"})


def test_it_goes_on_from_a_file_of_its_own(clips, ssn, tmp_path):
    fit = trained(tmp_path / "first", clips, ssn, steps=2)
    known = EndToEnd.from_pretrained(fit.weights)
    again = end_to_end.network(start=fit.weights, recompute=True)
    assert (again.n_iters, again.n_spixels, again.keep_activations) == (1, 20, False)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in known.state_dict().items())
    other = end_to_end.network(start=fit.weights, n_iters=3, n_spixels=30, polished="none")
    assert (other.n_iters, other.n_spixels, other.polished, again.polished) == (3, 30, "none", "variational")
    more = trained(tmp_path / "more", clips, ssn, shape={"start": fit.weights}, steps=2)
    made = EndToEnd.from_pretrained(more.weights)
    assert any(not torch.equal(value, made.state_dict()[name]) for name, value in known.state_dict().items())
    again = trained(tmp_path / "more", clips, ssn, shape={"start": fit.weights, "n_iters": 1, "head": None}, steps=2)
    assert again.seconds == more.seconds  # the same run
    with pytest.raises(ValueError, match="another run: n_iters 1 there, 2 here;"):
        trained(tmp_path / "more", clips, ssn, shape={"start": fit.weights, "n_iters": 2}, steps=2)


@pytest.mark.parametrize("name, value", [("head", "unet"), ("raft", "small"), ("ssn", "composite-davis2016"),
                                         ("inputs", ["flow"]), ("widths", (4, 8)), ("residual", False)])
def test_a_file_with_all_parts_is_not_mixed_with_others(clips, tmp_path, name, value):
    end_to_end.network(n_iters=1, widths=(4, 8)).save(tmp_path / "all.safetensors")
    with pytest.raises(ValueError, match=rf"^{name} is of a new network: .*all.safetensors has its own$"):
        end_to_end.network(start=tmp_path / "all.safetensors", **{name: value})


def test_a_file_in_the_wrong_place_is_told_what_it_is(tmp_path):
    together, alone = tmp_path / "all.safetensors", tmp_path / "unet.safetensors"
    net = end_to_end.network(n_iters=1, widths=(4, 8))
    net.save(together)
    told = (f"^{together} holds flow, superpixels and masks trained end to end: it is for segment --method end-to-end "
            "--weights and for train unet --end-to-end --start$")
    for network in (UNet, RAFT, SSN, MotionNet):
        with pytest.raises(ValueError, match=told):
            network.from_pretrained(together)
    for part, told in ((net.head, "a U-Net, which is for --method unet"), (net.flow, "a RAFT, which is for --raft"),
                       (net.superpixels, "an SSN, which is for --ssn"), (MotionNet(MotionNetConfig()), "a MotionNet")):
        part.save(alone)
        with pytest.raises(ValueError, match=f"{alone} does not hold a network trained end to end, but {told}"):
            EndToEnd.from_pretrained(alone)


@pytest.mark.parametrize("frozen, steps, told", [
    ((), 300, "learning from step 1: head, from 31: superpixels, from 61: flow"),
    (("head",), 300, "learning from step 1: superpixels, from 31: flow"),
    (("superpixels", "head"), 300, "learning from step 1: flow"),
    ((), 4, "learning from step 1: head, from 2: superpixels, from 2: flow"),
])
def test_it_is_told_when_parts_begin_to_learn(frozen, steps, told):
    assert end_to_end.told_in_order(end_to_end.first_steps(steps, frozen)) == told


def test_the_photometric_loss_tells_there_from_back(clips):
    """Of a picture that moves to the right, the flow ahead points right and the flow back left."""
    picture = torch.rand(1, 3, 20, 30)
    batch = {"before": picture.roll(-2, 3), "frame": picture, "after": picture.roll(2, 3),
             "labels": torch.zeros(1, 20, 30, dtype=torch.int64)}
    right = torch.tensor([2.0, 0])[None, :, None, None].expand(1, 2, 20, 30)
    superpixels = soft_slic(picture, (2, 3), 1)

    def loss(flow):
        seen = pipeline.Prediction(torch.zeros(1, 1, 20, 30), flow, superpixels, flow)
        plain, more = (end_to_end.losses(seen, batch, end_to_end.Weights(photometric=weight)) for weight in (0, 1))
        return float(more - plain)

    assert loss(torch.cat([right, -right], 1)) == pytest.approx(0, abs=1e-4)
    assert loss(torch.cat([-right, right], 1)) > 0.05
    assert loss(torch.cat([right, right], 1)) > 0.02


def test_raft_is_told_what_the_polish_adds_and_the_polish_nothing():
    own, picture = torch.zeros(1, 4, 20, 30, requires_grad=True), torch.rand(1, 3, 20, 30)
    flow = (own.detach() + torch.tensor([3.0, 4, 0, 0])[None, :, None, None]).requires_grad_()
    seen = pipeline.Prediction(torch.zeros(1, 1, 20, 30), flow, soft_slic(picture, (2, 3), 1), own)
    batch = {"labels": torch.zeros(1, 20, 30, dtype=torch.int64)}
    more, plain = (end_to_end.losses(seen, batch, end_to_end.Weights(polish=weight)) for weight in (1, 0))
    assert float((more - plain).detach()) == pytest.approx(2.5)  # 5 pixels ahead, none back
    more.sum().backward()
    assert flow.grad is None and (own.grad[:, 0] < 0).all() and own.grad[:, 2:].abs().max() == 0


def test_void_teaches_nothing():
    labels = torch.zeros(1, 20, 30, dtype=torch.int64)
    labels[:, :, 15:] = 1
    seen = pipeline.Prediction(torch.randn(1, 1, 20, 30), torch.zeros(1, 4, 20, 30),
                               soft_slic(torch.rand(1, 3, 20, 30), (2, 3), 1), torch.zeros(1, 4, 20, 30))
    void = labels.clone()
    void[:, 5:] = VOID
    other = torch.where(void == VOID, 1 - labels, labels)  # whatever is below the void
    weights = end_to_end.Weights(compactness=0.0)
    assert end_to_end.losses(seen, {"labels": void}, weights) != end_to_end.losses(seen, {"labels": labels}, weights)
    known = label_reconstruction(seen.superpixels, labels, known=void != VOID)
    assert torch.equal(known, label_reconstruction(seen.superpixels, other, known=void != VOID))


def test_bad_settings_are_refused(clips, ssn, tmp_path):
    with pytest.raises(ValueError, match="one at least must learn: all are frozen"):
        trained(tmp_path, clips, ssn, frozen=["flow", "superpixels", "head"])
    with pytest.raises(ValueError, match="there is no part 'raft' to freeze"):
        trained(tmp_path, clips, ssn, frozen=["raft"])
    with pytest.raises(ValueError, match="a clip of three frames, the longest has 2"):
        end_to_end.Triples([clip.part(0, 2) for clip in clips], COUNTS, 1, 0)
    with pytest.raises(ValueError, match="the head is one of unet, transformer, got 'mlp'"):
        end_to_end.network("mlp")
    with pytest.raises(ValueError, match="a transformer starts from nothing"):
        end_to_end.network("transformer", start="motion")
    with pytest.raises(ValueError, match="the input 'depth' is unknown"):
        end_to_end.network(inputs=["depth"])
    with pytest.raises(ValueError, match="widths is of a new network: motion has its own"):
        end_to_end.network(start="motion", widths=(4, 8))
    with pytest.raises(ValueError, match="residual is of a new U-Net: the head is a transformer"):
        end_to_end.network("transformer", residual=True)
    with pytest.raises(ValueError, match="inputs must begin with those of motion"):
        end_to_end.network(start="motion", inputs=["image"])
    with pytest.raises(ValueError, match="flow reads flow: that cannot become flow, image"):
        end_to_end.network(start="flow", inputs=["flow", "image"])
    with pytest.raises(ValueError, match="finite and not negative, got photometric -1.0"):
        trained(tmp_path, clips, ssn, weights=end_to_end.Weights(photometric=-1.0))


def test_superpixels_of_a_composite_are_kept_as_others_are(clips, ssn, tmp_path):
    exact = clips[0]  # scenes know their flow both ways
    [cached] = pipeline.precompute_superpixels([exact], SSN.from_pretrained(ssn), tmp_path, 20, progress=False)
    extra = torch.cat([exact.flow(1), exact.backward_flow(1)])
    found = pipeline.find_superpixels(SSN.from_pretrained(ssn), exact.frame(1), 20, extra)
    assert torch.equal(cached.superpixel_labels(1), found.labels)
    other = exact.with_readers(flow=lambda t: -exact.flow(t))  # another flow, in the same folder
    [again] = pipeline.precompute_superpixels([other], SSN.from_pretrained(ssn), tmp_path, 20, progress=False)
    found = pipeline.find_superpixels(SSN.from_pretrained(ssn), exact.frame(1), 20,
                                      torch.cat([-exact.flow(1), exact.backward_flow(1)]))
    assert torch.equal(again.superpixel_labels(1), found.labels)


def score_rows(gains):
    """Of two arms, three clips and as many seeds as there are gains."""
    return pd.DataFrame([{"arm": arm, "seed": seed, "clip": clip, "j": j + more, "f": 0.5, "seconds": 2.0}
                         for arm in (comparison.BASE, "end to end") for seed, gain in enumerate(gains)
                         for clip, j, more in zip("abc", (0.2, 0.5, 0.8), 3 * [gain * (arm != comparison.BASE)])])


def test_a_gain_is_a_difference_on_the_same_clips():
    """All clips and seeds gain .1 whatever their own score: the gain is certain, the scores are not."""
    table = comparison.table(score_rows((0.1, 0.1)))
    assert table.loc["end to end", "gain"] == pytest.approx(0.1)
    assert table.loc["end to end", "gain +-"] == pytest.approx(0, abs=1e-9)
    assert table.loc[comparison.BASE, "J"] == pytest.approx(0.5)
    assert table.loc[comparison.BASE, "+-"] == pytest.approx(4.3027 * 0.3 / 3 ** 0.5, rel=1e-3)  # Student, two degrees


def test_what_seeds_disagree_about_is_in_the_interval():
    table = comparison.table(score_rows((0.0, 0.1, 0.2)))
    assert table.loc["end to end", "gain +-"] == pytest.approx(4.3027 * 0.1 / 3 ** 0.5, rel=1e-3)
    assert tuple(table.loc["end to end", ["least gain", "most gain"]]) == pytest.approx((0, 0.2))


def test_the_table_that_is_told_is_the_one_that_was_measured():
    """In the page and in the notebook, from the rows that are kept."""
    rows = pd.read_csv(gate.ROOT / "docs" / "end_to_end.csv")
    assert list(dict.fromkeys(rows["arm"])) == list(comparison.ARMS) and sorted(rows["seed"].unique()) == [0, 1, 2]
    told = comparison.markdown(comparison.table(rows))
    assert told in (gate.ROOT / "docs" / "end_to_end.md").read_text(encoding="utf-8")
    notebook = nbformat.read(gate.NOTEBOOKS / "motion_segmentation.ipynb", as_version=4)
    assert any(told in cell.source for cell in notebook.cells)


def test_the_comparison_runs_and_goes_on(tmp_path):
    clips = comparison.scenes(SIZE, 2, 1, 2, n_frames=4)
    arms = [comparison.BASE, "head frozen", "transformer alone, in one graph"]
    how = {"arms": arms, "seeds": [0], "steps": 1, "batch_size": 1, "n_iters": 1, "n_spixels": 20, "progress": False}
    rows = comparison.compare(tmp_path, clips, **how)
    assert list(rows["arm"].unique()) == arms and len(rows) == 6
    assert not {c.name for c in clips.train + clips.validation} & {c.name for c in clips.test}
    weights = tmp_path / "head_frozen" / "0" / "best.safetensors"
    before = weights.stat().st_mtime_ns
    pd.testing.assert_frame_equal(rows, comparison.compare(tmp_path, clips, **how))
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds another comparison"):
        comparison.compare(tmp_path, clips, **{**how, "n_iters": 2})
    with pytest.raises(ValueError, match="holds another comparison"):
        comparison.compare(tmp_path, comparison.scenes((64, 96), 2, 1, 2, n_frames=4), **how)
    with pytest.raises(ValueError, match="not end to end, flow frozen"):
        comparison.compare(tmp_path, clips, **{**how, "arms": [*arms, "end to end, flow frozen"]})
    comparison.compare(tmp_path, clips, **{**how, "arms": arms[:2]}, resume=False)
    assert weights.stat().st_mtime_ns != before


def test_commands(ssn, tmp_path, capsys, monkeypatch):
    small = unet.open_clips
    monkeypatch.setattr(unet, "open_clips", lambda dataset, **how: small(dataset, **{**how, "size": SIZE}))
    out = tmp_path / "out"
    command = ["train", "unet", "--end-to-end", "--out", str(out), "--n-clips", "2", "--n-frames", "3", "--steps", "1",
               "--batch-size", "1", "--ssn", str(ssn), "--n-iters", "1", "--n-spixels", "20", "--widths", "4,8",
               "--polish", "none", "--freeze", "flow", "--photometric", "0.1", "--recompute", "--device", "cpu",
               "--workers", "0", "--json"]
    assert cli.main(command) == 0
    assert json.loads(capsys.readouterr().out)["best_step"] == 1
    weights = str(out / "best.safetensors")
    more = ["train", "unet", "--end-to-end", "--start", weights, "--out", str(tmp_path / "more"), "--n-clips", "2",
            "--n-frames", "3", "--steps", "2", "--batch-size", "1", "--device", "cpu", "--workers", "0"]
    assert cli.main(more) == 0
    told = capsys.readouterr()
    assert "learning from step 1: head, from 2: superpixels, from 2: flow\n" in told.err
    assert EndToEnd.from_pretrained(tmp_path / "more" / "best.safetensors").n_spixels == 20
    for refused, words in ((["--raft", "small"], "raft is of a new network"),
                           (["--widths", "4,8"], "widths is of a new network"),
                           (["--no-residual"], "residual is of a new network")):
        assert cli.main([*more, *refused]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["train", "unet", "--start", weights, "--out", str(tmp_path / "x")]) == 2
    assert "it is for segment --method end-to-end --weights and for train unet" in capsys.readouterr().err
    assert cli.main(["scenes", str(tmp_path / "davis"), "--n-clips", "1", "--n-frames", "3", "--size", "48", "64"]) == 0
    frames = next((tmp_path / "davis" / "JPEGImages").glob("*/*"))
    assert cli.main(["segment", str(frames), "--method", "end-to-end", "--weights", str(out / "best.safetensors"),
                     "--out", str(tmp_path / "masks"), "--json"]) == 0
    assert len(list((tmp_path / "masks" / "masks").iterdir())) == 3


def test_the_pre_generated_path_takes_the_same_parts(ssn, tmp_path, capsys, monkeypatch):
    """By command as by recipe; a run that was stopped does not go on with flow or superpixels of other parts."""
    small = unet.open_clips
    monkeypatch.setattr(unet, "open_clips", lambda dataset, **how: small(dataset, **{**how, "size": SIZE}))
    parts = {"--ssn": ssn, "--n-iters": 1, "--n-spixels": 20, "--polish": "none"}

    def command(steps="2", **other):
        told = [str(word) for pair in {**parts, **other}.items() for word in pair]
        return cli.main(["train", "unet", "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *told,
                         "--n-clips", "2", "--n-frames", "3", "--steps", steps, "--batch-size", "1", "--widths", "4,8",
                         "--device", "cpu", "--workers", "0"])

    assert command() == 0
    [clip, _], _ = unet.prepare("scenes", tmp_path / "again", n_clips=2, n_frames=3, ssn=ssn, n_iters=1, n_spixels=20,
                                polished="none", progress=False)
    with h5py.File(next((tmp_path / "cache").rglob(f"flow/{clip.name}.h5"))) as file:
        assert json.loads(file.attrs["configuration"])["n_iters"] == 1
    assert 10 < len(clip.superpixel_vectors(0)) < 40 and clip.flow(0).shape == (2, *SIZE)
    raft = RAFT.from_pretrained("small")
    own = next(raft.video((clip.frame(t) for t in range(2)), 1))
    assert (clip.flow(0) - own).abs().max() < 0.01
    kept = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.h5")}
    made = json.loads(h5py.File(next((tmp_path / "cache").rglob(f"superpixels/{clip.name}.h5"))).attrs["configuration"])
    assert made["superpixels"] == pipeline.fingerprint(SSN.from_pretrained(ssn)) and made["n_spixels"] == 20
    for option, value, words in (("--polish", "variational", "polished none there, variational here"),
                                 ("--n-iters", 2, "n_iters 1 there, 2 here"),
                                 ("--n-spixels", 40, "n_spixels 20 there, 40 here"),
                                 ("--ssn", "scenes", f"ssn {ssn} there, scenes here")):
        assert command(**{option: value}) == 2
        assert f"of another run: {words}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.h5")} == kept
    assert command() == 0
    assert "out: done are all 2\n" in capsys.readouterr().err
    for option, words in (("--n-spixels", "must be at least 1"), ("--polish", "one of variational, search, none")):
        assert command(**{option: "0"}) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize("arguments, words", [
    (["--head", "transformer"], "--head is of --end-to-end"),
    (["--recompute"], "--recompute is of --end-to-end"),
    (["--inputs", "image", "--polish", "none"], "--polish is for flow and superpixels: neither is among the inputs"),
    (["--inputs", "flow", "--n-spixels", "9"], "--n-spixels is for superpixels, which are not among the inputs"),
    (["--inputs", ""], "the input '' is unknown"),
    (["--end-to-end", "--freeze", "head"], "a frozen head must have learned before: give weights to start from"),
    (["--start", "motion", "--widths", "4,8"], "widths is of a new network: motion has its own"),
    (["--start", "motion", "--residual"], "residual is of a new network: motion has its own"),
    (["--end-to-end", "--start", "motion", "--widths", "4,8"], "widths is of a new network: motion has its own"),
    (["--end-to-end", "--head", "transformer", "--widths", "4,8"], "widths is of a new U-Net: the head is a"),
    (["--end-to-end", "--cache", "cache"], "--cache is for what is computed beforehand: --end-to-end keeps nothing"),
    (["--end-to-end", "--head", "mlp"], "the head is one of unet, transformer, got 'mlp'"),
    (["--end-to-end", "--ssn", "scenes"], "must be those of a composite SSN"),
    (["--end-to-end", "--inputs", "flow,depth"], "the input 'depth' is unknown"),
    (["--end-to-end", "--n-iters", "0"], "n_iters and n_spixels must be at least 1, got 0 and 400"),
    (["--end-to-end", "--photometric", "-1", "--n-clips", "2"], "must be finite and not negative, got photometric"),
    (["--dataset", "davis2016", "--end-to-end", "--root", "DAVIS"], "every sixth sequence of the training split"),
    (["--end-to-end", "--freeze", "raft", "--n-clips", "2"], "there is no part 'raft' to freeze"),
])
def test_bad_commands(arguments, words, tmp_path, capsys):
    if "DAVIS" in arguments:
        cli.main(["scenes", str(tmp_path / "d"), "--n-clips", "4", "--n-frames", "3", "--size", "48", "64"])
        arguments = [*arguments[:-1], str(tmp_path / "d"), "--resolution", "48p"]
    assert cli.main(["train", "unet", "--out", str(tmp_path / "x"), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
