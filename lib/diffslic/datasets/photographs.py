"""Photographs to cut surfaces and pieces from: those that ship inside scikit-image, or a folder of one's own."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from skimage import color, data
from torch import Tensor

from diffslic.datasets import io
from diffslic.datasets.folder import image_files

SHIPPED = ("astronaut", "brick", "camera", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field",
           "immunohistochemistry", "moon", "page", "retina", "rocket", "text")


@lru_cache(maxsize=2)
def photographs(folder: str | Path | None = None) -> list[Tensor]:
    """Photographs (3, H, W) in bytes, RGB, each of its own size.

    Args:
        folder: images directly in it, such as BSDS500's ``images/train``; None for those of scikit-image.

    Raises:
        FileNotFoundError, ValueError: no such folder, no images in it, or one that cannot be read.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of photographs")
        files = image_files(Path(folder))
        if not files:
            raise FileNotFoundError(f"{folder}: no images, expected photographs directly in it")
        return [(io.read_image(path) * 255).round().byte() for path in files]
    images = []
    for name in SHIPPED:
        image = getattr(data, name)()
        image = (color.gray2rgb(image) if image.ndim == 2 else image)[..., :3]
        images.append(torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1))
    return images
