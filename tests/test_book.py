"""Pages that need no network."""

import html
import re

import nbformat
import pytest

from diffslic import book

PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def write(path, *cells):
    content = nbformat.v4.new_notebook(cells=list(cells))
    content.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": {}}}
    nbformat.write(content, path)
    return path


@pytest.fixture
def executed(tmp_path):
    bar = {book.WIDGET: {"model_id": "a"}, "text/plain": " 50%|#####     | 1/2"}
    slider = {book.WIDGET: {"model_id": "b"}, "text/plain": "IntSlider()"}
    outputs = [nbformat.v4.new_output("display_data", data) for data in (bar, slider, {"image/png": PIXEL})]
    solution = nbformat.v4.new_code_cell("the_answer = 42")
    solution.metadata["tags"] = [book.SOLUTION]
    return write(
        tmp_path / "toy.ipynb",
        nbformat.v4.new_markdown_cell("# A toy\n\n$$E = \\sum_p \\frac{a_p}{b}$$\n\nwith $x < y$, [next](other.ipynb), "
                                      "[out](https://example.org/a.ipynb)\n\n\\begin{align}a &= b\\end{align}"),
        nbformat.v4.new_code_cell("show()", outputs=outputs),
        solution,
    )


def body(page):
    return page.partition("<body")[2]


def test_a_page_loads_nothing_from_elsewhere(executed):
    page = book.to_html(executed)
    assert "<script" not in page
    assert not re.findall(r"<(?:link|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    assert not re.findall(r"url\((?!['\"]?data:)|@import", page)
    assert f"data:image/png;base64,{PIXEL}" in page


def test_equations_are_mathml(executed):
    page = book.to_html(executed)
    assert page.count("<math ") == 3 and page.count('display="block"') == 2
    assert "\\frac" not in page and "$" not in body(page)


def test_links_lead_to_pages(executed):
    page = book.to_html(executed)
    assert 'href="other.html"' in page and 'href="https://example.org/a.ipynb"' in page


def test_widgets_leave_a_line_and_progress_bars_nothing(executed):
    page = body(book.to_html(executed))
    assert page.count("open the notebook in JupyterLab") == 1
    assert "IntSlider" not in page and "50%" not in page


def test_solutions_are_on_one_page_only(executed):
    assert "the_answer" in book.to_html(executed)
    assert "the_answer" not in book.to_html(executed, solutions=False)


@pytest.mark.parametrize("tex", [
    r"\begin{aligned}a &= b \\ c &= d\end{aligned}", r"\operatorname*{arg\,min}_x \mathcal{L}(x)", r"\arg\min_{x} f(x)",
    r"\begin{pmatrix}f & 0 \\ 0 & f\end{pmatrix}", r"\hat F_l(p) = \lVert A_l\,\phi(p) \rVert_2^2",
    r"\begin{cases}1 & x > 0 \\ 0 & \text{else}\end{cases}",
])
def test_the_tex_that_notebooks_use_converts(tex):
    mathml = book.to_mathml(tex, display=True)
    assert mathml.startswith("<math") and "&amp;" not in mathml and "<mi>&</mi>" not in mathml


def test_a_tag_stands_in_brackets_behind_its_equation():
    mathml = html.unescape(book.to_mathml(r"a = b \tag{SSN, sec. 4}", display=True)).replace("\xa0", " ")
    assert mathml.startswith("<math") and mathml.count("<mtext>") == 1
    assert re.search(r'<mi>b</mi>\s*<mspace width="2em" ?/><mtext>\(SSN, sec. 4\)</mtext>', mathml)


@pytest.mark.parametrize("tex", [r"\nosuchmacro{x} < 1", r"\left( x", r"x^2^3"])
def test_tex_that_does_not_convert_stays_readable(tex):
    assert book.to_mathml(tex) == f"<code>{tex.replace('<', '&lt;')}</code>"


def test_pictures_of_the_prose_are_taken_in(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "dot.png").write_bytes(b"\x89PNG dot")
    path = write(tmp_path / "toy.ipynb", nbformat.v4.new_markdown_cell("![dot](dot.png)"))
    assert 'src="data:image/png;base64,' in book.to_html(path, pictures=tmp_path / "pictures")


def test_a_site(executed, tmp_path):
    second = write(tmp_path / "second.ipynb", nbformat.v4.new_code_cell("1"))
    index = book.build([executed, second], tmp_path / "site")
    text = index.read_text()
    assert text.index("A toy") < text.index("second")
    for target in re.findall(r'href="([^"]+)"', text):
        assert (index.parent / target).is_file()
    assert "the_answer" in (index.parent / "solutions" / "toy.html").read_text()
    assert "the_answer" not in (index.parent / "toy.html").read_text()


def test_a_missing_or_damaged_notebook_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no executed notebook .*gone.ipynb"):
        book.to_html(tmp_path / "gone.ipynb")
    (tmp_path / "bad.ipynb").write_text("not JSON")
    with pytest.raises(ValueError, match="bad.ipynb: expected a Jupyter notebook"):
        book.to_html(tmp_path / "bad.ipynb")
