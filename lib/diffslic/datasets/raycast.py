"""A small ray caster in torch: boxes, ellipsoids and cut-out cards with photographs on them.

One ray per pixel gives *exact* truths: depth, which surface is seen, where each point goes, and whether it is
seen there. Only the colour is filtered: textures through mip levels, silhouettes by four more rays per edge pixel.
Everything is batched over frames and runs on any device.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffslic import geometry

BOX, ELLIPSOID, CARD = range(3)
NEAR, FAR = 0.05, 1e4  # metres; nothing closer to the camera is seen, and a ray that hits nothing ends far away
TEXTURE_SIZE = 256
_CORNERS = torch.tensor([[x, y, z] for x in (-1., 1) for y in (-1., 1) for z in (-1., 1)])
EDGE_RAYS = ((-0.375, -0.125), (0.125, -0.375), (0.375, 0.125), (-0.125, 0.375))  # rotated grid, in pixels


class World(NamedTuple):
    """O objects seen during T frames. Each object is a unit shape scaled by ``half_size`` in its own axes."""

    shape: list[int]  # O times BOX, ELLIPSOID or CARD (in the plane z = 0)
    hollow: list[bool]  # seen from inside: rooms and skies
    half_size: Tensor  # (O, 3) metres
    outline: Tensor  # (O, 2, 4) cosine and sine coefficients of a card's outline radius
    object_to_world: Tensor  # (O, T, 4, 4) float64
    body: Tensor  # (O,) int64: 0 = static world, 1.. = moving bodies
    faces: Tensor  # (O, 3) int64: which texture the faces with a normal along x, y, z show
    textures: Tensor  # (M, 3, 256, 256) in [0, 1]
    texel_density: Tensor  # (O,) texels per metre
    camera_to_world: Tensor  # (T, 4, 4) float64
    intrinsics: Tensor  # (3, 3)
    size: tuple[int, int]  # rows and columns of a frame
    light: Tensor  # (3,) unit vector towards the light, in the world
    gain: Tensor  # (T, 3) colour of the light in each frame

    def to(self, device: torch.device | str) -> "World":
        """The same world with its tensors on another device."""
        return World(*(field.to(device) if isinstance(field, Tensor) else field for field in self))


class Hits(NamedTuple):
    """What rays see first. ``depth`` is along the camera's z axis and infinite where nothing is hit."""

    depth: Tensor  # (B, H, W) metres
    index: Tensor  # (B, H, W) int64 object


class Surface(NamedTuple):
    """Where rays meet the objects."""

    local: Tensor  # (B, H, W, 3) point in the object's axes, metres
    axis: Tensor  # (B, H, W) int64: the axis of a box face's normal, else 0
    normal: Tensor  # (B, H, W, 3) unit normal in the world


def cast(world: World, xy: Tensor, frames: Tensor) -> Hits:
    """First surfaces along the rays through the pixel positions ``xy`` (B, 2, H, W), seen in ``frames`` (B,).

    Objects are tried one after the other, each only in the rectangle of rays that can meet its bounding box.
    """
    batch, _, height, width = xy.shape
    depth = torch.full((batch, height, width), torch.inf, device=xy.device)
    index = torch.zeros((batch, height, width), dtype=torch.int64, device=xy.device)
    camera_from_objects = _camera_from_objects(world, frames).to(xy.dtype)
    rays = _pixel_rays(xy, world.intrinsics)
    # Which rays an object can meet is decided by the host, from a few numbers that are fetched once: decided on a GPU,
    # the host would wait for it at every object.
    poses, spans = camera_from_objects.cpu(), _Spans(*(ends.cpu() for ends in _spans(xy)))
    bounds = world._replace(half_size=world.half_size.cpu(), intrinsics=world.intrinsics.cpu())
    for number, shape in enumerate(world.shape):
        rows, columns = _window(bounds, number, poses[:, number], spans)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        object_from_camera = geometry.invert_pose(camera_from_objects[:, number])
        part = rays[:, :, rows, columns]
        direction = (object_from_camera[:, :3, :3] @ part.flatten(2)).reshape(part.shape).unbind(1)
        origin = object_from_camera[:, :3, 3, None, None].unbind(1)
        found = _INTERSECT[shape](origin, direction, world.half_size[number], world.outline[number],
                                  world.hollow[number])
        best = depth[:, rows, columns]
        nearer = found < best
        depth[:, rows, columns] = torch.where(nearer, found, best)
        index[:, rows, columns].masked_fill_(nearer, number)
    return Hits(depth, index)


