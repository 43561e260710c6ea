"""Depth of videos whose camera's motion is known, and a simulator to make some."""

from pathlib import Path
from typing import Annotated

import typer

from diffslic import report
from diffslic.cli.common import Device, Json, Polish, app


@app.command()
def depth(
    source: Annotated[Path, typer.Argument(help="A trajectory of TartanAir or a folder above several, or a recording "
                                                "of AirSim.")],
    out: Annotated[Path, typer.Option(help="Where OUT/<clip>/<frame>.npy, _sigma.npy and _depth.png go.")],
    dataset: Annotated[str, typer.Option(help="tartanair or airsim: what has poses on disk.")] = "tartanair",
    offsets: Annotated[str, typer.Option(help="Frames to which flow is computed, counted from each; "
                                              "fused. Every frame needs one of them.")] = "-2,-1,1,2",
    fov: Annotated[float | None, typer.Option(help="Of AirSim's camera, along the longer side, in degrees.",
                                              show_default="90")] = None,
    superpixels: Annotated[bool, typer.Option("--superpixels", help="Fit a plane to each superpixel.")] = False,
    weights: Annotated[str, typer.Option(help="RAFT: a shipped name or a file.")] = "small",
    ssn: Annotated[str, typer.Option(help="SSN: a shipped name or a file.")] = "bsds500",
    iters: Annotated[int, typer.Option(help="Corrections per pair.")] = 12,
    polish: Polish = "variational",
    min_parallax: Annotated[float, typer.Option(help="In pixels; with less there is no depth.")] = 2.0,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Depth of every frame of a video whose camera's poses are known, and its errors where the truth is there too.

    Example: diffslic depth ../TartanAir/office/Easy/P000 --out depth/
    """
    from diffslic import datasets, pipeline
    from diffslic.flow import RAFT
    from diffslic.superpixels import SSN

    report.check_choice("dataset", dataset, ["tartanair", "airsim"])
    try:
        steps = [int(word) for word in offsets.split(",")]
    except ValueError:
        raise ValueError(f"--offsets are whole numbers such as -1,1, got {offsets!r}") from None
    if fov is not None and dataset != "airsim":
        raise ValueError("--fov is for recordings of AirSim, which do not say it")
    clips = datasets.open(dataset, root=source, **({} if fov is None else {"fov": fov}))
    net = SSN.from_pretrained(ssn, device) if superpixels else None
    rows = pipeline.save_depth(clips, out, RAFT.from_pretrained(weights, device), net, offsets=steps, n_iters=iters,
                               polished=polish, min_parallax=min_parallax, progress=not as_json)
    if as_json:
        print(report.to_json(rows), end="")
        return
    for row in rows:
        errors = f", AbsRel {row['abs_rel']:.3f}, d1 {row['d1']:.3f}" if "abs_rel" in row else ""
        print(f"{row['clip']} {row['frame']}: depth on {row['valid']:.0%} of the pixels{errors}")


@app.command("airsim-server")
def airsim_server(
    scene: Annotated[str, typer.Option(help="lab, street, crowd, static or plaza.")] = "street",
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    size: Annotated[str, typer.Option(help="Of the images: rows x columns.")] = "144x256",
    fov: Annotated[float, typer.Option(help="Field of view of the longer side, in degrees.")] = 90.0,
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 41451,
) -> None:
    """Answer AirSim's client by drawing procedural scenes, until interrupted: no Unreal Engine is needed.

    Example: diffslic airsim-server --scene street

    Then fly, with airsim from diffslic and torch: airsim.capture(airsim.connect(),
    airsim.orbit(torch.tensor([10.0, 0, -1]), 6, 20), "flight/"); and diffslic depth flight/ --out depth/
    """
    from diffslic.airsim import Server
    from diffslic.airsim.server import Simulator

    rows, _, columns = size.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"--size is rows x columns, such as 144x256, got {size!r}")
    with Server(Simulator(scene, seed, (int(rows), int(columns)), fov), host, port) as server:
        print(f"a simulator of {scene!r} listens at {host}:{server.port}", flush=True)
        server.serve_forever()
