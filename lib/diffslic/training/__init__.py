"""One training loop on Lightning Fabric, for every network; how processes share work; loading and saving weights.

This room knows Fabric and no model: what is trained, on what and how it is weighed comes from ``recipes``.
"""

from diffslic.training.loop import Batch as Batch
from diffslic.training.loop import Batches as Batches
from diffslic.training.loop import FitResult as FitResult
from diffslic.training.loop import Schedule as Schedule
from diffslic.training.loop import check_resume as check_resume
from diffslic.training.loop import fit as fit
from diffslic.training.loop import open_logger as open_logger
from diffslic.training.processes import check_device as check_device
from diffslic.training.processes import device_of as device_of
from diffslic.training.processes import own_device as own_device
from diffslic.training.processes import own_share as own_share
from diffslic.training.processes import speaks as speaks
from diffslic.training.weights import TOGETHER as TOGETHER
from diffslic.training.weights import Weights as Weights
from diffslic.training.weights import fill as fill
from diffslic.training.weights import find_weights as find_weights
from diffslic.training.weights import load_weights as load_weights
from diffslic.training.weights import save_weights as save_weights
