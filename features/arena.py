"""Decoded series of one kind, side by side in sorted arrays, so that a batch of questions is a few array operations."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.operations import Column, missing
from features.series import Series

_BITS = 44  # of a place in the arena that say when, in microseconds from the base: half a year
_LATEST = (1 << _BITS) - 2
Places = NDArray[np.int64]


class Arena:
    """Every key seen so far of one series. A key has a slot; an event's place is its slot and, below it, its moment."""

    def __init__(self, series: Series, base: int) -> None:
        self.series = series
        self.kinds = series.stored
        self.slots: dict[Hashable, int] = {}
        self.damaged: set[int] = set()
        self._base = base
        self._at = np.zeros(0, np.int64)
        self._sums = np.zeros((1, len(series.sums)), np.int64)
        kept = [name for name in self.kinds if name in series.columns or name.startswith("rank")]
        self._columns = {name: missing(0, self.kinds[name]) for name in kept}

    @property
    def nbytes(self) -> int:
        """About the memory it holds."""
        columns = sum(column.values.nbytes + column.valid.nbytes for column in self._columns.values())
        return self._at.nbytes + self._sums.nbytes + columns + 200 * len(self.slots)

    def add(self, found: Sequence[tuple[Hashable, Mapping[str, Column] | None]], damaged: set[Hashable]) -> None:
        """Keys with their series; None: the store has nothing of this key, or what it has is damaged."""
        chunks = []
        for key, columns in found:
            slot = self.slots[key] = len(self.slots)
            if key in damaged:
                self.damaged.add(slot)
            if columns is not None:
                chunks.append((slot, columns))
        if not chunks:
            return
        self._at = np.concatenate([self._at, *(slot << _BITS | self._since(c["moment"].values) for slot, c in chunks)])
        for name, before in self._columns.items():
            values = np.concatenate([before.values, *(c[name].values for _, c in chunks)])
            self._columns[name] = Column(values, np.concatenate([before.valid, *(c[name].valid for _, c in chunks)]))
        if self.series.sums:  # a null is stored as zero
            new = [np.concatenate([c[name].values for _, c in chunks]) for name in self.series.sums]
            self._sums = np.concatenate([self._sums, self._sums[-1] + np.cumsum(np.stack(new, axis=1), axis=0)])

    def bounds(self, slots: Places, *moments: Places) -> NDArray[np.int64]:
        """For each moment, how far the events of the slot lie before it: [moments, slots]; a slot below 0 has none."""
        keys = slots << _BITS
        asked = np.concatenate([keys | self._since(moment) for moment in moments])
        return np.asarray(self._at.searchsorted(asked).reshape(len(moments), -1), np.int64)

    def totals(self, low: Places, high: Places) -> NDArray[np.float64]:
        """Sums of the events in [low, high): [sums, rows]."""
        return (self._sums[high] - self._sums[low]).T.astype(np.float64)

    def extreme(self, low: Places, high: Places, order: int, *, last: bool) -> Places:
        """The place in [low, high) of the record that is greatest (or least) in an order; any where there is none."""
        if self.series.orders[order][0] == self.series.moment:  # sorted so already
            return high - 1 if last else low
        ranks = self._columns[f"rank{order}"].values
        places = low[:, None] + np.arange(max(1, int((high - low).max())))
        outside = places >= high[:, None]
        found = ranks[np.minimum(places, len(ranks) - 1)] if len(ranks) else np.zeros(places.shape, np.int64)
        if last:
            return np.asarray(low + np.where(outside, -1, found).argmax(1), np.int64)
        return np.asarray(low + np.where(outside, _LATEST, found).argmin(1), np.int64)

    def last_known(self, low: Places, high: Places, known: Places) -> tuple[Places, NDArray[np.bool_]]:
        """The last place in [low, high) whose version held at a moment, and whether there is one."""
        places = low[:, None] + np.arange(max(1, int((high - low).max())))
        if not len(self._at):
            return low, np.zeros(len(low), np.bool_)
        inside = np.minimum(places, len(self._at) - 1)
        since, until = self._columns["known_at"], self._columns["known_until"]
        now = known[:, None]
        held = (since.values[inside] <= now) & (~until.valid[inside] | (now < until.values[inside]))
        chosen = np.where(held & (places < high[:, None]), places, -1).max(1)
        return chosen, chosen >= 0

    def record(self, places: Places, there: NDArray[np.bool_], fields: Sequence[str]) -> dict[str, Column]:
        """The fields of the events at some places, missing where there is none."""
        if not len(self._at):
            return {name: missing(len(places), self.kinds[name]) for name in fields}
        inside = np.where(there, places, 0)
        columns = ((name, self._columns[name]) for name in fields)
        return {name: Column(column.values[inside], column.valid[inside] & there) for name, column in columns}

    def _since(self, moments: Places) -> Places:
        # What is earlier than anything kept counts as the earliest; the order of events does not change.
        return np.minimum(np.maximum(moments - self._base, 0), _LATEST)
