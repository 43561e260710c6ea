"""The coherence loss beside its published formulation: time, loss and memory on one CPU thread.

As published, in float32 with coordinates from 0 to 1: a motion is fitted to each mask by an explicit inverse of its
normal matrix, through which the gradient goes; a robust one by 20 steps of L-BFGS with a strong Wolfe search over all
masks at once; in space and time every pixel of every frame is a row of one least squares problem with 48 parameters.
All run in turn, A B A B, CPU time, medians.

    python benchmarks/coherence.py
"""

import multiprocessing
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diffslic.segmentation import coherence_loss, motion_basis, spacetime_loss, spline_basis
from measuring import medians, peak_growth

HEIGHT, WIDTH, N_LAYERS, BATCH, N_FRAMES, ROUNDS = 128, 224, 4, 4, 9, 3


def sample(batch: int, layers: int, height: int, width: int, n_frames: int = 1) -> tuple[Tensor, Tensor]:
    """Masks (B, L, T, H, W) with a gradient to come and flow (B, 2, T, H, W): layers that move, and noise."""
    generator = torch.Generator().manual_seed(0)
    size = n_frames, height, width
    logits = torch.randn(batch, layers, n_frames, 6, 9, generator=generator)
    logits = torch.nn.functional.interpolate(logits, size=size, mode="trilinear")
    masks = (6 * logits).softmax(1)
    basis = motion_basis(height, width, dtype=torch.float32)
    theta = torch.randn(batch, layers, 2, len(basis), generator=generator)
    flow = torch.einsum("blthw,blcf,fhw->bcthw", masks, theta, basis)
    flow = flow + 0.3 * torch.randn(batch, 2, *size, generator=generator)
    return masks.requires_grad_(), flow.contiguous()


def corner_basis(height: int, width: int) -> Tensor:
    """(N, 6) quadratic monomials of the published coordinates, which run from 0 to 1."""
    y, x = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    return torch.stack([x * y, y * y, x * x, y, x, torch.ones_like(x)], dim=-1).flatten(0, 1)


def published_ls(masks: Tensor, flow: Tensor, basis: Tensor) -> Tensor:
    """Parameters (B, L, F, 2) for masks (B, L, N), flow (B, 2, N), basis (N, F): a copy of both for every mask."""
    batch, layers, count = masks.shape
    every = basis.expand(batch * layers, -1, -1)                                   # (B L, N, F)
    right = flow.transpose(1, 2)[:, None].expand(-1, layers, -1, -1).reshape(batch * layers, count, 2)
    weighted = (every * masks.reshape(batch * layers, count, 1)).transpose(1, 2)   # (B L, F, N)
    inverse = torch.linalg.inv(torch.bmm(weighted, every))
    return torch.bmm(inverse, torch.bmm(weighted, right)).unflatten(0, (batch, layers))


def published_loss(masks: Tensor, flow: Tensor, theta: Tensor, basis: Tensor) -> Tensor:
    """(B,) the l1 coherence loss."""
    fitted = torch.bmm(basis.expand(theta.shape[:2].numel(), -1, -1), theta.flatten(0, 1)).unflatten(0, theta.shape[:2])
    every = torch.repeat_interleave(flow.transpose(1, 2)[:, None], theta.shape[1], dim=1)
    return (masks * torch.norm(fitted - every, dim=-1, p=1)).sum(1).mean(1)


