"""Flow, superpixels and what moves to several objects with names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffslic.datasets.clip import VOID, Clip
from diffslic.flow import occlusion
from diffslic.pipeline.inputs import Superpixels, network_input
from diffslic.segmentation import Regions, Tracker, UNet, body_logits, network_proposals, proposals, regions_of
from diffslic.segmentation.propagation import Frame, carry, follow, with_given
from diffslic.training import device_of


class View(NamedTuple):
    """What is known of a frame before anything is told apart."""

    frame: Tensor  # (3, H, W) RGB in [0, 1]
    flow: Tensor  # (2, H, W) in pixels to the next frame; of the last one the way back, turned around
    back: Tensor | None  # (2, H, W) to the frame before
    hidden: Tensor | None  # (H, W) bool: what the next frame does not show
    revealed: Tensor | None  # (H, W) bool: what the frame before did not show
    superpixels: Superpixels

    def regions(self, foreground: Tensor) -> Regions:
        """The frame as a graph, of what may be an object (H, W)."""
        return regions_of(self.superpixels.labels, self.frame, self.flow, foreground, self.hidden)


Proposals = Callable[[View, Regions], NDArray[np.int64]]  # (S,) the proposal of each superpixel, -1 for none


def graph_proposals(view: View, regions: Regions) -> NDArray[np.int64]:
    """Objects by merging superpixels on the graph: see :func:`diffslic.segmentation.proposals`."""
    return proposals(regions)


def learned_proposals(net: UNet) -> Proposals:
    """Objects by a network of several masks: see :func:`diffslic.segmentation.network_proposals`."""

    @torch.no_grad()
    def propose(view: View, regions: Regions) -> NDArray[np.int64]:
        return network_proposals(body_logits(net, _channels(net, view))[0], regions)

    return propose


@torch.no_grad()
def moving(unet: UNet, view: View) -> Tensor:
    """What moves by itself in a frame, (H, W) bool on the CPU, by a network of one mask or by all bodies of several.

    Seen once, and not in a mirror as well as :func:`predict` does: superpixels smooth the borders anyway, and it takes
    half the time.
    """
    channels = _channels(unet, view)
    if unet.config.out_channels > 1:
        return body_logits(unet, channels)[0].argmax(0).cpu() > 0
    return unet(channels)[0, 0].cpu() > 0


def _channels(net: UNet, view: View) -> Tensor:
    """What a network reads of a frame, (1, C, H, W), made on its device."""
    device = device_of(net)
    superpixels = Superpixels(*(part.to(device) for part in view.superpixels))
    return network_input(net.config.inputs, view.flow.to(device), superpixels, view.frame.to(device))[None]


def views_of(clip: Clip) -> Iterator[View]:
    """Frames of a clip with what it already holds (see ``precompute_*``), superpixels and flow both ways.

    Raises:
        ValueError: a single frame. LookupError: a clip without flow both ways or superpixels.
    """
    if len(clip) < 2:
        raise ValueError(f"clip {clip.name!r} has a single frame: motion needs at least two")
    back = revealed = None
    for t in range(len(clip)):
        superpixels = Superpixels(clip.superpixel_labels(t), clip.superpixel_vectors(t))
        if t == len(clip) - 1:
            assert back is not None
            yield View(clip.frame(t), -back, back, None, revealed, superpixels)
            return
        flow, after = clip.flow(t), clip.backward_flow(t + 1)
        yield View(clip.frame(t), flow, back, occlusion(flow[None], after[None])[0], revealed, superpixels)
        back, revealed = after, occlusion(after[None], flow[None])[0]


def track(views: Iterable[View], masks: Iterable[Tensor], propose: Proposals = graph_proposals,
          tracker: Tracker | None = None) -> Iterator[Frame]:
    """Objects frame by frame: what moves is parted into proposals, and these keep their names.

    Args:
        views: of all frames in order. masks: (H, W) bool of each, where something moves by itself.
        propose: how a frame is parted, :func:`graph_proposals`, :func:`learned_proposals` or your own.
        tracker: None: a new one with its defaults.
    """
    tracker = tracker or Tracker()
    for view, mask in zip(views, masks):
        regions = view.regions(mask)
        yield tracker.step(regions, propose(view, regions), view.back, view.revealed)


def predict_objects(clip: Clip, masks: NDArray[np.integer], propose: Proposals = graph_proposals,
                    tracker: Tracker | None = None) -> NDArray[np.int64]:
    """Objects of a clip from what it already holds: see :func:`views_of` and :func:`track`.

    Args:
        masks: (T, H, W), above 0 where something moves by itself, such as :func:`predict` gives.

    Returns:
        (T, H, W) labels: 0 background, from 1 objects.

    Raises:
        ValueError: a single frame, masks of another size or number of frames.
        LookupError: a clip without flow both ways or superpixels.
    """
    if masks.shape != (len(clip), *clip.size):
        raise ValueError(f"masks must be {(len(clip), *clip.size)}, got {masks.shape}")
    found = track(views_of(clip), (torch.from_numpy(mask > 0) for mask in masks), propose, tracker)
    return np.stack([frame.labels.numpy() for frame in found])


def propagate(views: Iterable[View], given: Mapping[int, Tensor]) -> Iterator[Frame]:
    """Objects frame by frame whose masks are given: see :func:`propagate_objects`; the masks are of the views' size."""
    count = max(int(torch.where(mask == VOID, 0, mask).max()) for mask in given.values()) + 1
    frame: Frame | None = None
    for t, view in enumerate(views):
        regions = view.regions(torch.zeros_like(view.frame[0], dtype=torch.bool))
        if frame is None:
            frame = Frame(torch.zeros(view.frame.shape[-2:], dtype=torch.int64), torch.zeros(len(regions.area)).long())
        else:
            frame = follow(regions, carry(regions, frame.labels.numpy(), count, view.back, view.revealed))
        frame = with_given(frame, regions, given[t]) if t in given else frame
        yield frame


def check_given(clip: Clip, given: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Given masks, on the CPU; those that are none of the clip's, or hold no object, are refused."""
    if not given or not set(given) <= set(range(len(clip))):
        raise ValueError(f"masks must be given of some of {len(clip)} frames, got those of {sorted(given)}")
    for t, mask in given.items():
        if mask.shape != clip.size or mask.is_floating_point() or not 0 <= int(mask.min()) <= int(mask.max()) <= VOID:
            raise ValueError(f"the mask given of frame {t} must be integers of {clip.size} from 0 to {VOID}, got "
                             f"{mask.dtype} {tuple(mask.shape)}, {mask.min():g} to {mask.max():g}")
    if not any(((mask > 0) & (mask != VOID)).any() for mask in given.values()):
        raise ValueError(f"no given mask has an object, ids from 1 to {VOID - 1}")
    return {t: mask.cpu() for t, mask in given.items()}


def propagate_objects(clip: Clip, given: Mapping[int, Tensor]) -> NDArray[np.int64]:
    """Objects whose masks are given in the first frame, or in that in which they enter, followed to the last.

    Args:
        clip: as for :func:`predict_objects`; small and fast objects are kept longer on flow with
            ``polished="search"`` (:func:`diffslic.pipeline.precompute_flow`).
        given: by frame, labels (H, W): 0 and 255, void, say nothing; other ids are objects, with gaps or without.

    Returns:
        (T, H, W) labels with the ids given; a given mask stays as it is. Where it is void, objects that were given
        before go on.

    Raises:
        ValueError: no mask, one of a frame that there is not, or of another size, or no object in any.
    """
    return np.stack([frame.labels.numpy() for frame in propagate(views_of(clip), check_given(clip, given))])
