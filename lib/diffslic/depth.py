"""Depth from optical flow, where the camera's motion between the two frames is known.

A pixel x looks along the ray p = K^-1 (x, y, 1); at depth Z it sees the point Z p. The second camera has that point at
R Z p + t in its own axes. With the inverse depth rho = 1 / Z, the point appears there at

    pi(rho) = (R p + rho t)_xy / (R p + rho t)_z                          (in units of the focal length)

which runs along a straight line, the *epipolar line*, from pi(0), where the ray meets infinity. How far along it is
the *parallax*, and says how deep the point lies; how far beside it the flow ends says that the flow is wrong, or that
the point has moved by itself. Without parallax there is no depth: not when the camera only turns, and not at the
point that it flies towards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffslic import geometry, piecewise

N_STEPS = 20  # of Gauss and Newton at most; four do for most pixels
SETTLED = 1e-10  # the last step of inverse depth, relative to 1 or to itself where that is larger


class DepthEstimate(NamedTuple):
    """Depth of the first frame's pixels, and what to think of it."""

    depth: Tensor  # (B, 1, H, W) metres along z; NaN where there is none
    sigma: Tensor  # (B, 1, H, W) metres, standard deviation of the depth; NaN where there is none
    parallax: Tensor  # (B, 1, H, W) pixels from where the ray meets infinity
    residual: Tensor  # (B, 1, H, W) pixels from the epipolar line, signed; NaN where there is no line
    valid: Tensor  # (B, 1, H, W) bool


