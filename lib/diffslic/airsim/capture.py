"""Flies AirSim's camera along a trajectory and writes what it sees as TartanAir does, flow from depth and poses too."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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
SAME_SCENE = 0.05  # the median share by which the depth of a place may differ when a flight goes on


def waypoints(points: Tensor, n_frames: int, look_at: Tensor | None = None) -> Tensor:
    """A flight from point to point at an even pace.

    Args:
        points: (M, 3) positions in NED axes, in metres: north, east, down; at least two.
        n_frames: of the flight, at least two, the first at the first point and the last at the last.
        look_at: (3,) a place to look at, in NED; None looks north.

    Returns:
        (n_frames, 4, 4) float64 camera_to_world.

    Raises:
        ValueError: fewer than two points or frames, or a flight through the place that it looks at.
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

    Raises:
        ValueError: no radius, or fewer than two frames.
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
        ValueError: the folder holds another flight or other frames, the simulator shows another scene than before; an
            image that is not as asked for. ConnectionError, TimeoutError, SimulatorError: the simulator; frames up to
            then are kept. OSError: the folder cannot be written.
    """
    import airsim

    if trajectory.ndim != 3 or trajectory.shape[1:] != (4, 4) or len(trajectory) < 2:
        raise ValueError(f"a trajectory is (T, 4, 4) with two poses at least, got {tuple(trajectory.shape)}")
    folder = Path(folder)
    requests = [airsim.ImageRequest(camera, airsim.ImageType.Scene, False, False),
                airsim.ImageRequest(camera, airsim.ImageType.DepthPlanar, True, False)]
    fov = float(client.simGetCameraInfo(camera).fov)
    flown = _flown(folder, {"camera": camera, "fov": fov, "trajectory": trajectory.tolist()})
    poses = [] if flown is None else [flown.camera_to_world(t).double() for t in range(len(flown))]
    before = None
    if flown is not None:
        before = flown.depth(len(flown) - 1)
        _check_scene(_shot(client, trajectory[len(flown) - 1], requests).depth, before, folder)
    for t in tqdm(range(len(poses), len(trajectory)), desc="capture", unit="frame", disable=not progress):
        image, z, pose = _shot(client, trajectory[t], requests)
        poses.append(pose)
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


class _Shot(NamedTuple):
    """What the camera saw from one place."""

    image: Tensor  # (3, H, W) RGB in [0, 1]
    depth: Tensor  # (1, H, W) metres
    camera_to_world: Tensor  # (4, 4) float64


def _shot(client: "airsim.MultirotorClient", camera_to_world: Tensor,
          requests: "list[airsim.ImageRequest]") -> _Shot:
    client.simSetVehiclePose(_airsim_pose(camera_to_world), True)
    color, planar = client.simGetImages(requests)
    image, z = color_image(color), depth_image(planar)
    if image.shape[-2:] != z.shape[-2:]:
        raise ValueError(f"the simulator sends colours of {tuple(image.shape[-2:])} and depth of {tuple(z.shape[-2:])} "
                         "rows and columns: give both one size in its CaptureSettings")
    return _Shot(image, z, _camera_to_world(color))


def _flown(folder: Path, flight: dict[str, object]) -> Clip | None:
    """What is there of this flight, once it is known to be this one; a new folder is marked as its own."""
    begun = (folder / "image_left").is_dir() and any((folder / "image_left").glob("[!.]*_left.png"))
    if not note_says(folder / NOTE, flight):
        if begun or (folder / NOTE).exists():
            raise ValueError(f"{folder} holds another flight, or frames of something else: name another folder")
        write_note(folder / NOTE, flight)
    return datasets.open("tartanair", root=folder)[0] if begun else None


def _check_scene(now: Tensor, then: Tensor, folder: Path) -> None:
    """Refuse to go on in another world: what the last frame showed is to be seen from its place still."""
    if now.shape != then.shape or float(((now - then).abs() / then.clamp(min=1e-3)).median()) > SAME_SCENE:
        raise ValueError(f"the simulator does not show what the last frame of {folder} shows: another scene, or "
                         "another size of its images? Name another folder")


def _poses(positions: Tensor, look_at: Tensor | None) -> Tensor:
    """camera_to_world (T, 4, 4) of cameras at NED positions (T, 3), upright."""
    towards = torch.tensor([1.0, 0, 0]).to(positions).expand_as(positions) if look_at is None \
        else look_at.to(positions) - positions
    if not (towards.norm(dim=1) > 1e-6).all():
        raise ValueError(f"a flight passes through the place that it looks at, {look_at.tolist()}")
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
    return geometry.pose_from_ned(geometry.pose_from_quaternion(
        torch.tensor([position.x_val, position.y_val, position.z_val], dtype=torch.float64),
        torch.tensor([turn.x_val, turn.y_val, turn.z_val, turn.w_val], dtype=torch.float64)))
