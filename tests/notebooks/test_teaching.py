"""The teaching side of the notebooks: exercises with folded solutions, what can go wrong, captions, sizes."""

import re
from itertools import takewhile

import nbformat
import pytest

from diffslic import book, gate

NOTEBOOKS = ("superpixels", "depthEstimation", "motion_segmentation", "unsupervised_motion", "davis2017_multiobject",
             "soft_segmentation")
LEVELS = ("easy", "medium", "open")
FOLDED = "jp-MarkdownHeadingCollapsed"


def cells_of(path):
    return nbformat.read(path, as_version=4).cells


def is_solution(cell):
    return book.SOLUTION in cell.metadata.get("tags", [])


def faults(cells):
    """What a notebook lacks for a class, one line each."""
    return [*of_size(cells), *of_exercises(cells), *of_solutions(cells), *of_failures(cells), *of_captions(cells)]


def of_size(cells):
    if not 40 <= len(cells) <= 70:
        yield f"{len(cells)} cells"
    for number, cell in enumerate(cells):
        lines = cell.source.splitlines()
        if cell.cell_type == "code" and len(lines) > 20:
            yield f"cell {number} has {len(lines)} lines"
        if any(len(line) > 120 for line in lines):
            yield f"cell {number} has a line of over 120 characters"


def exercises_of(cells):
    """Number and level of every exercise, as they stand."""
    text = "".join(cell.source for cell in cells if cell.source.startswith("## Exercises"))
    return [(int(number), level) for number, level in re.findall(r"^(\d+)\. (?:\((\w+)\))?", text, re.MULTILINE)]


def of_exercises(cells):
    exercises = exercises_of(cells)
    if not 4 <= len(exercises) <= 6 or [number for number, _ in exercises] != list(range(1, len(exercises) + 1)):
        yield f"exercises are {exercises}"
    levels = [LEVELS.index(level) if level in LEVELS else -1 for _, level in exercises]
    if -1 in levels or levels != sorted(levels) or set(levels) != {0, 1, 2}:
        yield f"levels do not go from easy to open: {exercises}"


def of_solutions(cells):
    wanted = [number for number, level in exercises_of(cells) if level != "open"]
    places = [number for number, cell in enumerate(cells) if is_solution(cell)]
    if not places:
        yield "no solutions"
        return
    if places != list(range(places[0], places[-1] + 1)) or not cells[places[0] - 1].source.startswith("## Exercises"):
        yield "solutions do not follow their exercises"
    heads = [(place, re.match(r"### Solution (\d+)\n", cells[place].source)) for place in places]
    heads = [(place, int(head.group(1))) for place, head in heads if head]
    if [number for _, number in heads] != wanted or heads[0][0] != places[0]:
        yield f"solutions of {[number for _, number in heads]}, exercises {wanted}"
    for place, number in heads:
        if cells[place].cell_type != "markdown" or cells[place].metadata.get(FOLDED) is not True:
            yield f"solution {number} is not folded"
        if not re.fullmatch(r"### Solution \d+\n\n<details><summary>In words</summary>\n\n.+\n\n</details>",
                            cells[place].source, re.DOTALL):
            yield f"solution {number} can be read before it is opened"
        rest = takewhile(lambda cell: is_solution(cell) and not cell.source.startswith("### "), cells[place + 1:])
        if not any(cell.cell_type == "code" for cell in rest):
            yield f"solution {number} has no code"
    if any(FOLDED in cell.metadata for cell in cells if not is_solution(cell)):
        yield "something else is folded"
    after = cells[places[-1] + 1] if places[-1] + 1 < len(cells) else None
    if after is None or after.cell_type != "markdown" or not after.source.startswith("## "):
        yield "what follows the solutions is folded with them"


def of_failures(cells):
    kinds = [cell.cell_type for place, cell in enumerate(cells)
             if place and re.search(r"^## What can go wrong$", cells[place - 1].source, re.MULTILINE)]
    if kinds != ["code"]:
        yield "no section 'What can go wrong' with a code cell"


