"""Several objects over time: proposals of each frame become tracks that keep their names.

Every frame is a graph of superpixels (``regions``), parted into proposals by that graph or by a network
(``instances``). What was named in the frame before is carried along its flow, and the proposals are matched to it one
to one. A track lives on where it is carried even when nothing of it moves,
as long as its colours speak for it, and is known again by them when it comes back from behind something.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from diffslic.segmentation.propagation import Frame, carry
from diffslic.segmentation.regions import PROPORTION, Floats, Indices, Regions

MAX_OBJECTS = 20  # that the DAVIS 2017 unsupervised protocol allows in a video
LEAST_OVERLAP = 0.1  # intersection over union with what was carried, below which a proposal does not go on with a track
APPEARANCE = 0.3  # weight of the likeness of colours beside that overlap
JOINS = 0.3  # share of a proposal carried from one track, above which it may be a part of it that came loose
OTHER_MOTION = 2.0  # difference in motion, as between neighbours in a graph, above which it is an object of its own
KEEPS = 0.5  # share of a superpixel carried from a track without a proposal, above which it stays with that track
LIVES_ON = 0.5  # the same outside the foreground
GROUND = 0.7  # share of a superpixel outside the foreground carried from tracks, below which its colours are ground
LOST = 4.0  # superpixels carried from a track below which it may have gone behind something
KNOWN_AGAIN = 0.7  # likeness of colours above which a lost track is found again
PATIENCE = 40  # frames for which it may be
RENEWAL = 0.1  # share of a track's colours that every frame renews


@dataclass
class Track:
    """What is known of an object."""

    histogram: Floats  # (64,) its colours, summing to one
    motion: Floats  # (2,) mean flow in pixels
    seen: int  # the last frame in which it was


class Unpools(Protocol):
    """Soft superpixels, such as :class:`diffslic.superpixels.SoftSLIC`."""

    def unpool(self, values: Tensor) -> Tensor:
        """(B, S, C) to (B, C, H, W)."""


@dataclass
class Tracker:
    """Names objects frame by frame; nothing of earlier frames but the last labels and each track's colours is kept."""

    most: int = MAX_OBJECTS  # names at a time; one that was lost for long is given to another object
    tracks: dict[int, Track] = field(default_factory=dict)
    labels: Indices | None = None  # (H, W) of the frame before
    frame: int = -1

    def step(self, regions: Regions, found: Indices, back: Tensor | None = None,
             revealed: Tensor | None = None) -> Frame:
        """The objects of the next frame.

        Args:
            regions: of this frame, with what may be an object as foreground.
            found: (S,) the proposal of each superpixel from 0, -1 where there is none; see
                :func:`diffslic.segmentation.proposals` and :func:`diffslic.segmentation.network_proposals`.
            back: flow (2, H, W) in pixels from this frame to the one before; None in the first frame.
            revealed: (H, W) bool, pixels that the frame before hides.

        Raises:
            ValueError: no flow back from a frame that has one before it, or one of another size; proposals of other
                superpixels.
        """
        if found.shape != regions.area.shape:
            raise ValueError(f"proposals must be those of {len(regions.area)} superpixels, got {found.shape}")
        self.frame += 1
        size, count = regions.labels.shape, max(self.tracks, default=0) + 1
        places, carried = np.zeros(size, dtype=np.int64), np.zeros((len(regions.area), count))
        if self.labels is not None:
            moved = carry(regions, self.labels, count, back, revealed)
            places, carried = np.where(moved.known, moved.labels, -1), moved.share
        names = self._names(regions, found, carried)                        # (P,)
        decision = np.append(names, 0)[found]                               # -1, the background, is the last
        kept = self._kept(regions, found, carried, names, decision)
        shown = regions.moving | kept[regions.labels] | (places == decision[regions.labels])
        self.labels = np.where(shown, decision[regions.labels], 0)
        self._remember(regions, decision)
        return Frame(torch.from_numpy(self.labels), torch.from_numpy(decision))

    def _names(self, regions: Regions, found: Indices, carried: Floats) -> Indices:
        """The track of each proposal: matched, a part that came loose, known again, new, or 0 for none."""
        count, known = int(found.max(initial=-1)) + 1, sorted(self.tracks)
        names = np.zeros(count, dtype=np.int64)
        members = found == np.arange(count)[:, None]                        # (P, S)
        area, histograms = members @ regions.area, members @ regions.histogram
        histograms = histograms / histograms.sum(axis=1, keepdims=True).clip(1)
        alike = np.sqrt(histograms) @ np.sqrt(np.array([self.tracks[name].histogram for name in known]).reshape(
            len(known), histograms.shape[1])).T                             # (P, K) Bhattacharyya coefficients
        both = members @ (regions.area[:, None] * carried[:, known])        # (P, K)
        there = regions.area @ carried[:, known]                            # (K,) pixels
        overlap = both / (area[:, None] + there - both).clip(1)
        score = np.where(overlap > LEAST_OVERLAP, overlap + APPEARANCE * alike, 0)
        for i, k in zip(*linear_sum_assignment(score, maximize=True)):
            names[i] = known[k] if score[i, k] > 0 else 0
        for i in np.flatnonzero(names == 0):
            k = int((both[i] / area[i]).argmax()) if known else -1
            if known and both[i, k] > JOINS * area[i] and self._is_part(regions, found, names, members[i], known[k]):
                names[i] = known[k]
                continue
            lost = [k for k, name in enumerate(known) if name not in names and there[k] < LOST * regions.area.mean()
                    and self.frame - self.tracks[name].seen <= PATIENCE]
            again = max(lost, key=lambda k: alike[i, k], default=-1)
            if again >= 0 and alike[i, again] > KNOWN_AGAIN:
                names[i] = known[again]
            elif name := self._free_name():
                names[i] = name
                self.tracks[name] = self._track(regions, members[i])
        return names

    def _free_name(self) -> int:
        """A name for a new object; 0 where there may be none."""
        if len(self.tracks) < self.most:
            return next(name for name in range(1, self.most + 1) if name not in self.tracks)
        name = min(self.tracks, key=lambda name: self.tracks[name].seen)
        return name if self.frame - self.tracks[name].seen > PATIENCE else 0

    def _is_part(self, regions: Regions, found: Indices, names: Indices, piece: NDArray[np.bool_], name: int) -> bool:
        """Whether a piece moves with the proposals that go by a name, or else with what the track was."""
        rest = np.append(names == name, False)[found]                       # (S,)
        motion = _mean_motion(regions, rest) if rest.any() else self.tracks[name].motion
        scale = 1 + PROPORTION * np.hypot(*motion)
        return bool(np.hypot(*(_mean_motion(regions, piece) - motion)) < OTHER_MOTION * scale)

    def _kept(self, regions: Regions, found: Indices, carried: Floats, names: Indices,
              decision: Indices) -> NDArray[np.bool_]:
        """Superpixels (S,) outside the foreground that stay with their track; all that stay enter ``decision``.

        In a proposal that holds two bodies one of them has no proposal: its superpixels stay with it as well.
        """
        mine = carried[:, 1:].argmax(axis=1) + 1 if carried.shape[1] > 1 else np.zeros(len(found), dtype=np.int64)
        share = carried[np.arange(len(found)), mine]
        stays = (found >= 0) & (share > KEEPS) & (mine > 0) & ~np.isin(mine, names)
        histograms = np.zeros((carried.shape[1], regions.histogram.shape[1]))  # of the tracks, the ground's first
        histograms[0] = ((found < 0) & (carried[:, 1:].sum(axis=1) < GROUND)) @ regions.histogram
        histograms[0] /= histograms[0].sum().clip(1)
        for name, track in self.tracks.items():
            if name < len(histograms):                                      # the others are new in this frame
                histograms[name] = track.histogram
        alike = np.sqrt(regions.histogram) @ np.sqrt(histograms).T          # (S, K)
        better = alike[np.arange(len(found)), mine] > alike[:, 0]
        kept = (found < 0) & (share > LIVES_ON) & (mine > 0) & better
        decision[stays | kept] = mine[stays | kept]
        return kept

    def _remember(self, regions: Regions, decision: Indices) -> None:
        for name in np.unique(decision[decision > 0]).tolist():
            now, before = self._track(regions, decision == name), self.tracks[name].histogram
            self.tracks[name] = Track(before + RENEWAL * (now.histogram - before), now.motion, self.frame)

    def _track(self, regions: Regions, members: NDArray[np.bool_]) -> Track:
        histogram = members @ regions.histogram
        return Track(histogram / histogram.sum(), _mean_motion(regions, members), self.frame)


