"""A simulator that AirSim's client can talk to, without the Unreal Engine: a camera in a procedural scene.

It answers these calls and no others: ping, getServerVersion, getMinRequiredClientVersion, enableApiControl,
isApiControlEnabled, armDisarm, takeoff, hover, moveToPosition, simSetVehiclePose, simGetVehiclePose, simGetCameraInfo,
simGetImages. Time stands still in its scene, moves arrive at once, and nothing collides. The vehicle starts at the
scene's origin and looks north; the camera "0" (or "front_center") sits at its middle.
"""

import contextlib
import math
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from diffslic import geometry
from diffslic.airsim.transport import HOST, PORT, REQUEST, RESPONSE, check_port, plain
from diffslic.datasets import io, raycast, scenes

VERSION = 1  # of the protocol, as the simulator and the client count it
CAMERAS = ("0", "front_center")
SCENE, DEPTH_PLANAR = 0, 1  # of the client's ImageType
CLIMB = 1.0  # metres that a takeoff climbs
LARGEST = 1 << 20  # bytes of a request
CALLS = ("ping", "getServerVersion", "getMinRequiredClientVersion", "enableApiControl", "isApiControlEnabled",
         "armDisarm", "takeoff", "hover", "moveToPosition", "simSetVehiclePose", "simGetVehiclePose",
         "simGetCameraInfo", "simGetImages")


class Simulator:
    """The vehicle and what its camera sees; its methods are the calls.

    Args:
        preset, seed: of the scene, see :class:`diffslic.datasets.scenes.Scene`.
        size: (rows, columns) of the images. fov: field of view of their longer side, in degrees.
    """

    def __init__(self, preset: str = "street", seed: int = 0, size: tuple[int, int] = (144, 256),
                 fov: float = 90.0) -> None:
        self.scene = scenes.Scene(preset, 2, size, seed)
        self.size, self.fov = size, fov
        self.intrinsics = geometry.intrinsics_from_fov(fov, *size)
        self.pose = torch.eye(4, dtype=torch.float64)  # body to world, NED
        self.controlled = False

    def ping(self) -> bool:
        return True

    def getServerVersion(self) -> int:  # noqa: N802
        return VERSION

    def getMinRequiredClientVersion(self) -> int:  # noqa: N802
        return VERSION

    def enableApiControl(self, is_enabled: bool, vehicle_name: str = "") -> None:  # noqa: N802
        self.controlled = is_enabled

    def isApiControlEnabled(self, vehicle_name: str = "") -> bool:  # noqa: N802
        return self.controlled

    def armDisarm(self, arm: bool, vehicle_name: str = "") -> bool:  # noqa: N802
        return True

    def takeoff(self, timeout_sec: float = 20, vehicle_name: str = "") -> bool:
        self.pose[2, 3] -= CLIMB
        return True

    def hover(self, vehicle_name: str = "") -> bool:
        return True

    def moveToPosition(self, x: float, y: float, z: float, velocity: float, *how: Any) -> bool:  # noqa: N802
        self._place([x, y, z], self.pose)
        return True

    def simSetVehiclePose(self, pose: dict, ignore_collision: bool, vehicle_name: str = "") -> None:  # noqa: N802
        # NaN, as the client's documentation has it, leaves a part as it is.
        position, turn = [pose["position"][f"{axis}_val"] for axis in "xyz"], self.pose
        if any(map(math.isnan, position)):
            position = self.pose[:3, 3].tolist()
        quaternion = [pose["orientation"][f"{axis}_val"] for axis in "xyzw"]
        if not any(map(math.isnan, quaternion)):
            turn = geometry.pose_from_quaternion(torch.zeros(3), torch.tensor(quaternion))
        self._place(position, turn)

    def simGetVehiclePose(self, vehicle_name: str = "") -> dict:  # noqa: N802
        return _pose(self.pose)

    def simGetCameraInfo(self, camera_name: str, vehicle_name: str = "", external: bool = False) -> dict:  # noqa: N802
        _check_camera(camera_name)
        return {"pose": _pose(self.pose), "fov": self.fov,
                "proj_mat": {"matrix": torch.block_diag(self.intrinsics, torch.eye(1)).tolist()}}

    def simGetImages(self, requests: list[dict], vehicle_name: str = "", external: bool = False) -> list:  # noqa: N802
        for request in requests:
            _check_camera(request["camera_name"])
            if request["image_type"] not in (SCENE, DEPTH_PLANAR) \
                    or request["pixels_as_float"] != (request["image_type"] == DEPTH_PLANAR):
                raise ValueError("this simulator sends colours (Scene) in bytes and depth (DepthPlanar) in floats")
        scene = self.scene.seen_from(geometry.pose_from_ned(self.pose), self.intrinsics)
        view = scene.view([0])
        return [self._response(request, view) for request in requests]

    def _place(self, position: list[float], turn: Tensor) -> None:
        if not all(map(math.isfinite, position)):
            raise ValueError(f"a position is three finite numbers, got {position}")
        pose = turn.clone()
        pose[:3, 3] = torch.tensor(position, dtype=torch.float64)
        self.pose = pose

    def _response(self, request: dict, view: scenes.View) -> dict:
        pose, color = _pose(self.pose), request["image_type"] == SCENE
        floats: list[float] = [] if color else view.depth.clamp(max=raycast.FAR).flatten().tolist()
        return {"image_data_uint8": _bytes(view.image[0], request["compress"]) if color else b"",
                "image_data_float": floats, "camera_name": request["camera_name"],
                "camera_position": pose["position"], "camera_orientation": pose["orientation"],
                "time_stamp": time.time_ns(), "message": "", "pixels_as_float": not color,
                "compress": color and request["compress"], "width": self.size[1], "height": self.size[0],
                "image_type": request["image_type"]}


