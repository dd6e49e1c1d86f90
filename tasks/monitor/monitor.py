"""Watches the champion: drift of each scored partition, performance on matured labels, and one decision about both.

Judged is what was answered in time, where that is enough of the events; else, and named so, what batch has (restated).
Reconciles from the warehouse: every scored partition without a decision, oldest first, each as of its end. What was
measured, the decision, its retrain and its alert are written in one fenced transaction: running again writes nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

import features
from adapters.connect import Outside
from features import FeatureSet
from pipeline.handoffs import Drift
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks import score
from tasks.build_features import dataset
from tasks.build_features.learnt_features import (
    find_training_snapshot,
    is_made_by,
    load_learnt_definition,
    load_learnt_points,
)
from tasks.common.ledger import Champion, champion_at, find_birth, load_champions
from tasks.monitor import decisions, drift, drift_report, performance, served
from tasks.monitor.expected_performance import find_expected_breaches
from tasks.monitor.expected_windows import UnlabelledPartition, measure_expected
from tasks.monitor.interval_quality import find_miscoverage
from tasks.monitor.served_features import load_served_features, measure_served_drift
from tasks.monitor.triage import Observed, make_decision

_SCORED = """
select s.partition_start, s.model_version, s.snapshot_version from scorings s
where s.use_case = %s and not exists (
    select from decisions d where d.use_case = s.use_case and d.as_of = s.partition_start + %s)
order by s.partition_start
"""
_SCORES = """
select score from predictions where use_case = %s and model_version = %s and prediction_time >= %s
    and prediction_time < %s order by prediction_time, entity_key collate "C", event_time
