"""Motion segmentation: the room that turns flow and features into masks.

``unet`` is the network and its supervised loss, ``transformer`` one over superpixels, ``inputs`` how both see flow.
``parametric`` are the motion models that explain the flow of a mask, ``em`` segmentation by them alone, ``coherence``
the loss that follows, ``spacetime`` both over whole clips, ``unet3d`` and ``motionnet`` the networks that learn from
it, ``linking`` how their windows become a clip, ``selection`` which of their layers move. ``regions`` is a frame as a
graph of superpixels, ``instances`` a network's masks of several bodies, ``propagation`` labels that go along the flow,
``objects`` tracks over time. ``baselines`` are the methods that learn nothing and that all others must beat.
"""

from diffslic.segmentation.baselines import camera_residual_mask as camera_residual_mask
from diffslic.segmentation.baselines import flow_magnitude_mask as flow_magnitude_mask
from diffslic.segmentation.baselines import linked_components as linked_components
from diffslic.segmentation.coherence import coherence_loss as coherence_loss
from diffslic.segmentation.em import EMResult as EMResult
from diffslic.segmentation.em import expectation_maximisation as expectation_maximisation
from diffslic.segmentation.em import grown_layers as grown_layers
from diffslic.segmentation.em import grown_windows as grown_windows
from diffslic.segmentation.inputs import flow_channels as flow_channels
from diffslic.segmentation.instances import body_logits as body_logits
from diffslic.segmentation.instances import matched_loss as matched_loss
from diffslic.segmentation.instances import network_proposals as network_proposals
from diffslic.segmentation.linking import Window as Window
from diffslic.segmentation.linking import link as link
from diffslic.segmentation.linking import window_starts as window_starts
from diffslic.segmentation.motionnet import MotionNet as MotionNet
from diffslic.segmentation.motionnet import MotionNetConfig as MotionNetConfig
from diffslic.segmentation.objects import Tracker as Tracker
from diffslic.segmentation.objects import largest_objects as largest_objects
from diffslic.segmentation.objects import soft_masks as soft_masks
from diffslic.segmentation.parametric import camera_motion as camera_motion
from diffslic.segmentation.parametric import fit_motion as fit_motion
from diffslic.segmentation.parametric import motion_basis as motion_basis
from diffslic.segmentation.parametric import motion_flow as motion_flow
from diffslic.segmentation.regions import Regions as Regions
from diffslic.segmentation.regions import proposals as proposals
from diffslic.segmentation.regions import regions_of as regions_of
from diffslic.segmentation.selection import all_but_largest as all_but_largest
from diffslic.segmentation.selection import moving_layers as moving_layers
from diffslic.segmentation.spacetime import fit_spacetime as fit_spacetime
from diffslic.segmentation.spacetime import spacetime_flow as spacetime_flow
from diffslic.segmentation.spacetime import spacetime_loss as spacetime_loss
from diffslic.segmentation.spacetime import spline_basis as spline_basis
from diffslic.segmentation.spacetime import temporal_consistency as temporal_consistency
from diffslic.segmentation.transformer import SuperpixelTransformer as SuperpixelTransformer
from diffslic.segmentation.transformer import SuperpixelTransformerConfig as SuperpixelTransformerConfig
from diffslic.segmentation.unet import UNet as UNet
from diffslic.segmentation.unet import UNetConfig as UNetConfig
from diffslic.segmentation.unet import bce_dice as bce_dice
from diffslic.segmentation.unet3d import SpaceTimeUNet as SpaceTimeUNet

__all__ = ["EMResult", "MotionNet", "MotionNetConfig", "Regions", "SpaceTimeUNet", "SuperpixelTransformer",
           "SuperpixelTransformerConfig", "Tracker", "UNet", "UNetConfig", "Window", "all_but_largest", "bce_dice",
           "body_logits", "camera_motion", "camera_residual_mask", "coherence_loss", "expectation_maximisation",
           "fit_motion", "fit_spacetime", "flow_channels", "flow_magnitude_mask", "grown_layers", "grown_windows",
           "largest_objects", "link", "linked_components", "matched_loss", "motion_basis", "motion_flow",
           "moving_layers", "network_proposals", "proposals", "regions_of", "soft_masks", "spacetime_flow",
           "spacetime_loss", "spline_basis", "temporal_consistency", "window_starts"]
