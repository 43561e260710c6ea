"""The same answers on a GPU as on the CPU, and loops that never wait for it; see also test_gpu_commands.py."""

from contextlib import contextmanager

import pytest
import torch

from diffslic import depth, geometry, pipeline
from diffslic.datasets import scenes
from diffslic.flow import RAFT, RAFTConfig, polish
from diffslic.flow.correlation import RowBlocks
from diffslic.pipeline import EndToEnd
from diffslic.segmentation import (
    MotionNet,
    UNet,
    UNetConfig,
    bce_dice,
    coherence,
    coherence_loss,
    soft_masks,
    spacetime,
    spacetime_loss,
    temporal_consistency,
)
from diffslic.segmentation.inputs import checked_channels
from diffslic.softseg import EmbeddingNet
from diffslic.superpixels import SSN, SSNConfig, connect, grid_for, label_reconstruction
from diffslic.superpixels.slic import Cells, clustered

pytestmark = pytest.mark.gpu
SIZE = (96, 128)


def is_on(device, tensor):
    return tensor.device.type == torch.device(device).type


def with_gradient(loss, x, *others):
    """The loss of tensors on one device, and its gradient for the first, both on the CPU."""
    x = x.detach().requires_grad_()
    value = loss(x, *others).sum()
    return value.detach().cpu(), torch.autograd.grad(value, x)[0].cpu()


