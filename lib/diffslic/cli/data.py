"""Datasets: what is broken in them, and scenes in their layouts."""

from pathlib import Path
from typing import Annotated

import typer

from diffslic import report
from diffslic.cli.common import Device, Json, app, show

data_app = typer.Typer(help="Datasets on this machine.", rich_markup_mode=None)
app.add_typer(data_app, name="data")


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


@data_app.command("split")
def data_split(
    root: Annotated[Path, typer.Argument(help="The base folder: paths in the table begin here.")],
    out: Annotated[Path, typer.Option(help="The table, such as DataSplit/MINE_val.csv.")],
    images: Annotated[str, typer.Option(help="Folders of frames below ROOT, * for the sequence.")],
    flow: Annotated[str, typer.Option(help="Folders of their flow, a file per frame of the same stem.")],
    masks: Annotated[str | None, typer.Option(help="Folders of their masks, where there are some.")] = None,
    as_json: Json = False,
) -> None:
    """Write a DataSplit: a csv that names the frame, the flow and the mask of every row.

    Example: diffslic data split DATA --images 'DAVIS/JPEGImages/480p/*' --flow 'DAVIS/flow/*/flow' --out MINE_val.csv
    """
    from diffslic.datasets.split import write_split

    show({"rows": write_split(out, root, images, flow, masks), "out": str(out)}, as_json)


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    layout: Annotated[str, typer.Option(help="davis or tartanair.")] = "davis",
    preset: Annotated[str, typer.Option(help="lab, street, crowd, static or plaza; or several: lab+crowd.")] = "lab",
    n_clips: Annotated[int, typer.Option(help="How many clips.")] = 4,
    n_frames: Annotated[int, typer.Option(help="Frames per clip.")] = 8,
    size: Annotated[tuple[int, int], typer.Option(help="Rows and columns, as in --size 160 288.")] = (240, 428),
    seed: Annotated[int, typer.Option(help="Clip i has this seed plus i.")] = 0,
    lighting: Annotated[float, typer.Option(help="Amplitude of a slow change of the light, as a share.")] = 0,
    blur: Annotated[float, typer.Option(help="Standard deviation of the lens blur, in pixels.")] = 0,
    noise: Annotated[float, typer.Option(help="Standard deviation of the sensor noise, of 1.")] = 0,
    textures: Annotated[Path | None, typer.Option(help="A folder of photographs for the surfaces.",
                                                  show_default="those of scikit-image")] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Draw procedural scenes and write them in the layout of another dataset.

    Example: diffslic scenes my_scenes --layout davis --preset crowd --n-clips 8

    As DAVIS, of 240 rows: diffslic segment my_scenes --dataset davis2017 --resolution 240p --objects --out masks/
    """
    from diffslic import datasets
    from diffslic.datasets import layouts
    from diffslic.training import check_device

    check_device(device)
    clips = datasets.open("scenes", preset=preset, n_clips=n_clips, n_frames=n_frames, size=size, seed=seed,
                          lighting=lighting, blur=blur, noise=noise, textures=textures, device=device)
    layouts.write(clips, out, layout)
    show({"clips": len(clips), "frames": n_frames, "out": str(out)}, as_json)
