"""Random changes of training samples that keep images, flow and masks in step."""

import kornia.enhance
import numpy as np
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from diffslic import geometry


def jitter_colors(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Add noise to each of (B, 3, H, W) images in [0, 1]; change all alike in gamma, contrast, brightness, saturation.

    The frames of a pair go in together: a change that differed between them would be an error of the camera, not
    of the light. The noise comes first, so that it is less in the dark.
    """
    noise = torch.from_numpy(rng.standard_normal(images.shape, dtype=np.float32)).to(images.device)
    images = (images + float(rng.uniform(0, 0.03)) * noise).clamp(0, 1)
    images = kornia.enhance.adjust_gamma(images, float(2 ** rng.uniform(-1, 1.2)))
    images = kornia.enhance.adjust_contrast(images, float(rng.uniform(0.4, 1.4)))
    images = kornia.enhance.adjust_brightness(images, float(rng.uniform(-0.12, 0.12)))
    grey = images.mean(dim=1, keepdim=True)
    return torch.lerp(grey, images, float(rng.uniform(0.3, 1.5))).clamp(0, 1)


def disguise(values: Tensor, rng: np.random.Generator) -> Tensor:
    """Give each channel of (C, ...) a sign and a strength of its own, up to half more or less, and all a new order.

    What something looks like is no evidence of whether it moves; where its looks change is. After this a network
    can learn the second from few videos, and not the first by heart.
    """
    gain = rng.choice([-1.0, 1.0], len(values)) * rng.uniform(0.5, 1.5, len(values))
    gain = torch.from_numpy(gain).to(values).reshape(-1, *[1] * (values.ndim - 1))
    return (values * gain)[torch.from_numpy(rng.permutation(len(values))).to(values.device)]


def shuffled(position: int, count: int, seed: int) -> tuple[int, np.random.Generator]:
    """Which of ``count`` samples stands at a position, all in a new order in every epoch, and its own random numbers.

    They depend on nothing else: recipes that ask alike train on the same samples.
    """
    epoch, place = divmod(position, count)
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return int(order[place]), np.random.default_rng([seed, epoch, place])


def blur(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the time, a Gaussian lens blur of up to 2 pixels, the same for all images (B, 3, H, W)."""
    if rng.random() < 0.5:
        return images
    sigma = float(rng.uniform(0.3, 2))
    return gaussian_blur2d(images, (9, 9), (sigma, sigma), border_type="replicate")


def crop_window(size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
    """A random window of ``crop`` = (rows, columns), at most the image's ``size``."""
    rows, columns = min(crop[0], size[0]), min(crop[1], size[1])
    top, left = int(rng.integers(0, size[0] - rows + 1)), int(rng.integers(0, size[1] - columns + 1))
    return slice(top, top + rows), slice(left, left + columns)


def flip_flow(flow: Tensor, horizontal: bool, vertical: bool) -> Tensor:
    """Mirror flow (..., 2, H, W): the field is mirrored, and the component along the mirrored axis changes its sign."""
    if horizontal:
        flow = geometry.flip_flow_horizontal(flow)
    return flow.flip(-2) * flow.new_tensor([1, -1])[:, None, None] if vertical else flow


def flip_image(image: Tensor, horizontal: bool, vertical: bool) -> Tensor:
    """Mirror (..., H, W): images, labels, masks."""
    if horizontal:
        image = geometry.flip_horizontal(image)
    return image.flip(-2) if vertical else image
