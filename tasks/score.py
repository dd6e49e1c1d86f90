"""Batch predictions into the warehouse: each partition by the champion in force when it began, once per content."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from psycopg2.extensions import cursor

import features
from adapters.connect import Outside
from adapters.warehouse import Fence, Upserted, Warehouse
from pipeline.handoffs import Scores
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.learnt_features import (
    UncomputableFeatures,
    find_learnt_definition,
    load_learnt_points,
    read_learnt_definition,
)
from tasks.common.ledger import Champion, champion_at, current, load_champions

if TYPE_CHECKING:
    from models.interval import ConformalInterval
    from serving.predictor import Predictor

Window = tuple[str, str, datetime, datetime]  # use case, model version, [start, end) of prediction_time
_PARTITIONS_A_TASK = 16  # a task takes seconds to start, a partition a fraction of one to score
KEY = ("use_case", "model_version", "event_time", "entity_key")


@dataclass(frozen=True, kw_only=True)
class UnscoredPartition:
    """One feature partition, what it was built from, and the champion it is pinned to."""

    partition: Interval
    inputs: str
    snapshot_version: str
    champion: Champion


def find_unscored(use_case: UseCase, outside: Outside, keys: Collection[str] | None = None) -> list[UnscoredPartition]:
    """The partitions of the latest snapshot whose inputs the champion in force has not scored, in order.

    `keys` limits them to these. Left out is what a retired champion would score that learnt other features than are
    defined now: with them every partition is made anew, and nothing that was said then would change.
    """
    with outside.warehouse.session():
        unscored, champion = list(_unscored(use_case, outside, keys)), current(use_case, outside)
    retired = {each.champion.version for each in unscored} - {champion.version} if champion else set()
    todays = features.definition(use_case.name)
    foreign = {version for version in retired if find_learnt_definition(use_case, version, outside) != todays}
    return [each for each in unscored if each.champion.version not in foreign]


def plan_shares(use_case: UseCase, outside: Outside) -> list[list[str]]:
    """The keys of what is unscored, oldest first, in shares that may be scored side by side."""
    keys = [use_case.grid.key(each.partition) for each in find_unscored(use_case, outside)]
    return [keys[i : i + _PARTITIONS_A_TASK] for i in range(0, len(keys), _PARTITIONS_A_TASK)]


def score_partitions(use_case: UseCase, outside: Outside, keys: Sequence[str] | None = None) -> list[Scores]:
    """Score what is unscored (or what of these partitions is), each in one transaction and under a fence of its own.

    Raises:
        FencedOut: scoring of a partition was begun again meanwhile; that run does the rest.
        UncomputableFeatures: the champion learnt what cannot be computed any more.
    """
    if keys is None:
        keys = [key for share in plan_shares(use_case, outside) for key in share]
    with outside.warehouse.session():
        # before reading what is unscored: whoever read it earlier may write no more
        fences = {key: outside.warehouse.begin(f"score/{use_case.name}/{key}") for key in keys}
        unscored = find_unscored(use_case, outside, keys)
    return [
        score_partition(use_case, each, outside, fence=fences[use_case.grid.key(each.partition)]) for each in unscored
    ]


def score_partition(use_case: UseCase, unscored: UnscoredPartition, outside: Outside, *, fence: Fence) -> Scores:
    """Predict one partition and write its rows and its `scorings` row together, or neither.

    Raises:
        FencedOut: scoring was begun again meanwhile.
        UncomputableFeatures: the champion learnt what cannot be computed any more; a critical alert says so too.
    """
    from serving.predictor import Predictor

    partition = unscored.partition
    bundle = outside.registry.download_bundle(use_case.name, unscored.champion.version)
    try:
        definition = read_learnt_definition(use_case, unscored.champion.version, bundle)
        points = load_learnt_points(
            definition, unscored.snapshot_version, use_case, outside, start=partition.start, end=partition.end
        )
    except UncomputableFeatures as error:
        _alert_other_features(use_case, str(error), outside)
        raise
    predictor = Predictor.load(bundle)
    rows = make_predictions(use_case, unscored, points, predictor.predict(points), predictor.interval)

    window = (use_case.name, unscored.champion.version, partition.start, partition.end)

    def commit() -> Scores:
        with outside.warehouse.transaction(fence) as at:
            written = write_predictions(at, rows, window, outside.warehouse)
            network = (use_case.name, unscored.champion.network_version)
            at.execute(_DELETE_SUPERSEDED, (*window, *network))
            at.execute(_FORGET_SUPERSEDED, (*window[:2], partition.start, *network))
            outside.warehouse.upsert(at, "scorings", _scoring(use_case, unscored, rows.num_rows), _SCORING_KEY)
            return Scores(
                use_case=use_case.name,
                partition_start=partition.start,
                partition_end=partition.end,
                model_version=unscored.champion.version,
                snapshot_version=unscored.snapshot_version,
                rows=rows.num_rows,
                inserted=written.inserted,
                updated=written.updated,
            )

    return outside.warehouse.retry_transaction(commit)


def load_batch_predictor(use_case: UseCase, version: str, outside: Outside) -> "Predictor":
    """The batch path of a registered version, its bundle verified."""
    from serving.predictor import Predictor

    registered = outside.registry.version(use_case.name, version)
    return Predictor.load(outside.registry.download_bundle(use_case.name, version), sha256=registered.bundle_sha256)


def make_predictions(
    use_case: UseCase,
    unscored: UnscoredPartition,
    points: pa.Table,
    scores: NDArray[np.float64],
    interval: "ConformalInterval | None",
) -> pa.Table:
    """The rows of `predictions` for feature points [n] and their scores [n], with bounds where the model has some."""
    n = points.num_rows
    rows = pa.table(
        {
            "use_case": pa.repeat(use_case.name, n),
            "entity_key": points.column("entity_key"),
            "event_time": points.column("event_time"),
            "model_version": pa.repeat(unscored.champion.version, n),
            "prediction_time": points.column("prediction_time"),
            "score": pa.array(scores, pa.float64()),
            "snapshot_version": pa.repeat(unscored.snapshot_version, n),
        }
    )
    if interval is not None:
        for name, bound in zip(("lower", "upper"), interval.bounds(scores), strict=True):
            rows = rows.append_column(name, pa.array(bound, pa.float64()))
    return rows


def write_predictions(at: cursor, rows: pa.Table, window: Window, warehouse: Warehouse) -> Upserted:
    """Make the stored rows of a window equal to these: write what differs, delete what is no longer there.

    Where this model scored nothing of the window yet, or all of it from another snapshot, every row is to be written.
    Then the stored ones are deleted and these inserted, which is far cheaper; as many as were stored count as updated.
    """
    stored, same = _counts(at, window, rows)
    if same == 0:
        if stored:
            at.execute(_DELETE, window)
        if warehouse.insert(at, "predictions", rows, KEY):
            updated = min(stored, rows.num_rows)
            return Upserted(inserted=rows.num_rows - updated, updated=updated, unchanged=0)
    written = warehouse.upsert(at, "predictions", rows, KEY)
    if _counts(at, window, rows)[0] > rows.num_rows:  # a rebuild no longer has every point
        keys, times = (rows.column(name).to_pylist() for name in ("entity_key", "event_time"))
        at.execute(_DELETE_GONE, (*window, keys, times))
    return written


def _alert_other_features(use_case: UseCase, text: str, outside: Outside) -> None:
    """Raise the alert that nothing can be scored, and why."""
    title = f"{use_case.title}: nothing is scored"
    outside.alerts.raise_alert("critical", use_case.name, f"{use_case.name}/score/foreign-features", title, text)


_SCORINGS = "select partition_start, model_version, inputs from scorings where use_case = %s"
_LATEST_INPUTS = """
select version, key, built ->> 'inputs' as inputs
from (select version, index from snapshots where use_case = %s order by build_order desc limit 1) latest,
    jsonb_each(index) as parts (key, built)
