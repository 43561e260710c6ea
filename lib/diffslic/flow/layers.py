"""Layers of RAFT's encoders: the usual ones, faster and in less memory."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIP = 6e6  # bytes of the rows that a convolution of a large image takes at a time


class StripConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1 that takes large images a strip of rows at a time, where no gradient passes.

    On the CPU the library rearranges what a convolution reads and writes: of a strip that is little memory, and it
    stays in the cache.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H, W)."""
        batch, channels, height, width = x.shape
        rows = max(1, int(STRIP / (x.element_size() * batch * channels * width)))
        if torch.is_grad_enabled() or x.is_cuda or rows >= height or x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        out = x.new_empty(batch, self.out_channels, height, width)
        for top in range(0, height, rows):
            bottom, above = min(top + rows, height), max(top - 1, 0)
            strip = super().forward(x[:, :, above:bottom + 1])
            out[:, :, top:bottom] = strip[:, :, top - above:bottom - above]
        return out


class InstanceNorm(nn.Module):
    """Each channel of each image with mean 0 and variance 1; in place where no gradient passes.

    As a group norm with one channel per group, which torch computes several times faster than under its own name.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), twice."""
        if torch.is_grad_enabled():
            return F.group_norm(x, self.channels)
        for part in x.split(16, dim=1):
            part.copy_(F.group_norm(part, part.shape[1]))
        return x


class BatchNorm(nn.BatchNorm2d):
    """The usual one; in place where it is no longer trained and no gradient passes.

    With ``frozen``, training leaves mean and variance as they are, and uses them: so the paper fine-tunes.
    """

    frozen = False

    def train(self, mode: bool = True) -> "BatchNorm":
        """As for every module, as far as it is not frozen."""
        return super().train(mode and not self.frozen)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W), twice."""
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        weight, bias, mean, variance = (each.float() for each in (self.weight, self.bias, self.running_mean,
                                                                  self.running_var))
        scale = weight * (variance + self.eps).rsqrt()
        shift = bias - mean * scale
        return x.mul_(scale.to(x.dtype)[:, None, None]).add_(shift.to(x.dtype)[:, None, None])
