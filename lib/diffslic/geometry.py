"""Pixel grids, sampling, warping, padding, cameras and poses: the code behind every convention.

The conventions themselves stand in the docstring of ``diffslic``. Nothing here imports from the package.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# ---------------------------------------------------------------- pixel grids, sampling, warping


def pixel_grid(height: int, width: int, device: torch.device | str | None = None,
               dtype: torch.dtype = torch.float32) -> Tensor:
    """Coordinates of the pixel centres.

    Returns:
        (2, H, W): channel 0 = x (column), channel 1 = y (row), in pixels from 0.
    """
    y, x = torch.meshgrid(torch.arange(height, device=device, dtype=dtype),
                          torch.arange(width, device=device, dtype=dtype), indexing="ij")
    return torch.stack([x, y])


def sample(image: Tensor, xy: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Read an image at real-valued pixel positions.

    Args:
        image: (B, C, H, W) values.
        xy: (B, 2, h, w) positions in pixels, x first.
        mode: ``"bilinear"``, ``"bicubic"`` or ``"nearest"``.
        padding: ``"zeros"`` (a neighbour outside the image counts as zero) or ``"border"``
            (positions are clamped to the image).

    Returns:
        (B, C, h, w) sampled values.
    """
    _, _, height, width = image.shape
    if xy.ndim != 4 or xy.shape[1] != 2:
        raise ValueError(f"xy must be (B, 2, h, w), got {tuple(xy.shape)}")
    # The half-pixel form of the normalised grid; unlike the corner-aligned one it exists for a single row or column.
    # In double precision: normalised and back, a float32 position loses a few millionths of the image's width.
    x, y = xy.double().unbind(1)
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(image.double(), grid, mode=mode, padding_mode=padding, align_corners=False).to(image.dtype)


def warp(image: Tensor, flow: Tensor, mode: str = "bilinear", padding: str = "zeros") -> Tensor:
    """Backward warp: the value at (x, y) is the image read at (x + u, y + v).

    With the flow from frame t to t + 1 this carries frame t + 1 onto the pixels of frame t.

    Args:
        image: (B, C, H, W) values of the frame that the flow points to.
        flow: (B, 2, H, W) in pixels.
        mode, padding: see :func:`sample`.

    Returns:
        (B, C, H, W) warped values.
    """
    height, width = image.shape[-2:]
    if flow.shape[-2:] != image.shape[-2:]:
        raise ValueError(f"flow is {tuple(flow.shape[-2:])} but the image is {(height, width)} (rows, columns)")
    return sample(image, pixel_grid(height, width, flow.device, flow.dtype) + flow, mode, padding)


def lands_inside(flow: Tensor) -> Tensor:
    """Whether each pixel moves to a place inside the frame.

    Args:
        flow: (B, 2, H, W) in pixels.

    Returns:
        (B, H, W) bool: 0 <= x + u <= W - 1 and 0 <= y + v <= H - 1.
    """
    height, width = flow.shape[-2:]
    x, y = (pixel_grid(height, width, flow.device, flow.dtype) + flow).unbind(1)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


# ---------------------------------------------------------------- resizing, flipping, padding


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize with anti-aliasing of (B, C, H, W) to ``size`` = (rows, columns)."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Nearest resize of labels (B, H, W) to ``size`` = (rows, columns)."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    return F.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")[:, 0].to(labels.dtype)


def resize_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize flow (B, 2, H, W) to ``size`` = (rows, columns); the vectors scale with the image."""
    height, width = flow.shape[-2:]
    u, v = resize(flow, size).unbind(1)
    return torch.stack([u * (size[1] / width), v * (size[0] / height)], dim=1)  # no copy of numbers to the device


def resize_known_flow(flow: Tensor, known: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """As :func:`resize_flow`, of flow that is known in part: means of the known vectors alone.

    Args:
        flow: (B, 2, H, W) in pixels, anything where it is not known. known: (B, H, W) bool.

    Returns:
        The flow (B, 2, h, w), and where more than half of what a pixel is made of was known, (B, h, w) bool.
    """
    share = resize(known[:, None].to(flow.dtype), size)
    flow = resize_flow(flow.where(known[:, None], 0), size) / share.clamp(min=1e-6)
    return flow, share[:, 0] > 0.5


def same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether (rows, columns) are one another's resized, but for a few hundredths: 128 x 224 is 480 x 854."""
    rows, columns = size[0] / other[0], size[1] / other[1]
    return abs(rows / columns - 1) < 0.03


