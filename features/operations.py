"""What expressions call by name, on moments of one event (microseconds since 1970): calendars, and clocks of zones.

No operand is None: expressions ask no function about a value that is missing.
"""

from bisect import bisect_right
from datetime import datetime, timedelta
from functools import lru_cache

import duckdb
import numpy as np
from numpy.typing import NDArray

from features.rare_cases import ask

UNITS = {"second": 1_000_000, "minute": 60_000_000, "hour": 3_600_000_000, "day": 86_400_000_000}
_DAY = UNITS["day"]
_DAYS = ("Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday")  # from 1970
_MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
_TABLE_BEGIN, _TABLE_END = (int(np.datetime64(year, "us").astype(np.int64)) for year in ("1900", "2200"))
_SIXTY_FOUR_BITS = 1 << 63
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # a clock of whatever zone


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
    return _date_of(moment // _DAY)[0]


def month(moment: int) -> int:
    """From 1 to 12."""
    return _date_of(moment // _DAY)[1]


def day(moment: int) -> int:
    """From 1 to 31."""
    return _date_of(moment // _DAY)[2]


def quarter(moment: int) -> int:
    """From 1 to 4."""
    return (month(moment) + 2) // 3


def dayofyear(moment: int) -> int:
    """From 1 to 366."""
    days = moment // _DAY
    return days - _days_of(_date_of(days)[0], 1) + 1


def isodow(moment: int) -> int:
    """From 1, a Monday, to 7."""
    return (moment // _DAY + 3) % 7 + 1


def dayofweek(moment: int) -> int:
    """From 0, a Sunday, to 6."""
    return (moment // _DAY + 4) % 7


def week(moment: int) -> int:
    """ISO's week of the year: a week is of the year that has its Thursday."""
    days = moment // _DAY
    thursday = days - (days + 3) % 7 + 3
    return (thursday - _days_of(_date_of(thursday)[0], 1)) // 7 + 1


def second(moment: int) -> int:
    """From 0 to 59."""
    return moment // UNITS["second"] % 60


def epoch(micros: int) -> float:
    """In seconds."""
    return float(micros) / 1e6


def span_seconds(micros: int) -> float:
    """Of its days and of the rest apart, as DuckDB adds them up: the last bits of centuries show it."""
    days, rest = divmod(abs(micros), _DAY)
    seconds = days * 86_400 + rest / 1e6
    return seconds if micros >= 0 else -seconds


def monthname(moment: int) -> str:
    """In English."""
    return _MONTHS[month(moment) - 1]


def trunc_week(moment: int) -> int:
    """The Monday's first moment."""
    days = moment // _DAY
    return (days - (days + 3) % 7) * _DAY


def trunc_months(moment: int, months: int) -> int:
    """The first moment of this many months, counted from January."""
    years, number, _ = _date_of(moment // _DAY)
    return _days_of(years, (number - 1) // months * months + 1) * _DAY


def add_months(moment: int, months: int, micros: int) -> int:
    """The same day of another month, or its last where it is shorter; then micros."""
    days, time = divmod(moment, _DAY)
    years, number, place = _date_of(days)
    later = years * 12 + number - 1 + months
    first = _days_of(later // 12, later % 12 + 1)
    length = _days_of((later + 1) // 12, (later + 1) % 12 + 1) - first
    return (first + min(place, length) - 1) * _DAY + time + micros


def diff_weeks(since: int, until: int) -> int:
    """How many times seven midnights lie between: to DuckDB no week begins on a Monday here."""
    return _towards_zero(until // _DAY - since // _DAY, 7)


def diff_quarters(since: int, until: int) -> int:
    """How many quarters begin between; DuckDB counts those before the year 0 from the other side."""
    return _towards_zero(_month_of(until), 3) - _towards_zero(_month_of(since), 3)


def diff_months(since: int, until: int) -> int:
    """How many months begin between."""
    return _month_of(until) - _month_of(since)


def sub_units(since: int, until: int, unit: int) -> int:
    """How many whole units lie between; below 0 backwards."""
    return _towards_zero(until - since, unit)


def sub_months(since: int, until: int, months: int) -> int:
    """How many times this many whole months lie between; of a month's last day, to the last day of a shorter one."""
    if until < since:
        return -sub_months(until, since, months)
    days, time = divmod(until, _DAY)
    last = _date_of(days + 1)[2] == 1
    begun = divmod(since, _DAY)
    until_day, since_day = _date_of(days)[2], _date_of(begun[0])[2]
    is_whole = (until_day, time) >= (since_day, begun[1]) or (last and until_day <= since_day and time >= begun[1])
    return (_month_of(until) - _month_of(since) - (not is_whole)) // months


def _towards_zero(number: int, unit: int) -> int:
    return number // unit if number >= 0 else -(-number // unit)


def _month_of(moment: int) -> int:
    years, number, _ = _date_of(moment // _DAY)
    return years * 12 + number - 1


def _date_of(days: int) -> tuple[int, int, int]:
    """Year, month and day, of days since 1970, in the Gregorian calendar: eras of 400 years, years from March."""
    era, of_era = divmod(days + 719_468, 146_097)
    years = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * years + years // 4 - years // 100)
    part = (5 * of_year + 2) // 153
    number = part + 3 if part < 10 else part - 9
    return years + era * 400 + (number <= 2), number, of_year - (153 * part + 2) // 5 + 1


def _days_of(years: int, number: int) -> int:
    """Days from 1970 to the first of a month."""
    years -= number <= 2
    era, of_era = divmod(years, 400)
    of_year = (153 * (number - 3 if number > 2 else number + 9) + 2) // 5
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def moment_text(moment: int) -> str | None:
    """As a batch writes a moment; None of one that there is not."""
    if _TABLE_BEGIN <= moment < _TABLE_END and moment % UNITS["second"] == 0:
        return (_EPOCH + timedelta(microseconds=moment)).isoformat(" ")
    if abs(moment) >= _SIXTY_FOUR_BITS:
        return None
    told: str | None = ask("cast(make_timestamp(cast(? as bigint)) as varchar)", moment)
    return told


def moment_of(text: str) -> int | None:
    """The moment that a text says; None where it says none."""
    told: int | None = ask("epoch_us(try_cast(cast(? as varchar) as timestamp))", text)
    return told


def local_clock(zone: str, moment: int) -> int | None:
    """The wall clock of a zone at a moment; None in a zone that there is not."""
    if (changes := _changes(zone)) is None:
        return None
    if _TABLE_BEGIN <= moment < _TABLE_END:  # as all that clients may send is
        moments, ahead = changes
        return moment + ahead[bisect_right(moments, moment)]
    if abs(moment) >= _SIXTY_FOUR_BITS:
        return None
    told: int | None = ask("epoch_us(timezone(?, make_timestamptz(cast(? as bigint))))", zone, moment)
    return told


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


FUNCTIONS = (
    hour, minute, second, year, month, day, quarter, week, dayofyear, dayofweek, isodow, dayname, monthname, epoch,
    span_seconds, trunc_week, trunc_months, add_months, diff_weeks, diff_months, diff_quarters, sub_units, sub_months,
    moment_text, moment_of, local_clock,
)  # fmt: skip
