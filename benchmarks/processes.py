"""Two processes share the work of one: training steps and precompute, on two cores of a CPU.

Both work on the same scenes of 240x428 on one thread each: one process computes the flow of all clips and then trains
the recipe's U-Net on batches of 2 B crops; two share the clips and train on B crops each, under torchrun (Fabric's DDP
over gloo). They take turns. Starting the interpreter is left out on both sides, and so is the first reading of clips.
The efficiency is the time of one process over twice that of two: 1 where sharing costs nothing.

    python benchmarks/processes.py [--rounds 3] [--steps 20] [--clips 8] [--batch-size 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from diffslic import datasets, pipeline, training
from diffslic.datasets.clip import VOID
from diffslic.flow import RAFT
from diffslic.recipes import unet
from diffslic.segmentation import UNet, UNetConfig, bce_dice
from diffslic.superpixels import SSN

N_FRAMES, SIZE = 3, (240, 428)
WARM = 3  # steps before those that are timed


def work(folder: Path, options: argparse.Namespace, batch_size: int) -> None:
    """What each process does: prepare the clips together with the others, train, and note when each began and ended."""
    torch.manual_seed(0)
    clips = datasets.open("scenes", preset="lab", n_clips=options.clips, n_frames=N_FRAMES, size=SIZE)
    raft, ssn = RAFT.from_pretrained("small"), SSN.from_pretrained("scenes")
    spans, times = {}, [time.time()]
    clips = pipeline.precompute_flow(clips, raft, folder / "flow", progress=False)
    times.append(time.time())
    clips = pipeline.precompute_superpixels(clips, ssn, folder / "superpixels", progress=False)
    times.append(time.time())
    spans["flow, a clip"], spans["superpixels, a clip"] = times[:2], times[1:]
    samples = unet.Samples(clips, pipeline.INPUTS, batch_size, seed=0)
    for number in range(len(samples.frames) // batch_size):  # every frame is kept in memory from then on
        samples(number)
    began: list[float] = []  # of each step

    def loss(network: torch.nn.Module, batch: training.Batch) -> torch.Tensor:
        began.append(time.time())
        return bce_dice(network(batch["input"]), batch["labels"], VOID)

    channels = pipeline.clip_input(clips[0], 0, pipeline.INPUTS).shape[0]
    steps = WARM + options.steps + 1
    training.fit(UNet(UNetConfig(channels, inputs=pipeline.INPUTS)), training.Batches(samples), loss,
                 lambda network: {"none": 0.0}, training.Schedule(steps, 1e-3, validate_every=steps), folder / "run",
                 monitor="none", higher_is_better=True, device="cpu", progress=False)
    spans["U-Net, a step"] = began[WARM], began[-1]
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(spans))


def seconds(processes: int, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each sort of work, of so many processes that share it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
                   "--nproc-per-node", str(processes), __file__, *sys.argv[1:], "--folder", folder,
                   "--share", str(2 * options.batch_size // processes)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        if done.returncode:
            raise SystemExit(f"{processes} processes: {done.stderr}")
        spans = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
    counts = {name: options.steps if "step" in name else options.clips for name in spans[0]}
    return {name: (max(span[name][1] for span in spans) - min(span[name][0] for span in spans)) / count
            for name, count in counts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=2, help="of each of two processes; one takes twice as many")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # where a process that is measured works
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)  # and its samples a batch
    options = parser.parse_args()
    if options.folder:
        work(options.folder, options, options.share)
        return
    measured: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(options.rounds):
        for processes, found in measured.items():
            found.append(seconds(processes, options))
    print(f"{'seconds of':20} one process  two processes  efficiency")
    for name in measured[1][0]:
        one, two = (statistics.median(found[name] for found in measured[processes]) for processes in (1, 2))
        print(f"{name:20} {one:11.3f}  {two:13.3f}  {one / (2 * two):10.2f}")


if __name__ == "__main__":
    main()