def resize_intrinsics(intrinsics: Tensor, old_size: tuple[int, int], new_size: tuple[int, int]) -> Tensor:
    """Intrinsics (..., 3, 3) of an image resized from ``old_size`` to ``new_size``, both (rows, columns).

    Pixel centres are integers, so the principal point moves by x' = (x + 1/2) s - 1/2.
    """
    scale_y, scale_x = new_size[0] / old_size[0], new_size[1] / old_size[1]
    change = torch.tensor([[scale_x, 0, scale_x / 2 - 0.5], [0, scale_y, scale_y / 2 - 0.5], [0, 0, 1]],
                          device=intrinsics.device, dtype=intrinsics.dtype)
    return change @ intrinsics


def crop_intrinsics(intrinsics: Tensor, top: int, left: int) -> Tensor:
    """Intrinsics (..., 3, 3) of a window of an image whose first pixel was at row ``top`` and column ``left``."""
    change = torch.tensor([[1, 0, -left], [0, 1, -top], [0, 0, 1]], device=intrinsics.device, dtype=intrinsics.dtype)
    return change @ intrinsics


def flip_horizontal(image: Tensor) -> Tensor:
    """Mirror left and right: images (..., H, W), labels, masks. Flow needs :func:`flip_flow_horizontal`."""
    return image.flip(-1)


def flip_flow_horizontal(flow: Tensor) -> Tensor:
    """Mirror flow (..., 2, H, W) left and right: the field is mirrored and u changes its sign."""
    return flow.flip(-1) * torch.tensor([-1, 1], device=flow.device, dtype=flow.dtype)[:, None, None]


def pad_to_multiple(image: Tensor, multiple: int, at_least: int = 1) -> tuple[Tensor, tuple[int, int]]:
    """Pad (B, C, H, W) at the right and the bottom, edges repeated, until both sides divide by ``multiple``.

    Args:
        at_least: smallest side of the result, in pixels; a multiple of ``multiple``, or 1.

    Returns:
        The padded image and the old (rows, columns): ``padded[..., :rows, :columns]`` is the image again.
    """
    height, width = image.shape[-2:]
    rows, columns = (max(side + -side % multiple, at_least) for side in (height, width))
    padding = (0, columns - width, 0, rows - height)
    return (F.pad(image, padding, mode="replicate") if any(padding) else image), (height, width)


# ---------------------------------------------------------------- cameras and poses


def intrinsics_from_fov(fov_degrees: float, height: int, width: int) -> Tensor:
    """Pinhole intrinsics (3, 3) float32 from the field of view of the longer side, in degrees.

    f = max(W, H) / (2 tan(FOV / 2)); the principal point is the image centre ((W - 1) / 2, (H - 1) / 2).
    """
    if not 0 < fov_degrees < 180:
        raise ValueError(f"the field of view must lie in (0, 180) degrees, got {fov_degrees}")
    focal = max(height, width) / (2 * math.tan(math.radians(fov_degrees) / 2))
    return torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def backproject(depth: Tensor, intrinsics: Tensor) -> Tensor:
    """Points in camera axes, in metres: (B, 3, H, W) from depth (B, 1, H, W) and intrinsics (3, 3) or (B, 3, 3)."""
    height, width = depth.shape[-2:]
    grid = pixel_grid(height, width, depth.device, depth.dtype)
    rays = torch.linalg.solve(intrinsics, torch.cat([grid, torch.ones_like(grid[:1])]).reshape(3, -1))
    return rays.reshape(-1, 3, height, width) * depth


