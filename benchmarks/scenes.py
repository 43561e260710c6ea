"""Cost of a scene's frame with all its truths at 240x428, and what the bounding boxes save.

The plain version tries every object at every ray. Both draw the same frame, forward and backward flow and occlusion;
CPU seconds of one thread, medians of A B A B runs.
"""

import statistics
import time
from unittest import mock

import torch

from diffslic.datasets import raycast, scenes

LIMIT = 0.15  # seconds per frame on one core


def everything(world, number, camera_from_object, spans):
    return slice(0, spans.row_low.shape[1]), slice(0, spans.column_low.shape[1])


def draw(scene: scenes.Scene, t: int) -> float:
    start = time.process_time()
    view = scene.view([t])
    scene.motion([t], view, 1)
    scene.motion([t], view, -1)
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'preset':8} {'objects':>7} {'ours':>8} {'plain':>8} {'ratio':>6}   (seconds per frame, limit {LIMIT})")
    for preset in scenes.PRESETS:
        ours, plain, objects = [], [], []
        for seed in range(4):
            scene = scenes.Scene(preset, n_frames=4, seed=seed)
            objects.append(len(scene.world.shape))
            draw(scene, 1)  # the first frame also warms caches
            for _ in range(3):
                ours.append(draw(scene, 1))
                with mock.patch.object(raycast, "_window", everything):
                    plain.append(draw(scene, 1))
        fast, slow = statistics.median(ours), statistics.median(plain)
        print(f"{preset:8} {statistics.mean(objects):7.1f} {fast:8.3f} {slow:8.3f} {slow / fast:6.2f}")


if __name__ == "__main__":
    main()