@contextmanager
def no_waiting(device):
    """Whatever makes the host wait for a GPU is an error in here."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_scenes(device):
    here, there = (scenes.Scene("crowd", n_frames=3, size=SIZE, seed=1, device=where) for where in ("cpu", device))
    ours, theirs = here.view([0, 1]), there.view([0, 1])
    same = ours.hits.index == theirs.hits.index.cpu()
    assert same.float().mean() > 0.999  # rounding may decide a silhouette's pixel
    assert (ours.depth - theirs.depth.cpu()).abs()[:, 0][same].max() < 1e-2
    assert (ours.image - theirs.image.cpu()).abs().mean() < 1e-3
    flow, other = here.motion([0, 1], ours, 1).flow, there.motion([0, 1], theirs, 1).flow.cpu()
    assert (flow - other).abs().amax(1)[same].quantile(0.99) < 1e-2


def test_raft(device):
    net, images = RAFT().eval(), torch.rand(2, 1, 3, *SIZE)
    with torch.no_grad():
        ours = net(*images, n_iters=4)
        theirs = net.to(device)(*images.to(device), n_iters=4).cpu()
    assert (ours - theirs).abs().max() < 0.05


def test_polish_without_waiting(device):
    clip = scenes.clips("lab", n_clips=1, n_frames=2, size=SIZE)[0]
    first, second, flow = clip.frame(0)[None], clip.frame(1)[None], clip.flow(0)[None] + 0.7
    ours, there = polish(first, second, flow, "variational"), [part.to(device) for part in (first, second, flow)]
    polish(*there, "variational")  # what is done once, such as loading kernels, may wait
    with no_waiting(device):
        theirs = polish(*there, "variational")
    assert is_on(device, theirs) and (ours - theirs.cpu()).abs().quantile(0.99) < 0.02


@pytest.mark.parametrize("keep", [True, False])
def test_end_to_end(device, keep):
    """Gradients of all parts, activations kept or computed once more."""
    clip = scenes.clips("lab", n_clips=1, n_frames=3, size=SIZE)[0]
    ssn = SSN(SSNConfig(width=4, extra_channels=4, extra_width=4, n_iters=3))
    net = EndToEnd(RAFT(), ssn, UNet(UNetConfig(25, widths=(4, 8), inputs=pipeline.INPUTS)), 2, 40,
                   keep_activations=keep).train()
    found = []
    for where in ("cpu", device):
        net.to(where).zero_grad()
        seen = net(*(clip.frame(t)[None].to(where) for t in range(3)))
        labels = (clip.labels(1)[None] > 0).long().to(where)
        value = (bce_dice(seen.logits, labels) + label_reconstruction(seen.superpixels, labels)).sum()
        value.backward()
        norms = {part: torch.stack([x.grad.norm() for x in net.get_submodule(part).parameters()
                                    if x.grad is not None]).norm().item() for part in pipeline.PARTS}
        found.append((value.item(), seen.flow.detach().cpu(), norms))
    assert abs(found[0][0] - found[1][0]) < 0.01 and (found[0][1] - found[1][1]).abs().max() < 0.05
    assert all(0.9 < found[1][2][part] / norm < 1.1 for part, norm in found[0][2].items())


def test_masks(device):
    clip = scenes.clips("lab", n_clips=1, n_frames=3, size=SIZE)[0]
    net = UNet(UNetConfig(7, inputs=("flow", "image"))).eval()
    ours, theirs = (pipeline.clip_input(clip, 0, net.config.inputs, where) for where in ("cpu", device))
    assert is_on(device, theirs)
    with torch.no_grad():
        assert (net(ours[None]) - net.to(device)(theirs[None]).cpu()).abs().max() < 1e-2


@pytest.mark.parametrize("name", ["em", "spacetime"])
def test_layers_of_motion(device, name):
    clip = scenes.clips("lab", n_clips=1, n_frames=11, size=SIZE)[0]
    flow = torch.stack([clip.flow(t) for t in range(10)])
    ours = MotionNet.from_pretrained(name).segment(flow)
    theirs = MotionNet.from_pretrained(name, device).segment(flow.to(device)).cpu()
    assert (ours == theirs).float().mean() > 0.99


def test_superpixels_and_their_differences(device):
    frame = scenes.clips("lab", n_clips=1, n_frames=2, size=SIZE)[0].frame(0)
    ours, theirs = (pipeline.find_superpixels(SSN.from_pretrained("scenes", where), frame.to(where), 60)
                    for where in ("cpu", device))
    same = ours.labels == theirs.labels.cpu()
    assert is_on(device, theirs.vectors) and same.float().mean() > 0.99
    ours, theirs = (pipeline.superpixel_differences(found).T[:, found.labels].cpu() for found in (ours, theirs))
    assert (ours - theirs)[:, same].abs().quantile(0.99) < 0.05


def test_polished_flow_of_a_video(device):
    clip = scenes.clips("lab", n_clips=1, n_frames=3, size=SIZE)[0]
    frames = [clip.frame(t) for t in range(3)]
    ours = list(pipeline.video_flow(RAFT.from_pretrained("small"), frames, n_iters=4))
    theirs = list(pipeline.video_flow(RAFT.from_pretrained("small", device), frames, n_iters=4))
    assert all(is_on(device, flow) for flow in theirs)
    assert all((a - b.cpu()).abs().quantile(0.99) < 0.1 for a, b in zip(ours, theirs))


def test_depth(device):
    clip = scenes.clips("static", n_clips=1, n_frames=4, size=SIZE, seed=3)[0]
    motion = geometry.second_from_first(clip.camera_to_world(0).double(), clip.camera_to_world(3).double())
    flow = geometry.flow_from_depth(clip.depth(0)[None], clip.intrinsics, motion.float())
    found = []
    for where in ("cpu", device):
        there = flow.to(where)
        noise = depth.estimate_noise(there, -there, clip.intrinsics, motion)
        estimate = depth.from_flow(there, clip.intrinsics, motion, noise=noise, min_parallax=0.5,
                                   hidden=torch.zeros(1, *SIZE, dtype=torch.bool))
        assert is_on(where, estimate.depth)
        with torch.no_grad():
            superpixels = SSN.from_pretrained("bsds500", where)(clip.frame(0)[None].to(where), 40)
        found.append(depth.by_superpixels(depth.fuse([estimate, estimate]), superpixels))
    both = found[0].valid & found[1].valid.cpu()
    assert both.float().mean() > 0.9 * found[0].valid.float().mean() > 0.1
    assert (found[0].depth / found[1].depth.cpu() - 1)[both].abs().median() < 1e-3


def test_objects(device):
    [clip] = scenes.clips("crowd", n_clips=1, n_frames=3, size=SIZE, seed=970_000)
    for how in ({"objects": "graph"}, {"objects": "instances"}, {"given": {0: clip.labels(0)}}):
        ours, theirs = (pipeline.segment(clip, device=where, **how).masks for where in ("cpu", device))
        assert ours.shape == theirs.shape and (ours[0] == theirs[0]).mean() > 0.95  # later names may differ


def test_soft_masks(device):
    ssn, image = SSN.from_pretrained("scenes"), torch.rand(1, 3, *SIZE)

    def masks(where):
        soft = ssn.to(where)(image.to(where), 20)
        return soft_masks(soft, torch.arange(soft.centroids.shape[1], device=where) % 3, [1, 2]).cpu()

    with torch.no_grad():
        assert (masks("cpu") - masks(device)).abs().mean() < 1e-2


def test_soft_segments(device):
    clip = scenes.clips("lab", n_clips=1, n_frames=2, size=SIZE)[0]
    image, flow = clip.frame(0), clip.flow(0)
    ours, theirs = (pipeline.soft_segments(image.to(where), EmbeddingNet.from_pretrained("scenes", where), 3, 80,
                                           flow=flow.to(where)) for where in ("cpu", device))
    assert is_on(device, theirs.alphas)
    assert (ours.spectrum.values - theirs.spectrum.values.cpu()).abs().max() < 1e-3
    assert (ours.alphas - theirs.alphas.cpu()).abs().quantile(0.95) < 0.02


def test_connected_labels_are_the_same_and_come_back(device):
    labels = torch.randint(0, 4, (2, 24, 32))
    there = connect(labels.to(device), 9, 12)
    assert is_on(device, there) and torch.equal(there.cpu(), connect(labels, 9, 12))


def test_a_composite_and_its_loss(device):
    image, flow = torch.rand(1, 3, *SIZE), 4 * torch.randn(1, 4, *SIZE)
    truth = (torch.arange(SIZE[1]) // 40).expand(1, *SIZE)
    net = SSN(SSNConfig(width=8)).composite(4).eval()
    found = []
    for where in ("cpu", device):
        soft = net.to(where)(image.to(where), 60, extra=flow.to(where))
        loss = label_reconstruction(soft, truth.to(where)).mean()
        gradient = torch.autograd.grad(loss, net.extra_net.head.weight)[0]
        found.append((soft.labels.cpu(), loss.detach().cpu(), gradient.cpu()))
    (labels, loss, gradient), (there, its_loss, its_gradient) = found
    assert (labels == there).float().mean() > 0.99
    torch.testing.assert_close(its_loss, loss, rtol=1e-2, atol=1e-4)
    assert torch.nn.functional.cosine_similarity(gradient.flatten(), its_gradient.flatten(), dim=0) > 0.99


@pytest.mark.parametrize("variant", ["small", "large"])
def test_both_rafts_over_a_video_both_ways(device, variant):
    frames = list(torch.rand(3, 3, *SIZE))
    net = RAFT(RAFTConfig(variant)).eval()
    ours = list(net.video_both_ways(frames, n_iters=3, warm_start=True))
    theirs = list(net.to(device).video_both_ways(frames, n_iters=3, warm_start=True))
    for a, b in zip(ours, theirs, strict=True):
        assert is_on(device, b.forward) and is_on(device, b.occlusion)
        assert (a.forward - b.forward.cpu()).abs().max() < 0.1 and (a.backward - b.backward.cpu()).abs().max() < 0.1
        assert (a.occlusion == b.occlusion.cpu()).float().mean() > 0.98


def test_similarities_read_in_blocks_of_rows(device):
    first, second = torch.randn(2, 1, 16, 12, 16)
    place = 20 * torch.rand(1, 2, 12, 16) - 3
    ours, theirs = (RowBlocks(first.to(where), second.to(where), 3, 2)(place.to(where)).cpu()
                    for where in ("cpu", device))
    assert (ours - theirs).abs().max() < 1e-2  # products of a GPU may be rounded to TF32


@pytest.mark.parametrize("fit", ["ls", "irls"])
def test_losses_of_motion_and_their_gradients(device, fit):
    masks, flow = torch.randn(2, 3, 4, *SIZE).softmax(1), 3 * torch.randn(2, 2, 4, *SIZE)

    def still(x, flow):
        return coherence_loss(x[:, :, 0], flow[:, :, 0], fit=fit, normalised=True, entropy=0.1)

    def moving(x, flow):
        return spacetime_loss(x, flow, fit=fit) + temporal_consistency(x, flow)

    for loss in (still, moving):
        (value, gradient), (its_value, its_gradient) = (
            with_gradient(loss, masks.to(where), flow.to(where)) for where in ("cpu", device))
        torch.testing.assert_close(its_value, value, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(its_gradient, gradient, rtol=1e-2, atol=1e-6)


def test_corrections_of_flow_never_wait(device):
    net, (image1, image2) = RAFT().eval().to(device), torch.rand(2, 1, 3, *SIZE, device=device)
    with torch.no_grad():
        volume, context = net.correlate(net.features(image1), net.features(image2)), net.context(image1)
        first, _ = net.refined(volume, context, 3)
        with no_waiting(device):
            again, state = net.refined(volume, context, 3)
            net.upsample(again, state, SIZE)
    assert (again - first).abs().max() < 1e-3


@pytest.mark.parametrize("distance", ["l2", "squared"])
def test_soft_clustering_never_waits(device, distance):
    features, grid = torch.randn(1, 8, *SIZE, device=device), grid_for(40, *SIZE)

    def run():
        x = features.clone().requires_grad_()
        first = torch.nn.functional.adaptive_avg_pool2d(x, grid).flatten(2).transpose(1, 2)
        soft = clustered(x, first, Cells(grid, *SIZE, x.device), grid, 5, distance)
        (gradient,) = torch.autograd.grad(soft.unpool(soft.pool(x)).square().sum(), x)
        return soft.labels, gradient

    labels, gradient = run()
    with no_waiting(device):
        again, its_gradient = run()
    assert torch.equal(labels, again) and (gradient - its_gradient).abs().max() < 1e-3


def test_channels_of_flow_never_wait(device):
    flow, weights = 3 * torch.randn(2, 2, *SIZE), torch.randn(2, 4, *SIZE)

    def run(where):
        x, factors = flow.to(where).requires_grad_(), weights.to(where)
        with no_waiting(where):
            channels = checked_channels(x)
            (gradient,) = torch.autograd.grad((channels * factors).sum(), x)
        return channels.detach().cpu(), gradient.cpu()

    checked_channels(flow.to(device))  # what is kept for the next time is brought there now
    (ours, ours_back), (theirs, theirs_back) = run("cpu"), run(device)
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(theirs_back, ours_back, rtol=1e-2, atol=1e-3)


def test_losses_of_motion_never_wait(device):
    masks = torch.randn(1, 3, 4, *SIZE, device=device).softmax(1).requires_grad_()
    flow = torch.randn(1, 2, 4, *SIZE, device=device)

    def still():
        return coherence.checked_loss(masks[:, :, 0], flow[:, :, 0], "quadratic", "l1", "ls", 8, True, 0.1, None)

    def moving():
        return spacetime.checked_loss(masks, flow, "quadratic", 3, "l1", "ls", 10, True, False)

    for loss in (still, moving):
        value = loss().detach()  # what is kept for the next time is brought there now
        with no_waiting(device):
            again = loss()
            torch.autograd.grad(again.sum(), masks)
        torch.testing.assert_close(again.detach(), value)
