"""What the polish does to RAFT's flow, and what it costs, beside TV-L1.

End-point errors on unseen scenes, and on the real pairs of the folder that DIFFSLIC_REFERENCE names; CPU seconds of
one thread per pair at 240x428, medians over the pairs, each by every method in turn.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import torch
from torch import Tensor

from diffslic import datasets, metrics
from diffslic.datasets import io
from diffslic.flow import RAFT, polish, tvl1

Pair = tuple[Tensor, Tensor, Tensor, Tensor]  # frames (3, H, W), flow (2, H, W), where it is known (H, W)


def scene_pairs() -> list[Pair]:
    clips = datasets.open("scenes", preset="lab+street+crowd", n_clips=8, n_frames=3, size=(240, 428), seed=500_000,
                          lighting=0.1, noise=0.01)
    return [(clip.frame(1), clip.frame(2), clip.flow(1), torch.ones(clip.size, dtype=torch.bool)) for clip in clips]


def real_pairs(folder: Path) -> dict[str, list[Pair]]:
    files = {"RubberWhale": [("rubberwhale", "frame10.png", "frame11.png", "flow10.flo")],
             "Sintel": [("sintel", "frame_0001.png", "frame_0002.png", "frame_0001.flo")],
             "FlyingChairs": [("flyingchairs", f"000000{i}-img0.ppm", f"000000{i}-img1.ppm", f"000000{i}-gt.flo")
                              for i in (0, 1)]}
    pairs = {}
    for name, rows in files.items():
        pairs[name] = []
        for place, first, second, truth in rows:
            flow, known = io.read_flow(folder / place / truth)
            pairs[name].append((io.read_image(folder / place / first), io.read_image(folder / place / second),
                                flow, known))
    return pairs


def tvl1_flow(first: Tensor, second: Tensor) -> Tensor:
    return next(tvl1([first, second]))


def timed(seconds: list[float], function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    start = time.process_time()
    result = function(*arguments)
    seconds.append(time.process_time() - start)
    return result


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    raft = RAFT.from_pretrained("small")
    pairs = {"scenes": scene_pairs()}
    if os.environ.get("DIFFSLIC_REFERENCE"):
        pairs |= real_pairs(Path(os.environ["DIFFSLIC_REFERENCE"]) / "data" / "flow")
    print(f"{'end-point error, px':20} {'zero':>7} {'RAFT':>7} {'polished':>9} {'TV-L1':>7}")
    with torch.no_grad():
        raft(*(image[None] for image in pairs["scenes"][0][:2]))  # the first call is slower
    cost: dict[str, list[float]] = {"RAFT": [], "polish": [], "TV-L1": []}
    for name, rows in pairs.items():
        errors = []
        for first, second, truth, known in rows:
            spent = cost if name == "scenes" else {key: [] for key in cost}
            with torch.no_grad():
                rough = timed(spent["RAFT"], raft, first[None], second[None])
            fine = timed(spent["polish"], polish, first[None], second[None], rough)
            other = timed(spent["TV-L1"], tvl1_flow, first, second)
            errors.append([metrics.flow(flow, truth, known)["epe"]
                           for flow in (torch.zeros_like(truth), rough[0], fine[0], other)])
        print(f"{name:20} " + " ".join(f"{statistics.mean(column):{width}.2f}"
                                       for column, width in zip(zip(*errors), (7, 7, 9, 7))))
    print("CPU seconds per pair at 240x428: "
          + ", ".join(f"{name} {statistics.median(spent):.3f}" for name, spent in cost.items()))


if __name__ == "__main__":
    main()
