"""What each partition's metrics are expected to be as it is decided on, and, once its labels come, what they became.

Of batch's scores, by the champion that made them. The estimate is made from rows of before the partition, whose labels
have had their time: those that this champion scored in the latest `performance_days`, or, of a young one, the rows that
it did not learn, scored now. With fewer than `min_labelled` of them, or in the partition, there is none: so of a
champion that was refitted on all that was known, until enough of what it scored have their labels.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from psycopg2.extras import execute_values

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from features import FeatureSet
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features.learnt_features import load_learnt_points
from tasks.monitor.drift import SCORE
from tasks.monitor.expected_performance import MaturedEstimate, MaturedRows, MetricEstimate, Trust, estimate_window
from tasks.monitor.performance import find_changed_windows, measure_rows
from tasks.score import load_batch_predictor

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

logger = logging.getLogger(__name__)

_SCORED = """
select p.prediction_time, p.score, o.label
from network_predictions p join outcomes o
    on (o.use_case, o.entity_key, o.event_time) = (p.use_case, p.entity_key, p.event_time)
where o.label_time <= %s and p.use_case = %s and p.network_version = %s and p.prediction_time >= %s
    and p.prediction_time < %s
order by p.prediction_time, p.entity_key collate "C", p.event_time
"""
_OUTCOMES = """
select entity_key, event_time, label from outcomes
where label_time <= %s and use_case = %s and event_time >= %s and event_time < %s
"""
_STATED = """
select distinct on (model_version, window_start, window_end) model_version, window_start, window_end, measured_as_of,
    predicted, matured, expected, labelled, realised, labels
from expected_performance where use_case = %s and measured_as_of < %s
order by model_version, window_start, window_end, measured_as_of desc
"""
_INSERT = """
insert into expected_performance (use_case, model_version, window_start, window_end, measured_as_of, predicted, matured,
    expected, labelled, realised, labels) values %s"""
_ORDER = [(name, "ascending") for name in ("prediction_time", "entity_key", "event_time")]


@dataclass(frozen=True, kw_only=True)
class ExpectedWindow:
    """One row of the table `expected_performance`; nothing is realised until enough labels have come."""

    model_version: str
    window: Interval
    as_of: datetime
    predicted: int
    matured: int
    estimates: Mapping[str, MetricEstimate]
    labelled: int = 0
    realised: Mapping[str, float]
    labels: str | None = None


@dataclass(frozen=True, kw_only=True)
class UnlabelledPartition:
    """A partition to be estimated: the champion's scores of its points, and how that champion scores others."""

    model_version: str  # the network
    answering_version: str  # the champion: itself, or a recalibration of it
    partition: Interval
    points: pa.Table  # with the scores as a column
    snapshot_version: str
    definition: FeatureSet
    learnt_until: datetime  # the newest prediction time that the champion learnt

    @property
    def as_of(self) -> datetime:
        """The data time of the estimate."""
        return self.partition.end


@dataclass(frozen=True, kw_only=True)
class ExpectedPerformance:
    """The estimate of a partition, None where too little was there for one, and the restatements of earlier ones."""

    newest: ExpectedWindow | None
    restated: Sequence[ExpectedWindow]


def measure_expected(use_case: UseCase, partition: UnlabelledPartition, outside: Outside) -> ExpectedPerformance:
    """Restate earlier windows whose labels have changed, and estimate this one by how far the estimates were off."""
    stated = _load_stated(use_case, partition.as_of, outside)
    changed = find_changed_windows("expected_performance", use_case, partition.as_of, outside)
    restated = [_restate(use_case, stated[key], partition.as_of, outside) for key in changed]
    latest = stated | {(each.model_version, each.window): each for each in restated}
    matured = _load_matured(use_case, partition, outside)
    score = partition.points[SCORE].to_numpy()
    newest = None
    if min(len(matured), len(score)) >= use_case.monitor.min_labelled:
        newest = ExpectedWindow(
            model_version=partition.model_version,
            window=partition.partition,
            as_of=partition.as_of,
            predicted=len(score),
            matured=len(matured),
            estimates=estimate_window(
                use_case.target.kind, score, matured, list_matured(latest.values()), seed=use_case.seed
            ),
            realised={},
        )
    return ExpectedPerformance(newest=newest, restated=restated)


def list_matured(windows: Iterable[ExpectedWindow]) -> dict[str, list[MaturedEstimate]]:
    """Metric -> the estimates whose windows have their labels, oldest first."""
    past = defaultdict(list)
    for each in sorted(windows, key=lambda each: each.window.end):
        for name, value in each.realised.items():
            past[name].append(MaturedEstimate(estimate=each.estimates[name], realised=value))
    return past


