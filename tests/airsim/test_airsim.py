"""AirSim: the wire, the simulator that draws scenes, captures that break off, and what is refused."""

import contextlib
import io
import re
import socket
import subprocess
import sys
import threading

import msgpack
import numpy as np
import pytest
import torch
from PIL import Image

from diffslic import airsim, datasets, depth, geometry, metrics
from diffslic.airsim import server as server_module
from diffslic.airsim import transport
from diffslic.airsim.server import Simulator
from diffslic.datasets import layouts

pytest.importorskip("airsim", reason="the airsim package is not installed")
import airsim as package  # noqa: E402

SIZE = (36, 64)


@pytest.fixture(scope="module")
def server():
    with airsim.start("street", size=SIZE) as running:
        yield running


@pytest.fixture
def client(server):
    client = airsim.connect(port=server.port)
    yield client
    client.client.close()


def requests(compress=False):
    return [package.ImageRequest("0", package.ImageType.Scene, False, compress),
            package.ImageRequest("0", package.ImageType.DepthPlanar, True, False)]


def test_the_real_client_flies_and_sees(client):
    client.confirmConnection()
    client.enableApiControl(True)
    assert client.isApiControlEnabled() and client.armDisarm(True)
    client.takeoffAsync().join()
    assert client.simGetVehiclePose().position.z_val == -1
    first, second = client.moveToPositionAsync(2, 1, -1.5, 3), client.hoverAsync()
    second.join(), first.join()  # in any order
    position = client.simGetVehiclePose().position
    assert (position.x_val, position.y_val, position.z_val) == (2, 1, -1.5)
    north = package.Vector3r(np.float64(0.5), 0, 0)
    client.simSetVehiclePose(package.Pose(north, package.to_quaternion(0, 0, 0.3)), True)
    assert package.to_eularian_angles(client.simGetVehiclePose().orientation)[2] == pytest.approx(0.3)
    client.simSetVehiclePose(package.Pose(package.Vector3r.nanVector3r(), package.to_quaternion(0, 0, 0)), True)
    assert client.simGetVehiclePose().position.x_val == 0.5
    assert client.simGetCameraInfo("0").fov == 90


def test_pixels_come_as_from_the_real_simulator(client, server):
    client.simSetVehiclePose(package.Pose(), True)
    raw, planar = client.simGetImages(requests())
    png, _ = client.simGetImages(requests(compress=True))
    view = server.simulator.scene.seen_from(torch.eye(4), geometry.intrinsics_from_fov(90, *SIZE)).view([0])
    assert (transport.color_image(raw) - view.image[0]).abs().max() < 0.5 / 255 + 1e-6
    assert raw.image_data_uint8[:3] == bytes((view.image[0, [2, 1, 0], 0, 0] * 255).round().byte().tolist())  # B, G, R
    levels = np.asarray(Image.open(io.BytesIO(png.image_data_uint8)))
    assert np.array_equal(levels, (transport.color_image(raw) * 255).round().byte().permute(1, 2, 0).numpy())
    assert torch.equal(transport.depth_image(planar), view.depth[0])


def test_depth_of_a_captured_flight(client, tmp_path):
    trajectory = airsim.orbit(torch.tensor([8.0, 0, -0.5]), 8.0, 4, degrees=6)
    clip = airsim.capture(client, trajectory, tmp_path / "flight", progress=False)
    assert len(clip) == 4 and clip.size == SIZE and datasets.check("tartanair", tmp_path / "flight") == []
    assert (torch.stack([clip.camera_to_world(t) for t in range(4)]) - trajectory).abs().max() < 1e-5
    error = (geometry.warp(clip.frame(1)[None], clip.flow(0)[None])[0] - clip.frame(0)).abs().mean(0)
    assert error[~clip.occlusion(0)].median() < 0.03  # the flow says where things are in the next frame
    assert 0 < clip.occlusion(0).float().mean() < 0.3
    motion = geometry.second_from_first(clip.camera_to_world(0), clip.camera_to_world(1))
    found = depth.from_flow(clip.flow(0)[None], clip.intrinsics, motion, hidden=clip.occlusion(0)[None])
    figures = metrics.depth(found.depth[0], clip.depth(0))
    assert figures["abs_rel"] < 1e-3 and figures["coverage"] > 0.2


