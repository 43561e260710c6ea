"""Using the networks: masks of a video, flow and superpixels kept on disk."""

from pathlib import Path
from typing import Annotated

import typer

from diffslic import report
from diffslic.cli.common import (
    HOW_POLISHED,
    CacheOut,
    Compactness,
    Dataset,
    Device,
    Iters,
    Json,
    Model,
    Polish,
    Resolution,
    Root,
    Split,
    app,
    load_superpixels,
    open_clips,
    refuse_given,
    refuse_other_datasets,
    show,
)


@app.command()
def segment(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="A folder of frames, a video file, or a dataset's folder.")],
    out: Annotated[Path, typer.Option(help="Where masks/, overlay/ and overlay.mp4 go; of a dataset: OUT/<clip>/...")],
    dataset: Dataset = "folder", split: Split = "all", resolution: Resolution = "480p",
    method: Annotated[str, typer.Option(help="unet (learned from masks), em or spacetime (from flow alone), or "
                                            "end-to-end (flow and superpixels learned with the masks).")] = "unet",
    weights: Annotated[str | None, typer.Option(help="Of the method's network: a shipped name or a file.",
                                                show_default="motion, em or spacetime; end-to-end needs "
                                                             "a file")] = None,
    window: Annotated[int | None, typer.Option(help="Of spacetime: frames seen at once, -1 for all.",
                                               show_default="9")] = None,
    objects: Annotated[bool, typer.Option("--objects", help="Of unet: part what moves into objects that keep their "
                                                            "number.")] = False,
    instances: Annotated[str | None, typer.Option(help="Of --objects: the network that parts them, a shipped name or a "
                                                       "file.", show_default="none, a graph of superpixels")] = None,
    given: Annotated[Path | None, typer.Option(help="Follow objects whose masks are given: GIVEN/<frame>.png, of a "
                                                    "dataset GIVEN/<clip>/<frame>.png; each id counts in the first "
                                                    "frame that has it.")] = None,
    raft: Annotated[str, typer.Option(help="RAFT: a shipped name or a file.")] = "small",
    ssn: Annotated[str, typer.Option(help="SSN: a shipped name or a file.")] = "scenes",
    rows: Annotated[int, typer.Option(help="Height at which the networks work.")] = 240,
    polish: Annotated[str | None, typer.Option(help=HOW_POLISHED,
                                               show_default="variational; of --given search")] = None,
    overlay: Annotated[bool, typer.Option(help="Also write overlay frames and film.")] = True,
    fps: Annotated[float | None, typer.Option(help="Frames per second of the film.",
                                              show_default="the video's, or 24")] = None,
    official: Annotated[bool, typer.Option("--official", help="Write OUT/<frame>.png, of a dataset "
                                                              "OUT/<clip>/<frame>.png, and nothing else: as the "
                                                              "official DAVIS evaluation reads it.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Find what moves by itself in a video, with the shipped networks. A stopped run goes on where it was.

    Example: diffslic segment my_frames/ --out masks/

    masks/masks/ then holds a png with a palette per frame: 0 where the world stands, 1 where something moves; with
    --method spacetime or --objects a number for each thing that moves, the same over the whole video.

    All clips of a dataset: diffslic segment ../DAVIS2016 --dataset davis2016 --split val --out masks/

    DAVIS 2017, unsupervised: diffslic segment ../DAVIS --dataset davis2017 --objects --official --out masks/

    Semi-supervised: the same with --given ../DAVIS/Annotations/480p for --objects
    """
    from diffslic import pipeline

    refuse_other_datasets(context, dataset)
    if instances is not None and not objects:
        raise ValueError("--instances is the network of --objects")
    if method == "end-to-end":
        refuse_given(context, "is not for a network trained end to end, which has its own", "raft", "ssn")
    elif method in ("em", "spacetime"):
        refuse_given(context, f"is not for {method}, which sees no superpixels", "ssn")
    if official or not overlay:
        refuse_given(context, "is of the film, which --official and --no-overlay leave out", "fps")
    parted = (instances or "graph") if objects else None
    how = {"method": method, "weights": weights, "window": window, "objects": parted, "raft": raft, "ssn": ssn,
           "rows": rows, "polished": polish, "device": device}
    if dataset == "folder":
        result = pipeline.segment(source, **how, given=given)
        result.save(out, overlay, fps, official, progress=not as_json)
        clips = [result.clip]
    else:
        clips = open_clips(dataset, source, split, resolution)
        pipeline.segment_clips(clips, out, overlay, fps, official, given, progress=not as_json, **how)
    show({"clips": len(clips), "frames": sum(map(len, clips)), "out": str(out)}, as_json)


@app.command()
def superpixels(
    images: Annotated[list[Path], typer.Argument(help="Image files.")],
    out: Annotated[Path, typer.Option(help="Where NAME.png, NAME_boundaries.png and NAME_colours.png go.")],
    n_spixels: Annotated[int, typer.Option(help="Superpixels to ask for.")] = 200,
    exact: Annotated[bool, typer.Option("--exact", help="Exactly as many, not about as many.")] = False,
    model: Model = "ssn",
    weights: Annotated[str, typer.Option(help="A shipped name or a file.")] = "bsds500",
    n_iters: Iters = None, compactness: Compactness = None,
    flow: Annotated[Path | None, typer.Option(help="Of a composite: the video's file of precompute flow --both-ways, "
                                                   "or of the composite-SSN study.")] = None,
    frame: Annotated[int | None, typer.Option(help="Which frame of that video the image is, from 0.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Cut images into superpixels: labels as a png of 16 bits, their boundaries, their mean colours.

    Example: diffslic superpixels a.jpg b.jpg --n-spixels 300 --out cut/

    With motion: diffslic superpixels 00007.jpg --weights composite-davis2016 --flow bear.h5 --frame 7 --out cut/
    """
    from diffslic import pipeline
    from diffslic.datasets.composite_flow import read_flow_both_ways

    if (frame is None) != (flow is None):
        raise ValueError("--flow is a video's, --frame says which of its frames the image is: one needs the other")
    if flow is not None and len(images) != 1:
        raise ValueError(f"--flow is the flow of one image, got {len(images)}")
    net = load_superpixels(model, weights, device, n_iters, compactness)
    if bool(net.extra_channels) != (flow is not None):
        raise ValueError(f"{weights} is a composite: it needs --flow and --frame" if flow is None else
                         f"--flow is for a composite, {weights} is none")
    extra = None if flow is None or frame is None else read_flow_both_ways(flow, frame)
    rows = pipeline.save_superpixels(images, out, net, n_spixels, exact, extra, progress=not as_json)
    if as_json:
        print(report.to_json(rows), end="")
        return
    for row in rows:
        print(f"{row['image']}: {row['count']} superpixels, compactness {row['co']:.3f}, "
              f"explained variation {row['ev']:.3f}")


@app.command()
def flow(
    source: Annotated[Path, typer.Argument(help="A folder of frames or a video file.")],
    out: Annotated[Path, typer.Option(help="Where flow/, colors/ and colors.mp4 go; with --both-ways also backward/ "
                                           "and occlusion/.")],
    weights: Annotated[str, typer.Option(help="RAFT: a shipped name or a file, also princeton-vl's or "
                                              "torchvision's.")] = "small",
    iters: Annotated[int, typer.Option(help="Corrections per pair.")] = 12,
    polish: Polish = "variational",
    both_ways: Annotated[bool, typer.Option("--both-ways", help="Also the flow to the frame before, and what the "
                                                                "next frame does not show.")] = False,
    layout: Annotated[str, typer.Option("--format", help="flo (Middlebury) or png (KITTI).")] = "flo",
    largest: Annotated[float | None, typer.Option(help="Motion in pixels of the strongest colours.",
                                                  show_default="the largest 99th percentile of a frame")] = None,
    rows: Annotated[int | None, typer.Option(help="Height to which frames are brought first.",
                                             show_default="their own")] = None,
    bfloat16: Annotated[bool, typer.Option("--bfloat16", help="RAFT up to twice as fast where the processor knows "
                                                              "it; differs by hundredths of a pixel in the mean, by "
                                                              "more at a few.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Optical flow of a video: a file and a picture per pair of frames, all in one scale of colours.

    Example: diffslic flow my_frames/ --out flow/ --both-ways
    """
    from diffslic import datasets, pipeline
    from diffslic.flow import RAFT

    clip = datasets.open("folder", root=source, resolution=rows)[0]
    raft = RAFT.from_pretrained(weights, device)
    figures = pipeline.save_flow(clip, out, raft.bfloat16() if bfloat16 else raft, iters, polish, both_ways, layout,
                                 largest, progress=not as_json)
    show({**figures, "out": str(out)}, as_json)


@app.command()
def softseg(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    out: Annotated[Path, typer.Option(help="Where NAME_features.png, NAME_layer1.png ... and NAME_alphas.npy go.")],
    layers: Annotated[int, typer.Option(help="Layers to part it into.")] = 5,
    following: Annotated[Path | None, typer.Option("--next", help="The frame that follows: what moves by itself is "
                                                                  "then parted from the rest too.")] = None,
    n_spixels: Annotated[int, typer.Option(help="Superpixels to compare, about.")] = 500,
    weights: Annotated[str, typer.Option(help="A shipped name or a file.")] = "scenes",
    ssn: Annotated[str | None, typer.Option(help="Superpixels of an SSN: a shipped name or a file.",
                                            show_default="classical SLIC")] = None,
    raft: Annotated[str, typer.Option(help="RAFT, of --next: a shipped name or a file.")] = "small",
    rows: Annotated[int, typer.Option(help="Height to which larger images are brought.")] = 480,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Part an image into soft layers, as hair, smoke and the edges of things are parted.

    Example: diffslic softseg a.jpg --layers 4 --out layers/

    With motion: diffslic softseg 00007.jpg --next 00008.jpg --out layers/
    """
    from diffslic import pipeline
    from diffslic.flow import RAFT
    from diffslic.softseg import EmbeddingNet
    from diffslic.superpixels import SSN

    if rows < 1:
        raise ValueError(f"--rows must be at least 1, got {rows}")
    network = EmbeddingNet.from_pretrained(weights, device)
    made = pipeline.save_soft_segments(
        image, out, network, layers, n_spixels, following=following, rows=rows,
        raft=None if following is None else RAFT.from_pretrained(raft, device),
        ssn=None if ssn is None else SSN.from_pretrained(ssn, device))
    shown = {f"layer{i}": float(alpha.mean()) for i, alpha in enumerate(made.alphas, 1)}
    show({"superpixels": len(made.vectors), **shown, "out": str(out)}, as_json)


precompute_app = typer.Typer(help="Keep flow or superpixels on disk: pre-generate, then train. A stopped run goes on "
                                  "where it was; under torchrun each process takes its share of the clips.",
                             rich_markup_mode=None)
app.add_typer(precompute_app, name="precompute")


@precompute_app.command("flow")
def precompute_flow(
    context: typer.Context,
    root: Root, out: CacheOut = Path("cache"), dataset: Dataset = "davis2016", split: Split = "all",
    resolution: Resolution = "480p",
    weights: Annotated[str, typer.Option(help="RAFT: a shipped name or a file.")] = "small",
    iters: Annotated[int, typer.Option(help="Corrections per pair.")] = 12,
    polish: Polish = "variational",
    both_ways: Annotated[bool, typer.Option("--both-ways", help="Also the flow to the frame before.")] = False,
    export: Annotated[Path | None, typer.Option(help="Write both ways to EXPORT/<clip>.h5 too, in the layout of the "
                                                     "composite-SSN study.")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Compute the flow of every clip once: one HDF5 file per clip, a field of 480p in about 0.3 MB.

    A file that was made with other weights or options is made again.

    Example: diffslic precompute flow ../DAVIS2016 --out cache --resolution 480p

    On many GPUs: torchrun --nproc-per-node 8 -m -- diffslic precompute flow ../DAVIS2016 --device cuda
    """
    from diffslic import pipeline
    from diffslic.datasets.composite_flow import write_composite_flow
    from diffslic.flow import RAFT
    from diffslic.training import own_device, own_share, speaks

    refuse_other_datasets(context, dataset)
    folder = pipeline.cache_folder(out, dataset, resolution, "flow")
    clips = pipeline.precompute_flow(open_clips(dataset, root, split, resolution),
                                     RAFT.from_pretrained(weights, own_device(device)), folder, iters,
                                     polish, both_ways or export is not None, progress=not as_json)
    for clip in own_share(clips) if export is not None else ():
        write_composite_flow(clip, export / f"{clip.name}.h5")
    if speaks():
        show({"clips": len(clips), "out": str(folder)}, as_json)


@precompute_app.command("superpixels")
def precompute_superpixels(
    context: typer.Context,
    root: Root, out: CacheOut = Path("cache"), dataset: Dataset = "davis2016", split: Split = "all",
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
    from diffslic.training import own_device, speaks

    refuse_other_datasets(context, dataset)
    clips = open_clips(dataset, root, split, resolution)
    folder = pipeline.cache_folder(out, dataset, resolution, "superpixels")
    ssn = SSN.from_pretrained(weights, own_device(device))
    pipeline.precompute_superpixels(clips, ssn, folder, n_spixels, progress=not as_json)
    if speaks():
        show({"clips": len(clips), "out": str(folder)}, as_json)
