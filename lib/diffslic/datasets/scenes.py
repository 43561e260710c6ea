"""Procedural scenes: a textured world, a moving camera, moving bodies, and exact truths for every pixel.

They stand in for a simulator wherever nothing may be downloaded: the photographs on the surfaces are those that
ship inside scikit-image. A scene is determined by its preset, its seed and its size; ``raycast`` draws it.

World axes are x right, y down, z forward, in metres; the ground is at y = 1.6.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from skimage import color, data
from torch import Tensor

from diffslic import geometry
from diffslic.datasets import raycast
from diffslic.datasets.clip import Clip
from diffslic.datasets.raycast import BOX, CARD, ELLIPSOID, World

PRESETS = ("lab", "street", "crowd", "static")
GROUND = 1.6  # metres below the camera's usual height
PHOTOGRAPHS = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel",
               "hubble_deep_field", "immunohistochemistry", "moon", "page", "retina", "rocket", "text")


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
            that cross) or ``"static"`` (a street without moving bodies).
        n_frames: length T of the clip, at least 2.
        size: (rows, columns) of the frames.
        seed: any integer from 0; the same arguments give the same scene.
        lighting: amplitude of a slow change of the light, as a share of its strength.
        blur: standard deviation in pixels of a Gaussian lens blur.
        noise: standard deviation of Gaussian sensor noise, in the unit of the image.
        device: where it is drawn.
    """

    def __init__(self, preset: str = "lab", n_frames: int = 8, size: tuple[int, int] = (240, 428), seed: int = 0,
                 lighting: float = 0.0, blur: float = 0.0, noise: float = 0.0,
                 device: torch.device | str = "cpu") -> None:
        if preset not in PRESETS:
            raise ValueError(f"unknown preset {preset!r}: expected one of {', '.join(PRESETS)}")
        if n_frames < 2 or min(size) < 1 or seed < 0:
            raise ValueError(f"a scene needs n_frames >= 2, a positive size and a seed >= 0, "
                             f"got n_frames={n_frames}, size={tuple(size)}, seed={seed}")
        if min(lighting, blur, noise) < 0:
            raise ValueError(f"lighting, blur and noise must be >= 0, got {lighting}, {blur}, {noise}")
        self.n_frames, self.size, self.seed = n_frames, tuple(size), seed
        self.blur, self.noise = blur, noise
        rng = np.random.default_rng([seed, PRESETS.index(preset)])
        self.world = _build(preset, n_frames, self.size, lighting, rng).to(device)
        self.n_bodies = int(self.world.body.max())
        self._painter = raycast.Painter(self.world)

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
          device: str = "cpu") -> list[Clip]:
    """Scenes as clips, with every truth: frame, labels, segments, flow, occlusion (both ways), depth, poses.

    Args:
        preset: one of ``PRESETS``; several may be joined by a plus sign ("lab+crowd"), clips then take turns.
        n_clips: how many; clip i has the seed ``seed + i``.
        n_frames, size, lighting, blur, noise, device: see :class:`Scene`.
    """
    options = {"lighting": lighting, "blur": blur, "noise": noise, "device": device}
    if n_clips < 1:
        raise ValueError(f"n_clips must be at least 1, got {n_clips}")
    presets = preset.split("+")
    unknown = [name for name in presets if name not in PRESETS]
    if unknown:
        raise ValueError(f"unknown preset {unknown[0]!r}: expected one of {', '.join(PRESETS)}")
    return [_clip(presets[i % len(presets)], n_frames, size, seed + i, options) for i in range(n_clips)]


def _clip(preset: str, n_frames: int, size: tuple[int, int], seed: int, options: dict[str, Any]) -> Clip:
    """A lazy clip: nothing is drawn before it is read."""
    key = preset, n_frames, tuple(size), seed, tuple(sorted(options.items()))
    readers = {
        "frame": lambda t: _view(key, t).image[0].cpu(),
        "labels": lambda t: _view(key, t).labels[0].cpu(),
        "segments": lambda t: _view(key, t).segments[0].cpu(),
        "depth": lambda t: _view(key, t).depth[0].cpu(),
        "flow": lambda t: _motion(key, t, 1).flow[0].cpu(),
        "backward_flow": lambda t: _motion(key, t, -1).flow[0].cpu(),
        "occlusion": lambda t: _motion(key, t, 1).occlusion[0].cpu(),
        "backward_occlusion": lambda t: _motion(key, t, -1).occlusion[0].cpu(),
        "camera_to_world": lambda t: _scene(key).world.camera_to_world[t].float().cpu(),
    }
    return Clip(name=f"{preset}-{seed:05d}", length=n_frames, size=tuple(size), readers=readers,
                intrinsics_=_intrinsics(size))


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


# ---------------------------------------------------------------- building worlds


