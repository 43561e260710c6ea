"""Region J and boundary F of video masks, as the DAVIS benchmarks define them."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from diffslic.metrics.arrays import Array, integers

PROTOCOLS = ("davis2016", "semi-supervised", "unsupervised")
MAX_PROPOSALS = 20
STATISTICS = ("J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")


class DavisScore(NamedTuple):
    """J and F of one video: N objects in ground-truth order, E evaluated frames, M proposals."""

    j: NDArray[np.float64]  # (N, E) region similarity: intersection over union
    f: NDArray[np.float64]  # (N, E) boundary F-measure
    objects: NDArray[np.int64]  # (N,) ids of the objects in the truth
    assignment: NDArray[np.int64]  # (N,) label of the prediction that was scored against each object
    frames: NDArray[np.int64]  # (E,) their indices in the video
    pairs: NDArray[np.float64]  # (M, N) mean over frames of (J + F) / 2; NaN where the protocol compares no such pair

    @property
    def statistics(self) -> NDArray[np.float64]:
        """(N, 6) per object: mean, recall and decay of J, then of F (the columns are ``STATISTICS``).

        Recall is the share of frames above 0.5 (strictly). Decay is the mean over the first quarter of the frames
        minus the mean over the last; neighbouring quarters share a frame (Perazzi et al. 2016, section 5.1). The
        official code keeps frame indices in 8 bits: past 256 evaluated frames its decay overflows to NaN or to another
        stretch of the video. Here they are int64, so that case differs on purpose.
        """
        return np.concatenate([_mean_recall_decay(self.j), _mean_recall_decay(self.f)], axis=1)

    def summary(self) -> dict[str, float]:
        """The official names: "J&F-Mean" "J-Mean" "J-Recall" "J-Decay" "F-Mean" "F-Recall" "F-Decay"."""
        return davis_summary([self])


def davis_summary(scores: Iterable[DavisScore]) -> dict[str, float]:
    """Figures of a whole dataset: means over all objects of all videos (not over videos), official names."""
    tables = [score.statistics for score in scores]
    if not tables:
        raise ValueError("davis_summary needs the score of at least one video, got none")
    named = dict(zip(STATISTICS, np.concatenate(tables).mean(axis=0).tolist()))
    return {"J&F-Mean": (named["J-Mean"] + named["F-Mean"]) / 2, **named}


def davis(pred: Any, truth: Any, protocol: str = "davis2016", void: int = 255) -> DavisScore:
    """Score the masks of one video as the official DAVIS 2016 and 2017 evaluation codes do.

    J is intersection over union, 1 where both masks are empty. F compares boundaries: precision is the share of
    predicted boundary pixels within ceil(0.008 * image diagonal) pixels of a true one, recall the reverse, F their
    harmonic mean; 1 where both boundaries are empty, 0 where one is. A boundary pixel differs from its right, lower
    or lower-right neighbour, so a mask cut by the image border has no boundary there.

    Protocols:
        "davis2016": one object, every label above 0 in both maps; first and last frame dropped. The files of
            DAVIS 2016 hold {0, 255}: pass ``masks > 0``, because 255 means void here and is refused.
        "semi-supervised": object n is label n in both maps; first and last frame dropped; void is background.
        "unsupervised": at most 20 proposals, assigned to objects once per video so that the sum of the mean
            (J + F) / 2 is largest (Hungarian method). All frames count, void pixels do not.
    In DAVIS 2017 the objects are 1 to the largest id of frame 0; a larger id that appears later is background.

    Args:
        pred, truth: (T, H, W) integer label maps, 0 = background, one for each frame.
        protocol: one of ``PROTOCOLS``.
        void: the label of the truth that marks undecided pixels.

    Rows of the result are in ground-truth order (official unsupervised tables name rows by proposal). ValueError on
    unequal sizes, too few frames, an unknown protocol or labels that it does not know. Source: Perazzi et al. 2016,
    section 5; Caelles et al. 2019, section 3.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    pred, truth = _label_maps(pred, "pred"), _label_maps(truth, "truth")
    if len(pred) != len(truth):
        raise ValueError(f"pred has {len(pred)} masks but truth has {len(truth)} frames")
    if pred.shape != truth.shape:
        raise ValueError(f"pred masks are {pred.shape[1:]} but truth is {truth.shape[1:]} (rows, columns)")

    matched = protocol == "unsupervised"
    frames = np.arange(len(truth)) if matched else np.arange(1, len(truth) - 1)
    if len(frames) == 0:
        raise ValueError(f"{protocol} drops the first and last frame: it needs at least 3 frames, got {len(truth)}")
    largest = int(pred[frames[0]:frames[-1] + 1].max()), int(truth.max())
    n_proposals, n_objects = _count_masks(largest, truth[0], protocol, void)
    base = 16 if max(largest) < 16 else 256  # two small labels fit one byte: half the memory traffic
    planes = _bit_planes(n_proposals, n_objects, base, protocol, void)
    pair = slice(None) if matched else (np.arange(n_objects), np.arange(n_objects))  # all pairs, or the diagonal
    scores = []
    for t in frames:  # frame by frame: memory does not grow with the masks of the video
        scores.append([score[pair] for score in _score_frame(pred[t], truth[t], planes, base, n_proposals, n_objects)])
    j, f = np.stack(scores, axis=-1)

    pairs, rows, columns = np.full((n_proposals, n_objects), np.nan), np.arange(n_objects), np.arange(n_objects)
    pairs[pair] = (j.mean(axis=-1) + f.mean(axis=-1)) / 2
    if matched:
        rows, order = optimize.linear_sum_assignment(-pairs)
        rows = rows[np.argsort(order)]
        j, f = j[rows, columns], f[rows, columns]
    return DavisScore(j, f, columns + 1, rows + 1, frames, pairs)


