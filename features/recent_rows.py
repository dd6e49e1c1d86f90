"""The later events of one stream, in one order for all of its series: each takes the events of some keys from them.

What `extract_sql` says in SQL, for a few thousand events in memory, of which many series take a part at each step.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from features.series import Series

Codes = NDArray[np.int64]


class RecentRows:
    """Rows of a stream, and by column the number of each value. For series that all are of that stream and parted."""

    def __init__(self, rows: pa.Table, order: Sequence[str]) -> None:
        """`order` is that of all series, as `Series.order` has it."""
        self._rows = rows.sort_by([(name, "ascending") for name in order]).combine_chunks()
        self._numbered = dict[str, tuple[Codes, pa.Array]]()
        self._compared = dict[tuple[str, ...], Codes]()

    def select(self, series: Series, keys: pa.Table) -> pa.Table:
        """The events of some keys, as `extract_sql` has them, those of each key together."""
        of_rows, of_keys = self._number_keys(series.key, keys)
        chosen = np.isin(of_rows, of_keys) & (of_rows >= 0)
        if series.lookup:
            chosen &= self._held
        places = np.flatnonzero(chosen)
        places = places[np.argsort(of_rows[places], kind="stable")]
        names = dict.fromkeys([*series.key, *series.sums, *series.columns])
        rows = self._rows.select(list(dict.fromkeys([series.moment, *names]))).take(pa.array(places))
        ranks = (self._rank(fields, of_rows[places], places) for fields in series.orders)
        return pa.table(
            {
                "moment": rows[series.moment],
                **{name: rows[name] for name in names},
                **{f"rank{number}": pa.array(each) for number, each in enumerate(ranks)},
            }
        )

    def _number_keys(self, key: Sequence[str], keys: pa.Table) -> tuple[Codes, Codes]:
        """A number for each row's key, and for each of the keys; below zero: it has none, or no row has it."""
        of_rows, of_keys = np.zeros(self._rows.num_rows, np.int64), np.zeros(keys.num_rows, np.int64)
        for name in key:
            numbers, values = self._number(name)
            wanted = pc.fill_null(pc.index_in(keys[name].combine_chunks(), value_set=values), -1)
            of_rows = _combine(of_rows, numbers, len(values))
            of_keys = _combine(of_keys, wanted.to_numpy(zero_copy_only=False).astype(np.int64), len(values))
        return of_rows, of_keys

    def _number(self, name: str) -> tuple[Codes, pa.Array]:
        """The number of each row's value, and the values; of nothing it is below zero."""
        if name not in self._numbered:
            encoded = pc.dictionary_encode(_whole(self._rows[name]))
            numbers = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
            self._numbered[name] = (numbers, encoded.dictionary)
        return self._numbered[name]

    @cached_property
    def _held(self) -> NDArray[np.bool_]:
        """Versions that held: another took not their place at the same moment."""
        same = pc.equal(self._rows["known_until"], self._rows["known_at"])
        held: NDArray[np.bool_] = np.logical_not(pc.fill_null(same, fill_value=False).to_numpy())
        return held

    def _rank(self, fields: tuple[str, ...], keys: Codes, places: NDArray[np.int64]) -> Codes:
        """One more than the events of the same key whose record is less, for each place."""
        records = self._compare(fields)[places]
        order = np.lexsort((records, keys))
        keys, records, positions = keys[order], records[order], np.arange(len(order))
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = keys[1:] != keys[:-1]
        begins = np.maximum.accumulate(np.where(is_first, positions, 0))
        is_first[1:] |= records[1:] != records[:-1]
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.maximum.accumulate(np.where(is_first, positions, 0)) - begins + 1
        return ranks

    def _compare(self, fields: tuple[str, ...]) -> Codes:
        """A number for each row's record: equal ones have the same, and greater ones a greater one."""
        if fields not in self._compared:
            order = pc.sort_indices(self._rows, [(name, "ascending") for name in fields]).to_numpy()
            differs = np.zeros(len(order), np.bool_)
            for name in fields if len(order) else ():
                numbers = self._number(name)[0][order]
                differs[1:] |= numbers[1:] != numbers[:-1]
            numbered = np.empty(len(order), np.int64)
            numbered[order] = np.cumsum(differs)
            self._compared[fields] = numbered
        return self._compared[fields]


def _combine(numbers: Codes, others: Codes, size: int) -> Codes:
    return np.where((numbers < 0) | (others < 0), -1, numbers * max(size, 1) + others)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Its values in one piece; there is one zero."""
    values = column.combine_chunks()
    return pc.add(values, 0.0) if pa.types.is_floating(values.type) else values
