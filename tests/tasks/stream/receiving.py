"""A receiver of a webhook: checks signatures by itself, answers what a test plants, and keeps what it took."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from adapters.warehouse import Warehouse
from pipeline.online import AnswerSettings, WebhookSettings
from pipeline.spec import UseCase

URL_ENV, SECRET_ENV = "WEBHOOK_OF_A_TEST", "WEBHOOK_SECRET_OF_A_TEST"
KEY = b"a key of a test, of some length"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(KEY[::-1]).decode()

_PLANTED = """
with given as (
    insert into answers_in_time (use_case, entity_key, event_time, prediction_time, model_version, score, decision,
        degraded, reasons, request_id, position, known_until, answered_at, in_time)
    select 'flights', 'UA-' || n, moment + interval '2 hours', moment, '7', n / 100.0, true, false, '{}', 'due-' || n,
        0, moment, moment + interval '1 second', true
    from generate_series(%s, %s - 1) n, lateral (select '2013-05-01 00:00+00'::timestamptz + n * interval '1 minute') m
        (moment)
    returning use_case, entity_key, event_time, prediction_time
)
insert into answer_deliveries (use_case, entity_key, event_time)
select use_case, entity_key, event_time from given order by prediction_time"""


def plant_answers(warehouse: Warehouse, first: int, end: int) -> None:
    """Answers to events first..end-1, and that they are to be sent."""
    warehouse.execute(_PLANTED, (first, end))


def sent(use_case: UseCase, *, max_answers: int = 3, timeout_seconds: float = 20) -> UseCase:
    """The use case with a webhook, which the variables of a test name."""
    webhook = WebhookSettings(
        url_env=URL_ENV, secret_env=SECRET_ENV, max_answers=max_answers, timeout_seconds=timeout_seconds
    )
    assert use_case.endpoint is not None
    answers = AnswerSettings(within_minutes=120, webhook=webhook)
    return use_case.model_copy(update={"endpoint": use_case.endpoint.model_copy(update={"answers": answers})})


@dataclass(frozen=True, kw_only=True)
class Received:
    """One request as it came in."""

    message_id: str
    moment: int
    content: bytes

    @property
    def keys(self) -> list[str]:
        return [answer["entity_key"] + answer["event_time"] for answer in self.answers]

    @property
    def answers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.content)["data"]["answers"]
        return found


@dataclass
class Receiver:
    """What came in, and what of it was taken."""

    plan: Callable[[Received], tuple[int, dict[str, str]] | None] = lambda _: None  # an answer instead of 200
    came: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/answers?of=flights"

    def list_keys(self) -> list[str]:
        """The answers that were taken, each message once, in the order of their coming."""
        first = {message.message_id: message for message in reversed(self.taken)}
        return [key for message in self.taken if first.pop(message.message_id, None) for key in message.keys]

    def judge(self, handler: BaseHTTPRequestHandler) -> tuple[int, dict[str, str]]:
        """The answer to a request; one that is not signed as it should be is not looked at."""
        content = handler.rfile.read(int(handler.headers["Content-Length"]))
        message = Received(
            message_id=handler.headers["webhook-id"], moment=int(handler.headers["webhook-timestamp"]), content=content
        )
        signed = f"{message.message_id}.{message.moment}.".encode() + content
        expected = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
        if not any(hmac.compare_digest(expected, one) for one in handler.headers["webhook-signature"].split()):
            return 401, {}
        if abs(time.time() - message.moment) > 300:
            return 401, {}
        self.came.append(message)
        if (instead := self.plan(message)) is not None:
            return instead
        self.taken.append(message)
        return 200, {}


@contextmanager
def receiving(receiver: Receiver) -> Iterator[None]:
    """It listens, at the port it had before if it had one."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            status, headers = receiver.judge(self)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            raise AssertionError("a redirect was followed")

    listening = ThreadingHTTPServer(("127.0.0.1", receiver.port), Handler)
    receiver.port = listening.server_port
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
