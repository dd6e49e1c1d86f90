"""Keep-alive clients that ask as fast as they are answered and write down every answer: `python -m benchmarks.clients`.

A process of its own, so that it waits for nobody. Raw sockets and no HTTP library: at some thousand answers a second
the client must not be what is measured.
"""

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import numpy as np

KEY = "BENCHMARK_KEY"  # in the environment, where no other user's `ps` shows it
# When it was sent (seconds since 1970), how long it took, the status (0: the connection broke), and who answered.
RECORD = np.dtype([("at", "f8"), ("milliseconds", "f8"), ("status", "i4"), ("version", "i4"), ("static", "i4")])
_END, _LENGTH, _VERSION, _STATIC = b"\r\n\r\n", b"content-length:", b'"model_version":"', b'"fallback": true'
_HUNG_SECONDS = 60.0


def read(path: Path) -> "np.ndarray[tuple[int], np.dtype[np.void]]":
    """Every record so far."""
    return np.frombuffer(path.read_bytes()[: path.stat().st_size // RECORD.itemsize * RECORD.itemsize], RECORD)


def _number_after(text: bytes, mark: bytes, end: bytes) -> int:
    at = text.find(mark)
    if at < 0:
        return -1
    start = at + len(mark)
    value = text[start : text.index(end, start)].strip()
    return int(value) if value.isdigit() else -1


class Client(asyncio.Protocol):
    """One connection after another, one request at a time."""

    def __init__(self, requests: Sequence[bytes], first: int, sink: BinaryIO, ended: asyncio.Event) -> None:
        self._requests, self._next, self._sink, self._ended = requests, first, sink, ended
        self._buffer = b""
        self._sent_at: float | None = None
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        """Write down a whole answer, and ask again."""
        self._buffer += data
        head, found, rest = self._buffer.partition(_END)
        length = _number_after(head.lower() + b"\r\n", _LENGTH, b"\r\n")
        if not found or len(rest) < length:
            return
        self._buffer = rest[length:]
        self._note(int(head[9:12]), _number_after(rest, _VERSION, b'"'), static=_STATIC in rest)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """An answer that will not come is a failure; a connection that was closed in between is not."""
        if self._sent_at is not None:
            self._note(0, -1, static=False)
        self._buffer = b""
        self.lost.set()

    def check(self) -> None:
        """Give up on an answer that does not come."""
        if self._sent_at is not None and time.perf_counter() - self._sent_at > _HUNG_SECONDS and self._transport:
            self._transport.abort()

    def _ask(self) -> None:
        assert self._transport is not None
        if self._ended.is_set():
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(self._requests[self._next % len(self._requests)])
        self._next += 1

    def _note(self, status: int, version: int, *, static: bool) -> None:
        assert self._sent_at is not None
        took = time.perf_counter() - self._sent_at
        self._sent_at = None
        self._sink.write(np.array([(time.time() - took, took * 1000, status, version, static)], RECORD).tobytes())


async def _keep_asking(client: Client, host: str, port: int, ended: asyncio.Event) -> None:
    while not ended.is_set():
        client.lost.clear()
        try:
            await asyncio.get_running_loop().create_connection(lambda: client, host, port)
        except OSError:
            await asyncio.sleep(0.05)  # nobody listens
        else:
            await client.lost.wait()


async def run(url: str, bodies: Path, out: Path, connections: int) -> None:
    """Until SIGTERM; what is on its way then is waited for."""
    address = urlsplit(url)
    host, port = str(address.hostname), int(address.port or 80)
    head = f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Authorization: Bearer {os.environ[KEY]}\r\n"
    requests = [f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode() for body in bodies.read_text().splitlines()]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    with out.open("wb") as sink:
        clients = [Client(requests, n * len(requests) // connections, sink, ended) for n in range(connections)]
        asking = [asyncio.create_task(_keep_asking(client, host, port, ended)) for client in clients]
        while not all(task.done() for task in asking):
            await asyncio.wait(asking, timeout=0.2)
            sink.flush()  # whoever waits for a number of answers reads the file's size
            for client in clients:
                client.check()


def main(arguments: Sequence[str]) -> int:
    """Ask until told to end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--connections", type=int, default=16)
    told = parser.parse_args(arguments)
    asyncio.run(run(told.url, told.bodies, told.out, told.connections))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
