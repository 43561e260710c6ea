"""Superpixel sampling networks: pixel features, learned or not, clustered by soft SLIC (Jampani et al., 2018).

With further channels beside colour, such as flow there and back, a second network of the same kind joins a base that
was trained before and stays as it is: the *composite* SSN.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_lab
from torch import Tensor, nn

from diffslic import training
from diffslic.geometry import pixel_grid
from diffslic.superpixels.connectivity import connect
from diffslic.superpixels.slic import SoftSLIC, grid_for, soft_slic


@dataclass(frozen=True)
class SSNConfig:
    """Hyper-parameters of :class:`SSN`; the defaults are those of the released weights."""

    features: str = "deep"      # "deep": the paper's network beside colour and position; "pix": these alone
    n_spixels: int = 200        # requested superpixels where a call names no number
    n_iters: int = 5            # soft SLIC iterations; may differ between training and use
    distance: str = "l2"        # between features: "l2", or the paper's "squared"
    color_scale: float = 0.26   # factor of the Lab channels
    pos_scale: float = 2.5      # factor of the positions; larger gives rounder superpixels
    compactness: float = 1.0    # factor of the positions in the clustering alone: the network does not see it
    width: int = 64             # channels of the network's six inner convolutions
    out_channels: int = 15      # learned channels that join the five of colour and position
    extra_channels: int = 0     # of a composite, its further channels: 4 for flow there and back (u, v, u, v)
    flow_scale: float = 5.0     # factor of the further channels
    extra_width: int = 32       # of the second network, as ``width``
    extra_out_channels: int = 10  # of the second network, as ``out_channels``
    min_size: float = 0.25      # smallest connected superpixel, as a share of a grid cell; less gives more labels


class FeatureNet(nn.Module):
    """The paper's seven convolutions: two at each of three scales, brought to full size and fused by the last."""

    def __init__(self, in_channels: int = 5, width: int = 64, out_channels: int = 15) -> None:
        super().__init__()
        self.fine = nn.Sequential(_unit(in_channels, width), _unit(width, width))
        self.middle = nn.Sequential(nn.MaxPool2d(3, 2, padding=1), _unit(width, width), _unit(width, width))
        self.coarse = nn.Sequential(nn.MaxPool2d(3, 2, padding=1), _unit(width, width), _unit(width, width))
        self.head = nn.Conv2d(in_channels + 3 * width, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        # Channels last in memory: on a CPU the convolutions take two thirds of the time.
        x = x.contiguous(memory_format=torch.channels_last)
        fine = self.fine(x)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle, coarse = (F.interpolate(scale, size=x.shape[-2:], mode="bilinear", align_corners=False)
                          for scale in (middle, coarse))
        return self.head(torch.cat([x, fine, middle, coarse], dim=1)).contiguous()


def _unit(in_channels: int, out_channels: int) -> nn.Sequential:
    # Without a bias: the batch norm that follows would take it away again.
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
                         nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class SSN(nn.Module):
    """Images to superpixels.

    ``net(images)`` is differentiable and returns the soft assignment; ``net.segment(images)`` returns labels.
    As with any module, call ``eval()`` before use and ``train()`` before training: the network has batch norm.
    """

    def __init__(self, config: SSNConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or SSNConfig()
        if config.features not in ("deep", "pix"):
            raise ValueError(f"features must be 'deep' or 'pix', got {config.features!r}")
        self.net = FeatureNet(5, config.width, config.out_channels) if config.features == "deep" else None
        self.extra_net = (FeatureNet(config.extra_channels, config.extra_width, config.extra_out_channels)
                          if config.extra_channels else None)
        if self.extra_net is not None and self.net is not None:
            self.net.requires_grad_(False)
            self.train(self.training)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: torch.device | str = "cpu", **changes: Any) -> "SSN":
        """A trained network in evaluation mode.

        Args:
            name_or_path: shipped weights by name, a ``.safetensors`` of :meth:`save`, or a ``.pth`` of the weights
                released by the composite-SSN study, base or composite.
            changes: of the configuration that came with the weights, such as ``n_iters=10`` or ``compactness=2``.

        Raises:
            FileNotFoundError: no such file. ValueError: weights of another network. TypeError: a change of something
                that a configuration does not have.
        """
        replace(SSNConfig(), **changes)  # refuses names that no configuration has
        state, config = training.load_weights("ssn", name_or_path)
        try:
            if any(key.startswith("feature_extract") for key in state):
                state, config = _from_released(state)
            net = cls(SSNConfig(**{**config, **changes}))
            training.fill(net, state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name_or_path} does not hold the weights of an SSN: "
                             f"{' '.join(str(error).split())[:200]}") from error
        return net.eval().to(training.check_device(device))

    def save(self, path: str | Path) -> None:
        """Write weights and configuration as safetensors, for :meth:`from_pretrained`."""
        training.save_weights(path, self.state_dict(), asdict(self.config))

    @property
    def extra_channels(self) -> int:
        """How many channels beside colour it needs: 0, or of a composite some, such as 4 for flow there and back."""
        return self.config.extra_channels

    def composite(self, extra_channels: int = 4, **options: Any) -> "SSN":
        """A composite with this network as its base, and a second network that is yet to be trained.

        Args:
            extra_channels: see :class:`SSNConfig`. options: further changes of the configuration.
        """
        net = SSN(replace(self.config, extra_channels=extra_channels, **options))
        net.load_state_dict({**net.state_dict(), **self.state_dict()})
        return net

    def train(self, mode: bool = True) -> "SSN":
        """As of any module; the base of a composite stays frozen, its batch norm's statistics too."""
        super().train(mode)
        if self.extra_net is not None and self.net is not None:
            self.net.eval()
        return self

    def features(self, images: Tensor, n_spixels: int | None = None, extra: Tensor | None = None) -> Tensor:
        """Pixel features (B, C, H, W): learned channels, scaled Lab, scaled position (y, x), then those of ``extra``.

        The scale of the positions depends on ``n_spixels``, so that superpixels of every size are equally round.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            n_spixels: requested superpixels, by default the configuration's.
            extra: (B, extra_channels, H, W) of a composite, unscaled: flow in pixels.
        """
        base = self.base_features(images, n_spixels)
        wanted = None if self.extra_net is None else (len(images), self.config.extra_channels, *images.shape[-2:])
        given = None if extra is None else tuple(extra.shape)
        if given != wanted:
            raise ValueError("this network takes no extra channels" if wanted is None else
                             f"extra must be {wanted} for this composite, got {given}")
        if extra is None:
            return base
        if not torch.isfinite(extra).all():
            raise ValueError("extra must be finite, got NaN or infinity")
        seen = self.config.flow_scale * extra.to(self.extra_net.head.weight.dtype)
        return torch.cat([base, self.extra_net(seen).to(base.dtype)], dim=1)

    def base_features(self, images: Tensor, n_spixels: int | None = None) -> Tensor:
        """:meth:`features` without those of a composite's second network."""
        check_images(images)
        height, width = images.shape[-2:]
        n_spixels = self.config.n_spixels if n_spixels is None else n_spixels
        grid_for(n_spixels, height, width)  # refuses a count that the image cannot hold
        cells_a_side = math.isqrt(n_spixels)
        pos_factor = self.config.pos_scale * max(cells_a_side / height, cells_a_side / width)
        position = pos_factor * pixel_grid(height, width, images.device, images.dtype).flip(0)
        return self._features(images, position.expand(len(images), -1, -1, -1))

    def appearance(self, images: Tensor) -> Tensor:
        """What pixels look like, wherever they are: (B, C - 2, H, W), learned channels, then scaled Lab.

        These are :meth:`features` with every position set to zero, that of the top left pixel: the network is given the
        position, and what it has learned holds much of it. A picture shifted by whole steps of the network's pooling
        (4 pixels) has the same values, shifted, but near its border. To describe superpixels:
        ``net(images).pool(net.appearance(images))``.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
        """
        check_images(images)
        nowhere = images.new_zeros(len(images), 2, *images.shape[-2:])
        return self._features(images, nowhere)[:, :-2]

    def _features(self, images: Tensor, position: Tensor) -> Tensor:
        """Learned channels, scaled Lab and the scaled position (B, 2, H, W) itself."""
        if self.net is not None:  # without a network any precision will do
            images, position = images.to(self.net.head.weight.dtype), position.to(self.net.head.weight.dtype)
        with torch.autocast(images.device.type, enabled=False):  # half precision shows in Lab as noise
            lab = self.config.color_scale * rgb_to_lab(images)
        pixels = torch.cat([lab, position], dim=1)
        return pixels if self.net is None else torch.cat([self.net(pixels), pixels], dim=1)

    def cluster(self, features: Tensor, n_spixels: int | None = None, n_iters: int | None = None,
                compactness: float | None = None) -> SoftSLIC:
        """Soft superpixels of :meth:`features` or :meth:`base_features` (B, C, H, W), differentiable.

        Args:
            n_spixels: as the features were computed for; the grid holds at most as many.
            n_iters: soft SLIC iterations.
            compactness: factor of the positions in the distance. All three are the configuration's where not given.
        """
        n_spixels = self.config.n_spixels if n_spixels is None else n_spixels
        n_iters = self.config.n_iters if n_iters is None else n_iters
        compactness = self.config.compactness if compactness is None else compactness
        weights = None
        if compactness != 1:
            position = 3 if self.net is None else self.config.out_channels + 3
            weights = features.new_ones(features.shape[1])
            weights[position:position + 2] = compactness
        return soft_slic(features, grid_for(n_spixels, *features.shape[-2:]), n_iters, self.config.distance, weights)

    def forward(self, images: Tensor, n_spixels: int | None = None, n_iters: int | None = None,
                extra: Tensor | None = None) -> SoftSLIC:
        """Soft superpixels of a batch of images, differentiable: :meth:`features`, then :meth:`cluster`.

        Args:
            images: (B, 3, H, W) RGB in [0, 1].
            n_spixels, n_iters: see :meth:`cluster`.
            extra: of a composite, see :meth:`features`.
        """
        return self.cluster(self.features(images, n_spixels, extra), n_spixels, n_iters)

    @torch.no_grad()
    def segment(self, images: Tensor, n_spixels: int | None = None, connected: bool = True, exact: bool = False,
                extra: Tensor | None = None, n_iters: int | None = None, compactness: float | None = None) -> Tensor:
        """Superpixel labels (B, H, W) int64 of images (B, 3, H, W), RGB in [0, 1].

        Connected labels are 0 .. count - 1 in each image, each one 4-connected piece; otherwise they are the
        superpixels' places in the grid, and not every one need occur. The count achieved is ``labels.max() + 1`` of
        an image: a grid has at most the requested number of cells, and pieces come and go.

        Args:
            images: a batch. n_spixels: requested superpixels, by default the configuration's.
            connected: see :func:`diffslic.superpixels.connect`.
            exact: exactly as many as requested, which only connected labels can be.
            extra: of a composite, see :meth:`features`. n_iters, compactness: see :meth:`cluster`.
        """
        n_spixels = self.config.n_spixels if n_spixels is None else n_spixels
        soft = self.cluster(self.features(images, n_spixels, extra), n_spixels, n_iters, compactness)
        return labels_of(soft, self.config.min_size, connected, n_spixels if exact else None)


