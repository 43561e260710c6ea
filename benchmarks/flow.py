"""How good the shipped RAFT is, and what is worth doing to its flow. Five tables:

1. End-point errors of RAFT, plain and polished, beside TV-L1 of scikit-image in the same run, on unseen scenes and on
   the real pairs of the folder that DIFFSLIC_REFERENCE names, and what each costs.
2. Ways to polish: our variational one, the default, beside OpenCV's inverse search of patches.
3. More corrections, and starting from the flow of the pair before.
4. Weights in bfloat16.
5. Flow smoothed inside superpixels, the question of the differentiable-slic study.

    python benchmarks/flow.py
"""

import math
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import torch
from torch import Tensor

from diffslic import datasets, metrics
from diffslic.datasets import io
from diffslic.flow import RAFT, motion_boundaries, polish, smooth_by_superpixels, tvl1
from diffslic.superpixels import SSN
from measuring import medians

SEED = 500_000  # no network of this project is trained on scenes from here on
NEAR = 4  # pixels from a motion boundary that count as near it


class Pair(NamedTuple):
    name: str
    first: Tensor  # (3, H, W)
    second: Tensor
    flow: Tensor  # (2, H, W)
    known: Tensor  # (H, W) bool


def scene_pairs() -> list[Pair]:
    clips = datasets.open("scenes", preset="lab+street+crowd", n_clips=12, n_frames=3, size=(240, 428), seed=SEED,
                          lighting=0.1, noise=0.01)
    return [Pair("scenes", clip.frame(1), clip.frame(2), clip.flow(1), torch.ones(clip.size, dtype=torch.bool))
            for clip in clips]


def real_pairs() -> list[Pair]:
    if not os.environ.get("DIFFSLIC_REFERENCE"):
        return []
    data = Path(os.environ["DIFFSLIC_REFERENCE"]) / "data"
    chairs, tartan = data / "flow" / "flyingchairs", data / "tartanair" / "flow_pair"
    rows = [("RubberWhale", data / "flow" / "rubberwhale", "frame10.png", "frame11.png", "flow10.flo"),
            ("Sintel", data / "flow" / "sintel", "frame_0001.png", "frame_0002.png", "frame_0001.flo"),
            ("chairs 0", chairs, "0000000-img0.ppm", "0000000-img1.ppm", "0000000-gt.flo"),
            ("chairs 1", chairs, "0000001-img0.ppm", "0000001-img1.ppm", "0000001-gt.flo"),
            ("TartanAir", tartan, "000380_left.png", "000381_left.png", "000380_000381_flow.npy")]
    return [Pair(name, io.read_image(folder / first), io.read_image(folder / second), *io.read_flow(folder / flow))
            for name, folder, first, second, flow in rows]


def error(flow: Tensor, pair: Pair, where: Tensor | None = None) -> float:
    return metrics.flow(flow, pair.flow, pair.known if where is None else pair.known & where)["epe"]


def estimated(raft: RAFT, pair: Pair) -> Tensor:
    with torch.no_grad():
        return raft(pair.first[None], pair.second[None])[0]


def beside_tvl1(raft: RAFT, scenes: list[Pair], real: list[Pair]) -> None:
    methods: dict[str, Callable[[Pair], Tensor]] = {
        "zero": lambda pair: torch.zeros_like(pair.flow), "RAFT": partial(estimated, raft),
        "polished": lambda pair: polish(pair.first[None], pair.second[None], estimated(raft, pair)[None])[0],
        "TV-L1": lambda pair: next(tvl1([pair.first, pair.second]))}
    print(f"{'end-point error, px':20}" + "".join(f"{name:>10}" for name in methods)
          + "   RAFT / TV-L1  polished / TV-L1")
    errors: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for pair in [*scenes, *real]:
        row = []
        for name, method in methods.items():
            start = time.process_time()
            flow = method(pair)
            if pair.name == "scenes":
                seconds[name].append(time.process_time() - start)
            row.append(error(flow, pair))
        errors.setdefault(pair.name, []).append(row)
    ratios = []
    for name, rows in errors.items():
        zero, plain, fine, opponent = (statistics.mean(column) for column in zip(*rows))
        print(f"{name:20}" + "".join(f"{value:10.2f}" for value in (zero, plain, fine, opponent))
              + f"{plain / opponent:15.2f}{fine / opponent:18.2f}")
        if name != "scenes":
            ratios.append((plain / opponent, fine / opponent))
    if ratios:
        means = [math.exp(statistics.mean(map(math.log, column))) for column in zip(*ratios)]
        print(f"geometric mean of the real pairs' ratios: RAFT {means[0]:.3f}, polished {means[1]:.3f}; "
              f"the largest {max(ratio for ratio, _ in ratios):.2f} and {max(ratio for _, ratio in ratios):.2f}")
    print("CPU seconds a pair at 240x428: "
          + ", ".join(f"{name} {statistics.median(values):.2f}" for name, values in seconds.items() if name != "zero"))


