"""``Clip``: a video with its truths. The one type that every dataset gives."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from diffslic.geometry import resize, resize_intrinsics, resize_labels

Reader = Callable[[int], Tensor]
VOID = 255  # the label of pixels that count for nothing

# Every kind of reader, with how many frames it cannot serve: at the beginning, at the end.
KINDS = {"frame": (0, 0), "labels": (0, 0), "segments": (0, 0), "classes": (0, 0), "annotations": (0, 0),
         "depth": (0, 0), "camera_to_world": (0, 0), "flow": (0, 1), "occlusion": (0, 1), "backward_flow": (1, 0),
         "backward_occlusion": (1, 0), "flow_rgb": (0, 1), "superpixel_labels": (0, 0), "superpixel_vectors": (0, 0)}


@dataclass(frozen=True, repr=False)
class Clip:
    """A video of T frames: a name, a size and one reader per kind of data.

    Nothing is read before a method is called and nothing is kept afterwards. A frame number outside the kind's
    range raises IndexError, a kind that the dataset lacks raises LookupError; both name the clip.

    A dataset builds a clip from functions (composition), so a new dataset needs no new class::

        Clip("bear", (480, 854), {"frame": lambda t: read_image(paths[t])}, length=len(paths))
    """

    name: str
    size: tuple[int, int]              # rows, columns
    readers: Mapping[str, Reader]      # kind -> function of the frame number t, see ``KINDS``
    length: int                        # T
    intrinsics_: Tensor | None = None  # (3, 3); read it through ``intrinsics``
    frame_names: tuple[str, ...] = ()  # stems of the frames' files, for output files of the same name
    fps: float | None = None           # frames per second, where the file says

    def __post_init__(self) -> None:
        unknown = sorted(set(self.readers) - set(KINDS))
        if unknown:
            raise ValueError(f"clip {self.name!r}: unknown reader {unknown[0]!r}, known are {', '.join(KINDS)}")
        if self.length < 1:
            raise ValueError(f"clip {self.name!r}: a clip has at least one frame, got length {self.length}")
        if self.frame_names and len(self.frame_names) != self.length:
            raise ValueError(f"clip {self.name!r}: {len(self.frame_names)} frame names for {self.length} frames")

    def __len__(self) -> int:
        return self.length

    def __repr__(self) -> str:
        rows, columns = self.size
        return f"Clip({self.name!r}, {self.length} frames of {rows}x{columns}: {', '.join(self.readers)})"

    def has(self, kind: str) -> bool:
        """Whether the clip gives ``kind``: the name of a method below, or ``"intrinsics"``."""
        return self.intrinsics_ is not None if kind == "intrinsics" else kind in self.readers

    def frame(self, t: int) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1]."""
        return self._read("frame", t)

    def labels(self, t: int) -> Tensor:
        """(H, W) int64 object ids: 0 background, objects from 1, 255 void."""
        return self._read("labels", t)

    def segments(self, t: int) -> Tensor:
        """(H, W) int64 ids of every visible surface: the truth for superpixels."""
        return self._read("segments", t)

    def classes(self, t: int) -> Tensor:
        """(H, W) int64: what sort of thing each pixel shows, 255 where nobody named one."""
        return self._read("classes", t)

    def annotations(self, t: int) -> Tensor:
        """(A, H, W) int64: what each of A people took for the segments of the frame, numbered from 0."""
        return self._read("annotations", t)

    def flow(self, t: int) -> Tensor:
        """(2, H, W) float32 pixels, frame t to t + 1, t in 0..T-2; NaN where it is not known."""
        return self._read("flow", t)

    def backward_flow(self, t: int) -> Tensor:
        """(2, H, W) float32 pixels, frame t to t - 1, t in 1..T-1."""
        return self._read("backward_flow", t)

    def occlusion(self, t: int) -> Tensor:
        """(H, W) bool: the pixel of frame t is not seen in frame t + 1, t in 0..T-2."""
        return self._read("occlusion", t)

    def backward_occlusion(self, t: int) -> Tensor:
        """(H, W) bool: the pixel of frame t is not seen in frame t - 1, t in 1..T-1."""
        return self._read("backward_occlusion", t)

    def flow_rgb(self, t: int) -> Tensor:
        """(3, H, W) float32 RGB in [0, 1]: the flow as a picture, where a dataset comes with one, t in 0..T-2."""
        return self._read("flow_rgb", t)

    def depth(self, t: int) -> Tensor:
        """(1, H, W) float32 metres along z."""
        return self._read("depth", t)

    def camera_to_world(self, t: int) -> Tensor:
        """(4, 4) pose of the camera; camera axes are x right, y down, z forward."""
        return self._read("camera_to_world", t)

    def superpixel_labels(self, t: int) -> Tensor:
        """(H, W) int64: the superpixel 0..S-1 of each pixel, from a cache."""
        return self._read("superpixel_labels", t)

    def superpixel_vectors(self, t: int) -> Tensor:
        """(S, C) float32: one feature vector per superpixel, from a cache."""
        return self._read("superpixel_vectors", t)

    @property
    def intrinsics(self) -> Tensor:
        """(3, 3) camera matrix in pixels."""
        if self.intrinsics_ is None:
            raise LookupError(f"clip {self.name!r} has no intrinsics, it has {', '.join(self.readers)}")
        return self.intrinsics_

    def frame_name(self, t: int) -> str:
        """The stem of frame t's file; five digits where frames do not come from files."""
        return self.frame_names[t] if self.frame_names else f"{t:05d}"

    def frames_with(self, kind: str) -> range:
        """The frame numbers for which ``kind`` is defined: flow has none at the last frame."""
        first, last = KINDS[kind]
        return range(first, self.length - last)

    def part(self, start: int, stop: int) -> "Clip":
        """Frames start .. stop - 1 as a clip of their own, numbered from 0."""
        if not 0 <= start < stop <= self.length:
            raise IndexError(f"clip {self.name!r} has {self.length} frames, part({start}, {stop}) is not inside")
        shifted = {kind: partial(_read_later, read, start) for kind, read in self.readers.items()}
        name = f"{self.name}-{start:05d}-{stop:05d}"  # other frames, another name: a cache is filed under it
        return replace(self, name=name, readers=shifted, length=stop - start, frame_names=self.frame_names[start:stop])

    def resized(self, rows: int) -> "Clip":
        """The same clip with so many rows, from 1, columns in proportion.

        Frames, intrinsics and all kinds of labels are resized, and nothing else is: a cache is of one size and goes by
        its folder.
        """
        if rows < 1:
            raise ValueError(f"a clip has at least one row, got {rows}")
        size = (rows, max(1, round(self.size[1] * rows / self.size[0])))
        readers: dict[str, Reader] = {"frame": partial(_resized_frame, self, size)}
        readers |= {kind: partial(_resized_labels, self, kind, size)
                    for kind in ("labels", "segments", "classes", "annotations") if self.has(kind)}
        known = self.intrinsics_
        intrinsics = None if known is None else resize_intrinsics(known, self.size, size)
        return replace(self, size=size, readers=readers, intrinsics_=intrinsics)

    def with_readers(self, **readers: Reader) -> "Clip":
        """The same clip with readers added or replaced, e.g. a cached flow."""
        return replace(self, readers={**self.readers, **readers})

    def _read(self, kind: str, t: int) -> Tensor:
        if kind not in self.readers:
            raise LookupError(f"clip {self.name!r} has no {kind}, it has {', '.join(self.readers)}")
        frames = self.frames_with(kind)
        if t not in frames:
            raise IndexError(f"clip {self.name!r} has {self.length} frames: {kind}({t}) is outside "
                             f"{frames.start}..{frames.stop - 1}")
        return self.readers[kind](t)


