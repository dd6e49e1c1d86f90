"""A use case's features for the events of requests, from the packed series of the online store.

Exact at a point in time: what became known after an event's prediction time is in the series, and outside every
window. For a prediction time before the store's `as_of` each value is the batch's, to the last bit. Later than that,
features are those of the moment before `as_of`: a window over the silence since then would show a standstill that
nobody observed.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import itemgetter
from string import Formatter
from typing import Any, NamedTuple

import pyarrow as pa

from features.definition_expressions import REQUEST, compile_definition
from features.engine import FeatureSet
from features.feature_rows import FeatureRows
from features.key_events import DecodedSeries, count_held_bytes, decode_series
from features.point_program import AddValues, compile_plan
from features.series import Series

_KEYS_AT_ONCE = 200
_MICROSECOND = timedelta(microseconds=1)

Event = Mapping[str, Any]  # the fields of a request; moments are microseconds since 1970


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

    rows: FeatureRows
    problems: tuple[tuple[str, ...], ...]
    state: StoreState | None

    @property
    def features(self) -> pa.Table:
        """As the batch has them."""
        return self.rows.table


class _StoreRefreshed(Exception):  # noqa: N818  # not an error
    """The store was refreshed between two reads."""


@dataclass
class _Point:
    """An event at work: its values so far, by the names that expressions use."""

    values: dict[str, Any]
    event_time: int = 0
    requested: int = 0
    known: int = 0  # the moment up to which it may know
    problems: list[str] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)  # of the series that are looked up now; None: it has none

    def note(self, absent: str) -> None:
        """Add why something is not known."""
        names = [name for _, name, _, _ in Formatter().parse(absent) if name]
        told = {n: self.values[n if n in self.values else REQUEST + n] for n in names}
        self.problems.append(absent.format(**told))


class _Lookup(NamedTuple):
    """One series at work: how a point finds it, what is held of it by key (None: damaged), and what a point gets."""

    series: Series
    key_of: Callable[[dict[str, Any]], Hashable]
    held: dict[Hashable, DecodedSeries | None]
    add_values: AddValues
    nothing: Mapping[str, None]


class OnlineFeatures:
    """One definition, compiled, with the series decoded last, of about `cache_bytes`; for one thread."""

    def __init__(self, definition: FeatureSet, lead: timedelta, *, cache_bytes: int) -> None:
        compiled = compile_definition(definition)
        self._definition, self._lead, self._cache_bytes = definition, lead // _MICROSECOND, cache_bytes
        self._lookups = {
            name: _Lookup(plan.series, _find_key(plan.series), {}, compile_plan(plan), dict.fromkeys(plan.kinds))
            for name, plan in compiled.plans.items()
        }
        self._first = [each for each in self._lookups.values() if each.series.lookup]
        self._rest = [each for each in self._lookups.values() if not each.series.lookup]
        self._fields = [(name, name.removeprefix(REQUEST)) for name in compiled.request]
        self._event_time, self._points, self._features = compiled.event_time, compiled.points, compiled.features
        self._state: StoreState | None = None
        self.forget()

    @property
    def held_bytes(self) -> int:
        """What the decoded series take in memory, about."""
        return self._held_bytes

    def compute(self, events: pa.Table, fetch: FetchSeries | None) -> ComputedFeatures:
        """As `compute_rows`, of a table whose columns are the fields of requests, moments naive UTC."""
        return self.compute_rows(list_events(events), fetch)

    def compute_rows(self, events: Sequence[Event], fetch: FetchSeries | None) -> ComputedFeatures:
        """Features of events; `fetch` reads series by their keys, and None stands for a store that does not answer."""
        self._make_room()
        while True:
            try:
                return self._compute(events, fetch)
            except _StoreRefreshed:
                continue

    def _compute(self, events: Sequence[Event], fetch: FetchSeries | None) -> ComputedFeatures:
        points = [_Point({name: event.get(field) for name, field in self._fields}) for event in events]
        for point in points:
            (point.event_time,) = self._event_time.run(point.values)
            point.requested = point.event_time - self._lead
        # Before anything else: which revision is this, and is what was decoded still of it?
        state = self._load(points, self._first, fetch, fresh=True)
        for point in points:
            point.known = point.requested if state is None else min(point.requested, state.as_of - 1)
            point.values[REQUEST + "prediction_time"] = point.known
            _add_series(point, self._first, is_answered=state is not None)
            point.values.update(zip(self._points.kinds, self._points.run(point.values), strict=True))
        self._load(points, self._rest, fetch, fresh=False)
        for point in points:
            _add_series(point, self._rest, is_answered=state is not None)
            if state is not None:
                if point.requested < state.since:
                    point.note("older than the history that is kept")
                point.problems += [f"{table} is not followed" for table in state.stopped]
        rows = FeatureRows(
            self._definition.numeric,
            self._definition.categorical,
            [point.values["entity_key"] for point in points],
            [point.event_time for point in points],
            [point.requested for point in points],
            [self._features.run(point.values) for point in points],
        )
        return ComputedFeatures(rows, tuple(tuple(point.problems) for point in points), state)

    def _load(
        self, points: Sequence[_Point], wanted: Sequence[_Lookup], fetch: FetchSeries | None, *, fresh: bool
    ) -> StoreState | None:
        """Decode every series that points need and that is not decoded yet. `fresh`: read the state in any case.

        What was read before a store stopped answering stays, so that the next attempt has less to do.
        """
        if fetch is None:
            return None
        absent = list(dict.fromkeys(self._absent(points, wanted)))
        for start in range(0, max(len(absent), int(fresh)), _KEYS_AT_ONCE):
            part = absent[start : start + _KEYS_AT_ONCE]
            texts = [self._lookups[name].series.key_text(_as_tuple(key)) for name, key in part]
            fetched = fetch(texts, self._state)
            if fetched.state != self._state:
                self._follow(fetched, is_first_read=fresh and not start)
            for (name, key), text in zip(part, texts, strict=True):
                self._decode(name, key, text, fetched.parts.get(text, (None, None)))
        return self._state

    def _follow(self, fetched: FetchedSeries, *, is_first_read: bool) -> None:
        """Forget what is not of the store's state.

        Raises:
            _StoreRefreshed: the batch is to be begun anew: what it read before, or did not read as held, is stale.
        """
        held, self._state = self._state, fetched.state
        if fetched.state.is_later_than(held):
            if self._forget(fetched.stale) or not is_first_read:
                raise _StoreRefreshed
            return
        self.forget()
        self._state = fetched.state
        if held is not None or not is_first_read:
            raise _StoreRefreshed

    def forget(self) -> None:
        """Read everything anew from now on."""
        self._state = None
        for each in self._lookups.values():
            each.held.clear()
        self._texts: dict[str, tuple[str, Hashable]] = {}  # of what is held: text of a key -> series, key
        self._replaced: dict[str, DecodedSeries] = {}  # by text: of most only the end changes
        self._held_bytes = 0

    def _forget(self, texts: frozenset[str]) -> bool:
        """Drop the series under some texts of keys; whether any was held."""
        gone = texts & self._texts.keys()
        for text in gone:
            if (decoded := self._take_out(text)) is None:
                self._held_bytes -= count_held_bytes(text, decoded)
            else:
                self._replaced[text] = decoded
        return bool(gone)

    def _take_out(self, text: str) -> DecodedSeries | None:
        """What is held under the text of a key, and is no more."""
        name, key = self._texts.pop(text)
        return self._lookups[name].held.pop(key)

    def _make_room(self) -> None:
        """Drop what was decoded longest ago, as far as there is too much: a batch never has all to decode again.

        What changed since goes last: that is long histories that many events need, of which little is to be decoded.
        """
        while self._held_bytes > self._cache_bytes and (self._texts or self._replaced):
            text = next(iter(self._texts or self._replaced))
            decoded = self._take_out(text) if self._texts else self._replaced.pop(text)
            self._held_bytes -= count_held_bytes(text, decoded)

    def _absent(self, points: Sequence[_Point], wanted: Sequence[_Lookup]) -> Iterator[tuple[str, Hashable]]:
        """The series to read: name and key. Every point gets the keys of what is wanted."""
        for point in points:
            point.keys = [each.key_of(point.values) for each in wanted]
            for each, key in zip(wanted, point.keys, strict=True):
                if key is not None and key not in each.held:
                    yield each.series.name, key

    def _decode(self, name: str, key: Hashable, text: str, parts: tuple[bytes | None, bytes | None]) -> None:
        series, _, held, *_ = self._lookups[name]
        if was := self._replaced.pop(text, None):
            self._held_bytes -= count_held_bytes(text, was)
        try:
            decoded = decode_series(series, text, parts, was)
        except ValueError:
            decoded = None
        held[key] = decoded
        self._texts[text] = name, key
        self._held_bytes += count_held_bytes(text, decoded)


def _add_series(point: _Point, wanted: Sequence[_Lookup], *, is_answered: bool) -> None:
    """Add to a point the values that come from some series, and note what is wrong with them."""
    if not is_answered:
        for each in wanted:
            point.values.update(each.nothing)
        return
    for (series, _, held, add_values, nothing), key in zip(wanted, point.keys, strict=True):
        if key is None or (decoded := held[key]) is None:
            point.values.update(nothing)
            if key is not None:
                point.note(f"damaged history of {series.name}")
            continue
        for absent in add_values(point.values, decoded.events, point.known, point.event_time):
            point.note(absent)


def _find_key(series: Series) -> Callable[[dict[str, Any]], Hashable]:
    """The key that a point has, one value alone or a tuple of several; None where a part of it is missing."""
    names = [REQUEST + name if series.lookup else name for name in series.on]
    if not names:
        return lambda _: ()
    read = itemgetter(*names)
    if len(names) == 1:
        return read
    return lambda values: None if None in (key := read(values)) else key


def list_events(table: pa.Table) -> list[Event]:
    """The rows of a table whose columns are the fields of requests, moments naive UTC."""
    columns = [
        column.cast(pa.timestamp("us")).cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        for column in table.columns
    ]
    return list(pa.table(columns, table.column_names).to_pylist())


def _as_tuple(key: Hashable) -> tuple[str | int, ...]:
    """The values of a key, of which one alone is not in a tuple."""
    return key if isinstance(key, tuple) else (key,)
