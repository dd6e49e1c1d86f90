"""Writes the series of one definition, from a dataset and what was followed since, to the online store."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import psycopg2.extras
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.warehouse import Fence
from features import FeatureSet
from features.followed import ChangedSeries
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedSource, read_followed
from tasks.build_features.followed_series import apply_rows, build_followed_series, kept_interval
from tasks.build_features.manifest import clean_files

logger = logging.getLogger(__name__)

_PAGE_ROWS = 500
_STAGE_ROW = "(%s, %s::bytea, %s::bytea)"

_STATE = """
select s.snapshot_version, b.build_order, s.split from online_state s
left join snapshots b on b.use_case = s.use_case and b.version = s.snapshot_version
where s.use_case = %s and s.definition = %s"""

_ORDER = "select build_order from snapshots where use_case = %s and version = %s"

_STAGED = "create temp table refreshed (key text primary key, payload bytea, recent bytea) on commit drop"

_STAGE = "insert into refreshed (key, payload, recent) values %s"

_WRITE = """
insert into online_series (use_case, definition, key, payload, recent, split, changed)
select %s, %s, key, payload, recent, %s, %s from refreshed order by key
on conflict (use_case, definition, key) do update set payload = excluded.payload, recent = excluded.recent,
    split = excluded.split, changed = excluded.changed"""

_CUT = """
update online_series set split = %(split)s
where use_case = %(use_case)s and definition = %(definition)s and split is distinct from %(split)s"""

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


class DefinitionRefresh:
    """The series of one definition from a snapshot, and from the rows that were followed since, if the source is."""

    def __init__(self, use_case: UseCase, definition: FeatureSet, snapshot: Snapshot, outside: Outside) -> None:
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
        """Write them, with what was followed while they were made; a stream waits meanwhile."""
        with self._outside.warehouse.transaction(fence) as at:
            if self._followed is not None:
                at.execute(_LOCK_STREAM, (self._use_case.name,))
                changes, known_until = at.fetchone() or (0, None)
                told = max(self._snapshot.end, known_until or self._snapshot.end)
                self._content = replace(self._content, known_until=told, changes=changes)
                self._catch_up(at, self._followed)
            if (gone := self._stage(at)) is None:
                return Refreshed(written=0, deleted=0, unchanged=len(self._content.keys))
            return self._write(at, gone)

    def _catch_up(self, at: cursor, before: FollowedSource) -> None:
        """Take along what was followed since."""
        if (later := read_followed(at, self._use_case, self._snapshot.end, after=before.changes)) is None:
            return
        changed = self._apply(later)
        self._content = replace(
            self._content,
            settled=_without_none({**self._content.settled, **changed.settled}),
            recent=_without_none({**self._content.recent, **changed.recent}),
        )
        self._followed = later

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

    def _write(self, at: cursor, gone: set[str]) -> Refreshed:
        content, where = self._content, (self._use_case.name, self._definition.digest())
        at.execute(_WRITE, (*where, content.split, content.changes))
        written = at.rowcount
        at.execute(_CUT, {"use_case": where[0], "definition": where[1], "split": content.split})
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


def pack_all_series(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], kept: Interval, lead: timedelta
) -> Iterator[tuple[str, bytes]]:
    """Every series of a definition: the text of its key, and its bytes."""
    from features.series import extract_series
    from features.series_codec import pack_series

    for item, table in extract_series(definition, tables, kept, lead):
        yield from pack_series(item, table)


def _hash(payload: bytes | None) -> bytes | None:
    return None if payload is None else sha256(payload).digest()
