"""Recipes: batches that hang together, clips split by sequence, and a few steps of each training."""

import numpy as np
import pytest
import torch

from diffslic import datasets, geometry, pipeline
from diffslic.datasets import io
from diffslic.flow import RAFT, RAFTConfig
from diffslic.recipes import augment, instances, raft, ssn, unet
from diffslic.segmentation import UNet
from diffslic.superpixels import SSN, SpixelFCN, SSNConfig

SIZE = (64, 96)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three small scenes with the flow and superpixels of untrained networks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cache")
    drawn = datasets.open("scenes", preset="lab", n_clips=3, n_frames=3, size=SIZE)
    drawn = pipeline.precompute_flow(drawn, RAFT().eval(), folder / "flow", n_iters=1, progress=False)
    return pipeline.precompute_superpixels(drawn, SSN(SSNConfig("pix")).eval(), folder / "spixels", 24, progress=False)


def drawn(n_frames=3):
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=n_frames, size=SIZE)


def flow_clips(n_clips=2, size=(280, 340), seed=0):
    return datasets.open("scenes", preset="lab", n_clips=n_clips, n_frames=2, size=size, seed=seed)


SOURCES = {"scenes": lambda: raft.scene_pairs(2, 3, 3), "collages": raft.collage_pairs,
           "clips": lambda: raft.clip_pairs(flow_clips())}


@pytest.mark.parametrize("source", SOURCES)
def test_pairs_stay_pairs_after_augmentation(monkeypatch, source):
    monkeypatch.setattr(augment, "jitter_colors", lambda images, rng: images)
    batch = raft.Pairs({SOURCES[source](): 1.0}, batch_size=4, seed=3)(0)
    assert batch["image1"].shape == (4, 3, *raft.CROP)
    warped = geometry.warp(batch["image2"], batch["flow"], padding="border")
    seen = geometry.lands_inside(batch["flow"]) & batch["valid"]
    after = (warped - batch["image1"]).abs().mean(1)[seen].mean()
    before = (batch["image2"] - batch["image1"]).abs().mean(1)[seen].mean()
    assert after < 0.6 * before


@pytest.mark.parametrize("make", [lambda: raft.Pairs({raft.collage_pairs(): 0.5, raft.scene_pairs(1, 2, 3): 0.5}, 2, 3),
                                   lambda: ssn.Crops(drawn(), 2, 3, flow=True)])
def test_a_batch_depends_on_its_number_alone(make):
    first, second = make(), make()
    second(4)
    for key, value in first(7).items():
        assert torch.equal(value, second(7)[key])
    assert not all(torch.equal(a, b) for a, b in zip(first(7).values(), first(8).values()))


@pytest.mark.parametrize("horizontal", [False, True])
@pytest.mark.parametrize("vertical", [False, True])
def test_mirrored_frames_have_the_mirrored_flow(horizontal, vertical):
    clip = datasets.open("scenes", preset="street", n_clips=1, n_frames=2, size=SIZE)[0]
    flow = augment.flip_flow(clip.flow(0), horizontal, vertical)[None]
    first, second = (augment.flip_image(clip.frame(t), horizontal, vertical)[None] for t in (0, 1))
    seen = ~augment.flip_image(clip.occlusion(0), horizontal, vertical)[None]
    error = (geometry.warp(second, flow, padding="border") - first).abs().mean(1)
    assert error[seen].mean() < 0.5 * (second - first).abs().mean(1)[seen].mean()


def test_crops_lie_inside_and_colours_change_alike():
    rng = np.random.default_rng(0)
    for _ in range(20):
        rows, columns = augment.crop_window((50, 40), (30, 60), rng)
        assert 0 <= rows.start and rows.stop <= 50 and rows.stop - rows.start == 30
        assert (columns.start, columns.stop) == (0, 40)
    same = torch.rand(1, 3, 20, 20).expand(2, -1, -1, -1)
    one, two = augment.jitter_colors(same, np.random.default_rng(1))
    assert (one - two).abs().mean() < 0.05  # noise only
    assert (one - same[0]).abs().mean() > 0.01


