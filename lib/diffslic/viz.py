"""Pictures: flow colours, overlays, superpixel boundaries, figure grids.

Functions take arrays or tensors as the datasets give them (images (3, H, W) in [0, 1], flow (2, H, W), labels (H, W))
or finished pictures (H, W, 3) uint8; they return pictures, axes or figures and keep nothing.
"""

from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv, to_rgb
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]          # (H, W, 3) RGB
Arraylike = NDArray | Tensor

COLORS = ("#D55E00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#0072B2", "#E69F00")  # Okabe and Ito, 2008
STYLE = {"axes.prop_cycle": cycler(color=[COLORS[i] for i in (5, 0, 2, 4, 6, 1)]), "axes.spines.top": False,
         "axes.spines.right": False, "axes.titlesize": 11, "axes.labelsize": 10, "xtick.labelsize": 9,
         "ytick.labelsize": 9, "legend.fontsize": 9, "legend.frameon": False, "image.cmap": "viridis"}
UNKNOWN_FLOW = 1e9                   # pixels: the Middlebury format calls larger values unknown


def picture(image: Arraylike) -> Picture:
    """An image as a picture (H, W, 3) uint8.

    Args:
        image: (3, H, W) or (1, H, W) floating point in [0, 1], (H, W) floating point in [0, 1], or a finished picture.

    Raises:
        ValueError: anything else.
    """
    array = _numpy(image)
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3:
        return array
    if array.dtype.kind != "f" or not (array.ndim == 2 or (array.ndim == 3 and array.shape[0] in (1, 3))):
        raise ValueError("an image must be (3, H, W), (1, H, W) or (H, W) floating point in [0, 1], or (H, W, 3) "
                         f"uint8, got {array.shape} {array.dtype}")
    channels = np.broadcast_to(array, (3, *array.shape[-2:])).transpose(1, 2, 0)
    return (np.nan_to_num(channels).clip(0, 1) * 255 + 0.5).astype(np.uint8)


# ---------------------------------------------------------------- flow


def color_wheel() -> Picture:
    """The 55 colours of Baker et al. (2011), once around from red: (55, 3) uint8."""
    runs = [(15, 0, 1), (6, 1, 0), (4, 1, 2), (11, 2, 1), (13, 2, 0), (6, 0, 2)]  # steps, full channel, moving channel
    rows = []
    for index, (steps, full, moving) in enumerate(runs):
        ramp = np.arange(steps) * 255 // steps
        colors = np.zeros((steps, 3), np.uint8)
        colors[:, full] = 255
        colors[:, moving] = ramp if index % 2 == 0 else 255 - ramp  # rising and falling take turns
        rows.append(colors)
    return np.concatenate(rows)


def flow_to_color(flow: Arraylike, max_radius: float | None = None) -> Picture:
    """Flow as colours: the hue is the direction, the saturation the length (Baker et al., 2011).

    Args:
        flow: (2, H, W) in pixels.
        max_radius: length in pixels that gets full saturation; longer vectors are darkened. Fix it over a video, or
            the colours flicker. By default the longest vector of this flow.

    Returns:
        (H, W, 3) uint8; unknown flow (NaN, infinite or beyond 1e9) is black.

    Raises:
        ValueError: not a flow, or a radius that is not positive.
    """
    flow = _flow(flow).astype(np.float64)
    known = (np.abs(flow) <= UNKNOWN_FLOW).all(0)  # false for NaN too
    flow = np.where(known, flow, 0)
    if max_radius is None:
        max_radius = float(np.hypot(*flow).max()) + 1e-5  # so that no motion at all has a colour too: white
    if not max_radius > 0:
        raise ValueError(f"max_radius must be a positive number of pixels, got {max_radius}")
    u, v = flow / max_radius
    length = np.hypot(u, v)[..., None]
    wheel = color_wheel() / 255
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    before = np.floor(place).astype(int)
    share = (place - before)[..., None]
    color = (1 - share) * wheel[before] + share * wheel[(before + 1) % len(wheel)]
    color = np.where(length <= 1, 1 - length * (1 - color), 0.75 * color)
    return (np.floor(255 * color) * known[..., None]).astype(np.uint8)


def flow_disc(size: int = 151) -> Picture:
    """The legend of :func:`flow_to_color` as a picture (size, size, 3): all vectors up to the strongest colours."""
    y, x = np.mgrid[-1:1:size * 1j, -1:1:size * 1j]
    disc = flow_to_color(np.stack([x, y]), max_radius=1)
    disc[np.hypot(x, y) > 1] = 255
    return disc