def soft_masks(soft: Unpools, decision: Tensor, names: Sequence[int]) -> Tensor:
    """What superpixels decided, as soft as they are: (1 + K, H, W) shares of the background and of K objects.

    A pixel between superpixels belongs to each by its affinity; the sum over all names is 1.

    Args:
        soft: of the frame. decision: (S,) of :class:`Frame`. names: the objects wanted; all others are background.
    """
    table = decision[:, None] == torch.tensor(names, dtype=decision.dtype, device=decision.device)  # (S, K)
    shares = torch.cat([~table.any(1, keepdim=True), table], dim=1).float()
    return soft.unpool(shares[None])[0]


def largest_objects(labels: NDArray[np.integer], count: int = MAX_OBJECTS) -> NDArray[np.uint8]:
    """Labels (T, H, W) of the ``count`` objects with the most pixels over all frames, numbered anew from 1."""
    names, pixels = np.unique(labels[labels > 0], return_counts=True)
    chosen = np.sort(names[np.argsort(-pixels, kind="stable")[:count]])
    table = np.zeros(int(labels.max(initial=0)) + 1, dtype=np.uint8)
    table[chosen] = np.arange(1, len(chosen) + 1)
    return table[labels]


def _mean_motion(regions: Regions, members: NDArray[np.bool_]) -> Floats:
    return (members * regions.area) @ regions.motion / (members @ regions.area).clip(1)
