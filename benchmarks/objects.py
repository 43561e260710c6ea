"""Several objects in a crowd: tracks of superpixels beside connected components of the same masks.

Twenty unseen scenes of the preset ``crowd``, 40 frames of 160x288, three to five bodies that cross. Flow by the shipped
RAFT, superpixels by the shipped SSN, masks of what moves by the shipped U-Net of one mask, seen once as ``diffslic
segment --objects`` does; with ``--masks instances`` by that of several, all bodies together. From these
    graph        ``diffslic.pipeline.predict_objects``, proposals by merging on the graph
    network      the same, proposals by the shipped network of several masks
    components   ``diffslic.segmentation.linked_components``: what hangs together, linked by overlap
both with a hundred pixels at least for a new object, and the twenty largest objects kept. Scored are J&F by the DAVIS
2017 unsupervised protocol and the identity switches and misses of CLEAR MOT at an IoU of 0.5; the interval of the lead
is that of Student's t at 95 %, over scenes.

    python benchmarks/objects.py [--scenes 20] [--cache cache]
    python benchmarks/objects.py --scenes 24 --first 970000       # others, on which choices were made
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from diffslic import datasets, metrics, pipeline
from diffslic.flow import RAFT
from diffslic.segmentation import UNet, largest_objects, linked_components
from diffslic.superpixels import SSN

N_FRAMES, SIZE, SEED = 40, (160, 288), 980_000


def scores(labels: NDArray[np.int64], truth: NDArray[np.uint8]) -> tuple[float, int, int]:
    """J&F, identity switches and misses."""
    labels = largest_objects(labels)
    tracks = metrics.clear_mot(labels, truth)
    return metrics.davis(labels, truth, "unsupervised").summary()["J&F-Mean"], tracks.switches, tracks.misses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="how many")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="flow and superpixels are kept below it")
    parser.add_argument("--first", type=int, default=SEED, help="seed of the first")
    parser.add_argument("--masks", default="motion", help="the U-Net that says what moves")
    parser.add_argument("--instances", default="instances", help="the U-Net of several masks, a name or a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    raft, ssn, unet = RAFT.from_pretrained("small"), SSN.from_pretrained("scenes"), UNet.from_pretrained(options.masks)
    folders = [pipeline.cache_folder(options.cache, "crowd", f"{SIZE[0]}x{SIZE[1]}", kind)
               for kind in ("flow", "superpixels")]
    ways = {"graph": pipeline.graph_proposals,
            "network": pipeline.learned_proposals(UNet.from_pretrained(options.instances))}
    rows, seconds = [], []
    print(f"{'':13}" + "".join(f"{name:>23}" for name in (*ways, "components")))
    print(f"{'':13}" + 3 * "    J&F switches misses")
    for scene in datasets.open("scenes", preset="crowd", n_clips=options.scenes, n_frames=N_FRAMES, size=SIZE,
                               seed=options.first, lighting=0.1, noise=0.01):
        clips = pipeline.precompute_flow([scene], raft, folders[0], both_ways=True, progress=False)
        [clip] = pipeline.precompute_superpixels(clips, ssn, folders[1], progress=False)
        masks = np.stack([pipeline.moving(unet, view).numpy() for view in pipeline.views_of(clip)])
        truth = np.stack([clip.labels(t).numpy().astype(np.uint8) for t in range(N_FRAMES)])
        start = time.process_time()
        tracks = {name: pipeline.predict_objects(clip, masks, propose) for name, propose in ways.items()}
        seconds.append((time.process_time() - start) / N_FRAMES / len(ways))
        rows.append([scores(labels, truth) for labels in (*tracks.values(), linked_components(masks))])
        print(f"{clip.name:13}" + "".join(f"{score:7.3f} {switches:8} {misses:6}"
                                          for score, switches, misses in rows[-1]), flush=True)
    table = np.array(rows)                                                  # (scenes, ways, 3)
    print(f"{'mean, sums':13}" + "".join(f"{way[:, 0].mean():7.3f} {way[:, 1].sum():8.0f} {way[:, 2].sum():6.0f}"
                                         for way in table.transpose(1, 0, 2)))
    for i, name in enumerate(ways):
        lead = table[:, i, 0] - table[:, -1, 0]
        half = student.ppf(0.975, len(lead) - 1) * lead.std(ddof=1) / len(lead) ** 0.5
        print(f"{name}: lead in J&F {lead.mean():.3f} +- {half:.3f}")
    print(f"{np.median(seconds):.3f} s a frame, reading the clip included")


if __name__ == "__main__":
    main()
