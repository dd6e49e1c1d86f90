"""Decoded series of one kind, side by side in sorted arrays, so that a batch of lookups is a few array operations."""

from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from features.operations import MaskedColumn, missing_column
from features.series import Series
from features.sorted_events import Places, SortedEvents

_BITS = 44  # of a place in the cache that say when, in microseconds from the base: half a year
_LATEST = (1 << _BITS) - 2


class SeriesCache(SortedEvents):
    """Every key seen so far of one series. A key has a slot; an event's place is its slot and, below it, its moment."""

    def __init__(self, series: Series, base: int) -> None:
        columns = {
            name: missing_column(0, kind)
            for name, kind in series.stored.items()
            if name in series.columns or name.startswith("rank")
        }
        super().__init__(series, np.zeros(0, np.int64), np.zeros((1, len(series.sums)), np.int64), columns)
        self.slots: dict[Hashable, int] = {}
        self.damaged: set[int] = set()
        self._base = base

    @property
    def nbytes(self) -> int:
        """About the memory it holds."""
        arrays = [self._at, self._sums, *(array for column in self._columns.values() for array in column)]
        return sum(array.nbytes for array in arrays) + 200 * len(self.slots)

    def add(self, read: Sequence[tuple[Hashable, Mapping[str, MaskedColumn] | None]], damaged: set[Hashable]) -> None:
        """Keys with their series; None: the store has nothing under this key, or what it has is damaged."""
        chunks = []
        for key, columns in read:
            slot = self.slots[key] = len(self.slots)
            if key in damaged:
                self.damaged.add(slot)
            if columns is not None:
                chunks.append((slot, columns))
        if not chunks:
            return
        self._at = np.concatenate([self._at, *(slot << _BITS | self._since(c["moment"].values) for slot, c in chunks)])
        for name, before in self._columns.items():
            self._columns[name] = MaskedColumn(
                np.concatenate([before.values, *(c[name].values for _, c in chunks)]),
                np.concatenate([before.valid, *(c[name].valid for _, c in chunks)]),
            )
        if self.series.sums:  # a null is stored as zero
            new = [np.concatenate([c[name].values for _, c in chunks]) for name in self.series.sums]
            self._sums = np.concatenate([self._sums, self._sums[-1] + np.cumsum(np.stack(new, axis=1), axis=0)])

    def forget(self, keys: Collection[Hashable]) -> None:
        """Drop keys with their series: whoever asks for one of them reads it again. Slots are numbered anew."""
        if not (gone := {self.slots.pop(key) for key in keys if key in self.slots}):
            return
        left = np.array(sorted(self.slots.values()), np.int64)
        numbers = dict(zip(left.tolist(), range(len(left)), strict=True))
        self.slots = {key: numbers[slot] for key, slot in self.slots.items()}
        self.damaged = {numbers[slot] for slot in self.damaged - gone}
        of_slots = self._at >> _BITS
        kept = ~np.isin(of_slots, list(gone))
        self._at = left.searchsorted(of_slots[kept]) << _BITS | (self._at[kept] & ((1 << _BITS) - 1))
        self._columns = {n: MaskedColumn(c.values[kept], c.valid[kept]) for n, c in self._columns.items()}
        if self.series.sums:
            sums = np.diff(self._sums, axis=0)[kept]
            self._sums = np.concatenate([self._sums[:1], np.cumsum(sums, axis=0)])

    def bounds(self, slots: Places, *moments: Places) -> NDArray[np.int64]:
        keys = slots << _BITS
        places = np.concatenate([keys | self._since(moment) for moment in moments])
        return np.asarray(self._at.searchsorted(places).reshape(len(moments), -1), np.int64)

    def _since(self, moments: Places) -> Places:
        # What is earlier than anything kept counts as the earliest; the order of events does not change.
        return np.minimum(np.maximum(moments - self._base, 0), _LATEST)
