"""Depth of videos whose camera's motion is known, and a simulator to make some."""

from typing import Annotated

import typer

from diffslic.cli.common import app


@app.command("airsim-server")
def airsim_server(
    scene: Annotated[str, typer.Option(help="lab, street, crowd or static.")] = "street",
    seed: Annotated[int, typer.Option(help="Which of them.")] = 0,
    size: Annotated[str, typer.Option(help="Of the images: rows x columns.")] = "144x256",
    fov: Annotated[float, typer.Option(help="Field of view of the longer side, in degrees.")] = 90.0,
    host: Annotated[str, typer.Option(help="Where it listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.")] = 41451,
) -> None:
    """Answer AirSim's client by drawing procedural scenes, until interrupted: no Unreal Engine is needed.

    Example: diffslic airsim-server --scene street
    """
    from diffslic.airsim import Server
    from diffslic.airsim.server import Simulator

    rows, _, columns = size.partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise ValueError(f"--size is rows x columns, such as 144x256, got {size!r}")
    with Server(Simulator(scene, seed, (int(rows), int(columns)), fov), host, port) as server:
        print(f"a simulator of {scene!r} listens at {host}:{server.port}", flush=True)
        server.serve_forever()
