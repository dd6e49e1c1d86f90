"""Events of one series in sorted arrays: sums, extremes and records of many stretches of them at once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.masked import Array, MaskedColumn, missing_column
from features.measures import DistinctCounter, add_up_running, find_variances
from features.series import Series

Places = NDArray[np.int64]
_LATEST = np.iinfo(np.int64).max
_CELLS = 1 << 22  # at most so many events are compared at once


class SortedEvents(ABC):
    """Events in the order of key, moment and first order, however their places are searched.

    `at` is a number for key and moment, and an event's place its position there; `sums` are the running totals (a row
    more than there are events), `columns` what else an event holds, with its rank in every order but that of places.
    """

    def __init__(self, series: Series, at: Places, sums: Array, columns: Mapping[str, MaskedColumn]) -> None:
        self.series = series
        self.kinds = series.stored
        self._at, self._sums, self._columns = at, sums, dict(columns)
        self._running: dict[str, tuple[Array, Array, Array]] = {}
        self._counters: dict[str, DistinctCounter] = {}

    @abstractmethod
    def bounds(self, slots: Places, *moments: Places) -> NDArray[np.int64]:
        """For each moment, how far the events of the slot lie before it: [moments, slots]; a slot below 0 has none."""

    def totals(self, low: Places, high: Places) -> NDArray[np.float64]:
        """Sums of the events in [low, high): [sums, rows]."""
        return (self._sums.take(high, axis=0) - self._sums.take(low, axis=0)).T.astype(np.float64)

    def variances(self, low: Places, high: Places, name: str) -> MaskedColumn:
        """The sample variance of a column in each [low, high); missing of fewer than two values."""
        if name not in self._running:
            self._running[name] = add_up_running(self._columns[name])
        return find_variances(*(totals[high] - totals[low] for totals in self._running[name]))

    def distinct_counts(self, low: Places, high: Places, name: str) -> NDArray[np.float64]:
        """How many different values of a column are in each [low, high)."""
        if name not in self._counters:
            self._counters[name] = DistinctCounter(self._columns[name])
        return self._counters[name].count(low, high)

    def extreme(self, low: Places, high: Places, order: int, *, last: bool) -> Places:
        """The place in [low, high) of the record that is greatest (or least) in an order; any where there is none."""
        if order == 0 and self.series.orders[0][0] == self.series.moment:  # sorted so already
            return high - 1 if last else low
        ranks = self._columns[f"rank{order}"].values
        return np.concatenate([self._extreme(low[p], high[p], ranks, last=last) for p in _parts(low, high)])

    def _extreme(self, low: Places, high: Places, ranks: Array, *, last: bool) -> Places:
        places = _places(low, high)
        outside = places >= high[:, None]
        of_places = ranks[np.minimum(places, len(ranks) - 1)] if len(ranks) else np.zeros(places.shape, np.int64)
        best = np.where(outside, -1, of_places).argmax(1) if last else np.where(outside, _LATEST, of_places).argmin(1)
        return np.asarray(low + best, np.int64)

    def last_known(self, low: Places, high: Places, known: Places) -> tuple[Places, NDArray[np.bool_]]:
        """The last place in [low, high) whose version held at a moment, and whether there is one."""
        if not len(self._at):
            return low, np.zeros(len(low), np.bool_)
        chosen = np.concatenate([self._last_known(low[p], high[p], known[p]) for p in _parts(low, high)])
        return chosen, chosen >= 0

    def _last_known(self, low: Places, high: Places, known: Places) -> Places:
        places = _places(low, high)
        inside = np.minimum(places, len(self._at) - 1)
        since, until = self._columns["known_at"], self._columns["known_until"]
        now = known[:, None]
        held = since.valid[inside] & (since.values[inside] <= now)
        held &= ~until.valid[inside] | (now < until.values[inside])
        return np.asarray(np.where(held & (places < high[:, None]), places, -1).max(1), np.int64)

    def record(self, places: Places, there: NDArray[np.bool_], fields: Sequence[str]) -> dict[str, MaskedColumn]:
        """The fields of the events at some places, missing where there is none."""
        if not len(self._at):
            return {name: missing_column(len(places), self.kinds[name]) for name in fields}
        inside = np.where(there, places, 0)
        columns = ((name, self._columns[name]) for name in fields)
        return {name: MaskedColumn(column.values[inside], column.valid[inside] & there) for name, column in columns}


def _parts(low: Places, high: Places) -> list[slice]:
    """The rows in parts, each of which compares no more events at once than memory should hold; at least one."""
    step = max(1, _CELLS // max(1, int((high - low).max(initial=0))))
    return [slice(start, start + step) for start in range(0, max(len(low), 1), step)]


def _places(low: Places, high: Places) -> Places:
    """[rows, width]: each place from low on, as many as the widest row has."""
    return np.asarray(low[:, None] + np.arange(max(1, int((high - low).max(initial=0)))), np.int64)