def _mean_recall_decay(values: Array) -> NDArray[np.float64]:
    """(N, 3) mean, recall and decay of per-frame values (N, E)."""
    i = np.round(np.linspace(1, values.shape[1], 5) + 1e-10).astype(np.int64) - 1
    first, last = values[:, i[0]:i[1] + 1], values[:, i[3]:i[4] + 1]
    return np.stack([values.mean(axis=1), (values > 0.5).mean(axis=1), first.mean(axis=1) - last.mean(axis=1)], axis=1)


def _label_maps(maps: Any, name: str) -> NDArray[np.uint8]:
    """Label maps (T, H, W) of any integer type as uint8."""
    maps = integers(maps, name, "(T, H, W)")
    if maps.dtype not in (np.uint8, bool) and (maps.min() < 0 or maps.max() > 255):
        raise ValueError(f"{name} must hold labels in 0..255, got {maps.min()}..{maps.max()}")
    return maps.astype(np.uint8, copy=False)


def _count_masks(largest: tuple[int, int], first: Array, protocol: str, void: int) -> tuple[int, int]:
    """Numbers of predicted masks and of objects, from the largest labels and the truth of frame 0."""
    if protocol == "davis2016":
        if void in largest:
            raise ValueError(f"a map holds {void}, which means void: davis2016 takes {{0, 1}} maps, pass masks > 0")
        return 1, 1
    n_objects = int(first[first != void].max(initial=0))
    if n_objects == 0:
        raise ValueError("truth has no object in frame 0, which defines the objects of a DAVIS 2017 video")
    if protocol == "semi-supervised":
        if largest[0] > n_objects:
            raise ValueError(f"pred holds label {largest[0]} but frame 0 of the truth has objects 1 to {n_objects}")
        return n_objects, n_objects
    if largest[0] > MAX_PROPOSALS:
        raise ValueError(f"pred holds label {largest[0]}: unsupervised allows at most {MAX_PROPOSALS} proposals")
    return max(largest[0], n_objects), n_objects  # missing proposals count as empty ones


def _bit_planes(n_proposals: int, n_objects: int, base: int, protocol: str, void: int) -> NDArray[np.uint8]:
    """To which masks a pixel belongs, one bit for each mask: proposals first, then objects.

    All rules of a protocol about labels stand in this one table, so that the work on pixels knows none of them. It is
    (G, base^2) uint8 with G = ceil((M + N) / 8); the column is truth label * base + predicted label.
    """
    truth, pred = np.divmod(np.arange(base * base), base)
    proposals, objects = np.arange(1, n_proposals + 1)[:, None], np.arange(1, n_objects + 1)[:, None]
    if protocol == "davis2016":
        member = np.stack([pred > 0, truth > 0])
    else:
        member = np.concatenate([pred == proposals, (truth == objects) & (truth != void)])
    if protocol == "unsupervised":
        member[:, truth == void] = False
    return np.packbits(member, axis=0, bitorder="little")


