"""A use case's features for events asked about now, from the packed series of the online store.

Exact at a point in time: what became known after an event's prediction time is in the series, and outside every
window. For a prediction time before the store's `as_of` each value is the batch's, to the last bit. Later than that,
features are those of `as_of`: a window that ran on over the silence since would tell of a standstill nobody saw.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.batch import Batch
from features.engine import FeatureSet, features_sql
from features.expressions import compile_expressions
from features.operations import Column, missing
from features.plan import Plan
from features.series import Series, all_series, point_kinds
from features.series_cache import Arena
from features.series_codec import unpack

_KEYS_AT_ONCE = 200
_MICROSECOND = timedelta(microseconds=1)
_MOMENT = pa.timestamp("us", "UTC")


class State(NamedTuple):
    """What the store says of itself: moments in microseconds since 1970."""

    revision: int
    since: int
    as_of: int
    snapshot: str  # the version of the dataset it was made with


Fetch = Callable[[list[str]], tuple[State, dict[str, bytes]]]


@dataclass(frozen=True)
class Computed:
    """Features in the order of the events, why some are missing, and the state of the store (None: not asked)."""

    features: pa.Table
    problems: tuple[tuple[str, ...], ...]
    state: State | None


class _Moved(Exception):  # noqa: N818  # not an error: the store was refreshed between two reads
    pass


class Online:
    """One definition, compiled, with the series decoded so far; for one thread."""

    def __init__(self, definition: FeatureSet, lead: timedelta, *, cache_bytes: int) -> None:
        kinds = point_kinds(definition)
        self._definition, self._lead, self._cache_bytes = definition, lead // _MICROSECOND, cache_bytes
        self._series = all_series(definition, kinds)
        self._plans = {s.name: Plan.of(definition, s) for s in self._series}
        self._asked = {n.removeprefix("asked."): k for n, k in kinds.items() if n.startswith("asked.")}
        told = {f"asked.{name}": kind for name, kind in self._asked.items()}
        self._event_time = compile_expressions({"event_time": definition.point_sql["event_time"]}, told)
        fields = {f"{s.lookup[0]}.{f}": k for s in self._series if s.lookup for f, k in s.columns.items()}
        self._points = compile_expressions(definition.point_sql, told | fields)
        known = {n.removeprefix("points."): k for n, k in kinds.items() if n.startswith("points.")}
        for plan in self._plans.values():
            known |= plan.kinds
        self._features = compile_expressions(features_sql(definition), known)
        self._arenas: dict[str, Arena] = {}
        self._state: State | None = None

    def compute(self, events: pa.Table, fetch: Fetch | None) -> Computed:
        """Features of events; `fetch` reads series by their keys, and None stands for a store that does not answer."""
        if sum(arena.nbytes for arena in self._arenas.values()) > self._cache_bytes:
            self._state, self._arenas = None, {}
        while True:
            try:
                return self._compute(Batch(events, self._asked), fetch)
            except _Moved:
                continue

    def _compute(self, batch: Batch, fetch: Fetch | None) -> Computed:
        rows = batch.rows
        batch.event_time = self._event_time.run(batch.columns, rows)["event_time"].values
        asked_for = batch.event_time - self._lead
        # Before anything else: which revision is this, and is what was decoded still of it?
        first = [s for s in self._series if s.lookup]
        state = self._load(batch, first, fetch, fresh=True)
        batch.known = asked_for if state is None else np.minimum(asked_for, state.as_of)
        batch.columns["asked.prediction_time"] = Column(batch.known, np.ones(rows, np.bool_))
        for series in first:
            self._look(batch, series, answered=state is not None)
        points = self._points.run(batch.columns, rows)
        batch.lists.clear()
        batch.columns |= points
        rest = [s for s in self._series if not s.lookup]
        self._load(batch, rest, fetch, fresh=False)
        for series in rest:
            self._look(batch, series, answered=state is not None)
        values = self._features.run(batch.columns, rows)
        if state is not None:
            batch.miss("older than the history that is kept", asked_for < state.since)
        keys = {
            "entity_key": pa.array(points["entity_key"].values, pa.string()),
            "event_time": pa.array(batch.event_time, pa.int64()).cast(_MOMENT),
            "prediction_time": pa.array(asked_for, pa.int64()).cast(_MOMENT),
        }
        features = {name: _arrow(column, self._features.kinds[name]) for name, column in values.items()}
        return Computed(pa.table(keys | features), tuple(map(tuple, batch.problems)), state)

    def _load(self, batch: Batch, wanted: Sequence[Series], fetch: Fetch | None, *, fresh: bool) -> State | None:
        """Have every series that a batch needs decoded. `fresh`: ask for the state even when nothing is missing.

        What was read before a store stopped answering stays, so that the next attempt has less to do.
        """
        if fetch is None:
            return None
        absent = self._absent(batch, wanted)
        for start in range(0, max(len(absent), int(fresh)), _KEYS_AT_ONCE):
            part = absent[start : start + _KEYS_AT_ONCE]
            state, payloads = fetch([text for _, _, text in part])
            if state != self._state:
                held, self._state = self._arenas, state
                base = state.since - max(s.reach for s in self._series if s.reach) // _MICROSECOND
                self._arenas = {s.name: Arena(s, base) for s in self._series}
                if held or start or not fresh:
                    raise _Moved
            self._decode(part, payloads)
        return self._state

    def _absent(self, batch: Batch, wanted: Sequence[Series]) -> list[tuple[str, Hashable, str]]:
        """The series to read: name, key, and the key's text."""
        absent = []
        for series in wanted:
            arena = self._arenas.get(series.name)
            held = () if arena is None else arena.slots
            new = {key for key in batch.keys(series) if key is not None and key not in held}
            absent += [(series.name, key, series.key_text(_values(key))) for key in new]
        return absent

    def _decode(self, asked: Sequence[tuple[str, Hashable, str]], payloads: Mapping[str, bytes]) -> None:
        for series in self._series:
            arena, found, damaged = self._arenas[series.name], [], set()
            for key, text in [(key, text) for name, key, text in asked if name == series.name]:
                columns = None
                if (payload := payloads.get(text)) is not None:
                    try:
                        columns = unpack(text, payload, arena.kinds)
                    except ValueError:
                        damaged.add(key)
                found.append((key, columns))
            arena.add(found, damaged)

    def _look(self, batch: Batch, series: Series, *, answered: bool) -> None:
        """Add to a batch the columns that come from one series, and say what is wrong with them."""
        plan = self._plans[series.name]
        if not answered:
            batch.columns |= {name: missing(batch.rows, kind) for name, kind in plan.kinds.items()}
            return
        arena = self._arenas[series.name]
        slots = np.array([-1 if key is None else arena.slots[key] for key in batch.keys(series)], np.int64)
        if arena.damaged and (damaged := np.isin(slots, list(arena.damaged))).any():
            slots[damaged] = -1
            batch.miss(f"damaged history of {series.name}", damaged)
        batch.columns |= plan.columns(batch, arena, slots)


def _values(key: Hashable) -> Sequence[str | int]:
    return key if isinstance(key, tuple) else (key,)


def _arrow(column: Column, kind: str) -> pa.Array:
    mask = None if column.valid.all() else ~column.valid
    return pa.array(column.values, pa.string() if kind == "varchar" else pa.float32(), mask=mask)
