"""AirSim: a client that works in a notebook, flights written as a dataset, and a simulator that needs no Unreal Engine.

``connect`` gives the real ``airsim.MultirotorClient``; ``capture`` flies it along a trajectory; ``start`` answers it by
drawing procedural scenes, so that all of it runs anywhere.
"""

from diffslic.airsim.capture import capture as capture
from diffslic.airsim.capture import orbit as orbit
from diffslic.airsim.capture import waypoints as waypoints
from diffslic.airsim.server import CALLS as CALLS
from diffslic.airsim.server import Server as Server
from diffslic.airsim.server import start as start
from diffslic.airsim.transport import SimulatorError as SimulatorError
from diffslic.airsim.transport import connect as connect
