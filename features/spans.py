"""Spans of time as windows write them: "90 minutes", "1 day", "6 months".

Months and years are the calendar's, in UTC: a span of months begins on the same day of an earlier month, or on its last
day where that month is shorter, at the same time of day. That is what `moment - interval 6 months` is in SQL.
"""

import re
from datetime import timedelta
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_DAY = 86_400_000_000
_UNITS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": _DAY, "week": 7 * _DAY}
_MONTHS = {"month": 1, "year": 12}
_SHORT = {"month": "mo"}  # of the others the first letter
_WRITTEN = re.compile(rf"([1-9]\d*) ({'|'.join([*_UNITS, *_MONTHS])})s?")
_LONGEST_YEARS = 100
_LONGEST_MONTH = 31 * _DAY


class WindowSpan(NamedTuple):
    """So many months of the calendar, or microseconds; the other is 0."""

    months: int
    microseconds: int

    def begin(self, moments: NDArray[np.int64]) -> NDArray[np.int64]:
        """When spans that end at these moments begin; in microseconds since 1970."""
        return months_before(moments, self.months) if self.months else moments - self.microseconds


def read_window_span(text: str) -> WindowSpan:
    """A span from its text: a whole number, and a unit from second to year, in the singular or the plural.

    Raises:
        ValueError: it is none, or longer than a hundred years.
    """
    if (written := _WRITTEN.fullmatch(text)) is None:
        raise ValueError(f"expected a span like '7 days', of {', '.join([*_UNITS, *_MONTHS])}, got {text!r}")
    number, unit = int(written[1]), written[2]
    span = WindowSpan(number * _MONTHS.get(unit, 0), number * _UNITS.get(unit, 0))
    if _longest(span) > 12 * _LONGEST_YEARS * _LONGEST_MONTH:
        raise ValueError(f"expected a span of at most {_LONGEST_YEARS} years, got {text!r}")
    return span


def parse_span(text: str) -> timedelta:
    """The longest that a span can be: its months have 31 days."""
    return timedelta(microseconds=_longest(read_window_span(text)))


def short_span(text: str) -> str:
    """A span as names of columns have it: `7d`, `6mo`."""
    number, unit = text.split()
    return f"{number}{_SHORT.get(unit.removesuffix('s'), unit[0])}"


def months_before(moments: NDArray[np.int64], months: int) -> NDArray[np.int64]:
    """The same day of an earlier month, or its last where that is shorter; in microseconds since 1970."""
    days, time = np.divmod(moments, _DAY)
    dates = days.astype("datetime64[D]")
    month = dates.astype("datetime64[M]")
    first, after = ((month - months + more).astype("datetime64[D]") for more in (0, 1))
    begins = first + np.minimum(dates - month.astype("datetime64[D]"), after - first - 1)
    return np.asarray(begins.astype(np.int64) * _DAY + time)


def _longest(span: WindowSpan) -> int:
    return span.months * _LONGEST_MONTH + span.microseconds
