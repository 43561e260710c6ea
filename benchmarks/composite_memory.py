"""Memory of training a composite on all of DAVIS at 240p: flow read as it is needed, beside all of it in memory.

The flow lies in the composite study's layout, one HDF5 file per video. It is one field, the same for every frame: what
the numbers are does not matter for the memory. One way runs an epoch of the recipe's batches and then three training
steps, the other holds all flow and nothing else, each in a process of its own; printed is the peak of its resident
memory (Linux).

    DIFFSLIC_REFERENCE=<folder with data/DAVIS2016> python benchmarks/composite_memory.py
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from diffslic import datasets
from diffslic.datasets.clip import Clip
from diffslic.datasets.composite_flow import with_composite_flow, write_composite_flow
from diffslic.recipes import ssn
from diffslic.superpixels import SSN, SSNConfig, label_reconstruction
from measuring import peak_memory

BATCH = 6


def streamed(clips: Sequence[Clip]) -> int:
    """One epoch of the recipe's batches and three training steps; the number of frames."""
    crops = ssn.Crops(clips, BATCH, seed=0, flow=True)
    network = SSN(SSNConfig(width=32)).composite(4).train()
    batches = -(-len(crops.frames) // BATCH)
    for number in range(batches + 3):
        batch = crops(number)
        if number >= batches:
            soft = network(batch["image"], int(batch["n_spixels"][0]), extra=batch["flow"])
            label_reconstruction(soft, batch["segments"]).mean().backward()
    return len(crops.frames)


def loaded(clips: Sequence[Clip]) -> int:
    """All flow there and back as float32, and nothing else; the number of frames."""
    held = [torch.stack([read(t) for t in frames]) for clip in clips
            for read, frames in ((clip.flow, range(len(clip) - 1)), (clip.backward_flow, range(1, len(clip))))]
    return sum(len(fields) + 1 for fields in held) // 2


WAYS = {"streamed": streamed, "loaded": loaded}


def peak(job: tuple[str, str, str]) -> tuple[int, float, float]:
    """Frames, seconds and megabytes at the most of one way."""
    torch.set_num_threads(1)
    way, root, flow = job
    started = time.perf_counter()
    clips = [with_composite_flow(clip, Path(flow) / f"{clip.name}.h5")
             for clip in datasets.open("davis2016", root=root, resolution="240p")]
    frames = WAYS[way](clips)
    return frames, time.perf_counter() - started, peak_memory()


def main() -> None:
    if "DIFFSLIC_REFERENCE" not in os.environ:
        print("composite_memory: left out, since DIFFSLIC_REFERENCE names no folder with data/DAVIS2016")
        return
    root = Path(os.environ["DIFFSLIC_REFERENCE"]) / "data/DAVIS2016"
    with tempfile.TemporaryDirectory() as flow, \
            multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for clip in datasets.open("davis2016", root=root, resolution="240p"):
            field = 4 * torch.rand(2, *clip.size, generator=torch.Generator().manual_seed(0)).round()
            write_composite_flow(clip.with_readers(flow=lambda t, f=field: f, backward_flow=lambda t, f=field: f),
                                 Path(flow) / f"{clip.name}.h5")
        for way in WAYS:
            frames, seconds, megabytes = pool.apply(peak, ((way, str(root), flow),))
            print(f"{way:9} {frames} frames in {seconds:.0f} s, at most {megabytes:.0f} MB")


if __name__ == "__main__":
    main()
