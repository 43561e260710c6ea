"""Commands and recipes on a GPU: the figures of the CPU, and a --device on whatever uses a network."""

import ast
import inspect
import re
from importlib import import_module

import nbformat
import numpy as np
import pytest
import torch

from diffslic import cli, datasets, gate, pipeline
from diffslic.datasets import io, layouts
from diffslic.flow import RAFT
from diffslic.pipeline import EndToEnd
from diffslic.recipes import end_to_end, instances, motion, raft, softseg, ssn, unet
from diffslic.segmentation import MotionNet, MotionNetConfig, UNet, UNetConfig
from diffslic.softseg import EmbeddingConfig, EmbeddingNet
from diffslic.superpixels import SSN, SSNConfig

SIZE = (64, 96)
NETWORKS = {"EndToEnd", "RAFT", "SSN", "SpixelFCN", "UNet", "MotionNet", "EmbeddingNet", "load_superpixels", "segment",
            "segment_clips"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Frames, a folder in DAVIS's and in TartanAir's layout, a table of flow, and untrained networks."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpu")
    [clip] = datasets.open("scenes", preset="static", n_clips=1, n_frames=3, size=SIZE, seed=600_010)
    layouts.write_tartanair([clip], folder / "tartan")
    for t in range(3):
        io.write_image(folder / "frames" / f"{t}.png", clip.frame(t))
    for t in range(2):
        io.write_flo(folder / "flow" / "a" / f"{t}.flo", clip.flow(t))
        io.write_image(folder / "images" / "a" / f"{t}.png", clip.frame(t))
        io.write_labels(folder / "masks" / "a" / f"{t}.png", (torch.arange(SIZE[1]) > 50).long().expand(SIZE))
    assert cli.main(["scenes", str(folder / "davis"), "--n-clips", "1", "--n-frames", "3", "--size",
                     *map(str, SIZE)]) == 0
    assert cli.main(["data", "split", str(folder), "--out", str(folder / "OWN_val.csv"), "--images", "images/*",
                     "--flow", "flow/*", "--masks", "masks/*"]) == 0
    RAFT().save(folder / "raft.safetensors")
    SSN(SSNConfig(width=4)).save(folder / "ssn.safetensors")
    UNet(UNetConfig(25, widths=(4, 8), inputs=pipeline.INPUTS)).save(folder / "unet.safetensors")
    composite = SSN(SSNConfig(width=4, extra_channels=4, extra_width=4))
    composite.save(folder / "composite.safetensors")
    EndToEnd(RAFT(), composite, UNet(UNetConfig(25, widths=(4, 8), inputs=pipeline.INPUTS)), 2, 24).save(
        folder / "together.safetensors")
    MotionNet(MotionNetConfig(window=1, size=(24, 32), widths=(8, 8), n_layers=3)).save(folder / "em.safetensors")
    EmbeddingNet(EmbeddingConfig(widths=(4, 8, 8))).save(folder / "softseg.safetensors")
    return folder


# What a command does, with PLACE and OUT for its folders; untrained networks do.
COMMANDS = {
    "segment": "segment PLACE/frames --out OUT --weights PLACE/unet --raft PLACE/raft --ssn PLACE/ssn --no-overlay",
    "objects": "segment PLACE/frames --out OUT --weights PLACE/unet --raft PLACE/raft --ssn PLACE/ssn --objects",
    "layers": "segment PLACE/frames --out OUT --method em --weights PLACE/em --raft PLACE/raft --no-overlay",
    "end to end": "segment PLACE/frames --out OUT --method end-to-end --weights PLACE/together --no-overlay",
    "superpixels": "superpixels PLACE/frames/0.png --out OUT --weights PLACE/ssn --n-spixels 24",
    "flow": "flow PLACE/frames --out OUT --weights PLACE/raft --iters 2 --both-ways",
    "depth": "depth PLACE/tartan --out OUT --offsets=-1,1 --weights PLACE/raft --iters 2 --superpixels --ssn PLACE/ssn",
    "softseg": "softseg PLACE/frames/0.png --out OUT --layers 2 --n-spixels 40 --weights PLACE/softseg --ssn PLACE/ssn",
    "precompute flow": "precompute flow PLACE/davis --out OUT --resolution 64p --weights PLACE/raft --iters 2",
    "precompute superpixels": "precompute superpixels PLACE/davis --out OUT --resolution 64p --weights PLACE/ssn "
                              "--n-spixels 24",
    "evaluate superpixels": "evaluate superpixels PLACE/davis --dataset davis2016 --resolution 64p --split all "
                            "--counts 24 --out OUT --weights PLACE/ssn",
    "evaluate motion": "evaluate motion PLACE --file PLACE/OWN --split val --out OUT --weights PLACE/em",
    "scenes": "scenes OUT --n-clips 1 --n-frames 2 --size 48 64",
}


