"""The same answers on a GPU as on the CPU."""

import pytest
import torch

from diffslic import depth, geometry, pipeline
from diffslic.datasets import scenes
from diffslic.flow import RAFT
from diffslic.segmentation import MotionNet, UNet, UNetConfig, soft_masks
from diffslic.softseg import EmbeddingNet
from diffslic.superpixels import SSN

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SIZE = (96, 128)


def test_scenes():
    here, there = (scenes.Scene("crowd", n_frames=3, size=SIZE, seed=1, device=device) for device in ("cpu", "cuda"))
    ours, theirs = here.view([0, 1]), there.view([0, 1])
    same = ours.hits.index == theirs.hits.index.cpu()
    assert same.float().mean() > 0.999  # rounding may decide a silhouette's pixel
    assert (ours.depth - theirs.depth.cpu()).abs()[:, 0][same].max() < 1e-2
    assert (ours.image - theirs.image.cpu()).abs().mean() < 1e-3
    flow, other = here.motion([0, 1], ours, 1).flow, there.motion([0, 1], theirs, 1).flow.cpu()
    assert (flow - other).abs().amax(1)[same].quantile(0.99) < 1e-2


def test_raft():
    net, images = RAFT().eval(), torch.rand(2, 1, 3, *SIZE)
    with torch.no_grad():
        ours = net(*images, n_iters=4)
        theirs = net.cuda()(*images.cuda(), n_iters=4).cpu()
    assert (ours - theirs).abs().max() < 0.05


def test_masks():
    clip = scenes.clips("lab", n_clips=1, n_frames=3, size=SIZE)[0]
    net = UNet(UNetConfig(3, inputs=("image",))).eval()
    channels = pipeline.network_input(["image"], frame=clip.frame(0))
    with torch.no_grad():
        assert (net(channels[None]) - net.cuda()(channels[None].cuda()).cpu()).abs().max() < 1e-2


@pytest.mark.parametrize("name", ["em", "spacetime"])
def test_layers_of_motion(name):
    clip = scenes.clips("lab", n_clips=1, n_frames=11, size=SIZE)[0]
    flow = torch.stack([clip.flow(t) for t in range(10)])
    ours = MotionNet.from_pretrained(name).segment(flow)
    theirs = MotionNet.from_pretrained(name, "cuda").segment(flow.cuda()).cpu()
    assert (ours == theirs).float().mean() > 0.99


def test_superpixels_and_their_differences():
    frame = scenes.clips("lab", n_clips=1, n_frames=2, size=SIZE)[0].frame(0)
    ours, theirs = (pipeline.find_superpixels(SSN.from_pretrained("scenes", device), frame.to(device), 60)
                    for device in ("cpu", "cuda"))
    same = ours.labels == theirs.labels.cpu()
    assert theirs.vectors.is_cuda and same.float().mean() > 0.99
    ours, theirs = (pipeline.superpixel_differences(found).T[:, found.labels].cpu() for found in (ours, theirs))
    assert (ours - theirs)[:, same].abs().quantile(0.99) < 0.05


def test_polished_flow_of_a_video():
    clip = scenes.clips("lab", n_clips=1, n_frames=3, size=SIZE)[0]
    frames = [clip.frame(t) for t in range(3)]
    ours = list(pipeline.video_flow(RAFT.from_pretrained("small"), frames, n_iters=4))
    theirs = list(pipeline.video_flow(RAFT.from_pretrained("small", "cuda"), frames, n_iters=4))
    assert all(flow.is_cuda for flow in theirs)
    assert all((a - b.cpu()).abs().quantile(0.99) < 0.1 for a, b in zip(ours, theirs))


def test_depth():
    clip = scenes.clips("static", n_clips=1, n_frames=4, size=SIZE, seed=3)[0]
    motion = geometry.second_from_first(clip.camera_to_world(0).double(), clip.camera_to_world(3).double())
    flow = geometry.flow_from_depth(clip.depth(0)[None], clip.intrinsics, motion.float())
    found = []
    for device in ("cpu", "cuda"):
        there = flow.to(device)
        noise = depth.estimate_noise(there, -there, clip.intrinsics, motion)
        estimate = depth.from_flow(there, clip.intrinsics, motion, noise=noise, min_parallax=0.5,
                                   hidden=torch.zeros(1, *SIZE, dtype=torch.bool))
        assert estimate.depth.device.type == device
        with torch.no_grad():
            superpixels = SSN.from_pretrained("bsds500", device)(clip.frame(0)[None].to(device), 40)
        found.append(depth.by_superpixels(depth.fuse([estimate, estimate]), superpixels))
    both = found[0].valid & found[1].valid.cpu()
    assert both.float().mean() > 0.9 * found[0].valid.float().mean() > 0.1
    assert (found[0].depth / found[1].depth.cpu() - 1)[both].abs().median() < 1e-3


def test_objects():
    [clip] = scenes.clips("crowd", n_clips=1, n_frames=3, size=SIZE, seed=970_000)
    for how in ({"objects": "graph"}, {"objects": "instances"}, {"given": {0: clip.labels(0)}}):
        ours, theirs = (pipeline.segment(clip, device=device, **how).masks for device in ("cpu", "cuda"))
        assert ours.shape == theirs.shape and (ours[0] == theirs[0]).mean() > 0.95  # later names may differ


def test_soft_masks():
    ssn, image = SSN.from_pretrained("scenes"), torch.rand(1, 3, *SIZE)

    def masks(device):
        soft = ssn.to(device)(image.to(device), 20)
        return soft_masks(soft, torch.arange(soft.centroids.shape[1], device=device) % 3, [1, 2]).cpu()

    with torch.no_grad():
        assert (masks("cpu") - masks("cuda")).abs().mean() < 1e-2


def test_soft_segments():
    clip = scenes.clips("lab", n_clips=1, n_frames=2, size=SIZE)[0]
    image, flow = clip.frame(0), clip.flow(0)
    ours, theirs = (pipeline.soft_segments(image.to(device), EmbeddingNet.from_pretrained("scenes", device), 3, 80,
                                           flow=flow.to(device)) for device in ("cpu", "cuda"))
    assert theirs.alphas.is_cuda
    assert (ours.spectrum.values - theirs.spectrum.values.cpu()).abs().max() < 1e-3
    assert (ours.alphas - theirs.alphas.cpu()).abs().quantile(0.95) < 0.02
