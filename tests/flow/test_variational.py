"""The variational polish: its equations are solved, what cannot be seen is filled in, nothing needs a gradient."""

import torch

from diffslic import datasets, geometry
from diffslic.flow import polish, variational
from diffslic.flow.classical import LUMA


def moved(by):
    """A frame of a scene, the frame with everything displaced, and the flow (2, 64, 80) between them."""
    frame = datasets.open("scenes", n_clips=1, n_frames=2, size=(64, 80))[0].frame(0)
    shift = torch.tensor(by)[:, None, None].expand(2, 64, 80)
    return frame, geometry.warp(frame[None], -shift[None], padding="border")[0], shift  # x has gone to x + shift


def test_where_a_pixel_leaves_the_frame_its_neighbours_decide():
    frame, second, shift = moved([24.0, 0.0])
    polished = polish(frame[None], second[None], shift[None], "variational")
    assert (polished[0, :, 8:-8, -24:] - shift[:, 8:-8, -24:]).norm(dim=0).mean() < 0.3


def test_the_solver_solves_its_equations(monkeypatch):
    """Against a dense solve of the same system; in use the sweeps stop early, and another reading follows."""
    monkeypatch.setattr(variational, "SWEEPS", 400)
    torch.manual_seed(0)
    height, width = 6, 7
    slopes, bonds = torch.randn(2, 1, 1, height, width), [torch.rand(1, 1, height, width - 1),
                                                        torch.rand(1, 1, height - 1, width)]
    x, y = slopes
    data = variational._Data(x * x + 0.5, x * y, y * y + 0.5, torch.randn_like(x), torch.randn_like(x))
    flow = torch.randn(1, 2, height, width)
    index = torch.arange(height * width).view(height, width)
    pull = torch.zeros(height * width, height * width)
    for ends, bond in (((index[:, :-1], index[:, 1:]), bonds[0]), ((index[:-1], index[1:]), bonds[1])):
        one, other = (end.flatten() for end in ends)
        pull[one, other] = pull[other, one] = bond.flatten()
    laplacian = pull.sum(1).diag() - pull
    blocks = [[data.xx.flatten().diag() + laplacian, data.xy.flatten().diag()],
              [data.xy.flatten().diag(), data.yy.flatten().diag() + laplacian]]
    u, v = flow[0].flatten(1)
    right = torch.cat([data.xx.flatten() * u + data.xy.flatten() * v - data.x.flatten(),
                       data.xy.flatten() * u + data.yy.flatten() * v - data.y.flatten()])
    exact = torch.linalg.solve(torch.cat([torch.cat(row, 1) for row in blocks]), right).view(1, 2, height, width)
    assert torch.allclose(variational._solved(data, variational._Bonds(*bonds), flow), exact, atol=1e-4)


def test_polish_is_as_exact_under_autocast_and_carries_no_gradient():
    frame, second, shift = moved([1.3, 0.5])
    rough = (shift[None] + 0.4).requires_grad_()
    polished = polish(frame[None], second[None], rough, "variational")
    with torch.autocast("cpu", torch.bfloat16):
        half = polish(frame[None], second[None], rough, "variational")
    assert torch.equal(polished, half) and not polished.requires_grad


def test_in_black_and_plain_images_constant_flow_stays():
    """Nothing to see is no reason for a division by zero. Flow that is not constant is smoothed there."""
    for value in (0.0, 1.0):
        image, flow = torch.full((1, 3, 40, 56), value), torch.full((1, 2, 40, 56), 1.5)
        assert torch.allclose(polish(image, image, flow, "variational"), flow, atol=1e-4)


def test_nan_stays_in_its_pair():
    frame, second, shift = moved([1.3, 0.5])
    frames, seconds, rough = (part[None].repeat(2, 1, 1, 1) for part in (frame, second, shift))
    alone = polish(frames, seconds, rough, "variational")
    rough[0, 0, 5, 5] = torch.nan
    beside = polish(frames, seconds, rough, "variational")
    assert beside[0].isnan().any() and torch.equal(beside[1], alone[1])


def test_flow_jumps_where_the_colour_does():
    """Between two textures that move apart everything is plain, of one brightness, and of two colours."""
    torch.manual_seed(0)
    textures = geometry.resize(torch.rand(2, 3, 24, 40), (96, 160)) - 0.5
    x, truth = torch.arange(160), torch.zeros(1, 2, 96, 160)
    truth[:, 0, :, 80:] = 3
    red = torch.tensor([0.3, -0.3 * LUMA[0] / LUMA[1], 0])[:, None, None]
    left = 0.5 + 0.3 * (x < 40) * textures[:1]
    right = 0.5 + red + 0.3 * (x >= 120) * textures[1:]
    moved_on = geometry.warp(right, torch.full_like(truth, -3) * torch.tensor([1, 0])[:, None, None], padding="border")
    first, second = torch.where(x >= 80, right, left), torch.where(x >= 83, moved_on, left)
    rough = geometry.resize(geometry.resize(truth, (12, 20)), (96, 160))
    error = (polish(first, second, rough, "variational") - truth).norm(dim=1)
    assert error[..., 8:-8, 60:110].mean() < 0.15


def test_what_is_hidden_is_not_matched():
    """Ground that a body covers in the second image: nothing there looks like it, and its neighbours know better."""
    torch.manual_seed(0)
    ground, body = geometry.resize(torch.rand(2, 3, 24, 40), (96, 160)).split(1)
    truth = torch.zeros(1, 2, 96, 160)
    truth[:, 0, 30:70, 50:90] = 8
    first, second = ground.clone(), ground.clone()
    first[..., 30:70, 50:90] = second[..., 30:70, 58:98] = body[..., 30:70, 50:90]
    error = (polish(first, second, truth, "variational") - truth).norm(dim=1)
    assert error[:, 32:68, 90:98].mean() < 1.8