class _Object(NamedTuple):
    shape: int
    half_size: tuple[float, float, float]
    poses: Tensor  # (T, 4, 4)
    body: int
    hollow: bool = False
    faces: int = 1  # how many different photographs (one per normal axis)
    texel_density: float = 80.0


def _build(preset: str, n_frames: int, size: tuple[int, int], lighting: float, rng: np.random.Generator) -> World:
    n_bodies = {"lab": int(rng.integers(1, 3)), "street": int(rng.integers(1, 4)),
                "crowd": int(rng.integers(3, 6)), "static": 0}[preset]
    intrinsics = _intrinsics(size)
    indoors = preset == "lab"
    objects = _room(n_frames, rng) if indoors else _street(n_frames, rng)
    bodies, centres = _bodies(n_bodies, n_frames, preset, float(intrinsics[0, 0]) / size[1], rng)
    objects += bodies
    camera = _camera(n_frames, 0.012 if preset in ("lab", "crowd") else 0.12, centres, rng)
    gain = torch.ones(n_frames, 3)
    if lighting > 0:
        wave = torch.sin(torch.arange(n_frames) * rng.uniform(0.1, 0.6) + rng.uniform(0, 2 * math.pi))
        gain = 1 + lighting * wave[:, None] * torch.tensor(rng.uniform(0.7, 1, 3), dtype=torch.float32)
    starts = [0, *np.cumsum([o.faces for o in objects[:-1]]).tolist()]
    light = torch.tensor([rng.uniform(-1, 1), -rng.uniform(0.5, 1.5), -rng.uniform(0.2, 1)], dtype=torch.float32)
    return World(
        shape=[o.shape for o in objects], hollow=[o.hollow for o in objects],
        half_size=torch.tensor([o.half_size for o in objects]),
        outline=torch.tensor(rng.normal(0, 0.16, (len(objects), 2, 4)) / [1, 1.5, 2, 3], dtype=torch.float32),
        object_to_world=torch.stack([o.poses for o in objects]),
        body=torch.tensor([o.body for o in objects]),
        faces=torch.tensor([[start + axis % o.faces for axis in range(3)] for o, start in zip(objects, starts)]),
        textures=torch.stack([_texture(rng) for _ in range(starts[-1] + objects[-1].faces)]),
        texel_density=torch.tensor([o.texel_density for o in objects]),
        camera_to_world=camera, intrinsics=intrinsics, size=size, light=F.normalize(light, dim=0), gain=gain)


def _intrinsics(size: tuple[int, int]) -> Tensor:
    return geometry.intrinsics_from_fov(65.0, *size)


def _pose(rotation: Tensor, position: Tensor) -> Tensor:
    """Poses (T, 4, 4) float64 from rotation vectors (T, 3) in radians and positions (T, 3) in metres."""
    pose = torch.eye(4, dtype=torch.float64).repeat(len(position), 1, 1)
    pose[:, :3, :3] = geometry.axis_angle_to_matrix(rotation.double())
    pose[:, :3, 3] = position
    return pose


def _still(position: tuple[float, float, float], yaw: float, n_frames: int) -> Tensor:
    return _pose(torch.tensor([[0, yaw, 0]]), torch.tensor([position])).expand(n_frames, -1, -1)


def _standing_box(x: float, z: float, half: tuple[float, float, float], yaw: float, n_frames: int,
                  faces: int, density: float) -> _Object:
    return _Object(BOX, half, _still((x, GROUND - half[1], z), yaw, n_frames), 0, faces=faces, texel_density=density)


def _room(n_frames: int, rng: np.random.Generator) -> list[_Object]:
    """A room seen from inside, with furniture along its far side."""
    half = (rng.uniform(4, 7), rng.uniform(1.5, 2), rng.uniform(5, 8))
    # The camera stands near one end: z runs from -1 to 2 * half - 1.
    centre = (rng.uniform(-1, 1), GROUND - half[1], half[2] - 1)
    objects = [_Object(BOX, half, _still(centre, 0.0, n_frames), 0, hollow=True, faces=3,
                       texel_density=rng.uniform(40, 100))]
    for _ in range(rng.integers(4, 8)):
        box = (rng.uniform(0.2, 0.7), rng.uniform(0.2, 1), rng.uniform(0.2, 0.6))
        objects.append(_standing_box(centre[0] + rng.uniform(-0.8, 0.8) * half[0], rng.uniform(4, 2 * half[2] - 2),
                                     box, rng.uniform(-0.8, 0.8), n_frames, 3, rng.uniform(80, 200)))
    return objects


