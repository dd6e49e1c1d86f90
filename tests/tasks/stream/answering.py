"""A server that answers as ours does: the real lookup, model and answers, behind a small HTTP server of its own."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from adapters.connect import Outside
from adapters.gateway import Gateway
from adapters.retrying import wait_until
from features import definition
from models.interval import ConformalInterval
from pipeline.settings import Settings
from pipeline.spec import UseCase
from serving.answers import Answerer, InferenceReply, ServingOptions, read_inference_request
from serving.lookup import FeatureLookup
from serving.predictor import Predictor
from serving.request import RequestReader
from tasks.stream.answer_events import answer_events
from tests.serving.online import make_bundle
from tests.tasks.stream.live import PATIENCE_SECONDS, running

FLIGHTS = definition("flights")
VERSION = "7"


@dataclass
class Server:
    """Answers events of one use case by a small real model, and keeps what it logs."""

    use_case: UseCase
    settings: Settings
    folder: Path
    asked: list[int] = field(default_factory=list)  # events of each request
    logged: list[Sequence[Mapping[str, Any]]] = field(default_factory=list)
    before: Callable[[], InferenceReply | None] = lambda: None  # an answer that it gives instead
    after: Callable[[InferenceReply], InferenceReply] = lambda reply: reply  # what becomes of its answer
    interval: ConformalInterval | None = None  # around the answers of a regression

    def __post_init__(self) -> None:
        digest = make_bundle(self.folder, interval=self.interval)
        self.predictor = Predictor.load(self.folder, sha256=digest)
        options = ServingOptions(
            use_case=self.use_case.name,
            version=VERSION,
            title=self.use_case.title,
            kind=self.use_case.target.kind,
            bundle_sha256=digest,
            lead_minutes=self.use_case.time.lead_minutes,
            threshold=0.5,
            max_events=256,
            store_timeout_ms=60_000,
            max_feature_age_hours=192,
        )
        self._answerer = Answerer(
            options=options,
            reader=RequestReader(FLIGHTS.request, max_events=256),
            lookup=FeatureLookup(
                dsn=self.settings.warehouse_dsn,
                use_case=self.use_case.name,
                definition=FLIGHTS,
                lead=self.use_case.time.lead,
                timeout_ms=60_000,
            ),
            predictor=self.predictor,
            explain=lambda _: NotImplemented,
            log=self.logged.append,
        )

    def reply(self, body: bytes, headers: dict[str, str]) -> InferenceReply:
        """What is answered, one request after the other."""
        if (instead := self.before()) is not None:
            return instead
        [reply] = self._answerer.answer([read_inference_request(body, headers)])
        self.asked.append(reply.events)
        return self.after(reply)


class AnsweredOutside(Outside):
    """The outside world, with this gateway."""

    server_url = ""

    @property
    def gateway(self) -> Gateway:  # type: ignore[override]
        return Gateway(self.server_url, "unix@none", Path("none"), "key")


@contextmanager
def serving(server: Server) -> Iterator[str]:
    """The address at which it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            reply = server.reply(body, dict(self.headers.items()))
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.server_port}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


answering = partial(running, answer_events)


def await_listed(outside: Outside) -> None:
    """Wait until the stream has begun to tell of events: those that are due from then on are answered."""

    def is_listed() -> bool:
        return bool(outside.warehouse.query("select from stream_state where answers_since is not null"))

    assert wait_until(is_listed, within_seconds=PATIENCE_SECONDS)


def list_answers(outside: Outside) -> list[dict[str, Any]]:
    return outside.warehouse.query("select * from answers_in_time order by prediction_time, entity_key")


def await_answers(outside: Outside, count: int) -> list[dict[str, Any]]:
    """Wait until so many events are answered."""
    assert wait_until(lambda: len(list_answers(outside)) >= count, within_seconds=PATIENCE_SECONDS), [
        len(list_answers(outside)),
        outside.warehouse.query("select tier, title, body from alerts"),
    ]
    return list_answers(outside)
