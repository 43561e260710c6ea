"""A U-Net over space and time whose masks are answers to queries, so that a layer means the same in every frame.

The published network (Meunier and Bouthemy, 2023, section 4.1) has 3-D convolutions and a transformer decoder with one
query per mask. Here each 3-D convolution is one in space followed by one in time (Tran et al., 2018): a third of the
work, any number of frames, and the two-dimensional kernels that a CPU is fast at.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffslic.geometry import pad_to_multiple, pixel_grid
from diffslic.segmentation.unet import Block

HEADS = 4


class SpaceTimeUNet(nn.Module):
    """Channels of a window of frames in, logits of L masks out, at any height, width and number of frames.

    Args:
        in_channels: of a frame. n_layers: L. widths: channels at each scale, from full size down by halves.
        depth: rounds in which the queries look at the coarsest scale.
    """

    def __init__(self, in_channels: int, n_layers: int, widths: Sequence[int], depth: int = 2) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.down = nn.ModuleList(Block(before, after, residual=False)
                                  for before, after in zip((in_channels, *widths), widths))
        self.in_time = nn.ModuleList(TimeConv(width) for width in widths)
        self.up = nn.ModuleList(Block(fine + coarse, fine, residual=False)
                                for fine, coarse in reversed(list(zip(widths, widths[1:]))))
        self.queries = QueryDecoder(n_layers, widths[-1], widths[0], depth)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, L, T, H, W) of (B, C, T, H, W).

        Raises:
            ValueError: another number of channels or axes.
        """
        if x.ndim != 5 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(f"the input must be (B, {self.in_channels}, T, H, W), got {tuple(x.shape)}")
        n_samples, n_frames = len(x), x.shape[2]
        x, (height, width) = pad_to_multiple(x.transpose(1, 2).flatten(0, 1), 2 ** (len(self.down) - 1))
        x = x.contiguous(memory_format=torch.channels_last)                 # (B T, C, H, W)
        skips = []
        for scale, (block, in_time) in enumerate(zip(self.down, self.in_time)):
            x = in_time(block(x if scale == 0 else F.max_pool2d(x, 2)), n_frames)
            skips.append(x)
        masks = self.queries(x.unflatten(0, (n_samples, n_frames)))         # (B, L, C)
        for block, skip in zip(self.up, reversed(skips[:-1])):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, x], dim=1))
        pixels = x[..., :height, :width].unflatten(0, (n_samples, n_frames))
        return torch.einsum("blc,btchw->blthw", masks, pixels)


class TimeConv(nn.Module):
    """A convolution over a frame and its two neighbours, added to the frame; beyond the ends there is nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3 * channels, channels, 1)
        nn.init.zeros_(self.mix.weight)  # at first every frame stands for itself
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, n_frames: int) -> Tensor:
        """(B T, C, H, W) to the same."""
        frames = x.unflatten(0, (-1, n_frames))
        nothing = torch.zeros_like(frames[:, :1])
        before = torch.cat([nothing, frames[:, :-1]], dim=1).flatten(0, 1)
        after = torch.cat([frames[:, 1:], nothing], dim=1).flatten(0, 1)
        return x + F.relu(self.mix(torch.cat([before, x, after], dim=1)))


class QueryDecoder(nn.Module):
    """One learned query per mask asks the coarsest scale of all frames how its layer looks (Carion et al., 2020)."""

    def __init__(self, n_layers: int, channels: int, out_channels: int, depth: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_layers, channels))
        self.rounds = nn.ModuleList(nn.TransformerDecoderLayer(channels, HEADS, 2 * channels, dropout=0.0,
                                                               batch_first=True) for _ in range(depth))
        self.head = nn.Linear(channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C, h, w) to vectors (B, L, out_channels), one per mask."""
        tokens = (x + place_code(*x.shape[1:]).to(x)).flatten(3).permute(0, 1, 3, 2).flatten(1, 2)  # (B, T h w, C)
        queries = self.queries.expand(len(x), -1, -1)
        for attend in self.rounds:
            queries = attend(queries, tokens)
        return self.head(queries)


def place_code(n_frames: int, channels: int, height: int, width: int) -> Tensor:
    """Sines and cosines of time, row and column, from the middle: (T, channels, height, width)."""
    grid = pixel_grid(height, width).flip(0) - torch.tensor([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    time = torch.arange(n_frames) - (n_frames - 1) / 2
    place = torch.cat([time.reshape(-1, 1, 1, 1).expand(-1, 1, height, width),
                       grid.expand(n_frames, -1, -1, -1)], dim=1)          # (T, 3, h, w)
    count = math.ceil(channels / 6)
    frequencies = torch.pi / 2 ** torch.linspace(0, 5, count)
    angles = (place[:, :, None] * frequencies[:, None, None]).flatten(1, 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :channels]