def _street(n_frames: int, rng: np.random.Generator) -> list[_Object]:
    """A ground, two rows of houses, things on the pavement, and a far sky."""
    sky = _Object(ELLIPSOID, (150., 150., 150.), _still((0., 0., 0.), rng.uniform(0, 6), n_frames), 0, hollow=True,
                  texel_density=rng.uniform(1.5, 4))
    ground = _Object(BOX, (150., 0.5, 150.), _still((0., GROUND + 0.5, 0.), rng.uniform(0, 1), n_frames), 0,
                     texel_density=rng.uniform(30, 80))
    objects = [sky, ground]
    width = rng.uniform(5, 9)
    for side in (-1, 1):
        z = rng.uniform(4, 8)
        while z < 45:
            half = (rng.uniform(2, 4), rng.uniform(1.5, 6), rng.uniform(2, 4))
            objects.append(_standing_box(side * (width + half[0]), z + half[2], half, rng.uniform(-0.1, 0.1), n_frames,
                                         3, rng.uniform(25, 60)))
            z += 2 * half[2] + rng.uniform(0, 6)
    for _ in range(rng.integers(2, 6)):
        half = (rng.uniform(0.15, 0.5), rng.uniform(0.3, 1.2), rng.uniform(0.15, 0.5))
        objects.append(_standing_box(rng.choice([-1, 1]) * rng.uniform(2.5, width - 0.5), rng.uniform(5, 20), half,
                                     rng.uniform(-0.8, 0.8), n_frames, 3, rng.uniform(60, 150)))
    return objects


def _bodies(n_bodies: int, n_frames: int, preset: str, focal: float,
            rng: np.random.Generator) -> tuple[list[_Object], list[Tensor]]:
    """Moving bodies of one to three rigidly joined parts, and the path (T, 3) of each body's centre."""
    objects, centres = [], []
    kinds = ["cross", "stop", "return", "wander", "approach"]
    for body in range(1, n_bodies + 1):
        # Bodies of a crowd share a narrow range of depths, so that crossing means occluding.
        z = rng.uniform(3.5, 7.5) if preset == "crowd" else rng.uniform(2.5, 6)
        kind = rng.choice(["cross", "cross", "stop", "return"] if preset == "crowd" else kinds)
        reach = z / (2 * focal)  # metres from the view's middle to its left or right edge
        path = _path(str(kind), z, reach, n_frames, rng)
        scale = rng.uniform(0.3, 0.6 if preset == "crowd" else 0.9) * (z / 4) ** 0.5
        spin = torch.tensor(rng.normal(0, 0.02, 3) * [0.3, 1, 0.3], dtype=torch.float32)
        start = torch.tensor([rng.normal(0, 0.08), rng.uniform(-0.6, 0.6), rng.normal(0, 0.15)], dtype=torch.float32)
        rotation = start + spin * torch.arange(n_frames)[:, None]
        parts = _parts(scale, rng)
        lowest = max(offset[1] + half[1] for _, half, offset in parts)
        path[:, 1] = GROUND - lowest - (rng.uniform(0, 0.8) if rng.random() < 0.3 else 0)
        pose = _pose(rotation, path)
        for shape, half, offset in parts:
            joint = torch.eye(4, dtype=torch.float64)
            joint[:3, 3] = torch.tensor(offset)
            objects.append(_Object(shape, half, pose @ joint, body, faces=3 if shape == BOX else 1,
                                   texel_density=rng.uniform(100, 300)))
        centres.append(path)
    return objects, centres


def _parts(scale: float, rng: np.random.Generator) -> list[tuple[int, tuple[float, ...], tuple[float, ...]]]:
    """A body as (shape, half size, offset) parts: a box with a top, an upright or a lying figure, or a cut-out."""
    a, b, c = scale * rng.uniform(0.6, 1.2), scale * rng.uniform(0.6, 1.2), scale * rng.uniform(0.5, 1)
    kind = rng.integers(0, 4)
    if kind == 0:  # vehicle
        return [(BOX, (1.5 * a, 0.5 * b, c), (0., 0., 0.)), (BOX, (0.8 * a, 0.4 * b, 0.8 * c), (0., -0.8 * b, 0.))]
    if kind == 1:  # upright figure
        head = 0.4 * a
        return [(ELLIPSOID, (0.6 * a, 1.4 * b, 0.5 * c), (0., 0., 0.)),
                (ELLIPSOID, (head, head, head), (0., -1.4 * b - 0.7 * head, 0.))]
    if kind == 2:  # animal
        head = 0.5 * b
        return [(ELLIPSOID, (1.4 * a, 0.6 * b, 0.6 * c), (0., 0., 0.)),
                (ELLIPSOID, (head, head, head), (1.4 * a, -0.5 * b, 0.)),
                (BOX, (1.0 * a, 0.4 * b, 0.3 * c), (0., 0.8 * b, 0.))]
    return [(CARD, (1.3 * a, 1.3 * b, 0.), (0., 0., 0.))]


