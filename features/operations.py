"""The operations of expressions, on columns of values with a mark for each that is there; nulls as SQL has them."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import duckdb
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
UNITS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
NUMBER_TYPES = {"float": np.float32, "double": np.float64, "bigint": np.int64}
_DAYS = np.array(["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"], object)  # from 1970
_TABLE_BEGIN, _TABLE_END = (int(np.datetime64(year, "us").astype(np.int64)) for year in ("1970", "2070"))


class MaskedColumn(NamedTuple):
    """Values of one type (moments as microseconds since 1970, in UTC or a local clock), and which of them are there."""

    values: Array
    valid: NDArray[np.bool_]


def repeat_value(value: Any, rows: int) -> MaskedColumn:
    """The same value in each row."""
    return MaskedColumn(np.full(rows, value, object if isinstance(value, str) else None), np.ones(rows, np.bool_))


def missing_column(rows: int, kind: str) -> MaskedColumn:
    """Nothing in each row, of a type."""
    kinds = {"varchar": object, "double": np.float64, "boolean": np.bool_, "struct": np.bool_}
    return MaskedColumn(np.zeros(rows, kinds.get(kind, np.int64)), np.zeros(rows, np.bool_))


def arithmetic(function: Callable[[Array, Array], Array]) -> Callable[[MaskedColumn, MaskedColumn], MaskedColumn]:
    """A function of two values, null where either is."""
    return lambda a, b: MaskedColumn(function(a.values, b.values), a.valid & b.valid)


def nullif(a: MaskedColumn, b: MaskedColumn) -> MaskedColumn:
    """The first, or null where both are equal."""
    return MaskedColumn(a.values, a.valid & ~((a.values == b.values) & b.valid))


def extreme(function: Callable[[Array, Array], Array]) -> Callable[..., MaskedColumn]:
    """The greatest or least of those that are there."""

    def choose(first: MaskedColumn, *others: MaskedColumn) -> MaskedColumn:
        for other in others:
            both = first.valid & other.valid
            values = np.where(first.valid, first.values, other.values)
            values[both] = function(first.values[both], other.values[both])
            first = MaskedColumn(values, first.valid | other.valid)
        return first

    return choose


def coalesce(first: MaskedColumn, *others: MaskedColumn) -> MaskedColumn:
    """The first that is there."""
    for other in others:
        first = MaskedColumn(np.where(first.valid, first.values, other.values), first.valid | other.valid)
    return first


def case(*columns: MaskedColumn) -> MaskedColumn:
    """Conditions, then the value of each and that of none of them."""
    conditions = len(columns) // 2
    values, valid = columns[-1]
    for when, then in zip(columns[conditions - 1 :: -1], columns[-2 : conditions - 1 : -1], strict=True):
        holds = when.values & when.valid
        values, valid = np.where(holds, then.values, values), np.where(holds, then.valid, valid)
    return MaskedColumn(values, valid)


def conjunction(*, every: bool) -> Callable[..., MaskedColumn]:
    """`and` or `or`: null where what is not known decides."""

    def combine(*columns: MaskedColumn) -> MaskedColumn:
        decided = np.logical_or.reduce([c.valid & (c.values != every) for c in columns])
        return MaskedColumn(decided != every, decided | np.logical_and.reduce([c.valid for c in columns]))

    return combine


def negation(a: MaskedColumn) -> MaskedColumn:
    """`not`; null stays null."""
    return MaskedColumn(~a.values, a.valid)


def is_null(a: MaskedColumn) -> MaskedColumn:
    """Whether nothing is there."""
    return MaskedColumn(~a.valid, np.ones(len(a.valid), np.bool_))


def is_not_null(a: MaskedColumn) -> MaskedColumn:
    """Whether something is there."""
    return MaskedColumn(a.valid, np.ones(len(a.valid), np.bool_))


def identity(a: MaskedColumn) -> MaskedColumn:
    """Another type, the same values."""
    return a


def cast(target: str) -> Callable[[MaskedColumn], MaskedColumn]:
    """A number of another type."""
    return lambda a: MaskedColumn(a.values.astype(NUMBER_TYPES[target]), a.valid)


def as_text(a: MaskedColumn) -> MaskedColumn:
    """Whole numbers as text."""
    return MaskedColumn(np.array([str(value) for value in a.values.tolist()], object), a.valid)


def concatenate(a: MaskedColumn, b: MaskedColumn) -> MaskedColumn:
    """One text after the other."""
    valid = a.valid & b.valid
    pairs = zip(a.values.tolist(), b.values.tolist(), valid.tolist(), strict=True)
    return MaskedColumn(np.array([left + right if there else None for left, right, there in pairs], object), valid)


def truncate(unit: int) -> Callable[[MaskedColumn], MaskedColumn]:
    """The beginning of the unit a moment is in."""
    return lambda a: MaskedColumn(a.values // unit * unit, a.valid)


def difference(unit: int) -> Callable[[MaskedColumn, MaskedColumn], MaskedColumn]:
    """How many times a unit begins from the first moment to the second."""
    return lambda a, b: MaskedColumn(b.values // unit - a.values // unit, a.valid & b.valid)


PARTS: dict[str, Callable[[MaskedColumn], MaskedColumn]] = {
    "hour": lambda a: MaskedColumn(a.values // UNITS["hour"] % 24, a.valid),
    "minute": lambda a: MaskedColumn(a.values // UNITS["minute"] % 60, a.valid),
    "dayname": lambda a: MaskedColumn(_DAYS[a.values // UNITS["day"] % 7], a.valid),
    "year": lambda a: MaskedColumn(a.values.view("M8[us]").astype("M8[Y]").astype(np.int64) + 1970, a.valid),
}


def local_clock(zone: MaskedColumn, moment: MaskedColumn) -> MaskedColumn:
    """The wall clock of a zone at a moment; null in a zone that there is not."""
    values, valid = moment.values.copy(), zone.valid & moment.valid
    near = valid & (moment.values >= _TABLE_BEGIN) & (moment.values < _TABLE_END)
    for name in set(zone.values[valid].tolist()):
        here = valid & (zone.values == name)
        if (changes := _changes(name)) is None:
            valid = valid & ~here
        else:
            moments, ahead = changes
            values[here & near] += ahead[moments.searchsorted(values[here & near], side="right")]
    far = valid & ~near
    if far.any():  # whatever years are named, no table is made for them
        with duckdb.connect() as connection:
            values[far] += _ahead(connection, zone.values[far], values[far])
    return MaskedColumn(values, valid)


@lru_cache(maxsize=64)
def _changes(zone: str) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """When a zone's clock is changed, and what it is ahead of UTC before, between and after, in microseconds.

    They come from the engine that computes the batch, so that both have one table of zones; None: there is no such
    zone. A table is of one zone and every year near ours: its cost does not grow with what clients send.
    """
    days = np.arange(_TABLE_BEGIN, _TABLE_END + 1, UNITS["day"])
    with duckdb.connect() as connection:
        try:
            ahead = _ahead(connection, np.full(len(days), zone, object), days)
        except duckdb.NotImplementedException:
            return None
        changed = np.flatnonzero(np.diff(ahead))
        low, high = days[changed], days[changed + 1]  # still the old time; already the new one
        while (high - low > UNITS["second"]).any():
            middle = (low + high) // 2 // UNITS["second"] * UNITS["second"]
            old = _ahead(connection, np.full(len(middle), zone, object), middle) == ahead[changed]
            low, high = np.where(old, middle, low), np.where(old, high, middle)
    return high, np.append(ahead[changed], ahead[-1])


def _ahead(connection: duckdb.DuckDBPyConnection, zones: Array, moments: Array) -> NDArray[np.int64]:
    """What the clock of each zone is ahead of UTC at its moment: one query."""
    pairs = "select unnest($1::varchar[]) as zone, unnest($2::bigint[]) as moment"
    query = f"select epoch_us(timezone(zone, make_timestamptz(moment))) - moment as ahead from ({pairs})"
    return np.asarray(connection.execute(query, [zones.tolist(), moments.tolist()]).fetchnumpy()["ahead"], np.int64)
