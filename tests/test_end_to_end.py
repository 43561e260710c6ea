"""One graph from frames to masks: gradients that reach every part, and the numbers that the parts alone would give."""

import numpy as np
import pytest
import torch

from diffslic import datasets, pipeline
from diffslic.flow import POLISHES, RAFT, polish
from diffslic.geometry import pixel_grid
from diffslic.pipeline import PARTS, EndToEnd
from diffslic.segmentation import (
    SuperpixelTransformer,
    SuperpixelTransformerConfig,
    UNet,
    UNetConfig,
    bce_dice,
    camera_motion,
)
from diffslic.superpixels import SSN, SSNConfig, label_reconstruction

SIZE, INPUTS = (48, 64), pipeline.INPUTS


def unet(**options):
    return UNet(UNetConfig(11, widths=(4, 8), inputs=INPUTS, **options))


def transformer():
    return SuperpixelTransformer(SuperpixelTransformerConfig(11, width=16, depth=1, heads=2, inputs=INPUTS))


def network(head=None):
    """Untrained parts, small: one learned channel, and a second network over flow."""
    torch.manual_seed(0)
    ssn = SSN(SSNConfig(width=4, out_channels=1, extra_channels=4, extra_width=4, extra_out_channels=2, n_iters=2))
    return EndToEnd(RAFT(), ssn, head or unet(), n_iters=2, n_spixels=20)


@pytest.fixture(scope="module")
def clip():
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=4, size=SIZE, seed=1)[0]


@pytest.fixture(scope="module")
def triple(clip):
    return [clip.frame(t)[None] for t in range(3)]


def loss(seen, labels):
    return (bce_dice(seen.logits, labels) + label_reconstruction(seen.superpixels, (labels > 0).long())).mean()


@pytest.mark.parametrize("frozen", [(), *((part,) for part in PARTS)])
@pytest.mark.parametrize("head", [unet, transformer])
def test_the_loss_reaches_every_part_but_what_is_frozen(clip, triple, frozen, head):
    net = network(head()).train()
    net.learn([part for part in PARTS if part not in frozen])
    loss(net(*triple), clip.labels(1)[None]).backward()
    for part in PARTS:
        gradients = [value.grad for value in net.get_submodule(part).parameters()]
        if part in frozen:
            assert all(gradient is None for gradient in gradients)
        else:
            assert max(float(gradient.abs().max()) for gradient in gradients if gradient is not None) > 0
    assert all(value.grad is not None for name, value in net.flow.named_parameters()) or "flow" in frozen


def test_the_mask_alone_reaches_the_flow_through_the_superpixels(clip, triple):
    """With looks as the only input of the head there is no other way than the association."""
    net = network(UNet(UNetConfig(4, widths=(4, 8), inputs=("superpixels",)))).train()
    bce_dice(net(*triple).logits, clip.labels(1)[None]).mean().backward()
    assert net.flow.update_block.flow_head.conv2.weight.grad.abs().max() > 0


@pytest.mark.parametrize("head", [unet, transformer])
def test_computed_once_more_the_gradients_are_the_same(clip, triple, head):
    net, gradients = network(head()).train(), []
    for keep in (True, False):
        net.keep_activations = keep
        net.zero_grad()
        loss(net(*triple), clip.labels(1)[None]).backward()
        gradients.append([value.grad.clone() for value in net.parameters()])
    for kept, again in zip(*gradients):
        assert torch.allclose(kept, again, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("polished", POLISHES)
def test_flow_is_that_of_raft_alone(triple, polished):
    net, (before, frame, after) = network().eval(), triple
    net.polished = polished
    with torch.no_grad():
        flow = net.flow_of(before, frame, after)
        alone = [net.flow(frame, other, 2) for other in (after, before)]
        alone = [polish(frame, other, each, polished) for other, each in zip((after, before), alone)]
    assert (flow - torch.cat(alone, dim=1)).abs().max() < 1e-3


def test_the_polish_counts_as_given(triple):
    """What a loss wants of the polished flow it wants of RAFT's: where it is linear, the gradients are the same."""
    net, wish = network().train(), torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(0))
    found = []
    for polished in ("none", "variational"):
        net.polished = polished
        net.zero_grad()
        flow = net.flow_of(*triple)
        (flow * wish).sum().backward()
        found.append((flow.detach(), [value.grad.clone() for value in net.flow.parameters()]))
    assert not torch.allclose(found[0][0], found[1][0], atol=0.1)
    assert all(torch.equal(*pair) for pair in zip(found[0][1], found[1][1]))


def test_hard_superpixels_give_what_is_pre_generated(triple):
    """Channels of the graph are those of the cache, as soon as every pixel belongs to one superpixel."""
    net, frame = network().eval(), triple[1]
    with torch.no_grad():
        flow = net.flow_of(*triple)
        found = net.superpixels_of(frame, flow)
        channels = net.channels(frame, flow, found.harden())[0]
        cached = pipeline.find_superpixels(net.superpixels, frame[0], 20, extra=flow[0])
        expected = pipeline.network_input(INPUTS, flow[0, :2], cached._replace(
            vectors=found.harden().pool(net.superpixels.appearance(frame))[0]), frame[0])
    assert torch.equal(cached.labels, found.labels[0])
    assert (channels - expected).abs().max() < 1e-3