def _path(kind: str, z: float, reach: float, n_frames: int, rng: np.random.Generator) -> Tensor:
    """Positions (T, 3) in metres; the height is filled in by the caller."""
    t = np.arange(n_frames)
    side = rng.choice([-1, 1])
    speed = rng.uniform(0.012, 0.05) * reach + 0.02  # metres per frame
    drift = rng.normal(0, 0.01)
    if kind == "cross":
        middle = rng.uniform(0.3, 0.7) * n_frames
        x = side * speed * (t - middle)
    elif kind == "stop":
        stop = rng.uniform(0.4, 0.8) * n_frames
        x = side * (speed * np.minimum(t, stop) - rng.uniform(0.1, 0.6) * reach)
        drift = 0.0
    elif kind == "return":
        period = rng.uniform(30, 60)
        x = side * 1.5 * reach * np.cos(2 * np.pi * t / period + rng.uniform(0, 2 * np.pi))
    elif kind == "wander":
        x = reach * (rng.uniform(-0.4, 0.4) + 0.4 * np.sin(t * rng.uniform(0.05, 0.2) + rng.uniform(0, 6)))
        drift += rng.choice([-1, 1]) * 0.03
    else:  # approach
        x = np.full(n_frames, rng.uniform(-0.4, 0.4) * reach)
        drift = -min(0.08, 0.5 * z / n_frames)
    depth = np.clip(z + drift * t, 1.5, 30)
    return torch.tensor(np.stack([x, np.zeros(n_frames), depth], axis=1), dtype=torch.float32)


def _camera(n_frames: int, forward: float, centres: list[Tensor], rng: np.random.Generator) -> Tensor:
    """A hand-held or driven camera (T, 4, 4); most clips with bodies keep one of them in view, turning or moving."""
    t = torch.arange(n_frames, dtype=torch.float32)
    velocity = torch.tensor([rng.normal(0, 0.02), rng.normal(0, 0.003), rng.normal(0, 0.3) * forward + forward],
                            dtype=torch.float32)
    sway = torch.tensor(rng.uniform(0.3, 1, 3) * [0.02, 0.01, 0.01], dtype=torch.float32)
    rate, phase = (torch.tensor(rng.uniform(low, high, 3), dtype=torch.float32) for low, high in ((0.1, 0.5), (0, 6)))
    position = velocity * t[:, None] + sway * torch.sin(rate * t[:, None] + phase)
    turn = torch.tensor(rng.normal(0, 1, 3) * [0.002, 0.006, 0.001], dtype=torch.float32)
    wobble = torch.tensor(rng.uniform(0, 1, 3) * [0.008, 0.012, 0.006], dtype=torch.float32)
    rotation = turn * t[:, None] + wobble * torch.sin(rate.flip(0) * t[:, None] + phase.flip(0))
    if centres:
        target = centres[int(rng.integers(len(centres)))]
        follow = rng.choice(["turn", "travel", "stay"])
        if follow == "travel":
            position[:, 0] += 0.9 * target[:, 0]
        x, y, z = (target - position).unbind(1)
        if follow == "turn":
            rotation[:, 1] = 0.9 * torch.atan2(x, z.clamp(min=0.5)).clamp(-0.7, 0.7)
        rotation[:, 0] -= rng.uniform(0.5, 1) * torch.atan2(y, z.clamp(min=0.5)).mean()
    return _pose(rotation, position)


@lru_cache(maxsize=1)
def _photographs() -> list[Tensor]:
    """The photographs (3, H, W) in [0, 1] that ship inside scikit-image, each at up to three sizes."""
    side = raycast.TEXTURE_SIZE
    images = []
    for name in PHOTOGRAPHS:
        image = getattr(data, name)()
        image = (color.gray2rgb(image) if image.ndim == 2 else image)[..., :3]
        tensor = torch.from_numpy(image.astype(np.float32) / 255).permute(2, 0, 1)
        for shorter in (side, 3 * side // 2, 5 * side // 2):
            scale = shorter / min(tensor.shape[1:])
            size = tuple(max(side, round(n * scale)) for n in tensor.shape[1:])
            images.append(geometry.resize(tensor[None], size)[0])
    return images


def _texture(rng: np.random.Generator) -> Tensor:
    """A texture (3, 256, 256): a random crop of a photograph with a random tint and contrast."""
    side = raycast.TEXTURE_SIZE
    photograph = _photographs()[rng.integers(len(_photographs()))]
    top, left = (int(rng.integers(0, n - side + 1)) for n in photograph.shape[1:])
    tint = torch.tensor(rng.uniform(0.55, 1.25, 3), dtype=torch.float32)[:, None, None]
    contrast = rng.uniform(0.5, 1.2)
    crop = photograph[:, top:top + side, left:left + side]
    return ((crop - 0.5) * (contrast * tint) + rng.uniform(0.3, 0.65)).clamp(0, 1)
