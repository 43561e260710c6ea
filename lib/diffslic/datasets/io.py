"""Images, labels, flow and depth in files: the only place where they are opened.

Every reader names the file in its error, every writer writes the whole file or nothing.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor

from diffslic.files import written_whole

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".ppm", ".pgm", ".webp", ".bmp", ".tif", ".tiff")
CAMERA_FORMATS = ("JPEG", "MPO")  # what says how the camera was held; a png may say so after its pixels, too late
UNKNOWN_FLOW = 1e9     # a .flo value beyond this means "not known" (Middlebury's format)
FLO_MAGIC = b"PIEH"    # the float 202021.25 in little endian
KITTI_UNIT = 64        # levels per pixel, zero flow at 32768 (KITTI's format)


class FlowField(NamedTuple):
    """A flow file's content."""

    flow: Tensor    # (2, H, W) float32 pixels, as stored: the unknown of a .flo keeps its huge value
    valid: Tensor   # (H, W) bool: the flow is known here


# ---------------------------------------------------------------- reading files


def _bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None


# ---------------------------------------------------------------- images


@contextmanager
def _opened(path: str | Path) -> Iterator[ImageFile.ImageFile]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise FileNotFoundError(f"no image {path}") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: a folder, expected an image file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow says SyntaxError for broken chunks
        raise ValueError(f"{path}: not a whole image file ({str(error).splitlines()[0]})") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """(rows, columns) of an image from its header; what a camera turned on its side counts as turned."""
    with _opened(path) as image:
        columns, rows = image.size
        turned = image.format in CAMERA_FORMATS and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (columns, rows) if turned else (rows, columns)


def read_image(path: str | Path) -> Tensor:
    """Any image as RGB: grey is repeated, palettes are looked up, alpha is dropped, a camera's turn is applied.

    Returns:
        (3, H, W) float32 in [0, 1]; 8 bits are divided by 255, 16 bits grey by 65535.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a whole image.
    """
    with _opened(path) as image:
        if image.mode == "F":
            raise ValueError(f"{path}: expected an image of 8 or 16 bits, got floating point values")
        if image.format in CAMERA_FORMATS:
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits grey
            grey = torch.from_numpy(np.asarray(image).astype(np.float32)) / 65535
            return grey.expand(3, -1, -1).contiguous()
        levels = torch.from_numpy(np.array(image.convert("RGB")))
    return levels.permute(2, 0, 1).contiguous().float() / 255


def write_image(path: str | Path, image: Tensor) -> None:
    """Write (3, H, W) RGB or (4, H, W) RGBA in [0, 1] with 8 bits; the suffix names the format.

    Values outside are clamped.
    """
    if image.ndim != 3 or image.shape[0] not in (3, 4):
        raise ValueError(f"{path}: an image to write must be (3, H, W) or (4, H, W), got {tuple(image.shape)}")
    with written_whole(path) as temporary:
        _with_8_bits(image).save(temporary, quality=95)


def png_bytes(image: Tensor) -> bytes:
    """The bytes of a png file of (3, H, W) RGB in [0, 1]."""
    file = BytesIO()
    _with_8_bits(image).save(file, "png")
    return file.getvalue()


def _with_8_bits(image: Tensor) -> Image.Image:
    levels = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(levels))


# ---------------------------------------------------------------- labels