def flow_wheel(ax: Axes, max_radius: float = 1) -> Axes:
    """The legend of :func:`flow_to_color` with axes: a disc of all vectors up to ``max_radius`` pixels."""
    ax.imshow(flow_disc(), extent=(-max_radius, max_radius, max_radius, -max_radius))
    ax.set(xlabel="u (px, to the right)", ylabel="v (px, down)", xticks=[-max_radius, 0, max_radius],
           yticks=[-max_radius, 0, max_radius])
    return ax


def flow_arrows(ax: Axes, flow: Arraylike, step: int = 16, color: str = "black") -> Axes:
    """Flow (2, H, W) as one arrow in true length every ``step`` pixels, on axes that show an image."""
    starts, vectors = _arrows(flow, step)
    ax.quiver(*starts.T, *vectors.T, angles="xy", scale_units="xy", scale=1, color=color, width=0.003)
    return ax


def arrows(image: Arraylike, flow: Arraylike, step: int = 16) -> Picture:
    """The same drawn into an image, white with a dark rim.

    Raises:
        ValueError: a flow of another size.
    """
    base, (starts, vectors) = picture(image), _arrows(flow, step)
    if base.shape[:2] != tuple(flow.shape[1:]):
        raise ValueError(f"flow must be of the image's {base.shape[:2]}, got {tuple(flow.shape[1:])}")
    known = np.isfinite(vectors).all(axis=1)
    starts, vectors = starts[known], vectors[known]
    back, across = -0.3 * vectors, 0.2 * vectors[:, ::-1] * (-1, 1)
    strokes = [(starts, vectors), *((starts + vectors, back + side * across) for side in (-1, 1))]
    share = np.linspace(0, 1, 2 + min(base.shape[1], int(np.abs(vectors).max(initial=0))))[:, None, None]
    places = np.concatenate([begin + share * along for begin, along in strokes]).reshape(-1, 2)
    return dots(dots(base, places, (0, 0, 0), 3), places, (255, 255, 255))


