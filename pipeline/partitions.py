"""The grid of half-open UTC intervals [start, end) by which a use case's data arrives."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta


def utc(day: date) -> datetime:
    """Midnight UTC of a day."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


@dataclass(frozen=True, order=True)
class Interval:
    """A half-open interval of time, [start, end), in UTC."""

    start: datetime
    end: datetime

    def __post_init__(self) -> None:
        for moment in (self.start, self.end):
            if moment.utcoffset() != timedelta(0):
                raise ValueError(f"an interval is in UTC, got {moment.isoformat()}")
        if self.start >= self.end:
            raise ValueError(f"an interval must not be empty: {self}")

    def __str__(self) -> str:
        return f"[{self.start.isoformat()}, {self.end.isoformat()})"

    def overlaps(self, other: "Interval") -> bool:
        """Whether any moment lies in both."""
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Equal partitions of `days` days, counted from midnight UTC of `first`."""

    first: date
    days: int

    def key(self, interval: Interval) -> str:
        """The partition key of an interval: the day it starts."""
        return interval.start.date().isoformat()

    def partition(self, key: str) -> Interval:
        """The partition named by a key such as 2013-01-07; a day between two partition starts is an error."""
        try:
            day = date.fromisoformat(key[:10])
        except ValueError as error:
            raise ValueError(f"partition key {key!r}: expected the day it starts, such as {self.first}") from error
        offset_days = (day - self.first).days
        if offset_days < 0 or offset_days % self.days:
            raise ValueError(
                f"partition key {key!r}: partitions start every {self.days} days from {self.first}; "
                f"the one holding this day is {self.first + timedelta(days=offset_days // self.days * self.days)}"
            )
        return Interval(utc(day), utc(day) + timedelta(days=self.days))

    def containing(self, moment: datetime) -> Interval:
        """The partition a moment falls into."""
        offset_days = (moment.astimezone(UTC) - utc(self.first)) // timedelta(days=self.days) * self.days
        start = utc(self.first) + timedelta(days=offset_days)
        return Interval(start, start + timedelta(days=self.days))

    def covering(self, interval: Interval) -> list[Interval]:
        """Every partition that shares a moment with the interval, oldest first."""
        found, partition = [], self.containing(interval.start)
        while partition.start < interval.end:
            found.append(partition)
            partition = Interval(partition.end, partition.end + timedelta(days=self.days))
        return found
