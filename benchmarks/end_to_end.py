"""Training end to end beside training on flow and superpixels that were computed before: masks of unseen scenes.

Procedural scenes at 128x192, RAFT-small with 4 corrections, 150 superpixels of the composite, a new head, 300 steps of
two frames, three seeds, bfloat16 products. The first pre-generated arm has the very parts from which the others start:
4 corrections, polished by the variational way, superpixels of colour and flow. Two others have superpixels of colour
alone and 12 corrections, polished by the variational way, as commands do, or by the search; the last has no polish.

    python benchmarks/end_to_end.py --out runs/end_to_end
    python benchmarks/end_to_end.py --rows docs/end_to_end.csv      # the table again of rows that were kept
    python benchmarks/end_to_end.py --out runs/end_to_end --flow    # what the networks in OUT have made of RAFT's flow
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from diffslic import metrics, pipeline
from diffslic.pipeline import EndToEnd
from diffslic.recipes import comparison


def flow_errors(out: Path, clips: comparison.Clips, arms: list[str], seeds: list[int]) -> pd.DataFrame:
    """End-point errors in pixels on the test clips of the flow that each network has, before and after the polish."""
    rows = []
    for arm in (arm for arm in arms if arm in comparison.IN_ONE_GRAPH):
        for seed in seeds:
            net = EndToEnd.from_pretrained(comparison.weights_of(out, arm, seed))
            for clip in clips.test:
                for way in ("none", "variational"):
                    frames = (clip.frame(t) for t in range(len(clip)))
                    rows += [{"arm": arm, "polish": way, "epe": metrics.flow(flow, clip.flow(t))["epe"]}
                             for t, flow in enumerate(pipeline.video_flow(net.flow, frames, net.n_iters, way))]
    return pd.DataFrame(rows).pivot_table(index="arm", columns="polish", values="epe", sort=False).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/end_to_end"))
    parser.add_argument("--arms", nargs="*", default=list(comparison.ARMS), choices=list(comparison.ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", nargs=2, type=int, default=[128, 192])
    parser.add_argument("--scenes", nargs=3, type=int, default=[120, 5, 20], help="to train, validate and test on")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--n-iters", type=int, default=4)
    parser.add_argument("--n-spixels", type=int, default=150)
    parser.add_argument("--device", default="cpu")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--rows", nargs="*", type=Path, help="do not train: rows.csv of parts of the comparison")
    instead.add_argument("--flow", action="store_true", help="do not train: errors of the flow of what is in --out")
    parser.add_argument("--over", choices=list(comparison.ARMS), help="of --rows: the arm over which gains are told")
    asked = parser.parse_args()
    if asked.rows:
        rows = pd.concat([pd.read_csv(path) for path in asked.rows])
        first = rows["arm"] == asked.over
        rows = pd.concat([rows[first], rows[~first]])
        print(comparison.markdown(comparison.table(rows)))
        return
    if asked.device == "cpu":
        torch.set_num_threads(1)
    clips = comparison.scenes(tuple(asked.size), *asked.scenes, device=asked.device)
    if asked.flow:
        print(flow_errors(asked.out, clips, asked.arms, asked.seeds).to_string())
        return
    rows = comparison.compare(asked.out, clips, arms=asked.arms, seeds=asked.seeds, steps=asked.steps,
                              batch_size=asked.batch_size, n_iters=asked.n_iters, n_spixels=asked.n_spixels,
                              device=asked.device, precision="bf16-mixed")
    asked.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(asked.out / "rows.csv", index=False)
    print(comparison.markdown(comparison.table(rows)))


if __name__ == "__main__":
    main()
