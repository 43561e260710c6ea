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
import torch.nn.functional as F
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
              only_inside: bool = True, hidden: Tensor | None = None, off_centre: bool = False) -> DepthEstimate:
    """Depth of a still world from flow and the camera's motion, exact for any rotation.

    Linear least squares, then Gauss and Newton's steps on the distance in pixels between the flow's end and pi(rho),
    over the pixels that have a depth at all. To first order the standard deviation of Z is

        sigma_Z = Z (noise / P) Z2 / (Z (R p)_z)

    with the parallax P and the depth Z2 in the second camera; here with the slope of pi at the solution, which is the
    same. Gradients are those of the last step.

    Args:
        flow: (B, 2, H, W) in pixels, first frame to second; not finite where unknown.
        intrinsics: (3, 3) or (B, 3, 3), of both frames.
        second_from_first: (4, 4) or (B, 4, 4), from the first camera's axes to the second's; metres.
        noise: standard deviation of each component of the flow, in pixels; (B, 1, H, W) where it differs, such as
            :func:`estimate_noise`.
        min_parallax: in pixels; below it there is no depth.
        nearest, farthest: in metres; what lies outside is no depth. A camera that all but stands still makes errors of
            the flow look like parallax of things before its lens.
        only_inside: no depth where the flow leaves the frame: there an estimated flow is a guess, a true one is not.
        hidden: (B, H, W) bool, pixels that the second frame does not show, such as those of
            :func:`diffslic.flow.occlusion`.
        off_centre: accept intrinsics whose principal point lies far from the image's middle, as those of a crop do.

    Returns:
        Depth, sigma, parallax, residual and validity, in the flow's precision. Valid is what has parallax, lies in
        front of both cameras and in the range, is matched, and where the steps have settled on a depth that is larger
        than its sigma.

    Raises:
        ValueError: wrong shapes, a camera that does not fit the image, a pose that is not rigid, noise, parallax or a
            range that is not positive.
    """
    views = _views(flow, intrinsics, second_from_first, off_centre)
    shape = flow[:, :1].shape
    matched = flow.isfinite().all(1)
    if only_inside:
        matched = matched & geometry.lands_inside(flow)
    if hidden is not None:
        if hidden.shape != matched.shape:
            raise ValueError(f"hidden must be {tuple(matched.shape)}, got {tuple(hidden.shape)}")
        matched = matched & ~hidden.to(flow.device)
    if not 0 < min_parallax < float("inf") or not 0 <= nearest < farthest:
        raise ValueError(f"min_parallax must be above 0 pixels, and nearest below farthest, got {min_parallax}, "
                         f"{nearest} and {farthest}")
    spread = _noise(noise, matched[:, None]).flatten(2)
    parallax, residual = _parallax(views), _residual(views)
    with torch.no_grad():
        maybe = matched.flatten(1) & (parallax >= min_parallax)[:, 0] & (views.far[:, 2] > 0)
        part = views.at(maybe)
        rho, settled = _refine(part, 1 / _linear(part))
        _, slope, z = part.images(rho)
        sigma = spread[:, 0][maybe] / slope.norm(dim=1, keepdim=True)       # of rho: its share is that of the depth
        good = settled & (rho > sigma) & (z > 0) & (1 / rho >= nearest) & (1 / rho <= farthest)
        valid = torch.zeros_like(maybe).masked_scatter(maybe, good)
        rho, sigma = rho[good], sigma[good]
    part = views.at(valid)
    depth = 1 / (rho + _step(part, rho[None, None])[0, 0])

    def whole(values: Tensor) -> Tensor:
        return torch.full_like(parallax[:, 0], torch.nan).masked_scatter(valid, values).reshape(shape).to(flow.dtype)

    return DepthEstimate(whole(depth), whole(sigma * depth.square()), parallax.reshape(shape).to(flow.dtype),
                         residual.reshape(shape).to(flow.dtype), valid.reshape(shape))


