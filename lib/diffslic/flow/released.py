"""Names of the layers in RAFT weights that others released."""

import re
from collections.abc import Mapping

from torch import Tensor

# torchvision's names to the paper's, applied in this order.
_TORCHVISION = (
    (r"^feature_encoder\.", "fnet."), (r"^context_encoder\.", "cnet."),
    (r"^(.net)\.convnormrelu\.0", r"\1.conv1"), (r"^(.net)\.convnormrelu\.1", r"\1.norm1"),
    (r"convnormrelu(\d)\.0", r"conv\1"), (r"convnormrelu(\d)\.1", r"norm\1"), (r"^(.net)\.conv\.", r"\1.conv2."),
    (r"motion_encoder\.convcorr(\d)\.0", r"encoder.convc\1"), (r"motion_encoder\.convflow(\d)\.0", r"encoder.convf\1"),
    (r"motion_encoder\.conv\.0", "encoder.conv"), (r"recurrent_block\.convgru(\d)\.conv(.)", r"gru.conv\2\1"),
    (r"^mask_predictor\.convrelu\.0", "update_block.mask.0"), (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


def own_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a state dict of princeton-vl (also from DataParallel) or torchvision to this module's names."""
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("module.")
        if any(name.startswith("feature_encoder.") for name in state):
            for pattern, replacement in _TORCHVISION:
                key = re.sub(pattern, replacement, key)
            if "mask_predictor.conv.weight" not in state:  # the small network has one unnumbered recurrent unit
                key = re.sub(r"gru\.conv(.)1", r"gru.conv\1", key)
        renamed[key] = value
    # In princeton-vl's files the norm of a strided block's shortcut stands twice, under a third or fourth norm too.
    for key in list(renamed):
        shortcut = re.sub(r"\.norm[34]\.", ".downsample.1.", key)
        if shortcut != key and shortcut in renamed:
            del renamed[key]
    return renamed
