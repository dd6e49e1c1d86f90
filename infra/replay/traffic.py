"""Operators who ask as time goes by: of events whose prediction is due, one a request, through the gateway."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import cycle
from types import TracebackType
from typing import Any

import features
from adapters.connect import Outside
from features.offline_requests import to_request
from infra.replay.live_source import LiveSource
from pipeline.spec import UseCase


@dataclass(frozen=True, kw_only=True)
class ClientTally:
    """Steps of data time asked about, requests made, those that failed, and those that the gateway answered itself."""

    steps: int = 0
    requests: int = 0
    failed: int = 0
    static: int = 0

    def with_request(self, status: int | None, *, static: bool) -> "ClientTally":
        """One request more."""
        return replace(
            self, requests=self.requests + 1, failed=self.failed + (status != 200), static=self.static + static
        )


class Traffic:
    """A thread that asks at an even pace, from the first step until the block ends; without a gateway it is silent."""

    def __init__(self, use_case: UseCase, outside: Outside, source: LiveSource, *, per_second: float = 10) -> None:
        self._use_case, self._outside, self._source, self._usual = use_case, outside, source, per_second
        self._pause = 1 / per_second
        self._definition = features.definition(use_case.name)
        self._events: Sequence[Mapping[str, Any]] = ()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="traffic", daemon=True)
        self._steps, self._tally = 0, ClientTally()  # each written by one thread only

    @property
    def tally(self) -> ClientTally:
        """The counts so far."""
        return replace(self._tally, steps=self._steps)

    def __enter__(self) -> "Traffic":
        """Start, silent until there is something to ask about."""
        if self._outside.gateway is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; the request under way is waited for."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def ask_about(self, start: datetime, end: datetime, *, per_second: float | None = None) -> None:
        """From now on ask about the events whose prediction is due in an interval."""
        known = self._source.find_due(start, end, self._use_case.time.lead)
        if self._outside.gateway is not None and known.num_rows:
            self._steps, self._pause = self._steps + 1, 1 / (per_second or self._usual)
            self._events = [to_request(self._definition, row) for row in known.to_pylist()]

    def _ask_on(self) -> None:
        while not self._over.wait(self._pause):
            events = self._events
            for event in cycle(events):
                self._ask(event)
                if self._over.wait(self._pause) or self._events is not events:
                    break

    def _ask(self, event: Mapping[str, Any]) -> None:
        gateway = self._outside.gateway
        assert gateway is not None
        try:
            reply = gateway.ask(self._use_case.name, event)
        except ConnectionError:
            self._tally = self._tally.with_request(None, static=False)
            return
        self._tally = self._tally.with_request(
            reply.status, static=isinstance(reply.body, dict) and bool(reply.body.get("fallback"))
        )
