"""Training the networks."""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diffslic import report
from diffslic.cli.common import (
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
    Workers,
    app,
    numbers,
    show,
)

MotionData = Annotated[str, typer.Option("--dataset", help="scenes, davis2016, davis2016+scenes, or split.")]
MotionRoot = Annotated[Path | None, typer.Option("--root", help="DAVIS's folder, or the base of --file's paths.")]
SplitFile = Annotated[Path | None, typer.Option("--file", help="Of a split: its name without _train.csv, from here or "
                                                               "from --root on.")]
MotionScenes = Annotated[int, typer.Option("--n-clips", help="Scenes to train on.")]
Layers = Annotated[int | None, typer.Option("--layers", help="Masks.", show_default="4, or as --start")]
MotionInputs = Annotated[str | None, typer.Option("--inputs", help="Any of residual,flow,image,flow_rgb, also those of "
                                                                   "other frames: flow+1,flow-4.",
                                                  show_default="residual,flow, or as --start")]
MotionWidths = Annotated[str | None, typer.Option("--widths", help="Channels at each scale: 16,32,64,128.",
                                                  show_default="as the shipped network, or as --start")]
ImageSize = Annotated[tuple[int, int] | None, typer.Option("--image-size", help="Rows and columns of the network.",
                                                           show_default="128 224, or as --start")]
MotionModel = Annotated[str, typer.Option("--model", help="Of a layer's motion: constant, affine or quadratic.")]
Distance = Annotated[str, typer.Option(help="l1, l2, squared or charbonnier.")]
Fit = Annotated[str, typer.Option(help="Of the motions: ls (as published) or irls.")]
Normalised = Annotated[bool, typer.Option(help="Count in units of the frame's mean motion.")]
Entropy = Annotated[float, typer.Option(help="Weight of the entropy.")]
GlobalMotion = Annotated[str, typer.Option(help="Strength of added camera motion: none, light, medium or strong.")]
Crop = Annotated[int | None, typer.Option(help="Side of square crops, in pixels of the network.")]
Noise = Annotated[float, typer.Option(help="Deviation of noise on the flow that is read, in units of its strength.")]
Null = Annotated[float, typer.Option(help="Share of windows in which the flow that is read of a frame is nothing.")]
Selection = Annotated[str | None, typer.Option(help="Which layers move: largest or moving.",
                                              show_default="moving, or as --start")]

train_app = typer.Typer(help="Train a network; a stopped run goes on where it was.", rich_markup_mode=None)
app.add_typer(train_app, name="train")


@train_app.command("ssn")
def train_ssn(
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
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None, as_json: Json = False,
) -> None:
    """Train a superpixel network on scenes, on BSDS500, or a composite on DAVIS.

    Example: diffslic train ssn --out runs/ssn --dataset bsds500 --root ../BSDS500
    """
    from diffslic.recipes import ssn

    report.check_choice("model", model, list(ssn.WHAT))
    report.check_choice("loss", loss, list(ssn.RECONSTRUCTIONS))
    where = _where(device)
    clips, validation = ssn.prepare(dataset, root, n_scenes=n_scenes, resolution=resolution, davis=davis,
                                    flow=model == "composite", flow_root=flow_root, cache=cache, device=where,
                                    progress=not as_json)
    fit = ssn.train(out, clips, validation, model=model, width=width, n_iters=n_iters, start=start, steps=steps,
                    batch_size=batch_size, learning_rate=rate, reconstruction=loss,
                    compactness_weight=compactness_weight, seed=seed,
                    **_how(device, devices, precision, workers, logger, out, as_json))
    _show_fit(fit, as_json)


