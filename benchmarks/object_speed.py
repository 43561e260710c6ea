"""Several objects in a clip of 480x854: seconds a frame of one core by step, and memory over the clip's length.

A crowd of five bodies as image files, segmented by ``diffslic.pipeline.segment(..., objects="graph")``. Printed are the
CPU seconds a frame of RAFT both ways with its polish, of the superpixels and their features, and of everything else:
reading, what is hidden, the U-Net, the graph, the tracker, writing; then the peak memory of a process that does a
quarter of the frames, and of one that does all.

    python benchmarks/object_speed.py [--frames 80] [--rows 240]
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from diffslic import datasets, pipeline
from diffslic.datasets import io

SIZE, BODIES = (480, 854), 5


def write_frames(folder: Path, n_frames: int) -> None:
    """The first crowd with five bodies in its first frames."""
    for seed in range(985_000, 985_100):
        [clip] = datasets.open("scenes", preset="crowd", n_clips=1, n_frames=n_frames, size=SIZE, seed=seed)
        if len(clip.labels(0).unique()) == BODIES + 1:
            break
    for t in range(n_frames):
        io.write_image(folder / f"{t:05d}.jpg", clip.frame(t))


def timed(function: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    """The same function, that adds its CPU seconds to ``spent``; of a generator, those of each step."""
    def call(*arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = function(*arguments, **options)
        spent.append(time.process_time() - start)
        return steps(result) if isinstance(result, Iterator) else result

    def steps(generator: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.process_time()
            item = next(generator, None)
            spent.append(time.process_time() - start)
            if item is None:
                return
            yield item

    return call


def run(folder: Path, n_frames: int, rows: int, results: Any) -> None:
    """Segment some frames in this process, and tell seconds and memory (its own: VmHWM, not its parent's)."""
    out = folder.parent / f"masks{n_frames}"
    torch.set_num_threads(1)
    flow_seconds: list[float] = []
    superpixel_seconds: list[float] = []
    within: list[float] = []  # of what is done while flow is asked for, and is no flow
    module = import_module("diffslic.pipeline.segment")  # the package has a function of that name
    video = import_module("diffslic.flow.video")
    for place, name, spent in ((module, "video_flow_both_ways", flow_seconds), (video, "occlusion", within),
                               (module, "find_superpixels", superpixel_seconds), (module.geometry, "resize", within),
                               (datasets.Clip, "frame", within)):
        setattr(place, name, timed(getattr(place, name), spent))
    clip = datasets.open("folder", root=folder)[0].part(0, n_frames)
    result = pipeline.segment(clip, rows=rows, objects="graph")
    start = time.process_time()
    result.save(out, overlay=False, progress=False)
    total = time.process_time() - start
    flow = sum(flow_seconds) - sum(within)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    results.put({"RAFT": flow, "superpixels": sum(superpixel_seconds),
                 "everything else": total - flow - sum(superpixel_seconds), "memory": int(peak.split()[1]) / 1024})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=80, help="of the clip")
    parser.add_argument("--rows", type=int, default=240, help="height at which the networks work")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "frames"
        write_frames(frames, options.frames)
        context = multiprocessing.get_context("spawn")
        for n_frames in (options.frames // 4, options.frames):
            results = context.Queue()
            process = context.Process(target=run, args=(frames, n_frames, options.rows, results))
            process.start()
            while process.is_alive() and results.empty():
                time.sleep(1)
            found = results.get(timeout=10)  # it raises where the process has failed
            process.join()
            print(f"{n_frames} frames at {options.rows} rows, peak {found['memory']:.0f} MB")
            for step in ("RAFT", "superpixels", "everything else"):
                print(f"  {step:16} {found[step] / n_frames:.3f} s a frame", flush=True)


if __name__ == "__main__":
    main()