def write_expected(at: "cursor", use_case: UseCase, expected: ExpectedPerformance) -> None:
    """Add the estimate and the restatements to the table."""
    windows = [*([expected.newest] if expected.newest else []), *expected.restated]
    execute_values(
        at,
        _INSERT,
        [
            (use_case.name, each.model_version, each.window.start, each.window.end, each.as_of, each.predicted,
             each.matured, json.dumps(describe_estimates(each), allow_nan=False), each.labelled,
             json.dumps(dict(each.realised), allow_nan=False), each.labels)
            for each in windows
        ],
    )  # fmt: skip


def describe_estimates(window: ExpectedWindow) -> dict[str, dict[str, Any]]:
    """The estimates of a window as JSON has them."""
    return {name: asdict(estimate) for name, estimate in window.estimates.items()}


def _load_stated(use_case: UseCase, as_of: datetime, outside: Outside) -> dict[tuple[str, Interval], ExpectedWindow]:
    """What the latest row before a data time says of each window."""
    stated = {}
    for row in outside.warehouse.query(_STATED, (use_case.name, as_of)):
        window = Interval(row["window_start"], row["window_end"])
        stated[row["model_version"], window] = ExpectedWindow(
            model_version=row["model_version"],
            window=window,
            as_of=row["measured_as_of"],
            predicted=row["predicted"],
            matured=row["matured"],
            estimates={
                name: MetricEstimate(**{**each, "trust": Trust(each["trust"])})
                for name, each in row["expected"].items()
            },
            labelled=row["labelled"],
            realised=row["realised"],
            labels=row["labels"],
        )
    return stated


def _restate(use_case: UseCase, stated: ExpectedWindow, as_of: datetime, outside: Outside) -> ExpectedWindow:
    found = measure_rows(use_case, stated.model_version, stated.window, as_of, outside)
    monitor = use_case.monitor  # that labels may still come is no reason: it would leave out what lies at a limit
    needed = max(monitor.min_labelled, monitor.min_coverage * found.rows.num_rows)
    is_enough = found.labelled >= needed
    return replace(
        stated,
        as_of=as_of,
        labelled=found.labelled,
        realised={name: found.metrics[name] for name in stated.estimates if name in found.metrics} if is_enough else {},
        labels=found.labels,
    )


def _load_matured(use_case: UseCase, partition: UnlabelledPartition, outside: Outside) -> MaturedRows:
    """Rows of before the partition whose labels have had their time, with this champion's scores."""
    end = min(partition.partition.start, partition.as_of - use_case.time.label_lag)
    start = end - timedelta(days=use_case.monitor.performance_days)
    with outside.warehouse.transaction(snapshot=True) as at:
        params = (partition.as_of, use_case.name, partition.model_version, start, end)
        rows = outside.warehouse.copy_out(_SCORED, params, at=at)
    if rows.num_rows < use_case.monitor.min_labelled:
        since = max(start, partition.learnt_until + timedelta(microseconds=1))
        rows = _score_unlearnt(use_case, partition, Interval(since, end), outside) if since < end else rows
    return MaturedRows(
        score=rows[SCORE].to_numpy(),
        label=rows["label"].to_numpy(),
        day=rows["prediction_time"].to_numpy().astype("datetime64[D]"),
    )


def _score_unlearnt(
    use_case: UseCase, partition: UnlabelledPartition, unlearnt: Interval, outside: Outside
) -> pa.Table:
    """Labelled rows that a champion did not learn, scored by it; none where its bundle cannot be had any more."""
    points = load_learnt_points(
        partition.definition, partition.snapshot_version, use_case, outside, start=unlearnt.start, end=unlearnt.end
    )
    lead = use_case.time.lead
    with outside.warehouse.transaction(snapshot=True) as at:
        params = (partition.as_of, use_case.name, unlearnt.start + lead, unlearnt.end + lead)
        outcomes = outside.warehouse.copy_out(_OUTCOMES, params, at=at)
    rows = points.join(outcomes, ["entity_key", "event_time"], join_type="inner").sort_by(_ORDER)
    scores: Any = []
    try:
        scores = (
            load_batch_predictor(use_case, partition.answering_version, outside).predict(rows) if rows.num_rows else []
        )
    except (Missing, Corrupt) as error:
        logger.warning("nothing can be expected of version %s yet: %s", partition.model_version, error)
        rows = rows.slice(0, 0)
    return rows.append_column(SCORE, pa.array(scores, pa.float64()))
