"""Optical flow: RAFT (Teed and Deng 2020), and what two flow fields say about each other."""

from diffslic.flow.raft import RAFT as RAFT
from diffslic.flow.raft import RAFTConfig as RAFTConfig
from diffslic.flow.raft import sequence_loss as sequence_loss

__all__ = ["RAFT", "RAFTConfig", "sequence_loss"]
