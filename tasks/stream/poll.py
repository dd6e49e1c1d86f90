"""Reads a source by asking its tables: what became known lately is read each time, and compared with what is kept."""

import threading
import time
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Self

from tasks.stream.read_tables import Held, read_tables, read_time
from tasks.stream.source_step import SourceStep
from tasks.stream.source_tables import SourceTables

_EVERY_SECONDS = 0.5


class PollReader:
    """Steps of the tables themselves: each reads from the horizon on, and says what differs from what was kept.

    So a row that is committed within the horizon after it became known is found, and so are one that was changed there
    and one that was deleted. Two of one identity at once are one: the greatest.
    """

    publication_oid: int | None = None  # it reads no log
    is_reading_tables = False  # each step is of all that is new

    def __init__(self, tables: SourceTables, *, since: datetime, held: Held, stopped: threading.Event) -> None:
        """`held` are the rows that were kept of those that became known from `since` on."""
        self._use_case, self._source = tables.use_case, tables.outside.source
        self._tables, self._stopped = tables, stopped
        self._lower, self._next_at = since, 0.0
        self._held = dict(held)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def read(self, timeout_seconds: float) -> SourceStep | None:
        """The next step, once it is time for one."""
        pause = max(0.0, self._next_at - time.monotonic())
        if self._stopped.wait(min(pause, timeout_seconds)) or pause > timeout_seconds:
            return None
        self._next_at = time.monotonic() + _EVERY_SECONDS
        return self._source.retry_transaction(self._read)

    def settle(self, step: SourceStep) -> None:
        """What was kept is what the next step is compared with."""
        self._held |= step.rows
        for place in step.gone:
            self._held.pop(place, None)
        if step.known_until is not None and not self._tables.stopped:  # what was missed lies behind
            self._lower = max(self._lower, step.known_until)
            self._held = {place: row for place, row in self._held.items() if row.available_at >= self._lower}

    def _read(self) -> SourceStep:
        with self._source.transaction(snapshot=True) as at:
            told = read_time(at, self._use_case)
            read = read_tables(at, self._tables, self._held, self._lower, told)
        for name in self._tables.stopped - read.unread:  # read from where it was stopped
            self._tables.resume(name)
        return replace(read.step, known_until=min(read.until, told - self._use_case.source.horizon))
