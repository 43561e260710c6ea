"""How MotionNet learns: windows that hang together, changes that act, and a few steps of each system."""

import numpy as np
import pytest
import torch

from diffslic import datasets, geometry, pipeline
from diffslic.recipes import motion
from diffslic.segmentation import MotionNet, MotionNetConfig

SIZE = (48, 64)
SMALL = {"size": (32, 40), "widths": (8, 8, 16), "n_layers": 3}


@pytest.fixture(scope="module")
def clips():
    """Three scenes of six frames; their flow is exact."""
    return datasets.open("scenes", preset="lab", n_clips=3, n_frames=6, size=SIZE)


def config(window: int, **changes) -> MotionNetConfig:
    return MotionNetConfig(**{**SMALL, "window": window, **changes})


def windows(clips, window: int = 3, augmentation: motion.Augmentation | None = None, **changes) -> motion.Windows:
    return motion.Windows(clips, MotionNet(config(window, **changes)), augmentation or motion.Augmentation(), 2, seed=3)


def test_a_batch_depends_on_its_number_alone(clips):
    first, second = windows(clips), windows(clips)
    second(4)
    for key, value in first(7).items():
        assert torch.equal(value, second(7)[key])
    assert not torch.equal(first(7)["flow"], first(8)["flow"])


def test_windows_are_consecutive_frames_in_pixels_of_the_network(clips):
    samples = windows(clips, augmentation=motion.Augmentation(global_motion="none"))
    batch = samples(0)
    assert batch["flow"].shape == (2, 2, 3, 32, 40)
    assert batch["input"].shape == (2, 4, 3, 32, 40)
    everything = {(i, t): geometry.resize_flow(clip.flow(t)[None], (32, 40))[0] for i, clip in enumerate(clips)
                  for t in clip.frames_with("flow")}
    for sample in batch["flow"]:
        frames = [min(everything, key=lambda key: min(float((flow - everything[key]).abs().mean()),
                                                      float((geometry.flip_flow_horizontal(flow) - everything[key])
                                                            .abs().mean()))) for flow in sample.unbind(1)]
        (clip, start), *_ = frames
        assert frames == [(clip, start + k) for k in range(3)]


def test_inputs_of_other_frames_are_those_frames(clips):
    """Also beyond the window, as when the network is used; at the ends of a clip the last frame stands in."""
    plain = motion.Augmentation(global_motion="none")
    shifted = windows(clips[:1], window=1, augmentation=plain, inputs=("flow-1", "flow", "flow+1"))
    net = MotionNet(config(1, inputs=("flow-1", "flow", "flow+1")))
    fields = motion._fields(clips[0], range(5), net.config)
    frames = net.channels(fields)  # (5, 6, h, w)
    mirrored = net.channels({"flow": geometry.flip_flow_horizontal(fields["flow"])})
    seen = set()
    for number in range(6):
        for sample in shifted(number)["input"].squeeze(2):
            gaps = [min(float((sample - each[t]).abs().max()) for each in (frames, mirrored)) for t in range(5)]
            assert min(gaps) < 1e-2
            seen.add(int(np.argmin(gaps)))
    assert len(seen) > 2


def test_pictures_of_flow_follow_what_is_done_to_it(clips):
    fields = {"flow": 4 * torch.randn(3, 2, 24, 32), "flow_rgb": torch.rand(3, 3, 24, 32)}
    changed = motion.augmented(fields, motion.Augmentation("strong"), np.random.default_rng(0))
    assert torch.equal(changed["flow_rgb"], torch.stack([pipeline.painted(flow) for flow in changed["flow"]]))


def test_published_splines_leave_more_of_a_constant_motion():
    masks, still = torch.ones(1, 1, 9, 12, 16), torch.ones(1, 2, 9, 12, 16)
    assert motion.Loss(consistency=0, entropy=0)(masks, still) < 1e-5
    assert motion.Loss(consistency=0, entropy=0, published=True)(masks, still) > 1e-3


def test_clips_with_few_masks_are_scored_where_they_have_one(clips):
    def some(t):
        if t == 2:
            raise LookupError("no mask")
        return clips[0].labels(t)

    figures = motion.evaluate(MotionNet(config(3)).eval(), [clips[0].with_readers(labels=some)])
    assert 0 <= figures["j"] <= 1


@pytest.mark.parametrize("wrong", [{"model": "cubic"}, {"distance": "huber"}, {"fit": "sgd"}, {"spacing": 0},
                                   {"entropy": -1.0}, {"potts": -1.0}, {"consistency": -3.0}])
def test_losses_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"must be"):
        motion.Loss(**wrong)


def test_images_come_along(clips):
    assert windows(clips, inputs=("flow", "image", "flow_rgb"))(0)["input"].shape == (2, 8, 3, 32, 40)


@pytest.mark.parametrize("strength", ["none", "light", "medium", "strong"])
def test_the_strength_of_global_motion_acts(strength):
    flow, rng = torch.randn(5, 2, 24, 32), np.random.default_rng(0)
    added = [motion.global_motion(flow, motion.STRENGTHS[strength], rng).norm(dim=1).mean() for _ in range(200)]
    share = torch.stack(added).mean() / flow.norm(dim=1).mean()
    assert share == pytest.approx(motion.STRENGTHS[strength] / 2, rel=0.15)


@pytest.mark.parametrize("changes", [{}, {"model": "affine"}, {"model": "constant"}, {"spacing": 5},
                                     {"published": True}])
