"""TorchServe's worker reads every length and every field from its socket one by one, some seventy calls a request.

Here one call takes all that has come, and the rest is read from memory, a field at a time.
"""

import socket
import struct
from types import ModuleType
from typing import Any

_LENGTH = struct.Struct("!i")
_CHUNK = 1 << 18  # bytes received at once: a batch is seldom larger


class SocketBuffer:
    """`_retrieve_buffer` and `_retrieve_inference_msg` of `ts.protocol.otf_message_handler`, for one thread."""

    def __init__(self, protocol: ModuleType) -> None:
        self._original = protocol._retrieve_buffer  # noqa: SLF001  # there is no public one, and the version is pinned
        self._connection: socket.socket | None = None
        self._held = b""
        self._at = 0

    def __call__(self, connection: socket.socket, length: int) -> bytes:
        """The next `length` bytes; a server that went away ends the process, as TorchServe has it."""
        end = self._at + length
        if end > len(self._held) or connection is not self._connection:
            end = self._receive(connection, length)
        content = self._held[self._at : end]
        self._at = end
        return content

    def read_batch(self, connection: socket.socket) -> list[dict[str, Any]]:
        """The requests of a batch, each with its headers and parameters; bodies are as they came."""
        requests = []
        while (name := self._field(connection)) is not None:
            headers, parameters = [], []
            while (header := self._field(connection)) is not None:
                headers.append({"name": header, "value": self._field(connection)})
            while (parameter := self._field(connection)) is not None:
                kind, value = self._field(connection) or b"", self._field(connection)
                parameters.append({"name": parameter.decode(), "contentType": kind.decode(), "value": value})
            requests.append({"requestId": name, "headers": headers, "parameters": parameters})
        return requests

    def _field(self, connection: socket.socket) -> bytes | None:
        """The next field, which its length precedes; None where a list ends."""
        if self._at + _LENGTH.size > len(self._held) or connection is not self._connection:
            self._receive(connection, _LENGTH.size)
        (length,) = _LENGTH.unpack_from(self._held, self._at)
        self._at += _LENGTH.size
        return None if length < 0 else self(connection, length)

    def _receive(self, connection: socket.socket, length: int) -> int:
        """Have `length` bytes; where they end."""
        if connection is not self._connection:
            self._connection, self._held, self._at = connection, b"", 0
        self._held, self._at = self._held[self._at :], 0
        while len(self._held) < length:
            self._held += connection.recv(_CHUNK) or self._original(connection, 1)
        return length


def install_socket_buffer() -> None:
    """Let this worker read ahead, from the message after this one."""
    from ts.protocol import otf_message_handler  # noqa: PLC0415  # TorchServe is there only where it serves

    buffer = SocketBuffer(otf_message_handler)
    otf_message_handler._retrieve_buffer = buffer  # noqa: SLF001
    otf_message_handler._retrieve_inference_msg = buffer.read_batch  # noqa: SLF001
