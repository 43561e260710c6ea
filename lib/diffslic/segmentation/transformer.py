"""A vision transformer whose patches are superpixels (Dosovitskiy et al., ICLR 2021, section 3.1).

The paper cuts an image into squares; here a token is what a superpixel holds on average, and its answer is spread over
the superpixel's pixels. Both ways are differentiable, so a loss on the mask also moves the superpixels' borders.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from diffslic.geometry import pixel_grid


class SoftSuperpixels(Protocol):
    """Pixels softly assigned to superpixels, such as :class:`diffslic.superpixels.SoftSLIC`."""

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to means (B, S, C)."""

    def unpool(self, superpixels: Tensor) -> Tensor:
        """(B, S, C) to (B, C, H, W)."""


@dataclass(frozen=True)
class SuperpixelTransformerConfig:
    """Shape of a :class:`SuperpixelTransformer`, and what its input channels hold."""

    in_channels: int               # channels of the pixels
    out_channels: int = 1          # logits per pixel
    width: int = 96                # channels of a token, a multiple of 4 and of ``heads``
    depth: int = 4                 # rounds in which every token looks at all others
    heads: int = 4                 # of the attention
    inputs: tuple[str, ...] = ()   # what the channels hold, in order; kept for whoever prepares them

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", tuple(self.inputs))  # weights files keep JSON, which knows lists only
        if min(self.in_channels, self.out_channels, self.width, self.depth, self.heads) < 1:
            raise ValueError(f"channels, width, depth and heads must be positive, got {self}")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width must be a multiple of 4 and of the {self.heads} heads, got {self.width}")


class SuperpixelTransformer(nn.Module):
    """Pixels to tokens, tokens to logits, logits back to pixels."""

    def __init__(self, config: SuperpixelTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Linear(config.in_channels, config.width)
        # Norms first, as in the paper (equations 2 and 3). No dropout: an answer must not depend on chance.
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.out_channels)

    def forward(self, x: Tensor, superpixels: SoftSuperpixels) -> Tensor:
        """Logits (B, out_channels, H, W) of channels (B, in_channels, H, W), of their dtype.

        Args:
            superpixels: of the same pixels. In a mirrored frame the answers are not quite mirrored, as its grid is not.

        Raises:
            ValueError: x has another number of channels or axes.
        """
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or 0 in x.shape:
            raise ValueError(f"the input must be (B, {self.config.in_channels}, H, W), got {tuple(x.shape)}")
        height, width = x.shape[-2:]
        tokens = self.embed(superpixels.pool(x))                                            # (B, S, width)
        centres = superpixels.pool(pixel_grid(height, width, x.device, x.dtype)[None])      # (B, S, 2) x, y
        # The learned code of a place among fixed patches becomes sines of the centre: superpixels have no fixed places.
        tokens = tokens + centre_code(centres / max(height, width), self.config.width)
        for block in self.blocks:
            tokens = block(tokens)
        return superpixels.unpool(self.head(self.norm(tokens))).to(x.dtype)


def centre_code(places: Tensor, channels: int) -> Tensor:
    """Sines and cosines of places (B, S, 2) between 0 and 1, from half a wave over the frame on: (B, S, channels)."""
    frequencies = math.pi * 2 ** torch.linspace(0, 6, channels // 4, device=places.device, dtype=places.dtype)
    angles = (places[..., None] * frequencies).flatten(2)                                   # (B, S, channels / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
