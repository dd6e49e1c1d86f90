"""Writes the stream's series to the online store, in the caller's transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import psycopg2.extras
from psycopg2.extensions import cursor

from features.followed import ChangedSeries

_PAGE_ROWS = 500
TELL_STATE = """
update online_state set known_until = %s, changes = %s, stopped = %s, refreshed_at = now()
where use_case = %s and definition = any(%s)"""
TELL_CHANGES = "update online_state set changes = %s where use_case = %s and definition = any(%s)"
MOVE_STATE = """
update online_state set since = %s, as_of = %s, split = %s, snapshot_version = %s, known_until = %s, changes = %s
where use_case = %s and definition = any(%s)"""
_PART = """
insert into online_series as s (use_case, definition, key, {part}, split, changed) values %s
on conflict (use_case, definition, key) do update
set {part} = excluded.{part}, split = coalesce(excluded.split, s.split), changed = excluded.changed"""
_SETTLE = """
update online_series s set payload = new.payload, recent = new.recent, split = new.split,
    changed = case when new.payload is null and new.recent is null then new.number else s.changed end
from (values %s) as new (use_case, definition, key, payload, recent, split, number)
where (s.use_case, s.definition, s.key) = (new.use_case, new.definition, new.key)"""
_DELETE_EMPTY = """
delete from online_series
where use_case = %s and definition = %s and payload is null and recent is null and changed < %s"""
_STORED = """
select key, recent is not null, split is distinct from %s from online_series where use_case = %s and definition = %s"""


@dataclass(frozen=True, kw_only=True)
class StoreWriter:
    """The series of one definition, cut at a moment."""

    use_case: str
    definition: str
    split: datetime

    def write(self, at: cursor, series: ChangedSeries, number: int) -> None:
        """Series of which events changed, in the step of the stream that has this number."""
        for part, payloads in (("payload", series.settled), ("recent", series.recent)):
            values = [
                (self.use_case, self.definition, key, payload, None if key in series.uncut else self.split, number)
                for key, payload in sorted(payloads.items())
            ]
            self._write_pages(at, _PART.format(part=part), values, "(%s, %s, %s, %s::bytea, %s::timestamptz, %s)")

    def settle(self, at: cursor, series: ChangedSeries, number: int) -> int:
        """Series that hold the same events, cut anew. How many hold none any more: they changed, in step `number`."""
        values = [
            (self.use_case, self.definition, key, *parts, self.split, number)
            for key in sorted({*series.settled, *series.recent})
            for parts in [(series.settled.get(key), series.recent.get(key))]
        ]
        self._write_pages(at, _SETTLE, values, "(%s, %s, %s, %s::bytea, %s::bytea, %s::timestamptz, %s)")
        return sum(settled is None and recent is None for _, _, _, settled, recent, _, _ in values)

    def delete_empty(self, at: cursor, before: int) -> None:
        """Series without an event, which changed before a step: every reader has been told of them."""
        at.execute(_DELETE_EMPTY, (self.use_case, self.definition, before))

    def list_stored(self, at: cursor) -> list[tuple[str, bool, bool]]:
        """The keys of all series, whether each has a later part, and whether it is cut elsewhere."""
        at.execute(_STORED, (self.split, self.use_case, self.definition))
        return [(key, has_recent, is_elsewhere) for key, has_recent, is_elsewhere in at.fetchall()]

    def _write_pages(self, at: cursor, statement: str, values: Sequence[Iterable[object]], template: str) -> None:
        psycopg2.extras.execute_values(at, statement, values, template=template, page_size=_PAGE_ROWS)