def check_images(images: Tensor) -> None:
    """Refuse what is not a batch (B, 3, H, W) of finite floating-point RGB in [0, 1], with a ValueError.

    Call it on what the user gave; the networks then compute in the precision of their weights.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"images must be RGB (B, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point in [0, 1], got {images.dtype}")
    low, high = torch.stack(images.detach().aminmax()).tolist()  # both at once: a GPU is waited for here
    # Interpolation and augmentation may leave the range by rounding, 0..255 leaves it by far.
    if not (low >= -0.01 and high <= 1.01):  # also false for NaN
        raise ValueError(f"images must lie in [0, 1], got values from {low:g} to {high:g}")


def labels_of(soft: SoftSLIC, min_size: float, connected: bool, count: int | None) -> Tensor:
    """Labels (B, H, W) of soft superpixels: in the grid's order, connected, or connected and ``count`` of them.

    Args:
        min_size: smallest connected superpixel, as a share of a grid cell.
    """
    if not connected:
        if count is not None:
            raise ValueError("an exact count needs connected labels")
        return soft.labels
    cell = soft.affinity.shape[-2] * soft.affinity.shape[-1] / soft.centroids.shape[1]
    return connect(soft.labels, int(min_size * cell), count)


RELEASED_NAMES = {"feature_extract.": "net.", "feature_extract_color.": "net.",
                  "feature_extract_optflow.": "extra_net.", "scale1.": "fine.", "scale2.": "middle.",
                  "scale3.": "coarse.", "output_conv.0.": "head."}


def _from_released(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The released tensors under our names, and their configuration."""
    renamed = dict(state)
    for theirs, ours in RELEASED_NAMES.items():
        renamed = {key.replace(theirs, ours, 1): value for key, value in renamed.items()}
    if "net.head.weight" not in renamed:
        raise ValueError("it must hold feature_extract.output_conv.0.weight, or that of feature_extract_color")
    out_channels, inputs = renamed["net.head.weight"].shape[:2]
    config = {"width": (inputs - 5) // 3, "out_channels": out_channels}
    if "extra_net.head.weight" in renamed:
        first = renamed["extra_net.fine.0.0.weight"]
        width, channels = first.shape[:2]
        config |= {"extra_channels": channels, "extra_width": width,
                   "extra_out_channels": len(renamed["extra_net.head.weight"])}
        # That study reads flow as (v, u): the weights are put in the order of ours.
        order = torch.arange(channels).unflatten(0, (-1, 2)).flip(1).flatten()
        head = renamed["extra_net.head.weight"]
        renamed["extra_net.fine.0.0.weight"] = first[:, order]
        renamed["extra_net.head.weight"] = torch.cat([head[:, order], head[:, channels:]], dim=1)
    return renamed, config
