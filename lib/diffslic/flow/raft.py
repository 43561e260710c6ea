"""RAFT: recurrent all-pairs field transforms for optical flow (Teed and Deng, ECCV 2020).

Three boxes, as in the paper's figure 1: encoders (``encoder.py``) give features of both images and the context of the
first; the correlation (``correlation.py``) holds the similarity of all pairs of pixels; a recurrent unit reads it
around the present flow and corrects the flow, again and again. Everything happens at an eighth of the image's size.

The names of the layers are the paper's own (fnet, cnet, update_block), so that released weights load as they are.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffslic import geometry, training
from diffslic.flow.correlation import RowBlocks, Volume, correlation, correlation_pyramid
from diffslic.flow.encoder import Encoder
from diffslic.flow.inputs import check_images, check_initial, check_iterations
from diffslic.flow.layers import BatchNorm, InstanceNorm
from diffslic.flow.released import own_keys
from diffslic.flow.video import BothWays, flow_both_ways, forward_flow

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


class Context(NamedTuple):
    """What the first image tells the recurrent unit."""

    state: Tensor  # (B, hidden, h, w) in [-1, 1]: its hidden state before the first correction
    constant: Tensor  # (B, context, h, w) from 0: what it sees at every correction


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
        self.fnet = Encoder(config.small, 128 if config.small else 256, InstanceNorm)
        self.cnet = Encoder(config.small, config.hidden + config.context, nn.Identity if config.small else BatchNorm)
        self.update_block = UpdateBlock(config)

    def forward(self, image1: Tensor, image2: Tensor, n_iters: int = 12, initial: Tensor | None = None) -> Tensor:
        """Flow from ``image1`` to ``image2``.

        Args:
            image1, image2: (B, 3, H, W) RGB in [0, 1], any H and W.
            n_iters: how often the flow is corrected.
            initial: (B, 2, H, W) flow in pixels to start from; zero if None.

        Returns:
            (B, 2, H, W) flow in pixels, float32 (float64 with weights in float64).

        Raises:
            ValueError: not two images of one size, values that are not in [0, 1], an initial flow of another size or
                not finite, no correction.
        """
        check_images(image1, image2)
        check_iterations(n_iters)
        if initial is not None:
            check_initial(initial, image1)
        correlate = self.correlate(self.features(image1), self.features(image2))
        context = self.context(image1)
        start = None if initial is None else geometry.resize_flow(_pad(initial), context.state.shape[-2:])
        return self.upsample(*self.refined(correlate, context, n_iters, start), image1.shape[-2:])

    def predictions(self, image1: Tensor, image2: Tensor, n_iters: int = 12) -> Predictions:
        """What training compares with the truth: the flow after every correction, and the similarities of cells."""
        check_iterations(n_iters)
        features1, features2 = self.features(image1), self.features(image2)
        pyramid = correlation_pyramid(features1, features2, self.config.levels)
        flows = [self.upsample(*step, image1.shape[-2:]) for step in
                 self.refine(Volume(pyramid, self.config.radius), self.context(image1), n_iters)]
        return Predictions(flows, pyramid[0])

    def similarity(self, image1: Tensor, image2: Tensor) -> Tensor:
        """(B, h * w, h, w) of the cells of both images, as in :class:`Predictions`, without running the rest."""
        return correlation_pyramid(self.features(image1), self.features(image2), levels=1)[0]

    def video(self, frames: Iterable[Tensor], n_iters: int = 12, warm_start: bool = False) -> Iterator[Tensor]:
        """Flow from each frame to the next: see :func:`diffslic.flow.video.forward_flow`."""
        return forward_flow(self, frames, n_iters, warm_start)

    def video_both_ways(self, frames: Iterable[Tensor], n_iters: int = 12,
                        warm_start: bool = False) -> Iterator[BothWays]:
        """Flow between neighbouring frames, there and back: see :func:`diffslic.flow.video.flow_both_ways`."""
        return flow_both_ways(self, frames, n_iters, warm_start)

    def features(self, image: Tensor) -> Tensor:
        """What is compared (section 3.1): (B, D, H / 8, W / 8), sides rounded up, float32 or wider.

        In mixed precision, or with weights in bfloat16, the rest of the network is rounded; what is compared is not.
        """
        features = self.fnet(self._prepare(image))
        return features if features.dtype == torch.float64 else features.float()

    def context(self, image: Tensor) -> Context:
        """What the recurrent unit knows of the first image."""
        # Where no gradient passes, with the channels innermost: its convolutions are faster so, their gradients not.
        layout = torch.contiguous_format if torch.is_grad_enabled() else torch.channels_last
        encoded = self.cnet(self._prepare(image).contiguous(memory_format=layout))
        state, context = encoded.split([self.config.hidden, self.config.context], dim=1)
        return Context(state.tanh(), context.relu())

    def correlate(self, features1: Tensor, features2: Tensor) -> Volume | RowBlocks:
        """How alike the cells of two images are, to be read around a flow."""
        return correlation(features1, features2, self.config.levels, self.config.radius)

    def refine(self, correlate: Callable[[Tensor], Tensor], context: Context, n_iters: int,
               initial: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Corrections of the flow (section 3.3).

        Args:
            correlate: positions (B, 2, h, w) in the second grid to similarities, as a ``Volume`` does.
            context: of the first image.
            initial: (B, 2, h, w) flow in cells to start from; zero if None.

        Yields:
            flow (B, 2, h, w) in cells of the feature grid, and the hidden state (B, hidden, h, w).
        """
        state, gates = context.state, self.update_block.gru.gates(context.constant)
        batch, _, height, width = state.shape
        grid = geometry.pixel_grid(height, width, state.device, torch.promote_types(state.dtype, torch.float32))
        flow = torch.zeros_like(grid).expand(batch, -1, -1, -1) if initial is None else initial
        for _ in range(n_iters):
            flow = flow.detach()  # gradients pass through the corrections only, as in the paper
            similarity = correlate(grid + flow)
            state, correction = self.update_block(state, gates, similarity.to(state.dtype), flow.to(state.dtype))
            flow = flow + correction
            yield flow, state

    def refined(self, correlate: Callable[[Tensor], Tensor], context: Context, n_iters: int,
                initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The last of :meth:`refine`; the hidden states before it are not kept."""
        for step in self.refine(correlate, context, n_iters, initial):
            last = step
        return last

    def upsample(self, flow: Tensor, state: Tensor, size: tuple[int, int]) -> Tensor:
        """Flow (B, 2, H, W) in pixels of the whole image from flow (B, 2, h, w) in cells."""
        if self.config.small:
            full = F.interpolate(flow, scale_factor=STRIDE, mode="bilinear", align_corners=True)
        else:
            full = convex_upsample(flow, 0.25 * self.update_block.mask(state).to(flow.dtype))
        return STRIDE * full[..., :size[0], :size[1]]

    def _prepare(self, image: Tensor) -> Tensor:
        return _pad(2 * image - 1).to(self.fnet.conv1.weight.dtype)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "small", device: torch.device | str = "cpu") -> "RAFT":
        """Load shipped weights by name, or a file: our own, princeton-vl's or torchvision's state dict.

        Raises:
            FileNotFoundError: no such weights. ValueError: the tensors are not those of a RAFT.
        """
        state = own_keys(training.load_weights("raft", name_or_path).state)
        model = cls(RAFTConfig("large" if "update_block.mask.0.weight" in state else "small"))
        try:
            training.fill(model, state)
        except ValueError as error:
            raise ValueError(f"{name_or_path} does not hold the weights of a RAFT: {error}") from error
        return model.to(training.check_device(device)).eval()

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors."""
        training.save_weights(path, self.state_dict(), asdict(self.config))


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

    def forward(self, state: Tensor, gates: list["Gates"], similarity: Tensor,
                flow: Tensor) -> tuple[Tensor, Tensor]:
        """All at (h, w): the next state (B, hidden, ...) and a correction of the flow (B, 2, ...) in cells.

        ``gates`` are ``gru.gates(context)``, the same for every correction.
        """
        motion = self.encoder(similarity, flow)
        for unit in gates:
            state = unit(state, motion)
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
        x = self.convc2(self.convc1(similarity).relu_()).relu()
        y = self.convf2(self.convf1(flow).relu_()).relu_()
        return torch.cat([self.conv(torch.cat([x, y], dim=1)).relu_(), flow], dim=1)


class ConvGRU(nn.Module):
    """A gated recurrent unit whose products are convolutions (equations 3 to 6 of the paper)."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.convz = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)
        self.convr = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)
        self.convq = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)

    def gates(self, context: Tensor) -> list["Gates"]:
        """The unit, for a context (B, C, h, w)."""
        return [Gates(self.convz, self.convr, self.convq, context)]


class SeparableConvGRU(nn.Module):
    """Two such units, one along the rows and one along the columns: a large field of view for less work."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        for number, (kernel, padding) in enumerate((((1, 5), (0, 2)), ((5, 1), (2, 0))), start=1):
            for name in "zrq":
                setattr(self, f"conv{name}{number}", nn.Conv2d(hidden + inputs, hidden, kernel, padding=padding))

    def gates(self, context: Tensor) -> list["Gates"]:
        """Both units, for a context (B, C, h, w)."""
        return [Gates(self.convz1, self.convr1, self.convq1, context),
                Gates(self.convz2, self.convr2, self.convq2, context)]


class Gates:
    """One gated unit, with everything that does not change between corrections worked out.

    The paper's convolutions read [state, context, motion]. They are linear and the context stays, so its part is
    computed once and added; and as the update gate z and the reset gate r read the same, they are one convolution.
    """

    def __init__(self, update: nn.Conv2d, reset: nn.Conv2d, candidate: nn.Conv2d, context: Tensor) -> None:
        hidden, constant = update.out_channels, context.shape[1]
        weights = torch.cat([update.weight, reset.weight, candidate.weight])
        of_state, of_context, of_motion = weights.split(
            [hidden, constant, weights.shape[1] - hidden - constant], dim=1)
        moving = torch.cat([of_state, of_motion], dim=1)
        self.padding, self.hidden = update.padding, hidden
        self.both, self.candidate = moving[:2 * hidden], moving[2 * hidden:]
        bias = torch.cat([update.bias, reset.bias, candidate.bias])
        constants = F.conv2d(context, of_context, bias, padding=self.padding)
        self.of_both, self.of_candidate = constants[:, :2 * hidden], constants[:, 2 * hidden:]

    def __call__(self, state: Tensor, motion: Tensor) -> Tensor:
        """State (B, hidden, h, w) and motion (B, M, h, w) to the next state."""
        both = F.conv2d(torch.cat([state, motion], dim=1), self.both, padding=self.padding)
        z, r = both.add_(self.of_both).sigmoid_().chunk(2, dim=1)
        q = F.conv2d(torch.cat([r * state, motion], dim=1), self.candidate, padding=self.padding)
        return torch.lerp(state, q.add_(self.of_candidate).tanh_(), z)


class FlowHead(nn.Module):
    """Hidden state to a correction of the flow, in cells."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, 2, 3, padding=1)

    def forward(self, state: Tensor) -> Tensor:
        """(B, hidden, h, w) to (B, 2, h, w) in cells."""
        return self.conv2(self.conv1(state).relu_())


def convex_upsample(flow: Tensor, mask: Tensor) -> Tensor:
    """Each fine flow vector is a convex combination of the 3x3 coarse ones around it (appendix of the paper).

    Args:
        flow: (B, 2, h, w) in cells. mask: (B, 9 * 64, h, w) logits, the nine neighbours slowest.

    Returns:
        (B, 2, 8 h, 8 w), still in cells.
    """
    batch, _, height, width = flow.shape
    weights = mask.reshape(batch, 1, 9, STRIDE, STRIDE, height, width).softmax(dim=2).unbind(2)
    neighbours = F.unfold(flow, 3, padding=1).reshape(batch, 2, 9, 1, 1, height, width).unbind(2)
    # One neighbour after the other: all products at once would be the largest thing in memory.
    fine = weights[0] * neighbours[0]  # (B, 2, 8, 8, h, w)
    for weight, neighbour in zip(weights[1:], neighbours[1:]):
        fine = torch.addcmul(fine, weight, neighbour)
    return fine.permute(0, 1, 4, 2, 5, 3).reshape(batch, 2, STRIDE * height, STRIDE * width)


# ---------------------------------------------------------------- parts


def _pad(image: Tensor) -> Tensor:
    # Two cells a side at least: instance norm has nothing to divide by on a single one.
    return geometry.pad_to_multiple(image, STRIDE, at_least=2 * STRIDE)[0]
