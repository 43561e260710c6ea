"""The ``diffslic`` command: parses, calls one function, prints.

To add a command: a function with ``@app.command()`` whose docstring ends with an example, whose imports stand inside
(so that ``--help`` need not load torch), and which prints with :func:`show`. Bad input is an exception of the library;
:func:`main` makes it one line on stderr and exit code 2. A command that finds something wrong with good input
(a figure out of tolerance, a damaged dataset) raises ``typer.Exit(1)``.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffslic import report

app = typer.Typer(help="Superpixels, optical flow and motion segmentation.", rich_markup_mode=None,
                  add_completion=False, pretty_exceptions_enable=False)
data_app = typer.Typer(help="Datasets on this machine.", rich_markup_mode=None)
app.add_typer(data_app, name="data")

# The second class of BadParameter is what every bad command line raises; typer itself exports only the first.
BAD_INPUT = (ValueError, LookupError, OSError, typer.BadParameter.__mro__[1])

Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON, for a machine.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")]
Polish = Annotated[bool, typer.Option(help="Bring RAFT's flow to a fraction of a pixel.")]
Precision = Annotated[str, typer.Option(help="Of training: 32-true or bf16-mixed.")]
Batch = Annotated[int, typer.Option("--batch-size", help="Samples per step and process.")]
Root = Annotated[Path, typer.Argument(help="The dataset's folder; with --dataset folder own frames or a video file.")]
Cache = Annotated[Path, typer.Option(help="Flow and superpixels are kept below it, by dataset and resolution.")]
Dataset = Annotated[str, typer.Option(help="davis2016, davis2017, tartanair or folder.")]
Split = Annotated[str, typer.Option(help="Of DAVIS: all, train, val, dev_train, dev_val.")]
Resolution = Annotated[str, typer.Option(help="Of DAVIS: the folder below JPEGImages.")]
TrainOut = Annotated[Path, typer.Option("--out", help="metrics.csv, last.ckpt and best.safetensors go here.")]
Steps = Annotated[int, typer.Option(help="Optimiser steps.")]
Start = Annotated[str | None, typer.Option(help="Weights to start from: a shipped name or a file.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
Accelerator = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(help="How many of them; more than one with torchrun.")]
Workers = Annotated[int, typer.Option(help="Processes that make batches.")]
Logger = Annotated[str | None, typer.Option(help="tensorboard or wandb, beside metrics.csv.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: those after the program's name; the process's own where None.

    Returns:
        The exit code: 0, 1 (the work was done and something is wrong), 2 (bad input), 130 (interrupted).
    """
    arguments = _join_pairs(list(sys.argv[1:] if arguments is None else arguments))
    try:
        code = app(arguments or ["--help"], prog_name="diffslic", standalone_mode=False)
    except (KeyError, IndexError):  # LookupErrors by class, but mistakes of ours: they keep their traceback
        raise
    except BAD_INPUT as error:
        print(f"diffslic: {_one_line(error)}", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def show(figures: Mapping[str, Any], as_json: bool) -> None:
    """Print figures by name: aligned lines for a person, JSON for a machine."""
    if as_json:
        print(report.to_json(figures), end="")
        return
    width = max(map(len, figures), default=0)
    for name, value in figures.items():
        print(f"{name:<{width}}  {f'{value:.5g}' if isinstance(value, float) else value}")


def _join_pairs(arguments: list[str]) -> list[str]:
    """``-p NAME VALUE``, as papermill has it, to ``-p NAME=VALUE``: typer knows no repeated option of two words."""
    if "notebooks" not in arguments[:1]:
        return arguments
    joined: list[str] = []
    rest = iter(arguments)
    for word in rest:
        joined.append(word)
        if word == "-p":
            name = next(rest, "")
            value = None if "=" in name else next(rest, None)
            joined.append(name if value is None else f"{name}={value}")
    return joined


def _one_line(error: BaseException) -> str:
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(text.split()) or type(error).__name__


def _report_run(outcomes: Sequence[Any], out: Path, note: str, as_json: bool) -> None:
    """The end of ``diffslic notebooks``: the table of figures, what failed, and where to look."""
    if as_json:
        rows = [{"notebook": outcome.notebook, "seconds": outcome.seconds, "error": outcome.error,
                 "figures": [row._asdict() for row in outcome.rows]} for outcome in outcomes]
        print(report.to_json(rows), end="")
        return
    print(report.table((outcome.notebook, row) for outcome in outcomes for row in outcome.rows))
    if note:
        print(note)
    # Paths as one would type them here, where that is shorter.
    out = out.resolve()
    out = out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out
    for outcome in outcomes:
        page = out / f"{outcome.notebook}.{'failed.ipynb' if outcome.error else 'html'}"
        told = f"FAILED: {outcome.error}" if outcome.error else ("passed" if outcome.passed else "FAILED")
        print(f"{outcome.notebook}: {told} ({outcome.seconds:.0f} s){f', see {page}' if page.exists() else ''}")
    print(f"also: {out / 'report.csv'}, {out / 'report.xml'}")


# ---------------------------------------------------------------- notebooks


@app.command()
def notebooks(
    only: Annotated[list[str] | None, typer.Option(help="Only this notebook; may be repeated.")] = None,
    p: Annotated[list[str] | None, typer.Option("-p", metavar="NAME VALUE",
                                                help="A parameter of the notebook; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...")] = "cpu",
    profile: Annotated[str, typer.Option(help="smoke, default or full.")] = "default",
    out: Annotated[Path | None, typer.Option(help="Where results go.", show_default="runs")] = None,
    jobs: Annotated[int, typer.Option(help="Notebooks at a time.")] = 1,
    keep_going: Annotated[bool, typer.Option("--keep-going", help="Run the rest after a failure.")] = False,
    update_baseline: Annotated[bool, typer.Option("--update-baseline",
                                                  help="Make these figures the baselines.")] = False,
    folder: Annotated[Path | None, typer.Option(help="The folder of notebooks.", show_default="notebooks")] = None,
    baselines: Annotated[Path | None, typer.Option(help="The folder of baselines.",
                                                   show_default="tests/baselines")] = None,
    cell_timeout: Annotated[int, typer.Option(help="Seconds for one cell.")] = 7200,
    timeout: Annotated[float, typer.Option(help="Seconds for one notebook.")] = 14400,
    as_json: Json = False,
) -> None:
    """Run notebooks and compare their figures with the baselines.

    Exit code 0: all pass; 1: a notebook failed or a figure is out of tolerance; 2: bad input. Relative paths among the
    parameters start from the folder where you are. With parameters of your own (-p) nothing is compared.

    Example: diffslic notebooks --only motion_segmentation -p dataset davis2016 -p root ../DAVIS2016
    """
    from diffslic import gate

    values: dict[str, gate.Value] = {"device": device, "profile": profile}
    for pair in p or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError(f"-p takes a name and a value, got only {pair!r}")
        values[name] = gate.parse_value(value)
    out, folder, baselines = out or gate.RUNS, folder or gate.NOTEBOOKS, baselines or gate.BASELINES
    if update_baseline:
        gate.check_baseline_parameters(values)
    # The bar is for a person: it stays out of a log and away from --json.
    bar = None if as_json else lambda text: (sys.stderr.write(text), sys.stderr.flush())
    outcomes = []
    for outcome in gate.run_notebooks(gate.find_notebooks(only or (), folder), values, out, jobs=jobs, progress=bar,
                                      keep_going=keep_going, baselines=baselines, cell_timeout=cell_timeout,
                                      timeout=timeout):
        outcomes.append(outcome)
        print(f"\n{outcome.notebook}: {outcome.seconds:.0f} s", file=sys.stderr)
    gate.write_reports(outcomes, out)
    note = "" if gate.is_comparable(values) else "not compared: the baselines hold for device and profile only"
    if update_baseline:
        note = f"baselines written to {gate.update_baselines(outcomes, values, baselines)}"
    _report_run(outcomes, out, note, as_json)
    if not update_baseline and not all(outcome.passed for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def book(
    runs: Annotated[Path | None, typer.Option(help="Where the executed notebooks are.", show_default="runs")] = None,
    out: Annotated[Path | None, typer.Option(help="Where the site goes.", show_default="runs/book")] = None,
) -> None:
    """Make one static site, readable offline, of the executed notebooks, with and without solutions.

    Example: diffslic book --runs runs --out runs/book
    """
    from diffslic import book as pages
    from diffslic import gate

    runs = runs or gate.RUNS
    executed = [runs / path.name for path in gate.find_notebooks()]
    print(pages.build(executed, out or runs / "book", pictures=gate.NOTEBOOKS))


# ---------------------------------------------------------------- datasets


@data_app.command("check")
def data_check(
    name: Annotated[str, typer.Argument(help="davis2016, davis2017 ...: see data/README.md.")],
    root: Annotated[Path, typer.Argument(help="The dataset's folder.")],
    as_json: Json = False,
) -> None:
    """Name what is missing or broken in a dataset, a line each. Exit code 1 where something is.

    Example: diffslic data check davis2016 ../DAVIS2016
    """
    from diffslic import datasets

    problems = datasets.check(name, root)
    if as_json:
        print(report.to_json(problems), end="")
    else:
        print("\n".join(problems) or "ok")
    if problems:
        raise typer.Exit(1)


# ---------------------------------------------------------------- scenes


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    layout: Annotated[str, typer.Option(help="davis or tartanair.")] = "davis",
    preset: Annotated[str, typer.Option(help="lab, street, crowd, static; several with a plus: lab+crowd.")] = "lab",
    n_clips: Annotated[int, typer.Option(help="How many clips.")] = 4,
    n_frames: Annotated[int, typer.Option(help="Frames per clip.")] = 8,
    size: Annotated[tuple[int, int], typer.Option(help="Rows and columns.")] = (240, 428),
    seed: Annotated[int, typer.Option(help="Clip i has this seed plus i.")] = 0,
    lighting: Annotated[float, typer.Option(help="Amplitude of a slow change of the light, as a share.")] = 0,
    blur: Annotated[float, typer.Option(help="Standard deviation of the lens blur, in pixels.")] = 0,
    noise: Annotated[float, typer.Option(help="Standard deviation of the sensor noise, of 1.")] = 0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Draw procedural scenes and write them in the layout of another dataset.

    Example: diffslic scenes my_scenes --layout davis --preset crowd --n-clips 8
    """
    from diffslic import datasets
    from diffslic.datasets import layouts
    from diffslic.training import check_device

    check_device(device)
    clips = datasets.open("scenes", preset=preset, n_clips=n_clips, n_frames=n_frames, size=size, seed=seed,
                          lighting=lighting, blur=blur, noise=noise, device=device)
    layouts.write(clips, out, layout)
    show({"clips": len(clips), "frames": n_frames, "out": str(out)}, as_json)


# ---------------------------------------------------------------- using the networks


@app.command()
def segment(
    source: Annotated[Path, typer.Argument(help="A folder of frames, a video file, or a dataset's folder.")],
    out: Annotated[Path, typer.Option(help="Where masks/, overlay/ and overlay.mp4 go; of a dataset: OUT/<clip>/...")],
    dataset: Dataset = "folder", split: Split = "all", resolution: Resolution = "480p",
    weights: Annotated[str, typer.Option(help="U-Net: a shipped name or a file.")] = "motion",
    raft: Annotated[str, typer.Option(help="RAFT: a shipped name or a file.")] = "small",
    ssn: Annotated[str, typer.Option(help="SSN: a shipped name or a file.")] = "scenes",
    rows: Annotated[int, typer.Option(help="Height at which the networks work.")] = 240,
    polish: Polish = True,
    overlay: Annotated[bool, typer.Option(help="Also write overlay frames and film.")] = True,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the film.",
                                              show_default="the video's, or 24")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find what moves by itself in a video, with the shipped networks. A stopped run goes on where it was.

    Example: diffslic segment my_frames/ --out masks/

    masks/masks/ then holds a png with a palette per frame: 0 where the world stands, 1 where something moves.

    All clips of a dataset: diffslic segment ../DAVIS2016 --dataset davis2016 --split val --out masks/
    """
    from diffslic import pipeline

    how = {"weights": weights, "raft": raft, "ssn": ssn, "rows": rows, "polished": polish, "device": device}
    if dataset == "folder":
        result = pipeline.segment(source, **how)
        result.save(out, overlay, fps, progress=not as_json)
        clips = [result.clip]
    else:
        clips = _open(dataset, source, split, resolution)
        pipeline.segment_clips(clips, out, overlay, fps, progress=not as_json, **how)
    show({"clips": len(clips), "frames": sum(map(len, clips)), "out": str(out)}, as_json)


precompute_app = typer.Typer(help="Keep flow or superpixels on disk: pre-generate, then train.", rich_markup_mode=None)
app.add_typer(precompute_app, name="precompute")


@precompute_app.command("flow")
def precompute_flow(
    root: Root, cache: Cache = Path("cache"), dataset: Dataset = "davis2016", split: Split = "all",
    resolution: Resolution = "480p",
    weights: Annotated[str, typer.Option(help="RAFT: a shipped name or a file.")] = "small",
    iters: Annotated[int, typer.Option(help="Corrections per pair.")] = 12,
    polish: Polish = True,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compute the flow of every clip once: one HDF5 file per clip; a stopped run goes on where it was.

    Example: diffslic precompute flow ../DAVIS2016 --resolution 480p
    """
    from diffslic import pipeline
    from diffslic.flow import RAFT

    clips = _open(dataset, root, split, resolution)
    out = pipeline.cache_folder(cache, dataset, resolution, "flow")
    pipeline.precompute_flow(clips, RAFT.from_pretrained(weights, device), out, iters, polish, progress=not as_json)
    show({"clips": len(clips), "out": str(out)}, as_json)


@precompute_app.command("superpixels")
def precompute_superpixels(
    root: Root, cache: Cache = Path("cache"), dataset: Dataset = "davis2016", split: Split = "all",
    resolution: Resolution = "480p",
    weights: Annotated[str, typer.Option(help="SSN: a shipped name or a file.")] = "scenes",
    n_spixels: Annotated[int, typer.Option(help="Superpixels per frame.")] = 400,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compute the superpixels of every frame once, with their features.

    Example: diffslic precompute superpixels ../DAVIS2016 --n-spixels 400
    """
    from diffslic import pipeline
    from diffslic.superpixels import SSN

    clips = _open(dataset, root, split, resolution)
    out = pipeline.cache_folder(cache, dataset, resolution, "superpixels")
    pipeline.precompute_superpixels(clips, SSN.from_pretrained(weights, device), out, n_spixels, progress=not as_json)
    show({"clips": len(clips), "out": str(out)}, as_json)


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


# ---------------------------------------------------------------- training the networks


train_app = typer.Typer(help="Train a network; a stopped run goes on where it was.", rich_markup_mode=None)
app.add_typer(train_app, name="train")


@train_app.command("ssn")
def train_ssn(
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes or bsds500.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    model: Annotated[str, typer.Option(help="ssn, composite (--start is its base) or spixelfcn.")] = "ssn",
    width: Annotated[int, typer.Option(help="Channels of the net of an SSN.")] = 32, start: Start = None,
    n_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 160, steps: Steps = 800,
    batch_size: Batch = 6, rate: Rate = 1e-3, seed: Seed = 2, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None, as_json: Json = False,
) -> None:
    """Train a superpixel network on scenes or on BSDS500.

    Example: diffslic train ssn --out runs/ssn --dataset bsds500 --root ../BSDS500
    """
    from diffslic.recipes import ssn

    clips, validation = ssn.prepare(dataset, root, n_scenes)
    fit = ssn.train(out, clips, validation, model=model, width=width, start=start, steps=steps, batch_size=batch_size,
                    learning_rate=rate, seed=seed,
                    **_how(device, devices, precision, workers, logger, out, as_json))
    _show_fit(fit, as_json)


@train_app.command("raft")
def train_raft(
    out: TrainOut, variant: Annotated[str, typer.Option(help="small or large.")] = "small", steps: Steps = 2200,
    batch_size: Batch = 4, start: Start = None,
    rate: Rate = 4e-4,
    seed: Seed = 1, device: Accelerator = "auto", devices: Devices = 1, precision: Precision = "32-true",
    workers: Workers = 1, logger: Logger = None, as_json: Json = False,
) -> None:
    """Train RAFT on scenes.

    Example: torchrun --nproc-per-node 4 -m diffslic train raft --out runs/raft --batch-size 8
    """
    from diffslic.recipes import raft

    fit = raft.train(out, variant=variant, steps=steps, batch_size=batch_size, start=start, learning_rate=rate,
                     seed=seed, **_how(device, devices, precision, workers, logger, out, as_json))
    _show_fit(fit, as_json)


@train_app.command("unet")
def train_unet(
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes or davis2016.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    resolution: Resolution = "480p", cache: Cache = Path("cache"),
    inputs: Annotated[str | None, typer.Option(help="Any of flow,superpixels,image.",
                                               show_default="those of --start, or all")] = None,
    widths: Annotated[str, typer.Option(help="Channels at each scale.")] = "16,32,64,128,128",
    residual: Annotated[bool, typer.Option(help="Residual blocks.")] = False, start: Start = None,
    n_clips: Annotated[int, typer.Option(help="Scenes to train on.")] = 160,
    n_frames: Annotated[int, typer.Option(help="Frames of each scene.")] = 4, steps: Steps = 1500,
    batch_size: Batch = 4, rate: Rate = 1e-3, seed: Seed = 3, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None, as_json: Json = False,
) -> None:
    """Train the motion segmentation network on scenes, or on DAVIS 2016 split by sequence.

    Under torchrun, compute flow and superpixels first (one process, ``diffslic precompute``).

    Example: diffslic train unet --out runs/unet --dataset davis2016 --root ../DAVIS2016 --inputs flow,superpixels
    """
    from diffslic.recipes import unet

    where = device if device != "auto" else "cpu"
    shape = {"inputs": inputs.split(",") if inputs else None, "start": start,
             "widths": [int(width) for width in widths.split(",")]}
    unet.check_inputs(shape["inputs"], start)  # before hours of preparation
    clips, validation = unet.prepare(dataset, cache, root=root, resolution=resolution, n_clips=n_clips,
                                     n_frames=n_frames, device=where, progress=not as_json)
    fit = unet.train(out, clips, validation, **shape, residual=residual, steps=steps, batch_size=batch_size,
                     learning_rate=rate, seed=seed,
                     **_how(device, devices, precision, workers, logger, out, as_json))
    _show_fit(fit, as_json)


def _how(device: str, devices: int, precision: str, workers: int, logger: str | None, out: Path,
         as_json: bool) -> dict[str, Any]:
    """The arguments that every training takes alike."""
    from diffslic.training import open_logger

    return {"device": device, "devices": devices, "precision": precision, "workers": workers,
            "loggers": [open_logger(logger, out)] if logger else [], "progress": not as_json,
            "command": shlex.join(["diffslic", *sys.argv[1:]])}


def _open(dataset: str, root: Path, split: str, resolution: str) -> list[Any]:
    """Clips of a dataset on disk, by the options that it knows."""
    from diffslic import datasets

    options = {"split": split, "resolution": resolution} if dataset.startswith("davis") else {}
    return datasets.open(dataset, root=root, **options)


def _show_fit(result: Any, as_json: bool) -> None:
    if not result.first:  # under torchrun one process speaks for all
        return
    best = result.history[result.history["step"] == result.best_step].iloc[-1].to_dict()
    show({**best, "best_step": result.best_step, "seconds": result.seconds, "weights": str(result.weights)}, as_json)
