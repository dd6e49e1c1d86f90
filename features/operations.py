"""What expressions call by name, on values of one event: numbers as numpy and DuckDB have them, moments, and clocks.

Nothing is None here but for `greatest` and `least`: expressions ask no function about a value that is missing.
"""

import math
from bisect import bisect_right
from datetime import datetime, timedelta
from functools import lru_cache, reduce
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

UNITS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
_DAYS = ("Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday")  # from 1970
_TABLE_BEGIN, _TABLE_END = (int(np.datetime64(year, "us").astype(np.int64)) for year in ("1900", "2200"))
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # a clock of whatever zone
_WHOLE, _EXACT = 1 << 63, 1 << 53


def wrap(number: int) -> int:
    """A whole number in 64 bits."""
    return number if -_WHOLE <= number < _WHOLE else (number + _WHOLE) % (2 * _WHOLE) - _WHOLE


def round_whole(number: int) -> float:
    """To the nearest of 32 bits where doubles do not have it: by way of a double it would be rounded twice."""
    return float(number) if -_EXACT <= number <= _EXACT else float(np.int64(number).astype(np.float32))


def divide(a: float, b: float) -> float:
    """By zero as well: infinite, or not a number."""
    if b:
        return a / b
    return math.nan if not a or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1.0, b)


def greatest(*values: Any) -> Any:
    """The greatest of those that are there; not a number, where one is not."""
    there = [value for value in values if value is not None]
    return reduce(lambda a, b: a if a >= b or a != a else b, there) if there else None  # noqa: PLR0124  # NaN


def least(*values: Any) -> Any:
    """The least of those that are there; not a number, where one is not."""
    there = [value for value in values if value is not None]
    return reduce(lambda a, b: a if a <= b or a != a else b, there) if there else None  # noqa: PLR0124  # NaN


def hour(moment: int) -> int:
    """From 0 to 23."""
    return moment // UNITS["hour"] % 24


def minute(moment: int) -> int:
    """From 0 to 59."""
    return moment // UNITS["minute"] % 60


def dayname(moment: int) -> str:
    """In English."""
    return _DAYS[moment // UNITS["day"] % 7]


def year(moment: int) -> int:
    """Whatever year it is: Python's own calendar ends."""
    if _TABLE_BEGIN <= moment < _TABLE_END:
        return (_EPOCH + timedelta(microseconds=moment)).year
    return int(np.datetime64(moment, "us").astype("M8[Y]").astype(np.int64)) + 1970


def local_clock(zone: str, moment: int) -> int | None:
    """The wall clock of a zone at a moment; None in a zone that there is not."""
    if (changes := _changes(zone)) is None:
        return None
    if _TABLE_BEGIN <= moment < _TABLE_END:  # as all that clients may send is
        moments, ahead = changes
        return moment + ahead[bisect_right(moments, moment)]
    with duckdb.connect() as connection:
        return moment + int(_ahead(connection, zone, np.array([moment]))[0])


@lru_cache(maxsize=64)
def _changes(zone: str) -> tuple[list[int], list[int]] | None:
    """When a zone's clock is changed, and what it is ahead of UTC before, between and after, in microseconds.

    They come from the engine that computes the batch, so that both have one table of zones; None: there is no such
    zone. A table is of one zone and every year that a request may name: its cost does not grow with what clients send.
    """
    days = np.arange(_TABLE_BEGIN, _TABLE_END + 1, UNITS["day"])
    with duckdb.connect() as connection:
        try:
            ahead = _ahead(connection, zone, days)
        except duckdb.NotImplementedException:
            return None
        changed = np.flatnonzero(np.diff(ahead))
        low, high = days[changed], days[changed + 1]  # still the old time; already the new one
        while (high - low > UNITS["second"]).any():
            middle = (low + high) // 2 // UNITS["second"] * UNITS["second"]
            old = _ahead(connection, zone, middle) == ahead[changed]
            low, high = np.where(old, middle, low), np.where(old, high, middle)
    return high.tolist(), np.append(ahead[changed], ahead[-1]).tolist()


def _ahead(connection: duckdb.DuckDBPyConnection, zone: str, moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """What the clock of a zone is ahead of UTC at each moment: one query."""
    rows = "select unnest($2::bigint[]) as moment"
    query = f"select epoch_us(timezone($1, make_timestamptz(moment))) - moment as ahead from ({rows})"
    return np.asarray(connection.execute(query, [zone, moments.tolist()]).fetchnumpy()["ahead"], np.int64)


FUNCTIONS = (wrap, round_whole, divide, greatest, least, hour, minute, dayname, year, local_clock)
