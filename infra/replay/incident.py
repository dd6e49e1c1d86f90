"""The injected incident: the weather feed sends records with every measurement empty.

It does so until its operator, who acts upon the page of the stream, has mended it; else for the whole partition.
What was injected is written down where it was done, in the source database: the two are there, or gone, together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.warehouse import Warehouse
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.stream.feed_watch import feed_fingerprint

TABLE = "weather"
KEY = ("origin", "observed_at", "known_at")
_WHAT = "the weather feed sends records with every measurement empty"
_MANIFEST = """
create table if not exists injected_incidents (
    partition_key text primary key, table_name text not null, what text not null, rows bigint not null,
    state text not null check (state in ('broken', 'mended'))
);
alter table injected_incidents add column if not exists began_at timestamptz,
    add column if not exists paged_at timestamptz
"""
_PAGE = "select raised_at from alerts where fingerprint = %s and raised_at >= %s order by raised_at limit 1"


@dataclass(frozen=True, kw_only=True)
class Incident:
    """One injected incident, as the manifest records it."""

    partition_key: str
    table_name: str
    what: str
    rows: int
    state: str  # broken | mended
    began_at: datetime | None = None  # by the clock on the wall; None: in a version of before, which watched no feed
    paged_at: datetime | None = None  # in data time, when somebody was told of it

    def describe(self) -> str:
        """What came, and how it went on."""
        paged = f"; the stream paged at {self.paged_at:%d %b %H:%M}" if self.paged_at else ""
        return f"{self.what} ({self.rows} rows{paged})"


def list_incidents(source: Warehouse) -> list[Incident]:
    """The incidents injected so far."""
    [manifest] = source.query("select to_regclass('injected_incidents') is not null as there")
    rows = source.query("select * from injected_incidents order by partition_key") if manifest["there"] else []
    return [Incident(**row) for row in rows]


class BreakingFeed:
    """The feed that breaks in one partition of a use case, and the operator who mends it so long after the page."""

    def __init__(self, use_case: UseCase, outside: Outside, partition: Interval, mended_after: timedelta) -> None:
        self._outside, self._partition, self._mended_after = outside, partition, mended_after
        self.key, self._fingerprint = use_case.grid.key(partition), feed_fingerprint(use_case.name, TABLE)
        outside.source.execute(_MANIFEST)

    def breaks_at(self, moment: datetime) -> bool:
        """Whether what it sends now is empty."""
        if not self._partition.start <= moment < self._partition.end:
            return False
        paged_at = self.note_page(moment)
        return paged_at is None or moment < paged_at + self._mended_after

    def note_page(self, moment: datetime) -> datetime | None:
        """When, in data time, somebody was first seen to be told that it broke; None: not until now, which is `moment`.

        An alert that was there before it broke is about something else.
        """
        known = next((known for known in list_incidents(self._outside.source) if known.partition_key == self.key), None)
        if known is None or known.paged_at is not None or known.began_at is None:
            return None if known is None else known.paged_at
        if not self._outside.warehouse.query(_PAGE, (self._fingerprint, known.began_at)):
            return None
        self._outside.source.execute(
            "update injected_incidents set paged_at = %s where partition_key = %s", (moment, self.key)
        )
        return moment


def _measurements(at: cursor) -> list[str]:
    at.execute(
        "select column_name from information_schema.columns "
        "where table_schema = 'public' and table_name = %s order by ordinal_position",
        (TABLE,),
    )
    return [name for (name,) in at.fetchall() if name not in KEY]


def _backup_name(partition_key: str) -> sql.Identifier:
    return sql.Identifier(f"{TABLE}_before_{partition_key.replace('-', '')}")


def break_feed(source: Warehouse, week: Interval, partition_key: str) -> Incident:
    """Empty every measurement the feed sent in a week, keeping the true records beside; twice is once."""

    def change_feed() -> None:
        with source.transaction() as at:
            begin_incident(at, partition_key)
            break_rows(at, partition_key, week)

    source.retry_transaction(change_feed)
    return next(known for known in list_incidents(source) if known.partition_key == partition_key)


def begin_incident(at: cursor, partition_key: str) -> None:
    """Write down, in the caller's transaction, that the feed breaks in a partition; twice is once."""
    at.execute(_MANIFEST)
    at.execute(
        sql.SQL("create table if not exists {} (like {})").format(_backup_name(partition_key), sql.Identifier(TABLE))
    )
    at.execute(
        "insert into injected_incidents (partition_key, table_name, what, rows, state, began_at)"
        " values (%s, %s, %s, 0, 'broken', now()) on conflict do nothing",
        (partition_key, TABLE, _WHAT),
    )


def break_rows(at: cursor, partition_key: str, interval: Interval) -> None:
    """Empty, in the caller's transaction, what the feed sent in an interval of a partition that broke; once only."""
    same = sql.SQL("(k.origin, k.observed_at, k.known_at) = (w.origin, w.observed_at, w.known_at)")
    blanks = sql.SQL(", ").join(sql.SQL("{} = null").format(sql.Identifier(name)) for name in _measurements(at))
    statement = sql.SQL(
        "with kept as (insert into {backup} select * from {feed} w where known_at >= %s and known_at < %s"
        " and not exists (select from {backup} k where {same}) returning origin, observed_at, known_at)"
        " update {feed} w set {blanks} from kept k where {same}"
    ).format(backup=_backup_name(partition_key), feed=sql.Identifier(TABLE), same=same, blanks=blanks)
    at.execute(statement, (interval.start, interval.end))
    at.execute("update injected_incidents set rows = rows + %s where partition_key = %s", (at.rowcount, partition_key))


@contextmanager
def restored_feed(source: Warehouse, partition_key: str) -> Iterator[None]:
    """Put the true records of the broken week back, as the feed's operator would; mended once the block has ended."""
    with source.transaction() as at:
        assignments = sql.SQL(", ").join(
            sql.SQL("{0} = backup.{0}").format(sql.Identifier(name)) for name in _measurements(at)
        )
        statement = sql.SQL("update {} w set {} from {} backup where w.origin = backup.origin and {}")
        same = sql.SQL("w.observed_at = backup.observed_at")
        at.execute(statement.format(sql.Identifier(TABLE), assignments, _backup_name(partition_key), same))
    yield
    source.execute("update injected_incidents set state = 'mended' where partition_key = %s", (partition_key,))
