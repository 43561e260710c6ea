"""First masks given: objects that follow the flow with the votes of superpixels, beside pixels that follow it alone.

Five unseen crowds (25 frames of 160x288) and, with ``--davis``, six sequences of the DAVIS 2016 train split (22 frames
of 240p), flow and superpixels by the shipped networks. Printed is J, the mean over the frames after the first and over
the objects of the first frame; and the IoU of what moves, every third frame, by the shipped U-Net of one mask and by
that of several with all bodies together.

    python benchmarks/given.py [--davis DAVIS2016] [--cache cache] [--polish search]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from diffslic import datasets, pipeline
from diffslic.datasets import Clip
from diffslic.flow import POLISHES, RAFT
from diffslic.segmentation import UNet
from diffslic.segmentation.propagation import carry
from diffslic.superpixels import SSN

CROWDS, CROWD_FRAMES, SIZE, SEED = 5, 25, (160, 288), 980_000
SEQUENCES, DAVIS_FRAMES = ("bear", "bmx-bumps", "dance-jump", "dog-agility", "rhino", "soccerball"), 22


def pixels_alone(clip: Clip, first: torch.Tensor) -> NDArray[np.int64]:
    """(T, H, W): every pixel takes the label where its flow leads, whatever its superpixel."""
    labels = [first.numpy()]
    for view in list(pipeline.views_of(clip))[1:]:
        regions = view.regions(torch.zeros(clip.size, dtype=torch.bool))
        labels.append(carry(regions, labels[-1], 256, view.back).labels.clip(0))
    return np.stack(labels)


def mean_j(labels: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    ids = [name for name in np.unique(truth[0]) if name not in (0, 255)]
    return float(np.mean([[((ours == name) & (theirs == name)).sum() / max(1, ((ours == name) | (theirs == name)).sum())
                           for ours, theirs in zip(labels[1:], truth[1:])] for name in ids]))


def clips(davis: Path | None, cache: Path, polished: str) -> Iterator[tuple[str, Clip]]:
    raft, ssn = RAFT.from_pretrained("small"), SSN.from_pretrained("scenes")

    def prepared(clip: Clip, kind: str) -> Clip:
        folders = [pipeline.cache_folder(cache, kind, f"{clip.size[0]}x{clip.size[1]}", part)
                   for part in ("flow", "superpixels")]
        found = pipeline.precompute_flow([clip], raft, folders[0], polished=polished, both_ways=True,
                                         progress=False)
        return pipeline.precompute_superpixels(found, ssn, folders[1], progress=False)[0]

    for scene in datasets.open("scenes", preset="crowd", n_clips=CROWDS, n_frames=CROWD_FRAMES, size=SIZE, seed=SEED,
                               lighting=0.1, noise=0.01):
        yield "crowds", prepared(scene, "given")
    for clip in datasets.open("davis2016", root=davis, resolution="240p", sequences=SEQUENCES) if davis else ():
        yield "DAVIS", prepared(clip.part(0, DAVIS_FRAMES), "given")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path, help="the folder of DAVIS 2016, with 240p")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="flow and superpixels are kept below it")
    parser.add_argument("--polish", default="variational", choices=list(POLISHES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    nets = [UNet.from_pretrained(name) for name in ("motion", "instances")]
    rows: dict[str, list[list[float]]] = {}
    print(f"{'':22} followed  pixels | moving: motion instances")
    for kind, clip in clips(options.davis, options.cache, options.polish):
        truth = np.stack([clip.labels(t).numpy() for t in range(len(clip))])
        first = torch.from_numpy(truth[0])
        shares = []
        for net in nets:
            pairs = [(pipeline.moving(net, view).numpy(), true > 0)
                     for view, true in list(zip(pipeline.views_of(clip), truth))[1:-1:3]]
            shares.append(float(np.mean([(m & t).sum() / max(1, (m | t).sum()) for m, t in pairs])))
        rows.setdefault(kind, []).append([mean_j(pipeline.propagate_objects(clip, {0: first}), truth),
                                          mean_j(pixels_alone(clip, first), truth), *shares])
        print(f"{clip.name:22}" + "".join(f"{value:9.3f}" for value in rows[kind][-1]), flush=True)
    for kind, found in rows.items():
        print(f"{'mean, ' + kind:22}" + "".join(f"{value:9.3f}" for value in np.mean(found, axis=0)))


if __name__ == "__main__":
    main()
