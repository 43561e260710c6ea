"""Optical flow: RAFT (Teed and Deng 2020), and what two flow fields say about each other."""

from diffslic.flow.classical import tvl1 as tvl1
from diffslic.flow.consistency import motion_boundaries as motion_boundaries
from diffslic.flow.consistency import occlusion as occlusion
from diffslic.flow.losses import matching_loss as matching_loss
from diffslic.flow.losses import photometric_loss as photometric_loss
from diffslic.flow.losses import sequence_loss as sequence_loss
from diffslic.flow.polishing import POLISHES as POLISHES
from diffslic.flow.polishing import check_polish as check_polish
from diffslic.flow.polishing import polish as polish
from diffslic.flow.polishing import polish_settings as polish_settings
from diffslic.flow.raft import RAFT as RAFT
from diffslic.flow.raft import RAFTConfig as RAFTConfig
from diffslic.flow.smoothing import smooth_by_superpixels as smooth_by_superpixels
from diffslic.flow.video import BothWays as BothWays

__all__ = ["POLISHES", "RAFT", "BothWays", "RAFTConfig", "check_polish", "matching_loss", "motion_boundaries",
           "occlusion", "photometric_loss", "polish", "polish_settings", "sequence_loss", "smooth_by_superpixels",
           "tvl1"]
