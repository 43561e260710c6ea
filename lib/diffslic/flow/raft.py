"""RAFT: recurrent all-pairs field transforms for optical flow (Teed and Deng, ECCV 2020).

Three boxes, as in the paper's figure 1: encoders give features of both images and the context of the first; the
correlation pyramid holds the similarity of all pairs of pixels; a recurrent unit reads the pyramid around the
present flow and corrects it, again and again. Everything happens at an eighth of the image's size.

The names of the layers are the paper's own (fnet, cnet, update_block), so that released weights load as they are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffslic import geometry, training
from diffslic.flow.released import own_keys

STRIDE = 8  # the side of an image cell that one feature describes, in pixels


@dataclass(frozen=True)
class RAFTConfig:
    """The two networks of the paper differ in these numbers only."""

    variant: str = "small"  # "small" (990,162 parameters) or "large" (5,257,536)
    levels: int = 4  # of the correlation pyramid

    @property
    def small(self) -> bool:
        return self.variant == "small"

    @property
    def radius(self) -> int:
        """The lookup reads a window of (2 radius + 1)^2 similarities per level."""
        return 3 if self.small else 4

    @property
    def hidden(self) -> int:
        return 96 if self.small else 128

    @property
    def context(self) -> int:
        return 64 if self.small else 128


class Predictions(NamedTuple):
    """What a training step sees of a pair of images."""

    flows: list[Tensor]  # (B, 2, H, W) in pixels after every correction, first to last
    similarity: Tensor  # (B, h * w, h, w) of the cells of both images, the finest level of the pyramid


class RAFT(nn.Module):
    """Optical flow between two images.

    Args:
        config: which of the two networks.
    """

    def __init__(self, config: RAFTConfig = RAFTConfig()) -> None:
        super().__init__()
        if config.variant not in ("small", "large"):
            raise ValueError(f"RAFT comes as 'small' or 'large', got {config.variant!r}")
        self.config = config
        self.fnet = Encoder(config.small, 128 if config.small else 256, nn.InstanceNorm2d)
        self.cnet = Encoder(config.small, config.hidden + config.context, nn.Identity if config.small
                            else nn.BatchNorm2d)
        self.update_block = UpdateBlock(config)

    def forward(self, image1: Tensor, image2: Tensor, n_iters: int = 12, initial: Tensor | None = None) -> Tensor:
        """Flow from ``image1`` to ``image2``.

        Args:
            image1, image2: (B, 3, H, W) RGB in [0, 1], any H and W.
            n_iters: how often the flow is corrected.
            initial: (B, 2, H, W) flow in pixels to start from; zero if None.

        Returns:
            (B, 2, H, W) flow in pixels.
        """
        _check_pair(image1, image2)
        _check_iterations(n_iters)
        features1, features2 = self.features(image1), self.features(image2)
        *_, last = self.refine(features1, features2, image1, n_iters, initial)
        return self.upsample(*last, image1.shape[-2:])

    def predictions(self, image1: Tensor, image2: Tensor, n_iters: int = 12) -> Predictions:
        """What training compares with the truth: the flow after every correction, and the similarities of cells."""
        _check_pair(image1, image2)
        _check_iterations(n_iters)
        features1, features2 = self.features(image1), self.features(image2)
        flows = [self.upsample(*step, image1.shape[-2:])
                 for step in self.refine(features1, features2, image1, n_iters)]
        return Predictions(flows, correlation_pyramid(features1, features2, levels=1)[0])

    @torch.no_grad()
    def video(self, frames: Iterable[Tensor], n_iters: int = 12) -> Iterator[Tensor]:
        """Flow from each frame to the next, reading every frame and its features once.

        Args:
            frames: (3, H, W) RGB in [0, 1] each, all of one size; read one at a time.

        Yields:
            (2, H, W) flow in pixels, one less than there are frames.
        """
        _check_iterations(n_iters)
        device = next(self.parameters()).device
        first = first_features = None
        for frame in frames:
            second = frame[None].to(device)
            if first is not None:
                _check_pair(first, second)
            second_features = self.features(second)
            if first is not None:
                *_, last = self.refine(first_features, second_features, first, n_iters)
                yield self.upsample(*last, first.shape[-2:])[0]
            first, first_features = second, second_features

    def features(self, image: Tensor) -> Tensor:
        """What is compared (section 3.1): (B, D, H / 8, W / 8), sides rounded up, of the image's dtype."""
        return self.fnet(_normalise(image)).to(image.dtype)

    def refine(self, features1: Tensor, features2: Tensor, image1: Tensor, n_iters: int,
               initial: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Corrections of the flow (section 3.3).

        Yields:
            flow (B, 2, h, w) in cells of the feature grid, and the hidden state (B, hidden, h, w).
        """
        pyramid = correlation_pyramid(features1, features2, self.config.levels)
        state, context = self.cnet(_normalise(image1)).split([self.config.hidden, self.config.context], dim=1)
        state, context = state.tanh(), context.relu()
        batch, _, height, width = features1.shape
        grid = geometry.pixel_grid(height, width, image1.device, features1.dtype)
        flow = torch.zeros_like(grid).expand(batch, -1, -1, -1) if initial is None \
            else geometry.resize_flow(_pad(initial), (height, width))
        for _ in range(n_iters):
            flow = flow.detach()  # gradients pass through the corrections only, as in the paper
            similarity = lookup(pyramid, grid + flow, self.config.radius)
            state, correction = self.update_block(state, context, similarity, flow)
            flow = flow + correction
            yield flow, state

    def upsample(self, flow: Tensor, state: Tensor, size: tuple[int, int]) -> Tensor:
        """Flow (B, 2, H, W) in pixels of the whole image from flow (B, 2, h, w) in cells."""
        if self.config.small:
            full = F.interpolate(flow, scale_factor=STRIDE, mode="bilinear", align_corners=True)
        else:
            full = convex_upsample(flow, 0.25 * self.update_block.mask(state))
        return STRIDE * full[..., :size[0], :size[1]]

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "small", device: torch.device | str = "cpu") -> "RAFT":
        """Load shipped weights by name, or a file: our own, princeton-vl's or torchvision's state dict.

        Raises:
            FileNotFoundError: no such weights. ValueError: the tensors are not those of a RAFT.
        """
        state, _ = training.load_weights("raft", name_or_path)
        try:
            state = own_keys(state)
            variant = "large" if "update_block.mask.0.weight" in state else "small"
            model = cls(RAFTConfig(variant))
            model.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ValueError(f"{name_or_path} does not hold the weights of a RAFT: {reason}") from error
        return model.to(training.check_device(device)).eval()

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors."""
        training.save_weights(path, self.state_dict(), asdict(self.config))


# ---------------------------------------------------------------- encoders (section 3.1, appendix)


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
        x = self.norm1(self.conv1(image)).relu()
        return self.conv2(self.layer3(self.layer2(self.layer1(x))))


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.norm1, self.norm2 = norm(channels), norm(channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H / stride, W / stride)."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        return (self.downsample(x) + y).relu()


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
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        y = self.norm3(self.conv3(y)).relu()
        return (self.downsample(x) + y).relu()


def _shortcut(in_channels: int, channels: int, stride: int, norm: type[nn.Module]) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride), norm(channels))


