"""Frames to masks in one graph: RAFT's flow, superpixels of colour and flow, and a head on both, trained together.

The way of the other files of this folder is to compute flow and superpixels once and to train on what is kept. Here
nothing is kept: what the loss says about a mask reaches the features that find matches and those that are clustered.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffslic import training
from diffslic.flow import RAFT, RAFTConfig, check_polish, polish
from diffslic.pipeline.inputs import INPUTS, LEAST_SPREAD, N_SPIXELS
from diffslic.pipeline.precompute import video_flow_both_ways
from diffslic.pipeline.predict import logits_of_views
from diffslic.segmentation import (
    MotionNetConfig,
    SuperpixelTransformer,
    SuperpixelTransformerConfig,
    UNet,
    UNetConfig,
)
from diffslic.segmentation.inputs import checked_channels
from diffslic.superpixels import SSN, SoftSLIC, SSNConfig, reconstruct

PARTS = ("head", "superpixels", "flow")  # in the order in which they begin to learn
HEADS = {"unet": (UNet, UNetConfig), "transformer": (SuperpixelTransformer, SuperpixelTransformerConfig)}
# What other files hold, and where they are for: told to whoever gives one as a network trained end to end.
OTHERS = {UNetConfig: "a U-Net, which is for --method unet and for --start of train unet",
          RAFTConfig: "a RAFT, which is for --raft", SSNConfig: "an SSN, which is for --ssn",
          MotionNetConfig: "a MotionNet, which is for --method em or spacetime"}


class Prediction(NamedTuple):
    """What training compares with the truth."""

    logits: Tensor  # (B, 1, H, W): above 0 where something moves by itself
    flow: Tensor  # (B, 4, H, W) pixels: u, v to the next frame, u, v to the one before
    superpixels: SoftSLIC
    own_flow: Tensor  # (B, 4, H, W) pixels, as RAFT finds it: before the polish


def channel_counts(superpixels: SSN) -> dict[str, int]:
    """How many channels each of :data:`diffslic.pipeline.INPUTS` has for the head."""
    learned = superpixels.config.out_channels if superpixels.net is not None else 0
    return {"flow": 4, "superpixels": learned + 3, "image": 3}


class EndToEnd(nn.Module):
    """Three frames to the mask of the one in the middle.

    Batch norms keep their moments in training too: the parts come trained, and a few frames would spoil what many have
    settled.

    Args:
        flow: RAFT. superpixels: a composite SSN, over flow there and back.
        head: what sees the channels; its ``config.inputs`` are any of :data:`diffslic.pipeline.INPUTS`.
        n_iters: corrections of the flow. n_spixels: superpixels of a frame.
        polished: how the flow is brought to a fraction of a pixel, a way of :func:`diffslic.flow.polish`. What it adds
            counts as given: gradients for the polished flow are those of RAFT's own.
        keep_activations: False: each part is computed once more on the way back, in much less memory.
    """

    def __init__(self, flow: RAFT, superpixels: SSN, head: UNet | SuperpixelTransformer, n_iters: int = 12,
                 n_spixels: int = N_SPIXELS, polished: str = "variational", keep_activations: bool = True) -> None:
        super().__init__()
        if n_iters < 1 or n_spixels < 1:
            raise ValueError(f"n_iters and n_spixels must be at least 1, got {n_iters} and {n_spixels}")
        check_polish(polished)
        if superpixels.extra_channels != 4:
            raise ValueError("the superpixels must be those of a composite SSN over flow there and back, "
                             f"got one of {superpixels.extra_channels} further channels")
        unknown = [name for name in head.config.inputs if name not in INPUTS]
        if unknown or not head.config.inputs or head.config.out_channels != 1:
            raise ValueError(f"the head must have one mask and inputs among {', '.join(INPUTS)}, "
                             f"got {head.config.out_channels} and {', '.join(head.config.inputs) or 'none'}")
        counts = channel_counts(superpixels)
        if head.config.in_channels != sum(counts[name] for name in head.config.inputs):
            raise ValueError(f"the head reads {head.config.in_channels} channels, {', '.join(head.config.inputs)} have "
                             f"{sum(counts[name] for name in head.config.inputs)} with these superpixels")
        self.flow, self.superpixels, self.head = flow, superpixels, head
        self.n_iters, self.n_spixels = n_iters, n_spixels
        self.polished, self.keep_activations = polished, keep_activations
        self.learn(PARTS)

    def learn(self, parts: Sequence[str]) -> None:
        """Let these of :data:`PARTS` learn, and no other. Gradients still pass through what is frozen."""
        for name in PARTS:
            self.get_submodule(name).requires_grad_(name in parts)

    def train(self, mode: bool = True) -> "EndToEnd":
        """As of any module, but that batch norms keep their moments."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def forward(self, before: Tensor, frame: Tensor, after: Tensor, mixing: Tensor | None = None,
                shown: Tensor | None = None) -> Prediction:
        """The mask of ``frame``, and what it was made from.

        Args:
            before, frame, after: (B, 3, H, W) RGB in [0, 1] each, neighbours in time.
            mixing: (B, C, C) for training: what becomes of the head's channels, such as a new order or zeros.
            shown: (B, 3, H, W) for training: ``frame`` as the head is to see it, in other colours; None: as it is.

        Raises:
            ValueError: images of different sizes, or a frame that is not one in [0, 1].
        """
        if not before.shape == frame.shape == after.shape:
            raise ValueError(f"before, frame and after must be of one size, got {tuple(before.shape)}, "
                             f"{tuple(frame.shape)} and {tuple(after.shape)}")
        own_flow = self._computed(self.own_flow_of, before, frame, after)
        flow = self._polished(own_flow, before, frame, after)
        superpixels = self._computed(self.superpixels_of, frame, flow)
        channels = self._computed(self.channels, frame, flow, superpixels, shown)
        if mixing is not None:
            with torch.autocast(channels.device.type, enabled=False):
                channels = torch.einsum("bij,bjhw->bihw", mixing, channels)
        seen = (channels,) if isinstance(self.head, UNet) else (channels, superpixels)
        return Prediction(self._computed(self.head, *seen), flow, superpixels, own_flow)

    def flow_of(self, before: Tensor, frame: Tensor, after: Tensor) -> Tensor:
        """Polished flow (B, 4, H, W) in pixels from ``frame`` to ``after``, then to ``before``."""
        return self._polished(self.own_flow_of(before, frame, after), before, frame, after)

    def own_flow_of(self, before: Tensor, frame: Tensor, after: Tensor) -> Tensor:
        """:meth:`flow_of` as RAFT finds it; both ways are one batch."""
        past, here, future = self.flow.features(torch.cat([before, frame, after])).chunk(3)
        context = self.flow.context(frame)
        context = context._make(part.repeat(2, 1, 1, 1) for part in context)
        correlate = self.flow.correlate(here.repeat(2, 1, 1, 1), torch.cat([future, past]))
        cells, state = self.flow.refined(correlate, context, self.n_iters)
        return torch.cat(self.flow.upsample(cells, state, frame.shape[-2:]).chunk(2), dim=1)

    def _polished(self, flow: Tensor, before: Tensor, frame: Tensor, after: Tensor) -> Tensor:
        """The flow (B, 4, H, W) with what the polish adds to it, which counts as given."""
        if self.polished == "none":
            return flow
        pairs = frame.repeat(2, 1, 1, 1), torch.cat([after, before]), torch.cat(flow.detach().chunk(2, dim=1))
        return flow + (torch.cat(polish(*pairs, self.polished).chunk(2), dim=1) - flow).detach()

    def superpixels_of(self, frame: Tensor, flow: Tensor) -> SoftSLIC:
        """Soft superpixels of frames (B, 3, H, W) and their flow (B, 4, H, W)."""
        return self.superpixels(frame, min(self.n_spixels, frame[0, 0].numel()), extra=flow)

    def channels(self, frame: Tensor, flow: Tensor, superpixels: SoftSLIC, shown: Tensor | None = None) -> Tensor:
        """What the head sees, (B, C, H, W): as ``network_input`` makes it, with soft superpixels for labels."""
        make: dict[str, Callable[[], Tensor]] = {
            "flow": lambda: checked_channels(flow[:, :2]),  # finite, or there would be no superpixels
            "superpixels": lambda: self.differences(frame, superpixels),
            "image": lambda: 2 * (frame if shown is None else shown) - 1}
        return torch.cat([make[name]() for name in self.head.config.inputs], dim=1)

    def differences(self, frame: Tensor, superpixels: SoftSLIC) -> Tensor:
        """Looks of superpixels, as ``superpixel_differences``: each channel with mean 0 and deviation 1 in a frame."""
        looks = reconstruct(superpixels, self.superpixels.appearance(frame))
        looks = looks - looks.mean((2, 3), keepdim=True)
        # Bounded before the root, whose slope at 0 is infinite: a channel may be constant, as in a black frame.
        return looks / looks.square().mean((2, 3), keepdim=True).clamp(min=LEAST_SPREAD ** 2).sqrt()

    @torch.no_grad()
    def video(self, frames: Iterable[Tensor]) -> Iterator[Tensor]:
        """Logits (H, W) of every frame (3, H, W) of a video; features are computed once per frame.

        At both ends one of the flows is missing, and the other stands for it, turned around. A U-Net sees the channels
        of a frame twice, as they are and in a mirror.
        """
        device, read = training.device_of(self), deque[Tensor]()

        def noted() -> Iterator[Tensor]:
            for frame in frames:
                read.append(frame.to(device))
                yield read[-1]

        back = None
        for both in video_flow_both_ways(self.flow, noted(), self.n_iters, self.polished):
            yield self._logits(read.popleft(), torch.cat([both.forward, -both.forward if back is None else back]))
            back = both.backward
        assert back is not None  # there are two frames at least, or RAFT has said so
        yield self._logits(read.popleft(), torch.cat([-back, back]))

    def _logits(self, frame: Tensor, flow: Tensor) -> Tensor:
        """(H, W) of a frame (3, H, W) and its flow (4, H, W)."""
        superpixels = self.superpixels_of(frame[None], flow[None])
        channels = self.channels(frame[None], flow[None], superpixels)
        if isinstance(self.head, UNet):
            return logits_of_views(self.head, channels[0])
        return self.head(channels, superpixels)[0, 0]

    def _computed(self, part: Callable[..., Any], *inputs: Any) -> Any:
        """``part(*inputs)``, whose activations are kept for the way back, or not."""
        if self.keep_activations or not torch.is_grad_enabled():
            return part(*inputs)
        return checkpoint(part, *inputs, use_reentrant=False)

    def save(self, path: str | Path) -> None:
        """Write weights and configuration of all parts as one safetensors file, for :meth:`from_pretrained`."""
        kind = next(kind for kind, (network, _) in HEADS.items() if isinstance(self.head, network))
        training.save_weights(path, self.state_dict(), {
            "flow": asdict(self.flow.config), "superpixels": asdict(self.superpixels.config), "head": kind,
            kind: asdict(self.head.config), "n_iters": self.n_iters, "n_spixels": self.n_spixels,
            "polished": self.polished})

    @classmethod
    def from_pretrained(cls, path: str | Path, device: torch.device | str = "cpu") -> "EndToEnd":
        """A trained network in evaluation mode, from a ``.safetensors`` of :meth:`save`.

        Raises:
            FileNotFoundError: no such file. ValueError: weights of another network.
        """
        state, config = training.load_weights("end-to-end", path)
        for other, told in OTHERS.items():
            if config and config.keys() <= {field.name for field in fields(other)}:
                raise ValueError(f"{path} does not hold a network trained end to end, but {told}")
        try:
            head, head_config = HEADS[config["head"]]
            net = cls(RAFT(RAFTConfig(**config["flow"])), SSN(SSNConfig(**config["superpixels"])),
                      head(head_config(**config[config["head"]])), config["n_iters"], config["n_spixels"],
                      config.get("polished", "none"))  # files without it are of before there was a choice
            training.fill(net, state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a network trained end to end: "
                             f"{' '.join(str(error).split())[:200]}") from error
        return net.eval().to(training.check_device(device))
