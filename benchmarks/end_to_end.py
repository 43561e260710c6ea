"""Training end to end beside training on flow and superpixels that were computed before: masks of unseen scenes.

Procedural scenes at 128x192, RAFT-small with 4 corrections, 150 superpixels of the composite, a new head, 300 steps of
two frames, three seeds, bfloat16 products. The first pre-generated arm has the very parts from which the others start:
4 corrections, polished by the variational way, superpixels of colour and flow. Two others have superpixels of colour
alone and 12 corrections, polished by the variational way, as commands do, or by the search; the last has no polish.

    python benchmarks/end_to_end.py --out runs/end_to_end
    python benchmarks/end_to_end.py --rows docs/end_to_end.csv      # the table again of rows that were kept
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from diffslic.recipes import comparison


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
    parser.add_argument("--rows", nargs="*", type=Path, help="do not train: rows.csv of parts of the comparison")
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
    rows = comparison.compare(asked.out, clips, arms=asked.arms, seeds=asked.seeds, steps=asked.steps,
                              batch_size=asked.batch_size, n_iters=asked.n_iters, n_spixels=asked.n_spixels,
                              device=asked.device, precision="bf16-mixed")
    asked.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(asked.out / "rows.csv", index=False)
    print(comparison.markdown(comparison.table(rows)))


if __name__ == "__main__":
    main()
