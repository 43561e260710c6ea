"""MotionNet: sizes, windows, inputs, files, and what it does with nonsense."""

import pytest
import torch

from diffslic import training
from diffslic.segmentation import MotionNet, MotionNetConfig, SpaceTimeUNet
from diffslic.segmentation.motionnet import parse_input
from diffslic.segmentation.unet3d import TimeConv, place_code

SMALL = {"size": (16, 28), "widths": (8, 8, 16), "n_layers": 3}


def net(**changes) -> MotionNet:
    return MotionNet(MotionNetConfig(**{**SMALL, **changes})).eval()


def sharpened(model: MotionNet) -> MotionNet:
    """With output layers large enough that masks differ from pixel to pixel."""
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("window", [1, 5])
@pytest.mark.parametrize("n_frames", [1, 2, 5, 12])
def test_labels_have_the_size_and_the_length_of_the_flow(window, n_frames):
    labels = net(window=window).segment(torch.randn(n_frames, 2, 30, 44))
    assert labels.shape == (n_frames, 30, 44)
    assert labels.dtype == torch.int64
    assert 0 <= labels.min() <= labels.max() < 3


@pytest.mark.parametrize("window", [None, 3, 7, -1, 100])
def test_one_window_after_the_other_is_all_at_once(window):
    model, flow = sharpened(net(window=5)), torch.randn(12, 2, 30, 44)
    one_by_one = torch.stack(list(model.masks(flow, window=window)))
    at_once = torch.stack(list(model.masks(flow, window=window, low_memory=False)))
    torch.testing.assert_close(one_by_one, at_once, rtol=0, atol=1e-5)
    assert one_by_one.sum(1).allclose(torch.ones(12, 16, 28), atol=1e-5)


@pytest.mark.parametrize("window", [0, -2])
def test_windows_that_cannot_be(window):
    with pytest.raises(ValueError, match="window"):
        net().segment(torch.zeros(3, 2, 30, 44), window=window)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_unknown_flow_is_refused(value):
    with pytest.raises(ValueError, match="known"):
        net().segment(torch.full((3, 2, 30, 44), value))


@pytest.mark.parametrize("flow", [torch.zeros(3, 2, 30, 44), torch.full((3, 2, 30, 44), 5.0)])
def test_where_nothing_moves_all_is_background(flow):
    for window in (1, 5):
        assert torch.equal(sharpened(net(window=window)).segment(flow), torch.zeros(3, 30, 44, dtype=torch.int64))


def test_one_layer_is_all_background():
    assert not net(n_layers=1).segment(torch.randn(3, 2, 30, 44)).any()


def test_inputs_of_other_frames_and_kinds():
    model = net(window=1, inputs=("Flow-1", "flow", "flow+1", "Image", "FlowRGB"))
    fields = {"flow": torch.randn(4, 2, 16, 28), "image": torch.rand(4, 3, 16, 28),
              "flow_rgb": torch.rand(4, 3, 16, 28)}
    channels = model.channels(fields)
    assert channels.shape == (4, 12, 16, 28)
    torch.testing.assert_close(channels[1:, :2], channels[:-1, 2:4])      # the flow before
    torch.testing.assert_close(channels[0, :2], channels[0, 2:4])         # which the first frame has not
    torch.testing.assert_close(channels[:-1, 4:6], channels[1:, 2:4])     # the flow after
    torch.testing.assert_close(channels[:, 6:9], fields["image"])
    assert model.segment(**{**fields, "flow": torch.randn(4, 2, 16, 28)}).shape == (4, 16, 28)
    with pytest.raises(ValueError, match="Image was not given"):
        model.segment(torch.randn(4, 2, 16, 28))
    with pytest.raises(ValueError, match="as many frames"):
        model.channels({**fields, "image": fields["image"][1:]})