def _score_frame(pred: Array, truth: Array, planes: Array, base: int, m: int, n: int) -> tuple[Array, Array]:
    """J and F, each (m, n), of every proposal with every object in one frame (H, W)."""
    width = truth.shape[1]
    code = np.multiply(truth.ravel(), base, dtype=np.uint8 if base == 16 else np.uint16)
    code += pred.astype(code.dtype, copy=False).ravel()
    # Only where this joint label changes can a run of equal pixels end or a boundary lie. A pixel differs from its
    # lower-right neighbour only if it differs from the right one, or that one from the one below. Comparing the flat
    # image takes the start of the next row for a right neighbour: as the runs want it; _boundary_f looks again.
    below = code[:-width] != code[width:]
    changes = np.zeros(code.shape, dtype=bool)
    np.not_equal(code[:-1], code[1:], out=changes[:-1])
    changes[:-width] |= below
    changes[:-width - 1] |= below[1:]
    points = np.flatnonzero(changes)
    return _region_j(code, points, planes, m, n), _boundary_f(code, points, width, planes, m, n)


def _region_j(code: Array, points: Array, planes: Array, m: int, n: int) -> NDArray[np.float64]:
    ends = np.append(points[code[points] != code[points + 1]], code.size - 1)
    lengths = np.diff(ends, prepend=-1)
    member = _unpack(planes.take(code[ends], axis=1))  # the joint histogram of labels, by runs instead of by pixels
    area, both = member @ lengths, member[:m] * lengths @ member[m:m + n].T
    union = area[:m, None] + area[m:m + n] - both
    return np.divide(both, union, out=np.ones_like(both), where=union > 0)


def _boundary_f(code: Array, points: Array, width: int, planes: Array, m: int, n: int) -> NDArray[np.float64]:
    height = code.size // width
    y, x = np.divmod(points, width)
    right, down = (x < width - 1).astype(np.int64), (y < height - 1) * width  # no step beyond the last column or row
    a, b, c, d = (planes.take(code[points + step], axis=1) for step in (0, right, down, right + down))
    edges = (a | b | c | d) & ~(a & b & c & d)
    near = _unpack(_bits_within(edges, y, x, math.ceil(0.008 * math.hypot(height, width))))
    edges = _unpack(edges)
    n_pred, n_true = edges[:m].sum(axis=1)[:, None], edges[m:m + n].sum(axis=1)
    precision = edges[:m] @ near[m:m + n].T / np.maximum(n_pred, 1)
    recall = near[:m] @ edges[m:m + n].T / np.maximum(n_true, 1)
    f = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
    f[(n_pred == 0) & (n_true == 0)] = 1
    return f


def _unpack(bits: Array) -> NDArray[np.float64]:
    """(8 G, P) zeros and ones of bits (G, P), as float64 because its matrix product is fast and counts exactly."""
    ones = bits[:, None] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return ones.reshape(8 * len(bits), bits.shape[1]).astype(np.float64)


def _bits_within(bits: Array, y: Array, x: Array, radius: int) -> NDArray[np.uint8]:
    """For each point, the union of the bits of all points within a Euclidean distance: x^2 + y^2 <= radius^2.

    A disk is a stack of horizontal runs, so the image is dilated along rows only, eight masks at once as the bits of
    a byte, for ever longer runs; the rows of the disk are then read at the points alone. ``bits`` and the result are
    (G, P) uint8, ``y`` and ``x`` (P,) integers, the radius is in pixels.
    """
    near = np.zeros_like(bits)
    if bits.shape[1] == 0:
        return near
    y, x = y - y.min(), x - x.min() + radius
    stride = int(x.max()) + radius + 1  # a margin of the radius all around, so that a run never enters the next row
    size, corner = (int(y.max()) + 2 * radius + 1) * stride, y * stride + x
    for group, found in zip(bits, near):
        run, spare = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=np.uint8)
        run[corner + radius * stride] = group
        length = 1  # run[i] is the union over the pixels i - length + 1 to i
        for dy in range(radius, -1, -1):
            half = math.isqrt(radius * radius - dy * dy)
            while length < 2 * half + 1:
                step = min(length, 2 * half + 1 - length)
                np.bitwise_or(run[step:], run[:-step], out=spare[step:])
                run, spare, length = spare, run, length + step
            for row in (radius - dy, radius + dy):
                found |= run[row * stride + half:].take(corner)
    return near