def surface(world: World, xy: Tensor, hits: Hits, frames: Tensor) -> Surface:
    """Points, faces and normals of what the rays through ``xy`` (B, 2, H, W) hit."""
    points = _pixel_rays(xy, world.intrinsics) * hits.depth[:, None].clamp(max=FAR)
    # One gather of each object's rotation and position, written in the camera's axes.
    rotation, position = _per_pixel(_camera_from_objects(world, frames).to(xy.dtype), hits.index)
    local = ((points.movedim(1, -1) - position)[..., None, :] @ rotation)[..., 0, :]
    half = world.half_size[hits.index]
    shape = torch.tensor(world.shape, device=xy.device)[hits.index]
    inside = torch.tensor(world.hollow, device=xy.device)[hits.index]
    scaled = local / half.clamp(min=1e-6)
    axis = torch.where(shape == BOX, scaled.abs().argmax(-1), torch.where(shape == CARD, 2, 0))
    outwards = torch.where(scaled.gather(-1, axis[..., None]) < 0, -1, 1)  # never 0: a card's points have z = 0
    face = F.one_hot(axis, 3) * outwards
    normal = torch.where((shape == ELLIPSOID)[..., None], scaled / half.clamp(min=1e-6), face.to(local.dtype))
    normal = (rotation @ F.normalize(normal, dim=-1)[..., None])[..., 0]
    # A card has two sides, and a room is seen from inside: both show the side that faces the camera.
    away = (normal * points.movedim(1, -1)).sum(-1, keepdim=True) > 0
    normal = torch.where(away & ((shape == CARD) | inside)[..., None], -normal, normal)
    to_world = world.camera_to_world[frames][:, None, None, :3, :3].to(xy.dtype)
    return Surface(local, torch.where(shape == BOX, axis, 0), (to_world @ normal[..., None])[..., 0])


def move(world: World, xy: Tensor, hits: Hits, frames: Tensor, others: Tensor) -> Tensor:
    """Where the points that rays hit in ``frames`` (B,) are in ``others`` (B,).

    Returns:
        Points (B, 3, H, W) in the other cameras' axes. One pose per object leads there straight from this camera,
        put together in double precision: by way of the world, far objects would lose thousandths of a pixel.
    """
    here, there = (_camera_from_objects(world, times) for times in (frames, others))
    rotation, position = _per_pixel((there @ geometry.invert_pose(here)).to(xy.dtype), hits.index)
    points = (_pixel_rays(xy, world.intrinsics) * hits.depth[:, None].clamp(max=FAR)).movedim(1, -1)
    return ((rotation @ points[..., None])[..., 0] + position).movedim(-1, 1)


class Painter:
    """Colours surfaces: photographs read through mip levels, Lambert's law, and the light's colour."""

    def __init__(self, world: World) -> None:
        self.world = world
        level = world.textures
        sizes, starts, texels = [], [], []
        start = 0
        while level.shape[-1] >= 4:
            sizes.append(level.shape[-1])
            starts.append(start)
            texels.append(level.permute(0, 2, 3, 1).reshape(-1, 3))
            start += len(texels[-1])
            level = F.avg_pool2d(level, 2)
        self._sizes, self._starts = (torch.tensor(each, device=world.textures.device) for each in (sizes, starts))
        # Four numbers per texel, of which the last is idle: a row of 16 bytes is read by one load.
        self._texels = F.pad(torch.cat(texels), (0, 1))

    def of(self, world: World) -> "Painter":
        """The same colours for a world that differs in other things than its textures."""
        painter = copy.copy(self)
        painter.world = world
        return painter

    def colors(self, hits: Hits, seen: Surface, frames: Tensor) -> Tensor:
        """RGB (B, H, W, 3) in [0, 1]; black where nothing is hit."""
        world = self.world
        u, v = _texture_coordinates(world, hits, seen)
        density = world.texel_density[hits.index]
        focal = world.intrinsics[0, 0]
        to_camera = -world.camera_to_world[frames][:, None, None, :3, 2].to(density.dtype)
        facing = (seen.normal * to_camera).sum(-1).abs().clamp(min=0.1)
        # Texels under one pixel; the geometric mean of the two directions of a slanted footprint.
        footprint = hits.depth.clamp(max=FAR) / focal * density / facing.sqrt()
        level = footprint.clamp(min=1).log2().clamp(max=len(self._sizes) - 1.001)
        texture = world.faces[hits.index, seen.axis]
        low = level.long()
        share = (level - low)[..., None]
        color = torch.lerp(self._read(texture, u * density, v * density, low),
                           self._read(texture, u * density, v * density, low + 1), share)[..., :3]
        lambert = 0.45 + 0.55 * (seen.normal @ world.light).clamp(min=0)
        color = color * lambert[..., None] * world.gain[frames][:, None, None]
        return color.clamp(0, 1) * hits.depth.isfinite()[..., None]

    def _read(self, texture: Tensor, u: Tensor, v: Tensor, level: Tensor) -> Tensor:
        """Bilinear texels (B, H, W, 4) at (u, v), in texels of level 0, of mirrored textures."""
        size = self._sizes[level]
        start = self._starts[level] + texture * size * size
        scale = size / TEXTURE_SIZE
        u, v = u * scale - 0.5, v * scale - 0.5
        left, top = u.floor(), v.floor()
        right_share, bottom_share = (u - left)[..., None], (v - top)[..., None]
        columns = [_mirror(left.long() + step, size) for step in (0, 1)]
        rows = [start + _mirror(top.long() + step, size) * size for step in (0, 1)]
        upper, lower = (torch.lerp(self._texels[row + columns[0]], self._texels[row + columns[1]], right_share)
                        for row in rows)
        return torch.lerp(upper, lower, bottom_share)


