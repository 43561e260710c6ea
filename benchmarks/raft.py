"""RAFT beside the plain formulation of the paper's code: the same weights, a video of 6 frames, one CPU thread.

Plain: features of both images of every pair, the whole volume and its pooled copies, bilinear sampling of every
window, three convolutions per gate over state, context and motion, and the full flow after every correction. Both run
in turn, A B A B, CPU time, medians; memory beyond what the process of each contestant held before, at 1080 x 1920
too.

    python benchmarks/raft.py
"""

import multiprocessing
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffslic import datasets, geometry
from diffslic.flow import RAFT, RAFTConfig
from diffslic.flow.layers import InstanceNorm
from measuring import medians, peak_growth

SIZE, FRAMES, N_ITERS, ROUNDS = (480, 856), 6, 12, 3


def network(variant: str) -> RAFT:
    torch.manual_seed(0)
    return RAFT.from_pretrained("small") if variant == "small" else RAFT(RAFTConfig("large")).eval()


def scene(n_frames: int = FRAMES, size: tuple[int, int] = SIZE) -> list[Tensor]:
    clip = datasets.open("scenes", preset="street", n_clips=1, n_frames=n_frames, size=SIZE, seed=500_000)[0]
    return [geometry.resize(clip.frame(t)[None], size)[0] for t in range(n_frames)]


# ---------------------------------------------------------------- the plain formulation


def plain_video(net: RAFT, frames: list[Tensor]) -> Iterator[Tensor]:
    for first, second in zip(frames, frames[1:]):
        yield plain_flow(net, first[None], second[None])[0]


@torch.no_grad()
def plain_flow(net: RAFT, image1: Tensor, image2: Tensor) -> Tensor:
    both = net.fnet(2 * torch.cat([image1, image2]) - 1).float()
    pyramid = plain_pyramid(*both.chunk(2), net.config.levels)
    state, context = net.cnet(2 * image1 - 1).split([net.config.hidden, net.config.context], dim=1)
    state, context = state.tanh(), context.relu()
    grid = geometry.pixel_grid(*both.shape[-2:])[None]
    position = grid.clone()
    for _ in range(N_ITERS):
        similarity = plain_lookup(pyramid, position, net.config.radius)
        motion = net.update_block.encoder(similarity, position - grid)
        x = torch.cat([context, motion], dim=1)
        gru = net.update_block.gru
        for gates in ([(gru.convz, gru.convr, gru.convq)] if net.config.small else
                      [(gru.convz1, gru.convr1, gru.convq1), (gru.convz2, gru.convr2, gru.convq2)]):
            state = plain_gate(state, x, *gates)
        position = position + net.update_block.flow_head(state)
        full = plain_upsample(net, position - grid, state)
    return full


def plain_pyramid(features1: Tensor, features2: Tensor, levels: int) -> list[Tensor]:
    batch, depth, height, width = features1.shape
    volume = features1.flatten(2).transpose(1, 2) @ features2.flatten(2)
    pyramid = [volume.reshape(batch * height * width, 1, height, width) / depth ** 0.5]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2))
    return pyramid


def plain_lookup(pyramid: list[Tensor], position: Tensor, radius: int) -> Tensor:
    batch, _, height, width = position.shape
    steps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), dim=-1)[None]      # first index displaces x
    found = []
    for level, volume in enumerate(pyramid):
        place = position.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) / 2 ** level + window
        rows, columns = volume.shape[-2:]
        place = 2 * place / torch.tensor([columns - 1, rows - 1]) - 1
        sampled = F.grid_sample(volume, place, align_corners=True)
        found.append(sampled.reshape(batch, height, width, -1))
    return torch.cat(found, dim=-1).permute(0, 3, 1, 2).contiguous()


def plain_gate(state: Tensor, x: Tensor, update: nn.Module, reset: nn.Module, candidate: nn.Module) -> Tensor:
    both = torch.cat([state, x], dim=1)
    z, r = update(both).sigmoid(), reset(both).sigmoid()
    q = candidate(torch.cat([r * state, x], dim=1)).tanh()
    return (1 - z) * state + z * q


def plain_upsample(net: RAFT, flow: Tensor, state: Tensor) -> Tensor:
    if net.config.small:
        return 8 * F.interpolate(flow, scale_factor=8, mode="bilinear", align_corners=True)
    batch, _, height, width = flow.shape
    weights = (0.25 * net.update_block.mask(state)).reshape(batch, 1, 9, 8, 8, height, width).softmax(2)
    nine = F.unfold(8 * flow, 3, padding=1).reshape(batch, 2, 9, 1, 1, height, width)
    return (weights * nine).sum(2).permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, 8 * height, 8 * width)


# ---------------------------------------------------------------- the contest


def contestants(variant: str) -> dict[str, Callable[[], list[Tensor]]]:
    plain, exact, half = network(variant), network(variant), network(variant).bfloat16()
    for name, module in list(plain.fnet.named_modules()):
        if isinstance(module, InstanceNorm):
            plain.fnet.set_submodule(name, nn.InstanceNorm2d(module.channels))  # as in the paper's code
    frames = scene()
    return {"plain": lambda: list(plain_video(plain, frames)), "ours": lambda: list(exact.video(frames, N_ITERS)),
            "bf16": lambda: list(half.video(frames, N_ITERS))}


def alone(measure: Callable[..., float], *job: str) -> float:
    """A measure of memory in a process of its own, in MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, job)


def growth(variant: str, name: str) -> float:
    torch.set_num_threads(1)
    return peak_growth(contestants(variant)[name])


def growth_at_1080p(variant: str) -> float:
    torch.set_num_threads(1)
    net, frames = network(variant), scene(2, (1080, 1920))
    return peak_growth(lambda: list(net.video(frames, N_ITERS)))


def main() -> None:
    torch.set_num_threads(1)
    print(f"{FRAMES} frames of {SIZE[0]}x{SIZE[1]}, {N_ITERS} corrections, CPU seconds a pair; growth of memory")
    for variant in ("small", "large"):
        ways = contestants(variant)
        flows = {name: torch.stack(way()) for name, way in ways.items()}
        seconds = medians(ways, ROUNDS)
        for name in ways:
            gap = (flows[name] - flows["plain"]).norm(dim=1)
            print(f"{variant} {name:11} {seconds[name] / (FRAMES - 1):6.2f} s  x{seconds['plain'] / seconds[name]:.2f}"
                  f"  {alone(growth, variant, name):6.0f} MB  from plain: mean {gap.mean():.4f}, "
                  f"most {gap.max():.4f} px")
        print(f"{variant} at 1080 x 1920, one pair: {alone(growth_at_1080p, variant):.0f} MB")


if __name__ == "__main__":
    main()
