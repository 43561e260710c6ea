"""Collages: pieces of photographs laid over one another, each moving and bending in its own way, with exact flow.

What ray-cast scenes lack they give, cheaply: hundreds of different pictures, motion from a fraction of a pixel to a
third of the frame, outlines of every kind, and things that bend. The idea is that of FlyingChairs (Dosovitskiy et
al., ICCV 2015).

A pixel q of the second image shows what its piece has at B(q) = A^-1 (q - t) + d(q) in the first: an affine motion
and a sum of waves d. The flow of a pixel p of the first image is q - p with B(q) = p; the waves are flat enough
(see :data:`STEEPEST`) that repeating q = A (p - d(q)) + t converges.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffslic import geometry

WAVES = 3  # per piece
STEEPEST = 0.3  # the derivative of all waves together: each repetition leaves at most about this share of the error
REPETITIONS = 8
HARMONICS = 5  # of an outline
FASTEST = 0.35  # the longest shift, as a share of the diagonal
EDGE = 0.7  # pixels over which a piece's edge fades


class FramePairs(NamedTuple):
    """B pairs of images and where the pixels of the first go."""

    image1: Tensor  # (B, 3, H, W) RGB in [0, 1]
    image2: Tensor  # (B, 3, H, W)
    flow: Tensor  # (B, 2, H, W) pixels, of hidden pixels too
    pieces: Tensor  # (B, H, W) int64: which piece the first image shows, 0 the ground


class _Pieces(NamedTuple):
    """M pieces in the coordinates of the first image, x first, in pixels from its middle."""

    matrix: Tensor  # (M, 2, 2) A
    shift: Tensor  # (M, 2) t
    waves: Tensor  # (M, WAVES, 2) radians per pixel
    phase: Tensor  # (M, WAVES)
    height: Tensor  # (M, WAVES, 2) pixels
    centre: Tensor  # (M, 2)
    radius: Tensor  # (M, 2) half the length along the piece's own axes
    turn: Tensor  # (M, 2, 2) image axes to the piece's own
    outline: Tensor  # (M, 2, HARMONICS) cosine and sine coefficients of the radius, as shares


def collages(photographs: list[Tensor], batch: int, size: tuple[int, int], rng: np.random.Generator,
             n_pieces: int = 6, device: torch.device | str = "cpu") -> FramePairs:
    """Draw pairs of images, anew with every call.

    Args:
        photographs: (3, h, w) bytes each; see :func:`diffslic.datasets.photographs.photographs`.
        batch: B. size: (rows, columns) of the images.
        rng: where everything random comes from.
        n_pieces: at most as many on the ground, three at least.
        device: where they are drawn.

    Returns:
        :class:`FramePairs`.
    """
    if n_pieces < 3 or not photographs:
        raise ValueError(f"a collage needs photographs and at least 3 pieces, got {len(photographs)} and {n_pieces}")
    counts = rng.integers(3, n_pieces + 1, size=batch)
    layers = int(counts.max()) + 1
    drawn = [_random_pieces(int(count), layers, size, rng) for count in counts]
    pieces = _Pieces(*(torch.from_numpy(np.concatenate(field)).float().to(device) for field in zip(*drawn)))
    textures = _Textures(photographs, batch * layers, size, rng, device)
    middle = torch.tensor([(size[1] - 1) / 2, (size[0] - 1) / 2], device=device)[:, None]
    grid = geometry.pixel_grid(*size, device).flatten(1) - middle  # (2, N)
    here = grid.expand(batch * layers, -1, -1)
    image1, top = _paint(pieces, textures, here, layers)
    image2, _ = _paint(pieces, textures, _backwards(pieces, here), layers)
    seen = top + layers * torch.arange(batch, device=device)[:, None]  # (B, N) the row of each pixel's piece
    flow = _forwards(pieces, grid.expand(batch, -1, -1), seen) - grid
    return FramePairs(*(field.unflatten(-1, size) for field in (image1, image2, flow, top)))


# ---------------------------------------------------------------- motion


def _backwards(pieces: _Pieces, there: Tensor) -> Tensor:
    """B(q): positions (M, 2, N) in the first image of what the second shows at ``there``."""
    angle = pieces.waves @ there + pieces.phase[..., None]
    bent = pieces.height.transpose(1, 2) @ angle.sin()
    return pieces.matrix.inverse() @ (there - pieces.shift[..., None]) + bent


def _forwards(pieces: _Pieces, here: Tensor, seen: Tensor) -> Tensor:
    """The q with B(q) = ``here`` (B, 2, N), for the piece ``seen`` (B, N) at each place."""
    # One plane (B, N) per number: short axes at the end would take most of the time.
    matrix, shift, waves, phase, height = (field.flatten(1)[seen].unbind(-1) for field in pieces[:5])
    bent_x, bent_y = torch.zeros_like(here).unbind(1)
    for _ in range(REPETITIONS):
        straight_x, straight_y = here[:, 0] - bent_x, here[:, 1] - bent_y
        x = matrix[0] * straight_x + matrix[1] * straight_y + shift[0]
        y = matrix[2] * straight_x + matrix[3] * straight_y + shift[1]
        swings = [(waves[2 * i] * x + waves[2 * i + 1] * y + phase[i]).sin() for i in range(WAVES)]
        bent_x, bent_y = (sum(height[2 * i + axis] * swing for i, swing in enumerate(swings)) for axis in (0, 1))
    return torch.stack([x, y], dim=1)


# ---------------------------------------------------------------- looks


def _paint(pieces: _Pieces, textures: "_Textures", place: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Colours (B, 3, N) of the pieces over one another, and the number (B, N) of the one that shows most."""
    cover = _cover(pieces, place).unflatten(0, (-1, layers))
    cover[:, 0] = 1  # the ground has no edge
    # What each layer leaves visible of those below: a layer's share is its cover times what all above let through.
    through = (1 - cover).flip(1).cumprod(1).flip(1)
    share = cover * torch.cat([through[:, 1:], torch.ones_like(cover[:, :1])], dim=1)
    colors = textures(place).unflatten(0, (-1, layers))
    return (colors * share[:, :, None]).sum(1), share.max(1).indices  # as argmax, which is slower


