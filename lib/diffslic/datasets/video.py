"""Video files, one frame at a time in both directions: ``Video`` decodes, ``write_video`` encodes."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor

from diffslic.files import written_whole

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")
FPS = 24  # frames per second of films of a video that says nothing of its own
# Without it the decoder repeats and drops frames until a variable frame rate (phones) looks constant.
EVERY_FRAME = ["-fps_mode", "passthrough"]


class Video:
    """A video file as frames by number.

    Reading forwards decodes each frame once; a step backwards starts again from the first frame. The two newest
    frames are kept, because flow asks for each frame twice. No more than that is ever in memory. A process that
    was forked from the one that opened the decoder starts its own.

    Attributes:
        size: (rows, columns) as displayed.
        fps: frames per second, from the file's header.

    Raises:
        FileNotFoundError, ValueError: no such file, or nothing that can be decoded.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no video file {path}")
        try:
            decoder = imageio_ffmpeg.read_frames(str(self.path), output_params=EVERY_FRAME)
            meta = next(decoder)
            first = next(decoder, None)
            decoder.close()
        except (OSError, RuntimeError, IndexError, StopIteration) as error:
            raise ValueError(f"{path}: not a video that can be decoded ({_reason(error)})") from error
        if first is None:
            raise ValueError(f"{path}: expected a video, got a file without a single frame")
        self.size: tuple[int, int] = (meta["size"][1], meta["size"][0])
        self.fps: float = meta["fps"]
        self._lock = threading.Lock()
        self._restart()

    def count(self) -> int:
        """Number of frames. Headers give a guess at best, so the file is decoded once, in grey to be quick."""
        decoder = imageio_ffmpeg.read_frames(str(self.path), pix_fmt="gray", bits_per_pixel=8,
                                             output_params=EVERY_FRAME)
        next(decoder)  # the header comes first
        return sum(1 for _ in decoder)

    def frame(self, t: int) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1]."""
        with self._lock:
            if self._owner != os.getpid() or (t < self._next and t not in self._newest):
                self._restart()
            while t not in self._newest:
                self._decode_one()
            levels = self._newest[t]
        return torch.from_numpy(levels).permute(2, 0, 1).contiguous().float() / 255

    def _restart(self) -> None:
        self._owner, self._next = os.getpid(), 0
        self._newest: OrderedDict[int, np.ndarray] = OrderedDict()
        self._decoder: Iterator[bytes] | None = None

    def _decode_one(self) -> None:
        if self._decoder is None:
            self._decoder = imageio_ffmpeg.read_frames(str(self.path), output_params=EVERY_FRAME)
            next(self._decoder)  # the header comes first
        content = next(self._decoder, None)
        if content is None:
            raise IndexError(f"{self.path}: the video ends after {self._next} frames")
        self._newest[self._next] = np.frombuffer(bytearray(content), np.uint8).reshape(*self.size, 3)
        self._next += 1
        if len(self._newest) > 2:
            self._newest.popitem(last=False)


def _reason(error: Exception) -> str:
    """The decoder's own last words: its log comes as many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "it has no video stream"


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float = FPS) -> None:
    """Encode frames (3, H, W) RGB in [0, 1], all of one size, as they come; H.264 for a path in .mp4.

    An odd last row or column is repeated once, since the codec wants even sides.

    Raises:
        ValueError: no frames, or a frame of another size.
    """
    with written_whole(path) as temporary:
        encoder, size = None, None
        try:
            for frame in frames:
                size = size or tuple(frame.shape)
                if frame.ndim != 3 or frame.shape[0] != 3 or tuple(frame.shape) != size:
                    raise ValueError(f"{path}: every frame must be (3, H, W) of one size, "
                                     f"got {tuple(frame.shape)} after {size}")
                levels = (frame.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
                levels = np.pad(levels, ((0, levels.shape[0] % 2), (0, levels.shape[1] % 2), (0, 0)), mode="edge")
                if encoder is None:
                    encoder = imageio_ffmpeg.write_frames(str(temporary), levels.shape[1::-1], fps=fps, quality=7,
                                                          macro_block_size=2)
                    encoder.send(None)
                encoder.send(np.ascontiguousarray(levels))
        finally:
            if encoder is not None:
                encoder.close()
        if encoder is None:
            raise ValueError(f"{path}: a video needs at least one frame")
