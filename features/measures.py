"""Variances and distinct counts, of one point in plain Python and of many in arrays: the same bits either way.

A variance is of whole numbers and exact until its division: (n times the total of squares, less the square of the
total) by n (n - 1), each rounded once to a double. So values that are all equal have a variance of 0, and no order of
adding matters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.masked import Array, MaskedColumn
from features.series import Series

_NARROW = float(1 << 62)  # what is below it, whatever was rounded on the way, is so in 64 bits
_RUNNING = 3  # of each column of which variances are asked: its values' count, their total, and that of their squares


def place_running(series: Series, column: str) -> range:
    """Where the running totals of a column's variance are among those of a series: behind those of sums."""
    first = len(series.sums) + _RUNNING * series.variances.index(column)
    return range(first, first + _RUNNING)


def find_variance(count: int, total: int, squares: int) -> float | None:
    """The sample variance of so many values with this total, and this total of squares; None of fewer than two."""
    return float(count * squares - total * total) / float(count * (count - 1)) if count > 1 else None


def count_distinct(values: Sequence[Any]) -> float:
    """How many different values there are."""
    return float(len({*values} - {None}))


def add_up_running(column: MaskedColumn) -> tuple[Array, Array, Array]:
    """Running count, total and total of squares of the values that are there, each with a zero before the first."""
    values, valid = column
    told: Array = np.where(valid, values, 0).astype(np.int64)
    if float(np.abs(told.astype(np.float64)).max(initial=0)) ** 2 * len(told) >= _NARROW:
        told = told.astype(object)  # Python's whole numbers have no bounds
    return _run(valid.astype(np.int64)), _run(told), _run(told * told)


def find_variances(counts: Array, totals: Array, squares: Array) -> MaskedColumn:
    """As `find_variance`, of each."""
    if float(counts.max(initial=0)) * float(squares.max(initial=0)) >= _NARROW:
        counts, totals, squares = (each.astype(object) for each in (counts, totals, squares))
    spread = (counts * squares - totals * totals).astype(np.float64)
    valid = np.asarray(counts > 1, np.bool_)
    pairs = (counts * (counts - 1)).astype(np.float64)
    return MaskedColumn(np.divide(spread, pairs, out=np.zeros(len(spread)), where=valid), valid)


class DistinctCounter:
    """How many different values some stretches of a column hold, of whatever width: each costs the same.

    A value counts where none that is equal stands before it in the stretch. So of the values up to the stretch's end
    those count whose last equal one stands before its beginning, but for those before the beginning themselves.
    """

    def __init__(self, column: MaskedColumn) -> None:
        values = column.values[column.valid]
        self._ranks = np.append(0, np.cumsum(column.valid))  # how many values are there before each place
        same = np.unique(values, return_inverse=True)[1] if len(values) else np.zeros(0, np.int64)
        order = np.argsort(same, kind="stable")
        again = same[order[1:]] == same[order[:-1]]
        self._after_equal = np.zeros(len(values), np.int64)  # one more than the place of the last equal one; 0: none
        self._after_equal[order[1:][again]] = order[:-1][again] + 1

    def count(self, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.float64]:
        """For each stretch [low, high)."""
        low, high = self._ranks[low], self._ranks[high]
        return (count_at_most(self._after_equal, low, high) - low).astype(np.float64)


def count_at_most(numbers: NDArray[np.int64], limits: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each limit, how many of the numbers before an end are no greater; none is below 0.

    A wavelet matrix: bit by bit, from the highest, numbers are parted into those without the bit and those with it, and
    each limit follows its own bits. What has no bit where the limit has one is less.
    """
    bounds = limits + 1
    start, stop, found = np.zeros_like(ends), ends, np.zeros_like(ends)
    widest = max(int(numbers.max(initial=0)), int(bounds.max(initial=0)))
    for bit in reversed(range(widest.bit_length())):
        has_bit = (numbers >> bit & 1).astype(np.bool_)
        without = np.append(0, np.cumsum(~has_bit))  # how many have no bit before each place
        low, high, is_above = without[start], without[stop], (bounds >> bit & 1).astype(np.bool_)
        found = found + np.where(is_above, high - low, 0)
        start = np.where(is_above, without[-1] + start - low, low)
        stop = np.where(is_above, without[-1] + stop - high, high)
        numbers = np.concatenate([numbers[~has_bit], numbers[has_bit]])
    return found


def _run(values: Array) -> Array:
    return np.append(np.zeros(1, values.dtype), np.cumsum(values))
