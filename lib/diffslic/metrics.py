"""Every score of the workbook: video masks (J and F of DAVIS), superpixels, optical flow and depth.

All functions take numpy arrays or torch tensors (on any device) and return plain numbers or numpy arrays. Nothing
is rescaled, aligned or left out without a line in the docstring that says so.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

Array = NDArray[Any]

# ---------------------------------------------------------------- DAVIS: region J and boundary F of video masks

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
    maps = _integers(maps, name, "(T, H, W)")
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


# ---------------------------------------------------------------- superpixels


def superpixels(labels: Any, truths: Sequence[Any], image: Any = None) -> dict[str, float]:
    """Superpixel quality; what depends on a segmentation is the mean over its annotators.

    With superpixels s, segments g and N pixels:
        asa: achievable segmentation accuracy, sum_s max_g |s & g| / N (Liu et al. 2011).
        ue: undersegmentation error, sum_g sum_s min(|s & g|, |s - g|) / N (Neubert and Protzel 2012).
        br, bp: boundary recall and precision: the share of true (of superpixel) boundary pixels with a superpixel
            (a true) one in the 5x5 square around them. A boundary pixel has another label to its right or below.
            Undefined for a map without boundary: such an annotator is left out of br, and bp is then NaN.
        co: compactness, sum_s |s| / N * 4 pi |s| / perimeter^2, image border included (Schick et al. 2012).
        ev: explained variation of colour (Moore et al. 2008); NaN without an image or with a one-coloured one.
        count: number of distinct labels (not of connected components).

    All maps are (H, W) integers, ``truths`` holds one from each annotator, ``image`` is (3, H, W) in any scale.
    ValueError on sizes that differ, labels that are not integers, or no annotator.
    """
    labels = _segmentation(labels, "labels")
    if len(truths) == 0:
        raise ValueError("truths must hold the segmentation of at least one annotator, got none")
    edges = _right_down_boundary(labels)
    scores = []
    for i, truth in enumerate(truths):
        truth = _segmentation(truth, f"truths[{i}]")
        if truth.shape != labels.shape:
            raise ValueError(f"truths[{i}] is {truth.shape} but labels is {labels.shape} (rows, columns)")
        size = labels.max() + 1, truth.max() + 1
        table = np.bincount((labels * size[1] + truth).ravel(), minlength=size[0] * size[1]).reshape(size)
        outside = table.sum(axis=1, keepdims=True) - table
        true_edges = _right_down_boundary(truth)
        scores.append([table.max(axis=1).sum() / labels.size, _share_near(true_edges, edges),
                       _share_near(edges, true_edges), np.minimum(table, outside).sum() / labels.size])
    asa, br, bp, ue = (_mean_of_defined(column) for column in zip(*scores))
    return {"asa": asa, "br": br, "bp": bp, "ue": ue, "co": _compactness(labels),
            "ev": math.nan if image is None else _explained_variation(labels, image), "count": int(labels.max()) + 1}


def _segmentation(labels: Any, name: str) -> NDArray[np.int64]:
    """(H, W) labels renumbered 0, 1, ... without gaps."""
    return np.unique(_integers(labels, name, "(H, W)"), return_inverse=True)[1]


def _right_down_boundary(labels: Array) -> NDArray[np.bool_]:
    right, below = (np.diff(labels, axis=axis, append=labels.take([-1], axis=axis)) for axis in (1, 0))
    return (right | below) != 0


def _share_near(edges: Array, others: Array) -> float:
    """Share of the edge pixels with another map's edge pixel at most 2 rows and 2 columns away; NaN without any."""
    return float(ndimage.maximum_filter(others, size=5, mode="constant")[edges].mean()) if edges.any() else math.nan


def _mean_of_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _compactness(labels: Array) -> float:
    area = np.bincount(labels.ravel())
    framed = np.pad(labels, 1, constant_values=-1)
    perimeter = np.zeros(len(area))
    for neighbour in (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]):
        perimeter += np.bincount(labels[labels != neighbour], minlength=len(area))
    return float((area / labels.size * 4 * math.pi * area / perimeter**2).sum())


def _explained_variation(labels: Array, image: Any) -> float:
    image = _numpy(image).astype(np.float64)
    if image.shape != (3, *labels.shape):
        raise ValueError(f"image must be {(3, *labels.shape)} like labels, got {image.shape}")
    colours = image.reshape(3, -1) - image.mean(axis=(1, 2))[:, None]
    sums = np.stack([np.bincount(labels.ravel(), weights=channel) for channel in colours])
    between, total = (sums**2 / np.bincount(labels.ravel())).sum(), (colours**2).sum()
    return float(between / total) if np.ptp(colours, axis=1).any() else math.nan


# ---------------------------------------------------------------- flow and depth


