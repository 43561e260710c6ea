"""To a fraction of a pixel: what is done to RAFT's flow before anything else sees it."""

from collections.abc import Callable

from torch import Tensor

from diffslic.flow.classical import SEARCH, inverse_search
from diffslic.flow.variational import SOLVED, variational_refinement

SMALLEST_SIDE = 16  # pixels: smaller images have no room for a search over patches, and are nothing at a quarter
POLISHES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "variational": variational_refinement, "search": inverse_search, "none": lambda image1, image2, flow: flow}


def polish(image1: Tensor, image2: Tensor, flow: Tensor, way: str = "variational") -> Tensor:
    """Bring a flow that is roughly right to a fraction of a pixel.

    RAFT decides at an eighth of the image's size: it finds far matches, and leaves small motions and the outlines of
    things to interpolation. Two ways start from there, in about a tenth of a second per pair at 240x428 on one
    core; ``benchmarks/flow.py`` compares them.

    Args:
        image1, image2: (B, 3, H, W) RGB in [0, 1]. flow: (B, 2, H, W) in pixels, finite.
        way: "variational" (:func:`diffslic.flow.variational.variational_refinement`, on the device), "search"
            (:func:`diffslic.flow.classical.inverse_search`, OpenCV's, on the host) or "none", which returns the flow.

    Returns:
        (B, 2, H, W) in pixels, on the flow's device and without gradient; images with a side of less than 16 pixels
        keep their flow.

    Raises:
        ValueError: no such way, sizes that do not belong together, or, of "search", what is not finite.
    """
    check_polish(way)
    if image1.ndim != 4 or image1.shape != image2.shape or flow.shape != (len(image1), 2, *image1.shape[2:]):
        raise ValueError(f"polish takes images (B, 3, H, W) and flow (B, 2, H, W) of one size, got "
                         f"{tuple(image1.shape)}, {tuple(image2.shape)} and {tuple(flow.shape)}")
    if min(flow.shape[-2:]) < SMALLEST_SIDE:
        return flow.detach()
    return POLISHES[way](image1, image2, flow.detach())


def check_polish(way: str) -> None:
    """Refuse a way that there is not, with a ValueError."""
    if way not in POLISHES:
        raise ValueError(f"flow is polished by one of {', '.join(POLISHES)}, got {way!r}")


def polish_settings(way: str) -> str:
    """What makes flow that was polished this way what it is: a cache made with other settings is made again.

    Raises:
        ValueError: no such way.
    """
    check_polish(way)
    return {"search": SEARCH, "variational": SOLVED, "none": ""}[way]
