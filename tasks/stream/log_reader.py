"""Reads a source by its log: every transaction of the published tables, in the order of their commits.

Where nothing was read before, what the tables hold already is read first, after the slot was made, so that no change
lies between. What is read twice by this comes to the same: the log goes on to the last state of each row.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Self

from psycopg2 import sql

from adapters.errors import PublicationGone, SlotGone
from adapters.pgoutput import Relation, RowChange, convert_rows
from adapters.replication import ReplicationFollower
from adapters.replication_pieces import Idle, TransactionPiece, skip_until
from adapters.replication_setup import create_slot, drop_slot, inspect_slot
from adapters.warehouse import Warehouse
from pipeline.spec import UseCase
from tasks.ingest.source_rows import name_sql, relation_sql
from tasks.stream.piece_rows import PieceRows
from tasks.stream.read_tables import Held, TablesRead, read_tables, read_time
from tasks.stream.source_step import LogPlace, SourceStep
from tasks.stream.source_tables import SourceTables

_ROWS_AT_ONCE = 10_000
_GATHER_SECONDS = 0.02  # what is committed meanwhile is one step
_MOST_GATHER_SECONDS = 0.1  # so is a backlog, as far as it is read by then
_EVER = datetime(9999, 1, 1, tzinfo=UTC)
_LOOK_SECONDS = 60.0  # at the publication: one that is made anew leaves a gap without a word


def slot_name(use_case: UseCase) -> str:
    """The slot, and the publication, of a use case."""
    return f"windsock_{use_case.name}"


@dataclass(frozen=True, kw_only=True)
class LogStart:
    """Where a reader begins: what was read before, and the rows that were kept of what became known since a moment."""

    place: LogPlace | None
    publication_oid: int | None
    since: datetime
    held: Held


class LogReader:
    """Steps of a source's log. It begins again behind what was settled."""

    def __init__(self, dsn: str, tables: SourceTables, start: LogStart) -> None:
        self._dsn, self._tables, self._start, self._use_case = dsn, tables, start, tables.use_case
        self._source = Warehouse(dsn, what="followed source", is_source=True)
        self._held = start.place or LogPlace(position=0, number=-1)
        self._stack = ExitStack()
        self._follower: ReplicationFollower | None = None
        self._unread: Iterator[SourceStep] = iter(())
        self._unpublished = set[str]()
        self._latest: TransactionPiece | Idle | None = None
        self._relations = dict[str, Relation]()
        self._told: datetime | None = None  # by the watermark, in a transaction that has not come to its end
        self.publication_oid = start.publication_oid
        self.is_reading_tables = start.place is None

    def __enter__(self) -> Self:
        """Begin.

        Raises:
            SlotGone, PublicationGone: as they say; what was missed is to be had from the tables.
            Unavailable: another follower has the slot, or the source does not answer.
            Refused: it lets us not in.
        """
        if self._start.place is None:
            self._begin_slot(slot_name(self._use_case))
            self._unread = self._begin_tables()
        else:
            self._refuse_restored(self._start.place)
        self._look()
        return self

    def _refuse_restored(self, place: LogPlace) -> None:
        """A source that was restored from a copy with its slot would be skipped up to where it was read before."""
        with self._source.transaction() as at:
            at.execute("select pg_current_wal_lsn() - '0/0' < %s", (place.position,))
            [is_behind] = at.fetchone() or (False,)
        if is_behind:
            raise SlotGone("the source's log ends before what was read of it: it was restored")

    def _open(self) -> ReplicationFollower:
        """The session with the slot, begun once the tables were read: a source drops one that says nothing for long."""
        if self._follower is None:
            name = slot_name(self._use_case)
            follower = ReplicationFollower(
                self._dsn,
                name,
                name,
                rows_at_once=_ROWS_AT_ONCE,
                publication_oid=self.publication_oid,
                name_table=self._use_case.source.find_table,
            )
            self._follower = self._stack.enter_context(follower)
        return self._follower

    def _begin_slot(self, name: str) -> None:
        """A new one: what an old one would send is older than what the tables are about to tell."""
        with self._source.transaction() as at:
            drop_slot(at, name)
        with self._source.transaction() as at:
            create_slot(at, name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def read(self, timeout_seconds: float) -> SourceStep | None:
        """The next step: what has come, and what is committed within a moment, as far as that is read soon.

        Raises:
            SlotGone, PublicationGone: as they say.
            Unavailable: the session has ended; another may do better.
        """
        if time.monotonic() > self._look_at:
            self._look()
        if (step := next(self._unread, None)) is not None:
            return step
        follower = self._open()
        answer = follower.read(timeout_seconds)
        if answer is None:
            return None
        rows = PieceRows(self._use_case, self._tables, self._relations, self._fetch_values)
        began, known_until = time.monotonic(), None
        while answer is not None:
            self._latest = answer
            known_until = self._take(answer, rows) or known_until
            taken = time.monotonic() - began
            is_more = taken < _MOST_GATHER_SECONDS and rows.count < _ROWS_AT_ONCE
            answer = follower.read(max(0.0, _GATHER_SECONDS - taken)) if is_more else None
        return replace(rows.make_step(), known_until=known_until, place=self._held)

    def settle(self, step: SourceStep) -> None:
        """Confirm to the source what was read, so that it need keep it no longer."""
        if self._latest is not None and self._follower is not None and step.place == self._held:
            self._follower.acknowledge(self._latest)

    def _take(self, answer: TransactionPiece | Idle, rows: PieceRows) -> datetime | None:
        """Add a piece to a step; until when all is known after it."""
        source = self._use_case.source
        if isinstance(answer, Idle):
            self._held = max(self._held, LogPlace(position=answer.position, number=-1), key=_order)
            return answer.server_time - source.horizon if answer.is_caught_up and source.watermark is None else None
        begin = skip_until(answer, _order(self._held)).first_number
        for event in answer.events:
            if isinstance(event, Relation):
                self._relations[event.table] = event
                continue
            if moment := self._read_watermark(event):
                self._told = max(moment, self._told or moment)
            if event.table in source.tables and event.number >= begin:
                rows.add(event)
        count = sum(isinstance(event, RowChange) for event in answer.events)
        place = LogPlace(position=answer.position, number=answer.first_number + count - 1)
        self._held = max(self._held, place, key=_order)
        if not answer.is_last:
            return None
        told, self._told = self._told, None
        return told if source.watermark else answer.committed_at - source.horizon

    def _read_watermark(self, event: RowChange) -> datetime | None:
        watermark = self._use_case.source.watermark
        if watermark is None or event.table != watermark.table or not (event.row or {}).get(watermark.column):
            return None
        told = convert_rows([event.row or {}], self._relations[event.table].select([watermark.column]))
        [moment] = told[watermark.column].to_pylist()
        if isinstance(moment, datetime) and moment.tzinfo is None:
            raise ValueError(f"source.watermark: {watermark.column} has no time zone: make it a timestamp with one")
        return moment.astimezone(UTC) if isinstance(moment, datetime) else None

    def _begin_tables(self) -> Iterator[SourceStep]:
        """What the tables hold, beside what was kept: where nothing of the log was read before."""
        lower, known_until = self._start.since, None
        while lower < _EVER:
            read, told = self._source.retry_transaction(partial(self._read_tables, lower))
            known_until, lower = known_until or told, read.until
            self.is_reading_tables = lower < _EVER
            yield replace(read.step, known_until=known_until, place=self._held) if lower == _EVER else read.step

    def _read_tables(self, lower: datetime) -> tuple[TablesRead, datetime]:
        """One part of it, and until when all was known."""
        with self._source.transaction(snapshot=True) as at:
            told = read_time(at, self._use_case) - self._use_case.source.horizon
            return read_tables(at, self._tables, self._start.held, lower, _EVER), told

    def _look(self) -> None:
        """Compare the publication with the one that was followed before, and its tables with ours."""
        name = slot_name(self._use_case)
        with self._source.transaction() as at:
            state = inspect_slot(at, name, name)
        if state is None:
            raise SlotGone(f"there is no replication slot {name}")
        if state.publication_oid is None:
            raise PublicationGone(f"there is no publication {name}: tasks.stream.prepare_source makes it")
        if self.publication_oid not in (None, state.publication_oid):
            raise PublicationGone(f"the publication {name} was dropped and made anew")
        self.publication_oid = state.publication_oid
        source = self._use_case.source
        published = {source.find_table(*relation) for relation in state.relations}
        for table in source.followed_tables - published:
            self._tables.stop(table, f"it is not in the publication {name}, or was made anew since")
        self._tables.mended |= self._unpublished & published
        self._unpublished = source.followed_tables - published
        self._look_at = time.monotonic() + _LOOK_SECONDS

    def _fetch_values(self, table: str, key: Mapping[str, str | None], columns: Sequence[str]) -> dict[str, str | None]:
        """Large values that the log leaves out because they did not change, as text; as they are now."""
        query = sql.SQL("select {} from {} where {}").format(
            sql.SQL(", ").join(sql.SQL("{}::text").format(name_sql(name)) for name in columns),
            relation_sql(self._use_case, table),
            sql.SQL(" and ").join(sql.SQL("{} = %s").format(name_sql(name)) for name in key),
        )
        with self._source.transaction() as at:
            at.execute(query, list(key.values()))
            row = at.fetchone()
        return dict(zip(columns, row or [None] * len(columns), strict=True))


def _order(place: LogPlace) -> tuple[int, int]:
    return place.position, place.number
