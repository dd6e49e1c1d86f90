"""The events of one key, decoded: arrays of Python's own, so that one point looks up its history by bisection.

`features.point_program` says what a point wants of a series. For the millions of points of a batch `SortedEvents` finds
the same in arrays of all keys, and tests hold both to the same bits.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any, NamedTuple

import numpy as np

from features.masked import MaskedColumn
from features.measures import place_running
from features.series import Series
from features.series_codec import HEAD_BYTES, list_payloads, unpack_series

_OBJECTS = frozenset({"varchar", "boolean"})  # kinds of which each value is an object
_FORMS = {"double": "d"}
_OVERHEAD_BYTES = 100  # of an array, about
_KEY_COPIES = 4  # of a key's characters, about: its text, and its values
_ITEM_BYTES = 48  # of a value that is an object of its own, about


class KeyEvents(NamedTuple):
    """In the order of moments: `totals` are the running ones of each sum, with a zero before the first event.

    Behind them are those of each column of which variances are asked, as `place_running` says.
    """

    at: "array[int]"
    totals: tuple[Any, ...]  # arrays; of variances lists, since squares soon take more than 64 bits
    columns: dict[str, "array[Any] | list[Any]"]  # None where a value is missing

    @property
    def nbytes(self) -> int:
        """What it takes in memory, about."""
        every = (self.at, *self.totals, *self.columns.values())
        sizes = (len(each) * (8 if isinstance(each, array) else _ITEM_BYTES) for each in every)
        return sum(sizes) + _OVERHEAD_BYTES * (2 + len(every))


@dataclass(frozen=True)
class DecodedSeries:
    """The events of a key, what each of its payloads begins with, and how many events there are up to its end."""

    events: KeyEvents
    heads: list[bytes]
    ends: list[int]


def count_held_bytes(text: str, decoded: DecodedSeries | None) -> int:
    """What a series takes that is held under the text of its key, about; None: it is damaged."""
    return (decoded.events.nbytes if decoded else 0) + _KEY_COPIES * len(text)


def decode_series(
    series: Series, text: str, parts: tuple[bytes | None, bytes | None], was: DecodedSeries | None = None
) -> DecodedSeries:
    """The events of a key from its parts in the store, whatever each has; from what they were before, which is changed.

    Events of a later part are greater in every order: only a series whose orders begin with the moment is parted.

    Raises:
        ValueError: a part is not what was written under this key.
    """
    payloads = list_payloads(text, parts)
    decoded = was or DecodedSeries(make_events(series), [], [])
    events, heads, ends = decoded.events, decoded.heads, decoded.ends
    same = 0
    while same < min(len(heads), len(payloads)) and payloads[same].startswith(heads[same]):
        same += 1
    del heads[same:], ends[same:]
    _shorten(events, ends[-1] if ends else 0)
    for payload in payloads[same:]:
        extend_events(events, series, unpack_series(text, payload, series.stored))
        heads.append(payload[:HEAD_BYTES])
        ends.append(len(events.at))
    return decoded


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


def make_events(series: Series) -> KeyEvents:
    """None yet."""
    kinds = {n: kind for n, kind in series.stored.items() if n in series.columns or n.startswith("rank")}
    columns: dict[str, array[Any] | list[Any]] = {
        name: [] if kind in _OBJECTS else array(_FORMS.get(kind, "q")) for name, kind in kinds.items()
    }
    running = ([0] for name in series.variances for _ in place_running(series, name))
    return KeyEvents(array("q"), (*(array("q", [0]) for _ in series.sums), *running), columns)


def _shorten(events: KeyEvents, length: int) -> None:
    del events.at[length:]
    for totals in events.totals:
        del totals[length + 1 :]
    for column in events.columns.values():
        del column[length:]


def extend_events(events: KeyEvents, series: Series, columns: Mapping[str, MaskedColumn]) -> None:
    """Events behind those that are there."""
    ranks = {f"rank{number}": len(events.at) for number in range(len(series.orders))}  # a field may begin so, too
    events.at.frombytes(columns["moment"].values.tobytes())
    for name, totals in zip(series.sums, events.totals, strict=False):
        totals.frombytes((np.cumsum(columns[name].values, dtype=np.int64) + totals[-1]).tobytes())
    for name in series.variances:
        values, valid = (each.tolist() for each in columns[name])
        told = [value if there else 0 for value, there in zip(values, valid, strict=True)]
        squares = [value * value for value in told]
        for place, coming in zip(place_running(series, name), (valid, told, squares), strict=True):
            totals = events.totals[place]
            totals.extend(islice(accumulate(coming, initial=totals[-1]), 1, None))
    for name, column in events.columns.items():
        values, valid = columns[name]
        if name in ranks and name not in series.columns:
            values = values + ranks[name]
        if series.stored[name] == "boolean":
            values = values.astype(np.bool_)
        if isinstance(column, array) and valid.all():
            column.frombytes(values.tobytes())
            continue
        both = zip(values.tolist(), valid.tolist(), strict=True)
        coming = [value if there else None for value, there in both]
        if isinstance(column, list):
            column.extend(coming)
        else:  # what was there has no gaps
            events.columns[name] = [*column, *coming]
