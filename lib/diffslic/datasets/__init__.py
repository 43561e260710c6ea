"""The room of data: every dataset becomes a list of ``Clip``.

A clip gives frames, labels, flow, depth and poses one at a time, as far as its dataset has them. ``open`` finds the
dataset by name, ``check`` reads a folder and names what is missing or broken, ``io`` holds the file formats and
``cache`` keeps computed flow and superpixels beside a clip.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from diffslic.datasets.cache import cached_clip as cached_clip
from diffslic.datasets.cache import is_current as is_current
from diffslic.datasets.cache import write_clip_cache as write_clip_cache
from diffslic.datasets.clip import Clip as Clip
from diffslic.datasets.clip import first_masks as first_masks
from diffslic.datasets.clip import labels_or_none as labels_or_none
from diffslic.datasets.folder import SUFFIXES as SUFFIXES
from diffslic.datasets.folder import given_masks as given_masks

# Name -> (module, function). A module is imported when it is asked for: the scenes bring their textures along.
DATASETS = {"scenes": ("scenes", "clips"), "davis2016": ("davis", "davis2016"), "davis2017": ("davis", "davis2017"),
            "tartanair": ("tartanair", "clips"), "airsim": ("airsim", "clips"), "bsds500": ("bsds500", "photographs"),
            "ade20k": ("ade20k", "photographs"),
            "flyingchairs": ("flow_sets", "flyingchairs"), "sintel": ("flow_sets", "sintel"),
            "kitti": ("flow_sets", "kitti"), "folder": ("folder", "clips"),
            "split": ("split", "clips")}
# The same for what names the problems of a dataset's files; scenes have no files.
CHECKS = {"davis2016": ("davis", "problems2016"), "davis2017": ("davis", "problems2017"),
          "tartanair": ("tartanair", "problems"), "airsim": ("airsim", "problems"), "bsds500": ("bsds500", "problems"),
          "ade20k": ("ade20k", "problems"),
          "flyingchairs": ("flow_sets", "flyingchairs_problems"), "sintel": ("flow_sets", "sintel_problems"),
          "kitti": ("flow_sets", "kitti_problems"), "folder": ("folder", "problems"),
          "split": ("split", "problems")}

__all__ = ["CHECKS", "DATASETS", "SUFFIXES", "Clip", "cached_clip", "check", "first_masks", "given_masks",
           "is_current", "labels_or_none", "open", "write_clip_cache"]


def open(name: str, **options: Any) -> list[Clip]:
    """Open a dataset: ``datasets.open("davis2016", root="data/DAVIS2016", split="val")``.

    Args:
        name: "scenes" (procedural, needs no files), "davis2016", "davis2017", "tartanair", "airsim", "bsds500",
            "ade20k", "flyingchairs", "sintel", "kitti", "folder" (own frames or a video file),
            "split" (tables of files: ``file="DataSplit/DAVIS_D16Split", split="val"``).
        options: those of the dataset's own function, e.g. :func:`diffslic.datasets.davis.davis2016`.

    Raises:
        ValueError: an unknown name or option, or a dataset of files without ``root``.
        FileNotFoundError: something is not where the dataset's layout has it.
    """
    load = _function(DATASETS, name)
    parameters = [key for key, parameter in inspect.signature(load).parameters.items()
                  if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    for option in options:
        if option not in parameters:
            raise ValueError(f"dataset {name!r} has no option {option!r}, it has {', '.join(parameters)}")
    if "root" in parameters and "root" not in options:
        raise ValueError(f"dataset {name!r} needs root=..., its place on disk (see data/README.md)")
    return load(**options)


def check(name: str, root: str | Path, deep: bool = True) -> list[str]:
    """Read a dataset and name what is missing or broken: folders, masks, unreadable files, sizes that disagree.

    Args:
        name: a dataset of files, see :func:`open`.
        deep: decode every file, which takes a few seconds per thousand; otherwise only the first of each kind
            and clip, and the names of all.

    Returns:
        One line per problem, with the path and what was expected; empty when all is well.
    """
    if name == "scenes":
        raise ValueError("the scenes are made by the program, there are no files to check")
    return list(dict.fromkeys(_function(CHECKS, name)(root, deep)))


def _function(table: dict[str, tuple[str, str]], name: str) -> Callable[..., Any]:
    if name not in table:
        raise ValueError(f"unknown dataset {name!r}, known are {', '.join(table)}")
    module, function = table[name]
    return getattr(import_module(f"diffslic.datasets.{module}"), function)
