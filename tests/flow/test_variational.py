"""TV-L1 and the polish: known translations, and sizes that disagree."""

import pytest
import torch

from diffslic import datasets, geometry, metrics
from diffslic.flow import RAFT, polish, tvl1, variational


def moved(by):
    """A frame of a scene, the frame with everything displaced, and the flow (2, 64, 80) between them."""
    frame = datasets.open("scenes", n_clips=1, n_frames=2, size=(64, 80))[0].frame(0)
    shift = torch.tensor(by)[:, None, None].expand(2, 64, 80)
    return frame, geometry.warp(frame[None], -shift[None], padding="border")[0], shift  # x has gone to x + shift


def test_a_translation_is_found():
    frame, second, shift = moved([2.0, -1.0])
    found, = tvl1([frame, second])
    assert metrics.flow(found[:, 8:-8, 8:-8], shift[:, 8:-8, 8:-8])["epe"] < 0.3


def test_frames_of_two_sizes():
    with pytest.raises(ValueError, match="of one size"):
        list(tvl1([torch.rand(3, 8, 8), torch.rand(3, 8, 9)]))


def test_polish_turns_a_rough_flow_into_an_exact_one():
    """Far beyond what it could find by itself: the rough flow has to lead it there."""
    frame, second, shift = moved([24.3, -1.6])
    inside = (0, slice(None), slice(8, -8), slice(8, -32))  # what has not left the frame
    errors = []
    for seed in range(4):
        torch.manual_seed(seed)
        rough = shift[None] + geometry.resize(1.5 * torch.randn(1, 2, 8, 10), (64, 80))
        errors.append([metrics.flow(field[inside], shift[inside[1:]])["epe"]
                       for field in (rough, polish(frame[None], second[None], rough))])
    before, after = torch.tensor(errors).mean(0)
    alone = polish(frame[None], second[None], torch.zeros_like(rough))
    assert before > 1 and after < 0.2 and metrics.flow(alone[inside], shift[inside[1:]])["epe"] > 2


def test_polish_treats_each_pair_by_itself_and_keeps_what_is_too_small():
    frame, second, shift = moved([1.0, 0.5])
    batch = torch.stack([frame, second]), torch.stack([second, frame]), torch.stack([shift, -shift])
    together = polish(*batch)
    assert torch.allclose(together[1], polish(*(part[1:] for part in batch))[0], atol=1e-4)
    small = torch.rand(1, 2, 15, 40)
    assert torch.equal(polish(torch.rand(1, 3, 15, 40), torch.rand(1, 3, 15, 40), small), small)


def test_polish_keeps_an_exact_flow_and_its_jump():
    """Two halves that move apart, with texture everywhere: nothing to mend, and nothing is smoothed away."""
    torch.manual_seed(0)
    texture = geometry.resize(torch.rand(1, 3, 24, 40), (96, 160))
    shift = torch.zeros(1, 2, 96, 160)
    shift[:, 0, :48], shift[:, 0, 48:] = 3, -2
    polished = polish(geometry.warp(texture, shift, padding="border"), texture, shift)
    assert metrics.flow(polished[0, :, 8:-8, 8:-8], shift[0, :, 8:-8, 8:-8])["epe"] < 0.1


def test_where_a_pixel_leaves_the_frame_its_neighbours_decide():
    frame, second, shift = moved([24.0, 0.0])
    polished = polish(frame[None], second[None], shift[None])
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
    polished = polish(frame[None], second[None], rough)
    with torch.autocast("cpu", torch.bfloat16):
        half = polish(frame[None], second[None], rough)
    assert torch.equal(polished, half) and not polished.requires_grad


def test_polish_names_sizes_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"of one size, got \(1, 3, 20, 20\), \(1, 3, 20, 20\) and \(1, 2, 20, 21\)"):
        polish(torch.rand(1, 3, 20, 20), torch.rand(1, 3, 20, 20), torch.rand(1, 2, 20, 21))


def test_black_and_plain_images_leave_the_flow_as_it_is():
    """Nothing to see is no reason for a division by zero."""
    for value in (0.0, 1.0):
        image, flow = torch.full((1, 3, 40, 56), value), torch.full((1, 2, 40, 56), 1.5)
        assert torch.allclose(polish(image, image, flow), flow, atol=1e-4)


def test_polish_betters_the_flow_of_the_shipped_raft():
    raft = RAFT.from_pretrained("small")
    errors = []
    for clip in datasets.open("scenes", preset="lab+street", n_clips=2, n_frames=2, size=(120, 160), seed=7):
        first, second = clip.frame(0)[None], clip.frame(1)[None]
        with torch.no_grad():
            rough = raft(first, second)
        errors.append([metrics.flow(flow[0], clip.flow(0))["epe"] for flow in (rough, polish(first, second, rough))])
    before, after = torch.tensor(errors).mean(0)
    assert after < 0.8 * before