class Server(socketserver.ThreadingTCPServer):
    """A :class:`Simulator` that listens; a context manager, closed at its end.

    Raises:
        ValueError: no such port. OSError: it is taken.
    """

    allow_reuse_address = daemon_threads = True

    def __init__(self, simulator: Simulator, host: str = HOST, port: int = PORT) -> None:
        check_port(port)
        self.simulator, self.lock = simulator, threading.Lock()
        self.connections: set[socket.socket] = set()
        self._serving = False
        try:
            super().__init__((host, port), _Connection)
        except OSError as error:
            raise OSError(error.errno, f"cannot listen at {host}:{port} ({error.strerror})") from error

    @property
    def port(self) -> int:
        """Where it listens: the port that was asked for, or a free one where that was 0."""
        return self.server_address[1]

    def serve_forever(self, poll_interval: float = 0.05) -> None:
        """Answer until :meth:`close`."""
        self._serving = True
        super().serve_forever(poll_interval)

    def serve_in_background(self) -> None:
        """Answer from a thread of its own, until :meth:`close`."""
        self._serving = True  # from now on, not from when the thread gets its turn
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop answering, hang up on everybody, and give the port back."""
        if self._serving:  # shutting down waits for a loop to end
            self.shutdown()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):  # has hung up itself
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def __exit__(self, *reason: Any) -> None:
        self.close()


def start(preset: str = "street", seed: int = 0, size: tuple[int, int] = (144, 256), fov: float = 90.0,
          host: str = HOST, port: int = 0) -> Server:
    """A simulator in the background of this process: ``with start("street") as server: connect(port=server.port)``.

    Args:
        preset, seed, size, fov: see :class:`Simulator`.
        host, port: where it listens; port 0 is any that is free.

    Raises:
        ValueError: no such scene. OSError: the port is taken.
    """
    server = Server(Simulator(preset, seed, size, fov), host, port)
    server.serve_in_background()
    return server


class _Connection(socketserver.BaseRequestHandler):
    """One client: requests in, answers out, in their order."""

    server: Server

    def handle(self) -> None:
        self.server.connections.add(self.request)
        unpacker = msgpack.Unpacker(max_buffer_size=LARGEST)
        # What is not msgpack-RPC, and a client that is gone, end the connection and nothing else.
        with contextlib.suppress(OSError, ValueError, TypeError, msgpack.UnpackException):
            while received := self.request.recv(1 << 16):
                unpacker.feed(received)
                for kind, number, method, arguments in unpacker:
                    if kind != REQUEST:
                        return
                    error, result = self._answer(method, arguments)
                    self.request.sendall(msgpack.packb([RESPONSE, number, error, result], default=plain))

    def finish(self) -> None:
        self.server.connections.discard(self.request)

    def _answer(self, method: str, arguments: list) -> tuple[str | None, Any]:
        if method not in CALLS:
            return f"this simulator does not answer {method}, only {', '.join(CALLS)}", None
        call: Callable[..., Any] = getattr(self.server.simulator, method)
        try:
            with self.server.lock:
                return None, call(*arguments)
        except Exception as error:  # whatever a client sends, it is told, and the simulator goes on
            return f"{type(error).__name__}: {error}", None


def _check_camera(name: str) -> None:
    if name not in CAMERAS:
        raise ValueError(f"no camera {name!r}, there is {' also called '.join(CAMERAS)}")


def _pose(pose: Tensor) -> dict:
    x, y, z, w = geometry.matrix_to_quaternion(pose[:3, :3]).tolist()
    return {"position": dict(zip(("x_val", "y_val", "z_val"), pose[:3, 3].tolist())),
            "orientation": {"w_val": w, "x_val": x, "y_val": y, "z_val": z}}


def _bytes(image: Tensor, compress: bool) -> bytes:
    """A png, or pixels in B, G, R order."""
    if compress:
        return io.png_bytes(image)
    return np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy()[..., ::-1]).tobytes()
