"""Keeps the online store at the latest feature dataset: for each key the packed series of its history.

It holds today's definition of the features, and those of every version that answers or may come to, so that a changed
definition is no outage. A refresh is one transaction for each: readers see the old state or the new one, whole, and
only series that changed are written. The store follows snapshots in the order they were built; a run that was overtaken
can no longer commit. Where the source is followed (`tasks/stream`), what became known since then is taken along.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path

import duckdb
import psycopg2.extras
from psycopg2.extensions import cursor

import features
from adapters.connect import Outside
from adapters.warehouse import Fence
from features.followed import ChangedSeries
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.followed_rows import FollowedSource, read_followed
from tasks.build_features.followed_series import apply_rows, build_followed_series, kept_interval
from tasks.build_features.followed_versions import forget_versions
from tasks.build_features.learnt_features import iterate_definitions_in_use
from tasks.build_features.manifest import clean_files

logger = logging.getLogger(__name__)

_PAGE_ROWS = 500
_STAGE_ROW = "(%s, %s::bytea, %s::bytea)"

_STATE = """
select s.snapshot_version, b.build_order, s.split from online_state s
left join snapshots b on b.use_case = s.use_case and b.version = s.snapshot_version
where s.use_case = %s and s.definition = %s"""

_REACHED = "select definition from online_state where use_case = %s and snapshot_version = %s"
_ORDER = "select build_order from snapshots where use_case = %s and version = %s"

_STAGED = "create temp table refreshed (key text primary key, payload bytea, recent bytea) on commit drop"

_STAGE = "insert into refreshed (key, payload, recent) values %s"

_WRITE = """
insert into online_series (use_case, definition, key, payload, recent, changed)
select %s, %s, key, payload, recent, %s from refreshed order by key
on conflict (use_case, definition, key) do update set payload = excluded.payload, recent = excluded.recent,
    changed = excluded.changed"""

_ADVANCE = """
insert into online_state (use_case, definition, since, as_of, snapshot_version, split, known_until, changes, revision)
values (%s, %s, %s, %s, %s, %s, %s, %s, 1)
on conflict (use_case, definition) do update set since = excluded.since, as_of = excluded.as_of,
    snapshot_version = excluded.snapshot_version, split = excluded.split, known_until = excluded.known_until,
    changes = greatest(online_state.changes, excluded.changes), revision = online_state.revision + 1,
    refreshed_at = now()"""

_STORED = """
select key, sha256(payload), sha256(recent) from online_series where use_case = %s and definition = %s"""

_DELETE = "delete from online_series where use_case = %s and definition = %s and key = any(%s)"

_LOCK_STREAM = "select changes, known_until from stream_state where use_case = %s for update"

# What came between the landing and now is in no dataset: the partition is compared with the source once more.
_FORGET_ROWS = """
with forgotten as (delete from followed_rows where use_case = %(use_case)s and available_at < %(end)s returning 1)
update source_checks set checked_at = '-infinity'
where use_case = %(use_case)s and exists (select from forgotten)"""

_RETIRE = """
with old as (
    select definition from online_state where use_case = %s and definition <> all(%s)
), gone as (
    delete from online_series using old where use_case = %s and online_series.definition = old.definition
)
delete from online_state using old where use_case = %s and online_state.definition = old.definition"""


@dataclass(frozen=True, kw_only=True)
class Refreshed:
    """What a refresh did to the store, in series."""

    written: int
    deleted: int
    unchanged: int

    def __add__(self, other: "Refreshed") -> "Refreshed":
        return Refreshed(
            written=self.written + other.written,
            deleted=self.deleted + other.deleted,
            unchanged=self.unchanged + other.unchanged,
        )


def find_unreached_snapshot(use_case: UseCase, outside: Outside) -> Snapshot | None:
    """The snapshot the store has yet to reach; None: it is there, or there is no endpoint, or nothing was built."""
    if use_case.endpoint is None:
        return None
    latest = dataset.latest_snapshot(use_case, outside)
    if latest is None:
        return None
    rows = outside.warehouse.query(_REACHED, (use_case.name, latest.version))
    reached = {row["definition"] for row in rows}
    in_use = iterate_definitions_in_use(use_case, outside, lost=[])
    return None if all(definition.digest() in reached for definition in in_use) else latest


@dataclass(frozen=True, kw_only=True)
class _Content:
    """The series of one definition, in their parts, and the state that they are of."""

    settled: Mapping[str, bytes]
    recent: Mapping[str, bytes]
    split: datetime | None = None  # None: in one part
    known_until: datetime | None = None
    changes: int = 0

    @cached_property
    def keys(self) -> frozenset[str]:
        """Of all series."""
        return frozenset([*self.settled, *self.recent])

    def parts(self, key: str) -> tuple[bytes | None, bytes | None]:
        """What there is of a key."""
        return self.settled.get(key), self.recent.get(key)


def refresh_store(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> Refreshed:
    """Bring the store to a snapshot, from the clean objects it was made from; an older one changes nothing.

    What is of none of the definitions in use goes. An older one that the clean data no longer serve stays as it is, and
    an alert says so.

    Raises:
        ValueError: a clean table lacks what the features read.
        FencedOut: a later refresh has begun, and will do this work.
    """
    fence = outside.warehouse.begin(f"{use_case.name}/online_features")
    done, digests, lost = Refreshed(written=0, deleted=0, unchanged=0), list[str](), list[str]()
    for definition in iterate_definitions_in_use(use_case, outside, lost):
        digests.append(definition.digest())
        try:
            refresh = _Refresh(use_case, definition, snapshot, outside)
        except (ValueError, duckdb.Error) as error:
            if definition is features.definition(use_case.name):
                raise
            _alert_stale_definition(use_case, definition.digest(), error, outside)
            continue
        with closing(refresh):
            done += outside.warehouse.retry_transaction(partial(refresh.commit, fence))

    def retire() -> None:
        with outside.warehouse.transaction(fence) as at:
            at.execute(_RETIRE, (use_case.name, digests, use_case.name, use_case.name))
            at.execute(_FORGET_ROWS, {"use_case": use_case.name, "end": snapshot.end})
            forget_versions(at, use_case, snapshot.end)

    if not lost:  # else what seems unused may be what a lost version learnt
        outside.warehouse.retry_transaction(retire)
    logger.info("%s: online store at %s, %s", use_case.name, snapshot.version, done)
    return done


class _Refresh:
    """The series of one definition from a snapshot, and from the rows that were followed since, if the source is."""

    def __init__(
        self, use_case: UseCase, definition: features.FeatureSet, snapshot: Snapshot, outside: Outside
    ) -> None:
        self._use_case, self._definition, self._snapshot, self._outside = use_case, definition, snapshot, outside
        self._kept = kept_interval(use_case, snapshot)
        self._followed: FollowedSource | None = None
        if use_case.source.follow is not None:
            with outside.warehouse.transaction() as at:
                self._followed = read_followed(at, use_case, snapshot.end)
        if self._followed is None:
            files = clean_files(snapshot, self._kept, outside, definition)
            series = dict(pack_all_series(definition, files, self._kept, use_case.time.lead))
            self._content = _Content(settled=series, recent={})
            return
        self._series = build_followed_series(use_case, definition, snapshot, outside, self._followed.identities)
        self._apply(self._followed)
        packed = self._series.pack_all()
        self._content = _Content(
            settled=_without_none(packed.settled), recent=_without_none(packed.recent), split=snapshot.end
        )

    def close(self) -> None:
        """Free the memory."""
        if self._followed is not None:
            self._series.close()

    def commit(self, fence: Fence) -> Refreshed:
        """Write them, with what was followed while they were made; a stream waits for the last part of it only."""
        with self._outside.warehouse.transaction(fence) as at:
            if self._followed is not None:
                self._catch_up(at, self._followed)
            if (done := self._stage(at)) is None:
                return Refreshed(written=0, deleted=0, unchanged=len(self._content.keys))
            if self._followed is not None:
                at.execute(_LOCK_STREAM, (self._use_case.name,))
                changes, known_until = at.fetchone() or (0, None)
                told = max(self._snapshot.end, known_until or self._snapshot.end)
                self._content = replace(self._content, known_until=told, changes=changes)
                done |= self._restage(at, self._catch_up(at, self._followed))
            return self._write(at, done)

    def _catch_up(self, at: cursor, before: FollowedSource) -> frozenset[str]:
        """Take along what was followed since; the keys that it changes."""
        if (later := read_followed(at, self._use_case, self._snapshot.end, after=before.changes)) is None:
            return frozenset()
        changed = self._apply(later)
        self._content = replace(
            self._content,
            settled=_without_none({**self._content.settled, **changed.settled}),
            recent=_without_none({**self._content.recent, **changed.recent}),
        )
        self._followed = later
        return frozenset([*changed.settled, *changed.recent])

    def _stage(self, at: cursor) -> set[str] | None:
        """Put what differs from the store into a table; keys that are to go. None: the store is past this dataset."""
        content, where = self._content, (self._use_case.name, self._definition.digest())
        at.execute(_STATE, where)
        self._state = at.fetchone()
        at.execute(_ORDER, (self._use_case.name, self._snapshot.version))
        order = at.fetchone()
        if self._state is not None and order is not None and (self._state[1] or 0) > order[0]:
            logger.info("%s: the online store is past %s already", self._use_case.name, self._snapshot.version)
            return None
        at.execute(_STAGED)
        at.execute(_STORED, where)
        stored = {key: tuple(hashed and bytes(hashed) for hashed in both) for key, *both in at.fetchall()}
        parts = {key: content.parts(key) for key in sorted(content.keys)}
        changed = [(key, *both) for key, both in parts.items() if stored.get(key) != tuple(map(_hash, both))]
        psycopg2.extras.execute_values(at, _STAGE, changed, template=_STAGE_ROW, page_size=_PAGE_ROWS)
        return stored.keys() - content.keys

    def _restage(self, at: cursor, touched: frozenset[str]) -> set[str]:
        """What the stream wrote since is written anew, whatever it was; keys that are to go."""
        at.execute("delete from refreshed where key = any(%s)", (sorted(touched),))
        kept = touched & self._content.keys
        rows = [(key, *self._content.parts(key)) for key in sorted(kept)]
        psycopg2.extras.execute_values(at, _STAGE, rows, template=_STAGE_ROW, page_size=_PAGE_ROWS)
        return set(touched - kept)

    def _write(self, at: cursor, gone: set[str]) -> Refreshed:
        content, where = self._content, (self._use_case.name, self._definition.digest())
        gone -= content.keys
        at.execute(_WRITE, (*where, content.changes))
        written = at.rowcount
        at.execute(_DELETE, (*where, sorted(gone)))
        state = self._state
        if written or gone or state is None or (state[0], state[2]) != (self._snapshot.version, content.split):
            told = (self._snapshot.version, content.split, content.known_until, content.changes)
            at.execute(_ADVANCE, (*where, self._kept.start, self._kept.end, *told))
        return Refreshed(written=written, deleted=len(gone), unchanged=len(content.keys) - written)

    def _apply(self, followed: FollowedSource) -> ChangedSeries:
        return apply_rows(self._series, self._use_case, self._definition, followed.rows, followed.identities)


def _without_none(payloads: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {key: payload for key, payload in payloads.items() if payload is not None}


def _alert_stale_definition(use_case: UseCase, digest: str, error: Exception, outside: Outside) -> None:
    outside.alerts.raise_alert(
        "critical",
        use_case.name,
        f"{use_case.name}/online_features/{digest[:12]}",
        f"{use_case.title}: history online of an older feature definition is no longer refreshed",
        f"the clean data no longer have what the features {digest[:12]} read ({error}). What answers by them grows old:"
        f" run {use_case.name}.train",
    )


def pack_all_series(
    definition: features.FeatureSet, tables: Mapping[str, Sequence[Path]], kept: Interval, lead: timedelta
) -> Iterator[tuple[str, bytes]]:
    """Every series of a definition: the text of its key, and its bytes."""
    from features.series import extract_series
    from features.series_codec import pack_series

    for item, table in extract_series(definition, tables, kept, lead):
        yield from pack_series(item, table)


def _hash(payload: bytes | None) -> bytes | None:
    return None if payload is None else sha256(payload).digest()
