"""JupyterLab works in the environment that AirSim's package has joined: it starts, and runs a cell that flies."""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid

import pytest

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
pytest.importorskip("airsim", reason="the airsim package is not installed")
websocket = pytest.importorskip("websocket", reason="comes with JupyterLab's server")

TOKEN = {"Authorization": "token of-this-test"}
CELL = """
from diffslic import airsim
with airsim.start("lab", size=(24, 32)) as server:
    client = airsim.connect(port=server.port)
    client.takeoffAsync().join()
    print("flown to", client.simGetVehiclePose().position.z_val)
"""


@pytest.fixture
def server(tmp_path):
    """The address of a running JupyterLab."""
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--port=0", "--allow-root",
               "--IdentityProvider.token=of-this-test", "--ip=127.0.0.1", f"--ServerApp.root_dir={tmp_path}"]
    log = tmp_path / "log"
    with log.open("w") as sink, subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(600):
                found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
                if found or process.poll() is not None:
                    break
                time.sleep(0.1)
            assert found, log.read_text()
            yield found[0]
        finally:
            process.terminate()


def asked(address, body=None):
    request = urllib.request.Request(address, body, TOKEN)
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, ConnectionError):  # not listening yet
            time.sleep(0.1)
    raise AssertionError(f"no answer from {address}")


def test_a_cell_flies_in_jupyterlab(server):
    assert "JupyterLab" in asked(f"{server}/lab")
    kernel = json.loads(asked(f"{server}/api/kernels", b'{"name": "python3"}'))
    channels = f"{server}/api/kernels/{kernel['id']}/channels".replace("http", "ws")
    line = websocket.create_connection(channels, 60, header=TOKEN)
    number = uuid.uuid4().hex
    line.send(json.dumps({"header": {"msg_id": number, "msg_type": "execute_request", "username": "", "session": number,
                                     "version": "5.3"}, "parent_header": {}, "metadata": {}, "channel": "shell",
                          "content": {"code": CELL, "silent": False}}))
    printed, status = "", ""
    while not status:
        message = json.loads(line.recv())
        if message["parent_header"].get("msg_id") == number:
            printed += message["content"].get("text", "") if message["msg_type"] == "stream" else ""
            status = message["content"]["status"] if message["msg_type"] == "execute_reply" else ""
    while "flown" not in printed and status == "ok":
        message = json.loads(line.recv())
        printed += message["content"].get("text", "") if message["msg_type"] == "stream" else ""
    line.close()
    assert status == "ok" and printed.strip().endswith("flown to -1.0"), printed


def test_pip_finds_nothing_else_wrong():
    found = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True).stdout.splitlines()
    assert [line for line in found if not re.match(r"airsim 1\.8\.1 requires \S+, which is not installed", line)
            and line != "No broken requirements found."] == []