def _arrows(flow: Arraylike, step: int) -> tuple[NDArray, NDArray]:
    """Where arrows start (A, 2), x first, and the flow there; unknown flow is NaN and has no arrow."""
    flow = _flow(flow)
    y, x = np.mgrid[step // 2:flow.shape[1]:step, step // 2:flow.shape[2]:step].reshape(2, -1)
    vectors = np.where(np.abs(flow[:, y, x]) <= UNKNOWN_FLOW, flow[:, y, x], np.nan)
    return np.stack([x, y], axis=1), vectors.T


def depth_to_color(depth: Arraylike, nearest: float | None = None, farthest: float | None = None) -> Picture:
    """Depth as a picture: near is yellow, far is violet, nothing is black. Colours run evenly in inverse depth.

    Args:
        depth: (H, W) or (1, H, W) in metres; there is none where not finite or not positive.
        nearest, farthest: metres at the ends of the colours; fix them over a video. By default those of this depth,
            a hundredth at either end left out.

    Raises:
        ValueError: not one depth, or ends that are not 0 < nearest <= farthest.
    """
    z = _numpy(depth)
    z = z[0] if z.ndim == 3 and len(z) == 1 else z
    if z.ndim != 2:
        raise ValueError(f"depth must be (H, W) or (1, H, W), got {z.shape}")
    known = np.isfinite(z) & (z > 0)
    if not known.any():
        return np.zeros((*z.shape, 3), np.uint8)
    ends = np.quantile(z[known], [0.01, 0.99])
    near, far = (end if given is None else given for end, given in zip(ends, (nearest, farthest)))
    if not 0 < near <= far:
        raise ValueError(f"the ends of the colours must be 0 < nearest <= farthest, got {near:g} and {far:g}")
    high, low = 1 / near, 1 / far
    share = (1 / np.where(known, z, 1) - low) / max(high - low, 1e-12)
    colors = (matplotlib.colormaps["viridis"](np.clip(share, 0, 1))[..., :3] * 255 + 0.5).astype(np.uint8)
    return np.where(known[..., None], colors, np.uint8(0))


# ---------------------------------------------------------------- labels


def object_colors() -> Picture:
    """The colours (256, 3) of objects in pictures: seven that people of any colour vision tell apart, and their tints.

    They are those of Okabe and Ito; files have the palette of DAVIS, whose dark red and dark green are alike to many.
    0 is black, 255 (void) pale; after seven ids the same hues come back lighter, then darker, and then all over again.
    """
    hues = np.array([to_rgb(color) for color in COLORS]) * 255
    tints = np.concatenate([hues, (hues + 255) / 2, hues / 2]).round().astype(np.uint8)
    return np.concatenate([np.zeros((1, 3)), np.resize(tints, (254, 3)), [[224, 224, 192]]]).astype(np.uint8)


def overlay(image: Arraylike, labels: Arraylike, opacity: float = 0.5) -> Picture:
    """Objects in colours over an image, each with its contour.

    Args:
        image: see :func:`picture`.
        labels: (H, W) integer or bool; 0 is background and stays as it is. Ids have the colours of
            :func:`object_colors`, modulo 256.
        opacity: of the colours, 0 to 1; contours are always opaque.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: sizes that differ, an opacity outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in [0, 1], got {opacity}")
    base, ids = _image_and_labels(image, labels)
    colors = object_colors()[ids % 256]
    mixed = np.where((ids > 0)[..., None], (1 - opacity) * base + opacity * colors + 0.5, base).astype(np.uint8)
    # The contour lies inside the object, so that touching objects have one each.
    around = np.pad(ids, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    contour = (ids > 0) & np.any([neighbour != ids for neighbour in neighbours], axis=0)
    mixed[contour] = colors[contour]
    return mixed


def boundaries(image: Arraylike, labels: Arraylike, color: tuple[int, int, int] = (255, 255, 0)) -> Picture:
    """Superpixel boundaries over an image: pixels whose right or lower neighbour has another label (H, W)."""
    base, ids = _image_and_labels(image, labels)
    edge = np.zeros(ids.shape, bool)
    edge[:, :-1] |= ids[:, :-1] != ids[:, 1:]
    edge[:-1] |= ids[:-1] != ids[1:]
    return np.where(edge[..., None], np.array(color, np.uint8), base)


def tint(image: Arraylike, weight: Arraylike, pixel: tuple[int, int],
         color: tuple[int, int, int] = (255, 0, 160)) -> Picture:
    """An image under a colour as strong as ``weight`` (H, W) in [0, 1], and a white cross at a pixel (row, column)."""
    base, share = picture(image), 0.8 * np.clip(_numpy(weight), 0, 1)[..., None]
    mixed = (base * (1 - share) + np.array(color) * share + 0.5).astype(np.uint8)
    y, x = pixel
    mixed[max(y - 4, 0):y + 5, x] = mixed[y, max(x - 4, 0):x + 5] = 255
    return mixed


def hatched(image: Arraylike, mask: Arraylike) -> Picture:
    """An image with black and white stripes where a mask (H, W) is not 0."""
    base, where = _image_and_labels(image, mask)
    stripes = np.where(np.indices(where.shape).sum(0) // 3 % 2, np.uint8(255), np.uint8(0))
    return np.where((where != 0)[..., None], stripes[..., None], base)


def recolor(image: Arraylike, alpha: Arraylike, turn: float, saturation: float = 1.0) -> Picture:
    """A layer in other colours: hues turned where ``alpha`` (H, W) in [0, 1] is, and as far as it is.

    Args:
        turn: of the circle of hues, 1 all the way round. saturation: a factor of it, from 0.
    """
    base, share = picture(image), np.clip(_numpy(alpha), 0, 1)[..., None]
    if share.shape != (*base.shape[:2], 1):
        raise ValueError(f"alpha must be of the image's {base.shape[:2]}, got {share.shape[:-1]}")
    hsv = rgb_to_hsv(base / 255)
    hsv[..., 0] = (hsv[..., 0] + turn) % 1
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 1)
    return ((1 - share) * base + share * 255 * hsv_to_rgb(hsv) + 0.5).astype(np.uint8)


def dots(image: Arraylike, places: Arraylike, color: tuple[int, int, int] = (255, 0, 160), size: int = 1) -> Picture:
    """Squares of ``size`` pixels at places (M, 2), x first, on an image; what is outside or not finite is left out."""
    shown, places = picture(image).copy(), _numpy(places)
    places = np.rint(places[np.isfinite(places).all(axis=1)])
    height, width = shown.shape[:2]
    inside = ((places >= 0) & (places < (width, height))).all(axis=1)
    x, y = places[inside].astype(int).T
    for down in range(-(size // 2), (size + 1) // 2):
        for right in range(-(size // 2), (size + 1) // 2):
            shown[(y + down).clip(0, height - 1), (x + right).clip(0, width - 1)] = color
    return shown


def mean_color(image: Arraylike, labels: Arraylike) -> Picture:
    """Each label's region (H, W) in the mean colour of its pixels."""
    base, ids = _image_and_labels(image, labels)
    _, index, counts = np.unique(ids, return_inverse=True, return_counts=True)
    index = index.ravel()
    sums = np.stack([np.bincount(index, channel.ravel()) for channel in base.transpose(2, 0, 1)], axis=1)
    return (sums / counts[:, None] + 0.5).astype(np.uint8)[index].reshape(base.shape)


# ---------------------------------------------------------------- figures


def use_style() -> None:
    """From now on all figures of this process look alike: :data:`STYLE`, for notebooks."""
    matplotlib.rcParams.update(STYLE)


def grid(images: Sequence[Arraylike], titles: Sequence[str] = (), columns: int | None = None,
         width: float = 10.0) -> Figure:
    """A figure of pictures side by side, for a notebook: without ticks, each with its title.

    The figure is the value of a notebook's cell; it is closed for pyplot, or the cell would show it twice.

    Args:
        images: each as :func:`picture` takes it.
        titles: one for each image, or none at all.
        columns: pictures in a row, by default all of them up to four.
        width: of the figure, in inches; its height follows from the pictures.

    Raises:
        ValueError: no image, or titles for some only.
    """
    if not len(images) or len(titles) not in (0, len(images)):
        raise ValueError(f"a grid needs images and as many titles or none, got {len(images)} and {len(titles)}")
    pictures = [picture(image) for image in images]
    columns = min(columns or 4, len(pictures))
    rows = -(-len(pictures) // columns)
    aspect = max(shown.shape[0] / shown.shape[1] for shown in pictures)
    title_height = 0.3 if titles else 0.05
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * (width / columns * aspect + title_height)),
                                layout="constrained", squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, shown in zip(axes.flat, pictures):
        ax.imshow(shown)
    for ax, title in zip(axes.flat, titles):
        ax.set_title(title, fontsize=11)
    plt.close(figure)
    return figure


def curves(panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], xlabel: str,
           width: float = 10.0) -> Figure:
    """A figure of lines, a panel beside the other, with one legend; closed for pyplot as :func:`grid` is.

    Args:
        panels: label of the vertical axis -> name of a line -> its x and y. Equal names share a colour.
        xlabel: of the horizontal axis, the same in all panels.
        width: of the figure, in inches.
    """
    if not panels:
        raise ValueError("curves need at least one panel, got none")
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 3.6), layout="constrained", squeeze=False)
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    for ax, (ylabel, lines) in zip(axes.flat, panels.items()):
        for name, (x, y) in lines.items():
            ax.plot(x, y, marker="o", markersize=4, label=name, color=f"C{names.index(name)}")
        ax.set_xlabel(xlabel)
        ax.set_ylabel(ylabel)
        ax.grid(alpha=0.3)
    axes[0, 0].legend()
    plt.close(figure)
    return figure


