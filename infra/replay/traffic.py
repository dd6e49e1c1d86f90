"""Operators who ask while the weeks go by: real events of the latest partition, one a request, through the gateway."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from types import TracebackType
from typing import Any

import features
from adapters.connect import Outside
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.deploy.golden import rebuild_requests


@dataclass(frozen=True, kw_only=True)
class ClientTally:
    """Weeks asked about, requests made, those that failed, and those that the gateway answered itself."""

    weeks: int = 0
    requests: int = 0
    failed: int = 0
    static: int = 0

    def with_request(self, status: int | None, *, static: bool) -> "ClientTally":
        """One request more."""
        return replace(
            self, requests=self.requests + 1, failed=self.failed + (status != 200), static=self.static + static
        )


class Traffic:
    """A thread that asks at an even pace, from `ask_about` until the block ends. Without a gateway it does nothing."""

    def __init__(self, use_case: UseCase, outside: Outside, *, per_second: float = 30) -> None:
        self._use_case, self._outside, self._per_second = use_case, outside, per_second
        self._events: Sequence[Mapping[str, Any]] = ()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask_on, name="traffic", daemon=True)
        self._weeks, self._tally = 0, ClientTally()  # each written by one thread only

    @property
    def tally(self) -> ClientTally:
        """The counts so far."""
        return replace(self._tally, weeks=self._weeks)

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

    def ask_about(self, week: Interval) -> None:
        """From now on ask about this week's events."""
        snapshot = dataset.latest_snapshot(self._use_case, self._outside)
        if self._outside.gateway is not None and snapshot is not None:
            self._weeks += 1
            definition = features.definition(self._use_case.name)
            self._events = list(rebuild_requests(self._use_case, snapshot, self._outside, week, definition).values())

    def _ask_on(self) -> None:
        while not self._over.wait(1 / self._per_second):
            events = self._events
            for event in cycle(events):
                self._ask(event)
                if self._over.wait(1 / self._per_second) or self._events is not events:
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