def published(masks: Tensor, flow: Tensor, robust: bool) -> Tensor:
    """The loss of masks (B, L, 1, H, W) with its gradient, as published; of least squares it goes through the fit."""
    basis = corner_basis(*flow.shape[-2:]).to(flow.device)
    weights, vectors = masks.flatten(2), flow.flatten(2)
    theta = published_ls(weights, vectors, basis)
    if robust:
        theta = theta.detach().requires_grad_()
        fixed, optimiser = weights.detach(), torch.optim.LBFGS([theta], line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            total = published_loss(fixed, vectors, theta, basis).sum()
            total.backward()
            return total

        optimiser.step(closure)
        theta = theta.detach()
    loss = published_loss(weights, vectors, theta, basis)
    torch.autograd.grad(loss.sum(), masks)
    return loss


def published_spacetime(masks: Tensor, flow: Tensor) -> Tensor:
    """The space-time loss with its gradient, a row per pixel, frame and component, as published."""
    n_frames, height, width = flow.shape[2:]
    splines = spline_basis(n_frames).float()
    monomials = torch.einsum("tk,fhw->thwkf", splines, motion_basis(height, width, dtype=torch.float32)).flatten(3)
    rows = torch.zeros(2, *monomials.shape[:3], 2 * monomials.shape[3])            # (2, T, H, W, P)
    rows[0, ..., :monomials.shape[3]] = rows[1, ..., monomials.shape[3]:] = monomials
    rows = rows.flatten(0, 3)
    weights = masks[:, :, None].expand(-1, -1, 2, -1, -1, -1).flatten(2).sqrt().flatten(0, 1)[..., None]
    right = flow[:, None].expand(-1, masks.shape[1], -1, -1, -1, -1).flatten(2).flatten(0, 1)[..., None]
    with torch.no_grad():
        theta = torch.linalg.lstsq(rows * weights, right * weights, driver="gels").solution  # (B L, P, 1)
    fitted = (rows @ theta).reshape(*masks.shape[:2], 2, n_frames, height, width)
    loss = (masks * (fitted - flow[:, None]).abs().sum(2)).sum(1).flatten(1).mean(1)
    torch.autograd.grad(loss.sum(), masks)
    return loss


def ours(masks: Tensor, flow: Tensor, fit: str) -> Tensor:
    """The loss of one frame with its gradient."""
    loss = coherence_loss(masks[:, :, 0], flow[:, :, 0], distance="l1", fit=fit)
    torch.autograd.grad(loss.sum(), masks)
    return loss


def ours_spacetime(masks: Tensor, flow: Tensor, fit: str = "ls") -> Tensor:
    """The space-time loss with its gradient."""
    loss = spacetime_loss(masks, flow, fit=fit, normalised=False)
    torch.autograd.grad(loss.sum(), masks)
    return loss


def memory_growth(job: tuple[str, int, int, int, int]) -> float:
    """Growth of the peak resident memory in MB during one call, in a process of its own."""
    name, height, width, layers, n_frames = job
    torch.set_num_threads(1)
    masks, flow = sample(1, layers, height, width, n_frames)
    WAYS[name](masks[..., :16, :16], flow[..., :16, :16])  # libraries are loaded
    return peak_growth(lambda: WAYS[name](masks, flow))


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "published, least squares": lambda masks, flow: published(masks, flow, robust=False),
    "ours, least squares": lambda masks, flow: ours(masks, flow, "ls"),
    "published, robust": lambda masks, flow: published(masks, flow, robust=True),
    "ours, robust": lambda masks, flow: ours(masks, flow, "irls"),
    "published, space-time": published_spacetime,
    "ours, space-time": ours_spacetime,
    "ours, space-time, robust": lambda masks, flow: ours_spacetime(masks, flow, "irls"),
}


def compare(names: tuple[str, str], n_frames: int, rounds: int) -> None:
    """Print the ratio of two ways, and both losses."""
    masks, flow = sample(BATCH, N_LAYERS, HEIGHT, WIDTH, n_frames)
    seconds = medians({name: partial(WAYS[name], masks, flow) for name in names}, rounds)
    losses = [float(WAYS[name](masks, flow).detach().mean()) for name in names]
    print(f"{names[0]:25} {seconds[names[0]]:8.3f} s, loss {losses[0]:.5f}")
    print(f"{names[1]:25} {seconds[names[1]]:8.3f} s, loss {losses[1]:.5f}: "
          f"{seconds[names[0]] / seconds[names[1]]:.1f} times as fast", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    print(f"{HEIGHT}x{WIDTH}, {N_LAYERS} layers, batch {BATCH}, loss and gradient, quadratic, l1")
    compare(("published, least squares", "ours, least squares"), 1, ROUNDS)
    compare(("published, robust", "ours, robust"), 1, ROUNDS)
    compare(("published, space-time", "ours, space-time"), N_FRAMES, 1)
    print("\nours, space-time, one clip: CPU seconds and MB of least squares | robust")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for height, width in ((64, 112), (128, 224), (240, 428)):
            for layers in (2, 4):
                for n_frames in (1, 9, 30):
                    masks, flow = sample(1, layers, height, width, n_frames)
                    ways = [name for name in WAYS if name.startswith("ours, space-time")]
                    seconds = medians({name: partial(WAYS[name], masks, flow) for name in ways}, 1)
                    memory = [pool.apply(memory_growth, ((name, height, width, layers, n_frames),)) for name in ways]
                    print(f"{height}x{width} L={layers} T={n_frames:<3} " + " | ".join(
                        f"{seconds[name]:7.3f} s {used:6.0f} MB" for name, used in zip(ways, memory)), flush=True)


if __name__ == "__main__":
    main()
