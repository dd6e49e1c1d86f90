"""The rows that a source's tables hold now, beside those that were kept of them: what came, changed or went."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.errors import Unreadable
from expectations import suites
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow
from tasks.ingest.source_rows import extraction, known_sql, read_source_rows
from tasks.stream.source_step import SourceStep
from tasks.stream.source_tables import SourceTables

_ROWS_AT_ONCE = 20_000  # of a table; a step ends where that many are exceeded
_UNREADABLE = (psycopg2.ProgrammingError, psycopg2.DataError, Unreadable)
Place = tuple[str, str]  # table, identity
Held = Mapping[Place, FollowedRow]


class TablesRead(NamedTuple):
    """What a reading found, up to where it went, and the tables of which it could read nothing."""

    step: SourceStep
    until: datetime
    unread: frozenset[str]


def read_time(at: cursor, use_case: UseCase) -> datetime:
    """What the source says of time: its clock, or the watermark of its data.

    Raises:
        ValueError: the watermark has no time zone.
    """
    watermark = use_case.source.watermark
    if watermark is None:
        at.execute("select clock_timestamp()")
    else:
        relation = sql.Identifier(*use_case.source.find_relation(watermark.table))
        at.execute(sql.SQL("select max({}) from {}").format(sql.Identifier(watermark.column), relation))
    [moment] = at.fetchone() or (None,)
    if moment is None:
        return datetime(1970, 1, 1, tzinfo=UTC)  # a watermark that says nothing yet: nothing is known
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        expected = f"{watermark.column} to be a timestamp with time zone" if watermark else "a moment"
        raise ValueError(f"source.watermark: expected {expected}, got {moment!r}")
    return moment.astimezone(UTC)


def read_tables(at: cursor, tables: SourceTables, held: Held, lower: datetime, upper: datetime) -> TablesRead:
    """The first rows that became known in an interval, beside those that were kept of it."""
    until = _find_end(at, tables.use_case, lower, upper)
    rows, unread = _read_rows(at, tables, lower, until)
    before = {
        place: row
        for place, row in held.items()
        if lower <= row.available_at < until and row.row_data is not None and place[0] not in unread
    }
    changed = {place: row for place, row in rows.items() if before.get(place) != row}
    return TablesRead(SourceStep(rows=changed, gone=frozenset(before.keys() - rows.keys())), until, frozenset(unread))


def _read_rows(
    at: cursor, tables: SourceTables, lower: datetime, until: datetime
) -> tuple[dict[Place, FollowedRow], set[str]]:
    """The rows that became known in an interval, and the tables of which they could not be read."""
    rows, unread = dict[Place, FollowedRow](), set[str]()
    for name in tables.use_case.source.tables:
        try:
            with _savepoint(at):
                raw, _ = read_source_rows(tables.outside.source, at, tables.use_case, name, (lower, until))
        except _UNREADABLE as error:
            tables.stop(name, str(error).strip().splitlines()[0])
            unread.add(name)
            continue
        if (kept := tables.keep_rows(name, raw)) is None:
            unread.add(name)
            continue
        for row in sorted(kept, key=lambda row: row.row_data or ""):
            rows[name, row.identity] = row
    return rows, unread


def _find_end(at: cursor, use_case: UseCase, lower: datetime, upper: datetime) -> datetime:
    """Up to where a step reads, so that it holds about so many rows at most."""
    query = "select {known} from ({rows}) as found order by 1 offset %s limit 1"
    until = upper
    for name, table in use_case.source.tables.items():
        suite = suites(use_case.name)[name]
        names = {"known": known_sql(table, suite), "rows": extraction(name, table, suite)}
        with suppress(*_UNREADABLE), _savepoint(at):  # told of where its rows are read
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
    except _UNREADABLE:
        at.execute("rollback to savepoint reading")
        raise
    at.execute("release savepoint reading")
