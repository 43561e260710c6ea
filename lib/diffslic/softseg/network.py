"""The network that gives every pixel a vector, so that pixels of one thing lie close and those of others far apart.

The residual feature net of Verma, Nagar and Raman (CVIP 2019): three blocks at ever smaller scales, brought back to
the size of the first and joined to one vector.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab
from torch import Tensor, nn

from diffslic import training
from diffslic.superpixels.ssn import check_images

COLOUR_SCALE = 0.025  # of Lab


@dataclass(frozen=True)
class EmbeddingConfig:
    """Shape of an :class:`EmbeddingNet`; the defaults are the paper's."""

    widths: tuple[int, ...] = (64, 128, 256)  # channels of each block
    strides: tuple[int, ...] = (1, 2, 2)      # how much smaller a block works than what it is given
    depth: int = 1                            # residual units of a block
    out_channels: int = 128                   # of a pixel's vector, the three of its colour among them

    def __post_init__(self) -> None:
        # Weights files keep the configuration as JSON, which knows lists only.
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "strides", tuple(self.strides))
        if len(self.widths) != len(self.strides) or not self.widths:
            raise ValueError(f"every block has a width and a stride, got {self.widths} and {self.strides}")
        if min(*self.widths, *self.strides, self.depth, self.out_channels - 3) < 1:
            raise ValueError(f"widths, strides and depth must be positive, out_channels above 3, got {self}")


class ResidualUnit(nn.Module):
    """Two convolutions, the first with a stride, and the unit's input added to what they give (He et al., 2016)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv_norm(in_channels, out_channels, stride), nn.ReLU(inplace=True),
                                  *_conv_norm(out_channels, out_channels))
        self.shortcut = nn.Sequential(
            nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity(),
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H / stride, W / stride), rounded up."""
        return F.relu(self.body(x) + self.shortcut(x))


def _conv_norm(in_channels: int, out_channels: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    # Group norm, not the paper's batch norm: a batch is a few crops, and a picture's light and contrast do not matter.
    # A kernel that reaches from one place to the next: at a stride of 4 a window of 3 would leave pixels out.
    size = max(3, 2 * stride - 1)
    return (nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False),
            nn.GroupNorm(math.gcd(8, out_channels), out_channels))


class EmbeddingNet(nn.Module):
    """Images in, a vector for each pixel out; distances between vectors are what it learns (see ``metric``)."""

    def __init__(self, config: EmbeddingConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or EmbeddingConfig()
        self.blocks = nn.ModuleList()
        for before, width, stride in zip((3, *config.widths), config.widths, config.strides):
            more = (ResidualUnit(width, width) for _ in range(config.depth - 1))
            self.blocks.append(nn.Sequential(ResidualUnit(before, width, stride), *more))
        # One convolution over the joined blocks is the sum of one over each: summed, coarse ones stay small for longer.
        self.heads = nn.ModuleList(nn.Conv2d(width, config.out_channels - 3, 1) for width in config.widths)
        # As in an SSN, what is learned joins the colours: from the start alike colours are near.
        self.colour_weight = nn.Parameter(torch.tensor(2.0))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: torch.device | str = "cpu") -> "EmbeddingNet":
        """A trained network in evaluation mode.

        Args:
            name_or_path: shipped weights by name, or a ``.safetensors`` of :meth:`save`.

        Raises:
            FileNotFoundError: no such file. ValueError: weights of another network.
        """
        state, config = training.load_weights("softseg", name_or_path)
        try:
            net = cls(EmbeddingConfig(**config))
            training.fill(net, state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name_or_path} does not hold the weights of an embedding network: "
                             f"{' '.join(str(error).split())[:200]}") from error
        return net.eval().to(training.check_device(device))

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, for :meth:`from_pretrained`."""
        training.save_weights(path, self.state_dict(), asdict(self.config))

    def forward(self, images: Tensor) -> Tensor:
        """Vectors (B, out_channels, h, w) of images (B, 3, H, W) in [0, 1] of any size.

        They are as many as the first block has places: h = H / strides[0] and w = W / strides[0], rounded up.
        """
        check_images(images)
        with torch.autocast(images.device.type, enabled=False):  # half precision shows in Lab as noise
            lab = COLOUR_SCALE * rgb_to_lab(images)
        x = lab.contiguous(memory_format=torch.channels_last)
        learned: Tensor | None = None
        for block, head in zip(self.blocks, self.heads):
            x = block(x)
            vector = head(x)
            learned = vector if learned is None else learned + F.interpolate(
                vector, learned.shape[-2:], mode="bilinear", align_corners=False)
        colour = self.colour_weight * F.adaptive_avg_pool2d(lab, learned.shape[-2:])
        return torch.cat([learned, colour], dim=1).contiguous()
