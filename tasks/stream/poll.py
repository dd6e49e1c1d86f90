"""Reads a source by asking its tables: what became known lately is read each time, and compared with what is kept."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Self

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor

from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow
from tasks.ingest.land import extraction
from tasks.stream.source_step import SourceStep
from tasks.stream.source_tables import SourceTables

_ROWS_AT_ONCE = 20_000  # of a table; a step ends where that many are exceeded
_EVERY_SECONDS = 0.5
Held = dict[tuple[str, str], FollowedRow]


class PollReader:
    """Steps of the tables themselves: each reads from the horizon on, and says what differs from what was kept.

    So a row that is committed within the horizon after it became known is found, and so are one that was changed there
    and one that was deleted. Two of one identity at once are one: the greatest.
    """

    publication_oid: int | None = None  # it reads no log

    def __init__(
        self, tables: SourceTables, *, since: datetime, held: Sequence[FollowedRow], stopped: threading.Event
    ) -> None:
        """`held` are the rows that were kept of those that became known from `since` on."""
        self._use_case, self._source = tables.use_case, tables.outside.source
        self._tables, self._stopped = tables, stopped
        self._lower, self._next_at = since, 0.0
        self._held = {(row.table, row.identity): row for row in held}

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
            until = find_end(at, self._use_case, self._lower, told)
            rows, unread = read_rows(at, self._use_case, self._tables, self._lower, until)
        for name in self._tables.stopped - unread:  # read from where it was stopped
            self._tables.resume(name)
        held = {
            place: row
            for place, row in self._held.items()
            if row.available_at < until and row.row_data is not None and place[0] not in unread
        }
        return SourceStep(
            rows={place: row for place, row in rows.items() if held.get(place) != row},
            gone=frozenset(held.keys() - rows.keys()),
            known_until=min(until, told - timedelta(seconds=self._horizon_seconds)),
        )

    @property
    def _horizon_seconds(self) -> float:
        """A watermark says itself what is known."""
        source = self._use_case.source
        return 0 if source.watermark else source.horizon_seconds


def read_time(at: cursor, use_case: UseCase) -> datetime:
    """What the source says of time: its clock, or the watermark of its data."""
    watermark = use_case.source.watermark
    if watermark is None:
        at.execute("select clock_timestamp()")
    else:
        at.execute(
            sql.SQL("select max({}) from {}").format(sql.Identifier(watermark.column), sql.Identifier(watermark.table))
        )
    [moment] = at.fetchone() or (None,)
    if moment is None:
        return datetime(1970, 1, 1, tzinfo=UTC)  # a watermark that says nothing yet: nothing is known
    assert isinstance(moment, datetime)  # by the column's type
    return moment.astimezone(UTC)


def read_rows(
    at: cursor, use_case: UseCase, tables: SourceTables, lower: datetime, until: datetime
) -> tuple[Held, set[str]]:
    """The rows that became known in an interval, and the tables of which they could not be read."""
    rows, unread = Held(), set[str]()
    for name, table in use_case.source.tables.items():
        try:
            with _savepoint(at):
                raw = tables.outside.source.copy_out(extraction(name, table), (lower, until), at=at)
        except psycopg2.ProgrammingError as error:
            tables.stop(name, str(error).strip().splitlines()[0])
            unread.add(name)
            continue
        if (kept := tables.keep_rows(name, raw)) is None:
            unread.add(name)
            continue
        for row in sorted(kept, key=lambda row: row.row_data or ""):
            rows[name, row.identity] = row
    return rows, unread


def find_end(at: cursor, use_case: UseCase, lower: datetime, upper: datetime) -> datetime:
    """Up to where a step reads, so that it holds about so many rows at most."""
    query = "select {known} from {table} where {known} >= %s and {known} < %s order by 1 offset %s limit 1"
    until = upper
    for name, table in use_case.source.tables.items():
        names = {"known": sql.Identifier(table.available_at), "table": sql.Identifier(name)}
        with suppress(psycopg2.ProgrammingError), _savepoint(at):  # told of where its rows are read
            at.execute(sql.SQL(query).format(**names), (lower, until, _ROWS_AT_ONCE))
            if row := at.fetchone():
                until = max(row[0].astimezone(UTC), lower + timedelta(microseconds=1))
    return until


@contextmanager
def _savepoint(at: cursor) -> Iterator[None]:
    """What fails in here does not end the transaction."""
    at.execute("savepoint reading")
    try:
        yield
    except psycopg2.ProgrammingError:
        at.execute("rollback to savepoint reading")
        raise
    at.execute("release savepoint reading")
