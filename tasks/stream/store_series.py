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
MOVE_STATE = """
update online_state set since = %s, as_of = %s, split = %s, snapshot_version = %s, known_until = %s, changes = %s
where use_case = %s and definition = any(%s)"""
_PART = """
insert into online_series (use_case, definition, key, {part}, split, changed) values %s
on conflict (use_case, definition, key) do update
set {part} = excluded.{part}, split = excluded.split, changed = excluded.changed"""
_SETTLE = """
update online_series s set payload = new.payload, recent = new.recent, split = new.split
from (values %s) as new (use_case, definition, key, payload, recent, split)
where (s.use_case, s.definition, s.key) = (new.use_case, new.definition, new.key)"""
_FORGET = """
delete from online_series where use_case = %s and definition = %s and key = any(%s)
and (payload is not null or recent is not null)"""  # a row without either tells readers that its events are gone
_UNSETTLED = """
select key, recent is not null from online_series s
where use_case = %s and definition = %s and split is distinct from %s"""


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
                (self.use_case, self.definition, key, payload, self.split, number)
                for key, payload in sorted(payloads.items())
            ]
            self._write_pages(at, _PART.format(part=part), values, "(%s, %s, %s, %s::bytea, %s, %s)")

    def settle(self, at: cursor, series: ChangedSeries) -> None:
        """Series that hold the same events, cut anew; what holds none any more goes."""
        keys = sorted({*series.settled, *series.recent})
        parts = {key: (series.settled.get(key), series.recent.get(key)) for key in keys}
        at.execute(_FORGET, (self.use_case, self.definition, [key for key in keys if not any(parts[key])]))
        values = [(self.use_case, self.definition, key, *parts[key], self.split) for key in keys]
        self._write_pages(at, _SETTLE, values, "(%s, %s, %s, %s::bytea, %s::bytea, %s::timestamptz)")

    def list_unsettled(self, at: cursor) -> list[tuple[str, bool]]:
        """The keys of series that are cut elsewhere, and whether they have a later part."""
        at.execute(_UNSETTLED, (self.use_case, self.definition, self.split))
        return [(key, has_recent) for key, has_recent in at.fetchall()]

    def _write_pages(self, at: cursor, statement: str, values: Sequence[Iterable[object]], template: str) -> None:
        psycopg2.extras.execute_values(at, statement, values, template=template, page_size=_PAGE_ROWS)
