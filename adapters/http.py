"""One HTTP request to a server of our own stack: with a time limit, and with errors that say whether to repeat it.

It takes no proxy and no credentials from the environment: what it calls is on this machine or in the same network.
"""

import http.client
import json
from collections.abc import Mapping
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
) -> HttpReply:
    """The server's answer, whatever its status.

    Raises:
        Unavailable: there is no whole answer in time; `server` names who is missing.
    """
    address = urlsplit(url)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.hostname or "", address.port, timeout=timeout_seconds)
    target = f"{address.path}?{address.query}" if address.query else address.path
    try:
        connection.request(method, target, content, dict(headers or {}))
        answer = connection.getresponse()
        return HttpReply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(  # without a user and password
            f"{server} at {address.scheme}://{address.hostname}:{address.port} does not answer: {error!r}"
        ) from error
    finally:
        connection.close()


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