@pytest.mark.parametrize("crop", [(32, 40), (200, 40)])
def test_segments_are_numbered_within_the_crop(monkeypatch, crop):
    monkeypatch.setattr(ssn, "CROP", crop)
    batch = ssn.Crops(drawn(), 3, 1)(0)
    assert batch["image"].shape == (3, 3, min(crop[0], SIZE[0]), 40) and "flow" not in batch
    assert ssn.CELLS[0] <= batch["n_spixels"].unique().item() <= ssn.CELLS[1]
    for segments in batch["segments"]:
        assert torch.equal(segments.unique(), torch.arange(int(segments.max()) + 1))


def test_samples_cover_every_frame_once_an_epoch_and_keep_inputs_and_mask_together(clips):
    samples = unet.Samples(clips, ["flow", "superpixels", "image"], batch_size=3, seed=0)
    assert len(samples.frames) == 6
    seen = []
    samples._read, read = lambda *frame: seen.append(frame) or read(*frame), samples._read
    batches = [samples(0), samples(1)]
    assert sorted(seen) == sorted(samples.frames)
    assert batches[0]["input"].shape == (3, 4 + 3 + 3, *SIZE)  # pixel superpixels hold Lab alone
    assert batches[0]["labels"].shape == (3, *SIZE)
    known = torch.cat([clip.labels(t) for clip in clips for t in range(2)]).unique().tolist()
    assert set(torch.cat([batch["labels"] for batch in batches]).unique().tolist()) <= set(known)


def test_samples_show_what_use_shows_but_for_the_disguise(clips, monkeypatch):
    monkeypatch.setattr(augment, "disguise", lambda values, rng: values)
    monkeypatch.setattr(augment, "jitter_colors", lambda images, rng: images)
    monkeypatch.setattr(unet, "WITHHELD", 0)
    samples, expected = unet.Samples(clips, pipeline.INPUTS, batch_size=1, seed=0), []
    for clip, t in samples.frames:
        channels = pipeline.clip_input(clips[clip], t, pipeline.INPUTS)
        expected += [channels, pipeline.mirrored_input(channels, pipeline.INPUTS)]
    for number in range(6):
        seen = samples(number)["input"][0]
        # The flow's strength varies, by one number; bytes and halves round the rest.
        apart = [((seen[4:] - other[4:]).abs().max(), torch.cosine_similarity(seen[:4], other[:4], dim=0).min())
                 for other in expected]
        assert any(looks < 0.02 and flow > 0.999 for looks, flow in apart)


def test_some_samples_show_flow_alone(clips):
    batches = [unet.Samples(clips, pipeline.INPUTS, batch_size=6, seed=0)(number)["input"] for number in range(5)]
    flow, looks = (torch.cat(batches)[:, part].flatten(1).abs().amax(1) > 0 for part in (slice(0, 4), slice(4, None)))
    assert flow.all() and 0.2 < 1 - looks.float().mean() < 0.6
    alone = unet.Samples(clips, ["superpixels", "image"], batch_size=6, seed=0)
    assert all((alone(number)["input"].flatten(1).abs().amax(1) > 0).all() for number in range(5))


def test_a_disguise_keeps_where_looks_change():
    values = torch.rand(4, 6, 7)
    values[:, :, 3:] = values[:, :1, :1]  # nothing changes here
    disguised = augment.disguise(values, np.random.default_rng(2))
    assert not torch.allclose(disguised, values)
    steps, hidden = (v.diff(dim=1).abs() for v in (values, disguised))
    assert (hidden[:, :, 3:] == 0).all()
    for row in hidden:  # each is one of the old channels, times one number between a half and one and a half
        ratios = (row[:, :3] / steps[:, :, :3]).flatten(1)
        fits = (ratios - ratios.mean(1, keepdim=True)).abs().amax(1) < 1e-3
        assert fits.sum() == 1 and 0.5 <= ratios[fits].mean() <= 1.5


def test_table_means_over_clips():
    rows = [{"J-Mean": j, "J-Recall": 1.0, "F-Mean": 0.0, "J-Decay": 9.0} for j in (0.2, 0.6)]
    assert unet.table({"a": rows}).loc["a"].to_dict() == {"J-Mean": 0.4, "J-Recall": 1.0, "F-Mean": 0.0}


