"""RAFT's encoders (Teed and Deng, 2020, section 3.1 and appendix): an image to features at an eighth of its size."""

from torch import Tensor, nn

from diffslic.flow.layers import StripConv2d


class Encoder(nn.Module):
    """Image (B, 3, H, W) to features (B, D, H / 8, W / 8): a strided convolution and three stages of two blocks."""

    def __init__(self, small: bool, out_channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        widths = (32, 32, 64, 96) if small else (64, 64, 96, 128)
        block = Bottleneck if small else Residual
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3)
        self.norm1 = norm(widths[0])
        self.layer1 = nn.Sequential(block(widths[0], widths[1], 1, norm), block(widths[1], widths[1], 1, norm))
        self.layer2 = nn.Sequential(block(widths[1], widths[2], 2, norm), block(widths[2], widths[2], 1, norm))
        self.layer3 = nn.Sequential(block(widths[2], widths[3], 2, norm), block(widths[3], widths[3], 1, norm))
        self.conv2 = nn.Conv2d(widths[3], out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, D, H / 8, W / 8)."""
        x = self.norm1(self.conv1(image)).relu_()
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = (nn.Conv2d if stride > 1 else StripConv2d)(in_channels, channels, 3, stride, 1)
        self.conv2 = StripConv2d(channels, channels, 3, 1, 1)
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        return (self.downsample(x) + y).relu_()


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the inner ones a quarter as wide, and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        inner = channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1)
        self.conv3 = nn.Conv2d(inner, channels, 1)
        self.norm1, self.norm2, self.norm3 = norm(inner), norm(inner), norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.norm3(self.conv3(y)).relu_()
        return (self.downsample(x) + y).relu_()


def _shortcut(in_channels: int, channels: int, stride: int, norm: type[nn.Module]) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride), norm(channels))
