"""Batch predictions into the warehouse: each partition by the champion in force when it began, once per content."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adapters.warehouse import Upserted
from pipeline.handoffs import Scores, Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.promote.promote import Champion, champion_for, current
from tasks.train.feature_match import learnt_other_features

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from adapters.connect import Outside
    from adapters.warehouse import Fence, Warehouse

Window = tuple[str, str, datetime, datetime]  # use case, model version, [start, end) of prediction_time
_PARTITIONS_A_TASK = 16  # a task takes seconds to start, a partition a fraction of one to score
KEY = ("use_case", "model_version", "event_time", "entity_key")


@dataclass(frozen=True, kw_only=True)
class Work:
    """One feature partition, what it was built from, and the champion it is pinned to."""

    partition: Interval
    inputs: str
    snapshot_version: str
    champion: Champion


def pending(use_case: UseCase, outside: "Outside", keys: Collection[str] | None = None) -> list[Work]:
    """Every partition (or of these) of the latest snapshot whose (inputs, champion in force) was not scored, in order.

    Without those of a retired champion that learnt other features than are defined now: it can never score them.
    """
    snapshot = dataset.latest_snapshot(use_case, outside)
    works = list(_pending(use_case, snapshot, outside, keys)) if snapshot else []
    champion = current(use_case, outside)
    retired = {work.champion.version for work in works if champion and work.champion.version != champion.version}
    foreign = {version for version in retired if learnt_other_features(use_case, version, outside)}
    return [work for work in works if work.champion.version not in foreign]


def shares(use_case: UseCase, outside: "Outside") -> list[list[str]]:
    """The keys of what is pending, oldest first, in shares that may be scored side by side."""
    keys = [use_case.grid.key(work.partition) for work in pending(use_case, outside)]
    return [keys[i : i + _PARTITIONS_A_TASK] for i in range(0, len(keys), _PARTITIONS_A_TASK)]


def score(use_case: UseCase, outside: "Outside", keys: Sequence[str] | None = None) -> list[Scores]:
    """Score what is pending (or what of these partitions is), each in one transaction and under a fence of its own.

    Raises:
        FencedOut: scoring of a partition was begun again meanwhile; that run does the rest.
        ValueError: the champion learnt other features than are defined now.
    """
    if keys is None:
        keys = [key for share in shares(use_case, outside) for key in share]
    # before reading what is pending: an orphan knows old work
    fences = {key: outside.warehouse.begin(f"score/{use_case.name}/{key}") for key in keys}
    return [
        score_partition(use_case, work, outside, fence=fences[use_case.grid.key(work.partition)])
        for work in pending(use_case, outside, keys)
    ]


def score_partition(use_case: UseCase, work: Work, outside: "Outside", *, fence: "Fence") -> Scores:
    """Predict one partition and write its rows and its `scorings` row together, or neither.

    Raises:
        FencedOut: scoring was begun again meanwhile.
        ValueError: the champion learnt other features than are defined now; a critical alert says so too.
    """
    from serving.predictor import Predictor

    if learnt_other_features(use_case, work.champion.version, outside):
        raise ValueError(_tell_to_train(use_case, work.champion.version, outside))
    points = dataset.load_partition_points(work.snapshot_version, use_case, outside, partition=work.partition)
    bundle = outside.registry.download_bundle(use_case.name, work.champion.version)
    rows = predictions(use_case, work, points, Predictor.load(bundle).predict(points))

    window = (use_case.name, work.champion.version, work.partition.start, work.partition.end)

    def commit() -> Scores:
        with outside.warehouse.transaction(fence) as at:
            written = write(at, rows, window, outside.warehouse)
            outside.warehouse.upsert(at, "scorings", _scoring(use_case, work, rows.num_rows), _SCORING_KEY)
            return Scores(
                use_case=use_case.name,
                partition_start=work.partition.start,
                partition_end=work.partition.end,
                model_version=work.champion.version,
                snapshot_version=work.snapshot_version,
                rows=rows.num_rows,
                inserted=written.inserted,
                updated=written.updated,
            )

    return outside.warehouse.retry_transaction(commit)


def predictions(use_case: UseCase, work: Work, points: pa.Table, scores: NDArray[np.float64]) -> pa.Table:
    """The rows of `predictions` for feature points [n] and their scores [n]."""
    n = points.num_rows
    return pa.table(
        {
            "use_case": pa.repeat(use_case.name, n),
            "entity_key": points.column("entity_key"),
            "event_time": points.column("event_time"),
            "model_version": pa.repeat(work.champion.version, n),
            "prediction_time": points.column("prediction_time"),
            "score": pa.array(scores, pa.float64()),
            "snapshot_version": pa.repeat(work.snapshot_version, n),
        }
    )


def write(at: "cursor", rows: pa.Table, window: Window, warehouse: "Warehouse") -> Upserted:
    """What differs, and what vanished goes. Straight in, which is far cheaper, where every row is to be written.

    That is so where this model scored nothing of the window yet, or all of it from another snapshot: such rows are
    replaced, and counted as updated by their number.
    """
    stored, same = _counts(at, window, rows)
    if same == 0:
        if stored:
            at.execute(_CLEAR, window)
        if warehouse.insert(at, "predictions", rows, KEY):
            updated = min(stored, rows.num_rows)
            return Upserted(inserted=rows.num_rows - updated, updated=updated, unchanged=0)
    written = warehouse.upsert(at, "predictions", rows, KEY)
    if _counts(at, window, rows)[0] > rows.num_rows:  # a rebuild no longer has every point
        keys, times = (rows.column(name).to_pylist() for name in ("entity_key", "event_time"))
        at.execute(_FORGET, (*window, keys, times))
    return written


def _tell_to_train(use_case: UseCase, version: str, outside: "Outside") -> str:
    text = (
        f"champion {version} of {use_case.name} learnt other features than features/ defines now, so it must not"
        f" score them: run {use_case.name}.train, or put the old definition back"
    )
    title = f"{use_case.title}: nothing is scored"
    outside.alerts.raise_alert("critical", use_case.name, f"{use_case.name}/score/foreign-features", title, text)
    return text


_SCORING_KEY = ("use_case", "partition_start", "model_version")


def _pending(use_case: UseCase, snapshot: Snapshot, outside: "Outside", keys: Collection[str] | None) -> Iterator[Work]:
    [row] = outside.warehouse.query(
        "select index from snapshots where use_case = %s and version = %s", (use_case.name, snapshot.version)
    )
    scored = outside.warehouse.query(
        "select partition_start, model_version, inputs from scorings where use_case = %s", (use_case.name,)
    )
    done = {(s["partition_start"], s["model_version"], s["inputs"]) for s in scored}
    for key, built in sorted(row["index"].items()):
        if keys is not None and key not in keys:
            continue
        partition = use_case.grid.partition(key)
        champion = champion_for(use_case, partition.start, outside)
        if champion and (partition.start, champion.version, built["inputs"]) not in done:
            yield Work(
                partition=partition, inputs=built["inputs"], snapshot_version=snapshot.version, champion=champion
            )


def _counts(at: "cursor", window: Window, rows: pa.Table) -> tuple[int, int]:
    """How many rows are stored of the window, and how many of them from one of the snapshots of `rows`."""
    at.execute(_COUNTS, (pc.unique(rows["snapshot_version"]).to_pylist(), *window))
    stored, same = at.fetchone() or (0, 0)
    return stored, same


_WINDOW = "where use_case = %s and model_version = %s and prediction_time >= %s and prediction_time < %s"
_COUNTS = f"select count(*), count(*) filter (where snapshot_version = any(%s)) from predictions {_WINDOW}"  # noqa: S608
_CLEAR = f"delete from predictions {_WINDOW}"  # noqa: S608  # our own text
_FORGET = f"{_CLEAR} and (entity_key, event_time) not in (select * from unnest(%s::text[], %s::timestamptz[]))"  # noqa: S608


def _scoring(use_case: UseCase, work: Work, rows: int) -> pa.Table:
    start: datetime = work.partition.start
    return pa.table(
        {
            "use_case": [use_case.name],
            "partition_start": pa.array([start], pa.timestamp("us", "UTC")),
            "model_version": [work.champion.version],
            "inputs": [work.inputs],
            "snapshot_version": [work.snapshot_version],
            "rows": pa.array([rows], pa.int64()),
        }
    )
