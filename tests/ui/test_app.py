"""The app as `make app` serves it: somebody drops frames, looks at what was found, takes it away."""

import os
import socket
import subprocess
import time
import zipfile

import nbformat
import numpy as np
import pytest

from diffslic import datasets, gate
from diffslic.datasets import io
from diffslic.datasets.video import write_video

# A drop as the browser tells of it: of a folder, which holds two frames and a file of another kind.
DROP = """async (field, names) => {
    const parts = new DataTransfer();
    for (const [name, bytes] of names) parts.items.add(new File([new Uint8Array(bytes)], name));
    const entry = (file) => ({isFile: true, name: file.name, file: (yes) => yes(file)});
    let files = [...parts.files].map(entry);
    const reader = {readEntries: (yes) => { yes(files); files = []; }};
    const folder = {isFile: false, name: "mine", createReader: () => reader};
    const event = new DragEvent("drop", {bubbles: true, cancelable: true});
    Object.defineProperty(event, "dataTransfer", {value: {items: [{webkitGetAsEntry: () => folder}]}});
    field.dispatchEvent(event);
}"""


def test_it_is_short():
    cells = nbformat.read(gate.NOTEBOOKS / "app" / "app.ipynb", as_version=4).cells
    assert len(cells) <= 15 and "def " not in "".join(cell.source for cell in cells if cell.cell_type == "code")


@pytest.fixture
def app(page, tmp_path, started):
    """A page of the app, and the folder in which its kernel keeps files."""
    pytest.importorskip("voila", reason="Voila is not installed")
    (tmp_path / "kept").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]  # of 0 Voila does not say which it took
    recipe = subprocess.check_output(["make", "-n", "app", f"PORT={port}"], cwd=gate.ROOT, text=True)
    options = recipe.split("bin/voila ")[1].replace("timeout=300", "timeout=5").replace("\\\n", " ").split()
    process, address = started(["voila", *options], tmp_path / "log", rf"http://127\.0\.0\.1:{port}",
                               {**os.environ, "TMPDIR": str(tmp_path / "kept")})
    page.goto(address)
    page.locator(".diffslic-drop").wait_for()
    yield page, tmp_path / "kept"
    process.terminate()
    process.wait()


def test_frames_go_in_and_masks_come_out(app, tmp_path, pictures, shown):
    page, kept = app
    assert "pipeline" not in page.locator("body").inner_text()            # no code
    page.get_by_role("button", name="Show me an example").click()
    page.get_by_text("8 frames: done").wait_for()
    mask = page.locator("img.widget-image").first
    page.screenshot(path=pictures / "app.png", full_page=True)
    red, green, blue = shown(mask).transpose(2, 0, 1)
    orange, sky = (red > green + 30) & (red > blue + 60), (blue > red + 30) & (blue > green + 5)
    assert orange.mean() > 0.01 and sky.mean() > 0.02                     # two bodies, in the first two colours
    for tab in ("Flow", "Superpixels"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        page.screenshot(path=pictures / f"app-{tab.lower()}.png", full_page=True)
        assert shown(page.locator("img.widget-image:visible").first).std() > 15
    page.get_by_role("tab", name="Downloads").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="masks.zip").click()
    download.value.save_as(tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert len(archive.namelist()) == 8 and archive.testzip() is None

    clip = datasets.open("scenes", preset="lab", n_clips=1, n_frames=2, size=(96, 160), seed=5)[0]
    for t in range(2):
        io.write_image(tmp_path / "frames" / f"{t}.png", clip.frame(t))
    files = [[path.name, list(path.read_bytes())] for path in sorted((tmp_path / "frames").iterdir())]
    page.locator(".diffslic-drop").evaluate(DROP, [*files, ["notes.txt", [1, 2]]])
    page.get_by_text("2 frames: done").wait_for()
    page.locator("input[type=file]").first.set_input_files(gate.NOTEBOOKS / "README.md")
    page.get_by_text("nothing that can be read").wait_for()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "frames" / "0.png")
    page.get_by_text("0.png: motion needs at least two frames, got one image", exact=True).wait_for()

    write_video(tmp_path / "film.mp4", [clip.frame(t % 2) for t in range(3)])
    page.locator("input[type=file]").first.set_input_files(tmp_path / "film.mp4")
    page.get_by_text("3 frames: done").wait_for()
    page.locator("input[type=file]").nth(1).set_input_files(tmp_path / "frames")  # a whole folder
    page.get_by_text("2 frames: done").wait_for()

    assert [*kept.rglob("masks.zip")]
    page.goto("about:blank")
    until = time.monotonic() + 60
    while [*kept.rglob("*.png")] and time.monotonic() < until:
        time.sleep(0.5)
    assert not [*kept.rglob("*.png")] and not [*kept.rglob("*.zip")]      # what came with the page is gone


def test_the_example_has_bodies_apart(app, shown):
    page, _ = app
    page.get_by_role("button", name="Show me an example").click()
    page.get_by_text("8 frames: done").wait_for()
    boxes = page.locator(".widget-checkbox", has_text="object")
    assert boxes.count() >= 2
    mask = page.locator("img.widget-image").first
    before = shown(mask)
    for box in boxes.all():
        box.locator("input").click()
    page.wait_for_timeout(1000)
    assert (np.abs(shown(mask) - before).max(-1) > 30).mean() > 0.005
