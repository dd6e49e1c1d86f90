"""The events of one key, decoded: arrays of Python's own, so that one point looks up its history by bisection.

`features.point_program` says what a point wants of a series. For the millions of points of a batch `SortedEvents` finds
the same in arrays of all keys, and tests hold both to the same bits.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from features.masked import MaskedColumn
from features.series import Series

_OVERHEAD_BYTES = 100  # of an array, about
_ITEM_BYTES = 48  # of a value that is an object of its own, about
_NOTHING_BYTES = 700  # of a key without events, about


class KeyEvents(NamedTuple):
    """In the order of moments: `totals` are the running ones of each sum, with a zero before the first event.

    Doubles add whole numbers up exactly.
    """

    at: Sequence[int]
    totals: tuple[Sequence[float], ...]
    columns: Mapping[str, Sequence[Any]]  # None where a value is missing
    nbytes: int


def find_extreme(ranks: Sequence[int], low: int, high: int, last: bool) -> int:  # noqa: FBT001  # called for each point
    """The place in [low, high), which is not empty, of the record of the greatest rank (or the least)."""
    inside = ranks[low:high]
    return low + inside.index(max(inside) if last else min(inside))


def find_last_known(columns: Mapping[str, Sequence[Any]], low: int, high: int, known: int) -> int:
    """The last place in [low, high) whose version held at a moment; -1: none."""
    since, until = columns["known_at"], columns["known_until"]
    for place in range(high - 1, low - 1, -1):
        if since[place] is not None and since[place] <= known and (until[place] is None or known < until[place]):
            return place
    return -1


def decode_events(series: Series, columns: Mapping[str, MaskedColumn] | None) -> KeyEvents:
    """The events of a key from the columns that are stored; None: the store has nothing under the key."""
    if columns is None:
        return KeyEvents((), tuple((0.0,) for _ in series.sums), dict.fromkeys(series.stored, ()), _NOTHING_BYTES)
    at = array("q", columns["moment"].values.tobytes())
    totals = tuple(_add_up(columns[name].values) for name in series.sums)
    others = {
        name: _plain(columns[name], kind)
        for name, kind in series.stored.items()
        if name in series.columns or name.startswith("rank")
    }
    sizes = [len(each) * (8 if isinstance(each, array) else _ITEM_BYTES) for each in (at, *totals, *others.values())]
    return KeyEvents(at, totals, others, sum(sizes) + _OVERHEAD_BYTES * len(sizes))


def _add_up(values: NDArray[np.int64]) -> Sequence[float]:
    totals = np.zeros(len(values) + 1)
    totals[1:] = np.cumsum(values)
    return array("d", totals.tobytes())


def _plain(column: MaskedColumn, kind: str) -> Sequence[Any]:
    values, valid = column
    if kind == "boolean":
        values = values.astype(np.bool_)
    if not valid.all():
        return [value if there else None for value, there in zip(values.tolist(), valid.tolist(), strict=True)]
    if kind in ("varchar", "boolean"):
        return list(values.tolist())
    return array("d" if kind == "double" else "q", values.tobytes())
