"""RAFT over a video: frames stream through, each is encoded once, and what one pair leaves the next may start from."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from diffslic import geometry
from diffslic.flow.consistency import occlusion
from diffslic.flow.inputs import check_image, check_iterations
from diffslic.training import device_of

if TYPE_CHECKING:
    from diffslic.flow.raft import RAFT, Context


class BothWays(NamedTuple):
    """Flow between two neighbouring frames, and the pixels that only one of them shows."""

    forward: Tensor  # (2, H, W) pixels, first frame to second
    backward: Tensor  # (2, H, W) pixels, second frame to first
    occlusion: Tensor  # (H, W) bool: a pixel of the first frame that the second does not show
    backward_occlusion: Tensor  # (H, W) bool: a pixel of the second frame that the first does not show


class _Frame:
    """A frame with what RAFT makes of it, as far as it is asked for."""

    def __init__(self, raft: "RAFT", image: Tensor) -> None:
        self.raft, self.image = raft, image
        self.features = raft.features(image)

    @cached_property
    def context(self) -> "Context":
        return self.raft.context(self.image)


@torch.no_grad()
def forward_flow(raft: "RAFT", frames: Iterable[Tensor], n_iters: int = 12,
                 warm_start: bool = False) -> Iterator[Tensor]:
    """Flow from each frame to the next.

    Args:
        frames: (3, H, W) RGB in [0, 1] each, all of one size; read one at a time.
        n_iters: corrections per pair.
        warm_start: begin each pair with the flow of the one before, carried along itself.

    Yields:
        (2, H, W) flow in pixels, one less than there are frames.

    Raises:
        ValueError: fewer than two frames, or one that is not like the first; its number is named.
    """
    start = correlate = None
    for first, second in _pairs(raft, frames, n_iters):
        context = first.context  # before the first volume is there: it needs as much memory
        correlate = (correlate.renewed if correlate else raft.correlate)(first.features, second.features)
        cells, state = raft.refined(correlate, context, n_iters, start)
        yield raft.upsample(cells, state, first.image.shape[-2:])[0]
        start = carried(cells, cells) if warm_start else None
        del first, second, context, cells, state  # or they would live on beside the next frame's


@torch.no_grad()
def flow_both_ways(raft: "RAFT", frames: Iterable[Tensor], n_iters: int = 12,
                   warm_start: bool = False) -> Iterator[BothWays]:
    """As :func:`forward_flow`, there and back: both ways share features, contexts and the comparison of all cells."""
    start = back_start = correlate = None
    for first, second in _pairs(raft, frames, n_iters):
        size, context, back_context = first.image.shape[-2:], first.context, second.context
        correlate = (correlate.renewed if correlate else raft.correlate)(first.features, second.features)
        cells, state = raft.refined(correlate, context, n_iters, start)
        forward = raft.upsample(cells, state, size)
        back = correlate.reversed(first.features, second.features)
        back_cells, state = raft.refined(back, back_context, n_iters, back_start)
        backward = raft.upsample(back_cells, state, size)
        yield BothWays(forward[0], backward[0], occlusion(forward, backward)[0], occlusion(backward, forward)[0])
        if warm_start:
            # A point moves on as it came: its way to the next frame, and from there back.
            start = carried(cells, cells)
            back_start = carried(back_cells, -back_cells)


def carried(field: Tensor, flow: Tensor) -> Tensor:
    """A field moved along a flow: each vector goes where its pixel goes, shared by the four pixels around.

    Args:
        field: (B, C, h, w). flow: (B, 2, h, w) in pixels of the field.

    Returns:
        (B, C, h, w): means of what arrives; where nothing does, what was there before.
    """
    batch, channels, height, width = field.shape
    position = geometry.pixel_grid(height, width, flow.device, flow.dtype) + flow
    corner = position.floor()
    arrived = field.new_zeros(batch, channels + 1, height * width)
    carrying = torch.cat([field, torch.ones_like(field[:, :1])], dim=1)
    for right in (0, 1):
        for down in (0, 1):
            x, y = corner[:, 0] + right, corner[:, 1] + down
            share = (1 - (position[:, 0] - x).abs()) * (1 - (position[:, 1] - y).abs())
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long().flatten(1)
            arrived.scatter_add_(2, index[:, None].expand(-1, channels + 1, -1),
                                 (carrying * (share * inside)[:, None]).flatten(2))
    arrived = arrived.unflatten(2, (height, width))
    weight = arrived[:, -1:]
    return torch.where(weight > 0.1, arrived[:, :-1] / weight.clamp(min=0.1), field)


def _pairs(raft: "RAFT", frames: Iterable[Tensor], n_iters: int) -> Iterator[tuple[_Frame, _Frame]]:
    check_iterations(n_iters)
    device = device_of(raft)
    first, number = None, -1
    for number, frame in enumerate(frames):
        if not isinstance(frame, Tensor):
            raise ValueError(f"frames must be tensors (3, H, W), got {type(frame).__name__}")
        image = frame[None].to(device)
        try:
            check_image(image, image if first is None else first.image)
        except ValueError as error:
            raise ValueError(f"frame {number}: {error}") from None
        second = _Frame(raft, image)
        if first is not None:
            yield first, second
        first = second
    if number < 1:
        raise ValueError(f"flow needs at least two frames, got {number + 1}")