"""


@dataclass(frozen=True, kw_only=True)
class UndecidedPartition:
    """One scored partition to be decided on, and the champion that scored it, with the data time it was trained for."""

    partition: Interval
    champion: Champion
    born_at: datetime
    snapshot_version: str

    @property
    def as_of(self) -> datetime:
        """The data time of the decision."""
        return self.partition.end


@dataclass(frozen=True, kw_only=True)
class WatchedModel:
    """What a model version learnt: the distributions of its training data, and the definition that made them."""

    profile: dict[str, Any]
    definition: FeatureSet


def find_undecided(use_case: UseCase, outside: Outside) -> list[UndecidedPartition]:
    """Every partition scored by the champion in force at its start that has no decision yet, oldest first.

    It stops before the first partition still to be scored. Shares of a backfill end in any order, and a decision uses
    those before it.
    """
    with outside.warehouse.session():
        return list(_undecided(use_case, outside))


def monitor_partitions(use_case: UseCase, outside: Outside) -> list[Drift]:
    """Decide on all that is undecided, each partition in one transaction; nothing to do is an empty list.

    Raises:
        FencedOut: monitoring of this use case was begun again meanwhile; that run does the rest.
    """
    outside.alerts.flush()  # also what an earlier run recorded and could not deliver
    fence = outside.warehouse.begin(f"monitor/{use_case.name}")
    models: dict[str, WatchedModel] = {}
    decided = []
    for undecided in find_undecided(use_case, outside):
        version = undecided.champion.version
        if version not in models:
            models[version] = load_watched_model(use_case, version, outside)
        examined = examine_partition(use_case, undecided, models[version], outside)
        decision = make_decision(examined.observed, decisions.load_decisions(use_case, outside), use_case.monitor)
        decisions.write_decision(use_case, examined, decision, outside, fence=fence)
        outside.alerts.flush()
        decided.append(
            Drift(
                use_case=use_case.name,
                as_of=undecided.as_of,
                model_version=version,
                decision_id=decisions.decision_id(use_case, undecided.as_of),
                decision=decision.decision.value,
                reasons=list(decision.reasons),
                report_uri=examined.report_uri,
            )
        )
    return decided


def load_watched_model(use_case: UseCase, version: str, outside: Outside) -> WatchedModel:
    """What a model version learnt, from the registry.

    Raises:
        ValueError: a structural feature of today's definition is none that it has: its drift could never be seen.
        UncomputableFeatures: this code cannot compute its features any more.
    """
    model = WatchedModel(
        profile=outside.registry.profile(use_case.name, version),
        definition=load_learnt_definition(use_case, version, outside),
    )
    if model.definition == features.definition(use_case.name):
        _require_features(use_case, model.profile, version)
    return model


def examine_partition(
    use_case: UseCase, undecided: UndecidedPartition, model: WatchedModel, outside: Outside
) -> decisions.Examination:
    """Measure one partition: drift of data and scores, performance as measured and expected, age, and a report."""
    version, as_of = undecided.champion.version, undecided.as_of
    profile, definition = model.profile, model.definition
    points = _scored_points(use_case, undecided, definition, outside)
    served_points = _served_points(use_case, undecided, profile, outside)
    moved = measure_served_drift(use_case, profile, served_points, points)
    performances = performance.measure_performance(use_case, version, as_of, outside)
    answers = served.measure_served(use_case, undecided.champion, as_of, undecided.snapshot_version, outside)
    expected = measure_expected(use_case, _as_unlabelled(undecided, model, points), outside)
    estimated = expected.newest
    judged = answers[0].performance if answers and answers[0].is_judged else performances[0].performance
    observed = Observed(
        as_of=as_of,
        model_version=version,
        drifts=moved.drifts,
        performance=judged,
        born_at=undecided.born_at,
        trained_rows=profile["rows"],
        new_rows=_count_new_labels(use_case, undecided.born_at, as_of, outside),
        switched_at=_find_latest_switch(use_case, as_of, outside),
        miscoverage=find_miscoverage(judged.metrics, use_case.target.interval),
        expected=tuple(find_expected_breaches(estimated.estimates, use_case.monitor)) if estimated else None,
    )
    reference = _load_training_window(use_case, undecided, definition, profile, outside)
    return decisions.Examination(
        partition=undecided.partition,
        snapshot_version=undecided.snapshot_version,
        observed=observed,
        performances=performances,
        served=answers,
        expected=expected,
        moved=moved,
        report_uri=drift_report.publish_report(use_case, as_of, profile, (reference, moved.judged), outside),
    )


def _require_features(use_case: UseCase, profile: dict[str, Any], version: str) -> None:
    if absent := sorted(set(use_case.monitor.structural_features) - set(profile["features"])):
        raise ValueError(
            f"monitor.structural_features of {use_case.name} names {absent}, which version {version} does not have"
        )


def _undecided(use_case: UseCase, outside: Outside) -> Iterator[UndecidedPartition]:
    length = timedelta(days=use_case.grid.days)
    unscored, champions = score.find_unscored(use_case, outside), load_champions(use_case, outside)
    for row in outside.warehouse.query(_SCORED, (use_case.name, length)):
        start = row["partition_start"].astimezone(UTC)
        if unscored and unscored[0].partition.start <= start:
            return
        champion = champion_at(champions, start)
        if champion and champion.version == row["model_version"]:
            yield UndecidedPartition(
                partition=Interval(start, start + length),
                champion=champion,
                born_at=find_birth(champions, champion.version),
                snapshot_version=row["snapshot_version"],
            )


def _scored_points(
    use_case: UseCase, undecided: UndecidedPartition, definition: FeatureSet, outside: Outside
) -> pa.Table:
    """The points, with the champion's stored predictions as a column; only each column's distribution is used."""
    partition = undecided.partition
    points = load_learnt_points(
        definition, undecided.snapshot_version, use_case, outside, start=partition.start, end=partition.end
    )
    window = (use_case.name, undecided.champion.version, partition.start, partition.end)
    scores = [row["score"] for row in outside.warehouse.query(_SCORES, window)]
    if len(scores) != points.num_rows:  # scored again since, from another snapshot; the next run reads that one
        raise RuntimeError(f"{partition}: {points.num_rows} points but {len(scores)} predictions; run again")
    return points.append_column(drift.SCORE, pa.array(scores, pa.float64()))


def _as_unlabelled(undecided: UndecidedPartition, model: WatchedModel, points: pa.Table) -> UnlabelledPartition:
    return UnlabelledPartition(
        model_version=undecided.champion.version,
        partition=undecided.partition,
        points=points,
        snapshot_version=undecided.snapshot_version,
        definition=model.definition,
        learnt_until=datetime.fromisoformat(model.profile["end"]).astimezone(UTC),
    )


def _served_points(
    use_case: UseCase, undecided: UndecidedPartition, profile: dict[str, Any], outside: Outside
) -> pa.Table:
    return load_served_features(
        use_case,
        profile,
        outside,
        model_version=undecided.champion.version,
        partition=undecided.partition,
        as_of=undecided.as_of,
    )


def _load_training_window(
    use_case: UseCase,
    undecided: UndecidedPartition,
    definition: FeatureSet,
    profile: dict[str, Any],
    outside: Outside,
) -> pa.Table:
    """The points of the champion's training window, from the snapshot that was scored: not its fitted rows.

    Of a champion that learnt another definition they are those that it was trained on.
    """
    start, last = (datetime.fromisoformat(profile[key]).astimezone(UTC) for key in ("start", "end"))
    end = last + timedelta(microseconds=1)
    snapshot = undecided.snapshot_version
    if not is_made_by(definition, snapshot, use_case, outside):
        snapshot = find_training_snapshot(use_case, undecided.champion.version, outside)
    return dataset.load_points(snapshot, use_case, outside, start=start, end=end)


def _count_new_labels(use_case: UseCase, since: datetime, as_of: datetime, outside: Outside) -> int:
    [row] = outside.warehouse.query(
        "select count(*) as n from outcomes where use_case = %s and label_time > %s and label_time <= %s",
        (use_case.name, since, as_of),
    )
    return int(row["n"])


def _find_latest_switch(use_case: UseCase, as_of: datetime, outside: Outside) -> datetime | None:
    """From which data time on another champion was in force than before: a first one replaced nobody."""
    [row] = outside.warehouse.query(
        "select max(as_of) as latest from ledger where use_case = %s and as_of <= %s"
        " and action in ('promote', 'rollback') and champion_version is not null",
        (use_case.name, as_of),
    )
    latest: datetime | None = row["latest"]
    return latest
