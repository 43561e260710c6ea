"""What commands share: the application they join, options by type, figures printed, clips opened."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffslic import report

app = typer.Typer(help="Superpixels, optical flow and motion segmentation.", rich_markup_mode=None,
                  add_completion=False, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON, for a machine.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
HOW_POLISHED = "How RAFT's flow is brought to a fraction of a pixel: variational, search or none."
Polish = Annotated[str, typer.Option(help=HOW_POLISHED)]
Precision = Annotated[str, typer.Option(help="Of training: 32-true or bf16-mixed.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Samples per step and process.")]
Root = Annotated[Path, typer.Argument(help="The dataset's folder; with --dataset folder own frames or a video file.")]
Cache = Annotated[Path, typer.Option(help="Flow and superpixels are kept below it, by dataset and resolution.")]
CacheOut = Annotated[Path, typer.Option("--out", "--cache", help="Kept below it, by dataset and resolution.")]
Dataset = Annotated[str, typer.Option(help="davis2016, davis2017, tartanair, sintel ... or folder.")]
Split = Annotated[str, typer.Option(help="Of DAVIS: all, train, val, dev_train, dev_val.")]
Resolution = Annotated[str, typer.Option(help="Of DAVIS: the folder below JPEGImages.")]
TrainOut = Annotated[Path, typer.Option("--out", help="metrics.csv, last.ckpt and best.safetensors go here.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
ValidateEvery = Annotated[int, typer.Option(min=1, help="Steps between validations; a stopped run goes on from the "
                                                        "last.")]
Start = Annotated[str | None, typer.Option(help="Weights to start from: a shipped name or a file.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
Accelerator = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(help="How many of them on this machine; under torchrun its number counts.")]
Workers = Annotated[int, typer.Option(help="Processes that make batches.")]
Model = Annotated[str, typer.Option(help="Of superpixels: ssn (also a composite), or spixelfcn with weights of yours.")]
Iters = Annotated[int | None, typer.Option("--n-iters", help="Of an SSN: iterations of soft SLIC.",
                                           show_default="as the weights say")]
Compactness = Annotated[float | None, typer.Option(help="Of an SSN, a factor: above 1 rounder, below 1 looser.",
                                                   show_default="as the weights say")]
Logger = Annotated[str | None, typer.Option(help="tensorboard or wandb, beside metrics.csv.")]


def show(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print figures by name: aligned lines for a person, JSON for a machine."""
    if as_json:
        print(report.to_json(figures), end="")
        return
    width = max(map(len, figures), default=0)
    for name, value in figures.items():
        print(f"{name:<{width}}  {f'{value:.5g}' if isinstance(value, float) else value}")


def refuse_given(context: typer.Context, why: str, *names: str) -> None:
    """Refuse options that were given and would do nothing; ``why`` says what they are for."""
    for name in names:
        if context.get_parameter_source(name).name != "DEFAULT":
            raise ValueError(f"--{name.replace('_', '-')} {why}")


def refuse_other_datasets(context: typer.Context, dataset: str) -> None:
    """Refuse --split and --resolution where they were given and the dataset has none."""
    if not dataset.startswith(("davis", "bsds")):
        refuse_given(context, f"is of DAVIS: --dataset {dataset} has none", "split")
    if not dataset.startswith("davis"):
        refuse_given(context, f"is of DAVIS: --dataset {dataset} has none", "resolution")


def numbers(text: str, option: str, example: str = "16,32") -> list[int]:
    """Whole numbers with commas between them."""
    if not all(word.strip().isdecimal() for word in text.split(",")):
        raise ValueError(f"{option} must be whole numbers with commas between, such as {example}, got {text!r}")
    return [int(word) for word in text.split(",")]


def open_clips(dataset: str, root: Path, split: str, resolution: str) -> list[Any]:
    """Clips of a dataset on disk, by the options that it knows."""
    from diffslic import datasets

    if dataset == "split":
        raise ValueError("tables are read by train em, train spacetime and evaluate motion, with --file")
    options: dict[str, Any] = {"split": split} if dataset.startswith(("davis", "bsds")) else {}
    options |= {"resolution": resolution} if dataset.startswith("davis") else {}
    options |= {"partial_masks": True} if dataset == "davis2017" else {}  # nothing here needs the masks
    return datasets.open(dataset, root=root, **options)


def load_superpixels(model: str, weights: str, device: str, n_iters: int | None, compactness: float | None) -> Any:
    """A superpixel network by kind and name, with changes where there are some."""
    from diffslic.superpixels import SSN, SpixelFCN

    report.check_choice("model", model, ["ssn", "spixelfcn"])
    if n_iters is not None and n_iters < 1:
        raise ValueError(f"--n-iters must be at least 1, got {n_iters}")
    if compactness is not None and compactness <= 0:
        raise ValueError(f"--compactness must be above 0, got {compactness}")
    changes = {"n_iters": n_iters, "compactness": compactness}
    changes = {name: value for name, value in changes.items() if value is not None}
    if model == "spixelfcn" and changes:
        raise ValueError(f"--{next(iter(changes)).replace('_', '-')} is of an SSN: spixelfcn does not cluster")
    return (SSN if model == "ssn" else SpixelFCN).from_pretrained(weights, device, **changes)
