"""What one replay has of its own: whose rows come, how data time goes by, what breaks, and what its report shows."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.warehouse import Warehouse
from infra.replay.incident import Incident, list_incidents


@dataclass(frozen=True, kw_only=True)
class ReplayedSource:
    """An operator's tables, and the rows that come into them. Each table has a column known_at.

    `identities` are the tables and their primary keys; `create` makes them without keys. An event is entered in the
    table `events` so long before it comes. `clock` is the table that says until when all is told; `lock` is any number
    of ours. `read_rows` gives each table's rows in the order in which they became known.
    """

    create: str
    identities: Mapping[str, tuple[str, ...]]
    events: str
    entered_before: timedelta
    clock: str
    lock: int
    read_rows: Callable[[], Mapping[str, pa.Table]]


@dataclass(frozen=True, kw_only=True)
class Period:
    """A time of which the report tells by itself, [start, end) in days, and what the replay promises of it.

    `expects`: block, some partition was blocked and none retrained; retrain, some was retrained; None: nothing.
    """

    name: str
    start: date
    end: date
    expects: Literal["block", "retrain"] | None = None


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One use case's replay.

    `require_data` raises ValueError where its data is not on this machine. `seconds_per_hour` is how long an hour of
    data time takes in which events are due; None: data time goes on when a partition is wanted, for nothing here
    answers in time. `is_broken` says that the replay breaks a feed on purpose. By `retrained_within` weeks some retrain
    must have been judged (None: it may take longer).
    """

    use_case: str
    source: ReplayedSource
    require_data: Callable[[], object]
    train_until: date
    seconds_per_hour: float | None
    is_broken: bool
    retrained_within: int | None
    metrics: tuple[str, ...]
    periods: tuple[Period, ...]

    def list_injected(self, source: Warehouse) -> list[Incident]:
        """The incidents that this replay injected so far."""
        return list_incidents(source) if self.is_broken else []


def add_primary_keys(at: cursor, identities: Mapping[str, tuple[str, ...]]) -> None:
    """Give each of these tables that has none its primary key, in the caller's transaction."""
    for table, columns in identities.items():
        at.execute("select from pg_constraint where conrelid = %s::regclass and contype = 'p'", (table,))
        if at.fetchone() is None:
            names = sql.SQL(", ").join(map(sql.Identifier, columns))
            at.execute(sql.SQL("alter table {} add primary key ({})").format(sql.Identifier(table), names))


def count_tables(at: cursor, tables: Iterable[str]) -> dict[str, int]:
    """How many rows each of these tables holds, in the caller's transaction."""
    counts = [sql.SQL("(select count(*) from {0}) as {0}").format(sql.Identifier(table)) for table in tables]
    at.execute(sql.SQL("select {}").format(sql.SQL(", ").join(counts)))
    [row] = at.fetchall()
    return dict(row)
