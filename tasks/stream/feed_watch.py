"""Tells of feeds that come empty, or do not come, as time goes by: batch judges a partition once it is over.

What is watched is kept nowhere: whoever begins anew goes through the rows that were kept once more.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter

from psycopg2.extensions import cursor

from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow
from tasks.common.naming import name_some
from tasks.stream.feed_past import FeedPast

Rows = Iterable[FollowedRow]

_NEVER = datetime.min.replace(tzinfo=UTC)


@dataclass
class _Column:
    """How far a column is from what it was, since when, and whether that is said of it."""

    score: float = 0.0
    since: datetime = _NEVER
    is_empty: bool = False


@dataclass
class _Feed:
    """One table, as it comes."""

    past: FeedPast
    latest: datetime
    columns: dict[str, _Column] = field(init=False)

    def __post_init__(self) -> None:
        self.columns = {name: _Column() for name in self.past.columns}

    def take(self, row: FollowedRow) -> None:
        """One row more; one that broke an expectation is in no feature, and brings no value."""
        self.latest = max(self.latest, row.available_at)
        values = json.loads(row.row_data) if row.is_good and row.row_data else {}
        for name, runs in self.past.columns.items():
            column = self.columns[name]
            if column.score <= 0:
                column.since = row.available_at
            column.score = runs.advance(column.score, is_empty=values.get(name) is None)
            if column.score >= runs.limit:
                column.is_empty = True
            elif column.score <= 0:
                column.is_empty = False

    def describe(self, known_until: datetime | None) -> str:
        """What is wrong with it; nothing: an empty text."""
        patience = self.past.patience
        if known_until is not None and patience is not None and known_until > self.latest + patience:
            hours = patience / timedelta(hours=1)
            return f"no row has come since {self.latest:%d %b %Y %H:%M} UTC, {hours:.3g} hours or more"
        empty = [name for name, column in self.columns.items() if column.is_empty]
        if not empty:
            return ""
        since = min(self.columns[name].since for name in empty)
        return f"{name_some(empty)} come empty since {since:%d %b %Y %H:%M} UTC"


class FeedWatch:
    """The feeds of one use case, from the end of a dataset on."""

    def __init__(
        self, use_case: UseCase, outside: Outside, past: Mapping[str, FeedPast], since: datetime, held: Rows = ()
    ) -> None:
        """`held` are the rows that came since and were kept."""
        self._use_case, self._outside = use_case, outside
        self._feeds = {table: _Feed(feed, since) for table, feed in past.items()}
        self._told = dict[str, str]()
        self._take(held)

    def follow(self, rows: Rows, known_until: datetime | None) -> None:
        """Rows that came, in any order; what is wrong with a feed now is raised, and what no longer is, resolved."""
        self._take(rows)
        for table, feed in self._feeds.items():
            problem = feed.describe(known_until)
            if self._told.get(table) == problem:
                continue
            fingerprint = feed_fingerprint(self._use_case.name, table)
            with self._outside.warehouse.transaction() as at:
                if problem:
                    self._record(at, fingerprint, table, problem)
                else:
                    self._outside.alerts.resolve(fingerprint, at)
            self._told[table] = problem

    def _take(self, rows: Rows) -> None:
        for row in sorted(rows, key=attrgetter("available_at")):
            if row.table in self._feeds and row.row_data is not None:
                self._feeds[row.table].take(row)

    def _record(self, at: cursor, fingerprint: str, table: str, problem: str) -> None:
        """Written here, and delivered by others: a channel that is slow holds up no answer."""
        name = self._use_case.name
        body = f"{problem}. Answers do without until its operator mends it (docs/runbooks/broken-feed.md)"
        title = f"{name}: the feed of {table} is broken"
        self._outside.alerts.record(at, tier="critical", use_case=name, fingerprint=fingerprint, title=title, body=body)


def feed_fingerprint(use_case: str, table: str) -> str:
    """Under which the alert about a feed is raised."""
    return f"{use_case}.feed.{table}"