order by key collate "C"
"""
_SCORING_KEY = ("use_case", "partition_start", "model_version")


def _unscored(use_case: UseCase, outside: Outside, keys: Collection[str] | None) -> Iterator[UnscoredPartition]:
    champions, scorings = load_champions(use_case, outside), outside.warehouse.query(_SCORINGS, (use_case.name,))
    scored = {(row["partition_start"], row["model_version"], row["inputs"]) for row in scorings}
    for row in outside.warehouse.query(_LATEST_INPUTS, (use_case.name,)):
        if keys is not None and row["key"] not in keys:
            continue
        partition = use_case.grid.partition(row["key"])
        champion = champion_at(champions, partition.start)
        if champion and (partition.start, champion.version, row["inputs"]) not in scored:
            yield UnscoredPartition(
                partition=partition, inputs=row["inputs"], snapshot_version=row["version"], champion=champion
            )


def _counts(at: cursor, window: Window, rows: pa.Table) -> tuple[int, int]:
    """How many rows are stored of the window, and how many of them from one of the snapshots of `rows`."""
    at.execute(_COUNTS, (pc.unique(rows["snapshot_version"]).to_pylist(), *window))
    [(stored, same)] = at.fetchall()
    return stored, same


_WINDOW = "where use_case = %s and model_version = %s and prediction_time >= %s and prediction_time < %s"
_COUNTS = f"select count(*), count(*) filter (where snapshot_version = any(%s)) from predictions {_WINDOW}"  # noqa: S608
_DELETE = f"delete from predictions {_WINDOW}"  # noqa: S608  # our own text
# What another recalibration of the same network has of them: it was in force as they were scored, and is not any more.
_DELETE_SUPERSEDED = """
delete from predictions
where use_case = %s and model_version <> %s and prediction_time >= %s and prediction_time < %s and model_version in (
    select unnest(array[network_version, model_version]) from recalibrations
    where use_case = %s and network_version = %s)
"""
_FORGET_SUPERSEDED = """
delete from scorings where use_case = %s and model_version <> %s and partition_start = %s and model_version in (
    select unnest(array[network_version, model_version]) from recalibrations
    where use_case = %s and network_version = %s)
"""
_DELETE_GONE = f"{_DELETE} and (entity_key, event_time) not in (select * from unnest(%s::text[], %s::timestamptz[]))"  # noqa: S608


def _scoring(use_case: UseCase, unscored: UnscoredPartition, rows: int) -> pa.Table:
    return pa.table(
        {
            "use_case": [use_case.name],
            "partition_start": pa.array([unscored.partition.start], pa.timestamp("us", "UTC")),
            "model_version": [unscored.champion.version],
            "inputs": [unscored.inputs],
            "snapshot_version": [unscored.snapshot_version],
            "rows": pa.array([rows], pa.int64()),
        }
    )
