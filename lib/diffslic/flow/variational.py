"""A polish of flow from brightness constancy and smoothness: all pixels of all pairs at once, on their device."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffslic import geometry
from diffslic.flow.classical import LUMA

# Chosen on scenes that no table of this project is measured on.
SCALES = (4, 2.5, 1.6, 1)  # parts of the full size, in turn: the first mends errors of several pixels
WARPS = 3         # times that the second image is read anew at each of them
SWEEPS = 12       # of the solver for each reading
BLUR = (0.18, 0.64, 0.18)  # of three pixels, a deviation of 0.6: images are smoothed before they are derived
SLOPE = (1 / 12, -2 / 3, 0, 2 / 3, -1 / 12)  # of five, their derivative: exact for polynomials of the fourth degree
COARSE = 0.001    # brightness: images of 8 bits are rounded by as much, so at full size they have no less noise
GRADIENTS = 8.0   # weight of gradients that stay as they are, beside 1 of brightness that does
SMOOTHNESS = 6.0  # weight of the flow's own smoothness
EDGES = 10.0      # how much less smooth it must be across a step of a colour by 1: a factor exp(-10)
HIDDEN = 0.05     # brightness: where images differ by more than this, a pixel is likely to be hidden in the second;
                  # times the scale: as long as the flow is coarse, so are the differences that it leaves
SHARPEST = 0.01   # pixels, where the robust penalty of the data turns from square to absolute value
JUMP = 0.01       # pixels from neighbour to neighbour, where that of the smoothness does
RADIUS = 0.99     # of the spectrum of Jacobi's iteration, which the sweeps accelerate
SOLVED = (f"variational, scales {SCALES}, {WARPS} readings, {SWEEPS} sweeps, weights "
          f"{(BLUR, COARSE, GRADIENTS, SMOOTHNESS, EDGES, HIDDEN, SHARPEST, JUMP, RADIUS)}")  # for caches


class _Data(NamedTuple):
    """What the images say about the flow w: A (w - flow) + b = 0, a system of two equations at each pixel."""

    xx: Tensor  # (B, 1, H, W) each, the symmetric A
    xy: Tensor
    yy: Tensor
    x: Tensor   # b
    y: Tensor


class _Bonds(NamedTuple):
    """How strongly neighbouring pixels hold each other's flow."""

    right: Tensor  # (B, 1, H, W - 1)
    down: Tensor   # (B, 1, H - 1, W)


@torch.no_grad()
def variational_refinement(image1: Tensor, image2: Tensor, flow: Tensor) -> Tensor:
    """Solve for the flow that explains both images, from a rough flow on; see :func:`diffslic.flow.polish`.

    The flow w makes this small, x a pixel, y a neighbour of it, psi(s) = sqrt(s + e^2) with small e:

        sum_x trust(x) (psi(|I2(x + w) - I1(x)|^2 / n) + GRADIENTS psi(sum_i |d_i I2(x + w) - d_i I1(x)|^2 / n_i))
        + SMOOTHNESS sum_xy exp(-EDGES |C1(x) - C1(y)|) psi(|w(x) - w(y)|^2)

    Brightness I and its gradient stay what they are along the flow, and the flow is smooth but for jumps (Brox et al.,
    ECCV 2004), which are cheap along edges of the image: where the colour C changes, by the channel that does most.
    n, the squared slope of each constraint, makes distances in pixels of the residuals (Zimmer, Bruhn and Weickert,
    IJCV 2011); the images' noise, which is estimated, is added to it, so that a slope counts by how far it stands out
    of that. What is hidden in the second image, or has left it, is not trusted: there, as in plain areas, smoothness
    decides, whatever the rough flow was.

    From a quarter of the size to the full one the second image is read along the flow and the linearised problem
    solved, always for a change of the rough flow, whose outlines a smaller size does not lose. All pairs are solved at
    once, on their device, and no step waits for it. A value that is not finite makes most of its pair NaN, not the
    others of the batch.
    """
    height, width = flow.shape[-2:]
    with torch.autocast(flow.device.type, enabled=False):  # fractions of a pixel are lost on bfloat16
        image1, image2 = (image.to(flow.device, torch.float32) for image in (image1, image2))
        noise = torch.maximum(_noise(_grey(image1)), _noise(_grey(image2))).clamp(min=COARSE)
        colours = _along(_along(image1, -1, BLUR), -2, BLUR)
        second_full = _along(_along(_grey(image2), -1, BLUR), -2, BLUR)
        found = torch.zeros_like(flow, dtype=torch.float32)  # what is added to the rough flow
        for scale in SCALES:
            size = round(height / scale), round(width / scale)
            coloured, second = geometry.resize(colours, size), geometry.resize(second_full, size)
            first, hold = _grey(coloured), _hold(coloured)
            rough = geometry.resize_flow(flow.float(), size)
            polished = rough + geometry.resize_flow(found, size)
            for _ in range(WARPS):
                data = _data(first, second, polished, noise / scale, HIDDEN * scale)
                polished = _solved(data, _bonds(hold, polished), polished)
            found = polished - rough
    return polished.to(flow.dtype)