def _cover(pieces: _Pieces, place: Tensor) -> Tensor:
    """How much of the pixels at ``place`` (M, 2, N), in the first image, the pieces cover: (M, N) in [0, 1]."""
    own = pieces.turn @ (place - pieces.centre[..., None])
    x, y = (own / pieces.radius[..., None]).unbind(1)
    distance = torch.hypot(x, y).clamp(min=1e-6)
    cos, sin = x / distance, y / distance
    cos_n, sin_n, edge = cos, sin, torch.ones_like(cos)
    for cosine, sine in pieces.outline.permute(2, 1, 0)[..., None]:
        # The next multiple of the angle: cos(a + b) and sin(a + b), for a tenth of the time of the functions.
        cos_n, sin_n = cos_n * cos - sin_n * sin, sin_n * cos + cos_n * sin
        edge = edge + cosine * cos_n + sine * sin_n
    return ((edge - distance) * pieces.radius.amin(1)[:, None] / EDGE + 0.5).clamp(0, 1)


class _Textures:
    """A window of a random photograph per piece: its place, size, direction, tint and contrast."""

    def __init__(self, photographs: list[Tensor], count: int, size: tuple[int, int], rng: np.random.Generator,
                 device: torch.device | str) -> None:
        chosen = [photographs[i] for i in rng.integers(len(photographs), size=count)]
        # Reading bytes of several sizes at once: each photograph is cut or repeated to one size.
        rows, columns = size[0] * 5 // 4, size[1] * 5 // 4
        self.images = torch.stack([_window(photo, rows, columns, rng) for photo in chosen]).to(device).float() / 255
        contrast = np.where(rng.random(count) < 0.2, rng.uniform(0.02, 0.2, count), rng.uniform(0.5, 1.2, count))
        gain = torch.tensor(contrast[:, None] * rng.uniform(0.7, 1.2, (count, 3)), dtype=torch.float32, device=device)
        base = torch.tensor(rng.uniform(0.05, 0.75, (count, 1)) + rng.normal(0, 0.06, (count, 3)), dtype=torch.float32,
                            device=device)
        mean = self.images.mean((2, 3))
        self.images = ((self.images - mean[..., None, None]) * gain[..., None, None]
                       + base[..., None, None]).clamp(0, 1)
        turn = rng.uniform(-math.pi, math.pi, count) * (rng.random(count) < 0.3)
        scale = 2 ** rng.uniform(-0.8, 0.2, count)
        cos, sin = scale * np.cos(turn), scale * np.sin(turn)
        self.matrix = torch.tensor(np.stack([cos, -sin, sin, cos], axis=1).reshape(-1, 2, 2), dtype=torch.float32,
                                   device=device)
        self.offset = torch.tensor(rng.uniform(-0.1, 0.1, (count, 2, 1)) * [[columns], [rows]], dtype=torch.float32,
                                   device=device)

    def __call__(self, place: Tensor) -> Tensor:
        """Colours (M, 3, N) at ``place`` (M, 2, N), mirrored beyond the window's edges."""
        rows, columns = self.images.shape[-2:]
        position = self.matrix @ place + self.offset
        grid = 2 * position / torch.tensor([[columns], [rows]], device=place.device)
        return F.grid_sample(self.images, grid.transpose(1, 2)[:, None], padding_mode="reflection",
                             align_corners=False)[:, :, 0]


