"""Flies AirSim's camera along a trajectory and writes what it sees as TartanAir does, flow from depth and poses too."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffslic import datasets, depth, geometry
from diffslic.airsim.transport import color_image, depth_image
from diffslic.datasets import layouts
from diffslic.datasets.clip import Clip
from diffslic.files import note_says, write_note

if TYPE_CHECKING:
    import airsim

NOTE = "capture.json"


def waypoints(points: Tensor, n_frames: int, look_at: Tensor | None = None) -> Tensor:
    """A flight from point to point at an even pace.

    Args:
        points: (M, 3) positions in NED axes, in metres: north, east, down; at least two.
        n_frames: of the flight, at least two, the first at the first point and the last at the last.
        look_at: (3,) a place to look at, in NED; None looks north.

    Returns:
        (n_frames, 4, 4) float64 camera_to_world.

    Raises:
        ValueError: fewer than two points or frames.
    """
    if points.ndim != 2 or points.shape[1] != 3 or len(points) < 2 or n_frames < 2:
        raise ValueError(f"a flight needs (M, 3) points, two at least, and two frames, got {tuple(points.shape)} and "
                         f"{n_frames} frames")
    points = points.double()
    way = torch.cat([points.new_zeros(1), (points[1:] - points[:-1]).norm(dim=1).cumsum(0)])
    if way[-1] == 0:
        raise ValueError("the points of a flight must not all be one")
    at = torch.linspace(0, float(way[-1]), n_frames, dtype=torch.float64)
    leg = torch.searchsorted(way, at, right=True).clamp(1, len(points) - 1)
    share = ((at - way[leg - 1]) / (way[leg] - way[leg - 1]).clamp(min=1e-12))[:, None]
    return _poses(torch.lerp(points[leg - 1], points[leg], share), look_at)


def orbit(centre: Tensor, radius: float, n_frames: int, degrees: float = 60.0, height: float = 0.0) -> Tensor:
    """An arc around a place that the camera looks at, from the south of it and anticlockwise as seen from above.

    Args:
        centre: (3,) in NED axes, in metres. radius: in metres. height: of the arc above the centre, in metres.
        n_frames: of the arc, at least two.
        degrees: how far it goes round, half of it on either side.

    Returns:
        (n_frames, 4, 4) float64 camera_to_world.
    """
    if radius <= 0 or n_frames < 2:
        raise ValueError(f"an orbit needs a radius above 0 and two frames, got {radius} and {n_frames}")
    centre = centre.double()
    angle = torch.deg2rad(torch.linspace(-degrees / 2, degrees / 2, n_frames, dtype=torch.float64))
    offset = torch.stack([-radius * angle.cos(), radius * angle.sin(), torch.full_like(angle, -height)], dim=1)
    return _poses(centre + offset, centre)


def capture(client: "airsim.MultirotorClient", trajectory: Tensor, folder: str | Path, camera: str = "0",
            progress: bool = True) -> Clip:
    """Fly a trajectory and keep every frame: colours, depth, the camera's pose, and the flow that follows from them.

    A frame is whole or not there. A flight that broke off goes on after its last frame when it is called again.
    The flow is that of a world that stands still; AirSim's own image of the flow has 8 bits and is of no use.

    Args:
        client: see :func:`diffslic.airsim.connect`.
        trajectory: (T, 4, 4) camera_to_world of the vehicle, such as :func:`orbit` gives.
        folder: where it is written, in TartanAir's layout.
        camera: its name. The poses that are kept are the camera's own, as it reports them with each image.

    Returns:
        The flight as a clip.

    Raises:
        ValueError: the folder holds another flight; an image that is not as asked for. ConnectionError, TimeoutError,
            SimulatorError: the simulator; frames up to then are kept. OSError: the folder cannot be written.
    """
    import airsim

    if trajectory.ndim != 3 or trajectory.shape[1:] != (4, 4) or len(trajectory) < 2:
        raise ValueError(f"a trajectory is (T, 4, 4) with two poses at least, got {tuple(trajectory.shape)}")
    folder = Path(folder)
    flight = {"camera": camera, "trajectory": trajectory.tolist()}
    if not note_says(folder / NOTE, flight):
        if (folder / NOTE).exists():
            raise ValueError(f"{folder} holds another flight: name another folder, or remove it")
        write_note(folder / NOTE, flight)
    requests = [airsim.ImageRequest(camera, airsim.ImageType.Scene, False, False),
                airsim.ImageRequest(camera, airsim.ImageType.DepthPlanar, True, False)]
    poses, before = _flown(folder)
    fov = client.simGetCameraInfo(camera).fov
    for t in tqdm(range(len(poses), len(trajectory)), desc="capture", unit="frame", disable=not progress):
        client.simSetVehiclePose(_airsim_pose(trajectory[t]), True)
        color, planar = client.simGetImages(requests)
        image, z = color_image(color), depth_image(planar)
        poses.append(_camera_to_world(color))
        intrinsics = geometry.intrinsics_from_fov(fov, *image.shape[-2:])
        if before is not None:
            motion = geometry.second_from_first(*poses[-2:])
            flow = geometry.flow_from_depth(before[None].double(), intrinsics.double(), motion)[0].float()
            layouts.write_tartanair_flow(folder, t - 1, flow,
                                         depth.hidden_by_depth(before[None], z[None], intrinsics, motion)[0])
        layouts.write_tartanair_cameras(folder, poses, intrinsics)
        layouts.write_tartanair_frame(folder, t, image, z)
        before = z
    return datasets.open("tartanair", root=folder)[0]


def _flown(folder: Path) -> tuple[list[Tensor], Tensor | None]:
    """The poses of the frames that are whole, and the depth of the last one."""
    if not (folder / "image_left").is_dir() or not any((folder / "image_left").glob("[!.]*_left.png")):
        return [], None
    clip = datasets.open("tartanair", root=folder)[0]
    return [clip.camera_to_world(t).double() for t in range(len(clip))], clip.depth(len(clip) - 1)


def _poses(positions: Tensor, look_at: Tensor | None) -> Tensor:
    """camera_to_world (T, 4, 4) of cameras at NED positions (T, 3), upright."""
    towards = torch.tensor([1.0, 0, 0]).to(positions).expand_as(positions) if look_at is None \
        else look_at.to(positions) - positions
    forward = torch.nn.functional.normalize(towards, dim=1)
    right = torch.stack([-forward[:, 1], forward[:, 0], 0 * forward[:, 0]], 1)
    level = right.norm(dim=1, keepdim=True)  # 0 for one that looks straight down: its right is east
    right = torch.where(level > 1e-9, right / level.clamp(min=1e-9), torch.tensor([0, 1.0, 0]).to(right))
    poses = torch.eye(4, dtype=torch.float64).repeat(len(positions), 1, 1)
    poses[:, :3, :3] = torch.stack([forward, right, torch.linalg.cross(forward, right)], dim=2)
    poses[:, :3, 3] = positions
    return geometry.pose_from_ned(poses)


def _airsim_pose(camera_to_world: Tensor) -> "airsim.Pose":
    import airsim

    pose = geometry.pose_to_ned(camera_to_world)
    return airsim.Pose(airsim.Vector3r(*pose[:3, 3].tolist()),
                       airsim.Quaternionr(*geometry.matrix_to_quaternion(pose[:3, :3]).tolist()))


def _camera_to_world(response: "airsim.ImageResponse") -> Tensor:
    position, turn = response.camera_position, response.camera_orientation
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = geometry.quaternion_to_matrix(torch.tensor([turn.x_val, turn.y_val, turn.z_val, turn.w_val],
                                                              dtype=torch.float64))
    pose[:3, 3] = torch.tensor([position.x_val, position.y_val, position.z_val])
    return geometry.pose_from_ned(pose)