class _Views(NamedTuple):
    """Of N pixels of B pairs: their rays in the second camera's axes, and where the flow ends there."""

    far: Tensor  # (B, 3, N) R p
    step: Tensor  # (B, 3, 1) t
    seen: Tensor  # (B, 2, N) q, in units of the focal length
    focal: Tensor  # (B, 2, 1) pixels

    def at(self, where: Tensor) -> "_Views":
        """Of the M pixels where (B, N) is True, as a single pair: (1, ., M)."""
        def chosen(x: Tensor) -> Tensor:
            return x.expand(-1, -1, where.shape[-1]).transpose(0, 1)[:, where][None]

        return _Views(*map(chosen, self))

    def images(self, rho: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of inverse depths (B, 1, N): pi (B, 2, N), its slope in pixels per unit of rho, and the points' z / Z."""
        points = self.far + rho * self.step
        z = points[:, 2:]
        image = points[:, :2] / z
        return image, self.focal * (self.step[:, :2] - image * self.step[:, 2:]) / z, z


def from_flow(flow: Tensor, intrinsics: Tensor, second_from_first: Tensor, *, noise: float | Tensor = 0.5,
              min_parallax: float = 1.0, nearest: float = 0.01, farthest: float = float("inf"),
              only_inside: bool = True, hidden: Tensor | None = None) -> DepthEstimate:
    """Depth of a still world from flow and the camera's motion, exact for any rotation.

    Linear least squares, then Gauss and Newton's steps on the distance in pixels between the flow's end and pi(rho),
    over the pixels that have a depth at all. To first order the standard deviation of Z is

        sigma_Z = Z (noise / P) Z2 / (Z (R p)_z)

    with the parallax P and the depth Z2 in the second camera; here with the slope of pi at the solution, which is the
    same.

    Args:
        flow: (B, 2, H, W) in pixels, first frame to second; not finite where unknown.
        intrinsics: (3, 3) or (B, 3, 3), of both frames.
        second_from_first: (4, 4) or (B, 4, 4), from the first camera's axes to the second's; metres.
        noise: standard deviation of each component of the flow, in pixels; (B, 1, H, W) where it differs.
        min_parallax: in pixels; below it there is no depth.
        nearest, farthest: in metres; what lies outside is no depth. A camera that all but stands still makes errors of
            the flow look like parallax of things before its lens.
        only_inside: no depth where the flow leaves the frame: there an estimated flow is a guess, a true one is not.
        hidden: (B, H, W) bool, pixels that the second frame does not show, such as those of
            :func:`diffslic.flow.occlusion`.

    Returns:
        Depth, sigma, parallax, residual and validity, in the flow's precision. Valid is what has parallax, lies in
        front of both cameras and in the range, is matched, and where the steps have settled on a depth that is larger
        than its sigma.

    Raises:
        ValueError: wrong shapes, a camera that does not fit the image, a pose that is not rigid, noise or parallax
            that is not positive.
    """
    views = _views(flow, intrinsics, second_from_first)
    if not torch.as_tensor(noise > 0).all() or min_parallax <= 0:
        raise ValueError(f"noise and min_parallax must be above 0 pixels, got {noise} and {min_parallax}")
    parallax, residual = _parallax(views), _residual(views)
    start = 1 / _linear(views)
    maybe = (parallax >= min_parallax) & (views.far[:, 2:] > 0) & (start > 0) & start.isfinite()
    matched = flow.isfinite().all(1)
    if only_inside:
        matched = matched & geometry.lands_inside(flow)
    if hidden is not None:
        matched = matched & ~hidden
    maybe &= matched.flatten(1)[:, None]
    part = views.at(maybe[:, 0])
    rho, settled = _refine(part, start[maybe][None, None])
    _, slope, z = part.images(rho)
    if isinstance(noise, Tensor):
        noise = noise.double().flatten(2).expand_as(maybe)[maybe]
    depth = 1 / rho
    sigma = noise / slope.norm(dim=1, keepdim=True) * depth.square()
    good = settled & (rho > 0) & (z > 0) & (depth >= nearest) & (depth <= farthest) & (sigma < depth)

    def spread(values: Tensor) -> Tensor:
        whole = torch.full_like(parallax, torch.nan)
        return whole.masked_scatter(maybe, values.where(good, torch.nan))

    shape = flow[:, :1].shape
    depth, sigma, parallax, residual = (x.reshape(shape).to(flow.dtype)
                                        for x in (spread(depth), spread(sigma), parallax, residual))
    return DepthEstimate(depth, sigma, parallax, residual, depth.isfinite())


def estimate_noise(flow: Tensor, backward: Tensor, intrinsics: Tensor, second_from_first: Tensor,
                   least: float = 0.1, window: int = 9) -> Tensor:
    """How far each pixel's flow is off, judged by two things that should be zero.

    A pixel that goes there and back misses its place by the errors of both ways and both components, gap^2 = 4 sigma^2
    in the mean; and its match lies beside the epipolar line by the error of one component, averaged over a window
    since a single one may be small by chance. The variance is the mean of both, and of ``least``^2 at least.

    Args:
        flow, backward: (B, 2, H, W) in pixels, first frame to second and back.
        intrinsics, second_from_first: see :func:`from_flow`.
        least: in pixels. window: side in pixels, odd.

    Returns:
        (B, 1, H, W) in pixels, for :func:`from_flow`'s ``noise``; large too where a body moves by itself.
    """
    views = _views(flow, intrinsics, second_from_first)
    gap = (flow + geometry.warp(backward, flow, padding="border")).square().sum(1, keepdim=True)
    beside = _residual(views).square().reshape(gap.shape).to(flow.dtype)
    beside = torch.nn.functional.avg_pool2d(beside.where(beside.isfinite(), gap / 4), window, 1, window // 2,
                                            count_include_pad=False)
    return (least ** 2 + gap / 8 + beside / 2).sqrt()


def linear_depth(flow: Tensor, intrinsics: Tensor, second_from_first: Tensor) -> Tensor:
    """The depth (B, 1, H, W) in metres that solves the equations of the second image by plain least squares.

    With a = (R p)_xy - q (R p)_z and b = t_xy - q t_z: Z = - a.b / a.a. Where the parallax is noise it may be anything,
    negative too: :func:`from_flow` starts from it and says where it holds. Arguments and errors are its own.
    """
    return _linear(_views(flow, intrinsics, second_from_first)).reshape(flow[:, :1].shape).to(flow.dtype)


def fuse(estimates: Sequence[DepthEstimate]) -> DepthEstimate:
    """One estimate from several of the same frame, such as those towards several others.

    Means of the inverse depth, weighted by its inverse variance, of the pairs that are valid there; parallaxes add as
    independent measurements do.

    Raises:
        ValueError: no estimates, or of several sizes.
    """
    if not estimates or len({estimate.depth.shape for estimate in estimates}) > 1:
        raise ValueError(f"expected estimates of one frame, got sizes {[tuple(e.depth.shape) for e in estimates]}")
    valid = torch.stack([estimate.valid for estimate in estimates])  # (pairs, B, 1, H, W)
    depth, sigma, parallax, residual = (torch.stack([estimate[i] for estimate in estimates]) for i in range(4))
    rho = (1 / depth).where(valid, 0)
    weight = (depth.square() / sigma).square().where(valid, 0)  # sigma of rho is sigma_Z / Z^2
    total = weight.sum(0)
    seen = valid.any(0)
    depth = (total / (weight * rho).sum(0)).where(seen, torch.nan)
    share = weight / total.clamp(min=torch.finfo(total.dtype).tiny)
    return DepthEstimate(depth, (depth.square() * total.rsqrt()).where(seen, torch.nan),
                         parallax.square().where(valid, 0).sum(0).sqrt(),
                         (share * residual.nan_to_num()).sum(0).where(seen, torch.nan), seen)


def by_superpixels(estimate: DepthEstimate, superpixels: piecewise.Superpixels, model: str = "affine",
                   n_iters: int = 3, min_share: float = 0.25) -> DepthEstimate:
    """Depth as one surface per superpixel: a plane, whose inverse depth is affine in the image, or one at right angles.

    Robust, weighted by the inverse variance of the inverse depth, differentiable in the estimate and in the
    superpixels. Pixels without a depth of their own get that of their superpixel.

    Args:
        estimate: of the frame that the superpixels are of.
        model: "affine" (any plane) or "constant" (one depth).
        n_iters: see :func:`diffslic.piecewise.fit`.
        min_share: of a superpixel's pixels that must be valid; one with less has no depth.

    Returns:
        The fitted depth, with the spread of the superpixel's inverse depths around its plane as its sigma.
    """
    rho = (1 / estimate.depth).where(estimate.valid, 0)
    sigma = (estimate.sigma / estimate.depth.square()).where(estimate.valid, 1)
    typical = sigma[estimate.valid].median() if estimate.valid.any() else torch.ones_like(sigma.flatten()[0])
    weight = (typical / sigma).square().where(estimate.valid, 0)
    fitted = piecewise.fit(rho, superpixels, model, n_iters, weight, sigma)
    miss = (rho - fitted).square()
    pooled = superpixels.pool(torch.cat([estimate.valid.to(rho.dtype), weight, weight * miss], dim=1))
    share, spread = superpixels.unpool(torch.cat(
        [pooled[..., :1], pooled[..., 2:] / pooled[..., 1:2].clamp(min=piecewise.SMALLEST)], dim=-1)).split(1, dim=1)
    valid = (share >= min_share) & (fitted > 0)
    depth = (1 / fitted).where(valid, torch.nan)
    return estimate._replace(depth=depth, sigma=depth.square() * spread.clamp(min=0).sqrt(), valid=valid)


def pooled_residual(estimate: DepthEstimate, superpixels: piecewise.Superpixels) -> Tensor:
    """How far each superpixel's matches lie from their epipolar lines: the cue for bodies that move by themselves.

    Returns:
        (B, 1, H, W) in pixels from 0: the length of the mean signed residual; noise cancels in it. Motion along the
        epipolar line cannot be told from depth, and does not show.
    """
    known = estimate.residual.isfinite()
    pooled = superpixels.pool(torch.cat([known.to(estimate.residual.dtype), estimate.residual.where(known, 0)], dim=1))
    return superpixels.unpool(pooled[..., 1:] / pooled[..., :1].clamp(min=piecewise.SMALLEST)).abs()


def hidden_by_depth(first: Tensor, second: Tensor, intrinsics: Tensor, second_from_first: Tensor,
                    tolerance: float = 0.02) -> Tensor:
    """Pixels of the first frame that the second does not show, from the depth of both.

    Args:
        first, second: depth (B, 1, H, W) in metres. intrinsics, second_from_first: see :func:`from_flow`.
        tolerance: how much nearer, as a share, what the second frame has there must be; the farthest of the four
            pixels around counts, so that nothing hides at a slope.

    Returns:
        (B, H, W) bool; True also where a point leaves the frame or lies behind the second camera.
    """
    points = geometry.transform(second_from_first.to(first), geometry.backproject(first, intrinsics.to(first)))
    place, z = geometry.project(points, intrinsics.to(first)), points[:, 2]
    flow = place - geometry.pixel_grid(*first.shape[-2:], first.device, first.dtype)
    ahead = z > 0
    corner = place.where(ahead[:, None], 0).floor()
    farthest = torch.stack([geometry.sample(second, corner + torch.tensor(step).to(corner)[:, None, None], "nearest",
                                            "border")[:, 0] for step in ((0, 0), (1, 0), (0, 1), (1, 1))]).amax(0)
    return ~ahead | ~geometry.lands_inside(flow) | (z > farthest * (1 + tolerance))


def epipolar_places(pixel: tuple[int, int], depths: Tensor, intrinsics: Tensor, second_from_first: Tensor) -> Tensor:
    """Where the second camera would see one pixel of the first frame, if it lay at these depths.

    Args:
        pixel: (row, column). depths: (M,) in metres; infinity is the end of the line.
        intrinsics: (3, 3). second_from_first: (4, 4).

    Returns:
        (M, 2) x and y in pixels, in double precision; NaN where the point would lie behind the second camera.
    """
    camera, pose = intrinsics.double().cpu(), second_from_first.double().cpu()
    ray = torch.linalg.solve(camera, torch.tensor([pixel[1], pixel[0], 1], dtype=torch.float64))
    points = pose[:3, :3] @ ray + pose[:3, 3] / depths.double().cpu()[:, None]  # by 1 / Z: infinity is no exception
    image = points @ camera.T
    return torch.where(points[:, 2:] > 0, image[:, :2] / image[:, 2:], torch.nan)


# ---------------------------------------------------------------- the geometry of two views


def _views(flow: Tensor, intrinsics: Tensor, second_from_first: Tensor) -> _Views:
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (B, 2, H, W), got {tuple(flow.shape)}")
    batch, _, height, width = flow.shape
    camera, pose = (x.double().to(flow.device) for x in (intrinsics, second_from_first))
    if camera.shape not in ((3, 3), (batch, 3, 3)) or pose.shape not in ((4, 4), (batch, 4, 4)):
        raise ValueError(f"expected intrinsics (3, 3) and a pose (4, 4), or {batch} of each, got "
                         f"{tuple(intrinsics.shape)} and {tuple(second_from_first.shape)}")
    camera, pose = camera.expand(batch, 3, 3), pose.expand(batch, 4, 4)
    _check_camera(camera, height, width)
    rotation, step = pose[:, :3, :3], pose[:, :3, 3:]
    if not (rotation @ rotation.mT - torch.eye(3).to(pose)).abs().max() < 1e-3 or not pose.isfinite().all():
        raise ValueError("the pose is not rigid: its rotation is no rotation, or it is not finite")
    grid = geometry.pixel_grid(height, width, flow.device, torch.float64)
    pixels = torch.cat([grid, torch.ones_like(grid[:1])]).flatten(1)  # (3, N)
    ends = torch.cat([grid + flow.double(), torch.ones_like(grid[:1]).expand(batch, -1, -1, -1)], dim=1).flatten(2)
    seen = torch.linalg.solve(camera, ends)[:, :2]
    return _Views(rotation @ torch.linalg.solve(camera, pixels), step, seen,
                  torch.stack([camera[:, 0, 0], camera[:, 1, 1]], dim=1)[..., None])


def _check_camera(camera: Tensor, height: int, width: int) -> None:
    for fx, fy, cx, cy in zip(camera[:, 0, 0], camera[:, 1, 1], camera[:, 0, 2], camera[:, 1, 2]):
        if not (0 < fx < float("inf") and 0 < fy < float("inf") and 0 <= cx <= width and 0 <= cy <= height):
            raise ValueError(f"the intrinsics (fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f}) do not fit an image "
                             f"of {height} rows and {width} columns")


def _linear(views: _Views) -> Tensor:
    """(B, 1, N) metres."""
    a = views.far[:, :2] - views.seen * views.far[:, 2:]
    b = views.step[:, :2] - views.seen * views.step[:, 2:]
    return -(a * b).sum(1, keepdim=True) / a.square().sum(1, keepdim=True)


def _parallax(views: _Views) -> Tensor:
    """(B, 1, N) pixels."""
    at_infinity = views.far[:, :2] / views.far[:, 2:]
    return (views.focal * (views.seen - at_infinity)).norm(dim=1, keepdim=True)


def _residual(views: _Views) -> Tensor:
    """(B, 1, N) pixels: e = l.x' / |l_xy| with the epipolar line l = F x of the second image."""
    line = torch.linalg.cross(views.step.expand_as(views.far), views.far, dim=1)  # in units of the focal length
    distance = (line[:, :2] * views.seen).sum(1, keepdim=True) + line[:, 2:]
    return distance / (line[:, :2] / views.focal).norm(dim=1, keepdim=True)


def _refine(views: _Views, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse depths (1, 1, M) that bring pi(rho) nearest to the flow's end, in pixels, and whether they settled."""
    settled = torch.zeros_like(rho, dtype=torch.bool)
    for _ in range(N_STEPS):
        image, slope, _ = views.images(rho)
        miss = views.focal * (image - views.seen)
        step = -(slope * miss).sum(1, keepdim=True) / slope.square().sum(1, keepdim=True)
        rho = rho + step
        settled = step.abs() < SETTLED * rho.abs().clamp(min=1)
        if settled.all():
            break
    return rho, settled
