"""Does a body keep its label over 200 frames? Six scenes of bodies that cross all the time, their true flow, windows
of 9 frames.

Each window is segmented by itself: by EM with motions that last (``diffslic.segmentation.grown_layers``), whose layers
are put in any order, and by the shipped space-time network, whose queries give an order of their own. Then
    linked   windows that overlap by four frames, assigned one to one by what the points of the scene have been called
             (``diffslic.segmentation.link``)
    chained  the same windows, each layer named after the one that it overlaps most with
    side     windows side by side, layers as they come
and, as the most that any naming could reach, each window by itself. Scored is the intersection over union of each
moving body with the one label that suits it best over the whole clip; means over bodies, then over scenes.

    python benchmarks/linking.py [--preset plaza]
"""

import argparse
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from diffslic import datasets, geometry, metrics
from diffslic.segmentation import MotionNet, Window, grown_layers, link, window_starts

N_SCENES, N_FRAMES, SIZE, LENGTH, OVERLAP = 6, 200, (64, 112), 9, 4


def in_any_order(masks: Tensor, chance: torch.Generator) -> Tensor:
    """Layers (L, T, H, W) that no longer tell when they were found."""
    return masks[torch.randperm(len(masks), generator=chance)]


def chained(windows: Sequence[Window]) -> Tensor:
    """Labels (T, H, W); two layers may take the same name."""
    labels = windows[0].masks.argmax(0)
    for start, masks, _ in windows[1:]:
        new = masks.argmax(0)
        before, after = labels[start:], new[:len(labels) - start]
        names = torch.tensor([int(np.argmax([overlap(before == old, after == layer) for old in range(len(masks))]))
                              for layer in range(len(masks))])
        labels = torch.cat([labels, names[new[len(before):]]])
    return labels


def overlap(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum()) / max(1, float((first | second).sum()))


def body_score(labels: Tensor, truth: Tensor) -> float:
    return float(np.mean([score for body, score in metrics.best_iou(labels, truth).items() if body]))


def scores(flow: Tensor, truth: Tensor, segment: Callable[[Tensor], Tensor]) -> list[float]:
    """Linked, chained, side by side, each window by itself."""
    windows = [Window(start, segment(flow[start:start + LENGTH]), flow[start:start + LENGTH])
               for start in window_starts(len(flow), LENGTH, OVERLAP)]
    starts = range(0, len(flow), LENGTH)
    alone = [segment(flow[start:start + LENGTH]).argmax(0) for start in starts]
    linked = torch.stack(list(link(windows)), dim=1).argmax(0)
    parts = [truth[start:start + LENGTH] for start in starts]
    most = [body_score(found, part) for found, part in zip(alone, parts) if part.any()]
    return [*(body_score(labels, truth) for labels in (linked, chained(windows), torch.cat(alone))),
            float(np.mean(most))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="plaza", help="of the scenes: plaza, or crowd, whose bodies soon leave")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = torch.Generator().manual_seed(0)
    net = MotionNet.from_pretrained("spacetime")
    ways = {"EM": lambda flow: in_any_order(grown_layers(flow), chance),
            "network": lambda flow: geometry.resize(torch.stack(list(net.masks(flow)), dim=1).transpose(0, 1),
                                                    SIZE).transpose(0, 1)}
    rows: dict[str, list[list[float]]] = {name: [] for name in ways}
    for clip in datasets.open("scenes", preset=options.preset, n_clips=N_SCENES, n_frames=N_FRAMES + 1, size=SIZE,
                              seed=950_000):
        flow = torch.stack([clip.flow(t) for t in range(N_FRAMES)])
        truth = torch.stack([clip.labels(t) for t in range(N_FRAMES)])
        for name, segment in ways.items():
            rows[name].append(scores(flow, truth, segment))
            print(f"{clip.name} {name:8} " + " ".join(f"{score:.3f}" for score in rows[name][-1]), flush=True)
    print(f"{'mean':12} {'':8} linked chained  side  windows alone; linked over chained, over side by side")
    for name, found in rows.items():
        table = np.array(found)
        leads = [table[:, 0] - table[:, other] for other in (1, 2)]
        print(f"{'':12} {name:8} " + " ".join(f"{score:.3f}" for score in table.mean(axis=0)) + "; "
              + ", ".join(f"{lead.mean():+.3f} +- {lead.std(ddof=1) / len(lead) ** 0.5:.3f}" for lead in leads))


if __name__ == "__main__":
    main()
