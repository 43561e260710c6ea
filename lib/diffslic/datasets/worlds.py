"""Builds the worlds of procedural scenes: rooms, streets, bodies, their paths, and the camera's.

World axes are x right, y down, z forward, in metres; the ground is at y = 1.6. Everything random comes from one
generator, so a seed determines a world.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffslic import geometry
from diffslic.datasets import raycast
from diffslic.datasets.photographs import photographs
from diffslic.datasets.raycast import BOX, CARD, ELLIPSOID, World

PRESETS = ("lab", "street", "crowd", "static", "plaza")
GROUND = 1.6  # metres below the camera's usual height


class _Object(NamedTuple):
    shape: int
    half_size: tuple[float, float, float]
    poses: Tensor  # (T, 4, 4)
    body: int
    hollow: bool = False
    faces: int = 1  # how many different photographs (one per normal axis)
    texel_density: float = 80.0


def build_world(preset: str, n_frames: int, size: tuple[int, int], lighting: float, seed: int,
                textures: str | Path | None = None) -> World:
    """The world of a scene: see :class:`diffslic.datasets.scenes.Scene` for the arguments."""
    rng = np.random.default_rng([seed, PRESETS.index(preset)])
    few, some, many = (int(rng.integers(low, high)) for low, high in ((1, 3), (1, 4), (3, 6)))
    n_bodies = {"lab": few, "street": some, "crowd": many, "static": 0, "plaza": many}[preset]
    intrinsics = scene_intrinsics(size)
    indoors = preset == "lab"
    objects = _room(n_frames, rng) if indoors else _street(n_frames, rng)
    bodies, centres = _bodies(n_bodies, n_frames, preset, float(intrinsics[0, 0]) / size[1], rng)
    objects += bodies
    forward = {"lab": 0.012, "crowd": 0.012, "street": 0.12, "static": 0.12, "plaza": 0.0}[preset]
    camera = _camera(n_frames, forward, preset != "plaza", centres, rng)
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
        textures=torch.stack([_texture(textures, rng) for _ in range(starts[-1] + objects[-1].faces)]),
        texel_density=torch.tensor([o.texel_density for o in objects]),
        camera_to_world=camera, intrinsics=intrinsics, size=size, light=F.normalize(light, dim=0), gain=gain)


def scene_intrinsics(size: tuple[int, int]) -> Tensor:
    """The camera (3, 3) of every scene: 65 degrees along the longer side."""
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
    kinds = {"crowd": ["cross", "cross", "stop", "return"], "plaza": ["stroll"]}.get(
        preset, ["cross", "stop", "return", "wander", "approach"])
    crowded = preset in ("crowd", "plaza")
    for body in range(1, n_bodies + 1):
        # Bodies of a crowd share a narrow range of depths, so that crossing means occluding.
        z = rng.uniform(3.5, 7.5) if crowded else rng.uniform(2.5, 6)
        kind = rng.choice(kinds)
        reach = z / (2 * focal)  # metres from the view's middle to its left or right edge
        path = _path(str(kind), z, reach, n_frames, rng)
        scale = rng.uniform(0.3, 0.6 if crowded else 0.9) * (z / 4) ** 0.5
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
    elif kind == "stroll":  # to and fro within the view, for as long as the clip lasts
        x = reach * (rng.uniform(-0.3, 0.3) + rng.uniform(0.3, 0.6) * np.sin(t * rng.uniform(0.05, 0.15)
                                                                             + rng.uniform(0, 6)))
        drift = 0.0
    else:  # approach
        x = np.full(n_frames, rng.uniform(-0.4, 0.4) * reach)
        drift = -min(0.08, 0.5 * z / n_frames)
    depth = np.clip(z + drift * t, 1.5, 30)
    return torch.tensor(np.stack([x, np.zeros(n_frames), depth], axis=1), dtype=torch.float32)


def _camera(n_frames: int, forward: float, roams: bool, centres: list[Tensor], rng: np.random.Generator) -> Tensor:
    """A hand-held or driven camera (T, 4, 4); most clips with bodies keep one of them in view, turning or moving.

    Without ``roams`` it has no course of its own: hands shake, and it may follow a body.
    """
    t = torch.arange(n_frames, dtype=torch.float32)
    velocity = torch.tensor([rng.normal(0, 0.02), rng.normal(0, 0.003), rng.normal(0, 0.3) * forward + forward],
                            dtype=torch.float32)
    velocity = velocity * roams
    sway = torch.tensor(rng.uniform(0.3, 1, 3) * [0.02, 0.01, 0.01], dtype=torch.float32)
    rate, phase = (torch.tensor(rng.uniform(low, high, 3), dtype=torch.float32) for low, high in ((0.1, 0.5), (0, 6)))
    position = velocity * t[:, None] + sway * torch.sin(rate * t[:, None] + phase)
    turn = torch.tensor(rng.normal(0, 1, 3) * [0.002, 0.006, 0.001], dtype=torch.float32) * roams
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


@lru_cache(maxsize=64)  # all of the shipped ones; of a folder, enlarged, no more
def _enlarged(textures: str | Path | None, number: int) -> Tensor:
    """Photograph ``number // 3`` (3, H, W) in [0, 1], at one of three sizes."""
    photograph, side = photographs(textures)[number // 3].float() / 255, raycast.TEXTURE_SIZE
    scale = (side, 3 * side // 2, 5 * side // 2)[number % 3] / min(photograph.shape[1:])
    return geometry.resize(photograph[None], tuple(max(side, round(n * scale)) for n in photograph.shape[1:]))[0]


def _texture(textures: str | Path | None, rng: np.random.Generator) -> Tensor:
    """A texture (3, 256, 256): a random crop of a photograph with a random tint and contrast.

    A third of them are nearly plain, as walls, roads and skies are: what learns from scenes must also meet places
    where nothing can be matched.
    """
    side = raycast.TEXTURE_SIZE
    photograph = _enlarged(textures, int(rng.integers(3 * len(photographs(textures)))))
    top, left = (int(rng.integers(0, n - side + 1)) for n in photograph.shape[1:])
    tint = torch.tensor(rng.uniform(0.55, 1.25, 3), dtype=torch.float32)[:, None, None]
    contrast = rng.uniform(0.01, 0.2) if rng.random() < 0.35 else rng.uniform(0.4, 1.2)
    base = torch.tensor(rng.uniform(0.15, 0.7) + rng.normal(0, 0.06, 3), dtype=torch.float32)[:, None, None]
    crop = photograph[:, top:top + side, left:left + side]
    return ((crop - 0.5) * (contrast * tint) + base).clamp(0, 1)
