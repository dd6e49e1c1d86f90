"""Tells of feeds that come empty, or do not come, as time goes by: batch judges a partition once it is over.

One page an outage. What is watched is kept nowhere: whoever begins anew goes through the rows that were kept once more,
and takes a feed of which somebody was told for broken until it is seen to be whole.
"""

import json
import logging
from collections.abc import Collection, Iterable
from datetime import datetime
from itertools import groupby
from operator import attrgetter

from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.warehouse import Fence
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow
from tasks.stream.feed import Feed, Row
from tasks.stream.feed_past import FeedLearner

_OPEN = "select fingerprint from alerts where starts_with(fingerprint, %s) and resolved_at is null"
logger = logging.getLogger(__name__)


def feed_fingerprint(use_case: str, table: str) -> str:
    """Under which the alert about a feed is raised."""
    return f"{use_case}.feed.{table}"


def resolve_unwatched(use_case: UseCase, outside: Outside, watched: Collection[str]) -> None:
    """End the alerts about feeds that nobody watches any more: nobody else would."""
    kept = {feed_fingerprint(use_case.name, table) for table in watched}
    for fingerprint in sorted(_list_open(use_case, outside) - kept):
        outside.alerts.resolve(fingerprint)


def _list_open(use_case: UseCase, outside: Outside) -> set[str]:
    rows = outside.warehouse.query(_OPEN, (feed_fingerprint(use_case.name, ""),))
    return {row["fingerprint"] for row in rows}


class FeedWatch:
    """The feeds of one use case, from the end of a dataset on."""

    def __init__(self, use_case: UseCase, outside: Outside, fence: Fence, snapshot: Snapshot) -> None:
        """Learns what is usual; feeds of which too little is known are not watched, and the log says which are."""
        self._use_case, self._outside, self._fence = use_case, outside, fence
        self._learner = FeedLearner(use_case, outside)
        self._feeds, self._learnt = dict[str, Feed](), ""
        self._opened = _list_open(use_case, outside)
        self.learn(snapshot)
        resolve_unwatched(use_case, outside, self._feeds)

    def learn(self, snapshot: Snapshot) -> None:
        """Go on beside what a dataset says is usual."""
        if snapshot.version == self._learnt:
            return
        self._learnt = snapshot.version
        learnt = self._learner.learn(snapshot)
        if learnt.keys() != self._feeds.keys():
            logger.info("%s: feeds that are watched: %s", self._use_case.name, ", ".join(learnt) or "none yet")
        for table, past in learnt.items():
            if table in self._feeds:
                self._feeds[table].learn(past)
            else:
                is_open = feed_fingerprint(self._use_case.name, table) in self._opened
                self._feeds[table] = Feed(past, snapshot.end, is_open=is_open)
        for table in self._feeds.keys() - learnt.keys():
            del self._feeds[table]

    def take(self, rows: Iterable[FollowedRow], known_until: datetime | None) -> None:
        """Rows that came, each for the first time, in any order."""
        watched = [row for row in rows if row.table in self._feeds and row.row_data is not None]
        place = attrgetter("table", "available_at")
        for (table, moment), those in groupby(sorted(watched, key=place), key=place):
            self._feeds[table].take(moment, [_read(row) for row in those], known_until)

    def tell(self, known_until: datetime | None, *, missed: Collection[str] = ()) -> None:
        """Page about each feed that broke, and end what was said of those that are whole again.

        Of tables that are `missed`, which we do not read, nothing is said.
        """
        for table in sorted(self._feeds.keys() - set(missed)):
            feed = self._feeds[table]
            problem = feed.describe(known_until, may_be_silent=self._is_exempt(table, known_until))
            if bool(problem) == feed.is_open:
                continue

            def note(table: str = table, problem: str = problem) -> None:
                with self._outside.warehouse.transaction(self._fence) as at:
                    self._note(at, table, problem)

            self._outside.warehouse.retry_transaction(note)
            feed.is_open = bool(problem)

    def _is_exempt(self, table: str, moment: datetime | None) -> bool:
        exempt = self._use_case.source.tables[table].exempt
        return moment is not None and self._use_case.grid.containing(moment).start.date() in exempt

    def _note(self, at: cursor, table: str, problem: str) -> None:
        """Written here, and delivered by others: a channel that is slow holds up no answer."""
        name, alerts = self._use_case.name, self._outside.alerts
        if not problem:
            alerts.resolve(feed_fingerprint(name, table), at)
            return
        body = f"{problem}. Answers do without until its operator mends it (docs/runbooks/broken-feed.md)"
        title = f"{name}: the feed of {table} is broken"
        alerts.record(
            at, tier="critical", use_case=name, fingerprint=feed_fingerprint(name, table), title=title, body=body
        )


def _read(row: FollowedRow) -> Row:
    return json.loads(row.row_data) if row.is_good and row.row_data else None
