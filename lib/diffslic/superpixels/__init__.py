"""Superpixels that learn: the room of superpixel sampling networks.

``slic`` is the differentiable clustering and what it returns, ``connectivity`` makes labels one piece each, ``ssn``
holds the networks whose features are clustered, ``spixelfcn`` the one that needs no clustering, ``losses`` what they
are trained with, ``classical`` what they are compared with. Start at :class:`SSN` to use superpixels, at
:func:`soft_slic` to understand them.
"""

from diffslic.superpixels.classical import classical_slic as classical_slic
from diffslic.superpixels.connectivity import connect as connect
from diffslic.superpixels.losses import compactness as compactness
from diffslic.superpixels.losses import label_reconstruction as label_reconstruction
from diffslic.superpixels.losses import property_reconstruction as property_reconstruction
from diffslic.superpixels.losses import reconstruct as reconstruct
from diffslic.superpixels.losses import soft_iou as soft_iou
from diffslic.superpixels.slic import SoftSLIC as SoftSLIC
from diffslic.superpixels.slic import grid_for as grid_for
from diffslic.superpixels.slic import soft_slic as soft_slic
from diffslic.superpixels.spixelfcn import SpixelFCN as SpixelFCN
from diffslic.superpixels.spixelfcn import SpixelFCNConfig as SpixelFCNConfig
from diffslic.superpixels.ssn import SSN as SSN
from diffslic.superpixels.ssn import SSNConfig as SSNConfig

__all__ = ["SSN", "SSNConfig", "SoftSLIC", "SpixelFCN", "SpixelFCNConfig", "classical_slic", "compactness", "connect",
           "grid_for", "label_reconstruction", "property_reconstruction", "reconstruct", "soft_iou", "soft_slic"]
