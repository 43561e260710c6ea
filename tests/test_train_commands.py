"""What all ``diffslic train`` commands share: another run is refused early, validations, what the card tells."""

import json
from dataclasses import asdict

import pandas as pd
import pytest
import torch

from diffslic import datasets, training
from diffslic.cli.train import how_to_train
from diffslic.recipes import cards, end_to_end, instances, motion, raft, softseg, ssn, unet

RECIPES = {"ssn": ssn, "raft": raft, "unet": unet, "instances": instances, "softseg": softseg, "em": motion,
           "spacetime": motion}


def scenes(seed=0):
    return datasets.open("scenes", preset="lab", n_clips=1, n_frames=3, size=(48, 64), seed=seed)


@pytest.fixture
def folder(tmp_path):
    """That of a run of 300 steps, with a seed of its own."""
    torch.save({"identity": {"schedule": asdict(training.Schedule(300, 1e-3)), "precision": "32-true",
                             "number of processes": 1, "seed": 77, "batch_size": 3, "clips": []}},
               tmp_path / "last.ckpt")
    return tmp_path


@pytest.fixture
def prepared(monkeypatch):
    """Which recipes have prepared their data: nothing is."""
    called = []
    for name, recipe in RECIPES.items():
        where = unet if recipe is instances else recipe
        monkeypatch.setattr(where, "prepare", lambda *_, name=name, **__: called.append(name) or (scenes(), scenes(5)))
    monkeypatch.setattr(unet, "open_clips", lambda *_, **__: called.append("open_clips") or (scenes(), scenes(5)))
    return called


@pytest.mark.parametrize("command", [[name] for name in RECIPES] + [["unet", "--end-to-end"]])
def test_another_run_is_refused_before_its_data_are_prepared(command, folder, prepared, fails):
    told = fails("train", *command, "--out", folder, "--steps", "500", "--rate", "1e-3", "--batch-size", "3")
    assert told.startswith(f"diffslic: {folder / 'last.ckpt'} is of another run: steps 300 there, 500 here; ")
    assert "; seed 77 there, " in told and told.endswith("; remove it or choose another folder")
    assert not prepared


@pytest.mark.parametrize("command, told", [
    (["unet", "--inputs", "flow"], "inputs flow,superpixels,image there, flow here"),
    (["unet", "--start", "motion"], "start none there, motion here"),
    (["ssn", "--loss", "iou"], "reconstruction probability there, iou here"),
    (["ssn", "--width", "8"], "width 32 there, 8 here"),
    (["instances", "--bodies", "2"], "n_bodies 6 there, 2 here"),
    (["em", "--layers", "3"], "n_layers 4 there, 3 here"),
    (["spacetime", "--crop", "64"], "crop none there, 64 here"),
    (["softseg", "--widths", "8,16,32"], "widths 32,64,128 there, 8,16,32 here"),
    (["unet", "--end-to-end", "--freeze", "flow"], "frozen none there, flow here"),
    (["unet", "--end-to-end", "--polish", "none"], "polished variational there, none here"),
])
def test_what_is_known_of_a_network_is_compared_before_its_data(command, told, prepared, tmp_path, monkeypatch, fails):
    def train(out, *_, **how):  # nothing but its first checkpoint
        raise ValueError(f"began {out}")

    first, recipe = command[:-2], end_to_end if "--end-to-end" in command else RECIPES[command[0]]
    monkeypatch.setattr(recipe, "train", train)
    kept = {}
    monkeypatch.setattr(training, "check_resume", lambda out, schedule, settings, **how: kept.update(
        {"schedule": asdict(schedule), "precision": how["precision"], "number of processes": 1, **settings}))
    assert "began" in fails("train", *first, "--out", tmp_path)
    torch.save({"identity": json.loads(json.dumps({**kept, "clips": []}))}, tmp_path / "last.ckpt")
    monkeypatch.undo()
    monkeypatch.setattr(recipe, "train", train)
    for each in (unet, motion, ssn, softseg):
        monkeypatch.setattr(each, "prepare", lambda *_, **__: (scenes(), scenes(5)))
    assert "began" in fails("train", *first, "--out", tmp_path)
    assert told in fails("train", *command, "--out", tmp_path)