@pytest.mark.parametrize("inputs", [["flow"], ["superpixels"], ["flow", "superpixels", "image"]])
def test_a_few_steps_of_the_unet(clips, tmp_path, inputs):
    fit = unet.train(tmp_path, clips[:2], clips[2:], inputs=inputs, steps=2, batch_size=2, widths=(4, 8), workers=0,
                     device="cpu", progress=False)
    net = UNet.from_pretrained(fit.weights)
    assert net.config.inputs == tuple(inputs)
    assert set(fit.history.columns) >= {"step", "loss", "j", "f"}
    masks = pipeline.predict(net, clips[2])
    assert unet.score(masks, clips[2])["J-Mean"] == pytest.approx(fit.history["j"].max())


def test_starting_from_weights_keeps_their_shape(clips, tmp_path):
    first = unet.train(tmp_path / "a", clips[:2], clips[2:], inputs=["flow"], steps=1, widths=(4, 8), workers=0,
                       device="cpu", progress=False)
    second = unet.train(tmp_path / "b", clips[:2], clips[2:], start=first.weights, steps=1, workers=0, device="cpu",
                        progress=False)
    assert UNet.from_pretrained(second.weights).config == UNet.from_pretrained(first.weights).config


def test_a_few_steps_of_the_network_of_several_masks(clips, tmp_path):
    known = unet.train(tmp_path / "a", clips[:2], clips[2:], inputs=["flow", "superpixels"], steps=1, widths=(4, 8),
                       workers=0, device="cpu", progress=False)
    how = {"n_bodies": 3, "batch_size": 2, "workers": 0, "device": "cpu", "progress": False}
    fit = instances.train(tmp_path / "b", clips[:2], clips[2:], start=known.weights, steps=2, **how)
    net = UNet.from_pretrained(fit.weights)
    assert net.config.inputs == ("flow", "superpixels", "position") and net.config.out_channels == 4
    assert set(fit.history.columns) >= {"step", "loss", "val_loss", "j"}
    assert instances.evaluate(net, clips[2:])["j"] == pytest.approx(fit.history["j"].max(), abs=1e-5)
    assert "mask for each of several bodies" in (tmp_path / "b" / "card.md").read_text()
    on = instances.network(fit.weights, 3)                 # it can be trained on, with as many masks
    assert on.config == net.config
    with pytest.raises(ValueError, match="masks of 3 bodies, asked was for 6"):
        instances.network(fit.weights)
    found = pipeline.learned_proposals(net)
    view = next(pipeline.views_of(clips[2].with_readers(backward_flow=lambda t: -clips[2].flow(t - 1))))
    regions = view.regions(torch.ones(SIZE, dtype=torch.bool))
    assert found(view, regions).shape == regions.area.shape


def test_samples_for_several_masks_keep_the_ids_and_tell_the_place(clips):
    batch = unet.Samples(clips, ("flow", "position"), batch_size=3, seed=0)(0)
    assert set(batch["labels"].unique().tolist()) == {0, 1} | set(clips[0].labels(0).unique().tolist())
    assert torch.equal(batch["input"][0, -2:], pipeline.position(*SIZE))
    mirrored = pipeline.mirrored_input(batch["input"][0], ("flow", "position"))
    assert torch.equal(mirrored[-2:], batch["input"][0, -2:])


def test_a_clip_on_both_sides_of_the_split_is_refused(clips, tmp_path):
    with pytest.raises(ValueError, match="'lab-00001' is both trained on and validated on"):
        unet.train(tmp_path, clips[:2], clips[1:])


def test_prepare(tmp_path):
    with pytest.raises(ValueError, match="scenes or davis2016, got 'kitti'"):
        unet.prepare("kitti", tmp_path)
    with pytest.raises(ValueError, match="davis2016 needs root"):
        unet.prepare("davis2016", tmp_path)


@pytest.mark.parametrize(("inputs", "kept"), [
    (["image"], set()), (["flow"], {"flow"}), (["superpixels"], {"superpixels"}),
    (["superpixels", "flow"], {"flow", "superpixels"})])
