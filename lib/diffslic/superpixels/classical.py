"""Classical SLIC (Achanta et al., PAMI 2012): k-means in colour and place, by scikit-image. It is the baseline."""

import torch
from skimage.segmentation import slic
from torch import Tensor

from diffslic.superpixels.slic import grid_for


def classical_slic(image: Tensor, n_spixels: int) -> Tensor:
    """Connected superpixels of an image by scikit-image's SLIC as it comes: Lab, compactness 10, ten iterations.

    Args:
        image: (3, H, W) RGB in [0, 1].
        n_spixels: about how many. What comes is less, and of a grainy image, where small pieces are joined, far less.

    Returns:
        (H, W) int64 from 0.

    Raises:
        ValueError: more superpixels than pixels, or none.
    """
    grid_for(n_spixels, *image.shape[-2:])  # refuses numbers that the image cannot have
    labels = slic(image.detach().cpu().permute(1, 2, 0).numpy(), n_spixels, start_label=0)
    return torch.from_numpy(labels).to(image.device)