def timelines(panels: Mapping[str, tuple[Arraylike, Arraylike]], objects: Sequence[int] = (),
              width: float = 10.0) -> Figure:
    """A figure of tracks, a panel beside the other: a row per object in the colour of the label that it goes by.

    Grey: no label matches the object. Nothing: it is not there. A cross: it goes on under another label.

    Args:
        panels: title -> labels (T, K), 0 for none and -1 for absent, and switches (T, K) bool; see
            :class:`diffslic.metrics.Matches`.
        objects: names of the rows, one for each of the K objects.
        width: of the figure, in inches.

    Raises:
        ValueError: no panel or no object, labels and switches of several sizes, another number of names.
    """
    counts = {np.shape(labels)[-1] for labels, _ in panels.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"timelines need a panel, and the same objects in each, got panels of {sorted(counts)}")
    figure, axes = plt.subplots(1, len(panels), figsize=(width, 0.8), layout="constrained", squeeze=False, sharey=True)
    rows = 0
    for ax, (title, (labels, switches)) in zip(axes.flat, panels.items()):
        labels, switches = _numpy(labels).T, _numpy(switches).T                 # (K, T)
        if labels.ndim != 2 or labels.shape != switches.shape or len(objects) not in (0, len(labels)):
            raise ValueError(f"labels and switches must be (T, K) and the names K or none, got {labels.T.shape}, "
                             f"{switches.T.shape} and {len(objects)}")
        rows = max(rows, len(labels))
        shown = object_colors()[labels.clip(0, 255)]
        shown[labels == 0], shown[labels < 0] = 200, 255
        ax.imshow(shown, aspect="auto", interpolation="nearest")
        ax.plot(*np.nonzero(switches)[::-1], "x", color="black")
        ax.set(title=title, xlabel="frame", yticks=range(rows),
               yticklabels=objects if len(objects) else range(1, rows + 1))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))  # there is no frame and a half
    axes[0, 0].set_ylabel("object")
    figure.set_figheight(0.9 + 0.3 * rows)
    plt.close(figure)
    return figure


def _numpy(array: Arraylike) -> NDArray:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)


def _flow(flow: Arraylike) -> NDArray:
    array = _numpy(flow)
    if array.ndim != 3 or array.shape[0] != 2:
        raise ValueError(f"flow must be (2, H, W), got {array.shape}")
    return array


def _image_and_labels(image: Arraylike, labels: Arraylike) -> tuple[Picture, NDArray]:
    base, ids = picture(image), _numpy(labels)
    if ids.shape != base.shape[:2] or ids.dtype.kind not in "iub":
        raise ValueError(f"labels must be integer {base.shape[:2]} as the image, got {ids.shape} {ids.dtype}")
    return base, ids.astype(np.int64)
