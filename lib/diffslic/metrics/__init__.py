"""Every score of the workbook: video masks (J and F of DAVIS), tracks, superpixels, distances, optical flow and depth.

All functions take numpy arrays or torch tensors (on any device) and return plain numbers or numpy arrays. Nothing
is rescaled, aligned or left out without a line in the docstring that says so.
"""

from diffslic.metrics.fields import depth as depth
from diffslic.metrics.fields import flow as flow
from diffslic.metrics.masks import MAX_PROPOSALS as MAX_PROPOSALS
from diffslic.metrics.masks import PROTOCOLS as PROTOCOLS
from diffslic.metrics.masks import STATISTICS as STATISTICS
from diffslic.metrics.masks import DavisScore as DavisScore
from diffslic.metrics.masks import davis as davis
from diffslic.metrics.masks import davis_summary as davis_summary
from diffslic.metrics.partitions import compactness as compactness
from diffslic.metrics.partitions import explained_variation as explained_variation
from diffslic.metrics.partitions import superpixels as superpixels
from diffslic.metrics.retrieval import retrieval as retrieval
from diffslic.metrics.segments import assigned_iou as assigned_iou
from diffslic.metrics.segments import best_iou as best_iou
from diffslic.metrics.segments import box_iou as box_iou
from diffslic.metrics.tracks import ClearMOT as ClearMOT
from diffslic.metrics.tracks import Matches as Matches
from diffslic.metrics.tracks import clear_mot as clear_mot
from diffslic.metrics.tracks import match_objects as match_objects

__all__ = ["MAX_PROPOSALS", "PROTOCOLS", "STATISTICS", "ClearMOT", "DavisScore", "Matches", "assigned_iou", "best_iou",
           "box_iou", "clear_mot", "compactness", "davis", "davis_summary", "depth", "explained_variation", "flow",
           "match_objects", "retrieval", "superpixels"]
