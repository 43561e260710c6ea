"""JupyterLab works in the environment that AirSim's package has joined: it starts, and runs a cell that flies."""

import json
import re
import subprocess
import sys
import urllib.request
import uuid

import pytest

pytest.importorskip("airsim", reason="the airsim package is not installed")
websocket = pytest.importorskip("websocket", reason="comes with JupyterLab's server")

CELL = """
from diffslic import airsim
with airsim.start("lab", size=(24, 32)) as server:
    client = airsim.connect(port=server.port)
    client.takeoffAsync().join()
    print("flown to", client.simGetVehiclePose().position.z_val)
"""


def asked(lab, path, body=None):
    headers = {"Authorization": f"token {lab.token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{lab.address}{path}", body, headers), timeout=60) as answer:
        return answer.read().decode()


def test_a_cell_flies_in_jupyterlab(lab):
    assert "JupyterLab" in asked(lab, "/lab")
    kernel = json.loads(asked(lab, "/api/kernels", b'{"name": "python3"}'))
    channels = f"{lab.address}/api/kernels/{kernel['id']}/channels".replace("http", "ws")
    line = websocket.create_connection(channels, 60, header={"Authorization": f"token {lab.token}"})
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
