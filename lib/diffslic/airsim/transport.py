"""The wire between AirSim's client and its simulator: msgpack-RPC over one socket, one thing at a time.

The client of the ``airsim`` package runs an event loop of its own; a notebook's kernel is one already, and dies of the
second. Here nothing runs in the background: a call writes its request and reads until its answer is there.
"""

import socket
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
        ConnectionError: nobody listens there.
    """

    def __init__(self, host: str = HOST, port: int = PORT, timeout: float = 60.0) -> None:
        self.place, self.timeout = f"{host}:{port}", timeout
        try:
            self._socket = socket.create_connection((host, port), timeout)
        except OSError as error:
            raise ConnectionError(f"no simulator answers at {self.place} ({error.strerror or error}); start AirSim, "
                                  f"or: diffslic airsim-server --port {port}") from error
        self._unpacker = msgpack.Unpacker(max_buffer_size=LARGEST, unicode_errors="surrogateescape")
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
            self._socket.sendall(message)
        except OSError as error:
            raise ConnectionError(f"the simulator at {self.place} is gone ({error.strerror or error})") from error
        return Answer(self, self._number, method)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def answer(self, number: int, method: str) -> Any:
        """The answer to request ``number``; those of others that come before it are kept for them."""
        while number not in self._answers:
            try:
                received = self._socket.recv(1 << 20)
            except TimeoutError:
                raise TimeoutError(f"the simulator at {self.place} did not answer {method} within "
                                   f"{self.timeout:g} s") from None
            except OSError as error:
                raise ConnectionError(f"the simulator at {self.place} is gone ({error.strerror or error})") from error
            if not received:
                raise ConnectionError(f"the simulator at {self.place} closed the connection during {method}")
            self._unpacker.feed(received)
            for message in self._unpacker:
                if not isinstance(message, list) or len(message) != 4 or message[0] != RESPONSE:
                    raise ConnectionError(f"what listens at {self.place} is no simulator: it does not speak "
                                          "msgpack-RPC")
                self._answers[message[1]] = message[2], message[3]
        error, result = self._answers.pop(number)
        if error is not None:
            raise SimulatorError(f"{method}: {error}")
        return result


class Answer:
    """An answer that may not have come yet."""

    def __init__(self, transport: Transport, number: int, method: str) -> None:
        self._transport, self._request = transport, (number, method)

    def get(self) -> Any:
        """Wait for it; once only."""
        return self._transport.answer(*self._request)

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
    server, least = client.getServerVersion(), client.getMinRequiredClientVersion()
    ours, least_server = client.getClientVersion(), client.getMinRequiredServerVersion()
    if server < least_server or ours < least:
        client.client.close()
        raise ConnectionError(f"the simulator at {host}:{port} is of version {server} and wants clients from {least}; "
                              f"this client is of version {ours} and wants simulators from {least_server}")
    return client


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
    """What msgpack cannot write itself: the package's own types, and numbers of numpy."""
    if hasattr(value, "to_msgpack"):
        return value.to_msgpack()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot send a {type(value).__name__} to the simulator")
