"""Keeps the online store at what a reader tells: rows, their series, and how far was read, in one transaction.

When a later dataset was built, the store is brought to it in place: nothing is read anew that did not change.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Self

import duckdb
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
from tasks.build_features.followed_series import apply_rows, build_followed_series, kept_interval, move_series
from tasks.build_features.followed_versions import ToldStep, forget_followed, keep_versions
from tasks.build_features.learnt_features import iterate_definitions_in_use
from tasks.build_features.online_features import refresh_store
from tasks.ingest.late import open_retake
from tasks.stream.feed_watch import FeedWatch
from tasks.stream.known_events import EventChanges, EventList, write_events
from tasks.stream.sorted_step import keep_rows, sort_step
from tasks.stream.source_step import SourceStep
from tasks.stream.state import StreamState, advance_stream
from tasks.stream.store_revisions import Revision, read_revisions
from tasks.stream.store_series import MOVE_STATE, TELL_CHANGES, TELL_STATE, StoreWriter

LOOK_BACKS_HELD = 2  # before what is looked back on: then a session begins anew
_LOCK = "select from stream_state where use_case = %s for update"
_LATEST = "select version from snapshots where use_case = %s order by build_order desc limit 1"


class StoreRebuilt(Exception):  # noqa: N818  # not an error
    """The online store was refreshed since: what is followed begins from there."""


class DatasetRefused(Exception):  # noqa: N818  # not an error of ours
    """The store cannot be brought to a dataset: whoever refreshes it finds the same, and says so."""


class NothingToFollow(Exception):  # noqa: N818  # not an error
    """The source's tables are yet to come; or the online store holds nothing until the first dataset was built."""


