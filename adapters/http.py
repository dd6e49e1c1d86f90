"""One HTTP request to a server of our own stack: with a time limit, and with errors that say whether to repeat it.

It takes no proxy and no credentials from the environment: what it calls is on this machine or in the same network.
"""

import http.client
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from adapters.errors import Unavailable
from adapters.redaction import redact

_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class HttpReply:
    """What a server answered; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """The content as text, whatever its bytes are."""
        return self.content.decode(errors="replace")

    @property
    def is_json(self) -> bool:
        """Whether the server calls the content JSON."""
        return self.headers.get("content-type", "").startswith("application/json")

    def json(self) -> Any:
        """The document in the content."""
        return json.loads(self.content)

    @property
    def message(self) -> str:
        """What the server says is the matter, for people, without secrets."""
        try:
            document = self.json()
        except ValueError:
            return redact(self.text[:200])
        found = document.get("message") or document.get("error") or document if isinstance(document, dict) else ""
        return redact(str(found))


def send_request(
    method: str,
    url: str,
    *,
    server: str,
    content: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_seconds: float = _TIMEOUT_SECONDS,
    most_bytes: int | None = None,
) -> HttpReply:
    """The server's answer, whatever its status; a redirect is an answer like any other.

    Args:
        timeout_seconds: of silence.
        most_bytes: for a server that is not ours: no more of the content is read than so many bytes, nor longer than
            `timeout_seconds` from the connection on, also where it sends a byte now and then.

    Raises:
        Unavailable: there is no whole answer in time; `server` names who is missing.
    """
    address = urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=timeout_seconds)
    target = f"{address.path}?{address.query}" if address.query else address.path
    try:
        connection.connect()
        with nullcontext() if most_bytes is None else _broken_off(connection.sock, timeout_seconds):
            connection.request(method, target, content, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return HttpReply(answer.status, found, answer.read(most_bytes))
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(  # without a user and password
            f"{server} at {address.scheme}://{address.hostname}:{address.port} does not answer: {error!r}"
        ) from error
    finally:
        connection.close()


@contextmanager
def _broken_off(opened: socket.socket, seconds: float) -> Iterator[None]:
    """What reads this socket does not wait longer; it then has what looks like a whole answer, so this raises."""
    broken = threading.Event()

    def break_off() -> None:
        broken.set()
        with suppress(OSError):  # it was closed meanwhile
            opened.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, break_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
    if broken.is_set():
        raise TimeoutError(f"no whole answer in {seconds:g} s")


def require_success(reply: HttpReply, purpose: str) -> HttpReply:
    """The reply itself, where its status is below 400.

    Raises:
        Unavailable: the server failed; the same request may succeed later.
        ValueError: the server refused the request.
    """
    if reply.status < 400:
        return reply
    error = Unavailable if reply.status >= 500 else ValueError
    raise error(f"{purpose}: the server answered {reply.status}: {reply.message}")
