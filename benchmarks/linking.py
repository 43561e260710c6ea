"""Does a body keep its label over 200 frames? Six scenes of bodies that cross all the time, their true flow, windows
of 9 frames.

Windows come from EM with motions that last, each by itself (``diffslic.segmentation.grown_layers``), whose layers come
in the order in which they were found; from the same EM where each window begins with what the one before has found
(``grown_windows``); and from the shipped space-time network, whose queries have an order of their own. Then
    linked     windows that overlap by four frames, assigned one to one by what the points of the scene have been called
               (``diffslic.segmentation.link``)
    chained    the same windows, each layer named after the one that it overlaps most with
    assigned   the same, one to one by the Hungarian method on the overlap
    side       windows side by side that know nothing of one another, layers as they come
    shuffled   the same, layers in any order: what nobody would have to tell apart
and, for orientation, each window by itself with names of its own. Scored is the intersection over union of each moving
body with the one label that suits it best over the whole clip; means over bodies, then over scenes.

    python benchmarks/linking.py [--preset plaza]
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffslic import datasets, geometry, metrics
from diffslic.segmentation import MotionNet, Window, grown_layers, grown_windows, link, window_starts

N_FRAMES, SIZE, LENGTH, OVERLAP = 200, (64, 112), 9, 4
COLUMNS = "linked", "chained", "assigned", "side", "shuffled", "alone"
Array = NDArray[Any]


def by_overlap(windows: Sequence[Window], assign: Callable[[Array], Array]) -> Tensor:
    """Labels (T, H, W): each layer named after one of the window before, as ``assign`` says of their IoU (L, N).

    A layer that overlaps nothing gets a name of its own.
    """
    labels, n_names = windows[0].masks.argmax(0), len(windows[0].masks)
    for start, masks, _ in windows[1:]:
        new = masks.argmax(0)
        before, after = labels[start:], new[:len(labels) - start]
        scores = np.array([[overlap(before == name, after == layer) for name in range(n_names)]
                           for layer in range(len(masks))])
        names = assign(scores)
        alone = scores[np.arange(len(masks)), names] == 0
        names[alone] = n_names + np.arange(alone.sum())
        n_names += int(alone.sum())
        labels = torch.cat([labels, torch.from_numpy(names)[new[len(before):]]])
    return labels


def most_alike(scores: Array) -> Array:
    """Chaining: two layers may take the same name."""
    return scores.argmax(axis=1)


def one_to_one(scores: Array) -> Array:
    """The Hungarian method on the overlap alone."""
    return linear_sum_assignment(scores, maximize=True)[1]


def overlap(first: Tensor, second: Tensor) -> float:
    return float((first & second).sum()) / max(1, float((first | second).sum()))


def body_score(labels: Tensor, truth: Tensor) -> float:
    return float(np.mean([score for body, score in metrics.best_iou(labels, truth).items() if body]))


def apart(flow: Tensor, segment: Callable[[Tensor], Tensor], starts: Iterable[int]) -> list[Window]:
    """Windows that know nothing of one another."""
    return [Window(start, segment(flow[start:start + LENGTH]), flow[start:start + LENGTH]) for start in starts]


def scores(truth: Tensor, windows: Sequence[Window], side: Sequence[Tensor], chance: torch.Generator) -> list[float]:
    """By ``COLUMNS``, of windows that overlap and of the masks of windows side by side."""
    shuffled = [masks[torch.randperm(len(masks), generator=chance)] for masks in side]
    linked = torch.stack(list(link(windows)), dim=1).argmax(0)
    parts = [truth[window.start:window.start + LENGTH] for window in windows]
    alone = [body_score(window.masks.argmax(0), part) for window, part in zip(windows, parts) if part.any()]
    ways = [linked, by_overlap(windows, most_alike), by_overlap(windows, one_to_one),
            *(torch.cat([masks.argmax(0) for masks in order]) for order in (side, shuffled))]
    return [*(body_score(labels, truth) for labels in ways), float(np.mean(alone))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="plaza", help="of the scenes: plaza, or crowd, whose bodies soon leave")
    parser.add_argument("--scenes", type=int, default=6, help="how many")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = torch.Generator().manual_seed(0)
    net = MotionNet.from_pretrained("spacetime")

    def by_network(flow: Tensor) -> Tensor:
        return geometry.resize(torch.stack(list(net.masks(flow)), dim=0), SIZE).transpose(0, 1)

    rows: dict[str, list[list[float]]] = {name: [] for name in ("EM", "EM on", "network")}
    print(f"{'':20} " + " ".join(f"{name:>8}" for name in COLUMNS))
    for clip in datasets.open("scenes", preset=options.preset, n_clips=options.scenes, n_frames=N_FRAMES + 1, size=SIZE,
                              seed=950_000):
        flow = torch.stack([clip.flow(t) for t in range(N_FRAMES)])
        truth = torch.stack([clip.labels(t) for t in range(N_FRAMES)])
        starts, steps = window_starts(N_FRAMES, LENGTH, OVERLAP), range(0, N_FRAMES, LENGTH)
        windows = {"EM": apart(flow, grown_layers, starts), "EM on": list(grown_windows(flow, LENGTH, OVERLAP)),
                   "network": apart(flow, by_network, starts)}
        side = {"EM": apart(flow, grown_layers, steps), "network": apart(flow, by_network, steps)}
        side["EM on"] = side["EM"]
        for name in rows:
            rows[name].append(scores(truth, windows[name], [window.masks for window in side[name]], chance))
            print(f"{clip.name} {name:7} " + " ".join(f"{score:8.3f}" for score in rows[name][-1]), flush=True)
    for name, found in rows.items():
        table = np.array(found)
        print(f"{'mean':12} {name:7} " + " ".join(f"{score:8.3f}" for score in table.mean(axis=0)))
        others = {column: table[:, i] for i, column in enumerate(COLUMNS[1:-1], 1)}
        others |= {"chained EM": np.array(rows["EM"])[:, 1]} if name == "EM on" else {}
        for column, theirs in others.items():
            lead = table[:, 0] - theirs
            print(f"  linked over {column}: {lead.mean():+.3f} +- {lead.std(ddof=1) / len(lead) ** 0.5:.3f}")


if __name__ == "__main__":
    main()