def numbers_of(figures):
    """All numbers of a command's figures, in order; an error of depth where there is none is NaN."""
    if isinstance(figures, dict | list):
        return [number for each in (figures.values() if isinstance(figures, dict) else figures)
                for number in numbers_of(each)]
    return [] if isinstance(figures, str) else [np.nan if figures is None else float(figures)]


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_finds_on_the_device_what_it_finds_on_the_cpu(run, device, place, tmp_path, name):
    found = []
    for number, where in enumerate(("cpu", device)):
        out = tmp_path / str(number)
        words = [f"{word}.safetensors" if re.fullmatch("PLACE/(raft|ssn|unet|em|softseg|together)", word) else word
                 for word in COMMANDS[name].split()]
        words = [word.replace("PLACE", str(place)).replace("OUT", str(out)) for word in words]
        found.append(numbers_of(run(*words, "--device", where)))
        assert any(path.is_file() for path in out.rglob("*"))
    assert len(found[0]) > 0
    np.testing.assert_allclose(found[1], found[0], rtol=0.05, atol=0.05)


@pytest.fixture(scope="module")
def clips(place, tmp_path_factory):
    """Three scenes with flow both ways and superpixels."""
    folder = tmp_path_factory.mktemp("cache")
    drawn = datasets.open("scenes", preset="lab", n_clips=3, n_frames=4, size=SIZE)
    drawn = pipeline.precompute_flow(drawn, RAFT.from_pretrained(place / "raft.safetensors"), folder / "flow",
                                     n_iters=1, both_ways=True, progress=False)
    net = SSN(SSNConfig("pix")).eval()
    return pipeline.precompute_superpixels(drawn, net, folder / "spixels", 24, progress=False)


def unet_of(place, clips, out, **how):
    return unet.train(out, clips[:2], clips[2:], widths=(4, 8), batch_size=2, **how)


def end_to_end_of(head):
    def train(place, clips, out, **how):
        shape = {"head": head, "raft": place / "raft.safetensors", "ssn": place / "composite.safetensors",
                 "widths": (4, 8) if head == "unet" else None, "n_iters": 2, "n_spixels": 24, "recompute": True}
        return end_to_end.train(out, clips[:2], clips[2:], shape=shape, batch_size=2, joins={"head": 0.0,
                                "superpixels": 0.0, "flow": 0.5}, **how)
    return train


def instances_of(place, clips, out, **how):
    known = unet.train(out / "start", clips[:2], clips[2:], inputs=["flow"], widths=(4, 8), **{**how, "steps": 1})
    return instances.train(out, clips[:2], clips[2:], start=known.weights, n_bodies=3, batch_size=2, **how)


def motion_of(window):
    config = MotionNetConfig(window=window, size=(32, 40), widths=(8, 8, 16), n_layers=3)
    return lambda place, clips, out, **how: motion.train(out, clips[:2], clips[2:], config=config, batch_size=2, **how)


