"""J and F of a video: `metrics.davis` beside a plain implementation of the official formulation, in one run.

The plain version holds every mask of the video as one-hot bool arrays (masks, T, H, W), as the official evaluation
does, and for each pair of masks and each frame extracts both boundaries, dilates both with a disk and counts the
matches. Three opponents, the strongest first:
    tuned     OpenCV's C dilation, the disk built once, no void masks (nothing is void here)
    official  the steps of the official code: OpenCV's dilation, void masks taken out of every mask, a disk per call
    skimage   as tuned, with scikit-image's dilation
Both sides run in turn (A B A B) on one thread; printed are medians of CPU time and the largest difference of any
number. Memory is the peak of the allocations of numpy, above the two label maps.

    python benchmarks/davis_scores.py [--frames 80] [--size 480 854] [--rounds 5]
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # before numpy is imported

import argparse
import functools
import math
import statistics
import time
import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
from scipy import optimize
from skimage.morphology import dilation, disk

from diffslic import metrics


def blobs(n_frames: int, size: tuple[int, int], n_objects: int, wobble: float, seed: int, scale: float) -> np.ndarray:
    """Label maps (T, H, W) uint8 of moving bodies with a wavy outline, about ``scale`` of the height in radius.

    The seed moves the outlines only: two seeds give a truth and a prediction of the same bodies.
    """
    rng = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    maps = np.zeros((n_frames, *size), dtype=np.uint8)
    waves = rng.uniform(0, 2 * np.pi, (n_objects, 3))
    for t in range(n_frames):
        for n in range(n_objects):
            angle = 2 * np.pi * (n / n_objects + t / 160)
            dy = y - height * (0.5 + 0.27 * np.sin(angle))
            dx = x - width * (0.5 + 0.32 * np.cos(angle + n))
            theta = np.arctan2(dy, dx)
            outline = 1 + sum(wobble / k * np.sin(k * 4 * theta + waves[n, k - 1] + t / 5) for k in (1, 2, 3))
            maps[t][np.hypot(dy, dx) < height * scale * outline] = n + 1
    return maps


def plain_boundary(mask: np.ndarray) -> np.ndarray:
    right, down, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1], down[:-1], diagonal[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edges = (mask ^ right) | (mask ^ down) | (mask ^ diagonal)
    edges[-1], edges[:, -1], edges[-1, -1] = mask[-1] ^ right[-1], mask[:, -1] ^ down[:, -1], False
    return edges


def plain_f(pred: np.ndarray, truth: np.ndarray, void: np.ndarray | None, make_disk: Callable,
            dilate: Callable) -> float:
    element = make_disk(math.ceil(0.008 * math.hypot(*truth.shape)))
    if void is not None:
        pred, truth = pred & ~void, truth & ~void
    pred, truth = plain_boundary(pred), plain_boundary(truth)
    near_pred, near_truth = dilate(pred.astype(np.uint8), element), dilate(truth.astype(np.uint8), element)
    n_pred, n_truth = np.count_nonzero(pred), np.count_nonzero(truth)
    if n_pred == 0 or n_truth == 0:
        return float(n_pred == n_truth)
    precision = np.count_nonzero(pred & (near_truth > 0)) / n_pred
    recall = np.count_nonzero(truth & (near_pred > 0)) / n_truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def plain_j(pred: np.ndarray, truth: np.ndarray, void: np.ndarray | None) -> np.ndarray:
    both, either = pred & truth, pred | truth
    if void is not None:
        both, either = both & ~void, either & ~void
    intersection, union = both.sum(axis=(1, 2)), either.sum(axis=(1, 2))
    return np.where(union == 0, 1.0, intersection / np.maximum(union, 1))


def plain(pred: np.ndarray, truth: np.ndarray, protocol: str, dilate: Callable,
          official: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """J and F, (N, E): every pair of masks by itself."""
    unsupervised = protocol == "unsupervised"
    n_objects = int(truth[0].max())
    if not unsupervised:
        pred, truth = pred[1:-1], truth[1:-1]
    n_proposals = max(int(pred.max()), n_objects) if unsupervised else n_objects
    pred_masks = np.stack([pred == m + 1 for m in range(n_proposals)])
    truth_masks = np.stack([truth == n + 1 for n in range(n_objects)])
    make_disk = disk if official else functools.cache(disk)
    j = np.full((n_proposals, n_objects, len(truth)), np.nan)
    f = np.full_like(j, np.nan)
    for m in range(n_proposals):
        for n in range(n_objects) if unsupervised else (m,):
            void = truth == 255 if official else None
            j[m, n] = plain_j(pred_masks[m], truth_masks[n], void)
            voids = [None] * len(truth) if void is None else void
            f[m, n] = [plain_f(*masks, make_disk, dilate) for masks in zip(pred_masks[m], truth_masks[n], voids)]
    if not unsupervised:
        return j.diagonal().T, f.diagonal().T
    rows, columns = optimize.linear_sum_assignment(-(j.mean(axis=2) + f.mean(axis=2)) / 2)
    rows = rows[np.argsort(columns)]
    return j[rows, np.arange(n_objects)], f[rows, np.arange(n_objects)]


def timed(function: Callable, *inputs) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    start = time.process_time()
    result = function(*inputs)
    return time.process_time() - start, (result[0], result[1])


def peak_mib(function: Callable, *inputs) -> tuple[float, tuple[np.ndarray, np.ndarray]]:
    tracemalloc.start()
    result = function(*inputs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20, (result[0], result[1])


def difference(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b))


def compare_speed(name: str, maps: tuple[np.ndarray, np.ndarray], protocol: str, rounds: int, *opponent) -> None:
    ours, theirs = [], []
    for _ in range(rounds):
        seconds, ours_result = timed(metrics.davis, *maps, protocol)
        ours.append(seconds)
        seconds, plain_result = timed(plain, *maps, protocol, *opponent)
        theirs.append(seconds)
    a, b = (statistics.median(times) / len(maps[0]) * 1e3 for times in (ours, theirs))
    print(f"  {name:9s} {len(maps[0]):3d} frames, ms/frame: plain {b:7.2f}  ours {a:5.2f}  ratio {b / a:6.1f}"
          f"  differ by {difference(ours_result, plain_result):.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 854), metavar=("ROWS", "COLUMNS"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size, few = tuple(options.size), min(options.frames, 6)

    maps = tuple(blobs(options.frames, size, 3, 0.08, seed, 0.17) for seed in (1, 2))
    print(f"semi-supervised, 3 objects, {size[0]}x{size[1]}, objects cover {(maps[1] > 0).mean():.0%} of the frame")
    cv2.setNumThreads(1)
    compare_speed("tuned", maps, "semi-supervised", options.rounds, cv2.dilate)
    compare_speed("official", maps, "semi-supervised", options.rounds, cv2.dilate, True)
    compare_speed("skimage", (maps[0][:few], maps[1][:few]), "semi-supervised", 2, dilation)

    proposals = blobs(options.frames, size, 20, 0.08, 3, 0.09)
    print("unsupervised, 20 proposals, 3 objects (strongest opponent)")
    compare_speed("tuned", (proposals[:few], maps[1][:few]), "unsupervised", 2, cv2.dilate)
    ours, ours_result = peak_mib(metrics.davis, proposals, maps[1], "unsupervised")
    theirs, plain_result = peak_mib(plain, proposals, maps[1], "unsupervised", cv2.dilate)
    print(f"  peak memory, {options.frames} frames: plain {theirs:.0f} MiB, ours {ours:.1f} MiB, "
          f"ratio {theirs / ours:.0f}, differ by {difference(ours_result, plain_result):.1e}")


if __name__ == "__main__":
    main()