@train_app.command("raft")
def train_raft(
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes, flyingchairs, sintel, kitti or tartanair.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    variant: Annotated[str, typer.Option(help="small or large; of --start, its own.")] = "small",
    n_iters: Annotated[int, typer.Option(help="Corrections per pair; 0 trains the features alone.")] = 12,
    power: Annotated[float, typer.Option(help="Of the distances in the loss: 1, or below for fine-tuning.")] = 1.0,
    matching_weight: Annotated[float, typer.Option(help="Of the matching loss.")] = 1.0,
    freeze_features: Annotated[bool, typer.Option("--freeze-features", help="Train all but what is compared.")] = False,
    textures: Annotated[Path | None, typer.Option(help="A folder of photographs to draw with, such as BSDS500's.",
                                                  show_default="those of scikit-image")] = None,
    n_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 160,
    start: Start = None, steps: Steps = 2200, batch_size: Batch = 4, rate: Rate = 4e-4, seed: Seed = 1,
    device: Accelerator = "auto", devices: Devices = 1, precision: Precision = "32-true", workers: Workers = 1,
    logger: Logger = None, as_json: Json = False,
) -> None:
    """Train RAFT on scenes and collages, or on a dataset with flow.

    Example: diffslic train raft --out runs/chairs --dataset flyingchairs --root ../FlyingChairs --start small

    On many GPUs: torchrun --nproc-per-node 4 -m -- diffslic train raft --out runs/raft --batch-size 8
    """
    from diffslic.recipes import raft

    clips, validation = raft.prepare(dataset, root)
    fit = raft.train(out, variant=variant, clips=clips, validation=validation, n_iters=n_iters, power=power,
                     matching_weight=matching_weight, freeze_features=freeze_features, textures=textures,
                     n_scenes=n_scenes, start=start, steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed,
                     **_how(device, devices, precision, workers, logger, out, as_json))
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
    validate_every: Annotated[int, typer.Option(min=1, help="Steps between validations; a stopped run goes on from the "
                                                            "last.")] = 500,
    end_to_end: Annotated[bool, typer.Option("--end-to-end", help="Flow and superpixels learn too; nothing is "
                                                                  "kept.")] = False,
    head: Annotated[str | None, typer.Option(help="Of --end-to-end: unet or transformer (over superpixels).",
                                             show_default="unet")] = None,
    freeze: Annotated[str | None, typer.Option(help="Of --end-to-end: any of flow,superpixels,head.",
                                               show_default="none")] = None,
    raft: Annotated[str | None, typer.Option(help="Of --end-to-end: RAFT to start from.", show_default="small")] = None,
    ssn: Annotated[str | None, typer.Option(help="Of --end-to-end: composite SSN to start from.",
                                            show_default="composite-davis2016")] = None,
    n_iters: Annotated[int | None, typer.Option("--n-iters", help="Of --end-to-end: corrections of the flow.",
                                                show_default="12")] = None,
    n_spixels: Annotated[int | None, typer.Option(help="Of --end-to-end: superpixels of a frame.",
                                                  show_default="400")] = None,
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
    from diffslic.recipes import unet

    where = _where(device)
    shape = {"inputs": inputs.split(",") if inputs else None, "start": start,
             "widths": numbers(widths, "--widths")}
    together = {"head": head, "freeze": freeze, "raft": raft, "ssn": ssn, "n_iters": n_iters, "n_spixels": n_spixels,
                "photometric": photometric, "recompute": recompute or None}
    together = {name: value for name, value in together.items() if value is not None}
    how = {"steps": steps, "batch_size": batch_size, "learning_rate": rate, "seed": seed,
           "validate_every": validate_every, **_how(device, devices, precision, workers, logger, out, as_json)}
    opened = {"root": root, "resolution": resolution, "n_clips": n_clips, "n_frames": n_frames, "device": where}
    if end_to_end:
        fit = _train_end_to_end(out, {"dataset": dataset, **opened}, {**shape, "residual": residual}, together, **how)
    elif together:
        raise ValueError(f"--{next(iter(together)).replace('_', '-')} is of --end-to-end")
    else:
        unet.check_inputs(shape["inputs"], start)  # before hours of preparation
        clips, validation = unet.prepare(dataset, cache, **opened, progress=not as_json)
        fit = unet.train(out, clips, validation, **shape, residual=residual, **how)
    _show_fit(fit, as_json)


def _train_end_to_end(out: Path, opened: dict[str, Any], shape: dict[str, Any], together: dict[str, Any],
                      **how: Any) -> Any:
    from diffslic.recipes import end_to_end, unet

    frozen = [name.strip() for name in together.pop("freeze").split(",")] if "freeze" in together else []
    weights = end_to_end.Weights(photometric=together.pop("photometric", 0.0))
    shape = {name: value for name, value in shape.items() if value is not None} | together
    end_to_end.network(**shape)  # what cannot be is refused before anything is drawn
    clips, validation = unet.open_clips(**opened)
    return end_to_end.train(out, clips, validation, shape=shape, frozen=frozen, weights=weights, **how)


@train_app.command("instances")
def train_instances(
    out: TrainOut, cache: Cache = Path("cache"),
    start: Annotated[str, typer.Option(help="A U-Net to go on from, of one mask or of several: a shipped name or a "
                                            "file.")] = "motion",
    bodies: Annotated[int, typer.Option(help="Masks beside the background's.")] = 6,
    n_clips: Annotated[int, typer.Option(help="Scenes to train on.")] = 120,
    n_frames: Annotated[int, typer.Option(help="Frames of each scene.")] = 4, steps: Steps = 1500,
    batch_size: Batch = 4, rate: Rate = 1e-3, seed: Seed = 5, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None, as_json: Json = False,
) -> None:
    """Train the network that parts what moves into several bodies, on crowded scenes.

    Example: diffslic train instances --out runs/instances
    """
    from diffslic.recipes import instances, unet

    instances.network(start, bodies)  # before the preparation
    where = _where(device)
    clips, validation = unet.prepare("scenes", cache, presets=instances.PRESETS, n_clips=n_clips, n_frames=n_frames,
                                     device=where, progress=not as_json)
    fit = instances.train(out, clips, validation, start=start, n_bodies=bodies, steps=steps, batch_size=batch_size,
                          learning_rate=rate, seed=seed,
                          **_how(device, devices, precision, workers, logger, out, as_json))
    _show_fit(fit, as_json)


