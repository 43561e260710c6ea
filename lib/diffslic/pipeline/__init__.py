"""Joins the rooms for use: frames to flow to superpixels to masks, from a cache or straight through."""

from diffslic.pipeline.depth import frame_depth as frame_depth
from diffslic.pipeline.depth import pair_depth as pair_depth
from diffslic.pipeline.depth import save_depth as save_depth
from diffslic.pipeline.end_to_end import HEADS as HEADS
from diffslic.pipeline.end_to_end import PARTS as PARTS
from diffslic.pipeline.end_to_end import EndToEnd as EndToEnd
from diffslic.pipeline.end_to_end import Prediction as Prediction
from diffslic.pipeline.end_to_end import channel_counts as channel_counts
from diffslic.pipeline.inputs import INPUTS as INPUTS
from diffslic.pipeline.inputs import LEAST_SPREAD as LEAST_SPREAD
from diffslic.pipeline.inputs import N_SPIXELS as N_SPIXELS
from diffslic.pipeline.inputs import Superpixels as Superpixels
from diffslic.pipeline.inputs import clip_input as clip_input
from diffslic.pipeline.inputs import find_superpixels as find_superpixels
from diffslic.pipeline.inputs import flow_channels as flow_channels
from diffslic.pipeline.inputs import mirrored_input as mirrored_input
from diffslic.pipeline.inputs import network_input as network_input
from diffslic.pipeline.inputs import position as position
from diffslic.pipeline.inputs import superpixel_differences as superpixel_differences
from diffslic.pipeline.motion import em_mask as em_mask
from diffslic.pipeline.motion import motion_fields as motion_fields
from diffslic.pipeline.motion import painted as painted
from diffslic.pipeline.motion import predict_motion as predict_motion
from diffslic.pipeline.objects import graph_proposals as graph_proposals
from diffslic.pipeline.objects import learned_proposals as learned_proposals
from diffslic.pipeline.objects import moving as moving
from diffslic.pipeline.objects import predict_objects as predict_objects
from diffslic.pipeline.objects import propagate_objects as propagate_objects
from diffslic.pipeline.objects import track as track
from diffslic.pipeline.objects import views_of as views_of
from diffslic.pipeline.precompute import cache_folder as cache_folder
from diffslic.pipeline.precompute import ends as ends
from diffslic.pipeline.precompute import fingerprint as fingerprint
from diffslic.pipeline.precompute import mean_motion as mean_motion
from diffslic.pipeline.precompute import precompute_flow as precompute_flow
from diffslic.pipeline.precompute import precompute_superpixels as precompute_superpixels
from diffslic.pipeline.precompute import precompute_tvl1 as precompute_tvl1
from diffslic.pipeline.precompute import video_flow as video_flow
from diffslic.pipeline.precompute import video_flow_both_ways as video_flow_both_ways
from diffslic.pipeline.predict import predict as predict
from diffslic.pipeline.predict import predict_from_flow as predict_from_flow
from diffslic.pipeline.save import save_flow as save_flow
from diffslic.pipeline.save import save_superpixels as save_superpixels
from diffslic.pipeline.segment import Segmentation as Segmentation
from diffslic.pipeline.segment import segment as segment
from diffslic.pipeline.segment import segment_clips as segment_clips
from diffslic.pipeline.softseg import SoftSegments as SoftSegments
from diffslic.pipeline.softseg import residual_motion as residual_motion
from diffslic.pipeline.softseg import save_soft_segments as save_soft_segments
from diffslic.pipeline.softseg import soft_segments as soft_segments
from diffslic.pipeline.survey import LONGEST as LONGEST
from diffslic.pipeline.survey import Survey as Survey
from diffslic.pipeline.survey import survey as survey

__all__ = ["HEADS", "INPUTS", "LEAST_SPREAD", "LONGEST", "N_SPIXELS", "PARTS", "EndToEnd", "Prediction",
           "Segmentation", "SoftSegments", "Superpixels", "Survey", "cache_folder", "channel_counts", "clip_input",
           "em_mask", "ends", "find_superpixels", "fingerprint", "flow_channels", "frame_depth", "graph_proposals",
           "learned_proposals", "mean_motion", "mirrored_input", "motion_fields", "moving", "network_input",
           "painted", "pair_depth", "position", "precompute_flow", "precompute_superpixels", "precompute_tvl1",
           "predict", "predict_from_flow", "predict_motion", "predict_objects", "propagate_objects",
           "residual_motion", "save_depth", "save_flow", "save_soft_segments", "save_superpixels", "segment",
           "segment_clips", "soft_segments", "superpixel_differences", "survey", "track", "video_flow",
           "video_flow_both_ways", "views_of"]