def paint(painter: Painter, xy: Tensor, hits: Hits, seen: Surface, frames: Tensor) -> Tensor:
    """Anti-aliased image (B, 3, H, W): pixels at a change of surface average four rays instead of one."""
    world = painter.world
    image = painter.colors(hits, seen, frames)
    edges = _edges(hits.index * 3 + seen.axis)
    count = int(edges.flatten(1).sum(1).max())
    if count == 0:
        return image.movedim(-1, 1)
    # The same number of pixels for every frame of the batch: shorter lists are filled up with pixels that stay as
    # they are, so that a frame does not depend on its company.
    is_edge, places = edges.flatten(1).byte().sort(dim=1, descending=True, stable=True)
    is_edge, places = is_edge[:, :count, None].bool(), places[:, :count]
    centres = xy.flatten(2).gather(2, places[:, None].expand(-1, 2, -1))
    offsets = torch.tensor(EDGE_RAYS, device=xy.device, dtype=xy.dtype).T
    fine = (centres[:, :, None] + offsets[:, :, None]).flatten(2)[:, :, None]  # (B, 2, 1, 4 * count)
    fine_hits = cast(world, fine, frames)
    colors = painter.colors(fine_hits, surface(world, fine, fine_hits, frames), frames)
    means = colors.reshape(len(frames), len(EDGE_RAYS), count, 3).mean(1)
    pixels, channels = image.flatten(1, 2), places[..., None].expand(-1, -1, 3)
    pixels.scatter_(1, channels, torch.where(is_edge, means, pixels.gather(1, channels)))
    return image.movedim(-1, 1)


# ---------------------------------------------------------------- shapes


def _box(origin: tuple[Tensor, ...], direction: tuple[Tensor, ...], half: Tensor, outline: Tensor,
         hollow: bool) -> Tensor:
    """Slabs: the ray is inside the box from the last entry to the first exit."""
    entry, exit_ = None, None
    for o, d, a in zip(origin, direction, half):
        inverse = 1 / d
        first, second = (-a - o) * inverse, (a - o) * inverse
        low, high = torch.minimum(first, second), torch.maximum(first, second)
        entry = low if entry is None else torch.maximum(entry, low)
        exit_ = high if exit_ is None else torch.minimum(exit_, high)
    return _first(entry, exit_, entry <= exit_, hollow)


def _ellipsoid(origin: tuple[Tensor, ...], direction: tuple[Tensor, ...], half: Tensor, outline: Tensor,
               hollow: bool) -> Tensor:
    """The unit sphere in scaled axes: |o + t d|^2 = 1."""
    o = [x / a for x, a in zip(origin, half)]
    d = [x / a for x, a in zip(direction, half)]
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    b = (o[0] * d[0] + o[1] * d[1] + o[2] * d[2]) / a
    c = (o[0] * o[0] + o[1] * o[1] + o[2] * o[2] - 1) / a
    root = b * b - c
    length = root.clamp(min=0).sqrt()
    return _first(-b - length, -b + length, root >= 0, hollow)


def _card(origin: tuple[Tensor, ...], direction: tuple[Tensor, ...], half: Tensor, outline: Tensor,
          hollow: bool) -> Tensor:
    """The plane z = 0 inside a star-shaped outline: radius 1 + sum of harmonics, at most 1 in the scaled axes."""
    depth = -origin[2] / direction[2]
    x = (origin[0] + depth * direction[0]) / half[0]
    y = (origin[1] + depth * direction[1]) / half[1]
    angle = torch.atan2(y, x)
    radius = torch.ones_like(angle)
    for harmonic, (cosine, sine) in enumerate(outline.T, start=2):
        radius = radius + cosine * torch.cos(harmonic * angle) + sine * torch.sin(harmonic * angle)
    radius = radius / (1 + outline.abs().sum())
    inside = (x * x + y * y <= radius * radius) & (depth > NEAR)
    return torch.where(inside, depth, torch.inf)


_INTERSECT = {BOX: _box, ELLIPSOID: _ellipsoid, CARD: _card}