def of_captions(cells):
    """Numbers without gaps; each caption stands right behind the code cell of its picture, and is a sentence."""
    numbers = []
    for place, cell in enumerate(cells):
        for start in re.finditer(r"\*Figure (\d+)\.", cell.source):
            numbers.append(int(start.group(1)))
            if cell.cell_type != "markdown" or is_solution(cell):
                yield f"figure {numbers[-1]} is captioned in a {cell.cell_type} cell or a solution"
            elif start.start() or cells[place - 1].cell_type != "code":
                yield f"the caption of figure {numbers[-1]} does not stand at the top of the cell behind its picture"
            elif not re.match(r"\*Figure \d+\. [^*]{20,}[.!?]\*(\n\n|$)", cell.source):
                yield f"the caption of figure {numbers[-1]} is not a sentence"
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        yield f"figures are numbered {numbers}"
    for place, cell in enumerate(cells):
        draws = re.search(r"^(?:shown = |display\(|    display\()?viz\.(grid|timelines)\(|subplots\(|\.figure\(",
                          cell.source, re.MULTILINE)
        if cell.cell_type == "code" and draws and not is_solution(cell):
            if not cells[place + 1].source.startswith("*Figure "):
                yield f"the picture of cell {place} has no caption"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_ready_for_a_class(name):
    assert list(faults(cells_of(gate.NOTEBOOKS / f"{name}.ipynb"))) == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_a_student_sees_without_solutions_still_asks_and_records(name):
    left = [cell for cell in cells_of(gate.NOTEBOOKS / f"{name}.ipynb") if not is_solution(cell)]
    assert "### Solution" not in "".join(cell.source for cell in left)
    assert "report.record(" in left[-1].source and left[-2].source.startswith("## Figures")


def change(cells, **how):
    """The cells of a notebook, spoilt in one way."""
    places = {kind: next(place for place, cell in enumerate(cells) if found(cell)) for kind, found in {
        "exercises": lambda cell: cell.source.startswith("## Exercises"),
        "solution": is_solution,
        "caption": lambda cell: cell.source.startswith("*Figure 2."),
        "wrong": lambda cell: "## What can go wrong" in cell.source}.items()}
    for kind, spoil in how.items():
        spoil(cells, places[kind])
    return cells


def replace(old, new):
    def spoil(cells, place):
        assert old in cells[place].source
        cells[place].source = cells[place].source.replace(old, new)
    return spoil


def drop(offset=0):
    return lambda cells, place: cells.pop(place + offset)


@pytest.mark.parametrize("how, told", [
    ({"exercises": replace("1. (easy)", "1.")}, "levels do not go"),
    ({"exercises": replace("(open)", "(easy)")}, "levels do not go"),
    ({"exercises": replace("2. (easy)", "3. (easy)")}, "exercises are"),
    ({"exercises": lambda cells, place: setattr(cells[place], "source", "## Exercises\n\n1. (easy) One.")},
     "exercises are"),
    ({"solution": lambda cells, place: cells[place].metadata.pop(FOLDED)}, "solution 1 is not folded"),
    ({"solution": drop(1)}, "solution 1 has no code"),
    ({"solution": lambda cells, place: cells[place + 1].metadata.pop("tags")}, "solutions do not follow"),
    ({"solution": replace("### Solution 1", "**Solution 1.**")}, "solutions of"),
    ({"solution": replace("<details>", "")}, "can be read before it is opened"),
    ({"wrong": replace("## What can", "## What may")}, "What can go wrong"),
    ({"wrong": drop(1)}, "What can go wrong"),
    ({"caption": replace("*Figure 2.", "*Figure 7.")}, "figures are numbered"),
    ({"caption": replace("*Figure 2.", "A sentence first. *Figure 2.")}, "does not stand at the top"),
    ({"caption": lambda cells, place: setattr(cells[place], "source", "*Figure 2. Short.*")}, "is not a sentence"),
    ({"caption": drop()}, "has no caption"),
    ({"solution": lambda cells, place: setattr(cells[place + 1], "source", "x = 1\n" * 21)}, "has 21 lines"),
    ({"solution": lambda cells, place: cells.extend(cells[:40])}, "cells"),
    ({"caption": replace("*Figure 2.", f"*Figure 2. {'x' * 120}")}, "line of over 120"),
])
def test_a_spoilt_notebook_is_told(how, told):
    cells = change(cells_of(gate.NOTEBOOKS / "superpixels.ipynb"), **how)
    assert any(told in fault for fault in faults(cells)), list(faults(cells))


def test_a_section_folded_with_the_solutions_is_told():
    cells = cells_of(gate.NOTEBOOKS / "superpixels.ipynb")
    last = next(cell for cell in cells if cell.source.startswith("## Figures"))
    last.source = last.source.replace("## Figures", "The figures.")
    assert "what follows the solutions is folded with them" in faults(cells)
