"""The operator's database as it fills: rows come into it when they became known, and its clock goes with them.

What is to come lies in the memory of this process and nowhere else: nobody can use what was not known.
"""

import io
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.csv
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.warehouse import Warehouse
from features.series import to_microseconds
from infra.replay import incident
from infra.replay.replayed import ReplayedSource, add_primary_keys, count_tables
from pipeline.partitions import Interval

_KNOWN = "known_at"
_CREATE_CLOCK = sql.SQL("create table {} (id int primary key check (id = 1), told_until timestamptz not null)")
_MICROSECOND = timedelta(microseconds=1)
logger = logging.getLogger(__name__)


class LiveSource:
    """The operator's tables and clock. All before `told_until` is in them, and nothing that became known later."""

    def __init__(self, source: Warehouse, replayed: ReplayedSource) -> None:
        self._source, self.replayed = source, replayed
        self._clock = sql.Identifier(replayed.clock)
        self._rows: Mapping[str, pa.Table] = {}
        self._known: Mapping[str, np.ndarray] = {}
        self._told_until = datetime.min.replace(tzinfo=UTC)

    @property
    def told_until(self) -> datetime:
        """The source's clock."""
        return self._told_until

    @property
    def tables(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self._rows)

    def list_known(self, name: str) -> np.ndarray:
        """When each row of a table becomes known, in microseconds since 1970, the first first."""
        return self._known[name]

    def open(self, until: datetime) -> dict[str, int]:
        """Make the tables where there are none, and fill them up to a moment; rows that each holds.

        Tables that hold the whole year, as an earlier version left them, are given keys, and a clock at its end.
        """
        self._rows = self.replayed.read_rows()
        self._known = {
            name: rows[_KNOWN].cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
            for name, rows in self._rows.items()
        }
        self._source.retry_transaction(self._create)
        self._told_until = self._read_clock()
        if self._told_until < until:
            self.tell(until)
        with self._source.transaction() as at:
            return count_tables(at, self.replayed.identities)

    def tell(self, until: datetime, *, broken: str | None = None) -> None:
        """Insert what became known from the clock to a moment, and move the clock there, in one transaction.

        In a partition that is `broken` the feed that a replay breaks (`incident`) comes without its measurements.
        """

        def insert() -> None:
            with self._source.transaction() as at:
                at.execute(sql.SQL("select told_until from {} for update").format(self._clock))
                [(since,)] = at.fetchall()
                if since >= until:
                    return  # a commit of which no answer came
                for name in self._rows:
                    self._copy(at, name, Interval(since, until))
                if broken is not None:
                    incident.begin_incident(at, broken)
                    incident.break_rows(at, broken, Interval(since, until))
                at.execute(sql.SQL("update {} set told_until = %s").format(self._clock), (until,))

        self._source.retry_transaction(insert)
        self._told_until = until

    def rows_between(self, name: str, start: datetime, end: datetime) -> pa.Table:
        """The rows of a table that became known in [start, end)."""
        first, last = np.searchsorted(self._known[name], [to_microseconds(start), to_microseconds(end)])
        return self._rows[name].slice(first, last - first)

    def find_due(self, start: datetime, end: datetime, lead: timedelta) -> pa.Table:
        """The events that are to be answered in [start, end), so long before they come; they were entered before."""
        before = self.replayed.entered_before - lead
        return self.rows_between(self.replayed.events, start - before, end - before)

    def _create(self) -> None:
        with self._source.transaction() as at:
            at.execute("select pg_advisory_xact_lock(%s)", (self.replayed.lock,))
            query = "select to_regclass(%s) is not null, to_regclass(%s) is not null"
            at.execute(query, (self.replayed.events, self.replayed.clock))
            [(is_loaded, has_clock)] = at.fetchall()
            if has_clock:
                return
            at.execute(self.replayed.create)
            add_primary_keys(at, self.replayed.identities)
            at.execute(_CREATE_CLOCK.format(self._clock))
            latest = max(int(known[-1]) for known in self._known.values())
            told_until = _moment(latest) + _MICROSECOND if is_loaded else _moment(0)
            at.execute(sql.SQL("insert into {} values (1, %s)").format(self._clock), (told_until,))

    def _read_clock(self) -> datetime:
        with self._source.transaction() as at:
            at.execute(sql.SQL("select told_until from {}").format(self._clock))
            [(told,)] = at.fetchall()
        moment: datetime = told
        return moment.astimezone(UTC)

    def _copy(self, at: cursor, name: str, interval: Interval) -> None:
        rows = self.rows_between(name, interval.start, interval.end)
        if not rows.num_rows:
            return
        sink = io.BytesIO()
        pa.csv.write_csv(rows, sink, pa.csv.WriteOptions(include_header=False))
        sink.seek(0)
        columns = sql.SQL(", ").join(map(sql.Identifier, rows.column_names))
        at.copy_expert(sql.SQL("copy {} ({}) from stdin (format csv)").format(sql.Identifier(name), columns), sink)


def _moment(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + microseconds * _MICROSECOND
