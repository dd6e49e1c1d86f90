"""Keeps the online store at what a reader tells: rows, their series, and how far was read, in one transaction."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import NamedTuple, Self

import psycopg2.extras
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.warehouse import Fence
from features import FeatureSet
from features.followed import ChangedSeries, FollowedSeries
from features.stream_change import StreamChange
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.followed_rows import FollowedRow, FollowedSource, Identities, read_followed
from tasks.build_features.followed_series import apply_rows, build_followed_series
from tasks.build_features.followed_versions import ToldStep, keep_versions
from tasks.build_features.learnt_features import iterate_definitions_in_use
from tasks.build_features.online_features import refresh_store
from tasks.ingest.late import open_retake
from tasks.stream.known_events import EventChanges, EventList, write_events
from tasks.stream.source_step import SourceStep
from tasks.stream.state import StreamState, advance_stream

_PAGE_ROWS = 500
_MICROSECOND = timedelta(microseconds=1)
_REVISIONS = """
select definition, revision, as_of, snapshot_version, split is not null as is_parted from online_state
where use_case = %s order by 1"""
_LOCK = "select from stream_state where use_case = %s for update"
_KEEP = """
insert into followed_rows (use_case, table_name, identity, available_at, row_data, reasons, changes) values %s
on conflict (use_case, table_name, identity) do update set available_at = excluded.available_at,
    row_data = excluded.row_data, reasons = excluded.reasons, changes = excluded.changes"""
_SETTLED = """
insert into online_series (use_case, definition, key, payload, changed) values %s
on conflict (use_case, definition, key) do update set payload = excluded.payload, changed = excluded.changed"""
_RECENT = """
insert into online_series (use_case, definition, key, recent, changed) values %s
on conflict (use_case, definition, key) do update set recent = excluded.recent, changed = excluded.changed"""
_TELL = """
update online_state set known_until = %s, changes = %s, stopped = %s, refreshed_at = now()
where use_case = %s and definition = any(%s)"""


class StoreRebuilt(Exception):  # noqa: N818  # not an error
    """The online store was refreshed since: what is followed begins from there."""


class NothingToFollow(Exception):  # noqa: N818  # not an error
    """The online store holds nothing yet: it is filled when the first dataset was built."""


class _Revision(NamedTuple):
    """What the store holds of one definition: a refresh changes it, and the stream does not."""

    revision: int
    as_of: datetime
    snapshot_version: str
    is_parted: bool


class _SortedStep(NamedTuple):
    """Rows to keep; those of partitions that were taken, which stay out; and the starts of partitions to take again."""

    fresh: list[FollowedRow]
    late: list[FollowedRow]
    gone: list[tuple[str, str]]
    retakes: set[datetime]


class StreamSession:
    """The series of every definition in use, from one dataset on; it ends when the store is refreshed.

    After an error it is to be left: what is in memory may be ahead of what was kept.
    """

    def __init__(
        self, use_case: UseCase, outside: Outside, fence: Fence, identities: Identities, state: StreamState
    ) -> None:
        self._use_case, self._outside, self._fence, self._identities = use_case, outside, fence, identities
        self._state = state
        self._series: list[tuple[FeatureSet, FollowedSeries]] = []
        self._events: EventList | None = None

    def __enter__(self) -> Self:
        """Load the dataset that the store is at, and what was followed since.

        Raises:
            NothingToFollow: there is none yet.
        """
        snapshot = self._find_snapshot()
        if not all(self._revisions[digest].is_parted for digest in self._followed):  # filled before it was followed
            refresh_store(self._use_case, snapshot, self._outside)
            snapshot = self._find_snapshot()
        with ExitStack() as stack:
            with self._outside.warehouse.transaction() as at:
                followed = read_followed(at, self._use_case, snapshot.end)
            assert followed is not None  # begun
            self._held = {(row.table, row.identity): row for row in followed.rows}
            for definition in iterate_definitions_in_use(self._use_case, self._outside, lost=[]):
                if definition.digest() in self._followed:
                    self._series.append((definition, self._build(stack, definition, snapshot, followed)))
            self._stack = stack.pop_all()
        return self

    def _build(
        self, stack: ExitStack, definition: FeatureSet, snapshot: Snapshot, followed: FollowedSource
    ) -> FollowedSeries:
        endpoint = self._use_case.endpoint
        asks = endpoint is not None and endpoint.answers is not None and self._events is None
        series = build_followed_series(self._use_case, definition, snapshot, self._outside, self._identities, asks=asks)
        stack.enter_context(closing(series))
        apply_rows(series, self._use_case, definition, followed.rows, self._identities)
        if asks:
            self._events = EventList(definition, series, self._state.known_until)
        return series

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def since(self) -> datetime:
        """What became known from here on is followed; what did before is in the dataset."""
        return self._since

    @property
    def held(self) -> Mapping[tuple[str, str], FollowedRow]:
        """The rows that were kept, by table and identity."""
        return self._held

    def take(self, step: SourceStep, publication_oid: int | None = None, *, missed: Collection[str] = ()) -> None:
        """Keep a step, and bring the store to it.

        Of the tables that are `missed` something is lacking: answers say so, and whoever begins anew reads all tables.

        Raises:
            StoreRebuilt: the store was refreshed.
            FencedOut: another follows.
        """
        told = self._sort_out(step)
        number = self._state.changes + bool(told.fresh)
        changed = [
            (definition.digest(), apply_rows(series, self._use_case, definition, told.fresh, self._identities))
            for definition, series in (self._series if told.fresh else ())
        ]
        known_until = _latest(self._state.known_until, step.known_until)
        digests = [definition.digest() for definition, _ in self._series]
        answers_since = None if self._events is None else self._state.answers_since or known_until
        events = self._find_events(answers_since, [series.events for _, series in changed])
        at_step = ToldStep(
            changes=number,
            position=step.place.position if step.place else None,
            known_before=self._state.known_until,
            known_until=known_until,
        )
        state = StreamState(
            place=None if missed else step.place or self._state.place,
            publication_oid=publication_oid,
            known_until=known_until,
            changes=number,
            answers_since=answers_since,
        )

        def commit() -> None:
            with self._outside.warehouse.transaction(self._fence) as at:
                self._refuse_refreshed(at)
                self._keep(at, told.fresh, number)
                keep_versions(at, self._use_case, at_step, followed=told.fresh, told=told.late, gone=told.gone)
                for digest, series in changed:
                    self._write(at, digest, series, number)
                if events is not None:
                    write_events(at, self._use_case, events)
                reached = _latest(known_until, self._since)
                at.execute(_TELL, (reached, number, sorted(missed), self._use_case.name, digests))
                for start in told.retakes:
                    open_retake(at, self._use_case, start)
                advance_stream(at, self._use_case, state)

        self._outside.warehouse.retry_transaction(commit)
        self._state = state
        self._held |= {(row.table, row.identity): row for row in told.fresh}

    def _find_events(self, since: datetime | None, changed: Sequence[StreamChange | None]) -> EventChanges | None:
        """What changes of the known events, where they are answered by themselves."""
        if self._events is None or since is None:
            return None
        return self._events.find_changed(since, next((change for change in changed if change is not None), None))

    def _sort_out(self, step: SourceStep) -> _SortedStep:
        """What is to be done with a step; a partition is taken again where it is not as it was taken."""
        fresh, late, gone, retakes = sorted_step = _SortedStep([], [], [], set())
        grid = self._use_case.grid
        for place, row in step.rows.items():
            if row == self._held.get(place):
                continue
            if row.available_at >= self._since:
                fresh.append(row)
            else:
                late.append(row)
                retakes.add(grid.containing(row.available_at).start)
                fresh += self._bury(place)  # it was moved back
        held = (place for place in self._held if place[0] in step.truncated and place not in step.rows)
        for place in sorted({*step.gone, *held}):
            fresh += self._bury(place)
            if place not in self._held:
                gone.append(place)
                retakes |= self._find_last_partition()
        if step.truncated:
            retakes |= self._find_last_partition()
        return sorted_step

    def _bury(self, place: tuple[str, str]) -> list[FollowedRow]:
        held = self._held.get(place)
        return [replace(held, row_data=None, reasons=None)] if held is not None and held.row_data is not None else []

    def _find_last_partition(self) -> set[datetime]:
        """Of a row that is gone, when it became known is not told: comparing one partition compares the latest ones."""
        return {self._use_case.grid.containing(self._since - _MICROSECOND).start}

    def _keep(self, at: cursor, rows: Sequence[FollowedRow], number: int) -> None:
        values = [
            (self._use_case.name, row.table, row.identity, row.available_at, row.row_data, _list(row.reasons), number)
            for row in rows
        ]
        psycopg2.extras.execute_values(
            at, _KEEP, values, template="(%s, %s, %s, %s, %s, %s::text[], %s)", page_size=_PAGE_ROWS
        )

    def _write(self, at: cursor, digest: str, series: ChangedSeries, number: int) -> None:
        for statement, payloads in ((_SETTLED, series.settled), (_RECENT, series.recent)):
            values = [(self._use_case.name, digest, key, payload, number) for key, payload in sorted(payloads.items())]
            psycopg2.extras.execute_values(
                at, statement, values, template="(%s, %s, %s, %s::bytea, %s)", page_size=_PAGE_ROWS
            )

    def _find_snapshot(self) -> Snapshot:
        """The dataset that the store was refreshed to last; definitions that stayed behind it are not followed."""
        self._revisions = self._read_revisions()
        if not self._revisions:
            raise NothingToFollow(f"{self._use_case.name}: the online store holds nothing yet")
        latest = max(self._revisions.values(), key=lambda revision: revision.as_of)
        self._since = latest.as_of
        self._followed = [d for d, each in self._revisions.items() if each.snapshot_version == latest.snapshot_version]
        return dataset.find_snapshot(latest.snapshot_version, self._use_case, self._outside)

    def _read_revisions(self) -> dict[str, _Revision]:
        with self._outside.warehouse.transaction() as at:
            at.execute(_REVISIONS, (self._use_case.name,))
            return _as_revisions(at)

    def _refuse_refreshed(self, at: cursor) -> None:
        at.execute(_LOCK, (self._use_case.name,))  # as a refresh does, before it touches the store
        at.execute(f"{_REVISIONS} for update", (self._use_case.name,))
        if _as_revisions(at) != self._revisions:
            raise StoreRebuilt


def _as_revisions(at: cursor) -> dict[str, _Revision]:
    return {digest: _Revision(*others) for digest, *others in at.fetchall()}


def _latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)


def _list(reasons: Iterable[str] | None) -> list[str] | None:
    return None if reasons is None else list(reasons)