def estimate_noise(flow: Tensor, backward: Tensor, intrinsics: Tensor, second_from_first: Tensor,
                   least: float = 0.1, window: int = 9) -> Tensor:
    """How far each pixel's flow is off, judged by two things that should be zero.

    A pixel that goes there and back misses its place by the errors of both ways and both components, gap^2 = 4 sigma^2
    in the mean; and its match lies beside the epipolar line by the error of one component, averaged over a window
    since a single one may be small by chance. The variance is the mean of both, and of ``least``^2 at least.

    Args:
        flow, backward: (B, 2, H, W) in pixels, first frame to second and back; not finite where unknown.
        intrinsics, second_from_first: see :func:`from_flow`.
        least: in pixels. window: side in pixels, odd.

    Returns:
        (B, 1, H, W) in pixels, for :func:`from_flow`'s ``noise``; large too where a body moves by itself, NaN where
        the flow there or back is unknown.

    Raises:
        ValueError: a window that is not odd, and what :func:`from_flow` says of shapes, camera and pose.
    """
    if window < 1 or window % 2 == 0 or not least > 0 or backward.shape != flow.shape:
        raise ValueError(f"expected an odd window, least above 0 and two flows of one size, got {window}, {least}, "
                         f"{tuple(flow.shape)} and {tuple(backward.shape)}")
    views = _views(flow, intrinsics, second_from_first, off_centre=True)
    gap = (flow + geometry.warp(backward, flow.nan_to_num(), padding="border")).square().sum(1, keepdim=True)
    known = gap.isfinite()
    beside = _residual(views).square().reshape(gap.shape).to(flow.dtype)
    beside = beside.where(beside.isfinite(), gap / 4).where(known, 0)       # without a line the gap alone tells
    share, beside = (F.avg_pool2d(x, window, 1, window // 2) for x in (known.to(flow.dtype), beside))
    return (least ** 2 + gap / 8 + beside / (2 * share.clamp(min=1e-6))).sqrt().where(known, torch.nan)


def linear_depth(flow: Tensor, intrinsics: Tensor, second_from_first: Tensor) -> Tensor:
    """The depth (B, 1, H, W) in metres that solves the equations of the second image by plain least squares.

    With a = (R p)_xy - q (R p)_z and b = t_xy - q t_z: Z = - a.b / a.a. Where the parallax is noise it may be anything,
    negative too: :func:`from_flow` starts from it and says where it holds. Arguments and errors are its own.
    """
    return _linear(_views(flow, intrinsics, second_from_first, False)).reshape(flow[:, :1].shape).to(flow.dtype)


def fuse(estimates: Sequence[DepthEstimate]) -> DepthEstimate:
    """One estimate from several of the same frame, such as those towards several others.

    Means of the inverse depth, weighted by its inverse variance, of the pairs that are valid there. Pairs that
    contradict each other by more than their sigmas allow make the sigma of the mean larger by as much (Birge's
    ratio); beyond that their errors count as independent. Parallaxes add as independent measurements do.

    Raises:
        ValueError: no estimates, or of several sizes.
    """
    if not estimates or len({estimate.depth.shape for estimate in estimates}) > 1:
        raise ValueError(f"expected estimates of one frame, got sizes {[tuple(e.depth.shape) for e in estimates]}")
    depth, sigma, parallax, residual = (torch.stack([estimate[i] for estimate in estimates]) for i in range(4))
    valid = torch.stack([estimate.valid & (estimate.sigma > 0) for estimate in estimates])  # (pairs, B, 1, H, W)
    count, seen = valid.sum(0), valid.any(0)
    rho = (1 / depth.where(valid, 1)).where(valid, 0)
    weight = (depth.square() / sigma).where(valid, 0).square()              # sigma of rho is sigma_Z / Z^2
    total = weight.sum(0).where(seen, 1)
    mean = (weight * rho).sum(0) / total
    disagreement = (weight * (rho - mean).square()).sum(0) / (count - 1).clamp(min=1)
    fused = (1 / mean.where(seen, 1)).where(seen, torch.nan)
    # Where no pair has a depth the lines may yet tell that something moves.
    lined = residual.isfinite()
    share = torch.where(seen, weight, lined.to(weight.dtype)) * lined
    beside = (share * residual.where(lined, 0)).sum(0) / share.sum(0)
    return DepthEstimate(fused, fused.square() * (disagreement.clamp(min=1) / total).sqrt(),
                         parallax.square().where(valid, 0).sum(0).sqrt(), beside, seen)


def by_superpixels(estimate: DepthEstimate, superpixels: piecewise.Superpixels, model: str = "affine",
                   n_iters: int = 3, min_share: float = 0.25, correlated: float = 64.0) -> DepthEstimate:
    """Depth as one surface per superpixel: a plane, whose inverse depth is affine in the image, or one at right angles.

    Robust, weighted by the inverse variance of the inverse depth, differentiable in the estimate and in the
    superpixels. Pixels without a depth of their own get that of their superpixel. It pays where the flow is off by
    about a tenth of a pixel or more; a better flow knows more than planes do (``benchmarks/depth.py``, fourth table).

    Args:
        estimate: of the frame that the superpixels are of.
        model: "affine" (any plane) or "constant" (one depth).
        n_iters: see :func:`diffslic.piecewise.fit`.
        min_share: of a superpixel's pixels that must be valid; one with less has no depth.
        correlated: how many neighbouring pixels share one error of the flow: the 8 x 8 of RAFT's cells. 1 for noise
            that is independent from pixel to pixel.

    Returns:
        The fitted depth. Its variance is that of the fit, of 1 or 3 numbers to so many errors of the inputs' own size,
        larger by as much as the pixels lie further from the plane than their sigmas allow. A superpixel counts as
        having the mean number of pixels.

    Raises:
        ValueError: another model, no fit.
    """
    valid = estimate.valid
    rho = (1 / estimate.depth.where(valid, 1)).where(valid, 0)
    sigma = (estimate.sigma / estimate.depth.square()).where(valid, 1)
    typical = sigma[valid].median().detach() if valid.any() else sigma.new_ones(())
    weight = (typical / sigma).square().where(valid, 0)
    fitted = piecewise.fit(rho, superpixels, model, n_iters, weight, sigma)
    misses = ((rho - fitted) / sigma).square().where(valid, 0)
    pooled = superpixels.pool(torch.cat([valid.to(rho.dtype), weight, misses], dim=1))
    share, certainty, misses = superpixels.unpool(pooled).split(1, dim=1)
    area = valid[0].numel() / pooled.shape[1]
    errors = (share * area / correlated).clamp(min=1)                       # that are independent
    variance = typical.square() * share / certainty.clamp(min=piecewise.SMALLEST)   # of a pixel, in the mean
    variance = variance * (misses / share.clamp(min=1e-6)).clamp(min=1) * (3 if model == "affine" else 1) / errors
    good = (share >= min_share) & (fitted > 0) & (variance < fitted.square())
    depth = (1 / fitted.where(good, 1)).where(good, torch.nan)
    return estimate._replace(depth=depth, sigma=depth.square() * variance.clamp(min=0).sqrt(), valid=good)


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


def _noise(noise: float | Tensor, matched: Tensor) -> Tensor:
    """(B, 1, H, W) float64, once it is known to be positive where flow is matched (B, 1, H, W)."""
    spread = torch.as_tensor(noise, dtype=torch.float64).to(matched.device)
    if spread.ndim and spread.shape != matched.shape:
        raise ValueError(f"noise must be a number or {tuple(matched.shape)}, got {tuple(spread.shape)}")
    spread = spread.expand(matched.shape)
    if not (spread[matched] > 0).all():
        raise ValueError(f"noise must be above 0 pixels, got {float(spread[matched].min())}")
    return spread


def _views(flow: Tensor, intrinsics: Tensor, second_from_first: Tensor, off_centre: bool) -> _Views:
    if flow.ndim != 4 or flow.shape[1] != 2:
        raise ValueError(f"flow must be (B, 2, H, W), got {tuple(flow.shape)}")
    batch, _, height, width = flow.shape
    camera, pose = (x.double().to(flow.device) for x in (intrinsics, second_from_first))
    if camera.shape not in ((3, 3), (batch, 3, 3)) or pose.shape not in ((4, 4), (batch, 4, 4)):
        raise ValueError(f"expected intrinsics (3, 3) and a pose (4, 4), or {batch} of each, got "
                         f"{tuple(intrinsics.shape)} and {tuple(second_from_first.shape)}")
    camera, pose = camera.expand(batch, 3, 3), pose.expand(batch, 4, 4)
    _check_camera(camera, height, width, off_centre)
    _check_pose(pose)
    grid = geometry.pixel_grid(height, width, flow.device, torch.float64)
    pixels = torch.cat([grid, torch.ones_like(grid[:1])]).flatten(1)  # (3, N)
    ends = torch.cat([grid + flow.double(), torch.ones_like(grid[:1]).expand(batch, -1, -1, -1)], dim=1).flatten(2)
    seen = torch.linalg.solve(camera, ends)[:, :2]
    return _Views(pose[:, :3, :3] @ torch.linalg.solve(camera, pixels), pose[:, :3, 3:], seen,
                  torch.stack([camera[:, 0, 0], camera[:, 1, 1]], dim=1)[..., None])


def _check_camera(camera: Tensor, height: int, width: int, off_centre: bool) -> None:
    zero = torch.stack([camera[:, 0, 1], camera[:, 1, 0], camera[:, 2, 0], camera[:, 2, 1], camera[:, 2, 2] - 1])
    if not zero.abs().max() < 1e-6:
        raise ValueError("intrinsics are fx 0 cx, 0 fy cy, 0 0 1; got others, such as transposed, scaled or skew ones: "
                         f"{camera[0].tolist()}")
    for fx, fy, cx, cy in zip(camera[:, 0, 0], camera[:, 1, 1], camera[:, 0, 2], camera[:, 1, 2]):
        central = abs(cx - (width - 1) / 2) <= width / 4 and abs(cy - (height - 1) / 2) <= height / 4
        if not (0 < fx < float("inf") and 0 < fy < float("inf") and (central or off_centre)):
            raise ValueError(f"the intrinsics (fx {fx:.1f}, fy {fy:.1f}, cx {cx:.1f}, cy {cy:.1f}) do not fit an image "
                             f"of {height} rows and {width} columns: were they of another size? Those of a crop need "
                             "off_centre=True")


def _check_pose(pose: Tensor) -> None:
    rotation, last = pose[:, :3, :3], torch.tensor([0, 0, 0, 1]).to(pose)
    off = (rotation @ rotation.mT - torch.eye(3).to(pose)).abs().max() + (pose[:, 3] - last).abs().max()
    if not (off < 1e-3 and pose.isfinite().all() and (torch.linalg.det(rotation) > 0).all()):
        raise ValueError("the pose is not rigid: its rotation is none (a mirror, a scale), its last row is not "
                         "0 0 0 1, or it is not finite")


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
    positive = (rho > 0) & rho.isfinite()
    for _ in range(N_STEPS):
        step = _step(views, rho)
        rho = rho + step
        settled = positive & (step.abs() < SETTLED * rho.abs().clamp(min=1))
        if (settled | ~positive).all():
            break
    return rho, settled


def _step(views: _Views, rho: Tensor) -> Tensor:
    """Gauss and Newton's next step of inverse depths (1, 1, M)."""
    image, slope, _ = views.images(rho)
    miss = views.focal * (image - views.seen)
    return -(slope * miss).sum(1, keepdim=True) / slope.square().sum(1, keepdim=True)
