"""The pipeline: from frames to masks, from a cache or straight."""

import numpy as np
import pytest
import torch

from diffslic import datasets, geometry, pipeline
from diffslic.datasets import io
from diffslic.datasets.video import Video, write_video
from diffslic.flow import RAFT, occlusion, polish
from diffslic.pipeline.segment import _frames_with_flow
from diffslic.segmentation import UNet, UNetConfig
from diffslic.superpixels import SSN, SpixelFCN, SSNConfig

SIZE = (64, 96)


@pytest.fixture
def clips():
    return datasets.open("scenes", preset="lab", n_clips=2, n_frames=3, size=SIZE)


@pytest.fixture
def raft():
    torch.manual_seed(1)
    return RAFT().eval()


def test_flow_channels_are_the_residual_and_the_whole():
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    flow = torch.stack([3 + 0.05 * x, 0.04 * y - 1])  # a camera's motion, exactly
    flow[:, 20:30, 30:40] += 5
    residual, whole = pipeline.flow_channels(flow[None])[0].split(2)
    outside = torch.ones(48, 64, dtype=torch.bool)
    outside[20:30, 30:40] = False
    assert residual[:, outside].abs().max() < 0.05
    assert residual[:, ~outside].norm(dim=0).min() > 1
    # The whole flow keeps its direction; its length is counted in its own 95th percentile.
    assert torch.nn.functional.cosine_similarity(whole, flow, dim=0).min() > 0.999
    assert 0.5 < whole.norm(dim=0).quantile(0.95) < 1.5


def test_a_still_frame_has_small_channels():
    noise = 0.02 * torch.randn(1, 2, 40, 40)
    assert pipeline.flow_channels(noise).abs().max() < 0.2


def test_superpixel_features_do_not_depend_on_the_place():
    torch.manual_seed(0)
    ssn = SSN(SSNConfig("deep", width=8, out_channels=4)).eval()
    frame = torch.full((3, 128, 192), 0.2)
    frame[0, :, 96:] = 0.9  # grey, then red
    found = pipeline.find_superpixels(ssn, frame, n_spixels=96)
    painted = found.vectors.T[:, found.labels]
    assert painted.shape == (7, 128, 192)
    # Far from every edge, all of a colour is described alike, and the other colour is not.
    grey, red = painted[:, 56:72, 40:56].flatten(1), painted[:, 56:72, 136:152].flatten(1)
    spread = painted.flatten(1).std(1)
    assert (grey.amax(1) - grey.amin(1) < 0.02 * spread).all() and (red.amax(1) - red.amin(1) < 0.02 * spread).all()
    assert ((grey.mean(1) - red.mean(1)).abs() > spread).all()


