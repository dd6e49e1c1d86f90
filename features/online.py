"""A use case's features for the events of requests, from the packed series of the online store.

Exact at a point in time: what became known after an event's prediction time is in the series, and outside every
window. For a prediction time before the store's `as_of` each value is the batch's, to the last bit. Later than that,
features are those of `as_of`: a window over the silence since then would show a standstill that nobody observed.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.batch import REQUEST, EventBatch
from features.engine import UTC_MOMENT, FeatureSet, features_sql
from features.expressions import compile_expressions
from features.history import to_arrow
from features.operations import MaskedColumn, missing_column
from features.plan import SeriesPlan
from features.series import Series, list_series, point_kinds
from features.series_cache import SeriesCache
from features.series_codec import unpack_series

_KEYS_AT_ONCE = 200
_MICROSECOND = timedelta(microseconds=1)


class StoreState(NamedTuple):
    """The state of the store: moments in microseconds since 1970."""

    revision: int
    since: int
    as_of: int
    snapshot: str  # the version of the dataset it was made with


FetchSeries = Callable[[list[str]], tuple[StoreState, dict[str, bytes]]]


@dataclass(frozen=True)
class ComputedFeatures:
    """Features in the order of the events, why some are missing, and the state of the store (None: it was not read)."""

    features: pa.Table
    problems: tuple[tuple[str, ...], ...]
    state: StoreState | None


class _StoreRefreshed(Exception):  # noqa: N818  # not an error
    """The store was refreshed between two reads."""


class OnlineFeatures:
    """One definition, compiled, with the series decoded so far; for one thread."""

    def __init__(self, definition: FeatureSet, lead: timedelta, *, cache_bytes: int) -> None:
        kinds = point_kinds(definition)
        self._definition, self._lead, self._cache_bytes = definition, lead // _MICROSECOND, cache_bytes
        self._series = list_series(definition, kinds)
        self._plans = {s.name: SeriesPlan.of(definition, s) for s in self._series}
        request = {name: kind for name, kind in kinds.items() if name.startswith(REQUEST)}
        self._request_kinds = {name.removeprefix(REQUEST): kind for name, kind in request.items()}
        self._event_time = compile_expressions({"event_time": definition.point_sql["event_time"]}, request)
        fields = {f"{s.lookup[0]}.{f}": k for s in self._series if s.lookup for f, k in s.columns.items()}
        self._points = compile_expressions(definition.point_sql, request | fields)
        points = {n.removeprefix("points."): k for n, k in kinds.items() if n.startswith("points.")}
        looked_up = {n: k for plan in self._plans.values() for n, k in plan.kinds.items()}
        self._features = compile_expressions(features_sql(definition), points | looked_up)
        self._caches: dict[str, SeriesCache] = {}
        self._state: StoreState | None = None

    def compute(self, events: pa.Table, fetch: FetchSeries | None) -> ComputedFeatures:
        """Features of events; `fetch` reads series by their keys, and None stands for a store that does not answer."""
        if sum(cache.nbytes for cache in self._caches.values()) > self._cache_bytes:
            self._state, self._caches = None, {}
        while True:
            try:
                return self._compute(EventBatch(events, self._request_kinds), fetch)
            except _StoreRefreshed:
                continue

    def _compute(self, batch: EventBatch, fetch: FetchSeries | None) -> ComputedFeatures:
        rows = batch.rows
        batch.event_time = self._event_time.run(batch.columns, rows)["event_time"].values
        requested = batch.event_time - self._lead
        # Before anything else: which revision is this, and is what was decoded still of it?
        first = [s for s in self._series if s.lookup]
        state = self._load(batch, first, fetch, fresh=True)
        batch.known = requested if state is None else np.minimum(requested, state.as_of)
        batch.columns[REQUEST + "prediction_time"] = MaskedColumn(batch.known, np.ones(rows, np.bool_))
        for series in first:
            self._add_columns(batch, series, answered=state is not None)
        points = self._points.run(batch.columns, rows)
        batch.key_lists.clear()
        batch.columns |= points
        rest = [s for s in self._series if not s.lookup]
        self._load(batch, rest, fetch, fresh=False)
        for series in rest:
            self._add_columns(batch, series, answered=state is not None)
        if state is not None:
            batch.note_absence("older than the history that is kept", requested < state.since)
        keys = {
            "entity_key": pa.array(points["entity_key"].values, pa.string()),
            "event_time": pa.array(batch.event_time, pa.int64()).cast(UTC_MOMENT),
            "prediction_time": pa.array(requested, pa.int64()).cast(UTC_MOMENT),
        }
        features = {
            name: to_arrow(column, pa.string() if self._features.kinds[name] == "varchar" else pa.float32())
            for name, column in self._features.run(batch.columns, rows).items()
        }
        return ComputedFeatures(pa.table(keys | features), tuple(map(tuple, batch.problems)), state)

    def _load(
        self, batch: EventBatch, wanted: Sequence[Series], fetch: FetchSeries | None, *, fresh: bool
    ) -> StoreState | None:
        """Decode every series that a batch needs and that is not decoded yet. `fresh`: read the state in any case.

        What was read before a store stopped answering stays, so that the next attempt has less to do.
        """
        if fetch is None:
            return None
        absent = self._absent(batch, wanted)
        for start in range(0, max(len(absent), int(fresh)), _KEYS_AT_ONCE):
            part = absent[start : start + _KEYS_AT_ONCE]
            state, payloads = fetch([text for _, _, text in part])
            if state != self._state:
                held, self._state = self._caches, state
                base = state.since - max(s.reach for s in self._series if s.reach) // _MICROSECOND
                self._caches = {s.name: SeriesCache(s, base) for s in self._series}
                if held or start or not fresh:
                    raise _StoreRefreshed
            self._decode(part, payloads)
        return self._state

    def _absent(self, batch: EventBatch, wanted: Sequence[Series]) -> list[tuple[str, Hashable, str]]:
        """The series to read: name, key, and the key's text."""
        absent = []
        for series in wanted:
            held = self._caches[series.name].slots if self._caches else ()
            new = {key for key in batch.keys(series) if key is not None and key not in held}
            absent += [(series.name, key, series.key_text(key if isinstance(key, tuple) else (key,))) for key in new]
        return absent

    def _decode(self, wanted: Sequence[tuple[str, Hashable, str]], payloads: Mapping[str, bytes]) -> None:
        for series in self._series:
            cache, read, damaged = self._caches[series.name], [], set()
            for key, text in [(key, text) for name, key, text in wanted if name == series.name]:
                columns = None
                if (payload := payloads.get(text)) is not None:
                    try:
                        columns = unpack_series(text, payload, cache.kinds)
                    except ValueError:
                        damaged.add(key)
                read.append((key, columns))
            cache.add(read, damaged)

    def _add_columns(self, batch: EventBatch, series: Series, *, answered: bool) -> None:
        """Add to a batch the columns that come from one series, and note what is wrong with them."""
        plan = self._plans[series.name]
        if not answered:
            batch.columns |= {name: missing_column(batch.rows, kind) for name, kind in plan.kinds.items()}
            return
        cache = self._caches[series.name]
        slots = np.array([-1 if key is None else cache.slots[key] for key in batch.keys(series)], np.int64)
        if cache.damaged and (damaged := np.isin(slots, list(cache.damaged))).any():
            slots[damaged] = -1
            batch.note_absence(f"damaged history of {series.name}", damaged)
        batch.columns |= plan.columns(batch, cache, slots)