class StreamSession:
    """The series of every definition in use, from a dataset on and then from later ones, until the store is refreshed.

    After an error it is to be left: what is in memory may be ahead of what was kept.
    """

    def __init__(
        self, use_case: UseCase, outside: Outside, fence: Fence, identities: Identities, state: StreamState
    ) -> None:
        self._use_case, self._outside, self._fence, self._identities = use_case, outside, fence, identities
        self._state = state
        self._series: list[tuple[FeatureSet, FollowedSeries]] = []
        self._events: EventList | None = None
        self._latest: str | None = None  # version of the dataset built last
        self._moved_at = -1  # the step of the last move; below 0: there was none
        self._revisions = dict[str, Revision]()
        self._followed = list[str]()  # digests of definitions

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
            self._begin_at(snapshot)
            self._began = kept_interval(self._use_case, snapshot).start
            self._feeds = FeedWatch(self._use_case, self._outside, self._fence, snapshot)
            self._feeds.take(followed.rows, self._state.known_until)
            with self._outside.warehouse.transaction() as at:
                for definition, series in self._series:
                    series.mark_stored(self._writers[definition.digest()].list_stored(at))
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
        """What became known from here on is followed."""
        return self._since

    @property
    def later_dataset(self) -> str | None:
        """The version of the dataset that the store has yet to be brought to; None: of none, as last seen."""
        return None if self._latest in (None, self._snapshot.version) else self._latest

    @property
    def is_settled(self) -> bool:
        """Whether every series is cut where the store's dataset ends."""
        return all(series.is_settled for _, series in self._series)

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
        told = sort_step(step, self._held, self._since, self._use_case.grid)
        changed = {
            definition.digest(): apply_rows(series, self._use_case, definition, told.fresh, self._identities)
            for definition, series in (self._series if told.fresh else ())
        }
        known_until = _latest(self._state.known_until, step.known_until)
        answers_since = None if self._events is None else self._state.answers_since or known_until
        state = StreamState(
            place=None if missed else step.place or self._state.place,
            publication_oid=publication_oid,
            known_until=known_until,
            changes=self._state.changes + bool(told.fresh),
            answers_since=answers_since,
        )
        at_step = ToldStep(
            changes=state.changes,
            position=step.place.position if step.place else None,
            known_before=self._state.known_until,
            known_until=known_until,
        )

        def write(at: cursor) -> None:
            keep_rows(at, self._use_case, told.fresh, state.changes)
            keep_versions(at, self._use_case, at_step, followed=told.fresh, told=told.late, gone=told.gone)
            reached = _latest(known_until, self._since)
            at.execute(TELL_STATE, (reached, state.changes, sorted(missed), self._use_case.name, [*self._writers]))
            for start in told.retakes:
                open_retake(at, self._use_case, start)

        self._commit(changed, state, write)
        new = {(row.table, row.identity): row for row in told.fresh}
        self._feeds.take([row for place, row in new.items() if place not in self._held], known_until)
        self._held |= new

    def move(self) -> None:
        """Bring the store to the dataset that was built last; what it holds otherwise is new, and nothing else.

        Raises:
            DatasetRefused: its tables lack what features read.
            StoreRebuilt: the store was refreshed, or what is in memory has grown old.
            FencedOut: another follows.
        """
        assert self._latest is not None
        snapshot = dataset.find_snapshot(self._latest, self._use_case, self._outside)
        since, most = kept_interval(self._use_case, snapshot).start, max(d.look_back for d, _ in self._series)
        if self._moved_at >= 0 and since > self._began + LOOK_BACKS_HELD * most:
            raise StoreRebuilt
        held = {place: row for place, row in self._held.items() if row.available_at >= snapshot.end}
        state = replace(self._state, changes=self._state.changes + 1)
        kept = FollowedSource(identities=self._identities, changes=state.changes, rows=tuple(held.values()))
        move = partial(move_series, before=self._snapshot, snapshot=snapshot, outside=self._outside, followed=kept)
        try:
            changed = {d.digest(): move(series, self._use_case, d) for d, series in self._series}
        except (ValueError, duckdb.Error) as error:
            raise DatasetRefused(f"the store stays behind dataset {snapshot.version}: {error}") from error
        self._begin_at(snapshot)
        self._held, moved = held, self._revisions

        def write(at: cursor) -> None:
            nonlocal moved
            reached = _latest(state.known_until, snapshot.end)
            where = (self._use_case.name, [*self._writers])
            at.execute(MOVE_STATE, (since, *2 * (snapshot.end,), snapshot.version, reached, state.changes, *where))
            forget_followed(at, self._use_case, snapshot.end)
            moved = read_revisions(at, self._use_case)
            for each in self._writers.values():
                each.delete_empty(at, self._moved_at)

        self._commit(changed, state, write)
        self._revisions, self._moved_at = moved, state.changes

    def tell_of_feeds(self, *, missed: Collection[str]) -> None:
        """Page about feeds that broke, and resolve what is whole again; nobody who waits for an answer waits for it."""
        self._feeds.learn(self._snapshot)
        self._feeds.tell(self._state.known_until, missed=missed)

    def settle(self, most: int, *, is_busy: bool = False) -> None:
        """Cut some of the series where the store's dataset ends. Where nothing is left of one, that is a step.

        Where it `is_busy`, those whose changes cost much until then, or else a few.
        """
        if self.is_settled:
            return
        settled = {d.digest(): series.settle(most, is_busy=is_busy) for d, series in self._series}
        after = replace(self._state, changes=self._state.changes + 1)

        def commit() -> bool:
            with self._outside.warehouse.transaction(self._fence) as at:
                self._refuse_refreshed(at)
                emptied = [self._writers[digest].settle(at, each, after.changes) for digest, each in settled.items()]
                if any(emptied):
                    at.execute(TELL_CHANGES, (after.changes, self._use_case.name, [*self._writers]))
                    advance_stream(at, self._use_case, after)
                return any(emptied)

        if self._outside.warehouse.retry_transaction(commit):
            self._state = after

    def _commit(
        self, changed: Mapping[str, ChangedSeries], state: StreamState, write: Callable[[cursor], None]
    ) -> None:
        """All or nothing."""
        events = self._find_events(state.answers_since, [series.events for series in changed.values()])

        def commit() -> None:
            with self._outside.warehouse.transaction(self._fence) as at:
                self._refuse_refreshed(at)
                for digest, series in changed.items():
                    self._writers[digest].write(at, series, state.changes)
                if events is not None:
                    write_events(at, self._use_case, events)
                write(at)
                advance_stream(at, self._use_case, state)

        self._outside.warehouse.retry_transaction(commit)
        self._state = state

    def _find_events(self, since: datetime | None, changed: Sequence[StreamChange | None]) -> EventChanges | None:
        """What changes of the known events, where they are answered by themselves."""
        if self._events is None or since is None:
            return None
        return self._events.find_changed(since, next(filter(None, changed), None))

    def _find_snapshot(self) -> Snapshot:
        """The dataset that the store was brought to last; definitions that stayed behind it are not followed."""
        with self._outside.warehouse.transaction() as at:
            self._revisions = read_revisions(at, self._use_case)
        if not self._revisions:
            raise NothingToFollow("the online store holds nothing yet")
        latest = max(self._revisions.values(), key=lambda revision: revision.as_of)
        self._followed = [d for d, each in self._revisions.items() if each.snapshot_version == latest.snapshot_version]
        return dataset.find_snapshot(latest.snapshot_version, self._use_case, self._outside)

    def _begin_at(self, snapshot: Snapshot) -> None:
        self._snapshot, self._since = snapshot, snapshot.end
        self._writers = {
            digest: StoreWriter(use_case=self._use_case.name, definition=digest, split=snapshot.end)
            for digest in (definition.digest() for definition, _ in self._series)
        }

    def _refuse_refreshed(self, at: cursor) -> None:
        at.execute(_LOCK, (self._use_case.name,))  # as a refresh does, before it touches the store
        if read_revisions(at, self._use_case, lock="for update") != self._revisions:
            raise StoreRebuilt
        at.execute(_LATEST, (self._use_case.name,))
        [self._latest] = at.fetchone() or (None,)


def _latest(*moments: datetime | None) -> datetime | None:
    return max((moment for moment in moments if moment is not None), default=None)
