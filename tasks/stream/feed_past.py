"""What each feed did in the latest partitions of a dataset: how long it came empty, and how long it did not come."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adapters.connect import Outside
from expectations import suites
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features.manifest import committed_manifest

PARTITIONS = 12
_FEWEST_PARTITIONS = 4  # with rows: of a feed that has fewer nothing is said
_TIMES = 3.0  # the longest but one of the past: one of them may have been broken
_OFTEN_EMPTY = 0.5  # of such a column nobody can tell
_BROKEN, _LEAST = 0.95, 0.05  # the share of empty values in a column that broke; the least that is counted as healthy
_SURE = math.log(1e6)
_SHORTEST = timedelta(hours=1)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class EmptyRuns:
    """How a column is watched: a CUSUM of the log-likelihood ratio, empty in `_BROKEN` of all rows against `share`.

    Page, "Continuous inspection schemes" (1954). Beyond `limit` the column is said to come empty.
    """

    share: float
    limit: float

    @property
    def up(self) -> float:
        """What an empty value adds."""
        return math.log(_BROKEN / self.share)

    @property
    def down(self) -> float:
        """What a value takes away."""
        return math.log((1 - self.share) / (1 - _BROKEN))

    def advance(self, score: float, *, is_empty: bool) -> float:
        """The score after one more row; none goes so far that its end is not seen soon."""
        return min(score + self.up, 2 * self.limit) if is_empty else max(score - self.down, 0.0)

    def highest(self, empty: Mask) -> float:
        """The highest score among rows in the order in which they came."""
        if not len(empty):
            return 0.0
        sums = np.cumsum(np.where(empty, self.up, -self.down))
        return float((sums - np.minimum(np.minimum.accumulate(sums), 0)).max())

    @classmethod
    def learn(cls, partitions: Sequence[Mask]) -> "EmptyRuns | None":
        """From what was empty in each partition, row by row; None for a column that mostly is."""
        share = float(np.concatenate(partitions).mean())
        if share > _OFTEN_EMPTY:
            return None
        unlimited = cls(share=max(share, _LEAST), limit=math.inf)
        worst = sorted(unlimited.highest(empty) for empty in partitions)
        return cls(share=unlimited.share, limit=max(_SURE, _TIMES * worst[-2]))


@dataclass(frozen=True, kw_only=True)
class FeedPast:
    """How one table is watched. `columns` are those that may be empty and seldom are; `patience`: None, no rhythm."""

    columns: Mapping[str, EmptyRuns]
    patience: timedelta | None


def learn_feeds(use_case: UseCase, snapshot: Snapshot, outside: Outside) -> dict[str, FeedPast]:
    """By table, from the rows that were clean; tables of which too little is known are left out."""
    learnt = dict[str, FeedPast]()
    objects, declared = committed_manifest(snapshot, outside).objects, suites(use_case.name)
    for table in sorted(objects.keys() & use_case.source.tables.keys()):
        optional = [name for name, column in declared[table].columns.items() if column.nullable]
        known = use_case.source.tables[table].available_at
        latest = sorted(objects[table], key=lambda item: item.interval.start)[-PARTITIONS:]
        read = [pq.read_table(outside.lake.local(item.uri), columns=[known, *optional]) for item in latest]
        if feed := learn_feed([rows for rows in read if rows.num_rows], known):
            learnt[table] = feed
    return learnt


def learn_feed(partitions: Sequence[pa.Table], known: str) -> FeedPast | None:
    """One table's, of partitions with rows; `known` is the column that says when each row became known."""
    if len(partitions) < _FEWEST_PARTITIONS:
        return None
    ordered = [rows.sort_by(known) for rows in partitions]
    runs = {
        name: EmptyRuns.learn([rows[name].is_null().to_numpy() for rows in ordered])
        for name in ordered[0].column_names
        if name != known
    }
    gaps = sorted(_longest_gap(rows[known]) for rows in ordered)
    return FeedPast(
        columns={name: run for name, run in runs.items() if run is not None},
        patience=max(_SHORTEST, _TIMES * gaps[-2]) if gaps[-2] else None,
    )


def _longest_gap(known: pa.ChunkedArray) -> timedelta:
    moments = known.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    return timedelta(microseconds=int(np.diff(moments).max())) if len(moments) > 1 else timedelta(0)
