"""Embedding networks trained for equal seconds by superpixels and by single pixels, judged on scenes none has seen.

Both kinds compare as many things in a picture, by the same loss and the same network. A run has a process of its own
on one thread; kinds take turns. Printed are the average precision of pairs (``metrics.retrieval``), that of mean
colours in Lab and of the shipped weights, and what a step costs: seconds, and by how much memory grows during the
first (Linux).

    python benchmarks/metric_learning.py [--seconds 240] [--seeds 3] [--compared slic,pixels,ssn]
"""

import argparse
import math
import multiprocessing
import time
from typing import NamedTuple

import numpy as np
import torch
from kornia.color import rgb_to_lab

from diffslic import datasets
from diffslic.recipes import softseg as recipe
from diffslic.recipes.ssn import PRESETS
from diffslic.softseg import EmbeddingConfig, EmbeddingNet
from diffslic.superpixels import SSN, classical_slic
from measuring import peak_growth

N_TRAIN, N_JUDGE = 160, 24
TRAIN_SEED, JUDGE_SEED = 20_000, 960_000
RATE, BATCH = 1e-3, 2


class Run(NamedTuple):
    """How one training ended."""

    ap: float
    map: float
    steps: int
    megabytes: float  # by which the first step let memory grow


def scenes(count: int, first: int) -> list[datasets.Clip]:
    return datasets.open("scenes", preset=PRESETS, n_clips=count, n_frames=2, size=recipe.CROP, lighting=0.1,
                         seed=first)


def train(compared: str, samples: recipe.Samples, judge: recipe.Judge, seconds: float, seed: int) -> Run:
    """Train for so many seconds, the rate falling with the time that is left."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    net = EmbeddingNet(EmbeddingConfig(widths=(32, 64, 128), strides=recipe.STRIDES))
    network = recipe.WithSSN(net, SSN.from_pretrained("scenes").train()) if compared == "ssn" else net
    samples.seed = seed
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-4)

    def learn(number: int) -> None:
        loss = recipe.pair_loss(network, samples(100_000 * seed + number)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    megabytes, started, step = peak_growth(lambda: learn(0)), time.perf_counter(), 1
    while (share := (time.perf_counter() - started) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, share / 0.05 + 0.01) * (1 + math.cos(math.pi * share)) / 2
        learn(step)
        step += 1
    figures = judge(net.eval())
    return Run(figures["ap"], figures["map"], step, megabytes)


def work(compared: str, samples: recipe.Samples, judge: recipe.Judge, seconds: float, seed: int, queue) -> None:
    queue.put(train(compared, samples, judge, seconds, seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--compared", default="slic,pixels")
    options = parser.parse_args()
    kinds = options.compared.split(",")
    judge, clips, samples = recipe.Judge(scenes(N_JUDGE, JUDGE_SEED)), scenes(N_TRAIN, TRAIN_SEED), {}
    for compared in kinds:
        samples[compared] = recipe.Samples(clips, compared, BATCH, 0)
        started = time.perf_counter()
        for number in range(-(-len(samples[compared].frames) // BATCH)):  # an epoch: every picture is kept from then on
            samples[compared](number)
        print(f"{compared}: {len(samples[compared].frames)} pictures read in {time.perf_counter() - started:.0f} s")
    image, started = clips[0].frame(0), time.perf_counter()
    for _ in range(10):
        classical_slic(image, recipe.n_spixels(image))
    print(f"superpixels cost {(time.perf_counter() - started) / 10:.3f} s a picture, once: no step pays for them")
    lab = judge(rgb_to_lab)
    print(f"{'Lab':8} ap {lab['ap']:.4f}, map {lab['map']:.4f}; chance {lab['chance']:.3f}")
    shipped = judge(EmbeddingNet.from_pretrained("scenes"))
    print(f"{'shipped':8} ap {shipped['ap']:.4f}, map {shipped['map']:.4f}")
    runs: dict[str, list[Run]] = {compared: [] for compared in kinds}
    context = multiprocessing.get_context("fork")  # the pictures are shared, not read again
    for seed in range(1, options.seeds + 1):
        for compared in kinds if seed % 2 else kinds[::-1]:
            queue = context.Queue()
            how = (compared, samples[compared], judge, options.seconds, seed, queue)
            process = context.Process(target=work, args=how)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{compared}, seed {seed}: the training ended with {process.exitcode}")
            run = queue.get()
            runs[compared].append(run)
            print(f"{compared:8} seed {seed}: ap {run.ap:.4f}, map {run.map:.4f}, {run.steps} steps, "
                  f"{options.seconds / run.steps:.3f} s and {run.megabytes:.0f} MB a step", flush=True)
    for compared, done in runs.items():
        print(f"{compared:8} mean of {len(done)}: ap {np.mean([run.ap for run in done]):.4f} "
              f"({np.mean([run.ap for run in done]) - lab['ap']:+.4f} over Lab), "
              f"map {np.mean([run.map for run in done]):.4f} ({np.mean([run.map for run in done]) - lab['map']:+.4f})")


if __name__ == "__main__":
    main()
