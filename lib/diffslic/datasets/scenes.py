"""Procedural scenes: a textured world, a moving camera, moving bodies, and exact truths for every pixel.

They stand in for a simulator wherever nothing may be downloaded: unless told otherwise, the photographs on the
surfaces are those that ship inside scikit-image. A scene is determined by its preset, its seed and its size;
``worlds`` builds it, ``raycast`` draws it.
"""

import copy
import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import get_worker_info

from diffslic import geometry
from diffslic.datasets import raycast
from diffslic.datasets.clip import Clip
from diffslic.datasets.worlds import PRESETS, build_world, scene_intrinsics


class View(NamedTuple):
    """What B frames show."""

    image: Tensor  # (B, 3, H, W) RGB in [0, 1], anti-aliased
    depth: Tensor  # (B, 1, H, W) metres along z
    labels: Tensor  # (B, H, W) int64: 0 static world, 1.. moving bodies
    segments: Tensor  # (B, H, W) int64: every face of every object has its own id
    hits: raycast.Hits


class Motion(NamedTuple):
    """Where the pixels of B frames go."""

    flow: Tensor  # (B, 2, H, W) pixels
    occlusion: Tensor  # (B, H, W) bool: not seen in the other frame, or outside of it


class Scene:
    """One procedural clip: :meth:`view` draws frames, :meth:`motion` follows their points to other frames.

    Args:
        preset: ``"lab"`` (a room, slow camera), ``"street"`` (driving between houses), ``"crowd"`` (3 to 5 bodies
            that cross), ``"static"`` (a street without moving bodies) or ``"plaza"`` (3 to 5 bodies that go to and
            fro past one another for as long as the clip lasts; the camera stays about, or follows one of them).
        n_frames: length T of the clip, at least 2.
        size: (rows, columns) of the frames.
        seed: any integer from 0; the same arguments give the same scene.
        lighting: amplitude of a slow change of the light, as a share of its strength.
        blur: standard deviation in pixels of a Gaussian lens blur.
        noise: standard deviation of Gaussian sensor noise, in the unit of the image.
        textures: a folder of images to put on the surfaces, instead of those that ship inside scikit-image.
        device: where it is drawn.
    """

    def __init__(self, preset: str = "lab", n_frames: int = 8, size: tuple[int, int] = (240, 428), seed: int = 0,
                 lighting: float = 0.0, blur: float = 0.0, noise: float = 0.0,
                 textures: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        _check(preset, n_frames, size, seed, (lighting, blur, noise))
        self.n_frames, self.size, self.seed = n_frames, tuple(size), seed
        self.blur, self.noise = blur, noise
        self.world = build_world(preset, n_frames, self.size, lighting, seed, textures).to(device)
        self.n_bodies = int(self.world.body.max())
        self._painter = raycast.Painter(self.world)

    def seen_from(self, camera_to_world: Tensor, intrinsics: Tensor | None = None) -> "Scene":
        """The same scene with its camera standing at a pose (4, 4), in every frame, with intrinsics (3, 3) of its own.

        The world's axes are x right, y down and z forward as the scene's own camera looks when it starts, about which
        the world is made; elsewhere there may be less to see.
        """
        scene = copy.copy(self)
        pose = camera_to_world.to(self.world.camera_to_world).expand(self.n_frames, 4, 4)
        camera = self.world.intrinsics if intrinsics is None else intrinsics.to(self.world.intrinsics)
        scene.world = self.world._replace(camera_to_world=pose, intrinsics=camera)
        scene._painter = self._painter.of(scene.world)
        return scene

    def view(self, frames: Iterable[int]) -> View:
        """Draw frames: see :class:`View`."""
        times = self._times(frames)
        grid = self._grid(len(times))
        hits = raycast.cast(self.world, grid, times)
        seen = raycast.surface(self.world, grid, hits, times)
        image = raycast.paint(self._painter, grid, hits, seen, times)
        segments = hits.index * 3 + seen.axis
        return View(self._expose(image, times), hits.depth[:, None], self.world.body[hits.index], segments, hits)

    def motion(self, frames: Iterable[int], view: View, step: int) -> Motion:
        """Follow the points that ``view`` shows in ``frames`` to the frames ``step`` later (or earlier, if negative).

        A point is occluded where it leaves the other frame, or where a ray of the other camera towards it meets
        something at least a thousandth nearer.
        """
        times = self._times(frames)
        others = self._times(times + step)
        grid = self._grid(len(times))
        points = raycast.move(self.world, grid, view.hits, times, others)
        there = geometry.project(points, self.world.intrinsics)
        depth = points[:, 2]
        in_front = depth > raycast.NEAR
        flow = torch.where(in_front[:, None], there - grid, 0)
        first = raycast.cast(self.world, there, others).depth
        hidden = first < depth * (1 - 1e-3)
        return Motion(flow, ~in_front | hidden | ~geometry.lands_inside(flow))

    def _times(self, frames: Iterable[int] | Tensor) -> Tensor:
        times = torch.as_tensor(frames if isinstance(frames, Tensor) else list(frames), dtype=torch.int64)
        if len(times) == 0 or times.min() < 0 or times.max() >= self.n_frames:
            raise IndexError(f"frames must lie in 0..{self.n_frames - 1}, got {times.tolist()}")
        return times.to(self.world.camera_to_world.device)

    def _grid(self, batch: int) -> Tensor:
        return geometry.pixel_grid(*self.size, self.world.intrinsics.device).expand(batch, -1, -1, -1)

    def _expose(self, image: Tensor, times: Tensor) -> Tensor:
        """Lens blur and sensor noise; the noise of a frame depends on the seed and the frame alone."""
        if self.blur > 0:
            radius = math.ceil(3 * self.blur)
            x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
            kernel = torch.exp(-x * x / (2 * self.blur ** 2))
            kernel = (kernel / kernel.sum()).expand(3, 1, -1)
            padded = F.pad(image, (radius,) * 4, mode="replicate")
            image = F.conv2d(F.conv2d(padded, kernel[:, :, None], groups=3), kernel[..., None], groups=3)
        if self.noise > 0:
            frames = [torch.randn(image.shape[1:], generator=torch.Generator().manual_seed(self.seed * 100_003 + t))
                      for t in times.tolist()]
            image = (image + self.noise * torch.stack(frames).to(image.device)).clamp(0, 1)
        return image


def clips(preset: str = "lab", n_clips: int = 4, n_frames: int = 8, size: tuple[int, int] = (240, 428),
          seed: int = 0, lighting: float = 0.0, blur: float = 0.0, noise: float = 0.0,
          textures: str | None = None, device: str = "cpu") -> list[Clip]:
    """Scenes as clips, with every truth: frame, labels, segments, flow, occlusion (both ways), depth, poses.

    Args:
        preset: one of ``PRESETS``; several may be joined by a plus sign ("lab+crowd"), clips then take turns.
        n_clips: how many; clip i has the seed ``seed + i``.
        n_frames, size, lighting, blur, noise, textures, device: see :class:`Scene`.
    """
    options = {"lighting": lighting, "blur": blur, "noise": noise, "textures": textures, "device": device}
    if n_clips < 1:
        raise ValueError(f"n_clips must be at least 1, got {n_clips}")
    presets = preset.split("+")
    for name in presets:
        _check(name, n_frames, size, seed, (lighting, blur, noise))
    return [_clip(presets[i % len(presets)], n_frames, size, seed + i, options) for i in range(n_clips)]


def _check(preset: str, n_frames: int, size: tuple[int, int], seed: int, amounts: tuple[float, ...]) -> None:
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
    if n_frames < 2 or min(size) < 1 or seed < 0:
        raise ValueError(f"a scene needs n_frames >= 2, a positive size and a seed >= 0, "
                         f"got n_frames={n_frames}, size={tuple(size)}, seed={seed}")
    if not all(amount >= 0 for amount in amounts):
        raise ValueError(f"lighting, blur and noise must be >= 0, got {', '.join(map(str, amounts))}")


def _clip(preset: str, n_frames: int, size: tuple[int, int], seed: int, options: dict[str, Any]) -> Clip:
    """A lazy clip: nothing is drawn before it is read."""
    usual, of_workers = ((preset, n_frames, tuple(size), seed, tuple(sorted(each.items())))
                         for each in (options, {**options, "device": "cpu"}))

    def key() -> tuple[Any, ...]:
        """What is drawn; in a worker of a DataLoader on the CPU, for a GPU that its parent uses is closed to it."""
        return usual if get_worker_info() is None else of_workers

    readers = {
        "frame": lambda t: _view(key(), t).image[0].cpu(),
        "labels": lambda t: _view(key(), t).labels[0].cpu(),
        "segments": lambda t: _view(key(), t).segments[0].cpu(),
        "depth": lambda t: _view(key(), t).depth[0].cpu(),
        "flow": lambda t: _motion(key(), t, 1).flow[0].cpu(),
        "backward_flow": lambda t: _motion(key(), t, -1).flow[0].cpu(),
        "occlusion": lambda t: _motion(key(), t, 1).occlusion[0].cpu(),
        "backward_occlusion": lambda t: _motion(key(), t, -1).occlusion[0].cpu(),
        "camera_to_world": lambda t: _scene(key()).world.camera_to_world[t].float().cpu(),
    }
    return Clip(name=f"{preset}-{seed:05d}", length=n_frames, size=tuple(size), readers=readers,
                intrinsics_=scene_intrinsics(size))


# The last few scenes and frames are kept, for all clips together: a scene's textures take tens of megabytes.
@lru_cache(maxsize=2)
def _scene(key: tuple[Any, ...]) -> Scene:
    preset, n_frames, size, seed, options = key
    return Scene(preset, n_frames, size, seed, **dict(options))


@lru_cache(maxsize=2)
def _view(key: tuple[Any, ...], t: int) -> View:
    return _scene(key).view([t])


@lru_cache(maxsize=2)
def _motion(key: tuple[Any, ...], t: int, step: int) -> Motion:
    return _scene(key).motion([t], _view(key, t), step)