def check_apart(clips: Iterable[Clip], validation: Iterable[Clip]) -> None:
    """Raise ValueError if a clip, by its name, is both trained on and validated on."""
    shared = sorted({clip.name for clip in clips} & {clip.name for clip in validation})
    if shared:
        raise ValueError(f"clip {shared[0]!r} is both trained on and validated on")


def labels_or_none(clip: Clip, t: int) -> Tensor | None:
    """A frame's labels; None where there are none, as tables leave some frames without."""
    try:
        return clip.labels(t)
    except LookupError:
        return None


def first_masks(labels: Iterable[tuple[int, Tensor]]) -> dict[int, Tensor]:
    """What the semi-supervised protocol gives away: of each frame (H, W) the objects that no frame before has.

    Args:
        labels: frame numbers, rising, each with its ids (H, W); 0 is background and 255 void.

    Raises:
        LookupError: no object in any.
    """
    given: dict[int, Tensor] = {}
    known = torch.tensor([0, VOID])
    for t, ids in labels:
        entering = torch.where(torch.isin(ids, known), 0, ids)
        if entering.any():
            given[t] = entering
            known = torch.cat([known, entering.unique()])
    if not given:
        raise LookupError("no mask has an object, ids from 1 to 254 (0 is background, 255 void)")
    return given


def _resized_frame(clip: Clip, size: tuple[int, int], t: int) -> Tensor:
    return resize(clip.frame(t)[None], size)[0].clamp(0, 1)


def _resized_labels(clip: Clip, kind: str, size: tuple[int, int], t: int) -> Tensor:
    labels = clip.readers[kind](t)
    return resize_labels(labels.view(-1, *labels.shape[-2:]), size).view(*labels.shape[:-2], *size)


def _read_later(read: Reader, start: int, t: int) -> Tensor:
    return read(t + start)