@train_app.command("softseg")
def train_softseg(
    out: TrainOut,
    dataset: Annotated[str, typer.Option(help="scenes, bsds500 or ade20k.")] = "scenes",
    root: Annotated[Path | None, typer.Option(help="The dataset's folder; the scenes need none.")] = None,
    compared: Annotated[str, typer.Option(help="slic, ssn (superpixels learn too) or pixels.")] = "slic",
    ssn: Annotated[str, typer.Option(help="Of --compared ssn, the SSN to start from.")] = "scenes",
    widths: Annotated[str, typer.Option(help="Channels of each block; the paper's are 64,128,256.")] = "32,64,128",
    n_scenes: Annotated[int, typer.Option(help="Scenes to train on.")] = 160, steps: Steps = 2000,
    batch_size: Batch = 2, rate: Rate = 1e-3, seed: Seed = 6, device: Accelerator = "auto", devices: Devices = 1,
    precision: Precision = "32-true", workers: Workers = 1, logger: Logger = None, as_json: Json = False,
) -> None:
    """Train the network that tells which superpixels are of one thing.

    Example: diffslic train softseg --out runs/softseg
    """
    from diffslic.recipes import softseg

    report.check_choice("compared", compared, list(softseg.COMPARED))
    where = _where(device)
    clips, validation = softseg.prepare(dataset, root, n_scenes=n_scenes, device=where)
    fit = softseg.train(out, clips, validation, compared=compared, widths=numbers(widths, "--widths"), ssn=ssn,
                        steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed, dataset=dataset,
                        **_how(device, devices, precision, workers, logger, out, as_json))
    _show_fit(fit, as_json)


@train_app.command("em")
def train_em(
    out: TrainOut,
    dataset: MotionData = "davis2016+scenes", root: MotionRoot = None, file: SplitFile = None,
    resolution: Resolution = "480p", cache: Cache = Path("cache"), n_clips: MotionScenes = 40,
    layers: Layers = None, inputs: MotionInputs = None, widths: MotionWidths = None, image_size: ImageSize = None,
    model: MotionModel = "quadratic", distance: Distance = "l1",
    fit: Fit = "ls", normalised: Normalised = True, entropy: Entropy = 0.02, global_motion: GlobalMotion = "light",
    crop: Crop = None, noise: Noise = 0.0, null: Null = 0.0, selection: Selection = None,
    start: Start = None, steps: Steps = 3000, batch_size: Batch = 8, rate: Rate = 1e-3, seed: Seed = 4,
    device: Accelerator = "auto", devices: Devices = 1, precision: Precision = "32-true", workers: Workers = 1,
    logger: Logger = None, as_json: Json = False,
) -> None:
    """Train motion segmentation frame by frame on flow alone, without masks (the EM system).

    Example: diffslic train em --out runs/em --dataset split --root DATA --file DataSplit/Exp6_Split
    """
    shape = _motion_shape("EM", start, window=1, n_layers=layers, inputs=inputs, widths=widths,
                          size=image_size, selection=selection)
    loss = {"model": model, "distance": distance, "fit": fit, "normalised": normalised, "entropy": entropy}
    augmentation = {"global_motion": global_motion, "crop": crop, "noise": noise, "null": null}
    _train_motion(out, dataset, root, file, resolution, cache, n_clips, shape, loss, augmentation, as_json,
                  start=start, steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed,
                  **_how(device, devices, precision, workers, logger, out, as_json))