def _grey(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, 1, H, W)."""
    red, green, blue = (weight * channel for weight, channel in zip(LUMA, images.split(1, dim=1)))
    return red + green + blue


def _noise(images: Tensor) -> Tensor:
    """Deviation of the noise of images (B, 1, H, W), as (B, 1, 1, 1): of what neither lines nor planes explain.

    Immerkaer, Fast noise variance estimation, CVIU 1996, whose mask has the norm 6; the median, not the mean, since
    most pixels have no texture, and where most do, what is taken for noise is its finest part.
    """
    rest = _along(_along(images, -1, (1, -2, 1)), -2, (1, -2, 1))
    return rest.abs().flatten(1).median(dim=1).values[:, None, None, None] / (6 * 0.6745)


def _data(first: Tensor, second: Tensor, flow: Tensor, noise: Tensor, hidden: float) -> _Data:
    """Constancy of brightness and of its gradient, linearised at the flow and weighted by the robust penalty.

    Where the images differ by far more than ``hidden``, neither is believed.
    """
    read = geometry.warp(second, flow, mode="bicubic", padding="border")
    mean, change = (first + read) / 2, read - first
    difference = F.avg_pool2d(change, 3, stride=1, padding=1, count_include_pad=False)
    trust = geometry.lands_inside(flow)[:, None] * torch.exp(-(difference / hidden).square())
    by_x, by_y = _along(mean, -1, SLOPE), _along(mean, -2, SLOPE)
    # Each is (its slope in x, its slope in y, by how much it is not kept).
    brightness = [(by_x, by_y, change)]
    gradient = [(_along(by_x, -1, SLOPE), _along(by_x, -2, SLOPE), _along(change, -1, SLOPE)),
                (_along(by_y, -1, SLOPE), _along(by_y, -2, SLOPE), _along(change, -2, SLOPE))]
    xx, xy, yy, x, y = (torch.zeros_like(first) for _ in _Data._fields)
    for constraints, weight in ((brightness, 1.0), (gradient, GRADIENTS)):
        norms = [1 / (slope_x.square() + slope_y.square() + noise.square()) for slope_x, slope_y, _ in constraints]
        distance = sum(norm * off.square() for norm, (*_, off) in zip(norms, constraints))  # squared pixels
        robust = weight * trust * torch.rsqrt(distance + SHARPEST ** 2)                       # 2 psi'
        for norm, (slope_x, slope_y, off) in zip(norms, constraints):
            in_x, in_y = robust * norm * slope_x, robust * norm * slope_y
            xx += in_x * slope_x
            xy += in_x * slope_y
            yy += in_y * slope_y
            x += in_x * off
            y += in_y * off
    return _Data(xx, xy, yy, x, y)


def _hold(colours: Tensor) -> _Bonds:
    """How strongly the first image lets neighbours hold each other: less across its edges, yet never nothing."""
    steps = (EDGES * colours.diff(dim=axis).abs().amax(1, keepdim=True) for axis in (-1, -2))
    return _Bonds(*(SMOOTHNESS * torch.exp(-step.clamp(max=20)) for step in steps))


def _bonds(hold: _Bonds, flow: Tensor) -> _Bonds:
    """Weights of the robust smoothness: ``hold``, and small across jumps of the flow."""
    return _Bonds(*(most * torch.rsqrt(flow.diff(dim=axis).square().sum(1, keepdim=True) + JUMP ** 2)
                    for most, axis in zip(hold, (-1, -2))))


def _solved(data: _Data, bonds: _Bonds, flow: Tensor) -> Tensor:
    """The flow w with A (w - flow) + b = sum over neighbours of bond (their w - w), by Jacobi's sweeps.

    Each sweep is combined with the one before (Chebyshev's semi-iteration, Golub and Varga 1961), which converges like
    over-relaxation and, unlike that, changes all pixels at once.
    """
    u, v = flow[:, :1], flow[:, 1:]
    fixed = torch.cat([data.xx * u + data.xy * v - data.x, data.xy * u + data.yy * v - data.y], dim=1)
    held = _gathered(bonds, torch.zeros_like(u), torch.ones_like(u))
    xx, yy = data.xx + held, data.yy + held
    determinant = xx * yy - data.xy.square()
    own, other = torch.cat([yy, xx], dim=1) / determinant, data.xy / determinant  # the inverse of each 2 x 2 system
    before, now, factor = flow, flow, 1.0
    for sweep in range(SWEEPS):
        wanted = _gathered(bonds, fixed, now)
        solved = torch.addcmul(own * wanted, other, wanted.flip(1), value=-1)
        before, now = now, torch.lerp(before, solved, factor)
        factor = 1 / (1 - RADIUS ** 2 * (factor / 4 if sweep else 0.5))
    return now


def _gathered(bonds: _Bonds, start: Tensor, values: Tensor) -> Tensor:
    """``start`` and, at each pixel, the sum of its four neighbours' ``values``, each times the bond to it."""
    total = start.clone()
    total[..., :-1].addcmul_(bonds.right, values[..., 1:])
    total[..., 1:].addcmul_(bonds.right, values[..., :-1])
    total[..., :-1, :].addcmul_(bonds.down, values[..., 1:, :])
    total[..., 1:, :].addcmul_(bonds.down, values[..., :-1, :])
    return total


def _along(image: Tensor, axis: int, weights: Sequence[float]) -> Tensor:
    """Weighted sum of each pixel and those before and after it on an axis; the border is repeated."""
    reach, length = len(weights) // 2, image.shape[axis]
    padded = F.pad(image, (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach), mode="replicate")
    # Not a convolution: its kernel would be copied to the device, which the host would wait for.
    total = weights[0] * padded.narrow(axis, 0, length)
    for start, weight in enumerate(weights[1:], 1):
        if weight:
            total.add_(padded.narrow(axis, start, length), alpha=weight)
    return total
