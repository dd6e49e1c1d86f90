"""Watches the champion: drift of each scored partition, performance on matured labels, and one decision about both.

Judged is what was answered in time, where that is enough of the events; else, and named so, what batch has (restated).
Reconciles from the warehouse: every scored partition without a decision, oldest first, each as of its end. What was
measured, the decision, its retrain and its alert are written in one fenced transaction: running again writes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import features
from adapters.connect import Outside
from features import FeatureSet
from models.recalibration import add_to_logits
from pipeline.handoffs import Drift
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks import score
from tasks.build_features.learnt_features import load_learnt_definition, load_learnt_points
from tasks.build_features.profile import TOGETHER
from tasks.common.ledger import Champion, champion_at, find_birth, load_champions
from tasks.monitor import decisions, drift, drift_report, performance, served
from tasks.monitor.expected_performance import find_expected_breaches
from tasks.monitor.expected_windows import UnlabelledPartition, measure_expected
from tasks.monitor.interval_quality import find_miscoverage
from tasks.monitor.observed import Observed, OtherDecision
from tasks.monitor.past_points import WatchedModel, load_past_points
from tasks.monitor.recalibration import find_latest_rollback, find_latest_switch, measure_champion
from tasks.monitor.served_features import load_served_features, measure_served_drift
from tasks.monitor.triage import make_decision
from tasks.promote.recalibrate import is_asked, recalibrate_champion
from tasks.promote.standing import find_standing

_SCORED = """
select s.partition_start, s.model_version, s.snapshot_version from scorings s
where s.use_case = %s and not exists (
    select from decisions d where d.use_case = s.use_case and d.as_of = s.partition_start + %s)
order by s.partition_start
"""
_SCORES = """
select score, intercept from network_predictions where use_case = %s and network_version = %s and prediction_time >= %s
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


def find_undecided(use_case: UseCase, outside: Outside) -> list[UndecidedPartition]:
    """Every partition scored by the champion in force at its start that has no decision yet, oldest first.

    It stops before the first partition still to be scored. Shares of a backfill end in any order, and a decision uses
    those before it.
    """
    with outside.warehouse.session():
        return list(_undecided(use_case, outside))


def is_due(use_case: UseCase, outside: Outside) -> bool:
    """Whether a partition is to be decided on, or a recalibration to be made that an earlier run asked for."""
    return is_asked(use_case, outside) or bool(find_undecided(use_case, outside))


