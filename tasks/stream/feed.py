"""One feed as it comes, beside what it did before: what is wrong with it, and when it is well again."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.common.naming import name_some
from tasks.stream.feed_past import SURE, EmptyRuns, FeedPast

_NEVER = datetime.min.replace(tzinfo=UTC)

Row = Mapping[str, Any] | None  # None: it broke an expectation


@dataclass
class _Series:
    """How far something is from what it was, since when, and how far it is on the way back."""

    score: float = 0.0
    health: float = 0.0
    since: datetime = _NEVER
    is_broken: bool = False

    def take(self, runs: EmptyRuns, moment: datetime, *, empty: int, present: int) -> None:
        """What came at one moment."""
        if self.score <= 0:
            self.since = moment
        self.score = runs.advance(self.score, empty=empty, present=present)
        if not self.is_broken:
            self.is_broken = self.score >= runs.limit
            self.health = 0.0
            return
        self.health = runs.recover(self.health, empty=empty, present=present)
        if self.health >= SURE:
            self.is_broken, self.score = False, 0.0


@dataclass
class Feed:
    """One table. `is_open`: somebody was told that it is broken, and has to see it whole to believe it."""

    past: FeedPast
    latest: datetime
    is_open: bool = False
    _columns: dict[str, _Series] = field(default_factory=dict, init=False)
    _rejected: _Series = field(default_factory=_Series, init=False)
    _is_silent: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self._columns = {name: _Series(is_broken=self.is_open) for name in self.past.columns}
        self._rejected.is_broken = self.is_open and self.past.rejected is not None
        self._is_silent = self.is_open

    def learn(self, past: FeedPast) -> None:
        """Go on beside another past; what it does not watch is forgotten."""
        self.past = past
        self._columns = {name: self._columns.get(name, _Series()) for name in past.columns}
        self._rejected = self._rejected if past.rejected is not None else _Series()

    def take(self, moment: datetime, rows: Sequence[Row], known_until: datetime | None) -> None:
        """The rows that became known at one moment, each once. What is of the future is none that came."""
        came_at = moment if known_until is None else min(moment, known_until)
        self.latest, self._is_silent = max(self.latest, came_at), False
        good = [row for row in rows if row is not None]
        if self.past.rejected is not None:
            self._rejected.take(self.past.rejected, moment, empty=len(rows) - len(good), present=len(good))
        for name, runs in self.past.columns.items():
            empty = sum(_is_empty(row.get(name)) for row in good)
            self._columns[name].take(runs, moment, empty=empty, present=len(good) - empty)

    def list_empty(self) -> list[str]:
        """The columns that come empty."""
        return [name for name, series in self._columns.items() if series.is_broken]

    def describe(self, known_until: datetime | None, *, may_be_silent: bool = False) -> str:
        """What is wrong with it; nothing: an empty text."""
        if known_until is not None and not may_be_silent and known_until > self.latest + self.past.patience:
            self._is_silent = True
        if self._is_silent:
            hours = self.past.patience / timedelta(hours=1)
            return f"no row has come since {self.latest:%d %b %Y %H:%M} UTC, more than {hours:.3g} hours ago"
        said = []
        if empty := self.list_empty():
            since = min(self._columns[name].since for name in empty)
            said.append(f"{name_some(empty)} come empty since {since:%d %b %Y %H:%M} UTC")
        if self._rejected.is_broken:
            said.append(
                f"rows break an expectation since {self._rejected.since:%d %b %Y %H:%M} UTC, and are in no feature"
            )
        return "; ".join(said)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