@pytest.mark.parametrize("inner", [slice(None), slice(2, 9)])
def test_global_motion_is_one_motion_of_the_loss(changes, inner):
    """A layer that is everything explains it, so the loss does not see it, whatever the network reads around it."""
    loss = motion.Loss(consistency=0, entropy=0, **changes)
    added = motion.global_motion(torch.randn(11, 2, 24, 32), 2.0, np.random.default_rng(1), loss, inner)[inner]
    assert loss(torch.ones(1, 1, len(added), 24, 32), added.transpose(0, 1)[None]) < 1e-4
    assert loss(torch.ones(1, 1, 1, 24, 32), added[3:4].transpose(0, 1)[None]) < 1e-4


def test_noise_and_nothing_leave_pictures_as_they_are():
    inputs, rng = ("image", "flow", "flow_rgb-1"), np.random.default_rng(0)
    changed = motion.perturbed(torch.ones(5, 8, 6, 6), motion.Augmentation(noise=0.5, null=1.0), rng, inputs)
    assert (changed[:, [0, 1, 2, 5, 6, 7]] == 1).all()
    assert changed[:, 3:5].flatten(1).abs().sum(1).eq(0).sum() == 1


def test_other_changes_act(clips):
    flow, rng = torch.ones(5, 2, 8, 8), np.random.default_rng(0)
    speed = motion.scaled_in_time(flow, 4, rng)[:, 0, 0, 0]
    assert 1 < speed.max() / speed.min() <= 4
    assert (speed.diff() > 0).all() or (speed.diff() < 0).all()
    assert torch.equal(motion.scaled_in_time(flow, 1, rng), flow)
    noisy = motion.perturbed(torch.zeros(5, 4, 40, 40), motion.Augmentation(noise=0.5), rng)
    assert noisy.std() == pytest.approx(0.5, rel=0.05)
    nothing = motion.perturbed(torch.ones(5, 4, 8, 8), motion.Augmentation(null=1.0), rng)
    assert nothing.flatten(1).sum(1).eq(0).sum() == 1
    assert windows(clips, augmentation=motion.Augmentation(crop=16))(0)["flow"].shape[-2:] == (16, 16)


@pytest.mark.parametrize("wrong", [{"global_motion": "huge"}, {"temporal_scale": "x"}, {"noise": -1}, {"null": 2},
                                   {"crop": 1}])
def test_changes_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        motion.Augmentation(**wrong)


@pytest.mark.parametrize("window", [1, 3])
def test_a_few_steps_lower_the_loss(clips, tmp_path, window):
    how = {"config": config(window), "steps": 30, "learning_rate": 3e-3, "validate_every": 15,
           "seed": 4, "workers": 0, "progress": False}
    fit = motion.train(tmp_path, clips[:2], clips[2:], **how)
    assert set(fit.history.columns) >= {"val_loss", "j", "f"}
    torch.manual_seed(4)
    untrained = motion.evaluate(MotionNet(config(window)).eval(), clips[2:])["val_loss"]
    assert fit.history["val_loss"].min() < untrained
    assert MotionNet.from_pretrained(fit.weights).config == config(window)
    card = (tmp_path / "card.md").read_text()
    assert "without masks" in card
    again = motion.train(tmp_path, clips[:2], clips[2:], **how)  # nothing left to do
    assert again.best_step == fit.best_step


def test_masks_of_training_clips_are_never_read(clips, tmp_path):
    def forbidden(t):
        raise AssertionError("a mask was read")

    blind = [clip.with_readers(labels=forbidden) for clip in clips[:2]]
    motion.train(tmp_path, blind, clips[2:], config=config(3), steps=2, workers=0, progress=False)


def test_training_refuses_nonsense(clips, tmp_path):
    for wrong, says in ((({"clips": clips, "validation": clips[:1]}), "both trained on and validated on"),
                        ({"clips": clips[:1], "validation": clips[1:], "config": config(9)}, "a clip with 10 frames")):
        with pytest.raises(ValueError, match=says):
            motion.train(tmp_path, **wrong, steps=1, progress=False)
    MotionNet(config(1)).save(tmp_path / "em.safetensors")
    with pytest.raises(ValueError, match="window of .*em.safetensors is 1, asked was for 3"):
        motion.train(tmp_path, clips[:1], clips[1:], config=config(3), start=tmp_path / "em.safetensors", steps=1)
    with pytest.raises(ValueError, match="do not fit into 32x40"):
        windows(clips, augmentation=motion.Augmentation(crop=36))
    for dataset, options, says in (("kitti", {}, "motion is learned on"), ("split", {"root": "."}, "needs file"),
                                   ("davis2016", {}, "needs root")):
        with pytest.raises(ValueError, match=says):
            motion.prepare(dataset, tmp_path, **options)


def test_a_loss_of_every_term():
    masks, flow = torch.rand(2, 3, 4, 8, 9).softmax(1).requires_grad_(), torch.randn(2, 2, 4, 8, 9)
    plain = motion.Loss(consistency=0, entropy=0)(masks, flow)
    for more in ({"consistency": 1.0}, {"potts": 1.0}, {"entropy": 1.0}):
        value = motion.Loss(**{"consistency": 0, "entropy": 0, **more})(masks, flow)
        assert (value != plain).all()
        assert torch.autograd.grad(value.sum(), masks)[0].abs().sum() > 0
