"""The picture of the README can be made again by its command."""

import runpy
from pathlib import Path

from diffslic import viz
from diffslic.datasets import io

ROOT = Path(__file__).resolve().parents[1]


def test_the_picture_is_four_pictures_side_by_side(tmp_path):
    runpy.run_path(ROOT / "docs" / "overview.py")["main"](tmp_path / "overview.png")
    made, kept = (viz.picture(io.read_image(path)).astype(int)
                  for path in (tmp_path / "overview.png", ROOT / "notebooks" / "overview.png"))
    assert made.shape == kept.shape and abs(made - kept).mean() < 2
