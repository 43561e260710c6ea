"""Motion segmentation: the room that turns flow and features into masks.

``unet`` is the network and its supervised loss, ``parametric`` the motion models that explain the flow of a mask,
``coherence`` the loss that follows from them, ``spacetime`` both over whole clips, ``baselines`` the methods that learn
nothing and that every network must beat.
"""

from diffslic.segmentation.baselines import camera_residual_mask as camera_residual_mask
from diffslic.segmentation.baselines import flow_magnitude_mask as flow_magnitude_mask
from diffslic.segmentation.coherence import coherence_loss as coherence_loss
from diffslic.segmentation.parametric import camera_motion as camera_motion
from diffslic.segmentation.parametric import fit_motion as fit_motion
from diffslic.segmentation.parametric import motion_basis as motion_basis
from diffslic.segmentation.parametric import motion_flow as motion_flow
from diffslic.segmentation.spacetime import fit_spacetime as fit_spacetime
from diffslic.segmentation.spacetime import spacetime_flow as spacetime_flow
from diffslic.segmentation.spacetime import spacetime_loss as spacetime_loss
from diffslic.segmentation.spacetime import spline_basis as spline_basis
from diffslic.segmentation.spacetime import temporal_consistency as temporal_consistency
from diffslic.segmentation.unet import UNet as UNet
from diffslic.segmentation.unet import UNetConfig as UNetConfig
from diffslic.segmentation.unet import bce_dice as bce_dice

__all__ = ["UNet", "UNetConfig", "bce_dice", "camera_motion", "camera_residual_mask", "coherence_loss", "fit_motion",
           "fit_spacetime", "flow_magnitude_mask", "motion_basis", "motion_flow", "spacetime_flow", "spacetime_loss",
           "spline_basis", "temporal_consistency"]