RECIPES = {
    "ssn": lambda place, clips, out, **how: ssn.train(out, clips[:2], clips[2:], width=4, batch_size=1, **how),
    "composite": lambda place, clips, out, **how: ssn.train(out, clips[:2], clips[2:], model="composite",
                                                            start=place / "ssn.safetensors", batch_size=1, **how),
    "raft": lambda place, clips, out, **how: raft.train(out, start=place / "raft.safetensors", clips=clips[:2],
                                                        validation=clips[2:], batch_size=1, n_iters=2, **how),
    "unet": unet_of, "end to end": end_to_end_of("unet"), "transformer": end_to_end_of("transformer"),
    "instances": instances_of, "em": motion_of(1), "spacetime": motion_of(3),
    "softseg": lambda place, clips, out, **how: softseg.train(out, clips[:2], clips[2:], widths=(4, 8, 8), **how),
}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_every_recipe(device, place, clips, tmp_path, monkeypatch, name, precision):
    monkeypatch.setattr(ssn, "COUNTS", (20,))
    how = {"steps": 2, "precision": precision, "workers": 0, "progress": False}
    ours, theirs = (RECIPES[name](place, clips, tmp_path / str(number), device=where, **how)
                    for number, where in enumerate(("cpu", device)))
    figures = ours.history.drop(columns="seconds").columns
    assert list(theirs.history[figures]) == list(figures) and np.isfinite(theirs.history["loss"]).all()
    np.testing.assert_allclose(theirs.history["loss"], ours.history["loss"], rtol=0.05)


@pytest.mark.gpu
def test_scenes_of_the_device_are_read_by_workers(device, tmp_path, monkeypatch):
    monkeypatch.setattr(ssn, "COUNTS", (20,))
    drawn = datasets.open("scenes", n_clips=2, n_frames=2, size=SIZE, device=device)
    drawn[0].frame(0)
    fit = ssn.train(tmp_path, drawn[:1], drawn[1:], width=4, batch_size=1, steps=2, workers=1, device=device,
                    progress=False)
    assert np.isfinite(fit.history["loss"]).all()


# ---------------------------------------------------------------- what takes a device, without one


def called(function):
    """Names of what a function of a module calls, and of the module's own functions that it calls, and so on."""
    module = import_module(function.__module__)
    names, waiting = set(), [function]
    while waiting:
        tree = ast.parse(inspect.getsource(waiting.pop()).lstrip())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                path = ast.unparse(node.func).split(".")
                own = getattr(module, path[0], None)
                if len(path) == 1 and path[0] not in names and inspect.isfunction(own) and (
                        own.__module__ == module.__name__):
                    waiting.append(own)
                names |= set(path)
    return names


def commands(app, *path):
    for command in app.registered_commands:
        yield [*path, command.name or command.callback.__name__], command.callback
    for group in app.registered_groups:
        yield from commands(group.typer_instance, *path, group.name)


@pytest.mark.parametrize("words, function", list(commands(cli.app)), ids=lambda value: " ".join(value) if isinstance(
    value, list) else "")
def test_whatever_uses_a_network_takes_a_device(words, function):
    if called(function) & NETWORKS or words[0] in ("train", "scenes", "notebooks", "regression"):
        assert "device" in inspect.signature(function).parameters, words


def test_commands_that_use_networks_are_recognised():
    using = {" ".join(words) for words, function in commands(cli.app) if called(function) & NETWORKS}
    assert {"segment", "superpixels", "flow", "softseg", "depth", "precompute flow", "precompute superpixels",
            "evaluate superpixels", "evaluate motion"} <= using
    assert not using & {"evaluate davis2016", "data check", "book"}


@pytest.mark.parametrize("path", sorted(gate.NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebooks_device_reaches_its_networks(path):
    """Every network is loaded to it, scenes are drawn on it, and the figures tell it."""
    gate.check_parameters(path, ["device", "seed"])
    code = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    found = {"from_pretrained": 0, "open": 0, "record": 0}
    for node in ast.walk(ast.parse(code)):
        name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        opens_scenes = name == "open" and "scenes" in ast.unparse(node)
        if name in ("from_pretrained", "record") or opens_scenes:
            found[name] += 1
            told = [*node.args, *(keyword.value for keyword in node.keywords)]
            names = {word.id for each in told for word in ast.walk(each) if isinstance(word, ast.Name)}
            assert "device" in names, ast.unparse(node)
    assert found["from_pretrained"] > 0 and found["open"] > 0 and found["record"] == 1
