"""Recipes in several processes: equal samples, equal losses, and clips that only one of them prepares."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from diffslic import datasets, pipeline
from diffslic.flow import RAFT
from diffslic.pipeline import precompute
from diffslic.recipes import end_to_end, motion, raft, softseg, ssn, unet
from diffslic.segmentation import MotionNet, MotionNetConfig
from diffslic.superpixels import SSN, SSNConfig

SIZE = (48, 64)


def scenes(n_clips=3, n_frames=3, **how):
    return datasets.open("scenes", preset="lab", n_clips=n_clips, n_frames=n_frames, size=SIZE, **how)


def windows(batch_size):
    model = MotionNet(MotionNetConfig(window=3, size=SIZE, widths=(4, 8)))
    return motion.Windows(scenes(2, 6), model, motion.Augmentation(), batch_size, seed=2)


SAMPLES = {
    "unet": lambda batch_size: unet.Samples(scenes(), ("flow", "image"), batch_size, seed=2),
    "end to end": lambda batch_size: end_to_end.Triples(scenes(), {"flow": 4, "image": 3}, batch_size, seed=2),
    "raft": lambda batch_size: raft.Pairs({raft.collage_pairs(): 0.5, raft.scene_pairs(1, 2, 3): 0.5}, batch_size, 3),
    "ssn": lambda batch_size: ssn.Crops(scenes(), batch_size, seed=2, flow=True).cut,
    "motion": windows,
    "softseg, slic": lambda batch_size: softseg.Samples(scenes(), "slic", batch_size, seed=2),
    "softseg, pixels": lambda batch_size: softseg.Samples(scenes(), "pixels", batch_size, seed=2),
}


def test_who_waits_for_long_for_another_process_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")  # but there is no second process

    def stop(seconds):
        if waited:
            raise KeyboardInterrupt
        waited.append(seconds)

    waited = []
    monkeypatch.setattr(precompute.time, "sleep", stop)
    monkeypatch.setattr(precompute, "PATIENCE", -1.0)
    with pytest.warns(UserWarning, match="waiting for .*lab-00001.h5"), pytest.raises(KeyboardInterrupt):
        pipeline.precompute_flow(scenes(2), RAFT().eval(), tmp_path, n_iters=1, progress=False)


@pytest.mark.parametrize("recipe", SAMPLES)
def test_the_batches_of_two_processes_are_the_halves_of_one_of_twice_the_size(recipe):
    whole, half = SAMPLES[recipe](4)(1), SAMPLES[recipe](2)
    parts = half(2), half(3)  # of the first process and of the second, in the second step
    for key, value in whole.items():
        assert torch.equal(value, torch.cat([part[key] for part in parts])), key


def train_unet(folder, cache, batch_size):
    """Four steps on small scenes that are prepared first; a validation after each."""
    torch.manual_seed(0)
    clips = pipeline.precompute_flow(scenes(4), RAFT().eval(), cache / "flow", n_iters=1, progress=False)
    clips = pipeline.precompute_superpixels(clips, SSN(SSNConfig("pix")).eval(), cache / "superpixels", 24,
                                            progress=False)
    assert [clip.name for clip in clips] == [clip.name for clip in scenes(4)]  # all of them, in order
    return unet.train(folder, clips[:3], clips[3:], steps=4, batch_size=batch_size, widths=(8, 16, 16),
                      validate_every=1, workers=0, device="cpu", progress=False)


TWO = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
from diffslic import datasets
from test_processes import train_unet

write = datasets.write_clip_cache
def noted(path, *arguments):
    write(path, *arguments)
    with open("computed" + os.environ["RANK"], "a") as file:
        print(path.parent.name, path.name, file=file)
datasets.write_clip_cache = noted
train_unet(Path("two"), Path("cache"), batch_size=2)
"""


def test_two_processes_train_the_unet_as_one_with_twice_the_batch_does(tmp_path, torchrun):
    (tmp_path / "run.py").write_text(TWO.format(path=[str(Path(__file__).parent)]))
    done = torchrun("run.py")
    assert done.returncode == 0, done.stderr
    computed = [(tmp_path / f"computed{rank}").read_text().split("\n")[:-1] for rank in (0, 1)]
    for rank in (0, 1):  # every second clip, nothing twice
        assert computed[rank] == [f"{kind} lab-{number:05d}.h5" for kind in ("flow", "superpixels")
                                  for number in range(rank, 4, 2)]
    compare(tmp_path / "two", train_unet(tmp_path / "one", tmp_path / "cache", batch_size=4))


def compare(two, one):
    """The folder of two processes against the result of one: losses, scores, weights."""
    assert sorted(path.name for path in two.iterdir()) == ["best.safetensors", "card.md", "last.ckpt", "metrics.csv"]
    history = pd.read_csv(two / "metrics.csv")
    for figure, near in (("loss", 1e-5), ("j", 1e-3)):
        torch.testing.assert_close(torch.tensor(history[figure]), torch.tensor(one.history[figure]), rtol=0, atol=near)
    models = [torch.load(folder / "last.ckpt", weights_only=True)["model"] for folder in (one.weights.parent, two)]
    # Adam makes steps of up to the rate, 1e-3, where a gradient is all rounding: single weights may differ by that.
    apart = torch.cat([(value - models[1][key]).abs().float().flatten() for key, value in models[0].items()])
    assert apart.mean() < 1e-6


def train_end_to_end(folder, batch_size):
    """Four steps, in which the parts begin to learn one after the other; a validation after each."""
    shape = {"widths": (8, 16, 16), "n_iters": 1, "n_spixels": 20}
    # As the recipe draws them: without noise the polish of the flow would amplify rounding, to 5e-5 of a loss.
    clips = scenes(3, 4, lighting=0.1, noise=0.01)
    return end_to_end.train(folder, clips[:2], clips[2:], shape=shape, steps=4, batch_size=batch_size, workers=0,
                            validate_every=1, joins={"head": 0.0, "superpixels": 0.25, "flow": 0.5}, device="cpu",
                            progress=False)


TOGETHER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_processes import train_end_to_end

train_end_to_end(Path("two"), batch_size=2)
"""


def test_two_processes_train_end_to_end_as_one_does_while_parts_join(tmp_path, torchrun):
    (tmp_path / "run.py").write_text(TOGETHER.format(path=[str(Path(__file__).parent)]))
    done = torchrun("run.py")
    assert done.returncode == 0, done.stderr
    assert "find_unused_parameters" not in done.stderr
    compare(tmp_path / "two", train_end_to_end(tmp_path / "one", batch_size=4))