def test_a_video_is_seen_as_its_triples(clip):
    net = network().eval()
    frames = [clip.frame(t) for t in range(4)]
    video = list(net.video(iter(frames)))
    assert len(video) == 4
    for t in (1, 2):
        triple = [frames[t + step][None] for step in (-1, 0, 1)]
        with torch.no_grad():
            seen = net(*triple)
            channels = net.channels(triple[1], seen.flow, seen.superpixels)[0]
            mirrored = net.head(pipeline.mirrored_input(channels, INPUTS)[None])[0, 0].flip(-1)
        assert (video[t] - seen.logits[0, 0] - mirrored).abs().max() < 1e-3


def test_mixing_changes_what_the_head_sees_and_nothing_else(triple):
    net = network().eval()
    with torch.no_grad():
        plain, same, none = (net(*triple, mixing) for mixing in (None, torch.eye(11)[None], torch.zeros(1, 11, 11)))
    assert torch.equal(plain.logits, same.logits)
    assert torch.equal(plain.flow, none.flow) and not torch.equal(plain.logits, none.logits)


@pytest.mark.parametrize("head", [unet, transformer])
@pytest.mark.parametrize("polished", ["none", "variational"])
def test_a_round_trip_through_a_file(triple, tmp_path, head, polished):
    net = network(head()).eval()
    net.polished = polished
    net.save(tmp_path / "net.safetensors")
    again = EndToEnd.from_pretrained(tmp_path / "net.safetensors")
    assert (again.n_iters, again.n_spixels, again.polished) == (2, 20, polished) and type(again.head) is type(net.head)
    with torch.no_grad():
        assert torch.equal(net(*triple).logits, again(*triple).logits)


def test_other_weights_and_parts_are_refused(tmp_path):
    unet().save(tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="unet.safetensors does not hold a network trained end to end"):
        EndToEnd.from_pretrained(tmp_path / "unet.safetensors")
    with pytest.raises(ValueError, match="composite SSN over flow there and back, got one of 0"):
        EndToEnd(RAFT(), SSN(SSNConfig("pix")), unet())
    composite = network().superpixels
    with pytest.raises(ValueError, match="one mask and inputs among flow, superpixels, image, got 1 and none"):
        EndToEnd(RAFT(), composite, UNet(UNetConfig(3)))
    with pytest.raises(ValueError, match="got 2 and flow, superpixels, image"):
        EndToEnd(RAFT(), composite, unet(out_channels=2))


def test_a_head_of_other_channels_is_refused():
    with pytest.raises(ValueError, match="the head reads 12 channels, flow, superpixels, image have 11 with these"):
        network(UNet(UNetConfig(12, widths=(4, 8), inputs=INPUTS)))


def test_frames_of_different_sizes_are_refused(triple):
    with pytest.raises(ValueError, match="must be of one size, got .1, 3, 48, 64., .1, 3, 48, 64. and .1, 3, 48, 60."):
        network()(*triple[:2], triple[2][..., :60])


def test_a_black_frame_teaches_no_nonsense(clip, triple):
    """All looks of it are constant, and so is their spread."""
    net = network().train()
    black = [torch.zeros_like(frame) if place == 1 else frame for place, frame in enumerate(triple)]
    loss(net(*black), clip.labels(1)[None]).backward()
    assert all(torch.isfinite(value.grad).all() for value in net.parameters() if value.grad is not None)


@pytest.mark.parametrize("shift", ["u", "divergence", "quadratic"])
def test_what_the_camera_explains_of_a_change_of_the_flow_has_no_gradient(clip, shift):
    """The residual does not change with such a shift; nor may the gradient say that it would."""
    x, y = pixel_grid(*SIZE).double() / 32 - 1
    none = torch.zeros_like(x)
    change = {"u": torch.stack([none + 1, none]), "divergence": torch.stack([x, y]),
              "quadratic": torch.stack([x * x, x * y])}[shift]
    flow = clip.flow(1).double().requires_grad_()
    residual = flow - camera_motion(flow[None])[0]
    weights = torch.randn(2, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (residual * weights * (clip.labels(1) > 0)).sum().backward()
    assert float((flow.grad * change).sum().abs()) < 1e-3 * float(flow.grad.abs().sum())


def test_batch_norms_keep_their_moments(triple):
    net = network().train()
    before = {name: value.clone() for name, value in net.named_buffers()}
    net(*triple)
    assert before and all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def test_segment_by_a_network_trained_end_to_end(clip, tmp_path):
    network().save(tmp_path / "net.safetensors")

    def result():
        return pipeline.segment(clip, tmp_path / "net.safetensors", method="end-to-end")

    whole = result().masks
    assert whole.shape == (4, *SIZE) and whole.max() <= 1
    for start in (1, 2, 3):  # a stopped run goes on with the same masks
        assert np.array_equal(np.stack(list(result().frames(start))), whole[start:])
    with pytest.raises(ValueError, match="end-to-end needs weights: the best.safetensors"):
        pipeline.segment(clip, method="end-to-end")
    for options in ({"raft": "x"}, {"ssn": "bsds500"}, {"n_iters": 3}, {"polished": "variational"}, {"window": 3}):
        with pytest.raises(ValueError, match="has its own flow and superpixels"):
            pipeline.segment(clip, tmp_path / "net.safetensors", method="end-to-end", **options)
    with pytest.raises(ValueError, match="finds what moves as one: objects are for"):
        pipeline.segment(clip, tmp_path / "net.safetensors", method="end-to-end", objects="graph")
