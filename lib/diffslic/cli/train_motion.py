"""Training motion segmentation on flow alone, without masks."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diffslic.cli.common import (
    Accelerator,
    Batch,
    Cache,
    Devices,
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
    numbers,
    refuse_given,
)
from diffslic.cli.train import how_to_train, refuse_other_data, show_fit, train_app, where_to_prepare

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


@train_app.command("em")
def train_em(
    context: typer.Context,
    out: TrainOut,
    dataset: MotionData = "davis2016+scenes", root: MotionRoot = None, file: SplitFile = None,
    resolution: Resolution = "480p", cache: Cache = Path("cache"), n_clips: MotionScenes = 40,
    layers: Layers = None, inputs: MotionInputs = None, widths: MotionWidths = None, image_size: ImageSize = None,
    model: MotionModel = "quadratic", distance: Distance = "l1",
    fit: Fit = "ls", normalised: Normalised = True, entropy: Entropy = 0.02, global_motion: GlobalMotion = "light",
    crop: Crop = None, noise: Noise = 0.0, null: Null = 0.0, selection: Selection = None,
    start: Start = None, steps: Steps = 3000, batch_size: Batch = 8, rate: Rate = 1e-3, seed: Seed = 4,
    device: Accelerator = "auto", devices: Devices = 1, precision: Precision = "32-true", workers: Workers = 1,
    logger: Logger = None, validate_every: ValidateEvery = 500, as_json: Json = False,
) -> None:
    """Train motion segmentation frame by frame on flow alone, without masks (the EM system).

    Example: diffslic train em --out runs/em --dataset split --root DATA --file DataSplit/Exp6_Split
    """
    _refuse_other_data(context, dataset)
    shape = _motion_shape("EM", start, window=1, n_layers=layers, inputs=inputs, widths=widths,
                          size=image_size, selection=selection)
    loss = {"model": model, "distance": distance, "fit": fit, "normalised": normalised, "entropy": entropy}
    augmentation = {"global_motion": global_motion, "crop": crop, "noise": noise, "null": null}
    how = {"steps": steps, "batch_size": batch_size, "rate": rate, "validate_every": validate_every, "seed": seed,
           "device": device, "devices": devices, "precision": precision, "workers": workers, "logger": logger,
           "as_json": as_json}
    _train_motion(out, dataset, root, file, resolution, cache, n_clips, shape, loss, augmentation, start, how)


@train_app.command("spacetime")
def train_spacetime(
    context: typer.Context,
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
    logger: Logger = None, validate_every: ValidateEvery = 500, as_json: Json = False,
) -> None:
    """Train motion segmentation over windows of frames on flow alone, without masks (the long-term system).

    Example: diffslic train spacetime --out runs/spacetime --root ../DAVIS2016 --window 9 --layers 4
    """
    _refuse_other_data(context, dataset)
    shape = _motion_shape("SPACETIME", start, window=window, n_layers=layers, inputs=inputs, widths=widths,
                          size=image_size, selection=selection)
    loss = {"model": model, "spacing": spacing, "published": published_splines, "distance": distance, "fit": fit,
            "normalised": normalised, "consistency": consistency, "potts": potts, "entropy": entropy}
    augmentation = {"global_motion": global_motion, "temporal_scale": temporal_scale, "crop": crop, "noise": noise,
                    "null": null}
    how = {"steps": steps, "batch_size": batch_size, "rate": rate, "validate_every": validate_every, "seed": seed,
           "device": device, "devices": devices, "precision": precision, "workers": workers, "logger": logger,
           "as_json": as_json}
    _train_motion(out, dataset, root, file, resolution, cache, n_clips, shape, loss, augmentation, start, how)


def _refuse_other_data(context: typer.Context, dataset: str) -> None:
    refuse_other_data(context, dataset, of_scenes=("n_clips",), of_files=("root", "resolution"))
    if dataset == "split":
        refuse_given(context, "is for what is computed: a split has flow of its own", "cache", "resolution")
    else:
        refuse_given(context, "is of --dataset split", "file")


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


def _train_motion(out: Path, dataset: str, root: Path | None, file: Path | None, resolution: str, cache: Path,
                  n_clips: int, shape: Any, loss: dict[str, Any], augmentation: dict[str, Any], start: str | None,
                  how: dict[str, Any]) -> None:
    from diffslic.recipes import motion

    motion.network(shape, start)  # what cannot be is refused before hours of preparation
    changes, criterion = motion.Augmentation(**augmentation), motion.Loss(**loss)
    settings = motion.settings_of(shape, criterion, changes, start, how["batch_size"], how["seed"])
    how = how_to_train(out, settings, **how)
    clips, validation = motion.prepare(dataset, cache, root=root, resolution=resolution, file=file, n_clips=n_clips,
                                       n_frames=max(17, shape.window + 8), device=where_to_prepare(how["device"]),
                                       progress=how["progress"])
    fit = motion.train(out, clips, validation, config=shape, loss=criterion, augmentation=changes, start=start, **how)
    show_fit(fit, as_json=not how["progress"])
