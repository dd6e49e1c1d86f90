"""An online store in memory, filled from a small world as a refresh fills the real one."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import FeatureSet
from features.followed import ChangedSeries
from features.key_events import KeyEvents, extend_events, make_events
from features.masked import MaskedColumn
from features.offline_requests import load_past_requests
from features.online import ComputedFeatures, FetchedSeries, OnlineFeatures, StoreState
from features.series import Series
from tasks.build_features.store_refresh import pack_all_series
from tests.features.world import FLIGHTS, LEAD, Span, World

CACHE_BYTES = 64 << 20


@dataclass
class Stored:
    """The series by key, and their later parts; `reads` are the keys that were asked for, call by call."""

    state: StoreState
    series: dict[str, bytes]
    recent: dict[str, bytes] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reads: list[list[str]] = []

    def fetch(self, keys: list[str], held: StoreState | None) -> FetchedSeries:
        self.reads.append(keys)
        parts = {key: (self.series.get(key), self.recent.get(key)) for key in keys}
        is_of_revision = held is not None and held.revision == self.state.revision
        stale = {k for k, number in self.changed.items() if is_of_revision and held and number > held.changes}
        return FetchedSeries(state=self.state, parts=parts, stale=frozenset(stale))

    def change(self, by: ChangedSeries) -> None:
        """What the stream writes."""
        self.state = self.state._replace(changes=self.state.changes + 1)
        for part, payloads in ((self.series, by.settled), (self.recent, by.recent)):
            part.update({key: payload for key, payload in payloads.items() if payload is not None})
            for key in [key for key, payload in payloads.items() if payload is None]:
                part.pop(key, None)
        self.changed |= dict.fromkeys([*by.settled, *by.recent], self.state.changes)

    def settle(self, by: ChangedSeries) -> None:
        """What the stream cuts anew, of which no event changes."""
        changed, state = dict(self.changed), self.state
        self.change(by)
        self.changed, self.state = changed, state


def decode_columns(series: Series, columns: Mapping[str, MaskedColumn]) -> KeyEvents:
    """The events of a key, from columns as they are unpacked."""
    events = make_events(series)
    extend_events(events, series, columns)
    return events


def micros(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000


def parquet(world: World, folder: str) -> Mapping[str, list[Path]]:
    for name, table in world.items():
        pq.write_table(table, Path(folder) / f"{name}.parquet")
    return {name: [Path(folder) / f"{name}.parquet"] for name in world}


def filled(
    world: World,
    since: datetime,
    as_of: datetime,
    *,
    shifted: timedelta = timedelta(0),
    definition: FeatureSet = FLIGHTS,
) -> Stored:
    """A store of what a world knew by a moment; `shifted`: sabotage, each record known that much too early or late."""
    known = {}
    for name, table in world.items():
        kind = table.schema.field("known_at").type
        inside = table.filter(pc.less(table["known_at"], pa.scalar(as_of, kind)))
        moved = pc.add(inside["known_at"], pa.scalar(shifted, pa.duration("us"))).cast(kind)
        known[name] = inside.set_column(inside.column_names.index("known_at"), "known_at", moved)
    with tempfile.TemporaryDirectory() as folder:
        series = dict(pack_all_series(definition, parquet(known, folder), Span(since, as_of), LEAD))  # type: ignore[arg-type]
    return Stored(StoreState(1, micros(since), micros(as_of), "dataset"), series)


def requests(world: World, start: datetime, end: datetime) -> pa.Table:
    """What clients would have sent for the points of an interval, in the order of the batch's rows."""
    with tempfile.TemporaryDirectory() as folder:
        told = load_past_requests(FLIGHTS, parquet(world, folder), Span(start, end), LEAD)
    return told.sort_by([("event_time", "ascending"), ("entity_key", "ascending")]).drop_columns(
        ["entity_key", "event_time"]
    )


def online(events: pa.Table, stored: Stored | None) -> ComputedFeatures:
    """Features of events by a reader that has seen nothing before."""
    return OnlineFeatures(FLIGHTS, LEAD, cache_bytes=CACHE_BYTES).compute(events, stored.fetch if stored else None)


def planted(stored: Stored, other: Stored) -> Stored:
    """The series of one store under the state of another."""
    return replace(stored, series=other.series)
