"""Memory of a step of training end to end: four triples of 240x428, RAFT-small with 12 corrections, 400 superpixels.

The step is all of it: forward, backward, AdamW. With activations kept and computed once more, in single precision and
with bfloat16 products; each in a process of its own, growth of the resident memory, weights included. On a GPU it is
what torch has allocated at the most.

    python benchmarks/end_to_end_memory.py
    python benchmarks/end_to_end_memory.py --device cuda
"""

import argparse
import multiprocessing
import time

import torch

from diffslic.recipes import end_to_end
from measuring import peak_growth

SIZE, BATCH = (240, 428), 4


def step(recompute: bool, half: bool, device: str) -> None:
    torch.manual_seed(0)
    net = end_to_end.network(recompute=recompute).train().to(device)
    optimizer = torch.optim.AdamW(net.parameters())
    frames = torch.rand(3, BATCH, 3, *SIZE, device=device)
    labels = (torch.rand(BATCH, *SIZE, device=device) > 0.8).long()
    batch = {"before": frames[0], "frame": frames[1], "after": frames[2], "labels": labels}
    with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=half):
        value = end_to_end.losses(net(*frames), batch, end_to_end.WEIGHTS).mean()
    value.backward()
    optimizer.step()


def measure(job: tuple[bool, bool, str]) -> tuple[float, float]:
    """Peak memory in MB and seconds of a step."""
    if job[2] == "cpu":
        torch.set_num_threads(1)
        start = time.perf_counter()
        grown = peak_growth(lambda: step(*job))
        return grown, time.perf_counter() - start
    step(*job)  # what a first call compiles and reserves
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.synchronize()
    start = time.perf_counter()
    step(*job)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2 ** 20, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    print(f"{BATCH} triples of {SIZE[0]}x{SIZE[1]}, a step of all parts on {device}")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for half in (False, True):
            for recompute in (False, True):
                memory, seconds = pool.apply(measure, ((recompute, half, device),))
                print(f"{'bf16' if half else 'fp32'}, activations {'computed once more' if recompute else 'kept':18}  "
                      f"{memory / 1024:5.2f} GB  {seconds:5.1f} s")


if __name__ == "__main__":
    main()