@pytest.mark.parametrize("command", [[name] for name in RECIPES] + [["unet", "--end-to-end"]])
def test_every_training_is_told_how_often_to_validate(command, prepared, tmp_path, monkeypatch, fails):
    told = []

    def train(*_, **how):
        told.append(how["validate_every"])
        raise ValueError("that is all")

    monkeypatch.setattr(end_to_end if len(command) > 1 else RECIPES[command[0]], "train", train)
    for options in ([], ["--validate-every", "7"]):
        assert fails("train", *command, "--out", tmp_path, *options).endswith("that is all")
    assert told == [500, 7]
    refused = fails("train", *command, "--out", tmp_path, "--validate-every", "0")
    assert "Invalid value for '--validate-every'" in refused


@pytest.mark.parametrize("variables, command", [
    ({}, "diffslic train unet"),
    ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
     "torchrun --standalone --nproc-per-node 2 -m -- diffslic train unet"),
    ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"},
     "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 --nproc-per-node 4 -m -- diffslic train unet"),
])
def test_the_command_of_the_card_starts_as_many_processes(tmp_path, monkeypatch, variables, command):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["/somewhere/diffslic", "train", "unet"])
    how = how_to_train(tmp_path, {}, 1, 1, 1e-3, 1, 0, "cpu", 1, "32-true", 0, None, True)
    assert how["command"] == command


@pytest.mark.parametrize("recipe", [ssn, softseg])
def test_only_the_process_that_writes_makes_the_figures_beside(recipe, tmp_path, monkeypatch):
    def fit(network, *_, **__):
        return training.FitResult(pd.DataFrame(), 0, 0.0, tmp_path / "none", first=False)

    def evaluated(*_, **__):
        raise AssertionError("the first process does this")

    monkeypatch.setattr(training, "fit", fit)
    monkeypatch.setattr(ssn, "evaluate", evaluated)
    monkeypatch.setattr(softseg.Judge, "__call__", evaluated)
    assert not recipe.train(tmp_path, scenes(), scenes(5), steps=1, device="cpu").first
    assert not (tmp_path / "card.md").exists()


def test_the_figures_beside_stand_in_the_card(tmp_path):
    history = pd.DataFrame([{"step": 1, "seconds": 1.0, "rate": 0.1, "j": 0.5}])
    words = dict.fromkeys(("name", "what", "data", "validation", "command", "gpu_command", "limits"), "x")
    cards.write_card(tmp_path, training.FitResult(history, 1, 1.0, tmp_path / "x", True), **words,
                     more=lambda: {"j without": 0.25})
    assert "| j | 0.5 |\n| j without | 0.25 |" in (tmp_path / "card.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command, told", [
    (["ssn", "--root", "x"], "--root is of a dataset on disk: scenes are drawn"),
    (["ssn", "--resolution", "240p"], "--resolution is of DAVIS"),
    (["ssn", "--dataset", "davis2016", "--root", "x", "--cache", "y"], "--cache is of a composite on DAVIS"),
    (["ssn", "--model", "composite", "--start", "bsds500", "--dataset", "davis2016", "--root", "x", "--flow-root", "z",
      "--cache", "y"], "--cache is for flow that is computed: --flow-root has it"),
    (["unet", "--inputs", "image", "--cache", "y"],
     "--cache is for flow and superpixels: neither is among the inputs"),
    (["raft", "--dataset", "sintel", "--root", "x", "--textures", "y"],
     "--textures is of scenes, which --dataset does not name"),
    (["raft", "--start", "small", "--variant", "large"], "small is a small RAFT, asked was for a large one"),
    (["unet", "--resolution", "240p"], "--resolution is of a dataset on disk: scenes are drawn"),
    (["unet", "--end-to-end", "--dataset", "davis2016", "--root", "x", "--n-frames", "6"],
     "--n-frames is of scenes, which --dataset does not name"),
    (["softseg", "--ssn", "bsds500"], "--ssn is of --compared ssn"),
    (["em", "--root", "x", "--file", "y"], "--file is of --dataset split"),
    (["spacetime", "--dataset", "davis2016", "--root", "x", "--n-clips", "3"],
     "--n-clips is of scenes, which --dataset does not name"),
    (["em", "--dataset", "split", "--root", "x", "--file", "y", "--cache", "z"],
     "--cache is for what is computed: a split has flow of its own"),
])
def test_an_option_that_would_do_nothing_is_refused(command, told, prepared, tmp_path, fails):
    assert fails("train", *command, "--out", tmp_path / "run") == f"diffslic: {told}"
    assert not prepared and not (tmp_path / "run").exists()