def monitor_partitions(use_case: UseCase, outside: Outside) -> list[Drift]:
    """Decide on all that is undecided, each partition in one transaction; nothing to do is an empty list.

    Raises:
        FencedOut: monitoring of this use case was begun again meanwhile; that run does the rest.
    """
    outside.alerts.flush()  # also what an earlier run recorded and could not deliver
    recalibrate_champion(use_case, outside)  # also what an earlier run decided, so that the order is that of data time
    fence = outside.warehouse.begin(f"monitor/{use_case.name}")
    models: dict[str, WatchedModel] = {}
    decided = []
    pending = find_undecided(use_case, outside)
    while pending:
        undecided = pending.pop(0)
        version = undecided.champion.version
        if version not in models:
            models[version] = load_watched_model(use_case, version, outside)
        history = decisions.load_decisions(use_case, outside)
        examined = examine_partition(use_case, undecided, models[version], history, outside)
        decision = make_decision(examined.observed, history, use_case.monitor)
        decisions.write_decision(use_case, examined, decision, outside, fence=fence)
        if decision.recalibrates:
            recalibrate_champion(use_case, outside)
            pending = find_undecided(use_case, outside)  # what follows may be to be scored anew
        outside.alerts.flush()
        decided.append(
            Drift(
                use_case=use_case.name,
                as_of=undecided.as_of,
                model_version=version,
                decision_id=decisions.decision_id(use_case, undecided.as_of),
                decision=decision.decision.value,
                reasons=list(decision.reasons),
                report_uri=examined.report.report_uri if examined.report else None,
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
        version=version,
        profile=outside.registry.profile(use_case.name, version),
        definition=load_learnt_definition(use_case, version, outside),
    )
    if model.definition == features.definition(use_case.name):
        _require_features(use_case, model.profile, version)
    return model


def examine_partition(
    use_case: UseCase,
    undecided: UndecidedPartition,
    model: WatchedModel,
    history: Sequence[OtherDecision],
    outside: Outside,
) -> decisions.Examination:
    """Measure one partition: drift of data and scores, performance as measured and expected, and age.

    The partitions that `history` blocked are no past to hold it against.
    """
    champion, as_of = undecided.champion, undecided.as_of
    version, network = champion.version, champion.network_version
    profile, definition = model.profile, model.definition
    looked_at = _looked_at(use_case, undecided, profile)
    given, scored = _scored_points(use_case, undecided, looked_at, definition, outside)
    points = given.filter(pc.greater_equal(given["prediction_time"], _moment(given, undecided.partition.start)))
    served_points = _served_points(use_case, undecided, looked_at, profile, outside)
    moved = measure_served_drift(use_case, profile, served_points, scored)
    performances = performance.measure_performance(use_case, network, as_of, outside)
    answers = served.measure_served(use_case, champion, as_of, undecided.snapshot_version, outside)
    expected = measure_expected(use_case, _as_unlabelled(undecided, model, points), outside)
    estimated = expected.newest
    judged = answers[0].performance if answers and answers[0].is_judged else performances[0].performance
    snapshot = undecided.snapshot_version
    past = load_past_points(use_case, undecided.partition, model, outside, snapshot_version=snapshot)
    observed = Observed(
        as_of=as_of,
        model_version=version,
        network_version=network,
        drifts=moved.drifts,
        faults=past.find_faults(use_case, undecided.partition, points.drop_columns([drift.SCORE]), history),
        together=profile.get(TOGETHER, 1),
        performance=judged,
        born_at=undecided.born_at,
        trained_rows=profile["rows"],
        new_rows=_count_new_labels(use_case, undecided.born_at, as_of, outside),
        switched_at=find_latest_switch(use_case, as_of, outside),
        miscoverage=find_miscoverage(judged.metrics, use_case.target.interval),
        expected=tuple(find_expected_breaches(estimated.estimates, use_case.monitor)) if estimated else None,
        intercept=measure_champion(use_case, champion, undecided.snapshot_version, as_of, outside),
        rolled_back_at=find_latest_rollback(use_case, as_of, outside),
        standing=find_standing(use_case, network, as_of, outside),
    )
    return decisions.Examination(
        partition=undecided.partition,
        snapshot_version=undecided.snapshot_version,
        observed=observed,
        performances=performances,
        served=answers,
        expected=expected,
        moved=moved,
        report=drift_report.keep_samples(use_case, as_of, profile, (past.training_window(), moved.judged), outside),
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
                born_at=find_birth(champions, champion.network_version),
                snapshot_version=row["snapshot_version"],
            )


def _looked_at(use_case: UseCase, undecided: UndecidedPartition, profile: dict[str, Any]) -> Interval:
    """The partition or, of a table with few rows, the latest ones that this network scored, as many as in training."""
    length = timedelta(days=use_case.grid.days)
    end = undecided.partition.end
    return Interval(max(undecided.born_at.astimezone(UTC), end - profile.get(TOGETHER, 1) * length), end)


def _scored_points(
    use_case: UseCase, undecided: UndecidedPartition, looked_at: Interval, definition: FeatureSet, outside: Outside
) -> tuple[pa.Table, pa.Table]:
    """The points with the stored predictions as a column, and with what the network answered, not recalibrated.

    The latter are for drift, of which only each column's distribution is used.
    """
    points = load_learnt_points(
        definition, undecided.snapshot_version, use_case, outside, start=looked_at.start, end=looked_at.end
    )
    window = (use_case.name, undecided.champion.network_version, looked_at.start, looked_at.end)
    stored = outside.warehouse.query(_SCORES, window)
    if len(stored) != points.num_rows:  # scored again since, from another snapshot; the next run reads that one
        raise RuntimeError(f"{looked_at}: {points.num_rows} points but {len(stored)} predictions; run again")
    given, added = (np.array([row[name] for row in stored], np.float64) for name in ("score", "intercept"))
    raw = np.where(added == 0, given, add_to_logits(given, -added)) if added.any() else given
    given_to, raw_to = (points.append_column(drift.SCORE, pa.array(scores)) for scores in (given, raw))
    return given_to, raw_to


def _moment(table: pa.Table, moment: datetime) -> pa.Scalar:
    return pa.scalar(moment, table.schema.field("prediction_time").type)


def _as_unlabelled(undecided: UndecidedPartition, model: WatchedModel, points: pa.Table) -> UnlabelledPartition:
    return UnlabelledPartition(
        model_version=undecided.champion.network_version,
        answering_version=undecided.champion.version,
        partition=undecided.partition,
        points=points,
        snapshot_version=undecided.snapshot_version,
        definition=model.definition,
        learnt_until=datetime.fromisoformat(model.profile["end"]).astimezone(UTC),
    )


def _served_points(
    use_case: UseCase, undecided: UndecidedPartition, looked_at: Interval, profile: dict[str, Any], outside: Outside
) -> pa.Table:
    return load_served_features(
        use_case,
        profile,
        outside,
        network_version=undecided.champion.network_version,
        partition=looked_at,
        as_of=undecided.as_of,
    )


def _count_new_labels(use_case: UseCase, since: datetime, as_of: datetime, outside: Outside) -> int:
    [row] = outside.warehouse.query(
        "select count(*) as n from outcomes where use_case = %s and label_time > %s and label_time <= %s",
        (use_case.name, since, as_of),
    )
    return int(row["n"])