def test_only_what_is_read_is_prepared(tmp_path, inputs, kept):
    how = {"n_clips": 1, "n_frames": 2, "size": SIZE, "inputs": inputs, "progress": False}
    clips, _ = unet.prepare("scenes", tmp_path, **how)
    assert {path.parent.name for path in tmp_path.rglob("*.h5")} == kept
    assert [clip.name for clip in clips] == ["lab-30000"]


def test_the_superpixels_of_a_composite_are_prepared_from_estimated_flow(tmp_path):
    composite = tmp_path / "net.safetensors"
    SSN(SSNConfig(width=4, out_channels=1, extra_channels=4, extra_width=4, n_iters=2)).save(composite)
    clips, _ = unet.prepare("scenes", tmp_path, n_clips=1, n_frames=2, size=SIZE, inputs=["superpixels"], ssn=composite,
                            progress=False)
    assert {path.parent.name for path in tmp_path.rglob("*.h5")} == {"flow", "superpixels"}
    assert clips[0].has("backward_flow")


def test_a_run_does_not_go_on_with_other_flow(clips, tmp_path):
    how = {"inputs": ["flow"], "widths": (4, 8), "workers": 0, "device": "cpu", "progress": False}
    unet.train(tmp_path, clips[:2], clips[2:], steps=1, **how)
    other = [clip.with_readers(flow=lambda t, clip=clip: 1.1 * clip.flow(t)) for clip in clips[:2]]
    with pytest.raises(ValueError, match=r"another run: mean motion [\d.]+ px there, [\d.]+ px here; remove it"):
        unet.train(tmp_path, other, clips[2:], steps=1, **how)


def test_a_few_steps_of_raft(tmp_path, monkeypatch):
    monkeypatch.setattr(raft, "validation_clips", lambda: datasets.open("scenes", n_clips=1, n_frames=2, size=SIZE))
    fit = raft.train(tmp_path / "raft", steps=2, n_scenes=1, n_frames=2, batch_size=1, n_iters=2, workers=0,
                     device="cpu", progress=False)
    assert RAFT.from_pretrained(fit.weights).config.variant == "small"
    assert np.isfinite(fit.history["epe"]).all()


def test_a_large_raft_that_is_trained_on_keeps_its_moments(tmp_path, monkeypatch):
    monkeypatch.setattr(raft, "CROP", (64, 64))
    torch.manual_seed(0)
    large = RAFT(RAFTConfig("large"))
    large.save(tmp_path / "large.safetensors")
    fit = raft.train(tmp_path / "on", start=tmp_path / "large.safetensors", clips=flow_clips(2, SIZE), batch_size=1,
                     validation=flow_clips(1, SIZE, seed=9), steps=1, n_iters=1, workers=0, device="cpu",
                     progress=False)
    after = RAFT.from_pretrained(fit.weights).cnet.norm1
    assert torch.equal(after.running_mean, large.cnet.norm1.running_mean)
    assert not torch.equal(after.bias, large.cnet.norm1.bias)


@pytest.mark.parametrize(("stage", "moves", "rests"), [({"n_iters": 0}, ["fnet"], ["cnet", "update_block"]),
                                                       ({"n_iters": 2, "freeze_features": True, "power": 0.5},
                                                        ["cnet", "update_block"], ["fnet"])])
def test_the_stages_of_raft_train_what_they_say(tmp_path, stage, moves, rests):
    fit = raft.train(tmp_path / "raft", start="small", clips=flow_clips(2, SIZE),
                     validation=flow_clips(1, SIZE, seed=9), steps=1, batch_size=1, workers=0, device="cpu",
                     progress=False, **stage)
    before, after = RAFT.from_pretrained("small"), RAFT.from_pretrained(fit.weights)
    for names, same in ((moves, False), (rests, True)):
        for name in names:
            pairs = zip(before.get_submodule(name).parameters(), after.get_submodule(name).parameters())
            assert all(torch.equal(a, b) for a, b in pairs) == same
    assert np.isfinite(fit.history["nats" if stage["n_iters"] == 0 else "epe"]).all()