# ---------------------------------------------------------------- correlation (section 3.2)


def correlation_pyramid(features1: Tensor, features2: Tensor, levels: int) -> list[Tensor]:
    """Similarity of every feature of the first image to every one of the second, at coarser and coarser scales.

    Pooling the second features and then comparing gives the same numbers as pooling the similarities (both are
    linear), for a fraction of the work.

    Args:
        features1, features2: (B, D, h, w).

    Returns:
        ``levels`` tensors (B, h * w, h_k, w_k) of dot products over sqrt(D); h_k = h // 2^k. A level that has no
        cells left is an empty tensor.
    """
    first = features1.flatten(2).transpose(1, 2) / features1.shape[1] ** 0.5
    pyramid = []
    # Mixed precision stops here: what tells one fraction of a cell from the next are small differences of products.
    with torch.autocast(features1.device.type, enabled=False):
        for level in range(levels):
            height, width = features2.shape[-2:]
            pyramid.append((first @ features2.flatten(2)).unflatten(2, (height, width)))
            if level < levels - 1:
                features2 = F.avg_pool2d(features2, 2) if min(height, width) > 1 \
                    else features2[..., :height // 2, :width // 2]
    return pyramid


def lookup(pyramid: list[Tensor], position: Tensor, radius: int) -> Tensor:
    """Read windows of the pyramid around where each cell is now believed to go.

    All points of a window share their fractional part, so (2r + 2)^2 integer taps are gathered once and interpolated
    along x, then along y. Outside of the second image the similarity is zero.

    Args:
        pyramid: see :func:`correlation_pyramid`.
        position: (B, 2, h, w) positions in the second feature grid, x first.

    Returns:
        (B, levels * (2r + 1)^2, h, w); the window's first index displaces x, as released weights expect.
    """
    batch, _, height, width = position.shape
    steps = torch.arange(-radius, radius + 2, device=position.device)
    windows = []
    for level, volume in enumerate(pyramid):
        rows, columns = volume.shape[-2:]
        if rows == 0 or columns == 0:
            windows.append(position.new_zeros(batch, height * width, (2 * radius + 1) ** 2))
            continue
        x, y = (position / 2 ** level).flatten(2).unbind(1)  # (B, N) each
        # A flow may wander far off; a bound just outside of the image keeps the integers small and reads zeros.
        x, y = x.clamp(-radius - 2, columns + radius + 1), y.clamp(-radius - 2, rows + radius + 1)
        column, row = x.floor().long()[..., None] + steps, y.floor().long()[..., None] + steps  # (B, N, 2r + 2)
        inside = ((row >= 0) & (row < rows))[..., :, None] & ((column >= 0) & (column < columns))[..., None, :]
        index = row.clamp(0, rows - 1)[..., :, None] * columns + column.clamp(0, columns - 1)[..., None, :]
        taps = volume.flatten(2).gather(2, index.flatten(2)).reshape(index.shape) * inside
        right, down = (x - x.floor())[..., None, None], (y - y.floor())[..., None, None]
        taps = torch.lerp(taps[..., :-1], taps[..., 1:], right.to(taps.dtype))
        taps = torch.lerp(taps[..., :-1, :], taps[..., 1:, :], down.to(taps.dtype))
        windows.append(taps.transpose(-1, -2).flatten(2))
    return torch.cat(windows, dim=2).transpose(1, 2).unflatten(2, (height, width))


# ---------------------------------------------------------------- update (section 3.3)


class UpdateBlock(nn.Module):
    """One correction of the flow from the similarities around it, the context, and what was seen before."""

    def __init__(self, config: RAFTConfig) -> None:
        super().__init__()
        similarities = config.levels * (2 * config.radius + 1) ** 2
        self.encoder = MotionEncoder(config.small, similarities)
        motion = 82 if config.small else 128
        self.gru = (ConvGRU if config.small else SeparableConvGRU)(config.hidden, config.context + motion)
        self.flow_head = FlowHead(config.hidden, 128 if config.small else 256)
        if not config.small:
            self.mask = nn.Sequential(nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(),
                                      nn.Conv2d(256, STRIDE * STRIDE * 9, 1))

    def forward(self, state: Tensor, context: Tensor, similarity: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """All at (h, w): the next state (B, hidden, ...) and a correction of the flow (B, 2, ...) in cells."""
        motion = self.encoder(similarity, flow)
        state = self.gru(state, torch.cat([context, motion], dim=1))
        return state, self.flow_head(state)


class MotionEncoder(nn.Module):
    """Similarities and the present flow, brought together."""

    def __init__(self, small: bool, similarities: int) -> None:
        super().__init__()
        corr, flow, out = ((96,), (64, 32), 80) if small else ((256, 192), (128, 64), 126)
        self.convc1 = nn.Conv2d(similarities, corr[0], 1)
        self.convc2 = nn.Identity() if small else nn.Conv2d(corr[0], corr[1], 3, padding=1)
        self.convf1 = nn.Conv2d(2, flow[0], 7, padding=3)
        self.convf2 = nn.Conv2d(flow[0], flow[1], 3, padding=1)
        self.conv = nn.Conv2d(corr[-1] + flow[1], out, 3, padding=1)

    def forward(self, similarity: Tensor, flow: Tensor) -> Tensor:
        """(B, similarities, h, w) and flow (B, 2, h, w) in cells to (B, 82 or 128, h, w), the flow in the last two."""
        x = self.convc2(self.convc1(similarity).relu()).relu()
        y = self.convf2(self.convf1(flow).relu()).relu()
        return torch.cat([self.conv(torch.cat([x, y], dim=1)).relu(), flow], dim=1)


class ConvGRU(nn.Module):
    """A gated recurrent unit whose products are convolutions (equations 3 to 6 of the paper)."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.convz = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)
        self.convr = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)
        self.convq = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        """State (B, hidden, h, w) and input (B, inputs, h, w) to the next state."""
        return gate(state, x, self.convz, self.convr, self.convq)


class SeparableConvGRU(nn.Module):
    """Two such units, one along the rows and one along the columns: a large field of view for less work."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        for number, (kernel, padding) in enumerate((((1, 5), (0, 2)), ((5, 1), (2, 0))), start=1):
            for name in "zrq":
                setattr(self, f"conv{name}{number}", nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding))

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        """State (B, hidden, h, w) and input (B, inputs, h, w) to the next state."""
        state = gate(state, x, self.convz1, self.convr1, self.convq1)
        return gate(state, x, self.convz2, self.convr2, self.convq2)


def gate(state: Tensor, x: Tensor, update: nn.Conv2d, reset: nn.Conv2d, candidate: nn.Conv2d) -> Tensor:
    """A convolutional GRU step; the update and reset gates read the same input, so they are one convolution."""
    both = F.conv2d(torch.cat([state, x], dim=1), torch.cat([update.weight, reset.weight]),
                    torch.cat([update.bias, reset.bias]), padding=update.padding)
    z, r = both.sigmoid().chunk(2, dim=1)
    q = candidate(torch.cat([r * state, x], dim=1)).tanh()
    return torch.lerp(state, q, z)


class FlowHead(nn.Module):
    """Hidden state to a correction of the flow, in cells."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, 2, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        """(B, hidden, h, w) to (B, 2, h, w) in cells."""
        return self.conv2(self.conv1(state).relu())


def convex_upsample(flow: Tensor, mask: Tensor) -> Tensor:
    """Each fine flow vector is a convex combination of the 3x3 coarse ones around it (appendix of the paper).

    Args:
        flow: (B, 2, h, w) in cells. mask: (B, 9 * 64, h, w) logits, the nine neighbours slowest.

    Returns:
        (B, 2, 8 h, 8 w), still in cells.
    """
    batch, _, height, width = flow.shape
    weights = mask.reshape(batch, 1, 9, STRIDE, STRIDE, height, width).softmax(dim=2)
    neighbours = F.unfold(flow, 3, padding=1).reshape(batch, 2, 9, 1, 1, height, width)
    fine = (weights * neighbours).sum(dim=2)  # (B, 2, 8, 8, h, w)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, STRIDE * height, STRIDE * width)


# ---------------------------------------------------------------- parts


def _normalise(image: Tensor) -> Tensor:
    return _pad(2 * image - 1)


def _pad(image: Tensor) -> Tensor:
    # Two cells a side at least: instance norm has nothing to divide by on a single one.
    return geometry.pad_to_multiple(image, STRIDE, at_least=2 * STRIDE)[0]


def _check_pair(image1: Tensor, image2: Tensor) -> None:
    if image1.ndim != 4 or image1.shape[1] != 3 or image1.shape != image2.shape:
        raise ValueError(f"RAFT takes two images (B, 3, H, W) of one size, got {tuple(image1.shape)} and "
                         f"{tuple(image2.shape)}")


def _check_iterations(n_iters: int) -> None:
    if n_iters < 1:
        raise ValueError(f"n_iters must be at least 1, got {n_iters}")
