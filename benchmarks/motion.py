"""What moves on DAVIS's development split, with the flow of the shipped RAFT: J and F of methods that learn nothing
beside our networks, which saw no mask. Nine rows: flow magnitude and what the camera's motion leaves, both with Otsu's
threshold, EM without a network, and each network with both rules that choose layers without looking at the truth. The
last two are the shipped U-Nets, which learned from masks of scenes: of flow, and of flow, superpixels and image.

    python benchmarks/motion.py [ROOT] [--resolution 480p] [--cache cache] [--em em] [--spacetime spacetime]
                                [--polish search]

Without ROOT, on the reduced DAVIS of the folder that DIFFSLIC_REFERENCE names.
"""

import argparse
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from diffslic import datasets, pipeline
from diffslic.datasets.clip import Clip
from diffslic.flow import POLISHES, RAFT
from diffslic.recipes import unet
from diffslic.segmentation import MotionNet, UNet, camera_residual_mask, flow_magnitude_mask
from diffslic.segmentation.selection import SELECTIONS
from diffslic.superpixels import SSN


def scores(clip: Clip, networks: dict[str, MotionNet], taught: dict[str, UNet]) -> dict[str, dict[str, float]]:
    masks = {"flow magnitude + Otsu": pipeline.predict_from_flow(flow_magnitude_mask, clip),
             "camera residual + Otsu": pipeline.predict_from_flow(camera_residual_mask, clip),
             "EM without a network": pipeline.predict_from_flow(pipeline.em_mask, clip)}
    flow = pipeline.motion_fields(clip, clip.frames_with("flow"))["flow"]
    for name, net in networks.items():
        layers = net.layers(flow)
        for rule in SELECTIONS:
            moving = net.moving(layers, flow, rule)
            masks[f"{name}, {rule}"] = torch.cat([moving, moving[-1:]]).byte().numpy()
    masks |= {f"U-Net, {name}": pipeline.predict(net, clip) for name, net in taught.items()}
    return {name: unet.score(mask, clip) for name, mask in masks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?")
    parser.add_argument("--resolution", default=None, help="480p if not given, and 240p without ROOT")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    for name in ("em", "spacetime"):
        parser.add_argument(f"--{name}", default=name, help="a shipped name or a file")
    parser.add_argument("--polish", default="variational", choices=list(POLISHES))
    options = parser.parse_args()
    reference = os.environ.get("DIFFSLIC_REFERENCE")
    if options.root is None and reference is None:
        print("nothing to measure: name the folder of DAVIS 2016, or set DIFFSLIC_REFERENCE")
        return
    root = options.root or Path(reference, "data", "DAVIS2016")
    resolution = options.resolution or ("480p" if options.root else "240p")
    torch.set_num_threads(1)
    networks = {name: MotionNet.from_pretrained(getattr(options, name)) for name in ("em", "spacetime")}
    clips = datasets.open("davis2016", root=root, split="dev_val", resolution=resolution)
    folders = [pipeline.cache_folder(options.cache, "davis2016", resolution, kind) for kind in ("flow", "superpixels")]
    clips = pipeline.precompute_flow(clips, RAFT.from_pretrained("small"), folders[0], polished=options.polish)
    clips = pipeline.precompute_superpixels(clips, SSN.from_pretrained("scenes"), folders[1])
    taught = {name: UNet.from_pretrained(name) for name in ("flow", "motion")}
    rows: dict[str, list[dict[str, float]]] = {}
    for clip in clips:
        for name, figures in scores(clip, networks, taught).items():
            rows.setdefault(name, []).append(figures)
        print(clip.name, {name: round(figures[-1]["J-Mean"], 3) for name, figures in rows.items()}, flush=True)
    print(pd.DataFrame({name: {key: np.mean([row[key] for row in figures]) for key in ("J-Mean", "F-Mean")}
                        for name, figures in rows.items()}).T.round(3).to_string())


if __name__ == "__main__":
    main()