def project(points: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (B, 2, H, W) of points (B, 3, H, W) in camera axes. Points with z <= 0 give no meaningful pixel."""
    x, y, w = (intrinsics @ points.flatten(2)).reshape(points.shape).unbind(1)
    return torch.stack([x / w, y / w], dim=1)


def transform(pose: Tensor, points: Tensor) -> Tensor:
    """Apply a pose (4, 4) or (B, 4, 4) to points (B, 3, H, W)."""
    moved = pose[..., :3, :3] @ points.flatten(2) + pose[..., :3, 3:]
    return moved.reshape(points.shape)


def invert_pose(pose: Tensor) -> Tensor:
    """Inverse of rigid poses (..., 4, 4): ``world_from_camera`` becomes ``camera_from_world``."""
    inverse = torch.zeros_like(pose)
    rotation = pose[..., :3, :3].transpose(-1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ pose[..., :3, 3:]
    inverse[..., 3, 3] = 1
    return inverse


def second_from_first(first_camera_to_world: Tensor, second_camera_to_world: Tensor) -> Tensor:
    """The pose (..., 4, 4) that carries points from the first camera's axes into the second's."""
    return invert_pose(second_camera_to_world) @ first_camera_to_world


def flow_from_depth(depth: Tensor, intrinsics: Tensor, second_from_first: Tensor) -> Tensor:
    """Flow (B, 2, H, W) in pixels of a static world, from depth (B, 1, H, W), intrinsics and the camera's motion.

    NaN where the depth is, and where a point comes to lie behind the second camera.
    """
    height, width = depth.shape[-2:]
    points = transform(second_from_first, backproject(depth, intrinsics))
    flow = project(points, intrinsics) - pixel_grid(height, width, depth.device, depth.dtype)
    return flow.where(points[:, 2:] > 0, torch.nan)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) from rotation vectors (..., 3) in radians (Rodrigues' formula)."""
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*axis_angle.shape[:-1], 3, 3)
    return torch.linalg.matrix_exp(cross)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) from quaternions (..., 4) in the order x y z w; they need not be unit length."""
    x, y, z, w = F.normalize(quaternion, dim=-1).unbind(-1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
            2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
            2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, dim=-1).reshape(*quaternion.shape[:-1], 3, 3)


def pose_from_quaternion(position: Tensor, quaternion: Tensor) -> Tensor:
    """A pose (4, 4) float64 from a position (3,) and a quaternion (4,) in the order x y z w, as recordings hold them.

    Raises:
        ValueError: numbers that are not finite, or a quaternion whose length is not 1 within a hundredth.
    """
    position, quaternion = position.double(), quaternion.double()
    length = float(quaternion.norm())
    if not abs(length - 1) <= 0.01:
        raise ValueError(f"the quaternion has length {length:.3f}, not 1")
    if not position.isfinite().all():
        raise ValueError(f"the position is not finite: {position.tolist()}")
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = quaternion_to_matrix(quaternion), position
    return pose


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """Unit quaternions (..., 4) in the order x y z w, with w >= 0, from rotation matrices (..., 3, 3).

    The quaternion is the eigenvector of the largest eigenvalue of Bar-Itzhack's symmetric matrix (2000), which
    is stable at every angle.
    """
    m = matrix
    a, b, c = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = m[..., 1, 0] + m[..., 0, 1], m[..., 2, 0] + m[..., 0, 2], m[..., 2, 1] + m[..., 1, 2]
    xw, yw, zw = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    symmetric = torch.stack([a - b - c, xy, xz, xw, xy, b - a - c, yz, yw, xz, yz, c - a - b, zw,
                             xw, yw, zw, a + b + c], dim=-1).reshape(*m.shape[:-2], 4, 4)
    quaternion = torch.linalg.eigh(symmetric).eigenvectors[..., -1]
    return torch.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


# NED: x forward (north), y right (east), z down. This permutation takes NED coordinates to x right, y down, z forward.
CAMERA_FROM_NED = torch.tensor([[0., 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])


def pose_from_ned(pose: Tensor) -> Tensor:
    """A pose (..., 4, 4) between two NED frames, written between two camera-axes frames."""
    change = CAMERA_FROM_NED.to(pose)
    return change @ pose @ change.T


def pose_to_ned(pose: Tensor) -> Tensor:
    """The inverse of :func:`pose_from_ned`."""
    change = CAMERA_FROM_NED.to(pose)
    return change.T @ pose @ change
