"""A worker that reads ahead understands what TorchServe's own reading understands, however the bytes arrive."""

import socket
import struct
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from ts.protocol import otf_message_handler

from serving import socket_buffer


class Counted(socket.socket):
    """Counts what is asked of it."""

    asked = 0

    def recv(self, *arguments: Any) -> bytes:
        self.asked += 1
        return super().recv(*arguments)


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for name in ("_retrieve_buffer", "_retrieve_inference_msg"):
        monkeypatch.setattr(otf_message_handler, name, getattr(otf_message_handler, name))
    socket_buffer.install_socket_buffer()
    return otf_message_handler


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Counted]]:
    theirs, ours = socket.socketpair()
    counted = Counted(fileno=ours.detach())
    with theirs, counted:
        yield theirs, counted


def _text(value: bytes) -> bytes:
    return struct.pack("!i", len(value)) + value


def _batch(requests: int, body: bytes = b'{"flight": 1}') -> bytes:
    """A batch as TorchServe's server writes it: `I`, then of each request its name, headers and parameters."""
    end = struct.pack("!i", -1)
    headers = b"".join(_text(name) + _text(b"value") for name in (b"host", b"x-request-id", b"x-windsock-slot"))
    one = (
        _text(b"request-name") + headers + end + _text(b"body") + _text(b"application/octet-stream") + _text(body) + end
    )
    return b"I" + one * requests + end


def _send(theirs: socket.socket, content: bytes, piece: int) -> threading.Thread:
    def send() -> None:
        for at in range(0, len(content), piece):
            theirs.sendall(content[at : at + piece])

    sender = threading.Thread(target=send)
    sender.start()
    return sender


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
def test_what_is_understood_does_not_depend_on_how_the_bytes_arrive(
    protocol: ModuleType, ends: tuple[socket.socket, Counted], piece: int
) -> None:
    theirs, ours = ends
    sender = _send(theirs, _batch(3) + _batch(64) + _batch(1, b"x" * 300_000), piece)
    batches = [protocol.retrieve_msg(ours) for _ in range(3)]
    sender.join()
    assert [(command, len(requests)) for command, requests in batches] == [(b"I", 3), (b"I", 64), (b"I", 1)]
    for _, requests in batches[:2]:
        for request in requests:
            assert request["requestId"] == b"request-name"
            assert [header["name"] for header in request["headers"]] == [b"host", b"x-request-id", b"x-windsock-slot"]
            assert [parameter["value"] for parameter in request["parameters"]] == [b'{"flight": 1}']
    assert batches[2][1][0]["parameters"][0]["value"] == b"x" * 300_000


def test_it_is_what_torchserves_own_reading_makes_of_the_same_bytes(
    ends: tuple[socket.socket, Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")  # as serving/launch.py has it
    theirs, ours = ends
    theirs.sendall(_batch(2) * 2)
    assert ours.recv(1) == b"I"
    own = otf_message_handler._retrieve_inference_msg(ours)
    assert ours.recv(1) == b"I"
    assert socket_buffer.SocketBuffer(otf_message_handler).read_batch(ours) == own


def test_a_batch_that_has_come_is_read_at_once(protocol: ModuleType, ends: tuple[socket.socket, Counted]) -> None:
    theirs, ours = ends
    theirs.sendall(_batch(64))
    protocol.retrieve_msg(ours)
    assert ours.asked == 1


def test_without_it_each_field_is_asked_for(ends: tuple[socket.socket, Counted]) -> None:
    theirs, ours = ends
    theirs.sendall(_batch(64))
    otf_message_handler.retrieve_msg(ours)
    assert ours.asked > 64 * 15


def test_a_new_connection_starts_afresh(protocol: ModuleType, ends: tuple[socket.socket, Counted]) -> None:
    theirs, ours = ends
    theirs.sendall(_batch(1) + b"I the rest never came")
    assert len(protocol.retrieve_msg(ours)[1]) == 1
    others, again = socket.socketpair()
    with others, again:
        others.sendall(_batch(2))
        assert len(protocol.retrieve_msg(again)[1]) == 2


@pytest.mark.parametrize("kept", [0, 100])
def test_a_server_that_went_away_ends_the_worker(
    protocol: ModuleType, ends: tuple[socket.socket, Counted], kept: int
) -> None:
    theirs, ours = ends
    theirs.sendall(_batch(1)[:kept])
    theirs.close()
    with pytest.raises(SystemExit) as ended:
        protocol.retrieve_msg(ours)
    assert ended.value.code == 0