def test_fine_tuning_on_clips_with_flow_that_is_partly_known(tmp_path):
    clip, other = flow_clips(2, SIZE)
    half_known = clip.with_readers(flow=lambda t: clip.flow(t).where(torch.arange(SIZE[0])[:, None] > 9, torch.nan))
    fit = raft.train(tmp_path / "raft", start="small", clips=[half_known], validation=[other], steps=2, batch_size=1,
                     n_iters=2, learning_rate=1e-4, workers=0, device="cpu", progress=False)
    assert np.isfinite(fit.history[["loss", "epe", "epe_visible"]]).all(axis=None)
    assert "1 clips" in (tmp_path / "raft" / "card.md").read_text()


def test_flow_that_is_known_here_and_there_is_taught_there():
    source = raft.collage_pairs()

    def sparse(rng):
        pair = source(rng)
        known = torch.rand(pair.valid.shape) < 0.8  # not from ``rng``, which goes on to cut and colour the pair
        return pair._replace(flow=pair.flow.where(known, torch.nan), valid=known)

    batch, whole = (raft.Pairs({each: 1.0}, 3, seed=3)(0) for each in (sparse, source))
    assert batch["flow"].isfinite().all() and 0.6 < batch["valid"].float().mean() < 1
    gap = (batch["flow"] - whole["flow"]).norm(dim=1)[batch["valid"]]
    assert gap.median() < 0.1


@pytest.mark.parametrize(("options", "reason"), [
    ({"power": 0}, "power must be above 0"), ({"n_iters": -1}, "n_iters at least 0"),
    ({"n_iters": 0, "freeze_features": True}, "cannot be frozen"), ({"n_iters": 0, "devices": 2}, "one process"),
    ({"seed": 50}, "never trained on"), ({"batch_size": 0}, "batch_size must be at least 1")])
def test_what_raft_cannot_be_trained_with_is_refused(tmp_path, options, reason):
    with pytest.raises(ValueError, match=reason):
        raft.train(tmp_path / "raft", steps=1, workers=0, device="cpu", progress=False, **options)
    with pytest.raises(ValueError, match="'lab-00000' is both trained on and validated on"):
        raft.train(tmp_path / "raft", clips=flow_clips(), validation=flow_clips(1), steps=1)
    assert not (tmp_path / "raft").exists()


def test_flow_sets_are_split_by_clip(tmp_path):
    for number in range(3):
        for end, image in (("img1", 0.2), ("img2", 0.4)):
            io.write_image(tmp_path / f"{number:05d}_{end}.png", torch.full((3, 8, 9), image))
            (tmp_path / f"{number:05d}_{end}.png").rename(tmp_path / f"{number:05d}_{end}.ppm")
        io.write_flo(tmp_path / f"{number:05d}_flow.flo", torch.zeros(2, 8, 9))
    clips, validation = raft.prepare("flyingchairs", tmp_path)
    assert [clip.name for clip in clips] == ["00000", "00001"] and [clip.name for clip in validation] == ["00002"]
    (tmp_path / "FlyingChairs_train_val.txt").write_text("2 1 1")
    clips, validation = raft.prepare("flyingchairs", tmp_path)
    assert [clip.name for clip in clips] == ["00001", "00002"] and [clip.name for clip in validation] == ["00000"]
    assert raft.prepare("scenes")[0] == []
    with pytest.raises(ValueError, match="RAFT learns on scenes, flyingchairs, sintel, kitti, tartanair, got 'davis"):
        raft.prepare("davis2016", tmp_path)
    with pytest.raises(ValueError, match="kitti needs root"):
        raft.prepare("kitti")


