"""Scores of a whole dataset."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from diffslic import report
from diffslic.cli.common import (
    Cache,
    Compactness,
    Device,
    Iters,
    Json,
    Model,
    Resolution,
    app,
    load_superpixels,
    numbers,
    open_clips,
    show,
)

evaluate_app = typer.Typer(help="Score masks, motion segmentation, or superpixels.", rich_markup_mode=None)
app.add_typer(evaluate_app, name="evaluate")

Pred = Annotated[Path, typer.Argument(help="PRED/<sequence>/00000.png")]
Truth = Annotated[Path, typer.Argument(help="TRUTH/<sequence>/00000.png, such as Annotations/480p")]
Csv = Annotated[Path | None, typer.Option(help="The csv.", show_default="PRED/scores.csv")]


@evaluate_app.command("davis2016")
def davis2016(pred: Pred, truth: Truth, out: Csv = None, as_json: Json = False) -> None:
    """Score masks as the official DAVIS 2016 evaluation does: a csv with a row per frame, and the summary.

    Example: diffslic evaluate davis2016 masks/ ../DAVIS2016/Annotations/480p
    """
    _davis(pred, truth, "davis2016", out, as_json)


@evaluate_app.command("davis2017")
def davis2017(
    pred: Pred, truth: Truth,
    protocol: Annotated[str, typer.Option(help="semi-supervised or unsupervised.")] = "unsupervised",
    out: Csv = None, as_json: Json = False,
) -> None:
    """Score masks as the official DAVIS 2017 evaluation does: a csv with a row per frame and object, and the summary.

    Example: diffslic evaluate davis2017 masks/ ../DAVIS/Annotations/480p
    """
    report.check_choice("protocol", protocol, ["semi-supervised", "unsupervised"])
    _davis(pred, truth, protocol, out, as_json)


def _davis(pred: Path, truth: Path, protocol: str, out: Path | None, as_json: bool) -> None:
    from diffslic.evaluation import evaluate_davis

    result = evaluate_davis(pred, truth, protocol, progress=not as_json)
    out = out or pred / "scores.csv"
    result.save(out)
    if result.missing:
        print(f"{len(result.missing)} sequences of {truth} have no masks: {', '.join(result.missing)}", file=sys.stderr)
    show({**result.summary, "csv": str(out)}, as_json)


@evaluate_app.command("superpixels")
def superpixels(
    root: Annotated[Path, typer.Argument(help="The dataset's folder.")],
    out: Annotated[Path, typer.Option(help="Where scores.csv, curve.csv and curve.png go.")],
    dataset: Annotated[str, typer.Option(help="bsds500 or davis2016.")] = "bsds500",
    split: Annotated[str | None, typer.Option(help="Of the dataset.", show_default="val, of DAVIS dev_val")] = None,
    resolution: Resolution = "480p",
    model: Model = "ssn",
    weights: Annotated[str, typer.Option(help="A shipped name or a file.")] = "bsds500",
    n_iters: Iters = None, compactness: Compactness = None,
    counts: Annotated[str, typer.Option(help="Superpixels to ask for.")] = "100,200,500,1000",
    every: Annotated[int, typer.Option(help="Of a video, every how many frames.")] = 10,
    first: Annotated[int, typer.Option(help="Of a video, the frame to begin with.")] = 0,
    flow_root: Annotated[Path | None, typer.Option(help="Of a composite: FLOW_ROOT/<clip>.h5.")] = None,
    ignore_background: Annotated[bool, typer.Option("--ignore-background",
                                                    help="Of DAVIS, pixels of objects alone count.")] = False,
    baselines: Annotated[bool, typer.Option(help="Beside them pixel features and scikit-image's SLIC.")] = True,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Score superpixels against every annotator, over counts: a csv, the mean curve and its picture.

    Example: diffslic evaluate superpixels ../BSDS500 --out runs/superpixels
    """
    from diffslic import evaluation
    from diffslic.datasets.composite_flow import with_flow_from
    from diffslic.superpixels import SSN, SSNConfig

    report.check_choice("dataset", dataset, ["bsds500", "davis2016"])
    if ignore_background and dataset == "bsds500":
        raise ValueError("--ignore-background is for davis2016: no segment of bsds500 is a background")
    requested = numbers(counts, "--counts")
    clips = open_clips(dataset, root, split or ("val" if dataset == "bsds500" else "dev_val"), resolution)
    if flow_root is not None:
        clips = [with_flow_from(clip, flow_root) for clip in clips]
    net = load_superpixels(model, weights, device, n_iters, compactness)
    if bool(net.extra_channels) != (flow_root is not None):
        raise ValueError(f"{weights} is a composite: it needs --flow-root" if flow_root is None else
                         f"--flow-root is for a composite, {weights} is none")
    methods: dict[str, evaluation.Method] = {Path(weights).stem: partial(evaluation.superpixels_of, net)}
    if baselines:
        pixels = SSN(SSNConfig(features="pix", n_iters=10)).eval().to(device)
        methods |= {"pixel features": partial(evaluation.superpixels_of, pixels),
                    "scikit-image SLIC": evaluation.classical_slic}
    scores = evaluation.evaluate_superpixels(methods, clips, requested, every, first,
                                             ignore=0 if ignore_background else None, progress=not as_json)
    scores.save(out)
    if as_json:
        print(report.to_json(scores.curve.reset_index().to_dict("records")), end="")
        return
    print(scores.curve.round(4).to_string())
    print("\nasa achievable segmentation accuracy, br, bp boundary recall and precision, ue undersegmentation error,\n"
          "iou of a majority vote, co compactness, ev explained variation of colour, count of superpixels achieved")
    print(f"also: {out / 'scores.csv'}, {out / 'curve.csv'}, {out / 'curve.png'}")