def test_the_residual_does_not_see_the_camera():
    model = net(inputs=("residual",))
    flow = torch.zeros(1, 2, 16, 28)
    flow[:, 0, 5:9, 10:15] = 4
    camera = torch.linspace(-3, 3, 28).expand(1, 2, 16, 28)
    still, turning = (model.channels({"flow": field}) for field in (flow, flow + camera))
    torch.testing.assert_close(still, turning, rtol=0, atol=0.01)


@pytest.mark.parametrize("spec", ["depth", "flow+", "flow1", "", "flow+x"])
def test_unknown_inputs_are_refused(spec):
    with pytest.raises(ValueError, match="an input is one of"):
        parse_input(spec)


@pytest.mark.parametrize("wrong", [{"n_layers": 0}, {"window": 0}, {"inputs": ()}, {"selection": "best"},
                                   {"widths": (8,)}, {"inputs": ("depth",)}])
def test_configurations_that_cannot_be(wrong):
    with pytest.raises(ValueError):
        MotionNetConfig(**wrong)


@pytest.mark.parametrize("window", [1, 5])
def test_weights_survive_a_file(tmp_path, window):
    model, path = sharpened(net(window=window)), tmp_path / "motion.safetensors"
    model.save(path)
    again = MotionNet.from_pretrained(path)
    flow = torch.randn(6, 2, 30, 44)
    assert torch.equal(again.segment(flow), model.segment(flow))
    assert again.config == model.config


def test_weights_of_another_network_are_refused(tmp_path):
    training.save_weights(tmp_path / "other.safetensors", {"weight": torch.zeros(3)}, {"depth": 3})
    with pytest.raises(ValueError, match="does not hold the weights of a MotionNet"):
        MotionNet.from_pretrained(tmp_path / "other.safetensors")


@pytest.mark.parametrize("size", [(1, 1), (17, 23)])
def test_the_space_time_network_takes_any_size(size):
    logits = SpaceTimeUNet(4, 2, (8, 8, 16))(torch.randn(2, 4, 3, *size))
    assert logits.shape == (2, 2, 3, *size)
    with pytest.raises(ValueError, match="the input must be"):
        SpaceTimeUNet(4, 2, (8, 8))(torch.randn(2, 3, 3, 8, 8))


def test_a_convolution_in_time_sees_its_neighbours_and_no_other_clip():
    layer = TimeConv(4)
    torch.nn.init.normal_(layer.mix.weight)
    x = torch.randn(2 * 5, 4, 3, 3, requires_grad=True)
    layer(x, n_frames=5)[4].sum().backward()  # the last frame of the first clip
    assert [int(frame.abs().sum() > 0) for frame in x.grad] == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]


def test_place_codes_differ_everywhere():
    codes = place_code(3, 24, 4, 5).permute(0, 2, 3, 1).flatten(0, 2)
    assert torch.cdist(codes, codes).add(torch.eye(len(codes))).min() > 0.1


def test_networks_are_far_below_the_published_sizes():
    for window in (1, 9):
        assert sum(p.numel() for p in MotionNet(MotionNetConfig(window=window)).parameters()) < 2_000_000


def test_masks_are_not_made_of_unknown_flow_or_images_of_another_size():
    with pytest.raises(ValueError, match="known"):
        next(net().masks(torch.full((3, 2, 60, 100), 1e9)))  # which resizing would bring below
    with pytest.raises(ValueError, match="image must be"):
        net(inputs=("flow", "image")).segment(torch.zeros(3, 2, 60, 100), image=torch.zeros(3, 3, 7, 9))


def test_flow_of_any_precision_is_segmented_and_whole_numbers_are_not():
    model, flow = net(window=1), torch.randn(2, 2, 40, 56)
    for dtype in (torch.float64, torch.float16):
        assert model.segment(flow.to(dtype)).shape == (2, 40, 56)
    with pytest.raises(ValueError, match="floating point"):
        model.segment(flow.long())
    with pytest.raises(ValueError, match="selection must be one of"):
        model.moving(torch.zeros(2, 40, 56, dtype=torch.int64), flow, "biggest")
    with pytest.raises(ValueError, match="several names"):
        MotionNetConfig(inputs="flow")