def test_a_few_steps_of_every_superpixel_network(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(ssn, "COUNTS", (20,))
    how = {"steps": 2, "batch_size": 1, "workers": 0, "device": "cpu", "progress": False}
    scenes = datasets.open("scenes", n_clips=2, n_frames=3, size=SIZE)
    fit = ssn.train(tmp_path / "ssn", scenes[:1], scenes[1:], width=4, **how)
    assert SSN.from_pretrained(fit.weights).config.width == 4
    assert 0.5 < fit.history["asa"].max() <= 1
    on = ssn.train(tmp_path / "on", scenes[:1], scenes[1:], start=fit.weights, **how)
    assert SSN.from_pretrained(on.weights).config == SSN.from_pretrained(fit.weights).config
    both = ssn.train(tmp_path / "both", scenes[:1], scenes[1:], model="composite", start=fit.weights, **how)
    composite = SSN.from_pretrained(both.weights)
    assert composite.config.extra_channels == 4
    assert torch.equal(composite.net.head.weight, SSN.from_pretrained(fit.weights).net.head.weight)
    fcn = ssn.train(tmp_path / "fcn", scenes[:1], scenes[1:], model="spixelfcn", **how)
    assert SpixelFCN.from_pretrained(fcn.weights).config.n_spixels == 200
    assert "Superpixels in one pass" in (tmp_path / "fcn/card.md").read_text()


def test_superpixels_are_learned_from_one_set_and_weighed_on_another(tmp_path):
    scenes = drawn()
    with pytest.raises(ValueError, match="'lab-00000' is both trained on and validated on"):
        ssn.train(tmp_path, scenes, scenes)
    with pytest.raises(ValueError, match="model must be one of ssn, composite, spixelfcn, got 'slic'"):
        ssn.train(tmp_path, scenes, [], model="slic")
    with pytest.raises(ValueError, match="a composite needs start="):
        ssn.train(tmp_path, scenes, [], model="composite")
    SSN(SSNConfig("pix")).composite(4, extra_width=4).save(tmp_path / "composite.safetensors")
    with pytest.raises(ValueError, match="composite.safetensors is a composite"):
        ssn.train(tmp_path, scenes, [], start=tmp_path / "composite.safetensors")
    with pytest.raises(ValueError, match="reconstruction must be one of"):
        ssn.train(tmp_path, scenes, [], reconstruction="l2")
    with pytest.raises(ValueError, match="scenes, bsds500 or davis2016, got 'coco'"):
        ssn.prepare("coco")
    with pytest.raises(ValueError, match="bsds500 needs root"):
        ssn.prepare("bsds500")
    with pytest.raises(ValueError, match="davis2016 needs root"):
        ssn.prepare("davis2016")


def test_videos_are_judged_amid(monkeypatch):
    seen = []
    monkeypatch.setattr(ssn, "superpixels_of", lambda model, clip, t, count: seen.append(t) or clip.labels(t))
    ssn.evaluate(None, drawn(9), [4])
    assert seen == [1, 4, 7]


def test_every_annotator_is_drawn():
    maps = torch.stack([torch.full(SIZE, i) for i in range(3)])
    maps[:, :, 48:] += torch.arange(1, 4)[:, None, None]  # two halves each, of other numbers
    maps[2, :16] = 9  # the third saw a third segment
    clip = drawn()[0].with_readers(annotations=lambda t: maps)
    crops = ssn.Crops([clip], batch_size=30, seed=0)
    counts = [len(segments.unique()) for segments in crops(0)["segments"]]
    assert 3 in counts and 2 in counts


def test_a_network_learns_to_read_more_inputs(clips, tmp_path):
    first = unet.train(tmp_path / "a", clips[:2], clips[2:], inputs=["flow"], steps=1, widths=(4, 8), workers=0,
                       device="cpu", progress=False)
    second = unet.train(tmp_path / "b", clips[:2], clips[2:], inputs=["flow", "image"], start=first.weights, steps=1,
                        workers=0, device="cpu", progress=False)
    assert UNet.from_pretrained(second.weights).config.inputs == ("flow", "image")
    with pytest.raises(ValueError, match="inputs must begin with those of .*, flow; got image, flow"):
        unet.train(tmp_path / "c", clips[:2], clips[2:], inputs=["image", "flow"], start=first.weights)


def test_wild_flow_is_no_lesson_and_spoils_none():
    source = raft.collage_pairs()

    def with_a_wild_point(rng):
        pair = source(rng)
        pair.flow[:, 100:140, 100:220] = 20_000.0
        return pair

    batch = raft.Pairs({with_a_wild_point: 1.0}, batch_size=6, seed=3)(0)
    valid = batch["valid"][:, None].expand_as(batch["flow"])
    assert not batch["valid"].all() and batch["flow"][valid].abs().max() < raft.LARGEST
