"""Executed notebooks as web pages that need no network: no scripts, pictures inside, equations as MathML."""

import html
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from diffslic.files import written_whole

WIDGET = "application/vnd.jupyter.widget-view+json"
SOLUTION = "solution"
# TeX that browsers' MathML can show, but that the converter knows under another name.
SYNONYMS = {r"{aligned}": r"{split}", r"{align}": r"{align*}", r"{equation*}": r"{equation}",
            r"\operatorname*": r"\operatorname"}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>diffslic</title><style>body {{ font: 16px/1.5 sans-serif; max-width: 45em; margin: 3em auto; padding: 0 1em }}
li {{ margin: .5em 0 }}</style></head><body><h1>diffslic</h1>
<p>The executed notebooks, in reading order. Every page stands alone and needs no network.</p>
<ol>
{items}
</ol></body></html>
"""


def to_mathml(tex: str, display: bool = False) -> str:
    """An equation for a page without scripts.

    Args:
        tex: LaTeX without the dollar signs.
        display: on a line of its own.

    Returns:
        MathML; where a macro is unknown to the converter, the TeX itself as ``<code>``, which is still readable.
    """
    plain = tex
    for name, synonym in SYNONYMS.items():
        plain = plain.replace(name, synonym)
    plain = re.sub(r"\\arg(?![a-z])", r"\\operatorname{arg}", plain)
    # MathML has no numbers of equations that browsers draw; the converter would glue them to the last letter.
    plain = re.sub(r"\\tag\{([^{}]*)\}", r"\\qquad\\text{(\1)}", plain)
    try:
        mathml = convert(plain, display="block" if display else "inline")
    except Exception:  # the converter's own errors share no class, and it lets IndexError and KeyError through
        mathml = ""
    # An unknown macro comes through as its own name, backslash and all.
    return mathml if mathml and "\\" not in mathml else f"<code>{html.escape(tex)}</code>"


def to_html(notebook: str | Path, solutions: bool = True, pictures: str | Path | None = None) -> str:
    """One executed notebook as one page.

    Args:
        notebook: the file.
        solutions: whether the cells tagged ``solution`` are on the page.
        pictures: the folder that the links of its prose start from; its own folder where none is given.

    Raises:
        FileNotFoundError, ValueError: name the file.
    """
    path = Path(notebook)
    if not path.is_file():
        raise FileNotFoundError(f"no executed notebook {path}")
    content = _read(path)
    content.metadata.pop("widgets", None)
    content.cells = [cell for cell in content.cells
                     if solutions or SOLUTION not in cell.metadata.get("tags", [])]
    for cell in content.cells:
        cell.outputs = [_without_widget(output) for output in cell.get("outputs", [])]
    exporter = _OfflineExporter(Path(pictures or path.parent))
    page, _ = exporter.from_notebook_node(content, {"metadata": {"name": path.stem}})
    return _cut_the_network(page)


def title(notebook: str | Path) -> str:
    """The first heading of a notebook, or its name where it has none."""
    for cell in _read(Path(notebook)).cells:
        heading = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            return heading.group(1).strip()
    return Path(notebook).stem


def build(notebooks: Iterable[str | Path], folder: str | Path, pictures: str | Path | None = None) -> Path:
    """A site of executed notebooks: ``index.html``, a page each, and ``solutions/`` with the same pages complete.

    Args:
        notebooks: executed notebooks in reading order.
        folder: created where it is missing.
        pictures: see :func:`to_html`.

    Returns:
        The index page, written last.

    Raises:
        FileNotFoundError, ValueError: name the notebook.
    """
    folder = Path(folder)
    paths = [Path(path) for path in notebooks]
    (folder / "solutions").mkdir(parents=True, exist_ok=True)
    items = []
    for path in paths:
        page = f"{path.stem}.html"
        for name, solutions in ((page, False), (f"solutions/{page}", True)):
            with written_whole(folder / name) as temporary:
                temporary.write_text(to_html(path, solutions, pictures), encoding="utf-8")
        items.append(f'<li><a href="{page}">{html.escape(title(path))}</a> '
                     f'(<a href="solutions/{page}">with solutions</a>)</li>')
    index = folder / "index.html"
    with written_whole(index) as temporary:
        temporary.write_text(PAGE.format(items="\n".join(items)), encoding="utf-8")
    return index


def _read(path: Path) -> nbformat.NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError) as error:
        raise ValueError(f"{path}: expected a Jupyter notebook, got something else") from error


def _without_widget(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A widget needs a running kernel: on a page a line says where it lives."""
    data = output.get("data", {})
    if WIDGET not in data:
        return output
    # A finished progress bar of tqdm is a widget too, and nothing that a reader misses.
    text = "" if "%|" in "".join(data.get("text/plain", "")) else "(interactive: open the notebook in JupyterLab)"
    return nbformat.v4.new_output("display_data", {"text/plain": text})


def _cut_the_network(page: str) -> str:
    """Drop the scripts (all from other hosts, or only of use to those) and point links at pages, not notebooks."""
    soup = BeautifulSoup(page, features="html.parser")
    for script in soup.find_all("script"):
        script.decompose()
    for link in soup.select("a[href$='.ipynb']"):
        target = str(link["href"])
        if "://" not in target:
            link["href"] = target.removesuffix(".ipynb") + ".html"
    if soup.head is not None:
        style = soup.new_tag("style")
        style.string = "pre { white-space: pre-wrap !important }"  # a long line of code is read, not cut
        soup.head.append(style)
    return str(soup)


class _MathMLRenderer(IPythonRenderer):
    """Markdown to HTML with the equations as MathML."""

    def inline_math(self, body: str) -> str:
        return to_mathml(body)

    def block_math(self, body: str) -> str:
        return to_mathml(body, display=True)

    def latex_environment(self, name: str, body: str) -> str:
        return to_mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)


class _OfflineExporter(HTMLExporter):
    """The exporter of nbconvert with its Markdown filter replaced."""

    def __init__(self, pictures: Path, **options: Any) -> None:
        super().__init__(**options)
        self.pictures = str(pictures)
        # Its warnings are of figures without alternative text, which the prose beside them gives.
        self.log = logging.getLogger(__name__)
        self.log.setLevel(logging.ERROR)

    def default_filters(self) -> Iterable[tuple[str, Any]]:
        yield from super().default_filters()
        yield "markdown2html", self._render

    def _render(self, source: str) -> str:
        renderer = _MathMLRenderer(escape=False, embed_images=True, path=self.pictures)
        return MarkdownWithMath(renderer=renderer).render(source)
