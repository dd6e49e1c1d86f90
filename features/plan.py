"""How one series becomes columns of a batch: sums over windows, records that held at a moment, what came before."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from features.engine import FeatureSet, mentioned_names
from features.masked import MaskedColumn
from features.series import Series, record_fields
from features.sorted_events import Places, SortedEvents
from features.spans import WindowSpan, parse_span, read_window_span
from features.vocabulary import Window
from features.windows import distinct_name, sum_name, variance_name

_MICROSECOND = timedelta(microseconds=1)


class Points(Protocol):
    """The points that columns are made for."""

    @property
    def known(self) -> Places:
        """Up to when each may know, in microseconds since 1970."""

    @property
    def event_time(self) -> Places:
        """When it is to happen, likewise."""

    def note_absence(self, absent: str | None, rows: NDArray[np.bool_]) -> None:
        """Record why something is not known of some of them."""


class Measure(NamedTuple):
    """What a column comes to over a span, and its name."""

    span: str
    column: str
    name: str


@dataclass(frozen=True)
class SeriesPlan:
    """How one series becomes columns. `kinds` are those columns' names and types."""

    series: Series
    kinds: Mapping[str, str]
    records: Mapping[str, tuple[str, ...]]  # record -> the fields of it that features read
    sums: Mapping[str, tuple[tuple[int, str], ...]]  # span -> (which sum, its name)
    spans: Mapping[str, WindowSpan]
    variances: tuple[Measure, ...]
    distinct: tuple[Measure, ...]

    @classmethod
    def of(cls, definition: FeatureSet, series: Series) -> "SeriesPlan":
        """The plan of a series: only what some feature reads."""
        names = mentioned_names(definition)
        if series.lookup:
            records = {series.lookup[0]: tuple(series.columns)}
        elif series.joined:
            records = {series.joined.prefix: record_fields(definition, series.joined.prefix)}
        else:
            named = (f"{w.prefix}_{name}" for w in series.windows for name in (*w.latest, *w.earliest))
            records = {record: record_fields(definition, record) for record in named if record in names}
        spans = {text: read_window_span(text) for w in series.windows for text in w.spans}
        sums = {
            text: tuple(
                (place, sum_name(w, name, text))
                for w in series.windows
                if text in w.spans
                for place, name in enumerate(series.sums)
                if name in w.sums and sum_name(w, name, text) in names
            )
            for text in spans
        }
        kinds = {f"{record}.{f}": series.columns[f] for record, fields in records.items() for f in fields}
        if not series.lookup:
            kinds |= dict.fromkeys(records, "struct")
        kinds |= {name: "double" for listed in sums.values() for _, name in listed}
        of_spans = [(w, text) for w in series.windows for text in w.spans]
        varied = (Measure(text, c, variance_name(w, c, text)) for w, text in of_spans for c in w.variances)
        counted = (Measure(text, c, distinct_name(w, c, text)) for w, text in of_spans for c in w.distinct)
        variances, distinct = (tuple(one for one in every if one.name in names) for every in (varied, counted))
        kinds |= {one.name: "double" for one in (*variances, *distinct)}
        sums = {text: listed for text, listed in sums.items() if listed}
        return cls(series, kinds, records, sums, spans, variances, distinct)

    @property
    def summed(self) -> list[str]:
        return [name for listed in self.sums.values() for _, name in listed]

    @property
    def measured(self) -> list[str]:
        """What is a double from the beginning: variances, and distinct counts."""
        return [one.name for one in (*self.variances, *self.distinct)]

    def columns(self, points: Points, events: SortedEvents, slots: Places) -> dict[str, MaskedColumn]:
        """The columns of a batch of points; a slot below 0 has none of them."""
        valid = slots >= 0
        if joined := self.series.joined:
            low, high = events.bounds(
                slots, points.event_time - parse_span(joined.span) // _MICROSECOND, points.event_time
            )
            places, there = events.last_known(low, high, points.known)
            return self._record(events, joined.prefix, places, there & valid)
        if self.series.lookup:
            name, lookup = self.series.lookup
            low, high = events.bounds(slots, np.zeros_like(points.known), points.known + 1)
            points.note_absence(lookup.absent, valid & (high == low))
            return self._record(events, name, high - 1, valid & (high > low))
        return self._windows(points, events, slots, valid)

    def _windows(
        self, points: Points, events: SortedEvents, slots: Places, valid: NDArray[np.bool_]
    ) -> dict[str, MaskedColumn]:
        begins = (span.begin(points.known) for span in self.spans.values())
        high, *lows = events.bounds(slots, points.known + 1, *begins)
        low_of = dict(zip(self.spans, lows, strict=True))
        columns: dict[str, MaskedColumn] = {}
        for text, named in self.sums.items():
            totals = events.totals(low_of[text], high)
            columns |= {name: MaskedColumn(totals[which], valid) for which, name in named}
        for span, column, name in self.variances:
            values, there = events.variances(low_of[span], high, column)
            columns[name] = MaskedColumn(values, there & valid)
        for span, column, name in self.distinct:
            columns[name] = MaskedColumn(events.distinct_counts(low_of[span], high, column), valid)
        for w in self.series.windows:
            columns |= self._records(events, w, low_of[w.spans[0]], high, valid)
            points.note_absence(w.absent, valid & (high == low_of[w.spans[-1]]))
        return columns

    def _records(
        self, events: SortedEvents, window: Window, low: Places, high: Places, valid: NDArray[np.bool_]
    ) -> dict[str, MaskedColumn]:
        columns: dict[str, MaskedColumn] = {}
        for named, last in ((window.latest, True), (window.earliest, False)):
            for name, fields in named.items():
                if (record := f"{window.prefix}_{name}") in self.records:
                    places = events.extreme(low, high, self.series.orders.index(fields), last=last)
                    columns |= self._record(events, record, places, valid & (high > low))
        return columns

    def _record(
        self, events: SortedEvents, record: str, places: Places, there: NDArray[np.bool_]
    ) -> dict[str, MaskedColumn]:
        return {record: MaskedColumn(there, there)} | {
            f"{record}.{name}": column for name, column in events.record(places, there, self.records[record]).items()
        }