def _first(entry: Tensor, exit_: Tensor, meets: Tensor, hollow: bool) -> Tensor:
    """Depth of the visible side of a convex solid: its entry, or its exit where it is hollow."""
    depth = exit_ if hollow else entry
    return torch.where(meets & (depth > NEAR), depth, torch.inf)


# ---------------------------------------------------------------- parts


def _pixel_rays(xy: Tensor, intrinsics: Tensor) -> Tensor:
    """Directions (B, 3, H, W) in camera axes with z = 1, so that the ray's parameter is the depth."""
    x = (xy[:, 0] - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (xy[:, 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    return torch.stack([x, y, torch.ones_like(x)], dim=1)


def _camera_from_objects(world: World, frames: Tensor) -> Tensor:
    """Poses (B, O, 4, 4) float64 of all objects in the cameras of ``frames``."""
    camera_from_world = geometry.invert_pose(world.camera_to_world[frames])
    return camera_from_world[:, None] @ world.object_to_world[:, frames].transpose(0, 1)


def _per_pixel(poses: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations (B, H, W, 3, 3) and positions (B, H, W, 3) of the objects seen, from poses (B, O, 4, 4)."""
    batch, count = poses.shape[:2]
    place = index + count * torch.arange(batch, device=index.device)[:, None, None]
    rows = F.embedding(place, poses[:, :, :3].reshape(-1, 12)).unflatten(-1, (3, 4))
    return rows[..., :3], rows[..., 3]


class _Spans(NamedTuple):
    """Least and greatest x and y of the rays in each row (2, H) and in each column (2, W)."""

    row_low: Tensor
    row_high: Tensor
    column_low: Tensor
    column_high: Tensor


def _spans(xy: Tensor) -> _Spans:
    return _Spans(xy.amin((0, 3)), xy.amax((0, 3)), xy.amin((0, 2)), xy.amax((0, 2)))


def _window(world: World, number: int, camera_from_object: Tensor, spans: _Spans) -> tuple[slice, slice]:
    """Rows and columns of the rays that can meet an object's bounding box in any frame of the batch."""
    everything = slice(0, spans.row_low.shape[1]), slice(0, spans.column_low.shape[1])
    nothing = slice(0, 0), slice(0, 0)
    if world.hollow[number]:
        return everything
    corners = (_CORNERS.to(spans.row_low) * world.half_size[number]).T
    corners = camera_from_object[:, :3, :3] @ corners + camera_from_object[:, :3, 3:]
    nearest, farthest = float(corners[:, 2].min()), float(corners[:, 2].max())
    if nearest <= NEAR:
        return nothing if farthest <= NEAR else everything
    pixels = (world.intrinsics @ corners)[:, :2] / corners[:, 2:]
    low, high = pixels.amin(-1) - 1, pixels.amax(-1) + 1  # (B, 2)
    # Rays that leave the frame are not asked about, so what lies wholly outside of it is no concern.
    frame = torch.tensor([world.size[1], world.size[0]], device=low.device)
    if bool(((high < 0) | (low > frame)).any(dim=1).all()):
        return nothing
    low, high = low.amin(0)[:, None], high.amax(0)[:, None]
    rows = ((spans.row_high >= low) & (spans.row_low <= high)).all(0).nonzero()
    columns = ((spans.column_high >= low) & (spans.column_low <= high)).all(0).nonzero()
    if len(rows) == 0 or len(columns) == 0:
        return nothing
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _texture_coordinates(world: World, hits: Hits, seen: Surface) -> tuple[Tensor, Tensor]:
    """Metres along the surface (B, H, W) each: the two axes of a box face or card, two angles of an ellipsoid."""
    x, y, z = seen.local.unbind(-1)
    u = torch.where(seen.axis == 0, z, x)
    v = torch.where(seen.axis == 1, z, y)
    shape = torch.tensor(world.shape, device=x.device)[hits.index]
    a, b, c = world.half_size[hits.index].unbind(-1)
    round_ = shape == ELLIPSOID
    u = torch.where(round_, torch.atan2(x / a, z / c) * a, torch.where(shape == CARD, x, u))
    v = torch.where(round_, torch.asin((y / b).clamp(-1, 1)) * b, v)
    return u, v


def _mirror(position: Tensor, size: Tensor) -> Tensor:
    """Integer positions folded into 0 .. size - 1 so that a texture continues as its mirror image."""
    folded = position.remainder(2 * size)
    return torch.where(folded >= size, 2 * size - 1 - folded, folded)


def _edges(index: Tensor) -> Tensor:
    """Pixels (B, H, W) bool with a 4-neighbour of another index."""
    edges = torch.zeros_like(index, dtype=torch.bool)
    right, down = index[..., 1:] != index[..., :-1], index[:, 1:] != index[:, :-1]
    edges[..., 1:] |= right
    edges[..., :-1] |= right
    edges[:, 1:] |= down
    edges[:, :-1] |= down
    return edges