def _voc_palette() -> np.ndarray:
    """(256, 3) uint8 colours of PASCAL VOC and DAVIS: bits 3 i + c of the id fill channel c from its high end."""
    ids, palette = np.arange(256), np.zeros((256, 3), np.uint8)
    for i in range(8):
        for c in range(3):
            palette[:, c] |= ((ids >> (3 * i + c) & 1) << (7 - i)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()


def read_labels(path: str | Path) -> Tensor:
    """(H, W) int64 ids as the file stores them: palette indices, grey levels, or colours of the VOC palette.

    Alpha is ignored. Binary masks keep their levels, e.g. 0 and 255.

    Raises:
        FileNotFoundError, ValueError: no such file, not a whole image, or colours outside the palette.
    """
    with _opened(path) as image:
        if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
            return torch.from_numpy(np.asarray(image).astype(np.int64))
        if image.mode in ("LA", "PA"):
            return torch.from_numpy(np.asarray(image)[..., 0].astype(np.int64))
        if image.mode not in ("RGB", "RGBA"):
            raise ValueError(f"{path}: labels must be a palette, grey or RGB image, got mode {image.mode}")
        colours = np.asarray(image)[..., :3].astype(np.int64) @ [65536, 256, 1]
    known = PALETTE.astype(np.int64) @ [65536, 256, 1]
    order = np.argsort(known)
    ids = order[np.searchsorted(known, colours, sorter=order).clip(max=255)]
    if (known[ids] != colours).any():
        stranger = colours[known[ids] != colours][0]
        raise ValueError(f"{path}: colour #{stranger:06x} of this RGB mask is not in the VOC palette; "
                         "store ids in a palette or grey image")
    return torch.from_numpy(ids)


def write_labels(path: str | Path, labels: Tensor) -> None:
    """Write (H, W) ids 0..255 as a png with the VOC palette; 255 (void) is (224, 224, 192)."""
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(f"{path}: labels to write must be (H, W) integers, got {tuple(labels.shape)} {labels.dtype}")
    if labels.min() < 0 or labels.max() > 255:
        raise ValueError(f"{path}: a palette png holds ids 0..255, got {int(labels.min())}..{int(labels.max())}")
    image = Image.fromarray(labels.detach().cpu().numpy().astype(np.uint8))
    image.putpalette(PALETTE.tobytes())
    with written_whole(path) as temporary:
        image.save(temporary, format="png")


def write_segments(path: str | Path, labels: Tensor) -> None:
    """Write (H, W) ids 0..65535, such as superpixels, as a grey png of 16 bits; :func:`read_labels` reads it."""
    if labels.ndim != 2 or labels.is_floating_point():
        raise ValueError(f"{path}: labels to write must be (H, W) integers, got {tuple(labels.shape)} {labels.dtype}")
    if labels.min() < 0 or labels.max() > 65535:
        raise ValueError(f"{path}: 16 bits hold ids 0..65535, got {int(labels.min())}..{int(labels.max())}")
    with written_whole(path) as temporary:
        Image.fromarray(labels.detach().cpu().numpy().astype(np.uint16)).save(temporary, format="png")


# ---------------------------------------------------------------- flow


def read_flow(path: str | Path) -> FlowField:
    """Flow from .flo, .pfm, .npy (H, W, 2) or a KITTI png of 16 bits, told apart by the suffix.

    Raises:
        FileNotFoundError, ValueError: no such file, another suffix, or a content that is not what the suffix says.
    """
    readers = {".flo": _read_flo, ".pfm": _read_flow_pfm, ".npy": _read_flow_npy}
    suffix = Path(path).suffix.lower()
    if suffix == ".png":
        levels = torch.from_numpy(read_levels(path).astype(np.int32)).permute(2, 0, 1)
        valid = levels[2] > 0
        return FlowField(torch.where(valid, (levels[:2] - 32768).float() / KITTI_UNIT, 0.0), valid)
    if suffix not in readers:
        raise ValueError(f"{path}: flow is read from .flo, .pfm, .npy or .png, not from {suffix!r}")
    flow = torch.from_numpy(readers[suffix](path).astype(np.float32).transpose(2, 0, 1).copy())
    return FlowField(flow, (flow.abs() <= UNKNOWN_FLOW).all(0))  # NaN is not <=, so it is unknown as well


def write_flo(path: str | Path, flow: Tensor) -> None:
    """Write flow (2, H, W) in pixels as Middlebury .flo."""
    pixels = _flow_to_write(path, flow)
    height, width, _ = pixels.shape
    with written_whole(path) as temporary:
        temporary.write_bytes(FLO_MAGIC + struct.pack("<ii", width, height) + pixels.tobytes())


def write_kitti_png(path: str | Path, flow: Tensor, valid: Tensor | None = None) -> None:
    """Write flow (2, H, W) as KITTI's png of 16 bits: steps of 1/64 px, rounded to nearest.

    Args:
        valid: (H, W) bool, by default every pixel. What is not valid is stored as zeros.

    Raises:
        ValueError: a valid pixel is outside the format's range, -512 to 511.984 px.
    """
    pixels = _flow_to_write(path, flow)
    known = np.ones(pixels.shape[:2], bool) if valid is None else valid.cpu().numpy().astype(bool)
    if known.shape != pixels.shape[:2]:
        raise ValueError(f"{path}: valid is {known.shape} but the flow is {pixels.shape[:2]} (rows, columns)")
    levels = np.floor(np.where(known[..., None], pixels, 0).astype(np.float64) * KITTI_UNIT + 0.5) + 32768
    if not ((levels >= 0) & (levels <= 65535)).all():
        raise ValueError(f"{path}: a KITTI flow png holds -512 to 511.984 px, got up to {np.abs(pixels[known]).max()}")
    raw = np.concatenate([levels, np.ones_like(levels[..., :1])], -1) * known[..., None]
    with written_whole(path) as temporary:
        temporary.write_bytes(_encode_rgb16(raw.astype(np.uint16)))


def _flow_to_write(path: str | Path, flow: Tensor) -> np.ndarray:
    if flow.ndim != 3 or flow.shape[0] != 2:
        raise ValueError(f"{path}: flow to write must be (2, H, W), got {tuple(flow.shape)}")
    return np.ascontiguousarray(flow.detach().cpu().permute(1, 2, 0).numpy(), dtype="<f4")


def _read_flo(path: str | Path) -> np.ndarray:
    content = _bytes(path)
    if content[:4] != FLO_MAGIC:
        raise ValueError(f"{path}: a .flo file begins with {FLO_MAGIC!r} (202021.25), got {content[:4]!r}")
    if len(content) < 12:
        raise ValueError(f"{path}: the .flo header has 12 bytes, the file has {len(content)}")
    width, height = struct.unpack("<ii", content[4:12])
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise ValueError(f"{path}: a .flo file of {width}x{height} pixels has {12 + 8 * width * height} bytes, "
                         f"got {len(content)}")
    return np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2)


