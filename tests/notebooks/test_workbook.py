"""The notebooks of this project: their form, and a run of each in its smallest profile against the baselines."""

import re

import nbformat
import pytest

from diffslic import book, gate

NOTEBOOKS = sorted(gate.NOTEBOOKS.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_committed_without_outputs_and_with_its_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert [len(cell.source.splitlines()) for cell in code if len(cell.source.splitlines()) > 20] == []
    gate.check_parameters(path, ["device", "profile", "out_dir", "seed"])


@each
def test_the_table_of_notebooks_names_it(path):
    assert f"]({path.name})" in (gate.NOTEBOOKS / "README.md").read_text()


@each
def test_every_equation_can_be_read_offline(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(r"```.*?```|`[^`]*`", "", cell.source, flags=re.DOTALL)
            for tex in re.findall(r"\$\$(.+?)\$\$", prose, re.DOTALL) + re.findall(r"(?<!\$)\$([^$]+)\$(?!\$)", prose):
                assert book.to_mathml(tex).startswith("<math"), tex


@pytest.mark.notebook
@each
def test_smoke(path, tmp_path):
    outcome = gate.run_notebook(path, {"profile": "smoke"}, tmp_path, cell_timeout=120, timeout=240)
    assert outcome.error == ""
    assert [row for row in outcome.rows if row.verdict == "FAIL"] == []