@evaluate_app.command("motion")
def motion(
    root: Annotated[Path, typer.Argument(help="The dataset's folder, or the base of the paths of --file.")],
    out: Annotated[Path, typer.Option(help="Where results_SPLIT.csv and .json go, and what is kept.")],
    dataset: Annotated[str, typer.Option(help="split (a table of files), davis2016 or davis2017.")] = "split",
    file: Annotated[Path | None, typer.Option(help="Of a split: its name without _SPLIT.csv.")] = None,
    splits: Annotated[str, typer.Option("--split", help="One, or several with commas between them.")] = "val",
    resolution: Resolution = "480p", cache: Cache = Path("cache"),
    weights: Annotated[str, typer.Option(help="MotionNet: em, spacetime or a file.")] = "spacetime",
    raft: Annotated[str, typer.Option(help="RAFT, where a dataset comes without flow.")] = "small",
    selection: Annotated[str | None, typer.Option(help="Which layers move: largest or moving.",
                                                  show_default="as the weights say")] = None,
    window: Annotated[int | None, typer.Option(help="Frames seen at once, -1 for the whole clip.",
                                               show_default="as the weights say")] = None,
    low_memory: Annotated[bool, typer.Option(help="Window after window, not all at once.")] = True,
    save_masks: Annotated[bool, typer.Option("--save-masks")] = False,
    save_pictures: Annotated[bool, typer.Option("--save-pictures")] = False,
    save_probabilities: Annotated[bool, typer.Option("--save-probabilities")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Score motion segmentation by flow: a csv with a row per frame, and beside it what oracles would have chosen.

    Example: diffslic evaluate motion DATA --file DataSplit/DAVIS_D16Split --split val --out runs/motion
    """
    from diffslic import datasets, evaluation, pipeline
    from diffslic.flow import RAFT
    from diffslic.segmentation import MotionNet

    report.check_choice("dataset", dataset, ["split", "davis2016", "davis2017"])
    if (dataset == "split") != (file is not None):
        raise ValueError("--file is the table of --dataset split: one needs the other")
    net = MotionNet.from_pretrained(weights, device)
    keep = [name for name, kept in (("masks", save_masks), ("pictures", save_pictures),
                                    ("probabilities", save_probabilities)) if kept]
    figures: dict[str, float] = {}
    for split in splits.split(","):
        if file is not None:
            clips = datasets.open("split", root=root, file=file, split=split)
        else:
            clips = pipeline.precompute_flow(open_clips(dataset, root, split, resolution),
                                             RAFT.from_pretrained(raft, device),
                                             pipeline.cache_folder(cache, dataset, resolution, "flow"),
                                             progress=not as_json)
        scores = evaluation.evaluate_motion(net, clips, out, split, selection, window, low_memory, keep,
                                            progress=not as_json)
        figures |= {f"{split} {name}": value for name, value in scores.summary.items()}
    show({**figures, "out": str(out)}, as_json)
