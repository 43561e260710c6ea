"""Memory of a step of training end to end: four triples of 240x428, RAFT-small with 12 corrections, 400 superpixels.

The step is all of it: forward, backward, AdamW. With activations kept and computed once more, in single precision and
with bfloat16 products; each in a process of its own, growth of the resident memory, weights included. On a GPU it is
what torch has allocated at the most.

    python benchmarks/end_to_end_memory.py [--device cuda] [--json FILE] [--small]
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import torch

from diffslic import hardware, report
from diffslic.recipes import end_to_end
from diffslic.training import check_device
from measuring import peak_growth

SIZE, SMALL, BATCH = (240, 428), (48, 64), 4


def step(recompute: bool, half: bool, device: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    net = end_to_end.network(recompute=recompute).train().to(device)
    optimizer = torch.optim.AdamW(net.parameters())
    frames = torch.rand(3, BATCH, 3, *size, device=device)
    labels = (torch.rand(BATCH, *size, device=device) > 0.8).long()
    batch = {"before": frames[0], "frame": frames[1], "after": frames[2], "labels": labels}
    with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=half):
        value = end_to_end.losses(net(*frames), batch, end_to_end.WEIGHTS).mean()
    value.backward()
    optimizer.step()


def measure(job: tuple[bool, bool, str, tuple[int, int]]) -> tuple[float, float]:
    """Peak memory in MB and seconds of a step."""
    device = job[2]
    if device == "cpu":
        torch.set_num_threads(1)
        start = time.perf_counter()
        grown = peak_growth(lambda: step(*job))
        return grown, time.perf_counter() - start
    step(*job)  # what a first call compiles and reserves
    torch.cuda.reset_peak_memory_stats(device)
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    step(*job)
    torch.cuda.synchronize(device)
    return hardware.peak_memory(device), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write rows and notes here")
    parser.add_argument("--small", action="store_true", help="a tiny size, to try the benchmark itself")
    options = parser.parse_args()
    try:
        check_device(options.device)
    except ValueError as error:
        parser.error(str(error))
    size = SMALL if options.small else SIZE
    note = f"{BATCH} triples of {size[0]}x{size[1]}, a step of all parts on {options.device}"
    print(note)
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for half in (False, True):
            for recompute in (False, True):
                memory, seconds = pool.apply(measure, ((recompute, half, options.device, size),))
                rows.append({"precision": "bf16" if half else "fp32", "activations": "computed once more" if recompute
                             else "kept", "memory, GB": memory / 1024, "seconds": seconds})
                print("  ".join(value if isinstance(value, str) else f"{value:6.2f}" for value in rows[-1].values()),
                      flush=True)
    if options.json:
        report.write_text(options.json, report.to_json({"notes": [note], "rows": rows}))


if __name__ == "__main__":
    main()