@contextlib.contextmanager
def killed_at_the_end(process):
    try:
        yield
    finally:
        process.kill()


def test_a_broken_flight_keeps_its_frames_and_goes_on(tmp_path):
    trajectory = airsim.waypoints(torch.tensor([[0, 0, 0], [0, 1.0, 0], [1, 1, -0.5]]), 6, torch.tensor([9.0, 0, 0]))
    command = [sys.executable, "-m", "diffslic", "airsim-server", "--port", "0", "--size", "36x64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process, killed_at_the_end(process):
        port = int(process.stdout.readline().split(":")[-1])
        client = airsim.connect(port=port)
        count, wanted = 0, client.simGetImages

        def until_it_dies(*arguments):
            nonlocal count
            count += 1
            if count == 4:
                process.kill(), process.wait()
            return wanted(*arguments)

        client.simGetImages = until_it_dies
        with pytest.raises(ConnectionError, match=f"the simulator at 127.0.0.1:{port}"):
            airsim.capture(client, trajectory, tmp_path / "flight", progress=False)
    kept = datasets.open("tartanair", root=tmp_path / "flight")[0]
    assert len(kept) == 3 and kept.has("flow") and datasets.check("tartanair", tmp_path / "flight") == []
    before = (tmp_path / "flight" / "image_left" / "000002_left.png").read_bytes()
    with airsim.start("street", size=SIZE) as again:
        client = airsim.connect(port=again.port)
        clip = airsim.capture(client, trajectory, tmp_path / "flight", progress=False)
        whole = airsim.capture(client, trajectory, tmp_path / "whole", progress=False)
        with pytest.raises(ValueError, match="another flight"):
            airsim.capture(client, trajectory[:4], tmp_path / "flight", progress=False)
    for other in ({"preset": "lab", "size": SIZE}, {"preset": "street", "size": (18, 32)}):
        with airsim.start(**other) as server, pytest.raises(ValueError, match="another scene, or another size"):
            airsim.capture(airsim.connect(port=server.port), trajectory, tmp_path / "flight", progress=False)
    with airsim.start("street", size=SIZE, fov=60) as server, pytest.raises(ValueError, match="another flight"):
        airsim.capture(airsim.connect(port=server.port), trajectory, tmp_path / "flight", progress=False)
    assert len(clip) == 6 and before == (tmp_path / "flight" / "image_left" / "000002_left.png").read_bytes()
    for t in range(5):
        assert torch.equal(clip.frame(t), whole.frame(t)) and (clip.flow(t) - whole.flow(t)).abs().max() < 1e-4


def test_a_flight_does_not_touch_what_is_not_its_own(client, tmp_path):
    (other,) = datasets.open("scenes", n_clips=1, n_frames=2, size=SIZE)
    layouts.write_tartanair([other], tmp_path)
    (folder,) = (path.parent for path in tmp_path.rglob("pose_left.txt"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    trajectory = airsim.orbit(torch.tensor([8.0, 0, 0]), 8.0, 3)
    with pytest.raises(ValueError, match="or frames of something else"):
        airsim.capture(client, trajectory, folder, progress=False)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    seen = client.simGetImages

    def depth_of_another_size(asked):
        color, planar = seen(asked)
        planar.height, planar.width, planar.image_data_float = 9, 16, planar.image_data_float[:144]
        return color, planar

    client.simGetImages = depth_of_another_size
    with pytest.raises(ValueError, match=r"colours of \(36, 64\) and depth of \(9, 16\).*CaptureSettings"):
        airsim.capture(client, trajectory, tmp_path / "new", progress=False)


@pytest.mark.parametrize("step", ["write_tartanair_flow", "write_tartanair_cameras", "write_tartanair_frame"])
def test_a_flight_that_ends_between_two_files_is_whole(client, tmp_path, monkeypatch, step):
    trajectory, count = airsim.orbit(torch.tensor([8.0, 0, -0.5]), 8.0, 4, degrees=6), 0
    write = getattr(layouts, step)

    def until_the_disk_is_full(*arguments):
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(layouts, step, until_the_disk_is_full)
    with pytest.raises(OSError, match="No space"):
        airsim.capture(client, trajectory, tmp_path / "flight", progress=False)
    kept = datasets.open("tartanair", root=tmp_path / "flight")[0]
    assert len(kept) in (1, 2) and datasets.check("tartanair", tmp_path / "flight") == []
    assert len(airsim.capture(client, trajectory, tmp_path / "flight", progress=False)) == 4
    assert datasets.check("tartanair", tmp_path / "flight") == []


def test_it_answers_its_list_and_nothing_else(server, client):
    assert re.findall(r"\w+", server_module.__doc__.split("no others:")[1].split(".")[0]) == list(airsim.CALLS)
    for name in ("__init__", "_response", "_place", "scene", "pose", "size"):
        with pytest.raises(airsim.SimulatorError, match=f"does not answer {name}, only"):
            client.client.call(name)
    for name in airsim.CALLS:
        assert any(hasattr(package.MultirotorClient, f"{name}{ending}") for ending in ("", "Async"))


def turned(w):
    return package.Pose(orientation_val=package.Quaternionr(0, 0, 0, w))


def test_nonsense_is_answered_and_harms_nobody(client):
    pose = client.simGetVehiclePose()
    for name, arguments, reason in (
            ("moveToPosition", (None, 0, 0, 1), "Error"), ("moveToPosition", (float("nan"), 0, 0, 1), "three finite"),
            ("moveToPosition", (float("inf"), 0, 0, 1), "three finite"), ("simGetImages", (3,), "Error"),
            ("simSetVehiclePose", (turned(0.0), True), "length 0.000"), ("simSetVehiclePose", ({}, True), "KeyError"),
            ("simSetVehiclePose", (turned(1e300), True), "length")):
        with pytest.raises(airsim.SimulatorError, match=f"{name}: .*{reason}"):
            client.client.call(name, *arguments)
    assert client.simGetVehiclePose().position.x_val == pose.position.x_val and client.simGetImages(requests())


def test_a_server_closes_at_once(server):
    airsim.Server(Simulator(size=SIZE), port=0).close()                     # one that never answered
    with airsim.start("lab", size=SIZE) as running:
        client = airsim.connect(port=running.port)
        assert client.ping()
    with pytest.raises(ConnectionError, match="is gone|closed the connection"):
        client.ping()
    for port in (99999, -1):
        for use in (lambda port=port: airsim.start(port=port), lambda port=port: airsim.connect(port=port)):
            with pytest.raises(ValueError, match="a port is a number from 0 to 65535"):
                use()


def test_an_answer_may_be_asked_for_twice(client):
    pending = client.takeoffAsync()
    pending.join()
    assert pending.get() is True
    ignored, asked = client.hoverAsync(), client.client.call_async("nothing")
    for _ in range(2):
        with pytest.raises(airsim.SimulatorError, match="does not answer nothing"):
            asked.get()
    ignored.join()


def test_what_the_simulator_does_not_do_is_said(client):
    with pytest.raises(airsim.SimulatorError, match="does not answer reset, only ping, "):
        client.reset()
    with pytest.raises(airsim.SimulatorError, match="no camera 'back', there is 0 also called front_center"):
        client.simGetCameraInfo("back")
    for request in (package.ImageRequest("0", package.ImageType.Segmentation), package.ImageRequest("0", 1, False)):
        with pytest.raises(airsim.SimulatorError, match="colours .Scene. in bytes and depth"):
            client.simGetImages([request])
    with pytest.raises(airsim.SimulatorError, match="moveToPosition: TypeError"):
        client.client.call("moveToPosition", 1)
    assert client.ping()  # and it goes on


def test_no_simulator_or_another(server, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        free = taken.getsockname()[1]
        with pytest.raises(ConnectionError, match=f"no simulator answers at 127.0.0.1:{free}.*airsim-server"):
            airsim.connect(port=free)
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{free}"):
            airsim.start(port=free)
    monkeypatch.setattr(Simulator, "getMinRequiredClientVersion", lambda self: 2)
    with pytest.raises(ConnectionError, match="wants clients from 2; this client is of version 1"):
        airsim.connect(port=server.port)
    monkeypatch.setitem(sys.modules, "airsim", None)
    with pytest.raises(ModuleNotFoundError, match="--no-deps --no-build-isolation airsim"):
        airsim.connect(port=server.port)


def a_peer(answer):
    """The port of something that answers one connection with these bytes and hangs up; None keeps silent."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        connection, _ = listener.accept()
        with listener, connection:
            connection.recv(100)
            if answer is None:
                connection.recv(100)
            else:
                connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize(("answer", "error", "reason"), [
    (msgpack.packb("hello"), ConnectionError, "does not speak msgpack-RPC"),
    (b"\xc1", ConnectionError, "does not speak msgpack-RPC"), (b"HTTP/1.1 400", ConnectionError, "does not speak"),
    (msgpack.packb([1, 1, None, "cut off"])[:9], ConnectionError, "closed the connection during ping"),
    (b"", ConnectionError, "closed the connection during ping"),
    (None, TimeoutError, "did not answer ping within 0.2 s")])
def test_a_peer_that_is_no_simulator(answer, error, reason):
    line = transport.Transport(port=a_peer(answer), timeout=0.2)
    with pytest.raises(error, match=reason):
        line.call("ping")
    line.close()
    with pytest.raises(ConnectionError, match="is gone"):
        line.call("ping")
    with pytest.raises(TypeError, match="cannot send a set"):
        line.call("ping", {1})


def test_the_server_hangs_up_on_what_is_not_a_request(server):
    for message in (b"\xc1", msgpack.packb([1, 2, 3, 4]), msgpack.packb(7)):
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(message)
            assert line.recv(10) == b""
    assert airsim.connect(port=server.port).ping()


def test_images_that_are_not_as_asked_for(client):
    raw, planar = client.simGetImages(requests())
    text = raw.image_data_uint8.decode("utf-8", "surrogateescape")
    expected = transport.color_image(raw)
    raw.image_data_uint8 = text  # as old simulators send it
    assert torch.equal(transport.color_image(raw), expected)
    raw.image_data_uint8 = b"\x00"  # what a simulator sends that has no such camera
    with pytest.raises(ValueError, match="36x64 uncompressed colours of an image, got 1 bytes"):
        transport.color_image(raw)
    planar.image_data_float = 0.0
    with pytest.raises(ValueError, match="36x64 floats of a depth image, got 0"):
        transport.depth_image(planar)


def test_trajectories():
    path = geometry.pose_to_ned(airsim.waypoints(torch.tensor([[0, 0, 0], [3.0, 0, 0], [3, 1, 0]]), 5))
    places = [[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [3, 1, 0]]
    assert torch.allclose(path[:, :3, 3], torch.tensor(places).double())
    assert torch.allclose(path[:, :3, :3], torch.eye(3).double())
    arc = geometry.pose_to_ned(airsim.orbit(torch.tensor([5.0, 1, -2]), 4.0, 3, degrees=180, height=1.0))
    assert torch.allclose(arc[:, :3, 3], torch.tensor([[5, -3, -3], [1, 1, -3], [5, 5, -3]]).double(), atol=1e-6)
    assert torch.allclose(arc[:, :3, :3] @ arc[:, :3, :3].mT, torch.eye(3).double(), atol=1e-9)
    towards = torch.nn.functional.normalize(torch.tensor([5.0, 1, -2]).double() - arc[:, :3, 3], dim=1)
    assert torch.allclose(arc[:, :3, 0], towards) and (arc[:, 2, 2] > 0).all()  # looks there, upright
    down = geometry.pose_to_ned(airsim.waypoints(torch.tensor([[0.0, 0, -5], [0, 0, -6]]), 2, torch.zeros(3)))
    assert torch.allclose(torch.linalg.det(down[:, :3, :3]), torch.ones(2).double())
    through, middle = torch.tensor([[0, 0, 0], [2.0, 0, 0]]), torch.tensor([1.0, 0, 0])
    for bad in (lambda: airsim.waypoints(torch.zeros(1, 3), 5), lambda: airsim.waypoints(torch.zeros(3, 3), 5),
                lambda: airsim.waypoints(torch.eye(3), 1), lambda: airsim.waypoints(through, 3, middle),
                lambda: airsim.orbit(torch.zeros(3), 0, 5), lambda: airsim.capture(None, torch.eye(4), "nowhere")):
        with pytest.raises(ValueError, match="a flight|an orbit|a trajectory"):
            bad()