def polishes(raft: RAFT, scenes: list[Pair], real: list[Pair]) -> None:
    ways = {way: partial(polish, way=way) for way in ("search", "variational")}
    print("\nthe polish: end-point error in px | share of pixels that are wrong by more than 1 px")
    table: dict[str, dict[str, list[dict[str, float]]]] = {}
    for pair in [*scenes, *real]:
        images, rough = (pair.first[None], pair.second[None]), estimated(raft, pair)[None]
        for name, flow in {"RAFT": rough, **{name: way(*images, rough) for name, way in ways.items()}}.items():
            figures = metrics.flow(flow[0], pair.flow, pair.known)
            table.setdefault(pair.name, {}).setdefault(name, []).append(figures)
    for name, row in table.items():
        print(f"{name:20}" + "  ".join(f"{way} {statistics.mean(each['epe'] for each in found):.2f} | "
                                       f"{statistics.mean(each['px1'] for each in found):.3f}"
                                       for way, found in row.items()))
    pair = scenes[0]
    given = pair.first[None], pair.second[None], estimated(raft, pair)[None]
    seconds = medians({name: partial(way, *given) for name, way in ways.items()}, 9)
    print(f"CPU seconds at {'x'.join(map(str, pair.first.shape[1:]))}, one thread, in turn: "
          + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items())
          + f" ({seconds['search'] / seconds['variational']:.2f} times as fast)")


def corrections(raft: RAFT) -> None:
    clips = datasets.open("scenes", preset="lab+street+crowd", n_clips=6, n_frames=6, size=(240, 428), seed=SEED + 100)
    print("\ncorrections  from zero  from the pair before   (end-point error of the last four pairs of six clips, px)")
    for n_iters in (1, 2, 4, 6, 8, 12, 20):
        row = []
        for warm_start in (False, True):
            errors = []
            for clip in clips:
                flows = raft.video((clip.frame(t) for t in range(len(clip))), n_iters, warm_start)
                errors += [metrics.flow(flow, clip.flow(t))["epe"] for t, flow in enumerate(flows) if t > 0]
            row.append(statistics.mean(errors))
        print(f"{n_iters:11}  {row[0]:9.2f}  {row[1]:20.2f}")


def in_bfloat16(raft: RAFT, half: RAFT, scenes: list[Pair]) -> None:
    gaps = [float((estimated(half, pair) - estimated(raft, pair)).norm(dim=0).mean()) for pair in scenes]
    print(f"\nbfloat16 from float32 on the scenes, px: mean {statistics.mean(gaps):.3f}, worst scene {max(gaps):.3f}; "
          f"end-point error {statistics.mean(error(estimated(raft, pair), pair) for pair in scenes):.3f} and "
          f"{statistics.mean(error(estimated(half, pair), pair) for pair in scenes):.3f}")


def smoothed(raft: RAFT, scenes: list[Pair], real: list[Pair]) -> None:
    ssn = SSN.from_pretrained("bsds500")
    print("\nsmoothed inside superpixels, end-point error in px over all pixels | within "
          f"{NEAR} px of a true motion boundary")
    kinds = [(f"{model} {'soft' if soft else 'hard'} {count}", model, soft, count)
             for count in (300, 1000) for soft in (False, True) for model in ("constant", "affine")]
    for start in ("plain", "polished"):
        table: dict[str, dict[str, list[tuple[float, float]]]] = {}
        for pair in [*scenes, *real]:
            flow = estimated(raft, pair)[None]
            flow = polish(pair.first[None], pair.second[None], flow) if start == "polished" else flow
            truth = pair.flow.where(pair.known, torch.nan)[None]  # an edge of what is unknown is no boundary
            near = torch.nn.functional.max_pool2d(motion_boundaries(truth).float(), 2 * NEAR + 1, 1, NEAR)[0] > 0
            found = {"as it is": flow}
            with torch.no_grad():
                for count in (300, 1000):
                    cut = ssn(pair.first[None], count)
                    for name, model, soft, of in kinds:
                        if of == count:
                            found[name] = smooth_by_superpixels(flow, cut if soft else cut.harden(), model)
            for name, each in found.items():
                figures = error(each[0], pair), error(each[0], pair, near)
                table.setdefault(pair.name, {}).setdefault(name, []).append(figures)
        for name, row in table.items():
            cells = [f"{kind} {statistics.mean(a for a, _ in values):.2f} | {statistics.mean(b for _, b in values):.2f}"
                     for kind, values in row.items()]
            print(f"{start} {name}: " + ", ".join(cells))


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    raft, half = RAFT.from_pretrained("small"), RAFT.from_pretrained("small").bfloat16()
    scenes, real = scene_pairs(), real_pairs()
    estimated(raft, scenes[0])  # the first call is slower
    beside_tvl1(raft, scenes, real)
    polishes(raft, scenes, real)
    corrections(raft)
    in_bfloat16(raft, half, scenes)
    smoothed(raft, scenes, real)


if __name__ == "__main__":
    main()
