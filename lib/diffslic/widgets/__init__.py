"""Explorers for notebooks: videos, masks, layers, motions, superpixels, flow, depth; and the page of the app.

Frames are encoded in the kernel and shown by ``ipywidgets.Image``, one at a time: a new inline figure for each step
would play at half the speed, and a saved notebook holds the current frame only. Sliders answer to the arrow keys;
where a picture can be clicked, sliders do the same from the keyboard. What did not change is not computed again.
"""

from diffslic.widgets.explorers import frame_player as frame_player
from diffslic.widgets.explorers import layer_explorer as layer_explorer
from diffslic.widgets.explorers import motion_explorer as motion_explorer
from diffslic.widgets.explorers import overlay_explorer as overlay_explorer
from diffslic.widgets.explorers import superpixel_explorer as superpixel_explorer
from diffslic.widgets.files import FileDrop as FileDrop
from diffslic.widgets.files import FileOffer as FileOffer
from diffslic.widgets.matches import depth_explorer as depth_explorer
from diffslic.widgets.matches import flow_explorer as flow_explorer
from diffslic.widgets.workbench import workbench as workbench

__all__ = ["FileDrop", "FileOffer", "depth_explorer", "flow_explorer", "frame_player", "layer_explorer",
           "motion_explorer", "overlay_explorer", "superpixel_explorer", "workbench"]
