"""Soft segments: every pixel is in each of some layers by a share, as hair, smoke and edges are.

``network`` gives each pixel a vector, ``metric`` is what it learns from, by pairs of superpixels; ``spectral`` makes
segments of a graph of superpixels, ``matting`` refines them to the pixels, ``picture`` shows vectors as colours. Start
at ``pipeline.soft_segments`` to use them, at :func:`n_pair_loss` and :func:`affinity` to understand them.
"""

from diffslic.softseg.matting import STRENGTH as STRENGTH
from diffslic.softseg.matting import matting_laplacian as matting_laplacian
from diffslic.softseg.matting import refine as refine
from diffslic.softseg.metric import n_pair_loss as n_pair_loss
from diffslic.softseg.metric import pool as pool
from diffslic.softseg.metric import squared_distances as squared_distances
from diffslic.softseg.metric import superpixel_classes as superpixel_classes
from diffslic.softseg.network import EmbeddingConfig as EmbeddingConfig
from diffslic.softseg.network import EmbeddingNet as EmbeddingNet
from diffslic.softseg.picture import feature_picture as feature_picture
from diffslic.softseg.spectral import Spectrum as Spectrum
from diffslic.softseg.spectral import affinity as affinity
from diffslic.softseg.spectral import normalised_laplacian as normalised_laplacian
from diffslic.softseg.spectral import soft_assignment as soft_assignment
from diffslic.softseg.spectral import spectrum as spectrum

__all__ = ["STRENGTH", "EmbeddingConfig", "EmbeddingNet", "Spectrum", "affinity", "feature_picture",
           "matting_laplacian", "n_pair_loss", "normalised_laplacian", "pool", "refine", "soft_assignment", "spectrum",
           "squared_distances", "superpixel_classes"]