def test_differences_of_superpixels_are_counted_in_their_spread_over_the_pixels():
    labels = torch.tensor([[0, 0, 0, 1]])
    vectors = torch.tensor([[1.0, 5, 2], [5, 5, 2.01], [1000, 1000, 1000]])  # the last one has no pixel
    differences = pipeline.superpixel_differences(pipeline.Superpixels(labels, vectors))
    painted = differences.T[:, labels]
    torch.testing.assert_close(painted.mean((1, 2)), torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(painted[0].square().mean(), torch.tensor(1.0))
    torch.testing.assert_close(painted[1:], torch.tensor([[[0.0, 0, 0, 0]], [[-0.025, -0.025, -0.025, 0.075]]]),
                               rtol=0, atol=1e-3)


@pytest.mark.parametrize("inputs", [("flow",), ("image", "superpixels", "flow"), ("superpixels", "flow", "image"),
                                    ("image",)])
def test_a_mirrored_input_is_the_input_of_the_mirrored_frame(clips, inputs):
    flow, frame = clips[0].flow(0), clips[0].frame(0)
    labels, vectors = torch.randint(0, 5, SIZE), torch.randn(5, 6)
    given = pipeline.network_input(inputs, flow, pipeline.Superpixels(labels, vectors), frame)
    expected = pipeline.network_input(inputs, geometry.flip_flow_horizontal(flow),
                                      pipeline.Superpixels(labels.flip(-1), vectors), frame.flip(-1))
    # Nearly: the percentile that flow is divided by is taken of every seventh pixel.
    torch.testing.assert_close(pipeline.mirrored_input(given, inputs), expected, rtol=0.02, atol=0.02)


def test_a_mirrored_clip_gets_mirrored_masks(clips):
    torch.manual_seed(2)
    unet, clip = UNet(UNetConfig(7, widths=(4, 8), inputs=("image", "flow"))).eval(), clips[0]
    mirrored = clip.with_readers(frame=lambda t: clip.frame(t).flip(-1),
                                 flow=lambda t: geometry.flip_flow_horizontal(clip.flow(t)))
    masks, expected = pipeline.predict(unet, mirrored), pipeline.predict(unet, clip)[..., ::-1]
    assert 0.05 < masks.mean() < 0.95
    assert (masks == expected).mean() > 0.999
    assert (masks == expected[..., ::-1]).mean() < 0.99


def test_differences_in_half_precision_are_those_of_single_within_its_steps():
    labels = torch.arange(4).repeat_interleave(1000).view(40, 100)  # more pixels than bfloat16 can count
    vectors = torch.randn(4, 6)
    whole, half = (pipeline.superpixel_differences(pipeline.Superpixels(labels, vectors.to(kind)))
                   for kind in (torch.float32, torch.bfloat16))
    torch.testing.assert_close(half.float(), whole, rtol=0, atol=0.05)


def test_network_input_names_what_is_missing():
    flow, frame = torch.zeros(2, 8, 8), torch.zeros(3, 8, 8)
    assert pipeline.network_input(["image", "flow"], flow, None, frame).shape == (7, 8, 8)
    with pytest.raises(ValueError, match="'superpixels' is missing"):
        pipeline.network_input(["superpixels"], flow)
    with pytest.raises(ValueError, match="'depth' is unknown; inputs are flow, superpixels, image"):
        pipeline.network_input(["depth"], flow)


def test_the_flow_of_a_video_is_rafts_polished(clips, raft):
    frames = [clips[0].frame(t) for t in range(3)]
    plain, polished = (list(pipeline.video_flow(raft, iter(frames), 2, polished=p)) for p in ("none", "search"))
    assert all(torch.equal(a, b) for a, b in zip(plain, raft.video(frames, 2), strict=True))
    assert torch.equal(polished[1], polish(frames[1][None], frames[2][None], plain[1][None], "search")[0])
    assert len(polished) == 2 and not torch.equal(polished[1], plain[1])
    by_default = next(pipeline.video_flow(raft, iter(frames), 2))
    assert torch.equal(by_default, polish(frames[0][None], frames[1][None], plain[0][None], "variational")[0])


def test_both_ways_of_a_video_are_those_of_the_pairs_exchanged(clips, raft, tmp_path):
    frames = [clips[0].frame(t) for t in range(3)]
    pairs = list(pipeline.video_flow_both_ways(raft, iter(frames), 2))
    on = next(iter(pipeline.video_flow(raft, [frames[2], frames[1]], 2)))
    torch.testing.assert_close(pairs[1].backward, on, rtol=0, atol=1e-3)
    assert torch.equal(pairs[1].occlusion, occlusion(pairs[1].forward[None], pairs[1].backward[None])[0])
    plain = list(pipeline.video_flow_both_ways(raft, iter(frames), 2, polished="none"))
    torch.testing.assert_close(plain[1].forward, list(raft.video(frames, 2))[1], rtol=0, atol=1e-3)
    clip = pipeline.precompute_flow(clips[:1], raft, tmp_path, 2, both_ways=True, progress=False)[0]
    torch.testing.assert_close(clip.backward_flow(2), on, rtol=0, atol=0.02)
    torch.testing.assert_close(clip.flow(1), pairs[1].forward, rtol=0, atol=0.02)


def test_flow_both_ways_serves_for_one_way_and_not_the_other_way_round(clips, raft, tmp_path, monkeypatch):
    path = tmp_path / f"{clips[0].name}.h5"
    pipeline.precompute_flow(clips[:1], raft, tmp_path, 1, progress=False)
    one_way = path.read_bytes()
    both = pipeline.precompute_flow(clips[:1], raft, tmp_path, 1, both_ways=True, progress=False)[0]
    assert both.has("backward_flow")
    both_ways = path.read_bytes()
    assert both_ways != one_way
    pipeline.precompute_flow(clips[:1], raft, tmp_path, 1, progress=False)
    assert path.read_bytes() == both_ways


def test_precomputed_is_computed_once_and_only_once(clips, raft, tmp_path, monkeypatch):
    cached = pipeline.precompute_flow(clips, raft, tmp_path, n_iters=2, progress=False)
    expected = list(pipeline.video_flow(raft, (clips[0].frame(t) for t in range(3)), n_iters=2))
    assert (cached[0].flow(1) - expected[1]).abs().max() <= 1 / 128 + 1e-4
    calls = []
    video = raft.video
    monkeypatch.setattr(raft, "video", lambda frames, n_iters: calls.append(n_iters) or video(frames, n_iters))
    pipeline.precompute_flow(clips, raft, tmp_path, n_iters=2, progress=False)
    assert calls == []
    (tmp_path / f"{clips[1].name}.h5").write_bytes(b"half")  # what a dead disk leaves
    pipeline.precompute_flow(clips, raft, tmp_path, n_iters=2, progress=False)
    assert calls == [2]


def test_other_weights_settings_or_pictures_are_computed_anew(clips, raft, tmp_path):
    first = pipeline.precompute_flow(clips[:1], raft, tmp_path, n_iters=1, progress=False)[0].flow(0)
    more = pipeline.precompute_flow(clips[:1], raft, tmp_path, n_iters=2, progress=False)[0].flow(0)
    assert not torch.equal(first, more)
    plain = pipeline.precompute_flow(clips[:1], raft, tmp_path, n_iters=2, polished="none", progress=False)[0].flow(0)
    assert not torch.equal(more, plain)
    brighter = clips[0].with_readers(frame=lambda t: clips[0].frame(t) * 0.5)
    darker = pipeline.precompute_flow([brighter], raft, tmp_path, n_iters=2, progress=False)[0].flow(0)
    assert not torch.equal(more, darker)
    assert pipeline.fingerprint(raft) != pipeline.fingerprint(RAFT())


def test_a_clip_that_cannot_be_computed_is_named(clips, raft, tmp_path):
    bad = clips[1].with_readers(frame=lambda t: clips[1].frame(t) * 300)
    with pytest.raises(ValueError, match=f"clip {bad.name!r}: frame 0: RAFT takes RGB in"):
        pipeline.precompute_flow([clips[0], bad], raft, tmp_path, 1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{clips[0].name}.h5"]


def test_flow_by_weights_in_bfloat16_is_kept_apart(clips, raft, tmp_path):
    whole = pipeline.precompute_flow(clips[:1], raft, tmp_path, 2, progress=False)[0].flow(0)
    half = pipeline.precompute_flow(clips[:1], raft.bfloat16(), tmp_path, 2, progress=False)[0].flow(0)
    assert 0 < (whole - half).abs().max() < 2


def test_one_frame_has_no_flow_to_save(clips, raft, tmp_path):
    with pytest.raises(ValueError, match="has a single frame: motion needs at least two"):
        pipeline.save_flow(clips[0].part(0, 1), tmp_path / "out", raft, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_killed_precomputation_leaves_what_is_whole(clips, raft, tmp_path, monkeypatch):
    video, done = raft.video, []

    def dies_at_the_second(frames, n_iters):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        yield from video(frames, n_iters)

    monkeypatch.setattr(raft, "video", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        pipeline.precompute_flow(clips, raft, tmp_path, n_iters=1, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == [f"{clips[0].name}.h5"]


def test_tvl1_beside_raft(clips, tmp_path):
    cached = pipeline.precompute_tvl1(clips[:1], tmp_path, progress=False)[0]
    truth = clips[0].flow(0)
    assert (cached.flow(0) - truth).norm(dim=0).median() < truth.norm(dim=0).median()


def test_predict_from_flow_repeats_the_last_mask(clips):
    masks = pipeline.predict_from_flow(lambda flow: flow[:, 0] > 0, clips[0])
    assert masks.shape == (3, *SIZE) and masks.dtype == np.uint8
    assert np.array_equal(masks[1], (clips[0].flow(1)[0] > 0).numpy()) and np.array_equal(masks[2], masks[1])
    with pytest.raises(ValueError, match="single frame"):
        pipeline.predict_from_flow(lambda flow: flow[:, 0] > 0, clips[0].part(0, 1))


@pytest.fixture
def weights(tmp_path):
    """Files of small untrained networks."""
    torch.manual_seed(0)
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("raft", "ssn", "unet")}
    RAFT().save(paths["raft"])
    SSN(SSNConfig(width=4)).save(paths["ssn"])
    UNet(UNetConfig(25, widths=(4, 8), inputs=pipeline.INPUTS)).save(paths["unet"])
    return paths


def test_segment_a_folder_end_to_end(clips, weights, tmp_path):
    for t in range(3):
        io.write_image(tmp_path / "my_frames" / f"shot_{t}.png", clips[0].frame(t))
    result = pipeline.segment(tmp_path / "my_frames", weights["unet"], weights["raft"], weights["ssn"], rows=48,
                              n_iters=2)
    assert result.masks.shape == (3, *SIZE)
    result.save(tmp_path / "out", progress=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["masks", "overlay", "overlay.mp4",
                                                                          "segmentation.json"]
    written = io.read_labels(tmp_path / "out" / "masks" / "shot_2.png")
    assert np.array_equal(written.numpy(), result.masks[2])
    assert datasets.open("folder", root=tmp_path / "out" / "overlay.mp4")[0].size == SIZE


def test_the_film_is_as_fast_as_the_video(clips, weights, tmp_path):
    write_video(tmp_path / "ride.mp4", (clips[0].frame(t) for t in range(3)), fps=10)
    result = pipeline.segment(tmp_path / "ride.mp4", weights["unet"], weights["raft"], weights["ssn"], n_iters=1)
    result.save(tmp_path / "out", progress=False)
    result.save(tmp_path / "slow", fps=5, progress=False)
    assert [Video(tmp_path / name / "overlay.mp4").fps for name in ("out", "slow")] == [10, 5]


def test_every_frame_has_the_flow_of_its_own_pixels(raft):
    frames = list(torch.rand(4, 3, *SIZE))
    pairs = list(_frames_with_flow(raft, iter(frames), 2, polished="none"))
    assert [torch.equal(frame, own) for (frame, _), own in zip(pairs, frames)] == [True] * 4
    with torch.no_grad():
        assert torch.allclose(pairs[0][1], raft(frames[0][None], frames[1][None], 2)[0], atol=1e-4)
        assert torch.allclose(pairs[3][1], -raft(frames[3][None], frames[2][None], 2)[0], atol=1e-4)


def test_segment_and_predict_agree(clips, weights, raft, tmp_path):
    """Straight through and by way of the cache, the masks differ by no more than the cache's rounding."""
    nets = RAFT.from_pretrained(weights["raft"]), SSN.from_pretrained(weights["ssn"]), weights["unet"]
    straight = pipeline.segment(clips[0], nets[2], weights["raft"], weights["ssn"], n_iters=2).masks
    cached = pipeline.precompute_flow(clips[:1], nets[0], tmp_path / "f", n_iters=2, progress=False)
    cached = pipeline.precompute_superpixels(cached, nets[1], tmp_path / "s", progress=False)
    masks = pipeline.predict(UNet.from_pretrained(nets[2]), cached[0])
    assert (masks[:-1] != straight[:-1]).mean() < 0.02


@pytest.mark.parametrize("made", [1, 2])
def test_a_stopped_segmentation_goes_on_after_its_last_whole_mask(clips, weights, tmp_path, monkeypatch, made):
    def result():
        return pipeline.segment(clips[0], weights["unet"], weights["raft"], weights["ssn"], n_iters=1)

    expected, write, written = result().masks, io.write_labels, []

    def stops(path, labels):
        if len(written) == made:
            raise KeyboardInterrupt
        written.append(path)
        write(path, labels)

    monkeypatch.setattr(io, "write_labels", stops)
    with pytest.raises(KeyboardInterrupt):
        result().save(tmp_path / "out", progress=False)
    monkeypatch.setattr(io, "write_labels", write)
    first = written[0].stat().st_mtime_ns
    result().save(tmp_path / "out", overlay=False, progress=False)
    assert written[0].stat().st_mtime_ns == first
    for t in range(3):
        assert np.array_equal(io.read_labels(tmp_path / "out" / "masks" / f"{t:05d}.png").numpy(), expected[t])


def test_masks_of_another_run_are_not_mixed_with(clips, weights, tmp_path):
    options = {"raft": weights["raft"], "ssn": weights["ssn"], "n_iters": 1}
    pipeline.segment(clips[0], weights["unet"], **options).save(tmp_path, overlay=False, progress=False)
    with pytest.raises(ValueError, match=r"holds other masks \(of other ends\)"):
        pipeline.segment(clips[1], weights["unet"], **options).save(tmp_path, overlay=False, progress=False)


def test_a_composite_beside_a_u_net_is_refused(weights, clips):
    with pytest.raises(ValueError, match="composite-davis2016 is a composite, which sees flow as well"):
        pipeline.segment(clips[0], weights["unet"], weights["raft"], "composite-davis2016")


def test_a_single_frame_is_refused(weights, clips):
    with pytest.raises(ValueError, match="a single frame: motion needs at least two"):
        pipeline.segment(clips[0].part(0, 1), weights["unet"], weights["raft"], weights["ssn"])


def test_masks_have_the_size_of_the_frames(weights, clips):
    larger = clips[0].with_readers(frame=lambda t: geometry.resize(clips[0].frame(t)[None], SIZE)[0])
    result = pipeline.segment(larger, weights["unet"], weights["raft"], weights["ssn"], rows=32, n_iters=1)
    assert result.masks.shape[1:] == SIZE


def test_flow_is_refused_for_a_network_that_does_not_see_it(tmp_path):
    io.write_image(tmp_path / "a.png", torch.rand(3, 20, 24))
    with pytest.raises(ValueError, match="extra channels are for a composite"):
        pipeline.save_superpixels([tmp_path / "a.png"], tmp_path / "cut", SpixelFCN().eval(), 6,
                                  extra=torch.zeros(4, 20, 24))