def _read_flow_pfm(path: str | Path) -> np.ndarray:
    field = read_pfm(path)
    if field.shape[0] != 3:
        raise ValueError(f"{path}: flow in a .pfm has three channels (u, v, unused), got {field.shape[0]}")
    return field[:2].permute(1, 2, 0).numpy()


def _read_flow_npy(path: str | Path) -> np.ndarray:
    field = read_npy(path)
    if field.ndim != 3 or field.shape[2] != 2:
        raise ValueError(f"{path}: flow in a .npy is (H, W, 2), got {field.shape}")
    return field


def read_levels(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint16 levels of a png with 16 bits, red first.

    Raises:
        FileNotFoundError, ValueError: no such file, not a whole one, or another kind of image.
    """
    # Pillow keeps 8 of the 16 bits, so its decoder runs for the high and the low ones.
    def half(raw_mode: str) -> np.ndarray:
        with _opened(path) as image:
            if image.format != "PNG" or image.tile[0].args != "RGB;16B":
                raise ValueError(f"{path}: flow in a png has three channels of 16 bits (KITTI), "
                                 f"got a {image.format} of mode {image.mode}")
            image.tile = [image.tile[0]._replace(args=raw_mode)]
            return np.asarray(image).astype(np.uint16)
    return half("RGB;16B") * np.uint16(256) + half("RGB;16L")


def _encode_rgb16(levels: np.ndarray) -> bytes:
    """A png of 16-bit RGB (which Pillow cannot write): every row is stored as its difference to the row above."""
    height, width, _ = levels.shape
    rows = levels.astype(">u2").view(np.uint8).reshape(height, width * 6)
    differences = rows - np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), differences], axis=1)  # filter type 2 is "up"
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(filtered.tobytes()), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks.items())


# ---------------------------------------------------------------- pfm, npy, depth


def read_pfm(path: str | Path) -> Tensor:
    """(C, H, W) float32 of a portable float map, C = 1 ("Pf") or 3 ("PF"); row 0 is the top one."""
    content = _bytes(path)
    header = re.match(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)\r?\n", content)
    if header is None:
        raise ValueError(f"{path}: a .pfm file begins with PF or Pf, its size and scale, got {content[:16]!r}")
    channels, width, height = 3 if header[1] == b"PF" else 1, int(header[2]), int(header[3])
    body = content[header.end():]
    if len(body) != 4 * channels * width * height:
        raise ValueError(f"{path}: {width}x{height} pixels of {channels} floats are {4 * channels * width * height} "
                         f"bytes, got {len(body)}")
    order = "<" if float(header[4]) < 0 else ">"
    rows = np.frombuffer(body, order + "f4").reshape(height, width, channels)[::-1]  # stored from the bottom up
    return torch.from_numpy(rows.astype(np.float32).transpose(2, 0, 1).copy())


def write_pfm(path: str | Path, values: Tensor) -> None:
    """Write (1, H, W) or (3, H, W) as a little-endian portable float map."""
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ValueError(f"{path}: a .pfm holds (1, H, W) or (3, H, W), got {tuple(values.shape)}")
    channels, height, width = values.shape
    rows = np.ascontiguousarray(values.detach().cpu().permute(1, 2, 0).numpy()[::-1], dtype="<f4")
    with written_whole(path) as temporary:
        header = f"{'PF' if channels == 3 else 'Pf'}\n{width} {height}\n-1.0\n".encode()
        temporary.write_bytes(header + rows.tobytes())


def read_npy(path: str | Path) -> np.ndarray:
    """The array of a .npy file; Python objects are refused, so no code runs from the file."""
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a whole .npy array ({str(error).splitlines()[0]})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: expected one .npy array, got an archive")
    return array


def write_npy(path: str | Path, array: np.ndarray) -> None:
    """Write an array as .npy."""
    with written_whole(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_depth(path: str | Path, png_unit: float = 0.001) -> Tensor:
    """Depth from .npy (H, W), .pfm of one channel, a grey png of 16 bits, or a png of four channels.

    Four channels hold the bytes of a float32, low to high, as blue, green, red and alpha (TartanAir v2).

    Args:
        png_unit: metres per level of a grey png: 0.001 for sensors that store millimetres, 1/256 for KITTI.

    Returns:
        (1, H, W) float32 metres; a grey png's level 0 means "not measured" and stays 0.
    """
    readers: dict[str, Callable[[str | Path], np.ndarray]] = {
        ".npy": read_npy, ".pfm": lambda p: read_pfm(p).numpy(), ".png": lambda p: _read_depth_png(p, png_unit)}
    suffix = Path(path).suffix.lower()
    if suffix not in readers:
        raise ValueError(f"{path}: depth is read from .npy, .pfm or .png, not from {suffix!r}")
    depth = readers[suffix](path)
    if depth.ndim == 2:
        depth = depth[None]
    if depth.ndim != 3 or depth.shape[0] != 1:
        raise ValueError(f"{path}: depth is (H, W), got {depth.shape}")
    return torch.from_numpy(depth.astype(np.float32))


def _read_depth_png(path: str | Path, unit: float) -> np.ndarray:
    with _opened(path) as image:
        if image.mode == "RGBA":
            depth = np.ascontiguousarray(np.asarray(image)[..., [2, 1, 0, 3]]).view("<f4")[..., 0]
            if not (np.isfinite(depth) & (depth >= 0)).all():
                raise ValueError(f"{path}: the four channels are not the bytes of depth: a picture?")
            return depth
    return read_labels(path).numpy() * unit


def check_size(path: str | Path, values: Tensor, size: tuple[int, int], owner: str) -> Tensor:
    """``values`` (..., H, W) again, once its (rows, columns) equal those of its ``owner``, e.g. "clip 'bear'".

    Raises:
        ValueError: names the file and both sizes.
    """
    if tuple(values.shape[-2:]) != tuple(size):
        raise ValueError(f"{path}: expected {size[0]}x{size[1]} (rows x columns) as {owner} has, "
                         f"got {values.shape[-2]}x{values.shape[-1]}")
    return values