@train_app.command("spacetime")
def train_spacetime(
    out: TrainOut,
    dataset: MotionData = "davis2016+scenes", root: MotionRoot = None, file: SplitFile = None,
    resolution: Resolution = "480p", cache: Cache = Path("cache"), n_clips: MotionScenes = 40,
    window: Annotated[int | None, typer.Option(help="Frames seen at once.", show_default="9, or as --start")] = None,
    layers: Layers = None, inputs: MotionInputs = None, widths: MotionWidths = None, image_size: ImageSize = None,
    model: MotionModel = "quadratic",
    spacing: Annotated[int, typer.Option(help="Frames between the control points of a layer's motion.")] = 3,
    published_splines: Annotated[bool, typer.Option(help="Splines as published, which fade at a window's ends; "
                                                         "without: they sum to one in every frame.")] = False,
    distance: Distance = "l1", fit: Fit = "ls", normalised: Normalised = True,
    consistency: Annotated[float, typer.Option(help="Weight of Euler-Potts.")] = 0.3,
    potts: Annotated[float, typer.Option(help="Weight of Potts.")] = 0.0, entropy: Entropy = 0.02,
    global_motion: GlobalMotion = "light",
    temporal_scale: Annotated[str, typer.Option(help="Speed changes over a window: none, light, medium or "
                                                     "strong.")] = "none",
    crop: Crop = None, noise: Noise = 0.0, null: Null = 0.0, selection: Selection = None,
    start: Start = None, steps: Steps = 1500, batch_size: Batch = 2, rate: Rate = 1e-3, seed: Seed = 4,
    device: Accelerator = "auto", devices: Devices = 1, precision: Precision = "32-true", workers: Workers = 1,
    logger: Logger = None, as_json: Json = False,
) -> None:
    """Train motion segmentation over windows of frames on flow alone, without masks (the long-term system).

    Example: diffslic train spacetime --out runs/spacetime --root ../DAVIS2016 --window 9 --layers 4
    """
    shape = _motion_shape("SPACETIME", start, window=window, n_layers=layers, inputs=inputs, widths=widths,
                          size=image_size, selection=selection)
    loss = {"model": model, "spacing": spacing, "published": published_splines, "distance": distance, "fit": fit,
            "normalised": normalised, "consistency": consistency, "potts": potts, "entropy": entropy}
    augmentation = {"global_motion": global_motion, "temporal_scale": temporal_scale, "crop": crop, "noise": noise,
                    "null": null}
    _train_motion(out, dataset, root, file, resolution, cache, n_clips, shape, loss, augmentation,
                  as_json, start=start, steps=steps, batch_size=batch_size, learning_rate=rate, seed=seed,
                  **_how(device, devices, precision, workers, logger, out, as_json))


def _motion_shape(base: str, start: str | None, **given: Any) -> Any:
    """The network that was asked for: the base of the recipe, or that of ``start``, with what was given."""
    from diffslic.recipes import motion
    from diffslic.segmentation import MotionNet

    given = {name: value for name, value in given.items() if value is not None}
    if "inputs" in given:
        given["inputs"] = given["inputs"].split(",")
    if "widths" in given:
        given["widths"] = numbers(given["widths"], "--widths")
    if start is None:
        return replace(getattr(motion, base), **given)
    known = MotionNet.from_pretrained(start).config
    if known.window == 1 and "window" not in given:
        raise ValueError(f"{start} sees a frame at a time: it is for train em, or say --window 1")
    return replace(known, **given)


def _train_motion(out: Path, dataset: str, root: Path | None, file: Path | None, resolution: str,
                  cache: Path, n_clips: int, shape: Any, loss: dict[str, Any],
                  augmentation: dict[str, Any], as_json: bool, **how: Any) -> None:
    from diffslic.recipes import motion

    motion.network(shape, how["start"])  # what cannot be is refused before hours of preparation
    changes, criterion = motion.Augmentation(**augmentation), motion.Loss(**loss)
    where = _where(how["device"])
    clips, validation = motion.prepare(dataset, cache, root=root, resolution=resolution, file=file, n_clips=n_clips,
                                       n_frames=max(17, shape.window + 8), device=where, progress=not as_json)
    fit = motion.train(out, clips, validation, config=shape, loss=criterion,
                       augmentation=changes, **how)
    _show_fit(fit, as_json)


def _where(device: str) -> str:
    """The device on which clips are prepared: under torchrun each process has its own GPU."""
    from diffslic.training import own_device

    return own_device(device if device != "auto" else "cpu")


def _how(device: str, devices: int, precision: str, workers: int, logger: str | None, out: Path,
         as_json: bool) -> dict[str, Any]:
    """The arguments that every training takes alike."""
    from diffslic.training import open_logger

    return {"device": device, "devices": devices, "precision": precision, "workers": workers,
            "loggers": [open_logger(logger, out)] if logger else [], "progress": not as_json,
            "command": _launcher() + shlex.join(["diffslic", *sys.argv[1:]])}


def _launcher() -> str:
    """The beginning of the command, where torchrun started this process."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return ""
    total, per_node = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = f"--nnodes {total // per_node} " if total > per_node else ""
    return f"torchrun {nodes}--nproc-per-node {per_node} -m -- "


def _show_fit(result: Any, as_json: bool) -> None:
    if not result.first:  # under torchrun one process speaks for all
        return
    best = result.history[result.history["step"] == result.best_step].iloc[-1].to_dict()
    show({**best, "best_step": result.best_step, "seconds": result.seconds, "weights": str(result.weights)}, as_json)