def _window(photograph: Tensor, rows: int, columns: int, rng: np.random.Generator) -> Tensor:
    """A random window (3, rows, columns) of bytes; a photograph that is smaller is mirrored and repeated."""
    _, height, width = photograph.shape
    y, x = (torch.arange(length) + int(rng.integers(2 * side)) for length, side in ((rows, height), (columns, width)))
    y, x = (torch.where(i % (2 * side) < side, i % side, side - 1 - i % side) for i, side in ((y, height), (x, width)))
    return photograph[:, y][:, :, x]


# ---------------------------------------------------------------- chance


def _random_pieces(count: int, layers: int, size: tuple[int, int], rng: np.random.Generator) -> _Pieces:
    """Motion and outlines of the ground and ``count`` pieces; what is missing to ``layers`` lies outside the frame."""
    diagonal = math.hypot(*size)
    # One pace per pair: slow clips in which fractions of a pixel count, and fast ones; what is fast may yet pass
    # before a ground that all but rests.
    pace = 2 ** rng.uniform(-2, math.log2(0.12 * diagonal))
    steady = 0.8 * pace * rng.random() ** 2
    camera, camera_shift = _random_motion(steady, 2.5 * steady / diagonal, rng)
    matrix, shift = _random_motion(pace * 2 ** rng.uniform(-2, 0.5, layers), 3 * pace / diagonal, rng)
    matrix[0], shift[0] = np.eye(2), 0
    # The camera moves everything. A piece turns about its own centre.
    centre = rng.uniform(-0.5, 0.5, (layers, 2)) * [size[1], size[0]]
    own = centre + shift - np.einsum("mij,mj->mi", matrix, centre)
    matrix, shift = camera @ matrix, own @ camera.T + camera_shift
    longest = np.linalg.norm(shift, axis=1, keepdims=True) / (FASTEST * diagonal)
    shift = shift / np.maximum(longest, 1)

    length = np.exp(rng.uniform(math.log(50), math.log(diagonal), (layers, WAVES, 1)))  # of the waves, pixels
    direction = rng.normal(size=(layers, WAVES, 2))
    waves = 2 * math.pi / length * direction / np.linalg.norm(direction, axis=-1, keepdims=True)
    steep = rng.uniform(0, STEEPEST, (layers, WAVES, 1)) / WAVES * (rng.random((layers, 1, 1)) < 0.6)
    across = rng.normal(size=(layers, WAVES, 2))
    height = across / np.linalg.norm(across, axis=-1, keepdims=True) * np.minimum(steep * length / (2 * math.pi),
                                                                                  pace / 2)

    radius = np.exp(rng.uniform(math.log(0.025), math.log(0.3), (layers, 1))) * diagonal
    radius = radius * np.exp(rng.normal(0, 0.4, (layers, 2)) * np.where(rng.random((layers, 1)) < 0.3, 2.5, 1))
    turn = rng.uniform(-math.pi, math.pi, layers)
    cos, sin = np.cos(turn), np.sin(turn)
    ragged = rng.uniform(0, 0.3, (layers, 1, 1))
    outline = rng.normal(size=(layers, 2, HARMONICS)) * ragged / np.arange(1, HARMONICS + 1)
    centre[count + 1:] = 100 * diagonal
    return _Pieces(matrix, shift, waves, rng.uniform(0, 2 * math.pi, (layers, WAVES)), height, centre, radius,
                   np.stack([cos, sin, -sin, cos], axis=1).reshape(-1, 2, 2), outline)


def _random_motion(pace: float | np.ndarray, spread: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Matrices (..., 2, 2) near one and shifts (..., 2) of about ``pace`` pixels: turns, scales and shears."""
    shape = np.shape(pace)
    turn = (spread * rng.normal(size=shape)).clip(-0.5, 0.5)
    grow = (0.5 * spread * rng.normal(size=shape)).clip(-0.3, 0.3)
    cos, sin = np.exp(grow) * np.cos(turn), np.exp(grow) * np.sin(turn)
    matrix = np.stack([cos, -sin, sin, cos], axis=-1).reshape(*shape, 2, 2)
    matrix = matrix + (0.2 * spread * rng.normal(size=matrix.shape)).clip(-0.1, 0.1)
    return matrix, rng.normal(size=(*shape, 2)) * np.expand_dims(pace, -1)
