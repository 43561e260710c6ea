"""An image, and where there is one its flow, to soft segments; and these to files."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffslic import geometry, softseg
from diffslic.datasets import io
from diffslic.flow import RAFT
from diffslic.pipeline.precompute import video_flow
from diffslic.segmentation import camera_motion
from diffslic.superpixels import SSN, classical_slic
from diffslic.training import device_of

N_SPIXELS = 500
N_LAYERS = 5
LEAST_PIXELS = 16  # of a superpixel: of a small image fewer are made
MOST_SPIXELS = 4000  # the graph joins all with all, and its eigenvectors cost the cube of their number
MOTION = 1.0  # pixels by which motions differ that part superpixels as a distance of one between vectors does


class SoftSegments(NamedTuple):
    """An image as L layers, and what they were made from: S superpixels with vectors of C channels."""

    alphas: Tensor  # (L, H, W) in [0, 1], sum to one over L; about in the order of their sizes
    shares: Tensor  # (S, L) the same of superpixels, before the refinement
    superpixels: Tensor  # (H, W) int64 from 0
    vectors: Tensor  # (S, C) means of the network's vectors, then of the residual motion where flow was given
    spectrum: softseg.Spectrum  # of the graph of superpixels
    picture: Tensor  # (3, H, W) in [0, 1] the network's vectors as colours


@torch.no_grad()
def soft_segments(image: Tensor, network: softseg.EmbeddingNet, n_layers: int = N_LAYERS, n_spixels: int = N_SPIXELS, *,
                  flow: Tensor | None = None, ssn: SSN | None = None, radius: float | None = None,
                  strength: float = softseg.STRENGTH) -> SoftSegments:
    """Part an image into layers whose shares of every pixel sum to one.

    Args:
        image: (3, H, W) RGB in [0, 1], on the network's device.
        network: what says which superpixels are alike.
        n_layers: L, at most as many as there are superpixels.
        n_spixels: about how many superpixels; of a small image fewer. Of a grainy one classical SLIC makes few: ``ssn``
            then does better.
        flow: (2, H, W) in pixels. What moves otherwise than the camera makes the frame move is then parted by its
            motion too.
        ssn: takes the superpixels of this network; None, those of classical SLIC.
        radius: joins superpixels no further apart than this share of the diagonal; None joins all with all.
        strength: see :func:`diffslic.softseg.refine`.

    Raises:
        ValueError: more layers than superpixels, flow of another size, no such number of superpixels or radius.
    """
    if image.ndim != 3:
        raise ValueError(f"image must be (3, H, W), got {tuple(image.shape)}")
    if not 1 <= n_spixels <= MOST_SPIXELS:
        raise ValueError(f"n_spixels must be from 1 to {MOST_SPIXELS}, got {n_spixels}")
    height, width = image.shape[1:]
    n_spixels = max(1, min(n_spixels, height * width // LEAST_PIXELS))
    superpixels = classical_slic(image, n_spixels) if ssn is None else ssn.segment(image[None], n_spixels)[0]
    count = int(superpixels.max()) + 1
    if not 1 <= n_layers <= count:
        raise ValueError(f"{count} superpixels make from 1 to {count} layers, got n_layers = {n_layers}")
    features = network(image[None])
    vectors = softseg.pool(features, superpixels[None])[0]
    if flow is not None:
        vectors = torch.cat([vectors, residual_motion(flow, superpixels) / MOTION], dim=1)
    places = None
    if radius is not None:
        grid = geometry.pixel_grid(height, width, image.device) / (height ** 2 + width ** 2) ** 0.5
        places = softseg.pool(grid[None], superpixels[None])[0]
    weights = softseg.affinity(vectors, places, radius)
    spectrum = softseg.spectrum(weights, n_layers)
    shares = softseg.soft_assignment(spectrum.vectors, n_layers)
    alphas = softseg.refine(shares.float()[superpixels].permute(2, 0, 1), image, strength)
    picture = softseg.feature_picture(geometry.resize(features, (height, width))[0], image)
    return SoftSegments(alphas, shares, superpixels, vectors, spectrum, picture)


def residual_motion(flow: Tensor, superpixels: Tensor) -> Tensor:
    """How superpixels move otherwise than the camera makes them: (S, 2), means in pixels of (2, H, W) over (H, W)."""
    if flow.shape != (2, *superpixels.shape):
        raise ValueError(f"flow must be (2, H, W) of the image's {tuple(superpixels.shape)}, got {tuple(flow.shape)}")
    return softseg.pool((flow - camera_motion(flow[None])[0])[None], superpixels[None])[0]


def save_soft_segments(path: str | Path, folder: str | Path, network: softseg.EmbeddingNet, n_layers: int = N_LAYERS,
                       n_spixels: int = N_SPIXELS, *, following: str | Path | None = None, raft: RAFT | None = None,
                       ssn: SSN | None = None, rows: int | None = None) -> SoftSegments:
    """Soft segments of an image file, as files.

    ``FOLDER/<stem>_features.png`` shows the network's vectors, ``<stem>_layer1.png`` ... are the layers, the image with
    its share as alpha, and ``<stem>_alphas.npy`` holds the shares themselves, (L, H, W) float32.

    Args:
        following: the file of the frame that follows; what moves is then parted from the rest too, by the polished flow
            of ``raft``.
        rows: height to which larger images are brought first; None keeps their size.
        network, n_layers, n_spixels, ssn: see :func:`soft_segments`.

    Raises:
        FileNotFoundError, ValueError: no such file, not an image; frames of two sizes; see :func:`soft_segments`.
    """
    path, folder, device = Path(path), Path(folder), device_of(network)
    image, flow = _read(path, rows, device), None
    if following is not None:
        if raft is None:
            raise ValueError("the frame that follows is compared by RAFT: raft=... is missing")
        after = _read(Path(following), rows, device)
        io.check_size(following, after, tuple(image.shape[1:]), "the frame before")
        flow = next(video_flow(raft, [image, after]))
    try:
        made = soft_segments(image, network, n_layers, n_spixels, flow=flow, ssn=ssn)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    io.write_image(folder / f"{path.stem}_features.png", made.picture)
    for number, alpha in enumerate(made.alphas, 1):
        io.write_image(folder / f"{path.stem}_layer{number}.png", torch.cat([image, alpha[None]]))
    io.write_npy(folder / f"{path.stem}_alphas.npy", made.alphas.cpu().numpy())
    number = n_layers + 1
    while (old := folder / f"{path.stem}_layer{number}.png").is_file():  # of a run with more layers
        old.unlink()
        number += 1
    return made


def _read(path: Path, rows: int | None, device: torch.device) -> Tensor:
    image = io.read_image(path)
    height, width = image.shape[1:]
    if rows is not None and height > rows:
        image = geometry.resize(image[None], (rows, max(1, round(width * rows / height))))[0].clamp(0, 1)
    return image.to(device)
