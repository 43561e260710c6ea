"""SpixelFCN: the affinities of soft superpixels in one pass of a network, without iterations (Yang et al., 2020).

An encoder and decoder answers, for every pixel, to which of the nine cells around its own it belongs. A cell is always
16 pixels wide in what the network sees: for more or fewer superpixels the image is resized, as in the paper.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab
from torch import Tensor, nn

from diffslic import training
from diffslic.geometry import pixel_grid
from diffslic.superpixels.slic import SoftSLIC, grid_for
from diffslic.superpixels.ssn import check_images, labels_of

CELL = 16  # pixels; the coarsest scale of the network has one value per cell


@dataclass(frozen=True)
class SpixelFCNConfig:
    """Hyper-parameters of :class:`SpixelFCN`."""

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)  # channels at each scale, from full size down to a cell
    n_spixels: int = 200       # requested superpixels where a call names no number
    color_scale: float = 0.26  # factor of the Lab channels that it sees and that its superpixels are described by
    min_size: float = 0.25     # smallest connected superpixel, as a share of a grid cell

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # weights files keep it as JSON, which knows lists only
        if len(self.widths) != 5 or min(self.widths) < 1:
            raise ValueError(f"widths must be five positive numbers, from 1/1 to 1/{CELL}, got {self.widths}")


class SpixelFCN(nn.Module):
    """Images to superpixels in one pass; used as :class:`~diffslic.superpixels.SSN` is."""

    extra_channels = 0  # it sees the image alone

    def __init__(self, config: SpixelFCNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SpixelFCNConfig()
        widths = config.widths
        self.down = nn.ModuleList(nn.Sequential(_unit(before, after, stride), _unit(after, after))
                                  for before, after, stride in zip((3, *widths), widths, (1, 2, 2, 2, 2)))
        steps = list(reversed(list(zip(widths, widths[1:]))))  # (finer, coarser), from the cell up
        self.grow = nn.ModuleList(nn.Sequential(nn.ConvTranspose2d(coarse, fine, 4, 2, 1), nn.LeakyReLU(0.1))
                                  for fine, coarse in steps)
        self.up = nn.ModuleList(_unit(2 * fine, fine) for fine, _ in steps)
        self.head = nn.Conv2d(widths[0], 9, 3, padding=1)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: torch.device | str = "cpu") -> "SpixelFCN":
        """A trained network in evaluation mode.

        Args:
            name_or_path: shipped weights by name, or a ``.safetensors`` of :meth:`save`.

        Raises:
            FileNotFoundError: no such file. ValueError: weights of another network.
        """
        state, config = training.load_weights("spixelfcn", name_or_path)
        try:
            net = cls(SpixelFCNConfig(**config))
            training.fill(net, state)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name_or_path} does not hold the weights of a SpixelFCN: "
                             f"{' '.join(str(error).split())[:200]}") from error
        return net.eval().to(training.check_device(device))

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, for :meth:`from_pretrained`."""
        training.save_weights(path, self.state_dict(), asdict(self.config))

    def forward(self, images: Tensor, n_spixels: int | None = None) -> SoftSLIC:
        """Soft superpixels of a batch of images, differentiable; their centroids are mean Lab and position (y, x).

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            n_spixels: requested superpixels, by default the configuration's; the grid holds at most as many.
        """
        check_images(images)
        height, width = images.shape[-2:]
        grid = grid_for(self.config.n_spixels if n_spixels is None else n_spixels, height, width)
        with torch.autocast(images.device.type, enabled=False):
            lab = self.config.color_scale * rgb_to_lab(images.to(self.head.weight.dtype))
        seen_size = CELL * grid[0], CELL * grid[1]
        seen = lab if seen_size == (height, width) else F.interpolate(lab, seen_size, mode="bilinear", antialias=True)
        # In whole numbers, so that a pixel takes its answer from its own cell and the slots keep their meaning.
        rows, columns = (torch.arange(size, device=lab.device) * (CELL * cells) // size
                         for size, cells in ((height, grid[0]), (width, grid[1])))
        logits = self._logits(seen)[:, :, rows[:, None], columns].float()
        soft = SoftSLIC(logits, logits.new_zeros(len(images), grid[0] * grid[1], 5), grid)
        soft = replace(soft, affinity=logits.masked_fill(soft.candidates < 0, float("-inf")).softmax(1))
        position = pixel_grid(height, width, lab.device, lab.dtype).flip(0).expand(len(images), -1, -1, -1)
        return replace(soft, centroids=soft.pool(torch.cat([lab, position], dim=1)))

    @torch.no_grad()
    def segment(self, images: Tensor, n_spixels: int | None = None, connected: bool = True,
                exact: bool = False) -> Tensor:
        """Superpixel labels (B, H, W) int64; see :meth:`diffslic.superpixels.SSN.segment`."""
        n_spixels = self.config.n_spixels if n_spixels is None else n_spixels
        return labels_of(self(images, n_spixels), self.config.min_size, connected, n_spixels if exact else None)

    def _logits(self, x: Tensor) -> Tensor:
        """(B, 3, H, W), sides multiples of ``CELL``, to (B, 9, H, W)."""
        x = x.contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for grow, fuse, skip in zip(self.grow, self.up, reversed(skips[:-1])):
            x = fuse(torch.cat([skip, grow(x)], dim=1))
        return self.head(x)


def _unit(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
                         nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.1, inplace=True))
