"""Training the networks; those of motion alone are in ``train_motion``."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from diffslic import report
from diffslic.cli.common import (
    HOW_POLISHED,
    Accelerator,
    Batch,
    Cache,
    Devices,
    Iters,
    Json,
    Logger,
    Precision,
    Rate,
    Resolution,
    Seed,
    Start,
    Steps,
    TrainOut,
    ValidateEvery,
    Workers,
    app,
    numbers,
    refuse_given,
    show,
)

train_app = typer.Typer(help="Train a network; a stopped run goes on where it was.", rich_markup_mode=None)
app.add_typer(train_app, name="train")


@train_app.command("ssn")
def train_ssn(
    context: typer.Context,
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes, bsds500 or davis2016.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    resolution: Resolution = "480p",
    davis: Annotated[Path | None, typer.Option(help="DAVIS's folder, to validate there.")] = None,
    flow_root: Annotated[Path | None, typer.Option(help="Of a composite on DAVIS: FLOW_ROOT/<clip>.h5.",
                                                   show_default="computed and kept in the cache")] = None,
    cache: Cache = Path("cache"),
    model: Annotated[str, typer.Option(help="ssn, composite (--start is its base) or spixelfcn.")] = "ssn",
    width: Annotated[int | None, typer.Option(help="Channels of a new SSN's net.", show_default="32")] = None,
    n_iters: Iters = None,
    loss: Annotated[str, typer.Option(help="Of segments: probability, logsoftmax or iou.")] = "probability",
    compactness_weight: Annotated[float, typer.Option(help="Of the compactness loss.")] = 1e-5,
    start: Start = None,
    n_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 160, steps: Steps = 800,
    batch_size: Batch = 6, rate: Rate = 1e-3, seed: Seed = 2, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None,
    validate_every: ValidateEvery = 500, as_json: Json = False,
) -> None:
    """Train a superpixel network on scenes, on BSDS500, or a composite on DAVIS.

    Example: diffslic train ssn --out runs/ssn --dataset bsds500 --root ../BSDS500
    """
    from diffslic.recipes import ssn

    refuse_other_data(context, dataset, of_scenes=("n_scenes",))
    on_davis = dataset == "davis2016" or davis is not None
    if not on_davis:
        refuse_given(context, "is of DAVIS", "resolution")
    if not (on_davis and model == "composite"):
        refuse_given(context, "is of a composite on DAVIS", "flow_root", "cache")
    if flow_root is not None:
        refuse_given(context, "is for flow that is computed: --flow-root has it", "cache")
    report.check_choice("model", model, list(ssn.WHAT))
    report.check_choice("loss", loss, list(ssn.RECONSTRUCTIONS))
    network = ssn.new_network(model, width, n_iters, start)
    settings = ssn.settings_of(model, network, start, loss, compactness_weight, batch_size, seed)
    how = how_to_train(out, settings, steps, batch_size, rate, validate_every, seed, device, devices, precision,
                       workers, logger, as_json)
    where = where_to_prepare(device)
    clips, validation = ssn.prepare(dataset, root, n_scenes=n_scenes, resolution=resolution, davis=davis,
                                    flow=model == "composite", flow_root=flow_root, cache=cache, device=where,
                                    progress=not as_json)
    fit = ssn.train(out, clips, validation, model=model, width=width, n_iters=n_iters, start=start,
                    reconstruction=loss, compactness_weight=compactness_weight, **how)
    show_fit(fit, as_json)


@train_app.command("raft")
def train_raft(
    context: typer.Context,
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes, flyingchairs, sintel, kitti or tartanair.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    variant: Annotated[str | None, typer.Option(help="small or large.", show_default="small, or as --start")] = None,
    n_iters: Annotated[int, typer.Option(help="Corrections per pair; 0 trains the features alone.")] = 12,
    power: Annotated[float, typer.Option(help="Of the distances in the loss: 1, or below for fine-tuning.")] = 1.0,
    matching_weight: Annotated[float, typer.Option(help="Of the matching loss.")] = 1.0,
    freeze_features: Annotated[bool, typer.Option("--freeze-features", help="Train all but what is compared.")] = False,
    textures: Annotated[Path | None, typer.Option(help="A folder of photographs to draw with, such as BSDS500's.",
                                                  show_default="those of scikit-image")] = None,
    n_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 160,
    start: Start = None, steps: Steps = 2200, batch_size: Batch = 4, rate: Rate = 4e-4, seed: Seed = 1,
    device: Accelerator = "auto", devices: Devices = 1, precision: Precision = "32-true", workers: Workers = 1,
    logger: Logger = None, validate_every: ValidateEvery = 500, as_json: Json = False,
) -> None:
    """Train RAFT on scenes and collages, or on a dataset with flow.

    Example: diffslic train raft --out runs/chairs --dataset flyingchairs --root ../FlyingChairs --start small

    On many GPUs: torchrun --nproc-per-node 4 -m -- diffslic train raft --out runs/raft --batch-size 8
    """
    from diffslic.recipes import raft

    refuse_other_data(context, dataset, of_scenes=("n_scenes", "textures"))
    raft.network(variant, start)  # what cannot be is refused before the data are opened
    how = how_to_train(out, {}, steps, batch_size, rate, validate_every, seed, device, devices, precision,
                       workers, logger, as_json)
    clips, validation = raft.prepare(dataset, root)
    fit = raft.train(out, variant=variant, clips=clips, validation=validation, n_iters=n_iters, power=power,
                     matching_weight=matching_weight, freeze_features=freeze_features, textures=textures,
                     n_scenes=n_scenes, start=start, **how)
    show_fit(fit, as_json)


@train_app.command("unet")
def train_unet(
    context: typer.Context,
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes or davis2016.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    resolution: Resolution = "480p",
    cache: Cache = Path("cache"),
    inputs: Annotated[str | None, typer.Option(help="Any of flow,superpixels,image.",
                                               show_default="those of --start, or all")] = None,
    widths: Annotated[str | None, typer.Option(help="Channels at each scale, of a new U-Net.",
                                               show_default="16,32,64,128,128")] = None,
    residual: Annotated[bool | None, typer.Option(help="Residual blocks, of a new U-Net.",
                                                  show_default="no-residual")] = None,
    start: Annotated[str | None, typer.Option(help="A U-Net to start from: a shipped name or a file. With --end-to-end "
                                                   "also a file that --end-to-end wrote: then all parts are those of "
                                                   "the file, --n-iters, --n-spixels and --polish may be others, "
                                                   "and --raft, --ssn, --head, --inputs, --widths and --residual "
                                                   "are refused.")] = None,
    n_clips: Annotated[int, typer.Option(help="Scenes to train on.")] = 160,
    n_frames: Annotated[int, typer.Option(help="Frames of each scene.")] = 4, steps: Steps = 1500,
    batch_size: Batch = 4, rate: Rate = 1e-3, seed: Seed = 3, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None,
    validate_every: ValidateEvery = 500, as_json: Json = False,
    end_to_end: Annotated[bool, typer.Option("--end-to-end", help="Flow and superpixels learn too; nothing is "
                                                                  "kept.")] = False,
    head: Annotated[str | None, typer.Option(help="Of --end-to-end: unet or transformer (over superpixels).",
                                             show_default="unet")] = None,
    freeze: Annotated[str | None, typer.Option(help="Of --end-to-end: any of flow,superpixels,head.",
                                               show_default="none")] = None,
    raft: Annotated[str | None, typer.Option(help="RAFT that makes the flow, or with --end-to-end starts to learn: a "
                                                  "shipped name or a file.", show_default="small")] = None,
    ssn: Annotated[str | None, typer.Option(help="SSN that makes the superpixels, or with --end-to-end, where it must "
                                                 "be a composite, starts to learn: a shipped name or a file.",
                                            show_default="scenes; composite-davis2016")] = None,
    n_iters: Annotated[int | None, typer.Option("--n-iters", help="Corrections of the flow.",
                                                show_default="12; with --end-to-end as --start")] = None,
    n_spixels: Annotated[int | None, typer.Option(help="Superpixels of a frame.",
                                                  show_default="400; with --end-to-end as --start")] = None,
    polish: Annotated[str | None, typer.Option(help=HOW_POLISHED,
                                               show_default="variational; with --end-to-end as --start")] = None,
    photometric: Annotated[float | None, typer.Option(help="Of --end-to-end: weight of the flow's consistency with the "
                                                           "frames.", show_default="0")] = None,
    recompute: Annotated[bool, typer.Option("--recompute", help="Of --end-to-end: activations on the way back, in less "
                                                                "memory.")] = False,
) -> None:
    """Train the motion segmentation network on scenes, or on DAVIS 2016 split by sequence.

    Under torchrun the processes share the computation of flow and superpixels too.

    Example: diffslic train unet --out runs/unet --dataset davis2016 --root ../DAVIS2016 --inputs flow,superpixels

    All in one graph: diffslic train unet --end-to-end --out runs/end-to-end --n-frames 6 --batch-size 2, and then
    diffslic segment my_frames/ --method end-to-end --weights runs/end-to-end/best.safetensors --out masks/
    """
    from diffslic.flow import check_polish
    from diffslic.recipes import end_to_end as whole
    from diffslic.recipes import unet

    refuse_other_data(context, dataset, of_scenes=("n_clips", "n_frames"), of_files=("root", "resolution"))
    shape = {"inputs": None if inputs is None else inputs.split(","), "start": start, "residual": residual,
             "widths": None if widths is None else numbers(widths, "--widths")}
    makers = {"raft": raft, "ssn": ssn, "n_iters": n_iters, "n_spixels": n_spixels, "polished": polish}
    makers = {name: value for name, value in makers.items() if value is not None}
    # What cannot be is refused before anything is drawn, another run too.
    if end_to_end:
        refuse_given(context, "is for what is computed beforehand: --end-to-end keeps nothing", "cache")
        frozen = [] if freeze is None else [name.strip() for name in freeze.split(",")]
        parts = {"shape": {**shape, **makers, "head": head, "recompute": recompute}, "frozen": frozen,
                 "weights": whole.Weights(photometric=photometric or 0.0)}
        whole.first_steps(steps, frozen)
        settings = whole.settings_of(whole.network(**parts["shape"]), **parts, batch_size=batch_size, seed=seed)
    else:
        refuse_given(context, "is of --end-to-end", "head", "freeze", "photometric", "recompute")
        made: dict[str, dict[str, Any]] = {"parts": {**unet.PARTS, **makers}}
        settings = unet.settings_of(**shape, batch_size=batch_size, seed=seed, **made)
        check_polish(made["parts"]["polished"])
        if min(made["parts"][name] for name in ("n_iters", "n_spixels")) < 1:
            raise ValueError("--n-iters and --n-spixels must be at least 1")
        if "superpixels" not in settings["inputs"]:
            refuse_given(context, "is for superpixels, which are not among the inputs", "ssn", "n_spixels")
            if "flow" not in settings["inputs"]:
                refuse_given(context, "is for flow and superpixels: neither is among the inputs", "cache", "raft",
                             "n_iters", "polish")
    how = how_to_train(out, settings, steps, batch_size, rate, validate_every, seed, device, devices, precision,
                       workers, logger, as_json)
    opened = {"root": root, "resolution": resolution, "n_clips": n_clips, "n_frames": n_frames,
              "device": where_to_prepare(device)}
    if end_to_end:
        clips, validation = unet.open_clips(dataset, **opened)
        fit = whole.train(out, clips, validation, **parts, **how)
    else:
        clips, validation = unet.prepare(dataset, cache, **opened, **makers, inputs=settings["inputs"],
                                         progress=not as_json)
        fit = unet.train(out, clips, validation, **shape, **made, **how)
    show_fit(fit, as_json)


@train_app.command("instances")
def train_instances(
    out: TrainOut, cache: Cache = Path("cache"),
    start: Annotated[str, typer.Option(help="A U-Net to go on from, of one mask or of several: a shipped name or a "
                                            "file.")] = "motion",
    bodies: Annotated[int, typer.Option(help="Masks beside the background's.")] = 6,
    n_clips: Annotated[int, typer.Option(help="Scenes to train on.")] = 120,
    n_frames: Annotated[int, typer.Option(help="Frames of each scene.")] = 4, steps: Steps = 1500,
    batch_size: Batch = 4, rate: Rate = 1e-3, seed: Seed = 5, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None,
    validate_every: ValidateEvery = 500, as_json: Json = False,
) -> None:
    """Train the network that parts what moves into several bodies, on crowded scenes.

    Example: diffslic train instances --out runs/instances
    """
    from diffslic.recipes import instances, unet

    network = instances.network(start, bodies)  # what cannot be is refused before the preparation
    settings = instances.settings_of(start, bodies, batch_size, seed)
    how = how_to_train(out, settings, steps, batch_size, rate, validate_every, seed, device, devices, precision,
                       workers, logger, as_json)
    where = where_to_prepare(device)
    clips, validation = unet.prepare("scenes", cache, presets=instances.PRESETS, n_clips=n_clips, n_frames=n_frames,
                                     inputs=network.config.inputs, device=where, progress=not as_json)
    fit = instances.train(out, clips, validation, start=start, n_bodies=bodies, **how)
    show_fit(fit, as_json)


@train_app.command("softseg")
def train_softseg(
    context: typer.Context,
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes, bsds500 or ade20k.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    compared: Annotated[str, typer.Option(help="slic, ssn (superpixels learn too) or pixels.")] = "slic",
    ssn: Annotated[str, typer.Option(help="Of --compared ssn, the SSN to start from.")] = "scenes",
    widths: Annotated[str, typer.Option(help="Channels of each block; the paper's are 64,128,256.")] = "32,64,128",
    n_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 160, steps: Steps = 2000,
    batch_size: Batch = 2, rate: Rate = 1e-3, seed: Seed = 6, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None,
    validate_every: ValidateEvery = 500, as_json: Json = False,
) -> None:
    """Train the network that tells which superpixels are of one thing.

    Example: diffslic train softseg --out runs/softseg
    """
    from diffslic.recipes import softseg

    report.check_choice("compared", compared, list(softseg.COMPARED))
    refuse_other_data(context, dataset, of_scenes=("n_scenes",))
    if compared != "ssn":
        refuse_given(context, "is of --compared ssn", "ssn")
    channels = numbers(widths, "--widths")
    settings = softseg.settings_of(compared, channels, ssn, batch_size, seed)
    how = how_to_train(out, settings, steps, batch_size, rate, validate_every, seed, device, devices, precision,
                       workers, logger, as_json)
    clips, validation = softseg.prepare(dataset, root, n_scenes=n_scenes, device=where_to_prepare(device))
    fit = softseg.train(out, clips, validation, compared=compared, widths=channels, ssn=ssn,
                        dataset=dataset, **how)
    show_fit(fit, as_json)


def refuse_other_data(context: typer.Context, dataset: str, of_scenes: Sequence[str],
                      of_files: Sequence[str] = ("root",)) -> None:
    """Refuse options that were given and are of scenes where they are not drawn, or of files where nothing is read."""
    parts = dataset.split("+")
    if parts == ["scenes"]:
        refuse_given(context, "is of a dataset on disk: scenes are drawn", *of_files)
    elif "scenes" not in parts:
        refuse_given(context, "is of scenes, which --dataset does not name", *of_scenes)


def where_to_prepare(device: str) -> str:
    """The device on which clips are prepared: under torchrun each process has its own GPU."""
    from diffslic.training import own_device

    return own_device(device if device != "auto" else "cpu")


def how_to_train(out: Path, settings: dict[str, Any], steps: int, batch_size: int, rate: float, validate_every: int,
                 seed: int, device: str, devices: int, precision: str, workers: int, logger: str | None,
                 as_json: bool) -> dict[str, Any]:
    """The arguments that every training takes alike; where ``out`` holds another run it is refused now.

    Args:
        settings: what else of the run is known before its clips are prepared.
    """
    from diffslic.training import Schedule, check_resume, open_logger

    check_resume(out, Schedule(steps, rate, validate_every=validate_every),
                 {"batch_size": batch_size, "seed": seed, **settings}, device=device, devices=devices,
                 precision=precision)
    return {"steps": steps, "batch_size": batch_size, "learning_rate": rate, "validate_every": validate_every,
            "seed": seed, "device": device, "devices": devices, "precision": precision, "workers": workers,
            "loggers": [open_logger(logger, out)] if logger else [], "progress": not as_json,
            "command": _launcher() + shlex.join(["diffslic", *sys.argv[1:]])}


def _launcher() -> str:
    """The beginning of the command, where torchrun started this process: with as many as there are now."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return ""
    total, per_node = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    where = (f"--nnodes {total // per_node} --rdzv-backend c10d --rdzv-endpoint HOST:29500" if total > per_node else
             "--standalone")
    return f"torchrun {where} --nproc-per-node {per_node} -m -- "


def show_fit(result: Any, as_json: bool) -> None:
    """Print the figures of the best step."""
    if not result.first:  # under torchrun one process speaks for all
        return
    best = result.history[result.history["step"] == result.best_step].iloc[-1].to_dict()
    show({**best, "best_step": result.best_step, "seconds": result.seconds, "weights": str(result.weights)}, as_json)