def flow(flow: Any, truth: Any, valid: Any = None) -> dict[str, float]:
    """Errors of optical flow, over the pixels whose true flow is known.

    epe: mean end-point error in pixels. px1, px3: shares in [0, 1] of pixels with an error above 1 and above 3 pixels.
    fl_all: share of the outliers of KITTI 2015: error above 3 pixels and above 5 % of the true magnitude.

    ``flow`` and ``truth`` are (..., 2, H, W) in pixels; a true vector that is not finite or beyond 1e9 is unknown and
    left out, so are pixels where ``valid`` (..., H, W) is False. ValueError on shapes that differ, no known pixel, or
    an estimate that is not finite at a known one.
    """
    flow, truth = _same_shape(flow, truth, "flow")
    if flow.ndim < 3 or flow.shape[-3] != 2:
        raise ValueError(f"flow must be (..., 2, H, W), got {flow.shape}")
    known = (np.abs(truth) <= 1e9).all(axis=-3)  # false for NaN as well
    known &= _mask(valid, known.shape)
    if not known.any():
        raise ValueError("truth has no pixel with known flow that is also valid")
    estimate, truth = np.moveaxis(flow, -3, -1)[known], np.moveaxis(truth, -3, -1)[known]
    if not np.isfinite(estimate).all():
        raise ValueError(f"flow is not finite at {(~np.isfinite(estimate)).any(axis=-1).sum()} pixels with known truth")
    error, magnitude = np.linalg.norm(estimate - truth, axis=-1), np.linalg.norm(truth, axis=-1)
    return {"epe": float(error.mean()), "px1": float((error > 1).mean()), "px3": float((error > 3).mean()),
            "fl_all": float(((error > 3) & (error > 0.05 * magnitude)).mean())}


def depth(depth: Any, truth: Any, valid: Any = None) -> dict[str, float]:
    """Errors of depth, never aligned in scale, over the pixels that have both a truth and an estimate.

    With estimate Z and truth Z*: abs_rel = mean |Z - Z*| / Z*; sq_rel = mean (Z - Z*)^2 / Z*; rmse and rmse_log = root
    mean square of Z - Z* and of ln Z - ln Z*; d1 d2 d3 = shares with max(Z / Z*, Z* / Z) < 1.25, 1.25^2, 1.25^3 (Eigen
    et al. 2014); inlier = the same share below 1.03 (Schroeppel et al. 2022); coverage = share of the pixels with a
    truth that have an estimate. Read no error without its coverage.

    ``depth`` and ``truth`` have one shape and are in metres along z; there is none where not finite or not positive
    (set a far sky to 0). Where ``valid`` (same shape, bool) is False the estimate counts as missing. ValueError on
    shapes that differ, or where no pixel has both a truth and an estimate.
    """
    depth, truth = _same_shape(depth, truth, "depth")
    known = np.isfinite(truth) & (truth > 0)
    both = known & np.isfinite(depth) & (depth > 0) & _mask(valid, depth.shape)
    if not both.any():
        raise ValueError(f"no pixel has both a depth and a truth ({known.sum()} pixels have a truth)")
    z, true = depth[both], truth[both]
    ratio = np.maximum(z / true, true / z)
    return {"abs_rel": float((np.abs(z - true) / true).mean()), "sq_rel": float(((z - true) ** 2 / true).mean()),
            "rmse": math.sqrt(((z - true) ** 2).mean()), "rmse_log": math.sqrt((np.log(z / true) ** 2).mean()),
            **{f"d{k}": float((ratio < 1.25**k).mean()) for k in (1, 2, 3)},
            "inlier": float((ratio < 1.03).mean()), "coverage": float(both.sum() / known.sum())}


def _numpy(values: Any) -> Array:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _integers(labels: Any, name: str, layout: str) -> Array:
    labels = _numpy(labels)
    if labels.ndim != layout.count(",") + 1 or labels.size == 0:
        raise ValueError(f"{name} must be {layout} with at least one pixel, got shape {labels.shape}")
    if labels.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integer labels, got {labels.dtype}")
    return labels


def _same_shape(values: Any, truth: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, truth = _numpy(values), _numpy(truth)
    if values.shape != truth.shape:
        raise ValueError(f"{name} is {values.shape} but truth is {truth.shape}")
    if values.dtype.kind not in "fiu" or truth.dtype.kind not in "fiu":
        raise ValueError(f"{name} and truth must hold real numbers, got {values.dtype} and {truth.dtype}")
    return values.astype(np.float64), truth.astype(np.float64)


def _mask(valid: Any, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    valid = np.ones(shape, dtype=bool) if valid is None else _numpy(valid)
    if valid.shape != shape or valid.dtype != bool:
        raise ValueError(f"valid must be bool of shape {shape}, got {valid.dtype} of shape {valid.shape}")
    return valid
