"""``MotionNet``: layers of coherent motion from flow, frame by frame or in windows of many frames.

Trained without any mask, on the coherence of the flow inside its own layers (``coherence``, ``spacetime``).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from diffslic import geometry, training
from diffslic.segmentation.inputs import flow_channels
from diffslic.segmentation.linking import Window, link, window_starts
from diffslic.segmentation.parametric import check_flow
from diffslic.segmentation.selection import SELECTIONS, renumbered
from diffslic.segmentation.unet import UNet, UNetConfig
from diffslic.segmentation.unet3d import HEADS, SpaceTimeUNet

CHANNELS = {"residual": 2, "flow": 2, "image": 3, "flow_rgb": 3}  # of an input
LEAST_MOTION = 0.5  # pixels of the network's size that count as full strength at least


@dataclass(frozen=True)
class MotionNetConfig:
    """Shape of a :class:`MotionNet` and what it reads."""

    window: int = 9                               # frames seen at once; 1 is the 2-D U-Net of the EM system
    n_layers: int = 4                             # L
    inputs: tuple[str, ...] = ("residual", "flow")  # also image, flow_rgb; flow+1, image-2 ... of other frames
    widths: tuple[int, ...] = (16, 32, 64, 128)   # channels at each scale, from full size down by halves
    size: tuple[int, int] = (128, 224)            # rows and columns at which the network works
    selection: str = "moving"                     # which layer is the background, see ``selection``

    def __post_init__(self) -> None:
        if isinstance(self.inputs, str):
            raise ValueError(f"inputs are several names, such as ('flow',), got {self.inputs!r}")
        for name in ("inputs", "widths", "size"):  # weights files keep them as JSON, which knows lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.window, self.n_layers, *self.widths, *self.size) < 1 or not self.inputs or len(self.widths) < 2:
            raise ValueError(f"a MotionNet needs a frame, a layer, an input and two widths at least, got {self}")
        if self.window > 1 and self.widths[-1] % HEADS:
            raise ValueError(f"the last width of a network over windows is a multiple of {HEADS}, got {self.widths}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"the selection must be one of {', '.join(SELECTIONS)}, got {self.selection!r}")
        for spec in self.inputs:
            parse_input(spec)

    @property
    def fields(self) -> frozenset[str]:
        """What it reads of a clip: flow always, image and flow_rgb where they are inputs; the residual is flow."""
        return frozenset({"flow", *(parse_input(spec)[0] for spec in self.inputs)} - {"residual"})

    @property
    def margin(self) -> tuple[int, int]:
        """How many frames before and after a window its inputs reach."""
        shifts = [parse_input(spec)[1] for spec in self.inputs]
        return max(0, -min(shifts)), max(0, max(shifts))


def parse_input(spec: str) -> tuple[str, int]:
    """What an input such as "flow-4" holds, and of how many frames later.

    Raises:
        ValueError: no such input.
    """
    match = re.fullmatch(rf"({'|'.join(CHANNELS)})([+-]\d+)?", spec.lower().replace("flowrgb", "flow_rgb"))
    if not match:
        raise ValueError(f"an input is one of {', '.join(CHANNELS)}, or that of another frame such as flow+1; "
                         f"got {spec!r}")
    return match.group(1), int(match.group(2) or 0)


class MotionNet(nn.Module):
    """Inputs (B, C, T, H, W) to logits (B, L, T, H, W); use :meth:`segment` on flow of any size and length."""

    def __init__(self, config: MotionNetConfig = MotionNetConfig()) -> None:
        super().__init__()
        self.config = config
        channels = sum(CHANNELS[parse_input(spec)[0]] for spec in config.inputs)
        self.net: nn.Module = (UNet(UNetConfig(channels, config.n_layers, config.widths)) if config.window == 1
                               else SpaceTimeUNet(channels, config.n_layers, config.widths))

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path = "spacetime", device: torch.device | str = "cpu") -> "MotionNet":
        """A trained network in evaluation mode: "em" (frame by frame), "spacetime", or a file of :meth:`save`.

        Raises:
            FileNotFoundError: no such file. ValueError: weights of another network.
        """
        state, config = training.load_weights("motion", name_or_path)
        try:
            net = cls(MotionNetConfig(**config))
            training.fill(net, {name: value.float() for name, value in state.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name_or_path} does not hold the weights of a MotionNet: "
                             f"{' '.join(str(error).split())[:200]}") from error
        return net.eval().to(training.check_device(device))

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, for :meth:`from_pretrained`."""
        training.save_weights(path, self.state_dict(), asdict(self.config))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, L, T, H, W) of inputs (B, C, T, H, W)."""
        if self.config.window > 1:
            return self.net(x)
        frames = self.net(x.transpose(1, 2).flatten(0, 1))
        return frames.unflatten(0, (len(x), x.shape[2])).transpose(1, 2)

    def segment(self, flow: Tensor, image: Tensor | None = None, flow_rgb: Tensor | None = None,
                window: int | None = None, low_memory: bool = True) -> Tensor:
        """What moves, and how it parts: labels of every frame at the flow's own size.

        Args:
            flow: (T, 2, H, W) in pixels, finite; the flow that leaves each frame.
            image: (T, 3, H, W) in [0, 1]. flow_rgb: (T, 3, H, W) in [0, 1]. For networks that read them.
            window, low_memory: see :meth:`layers`.

        Returns:
            (T, H, W) int64: 0 background, others the layers that move, numbered from 1. The same number is the same
            layer in all frames, as far as windows can be linked.

        Raises:
            ValueError: unknown flow, a missing input, sizes that differ.
        """
        layers = self.layers(flow, image, flow_rgb, window, low_memory).to(flow.device)
        return renumbered(layers, self.moving(layers, flow))

    def moving(self, layers: Tensor, flow: Tensor, selection: str | None = None) -> Tensor:
        """Which layers are not the background, chosen anew in every frame where the network sees single frames.

        Args:
            layers: (T, H, W) of :meth:`layers`. flow: (T, 2, H, W) in pixels. selection: one of ``SELECTIONS``; None:
                the network's own.

        Returns:
            (T, H, W) bool.
        """
        selection = selection or self.config.selection
        if selection not in SELECTIONS:
            raise ValueError(f"the selection must be one of {', '.join(SELECTIONS)}, got {selection!r}")
        select = SELECTIONS[selection]
        if self.config.window > 1:
            return select(layers, flow)
        return torch.cat([select(frame[None], field[None]) for frame, field in zip(layers, flow)])

    def layers(self, flow: Tensor, image: Tensor | None = None, flow_rgb: Tensor | None = None,
               window: int | None = None, low_memory: bool = True) -> Tensor:
        """The likeliest layer of every pixel, before the background is chosen: (T, H, W) int64 in 0..L-1.

        Args:
            window: frames seen at once; None: as the network was trained, -1: the whole clip. Consecutive windows
                overlap by half, those of one frame not at all, and are linked (:func:`diffslic.segmentation.link`).
            low_memory: window after window, or all of them as one batch; the result is the same.
        """
        size = flow.shape[-2:]
        labels = [geometry.resize(masks[None], size)[0].argmax(0)
                  for masks in self.masks(flow, image, flow_rgb, window, low_memory)]
        return torch.stack(labels)

    @torch.no_grad()
    def masks(self, flow: Tensor, image: Tensor | None = None, flow_rgb: Tensor | None = None,
              window: int | None = None, low_memory: bool = True) -> Iterator[Tensor]:
        """Soft masks (L, h, w) frame by frame at the network's size, in one order; arguments as of :meth:`layers`.

        Raises:
            ValueError: a window that is no number of frames, flow that is not known, sizes that differ, and what
                :meth:`channels` raises.
        """
        check_flow(flow, "(T, 2, H, W)")
        given = {name: field for name, field in (("flow", flow), ("image", image), ("flow_rgb", flow_rgb))
                 if field is not None}
        for name, field in given.items():
            if field.ndim != 4 or field.shape[-2:] != flow.shape[-2:]:
                raise ValueError(f"{name} must be (T, C, H, W) of the flow's size {tuple(flow.shape)}, got "
                                 f"{tuple(field.shape)}")
        fields = at_size({name: field.float() for name, field in given.items()}, self.config.size)
        channels = self.channels(fields)                                    # (T, C, h, w)
        length = self.config.window if window is None else window
        if length != -1 and length < 1:
            raise ValueError(f"a window has at least one frame, or is -1 for the whole clip, got {window}")
        length = len(channels) if length == -1 else min(length, len(channels))
        starts = window_starts(len(channels), length, length // 2)
        cuts = [channels[start:start + length].transpose(0, 1) for start in starts]
        device = training.device_of(self)
        if low_memory:
            pieces = (self(cut[None].to(device)).softmax(1)[0] for cut in cuts)
        else:
            pieces = iter(self(torch.stack(cuts).to(device)).softmax(1))
        yield from link(Window(start, masks, fields["flow"][start:start + length].to(device))
                        for start, masks in zip(starts, pieces))

    def channels(self, fields: Mapping[str, Tensor]) -> Tensor:
        """What the network reads of fields at its size (:func:`at_size`): (T, C, h, w).

        Raises:
            ValueError: names what is missing; fields of different numbers of frames.
        """
        fields = dict(fields)
        if "flow" in fields:
            fields["residual"], fields["flow"] = flow_channels(fields["flow"], LEAST_MOTION).split(2, dim=1)
        missing = [spec for spec in self.config.inputs if parse_input(spec)[0] not in fields]
        if missing:
            raise ValueError(f"this network reads {', '.join(self.config.inputs)}; {missing[0]} was not given")
        if len({len(field) for field in fields.values()}) > 1:
            raise ValueError("flow and images must be of as many frames, got "
                             + ", ".join(f"{len(field)} of {name}" for name, field in fields.items()))
        shifted = []
        for name, shift in map(parse_input, self.config.inputs):
            frames = (torch.arange(len(fields[name])) + shift).clamp(0, len(fields[name]) - 1)
            shifted.append(fields[name][frames])
        return torch.cat(shifted, dim=1)


def at_size(fields: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Flow (T, 2, H, W), and images (T, 3, H, W) by their names, resized; flow counts in the new pixels."""
    return {name: (geometry.resize_flow if name == "flow" else geometry.resize)(field, size)
            for name, field in fields.items()}
