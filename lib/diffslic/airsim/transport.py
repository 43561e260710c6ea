"""The wire between AirSim's client and its simulator: msgpack-RPC over one socket, one thing at a time.

The client of the ``airsim`` package runs an event loop of its own; a notebook's kernel is one already, and dies of the
second. Here nothing runs in the background: a call writes its request and reads until its answer is there.
"""

import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import airsim

HOST, PORT = "127.0.0.1", 41451  # the port is the simulator's own default
REQUEST, RESPONSE = 0, 1  # the kinds of messages
LARGEST = 2 ** 31 - 1  # bytes of an answer: a float image is many


class SimulatorError(RuntimeError):
    """The simulator answered a call with an error."""


class Transport:
    """What ``airsim.MultirotorClient`` asks of its own client: ``call`` and ``call_async``.

    Args:
        host, port: where the simulator listens.
        timeout: seconds that any answer may take.

    Raises:
        ValueError: no such port. ConnectionError: nobody listens there.
    """

    def __init__(self, host: str = HOST, port: int = PORT, timeout: float = 60.0) -> None:
        check_port(port)
        self.place, self.timeout = f"{host}:{port}", timeout
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as error:
            raise ConnectionError(f"no simulator answers at {self.place} ({error.strerror or error}); start AirSim, "
                                  f"or: diffslic airsim-server --port {port}") from error
        self._unpacker = msgpack.Unpacker(max_buffer_size=LARGEST, unicode_errors="surrogateescape")
        self._awaited: set[int] = set()  # numbers of requests whose answers somebody still waits for
        self._answers: dict[int, tuple[Any, Any]] = {}
        self._number = 0

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of the simulator.

        Raises:
            SimulatorError: it answers with an error. ConnectionError: it is gone. TimeoutError: it does not answer.
        """
        return self.call_async(method, *arguments).get()

    def call_async(self, method: str, *arguments: Any) -> "Answer":
        """As :meth:`call`, without waiting: ``.join()`` waits, ``.get()`` gives the answer."""
        self._number += 1
        message = msgpack.packb([REQUEST, self._number, method, arguments], default=plain)
        try:
            self._socket.settimeout(self.timeout)
            self._socket.sendall(message)
        except OSError as error:
            raise ConnectionError(f"the simulator at {self.place} is gone ({error.strerror or error})") from error
        self._awaited.add(self._number)
        return Answer(self, self._number, method)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def answer(self, number: int, method: str) -> tuple[Any, Any]:
        """Error and result of request ``number``; answers to others that come before it are kept for them."""
        end = time.monotonic() + self.timeout
        while number not in self._answers:
            try:
                self._socket.settimeout(max(end - time.monotonic(), 1e-3))
                received = self._socket.recv(1 << 20)
            except TimeoutError:
                self._awaited.discard(number)
                raise TimeoutError(f"the simulator at {self.place} did not answer {method} within "
                                   f"{self.timeout:g} s") from None
            except OSError as error:
                raise ConnectionError(f"the simulator at {self.place} is gone ({error.strerror or error})") from error
            if not received:
                raise ConnectionError(f"the simulator at {self.place} closed the connection during {method}")
            for came, error, result in self._messages(received):
                if came in self._awaited:
                    self._answers[came] = error, result
        self._awaited.discard(number)
        return self._answers.pop(number)

    def _messages(self, received: bytes) -> Iterator[tuple[int, Any, Any]]:
        self._unpacker.feed(received)
        try:
            for kind, number, error, result in self._unpacker:
                if kind != RESPONSE:
                    raise ValueError
                yield number, error, result
        except (TypeError, ValueError, msgpack.UnpackException):
            raise ConnectionError(f"what listens at {self.place} is no simulator: it does not speak "
                                  "msgpack-RPC") from None


class Answer:
    """An answer that may not have come yet."""

    def __init__(self, transport: Transport, number: int, method: str) -> None:
        self._transport, self._number, self._method = transport, number, method
        self._came: tuple[Any, Any] | None = None

    def get(self) -> Any:
        """Wait for it, and give the result.

        Raises:
            SimulatorError, ConnectionError, TimeoutError: see :meth:`Transport.call`.
        """
        if self._came is None:
            self._came = self._transport.answer(self._number, self._method)
        error, result = self._came
        if error is not None:
            raise SimulatorError(f"{self._method}: {error}")
        return result

    def join(self) -> None:
        """Wait until the simulator is done."""
        self.get()


def connect(host: str = HOST, port: int = PORT, timeout: float = 60.0) -> "airsim.MultirotorClient":
    """The real client of the ``airsim`` package, on a :class:`Transport`.

    Raises:
        ModuleNotFoundError: the package is not installed. ConnectionError: no simulator, or one that needs another
            version of the client.
    """
    try:
        import airsim
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("AirSim's client is not installed: pip install numpy setuptools wheel rpc-msgpack, "
                                  "then pip install --no-deps --no-build-isolation airsim==1.8.1") from error
    client = airsim.MultirotorClient.__new__(airsim.MultirotorClient)  # its constructor would start the loop
    client.client = Transport(host, port, timeout)
    try:
        server, least = client.getServerVersion(), client.getMinRequiredClientVersion()
        ours, least_server = client.getClientVersion(), client.getMinRequiredServerVersion()
        if server < least_server or ours < least:
            raise ConnectionError(f"the simulator at {host}:{port} is of version {server} and wants clients from "
                                  f"{least}; this client is of version {ours} and wants simulators from {least_server}")
    except Exception:
        client.client.close()
        raise
    return client


def check_port(port: int) -> None:
    """Refuse what is no port."""
    if not 0 <= port < 2 ** 16:
        raise ValueError(f"a port is a number from 0 to 65535, got {port}")


def color_image(response: "airsim.ImageResponse") -> Tensor:
    """(3, H, W) float32 RGB in [0, 1] of an answer with uncompressed pixels, which come as bytes in B, G, R order.

    Raises:
        ValueError: no pixels, or not as many as the answer says.
    """
    data = response.image_data_uint8
    if isinstance(data, str):  # old simulators send bytes as text
        data = data.encode("utf-8", "surrogateescape")
    height, width = response.height, response.width
    if height * width == 0 or len(data) not in (3 * height * width, 4 * height * width):
        raise ValueError(f"expected the {height}x{width} uncompressed colours of an image, got {len(data)} bytes")
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, -1)[..., 2::-1]
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def depth_image(response: "airsim.ImageResponse") -> Tensor:
    """(1, H, W) float32 metres along z of an answer of planar depth in floats.

    Raises:
        ValueError: no values, or not as many as the answer says.
    """
    values, (height, width) = response.image_data_float, (response.height, response.width)
    if not isinstance(values, list) or height * width == 0 or len(values) != height * width:
        count = len(values) if isinstance(values, list) else 0
        raise ValueError(f"expected the {height}x{width} floats of a depth image, got {count}")
    return torch.tensor(values, dtype=torch.float32).reshape(1, height, width)


def plain(value: Any) -> Any:
    """As msgpack's ``default``: what it cannot write itself: the package's own types, and numbers of numpy."""
    if hasattr(value, "to_msgpack"):
        return value.to_msgpack()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot send a {type(value).__name__} to the simulator")
