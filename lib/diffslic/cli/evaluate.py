"""Scores of a whole dataset."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from diffslic import report
from diffslic.cli.common import Json, app, show


@app.command()
def evaluate(
    dataset: Annotated[str, typer.Argument(help="davis2016 or davis2017.")],
    pred: Annotated[Path, typer.Argument(help="PRED/<sequence>/00000.png")],
    truth: Annotated[Path, typer.Argument(help="TRUTH/<sequence>/00000.png, such as Annotations/480p")],
    protocol: Annotated[str, typer.Option(help="Of davis2017: semi-supervised or unsupervised.")] = "unsupervised",
    out: Annotated[Path | None, typer.Option(help="The csv.", show_default="PRED/scores.csv")] = None,
    as_json: Json = False,
) -> None:
    """Score masks as the official DAVIS evaluation does: a csv with a row per frame and object, and the summary.

    Example: diffslic evaluate davis2016 masks/ ../DAVIS2016/Annotations/480p
    """
    from diffslic.evaluation import evaluate_davis

    report.check_choice("dataset", dataset, ["davis2016", "davis2017"])
    result = evaluate_davis(pred, truth, "davis2016" if dataset == "davis2016" else protocol, progress=not as_json)
    out = out or pred / "scores.csv"
    result.save(out)
    if result.missing:
        print(f"{len(result.missing)} sequences of {truth} have no masks: {', '.join(result.missing)}", file=sys.stderr)
    show({**result.summary, "csv": str(out)}, as_json)
