"""A real JupyterLab on loopback and a real browser: Debian's Chromium, driven by Playwright."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from matplotlib.image import imread

from diffslic import gate

TOKEN = "of-this-test"
CHROMIUM = shutil.which("chromium")
PICTURES = gate.RUNS / "ui"
A_NOTEBOOK = 300_000  # milliseconds that a whole one may take on a busy machine
AN_ANSWER = 60_000
# Milliseconds from a key or click to the next picture of the page's explorer, as the reader sees it.
STOPWATCH = """image => { window.answered = new Promise(answer => {
    let begin = null;
    for (const kind of ["keydown", "pointerdown", "change"])
        document.addEventListener(kind, () => { begin ??= performance.now(); }, {capture: true, once: true});
    image.addEventListener("load", () => answer(performance.now() - begin), {once: true});
    setTimeout(answer, 30000, null);
}); }"""

ERRORS = """jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap((cell) => cell.outputs ?? [])
            .filter((output) => output.output_type === "error").map((output) => `${output.ename}: ${output.evalue}`)"""


@dataclass
class Served:
    """A server on loopback."""

    address: str
    root: Path  # the folder that it shows
    token: str = TOKEN


@dataclass
class Explorer:
    """An explorer on a page of the browser."""

    page: Any
    cell: int  # of the notebook

    @property
    def box(self) -> Any:
        """The widget, scrolled to: JupyterLab draws what can be seen."""
        self.page.evaluate("cell => jupyterapp.shell.currentWidget.content.scrollToItem(cell, 'start')", self.cell)
        cell = self.page.locator(f".jp-Cell[data-windowed-list-index='{self.cell}']")
        box = cell.locator(".jp-OutputArea-output > .widget-vbox")
        box.wait_for()
        return box

    @property
    def picture(self) -> Any:
        return self.box.locator("img.widget-image").first

    @property
    def caption(self) -> str:
        return self.box.locator(".widget-label").first.inner_text()

    def control(self, description: str) -> Any:
        """What is labelled so."""
        label = self.page.locator(".widget-label", has_text=re.compile(f"^{re.escape(description)}$"))
        return self.box.locator(".widget-inline-hbox").filter(has=label).first

    def pressed(self, description: str, key: str) -> float:
        """A key on a slider; seconds until the picture has answered."""
        handle = self.control(description).locator(".noUi-handle")
        return self._timed(lambda: handle.press(key))

    def chosen(self, description: str, option: str) -> float:
        """Another option of a list; the same."""
        return self._timed(lambda: self.control(description).locator("select").select_option(option))

    def ticked(self, description: str) -> float:
        """The other state of a box; the same."""
        return self._timed(lambda: self.checkbox(description).press("Space"))

    def place(self, x: float, y: float, pictures: int = 1) -> tuple[int, int]:
        """Row and column of the image that a place of the picture shows, or of the left one of several."""
        width, height = self.picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
        return int(y * height), int(x * width) % (width // pictures)

    def checkbox(self, description: str) -> Any:
        return self.box.locator(".widget-checkbox").filter(has_text=description).locator("input").first

    def clicked(self, x: float, y: float) -> float:
        """A click on a place of the picture, as shares of its width and height; the same."""
        size = self.picture.bounding_box()
        return self._timed(lambda: self.picture.click(position={"x": x * size["width"], "y": y * size["height"]}))

    def _timed(self, act: Callable[[], object]) -> float:
        self.picture.evaluate(STOPWATCH)
        act()
        took = self.page.evaluate("window.answered")
        assert took is not None, "the picture did not answer"
        return took / 1000

    def shot(self, name: str) -> np.ndarray:
        """A screenshot (H, W, 3) in [0, 255] of the picture; that of the whole explorer is left in ``runs/ui``."""
        self.box.screenshot(path=PICTURES / f"{name}.png")
        return pixels(self.picture)


def pixels(locator: Any) -> np.ndarray:
    """A screenshot (H, W, 3) in [0, 255] of something."""
    return (imread(BytesIO(locator.screenshot()), format="png")[..., :3] * 255).astype(int)


def start(command: list[str], log: Path, pattern: str,
          environment: dict[str, str] | None = None) -> tuple[subprocess.Popen, str]:
    """A server, by the name of its module and its arguments, and its address from what it logs."""
    with log.open("w") as sink:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=sink, stderr=subprocess.STDOUT,
                                   env=environment, cwd=gate.ROOT)
    for _ in range(600):
        found = re.search(pattern, log.read_text())
        if found or process.poll() is not None:
            break
        time.sleep(0.1)
    if not found:
        process.kill()
        raise AssertionError(f"no server: {log.read_text()}")
    return process, found[0]


@pytest.fixture(scope="session")
def started() -> Callable[..., tuple[subprocess.Popen, str]]:
    return start


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Where screenshots are left to be looked at."""
    return PICTURES


@pytest.fixture(scope="session")
def shown() -> Callable[[Any], np.ndarray]:
    return pixels


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running JupyterLab."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    root, settings = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("settings")
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text(json.dumps({"fetchNews": "false", "checkForUpdates": False}))
    process, address = start(
        ["jupyter", "lab", "--no-browser", "--port=0", "--allow-root", "--ip=127.0.0.1",
         f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}", f"--LabApp.user_settings_dir={settings}",
         "--LabApp.expose_app_in_browser=True"], settings / "log", r"http://127\.0\.0\.1:\d+")
    for _ in range(300):                                                   # it says where before it listens
        try:
            with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=1):
                break
        except OSError:
            time.sleep(0.1)
    yield Served(address, root)
    process.terminate()
    process.wait()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    PICTURES.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as control:
        chromium = control.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(AN_ANSWER)
    yield context.new_page()
    context.close()


@pytest.fixture
def explorers(lab: Served, page: Any) -> Iterator[Callable[..., list[Explorer]]]:
    """Opens one of our notebooks in JupyterLab, runs all of its cells, and gives its explorers in order."""
    def run(name: str, **parameters: Any) -> list[Explorer]:
        notebook = nbformat.read(gate.NOTEBOOKS / f"{name}.ipynb", 4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", ()):
                cell.source += "".join(f"\n{key} = {value!r}" for key, value in parameters.items())
        nbformat.write(notebook, lab.root / f"{name}.ipynb")
        # A workspace of its own: another would open what was open in it before, too.
        page.goto(f"{lab.address}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")
        page.wait_for_function("name => window.jupyterapp?.shell.currentWidget?.context?.path === name",
                               arg=f"{name}.ipynb")
        page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.isReady")
        page.wait_for_function("jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.allRan = true; })"
                      ".catch(() => { window.allRan = true; }) && null")
        page.wait_for_function("window.allRan", timeout=A_NOTEBOOK)
        failed = page.evaluate(ERRORS)
        assert not failed, failed[0]
        return [Explorer(page, i) for i, cell in enumerate(notebook.cells)
                if cell.cell_type == "code" and re.search(r"^widgets\.", cell.source, re.MULTILINE)]

    yield run
    page.evaluate("window.jupyterapp && jupyterapp.serviceManager.sessions.shutdownAll()")


@pytest.fixture(scope="session")
def latencies() -> Iterator[dict[str, float]]:
    """Seconds by what was done; left in ``runs/ui`` at the end, a file from each process that tests."""
    found: dict[str, float] = {}
    yield found
    lines = "".join(f"{seconds:6.3f}  {name}\n" for name, seconds in found.items())
    (PICTURES / f"latencies-{os.environ.get('PYTEST_XDIST_WORKER', 'all')}.txt").write_text(lines)
