"""What each feed did in the latest partitions of a dataset: how long it came empty, and how long it did not come."""

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from adapters.connect import Outside
from adapters.errors import Corrupt
from expectations import suites
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.build_features.manifest import CleanObject, committed_manifest

_FEWEST_PARTITIONS, _FEWEST_DAYS = 12, 28  # of which what is usual is learnt
_LEAST_PARTITIONS = 4  # with rows: of a feed that has fewer nothing is said
_TIMES = 3.0  # what was the longest, but for a few partitions that may have been broken
_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5)  # of empty values, as which a column is watched; beyond, nobody can tell
_BROKEN = 0.95  # the same of a column that broke
SURE = math.log(1e6)
_SHORTEST = timedelta(hours=1)
_GAPS_KEPT = 4  # of a partition
_BLOCKED = "select as_of from decisions where use_case = %s and decision = 'block'"
logger = logging.getLogger(__name__)

Counts = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class EmptyRuns:
    """How a column is watched: a CUSUM of the log-likelihood ratio, empty in `_BROKEN` of all rows against `share`.

    Page, "Continuous inspection schemes" (1954). Beyond `limit` the column is said to come empty; it is well again when
    a second sum, of `share` against what lies halfway between the two (on the logit scale), is beyond `SURE`.
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

    @property
    def halfway(self) -> float:
        """The share beyond which a column that broke is no better."""
        odds = math.sqrt(self.share / (1 - self.share) * _BROKEN / (1 - _BROKEN))
        return odds / (1 + odds)

    def advance(self, score: float, *, empty: int, present: int) -> float:
        """The score after what came at one moment, in whatever order."""
        return min(max(score + empty * self.up - present * self.down, 0.0), 2 * self.limit)

    def recover(self, health: float, *, empty: int, present: int) -> float:
        """The second sum after what came at one moment."""
        gained = present * math.log((1 - self.share) / (1 - self.halfway))
        return max(health + gained - empty * math.log(self.halfway / self.share), 0.0)

    def highest(self, empty: Counts, rows: Counts) -> float:
        """The highest score among moments [n], each with so many empty values among so many rows."""
        sums = np.cumsum(empty * self.up - (rows - empty) * self.down)
        return float((sums - np.minimum(np.minimum.accumulate(sums), 0)).max(initial=0.0))


@dataclass(frozen=True, kw_only=True)
class FeedPast:
    """How one table is watched: the columns that may be empty and seldom are, and what it is to be silent for.

    `rejected` are rows that break an expectation, as the table's limits allow; None: they allow half of all.
    """

    columns: Mapping[str, EmptyRuns]
    rejected: EmptyRuns | None
    patience: timedelta


@dataclass(frozen=True, kw_only=True)
class PartitionPast:
    """One partition of a table: when its rows came, and of each column the share of empty values and highest scores."""

    first: datetime
    last: datetime
    gaps: tuple[timedelta, ...]  # the longest, between rows
    columns: Mapping[str, tuple[float, tuple[float, ...]]]  # a score for each of _SHARES

    @classmethod
    def read(cls, rows: pa.Table, known: str) -> "PartitionPast":
        """Of rows, at least one; `known` is the column that says when each became known."""
        rows = rows.sort_by(known)
        moments = rows[known].cast(pa.timestamp("us", "UTC"))
        distinct, starts, counts = np.unique(moments.cast(pa.int64()).to_numpy(), return_index=True, return_counts=True)
        columns = {}
        for name in rows.column_names:
            if name != known:
                empty = np.add.reduceat(_is_empty(rows[name]).astype(np.int64), starts)
                scores = tuple(EmptyRuns(share=s, limit=math.inf).highest(empty, counts) for s in _SHARES)
                columns[name] = float(empty.sum() / rows.num_rows), scores
        gaps = np.sort(np.diff(distinct))[-_GAPS_KEPT:]
        return cls(
            first=moments[0].as_py(),
            last=moments[-1].as_py(),
            gaps=tuple(timedelta(microseconds=int(gap)) for gap in gaps),
            columns=columns,
        )


def _is_empty(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    empty: NDArray[np.bool_] = pc.is_null(column, nan_is_null=True).to_numpy()
    return empty


def watch_rejected(max_quarantined_share: float) -> EmptyRuns | None:
    """How rows that break an expectation are watched, where so large a share of them is no fault of a partition."""
    share = max(max_quarantined_share, _SHARES[0])
    return EmptyRuns(share=share, limit=SURE) if share <= _SHARES[-1] else None


def learn_feed(
    partitions: Sequence[PartitionPast], rejected: EmptyRuns | None, *, sound: Sequence[PartitionPast] | None = None
) -> FeedPast | None:
    """What is usual in partitions with rows, one after another; None: they are too few to say.

    `sound` are those of them that nobody found broken (None: all).
    """
    if len(partitions) < _LEAST_PARTITIONS:
        return None
    healthy = partitions if sound is None else sound
    runs = {name: run for name in partitions[-1].columns if (run := _learn_column(name, healthy))}
    edges = [later.first - earlier.last for earlier, later in pairwise(partitions)]
    gaps = sorted([*edges, *(gap for each in partitions for gap in each.gaps)])
    usual = gaps[-1 - max(1, len(partitions) // 12)]
    return FeedPast(columns=runs, rejected=rejected, patience=max(_SHORTEST, _TIMES * usual))


def _learn_column(name: str, partitions: Sequence[PartitionPast]) -> EmptyRuns | None:
    told = [each.columns[name] for each in partitions if name in each.columns]
    if len(told) < _LEAST_PARTITIONS:
        return None
    usual = float(np.median([share for share, _ in told]))
    number = next((number for number, share in enumerate(_SHARES) if usual <= share), None)
    if number is None:
        return None
    worst = sorted(scores[number] for _, scores in told)[-1 - max(1, len(told) // 6)]
    return EmptyRuns(share=_SHARES[number], limit=max(SURE, _TIMES * worst))


def count_partitions(use_case: UseCase) -> int:
    """How many of the latest partitions say what is usual."""
    return max(_FEWEST_PARTITIONS, math.ceil(_FEWEST_DAYS / use_case.grid.days))


class FeedLearner:
    """Learns from the clean objects of datasets, one after another; what both have is read once."""

    def __init__(self, use_case: UseCase, outside: Outside) -> None:
        self._use_case, self._outside = use_case, outside
        self._read = dict[tuple[str, str], PartitionPast | None]()

    def learn(self, snapshot: Snapshot) -> dict[str, FeedPast]:
        """By table; those of which too little is known, or that are not to be watched, are left out."""
        learnt, used = dict[str, FeedPast](), dict[tuple[str, str], PartitionPast | None]()
        count = count_partitions(self._use_case)
        blocked = {row["as_of"] for row in self._outside.warehouse.query(_BLOCKED, (self._use_case.name,))}
        for name, items in committed_manifest(snapshot, self._outside).objects.items():
            table = self._use_case.source.tables.get(name)
            if table is None or not table.watched:
                continue
            latest = sorted(items, key=lambda item: item.interval.start)[-count:]
            used |= {(name, item.sha256): self._find(name, item) for item in latest}
            told = [(item, past) for item in latest if (past := used[name, item.sha256]) is not None]
            sound = [past for item, past in told if item.interval.end not in blocked]
            rejected = watch_rejected(table.max_quarantined_share)
            feed = learn_feed([past for _, past in told], rejected, sound=sound)
            if feed is not None:
                learnt[name] = feed
        self._read = used
        return learnt

    def _find(self, name: str, item: CleanObject) -> PartitionPast | None:
        """What one object tells; None: it holds no row, or is not there as it was written: then the log says so."""
        place = name, item.sha256
        if place not in self._read:
            try:
                self._read[place] = read_past(self._use_case, name, self._outside.lake.local(item.uri))
            except (FileNotFoundError, Corrupt, pa.ArrowInvalid) as error:
                logger.warning("%s: %s of %s tells nothing: %s", self._use_case.name, name, item.key, error)
                self._read[place] = None
        return self._read[place]


def read_past(use_case: UseCase, name: str, path: object) -> PartitionPast | None:
    """A clean file, by the columns that may be empty and that it has; None: it holds no row."""
    known, there = use_case.source.tables[name].available_at, set(pq.read_schema(path).names)
    optional = list_optional(use_case, name)
    rows = pq.read_table(path, columns=[known, *(column for column in optional if column in there)])
    return PartitionPast.read(rows, known) if rows.num_rows else None


def list_optional(use_case: UseCase, name: str) -> Collection[str]:
    """The columns of a table that may be empty, but for the one that says when a row became known."""
    table, declared = use_case.source.tables[name], suites(use_case.name)[name].columns
    return [column for column, told in declared.items() if told.nullable and column != table.available_at]
