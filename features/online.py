"""A use case's features for the events of requests, from the packed series of the online store.

Exact at a point in time: what became known after an event's prediction time is in the series, and outside every
window. For a prediction time before the store's `as_of` each value is the batch's, to the last bit. Later than that,
features are those of the moment before `as_of`: a window over the silence since then would show a standstill that
nobody observed.
"""

from collections import defaultdict
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
from features.series_codec import unpack_parts

_KEYS_AT_ONCE = 200
_MICROSECOND = timedelta(microseconds=1)
_CACHED_SPAN = timedelta(days=90) // _MICROSECOND  # then caches begin anew: they count moments from where they began


class StoreState(NamedTuple):
    """The state of the store: moments in microseconds since 1970."""

    revision: int
    since: int
    as_of: int
    snapshot: str  # the version of the dataset it was made with
    changes: int = 0  # grows with what the stream writes of one revision
    stopped: tuple[str, ...] = ()  # tables of the source of which the stream misses something

    def is_later_than(self, held: "StoreState | None") -> bool:
        """Whether it is of the same revision as the state held, and no older: what did not change is as it was."""
        return held is not None and self.revision == held.revision and self.changes >= held.changes


@dataclass(frozen=True, kw_only=True)
class FetchedSeries:
    """What a store answered: payloads by key, each before and after the store's split; None: it has no such part.

    `stale` are the keys that changed since the state that was held, where that was of this revision.
    """

    state: StoreState
    parts: Mapping[str, tuple[bytes | None, bytes | None]]
    stale: frozenset[str] = frozenset()


FetchSeries = Callable[[list[str], StoreState | None], FetchedSeries]


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
        self._reach = max(s.reach for s in self._series if s.reach) // _MICROSECOND
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
        self._texts: dict[str, tuple[str, Hashable]] = {}  # of what the caches hold: text of a key -> series, key
        self._cached_since = 0
        self._state: StoreState | None = None

    def compute(self, events: pa.Table, fetch: FetchSeries | None) -> ComputedFeatures:
        """Features of events; `fetch` reads series by their keys, and None stands for a store that does not answer."""
        if sum(cache.nbytes for cache in self._caches.values()) > self._cache_bytes:
            self._state, self._caches, self._texts = None, {}, {}
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
        batch.known = requested if state is None else np.minimum(requested, state.as_of - 1)
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
            for table in state.stopped:
                batch.note_absence(f"{table} is not followed", np.ones(rows, np.bool_))
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
            fetched = fetch([text for _, _, text in part], self._state)
            if fetched.state != self._state:
                self._follow(fetched, is_first_read=fresh and not start)
            self._decode(part, fetched.parts)
        return self._state

    def _follow(self, fetched: FetchedSeries, *, is_first_read: bool) -> None:
        """Forget what is not of the store's state.

        Raises:
            _StoreRefreshed: the batch is to be begun anew: what it read before, or did not read as held, is stale.
        """
        held, self._state = self._state, fetched.state
        if fetched.state.is_later_than(held) and fetched.state.since < self._cached_since + _CACHED_SPAN:
            if self._forget(fetched.stale) or not is_first_read:
                raise _StoreRefreshed
            return
        had_any, self._cached_since = bool(self._caches), fetched.state.since
        base = self._cached_since - self._reach
        self._caches, self._texts = {s.name: SeriesCache(s, base) for s in self._series}, {}
        if had_any or not is_first_read:
            raise _StoreRefreshed

    def _forget(self, texts: frozenset[str]) -> bool:
        """Drop the series under some texts of keys; whether any was held."""
        by_series = defaultdict[str, list[Hashable]](list)
        for text in texts & self._texts.keys():
            name, key = self._texts.pop(text)
            by_series[name].append(key)
        for name, keys in by_series.items():
            self._caches[name].forget(keys)
        return bool(by_series)

    def _absent(self, batch: EventBatch, wanted: Sequence[Series]) -> list[tuple[str, Hashable, str]]:
        """The series to read: name, key, and the key's text."""
        absent = []
        for series in wanted:
            held = self._caches[series.name].slots if self._caches else ()
            new = {key for key in batch.keys(series) if key is not None and key not in held}
            absent += [(series.name, key, series.key_text(_as_tuple(key))) for key in new]
        return absent

    def _decode(
        self, wanted: Sequence[tuple[str, Hashable, str]], parts: Mapping[str, tuple[bytes | None, bytes | None]]
    ) -> None:
        for series in self._series:
            cache, read, damaged = self._caches[series.name], [], set()
            for key, text in [(key, text) for name, key, text in wanted if name == series.name]:
                columns = None
                try:
                    columns = unpack_parts(series, text, parts.get(text, (None, None)))
                except ValueError:
                    damaged.add(key)
                read.append((key, columns))
            cache.add(read, damaged)
        self._texts |= {text: (name, key) for name, key, text in wanted}

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


def _as_tuple(key: Hashable) -> tuple[str | int, ...]:
    """The values of a key, of which one alone is not in a tuple."""
    return key if isinstance(key, tuple) else (key,)
