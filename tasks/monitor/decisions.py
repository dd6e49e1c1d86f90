"""What monitoring observed and decided, written together: drift, performance, decision, its retrain and its alert."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extras import execute_values

from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.ledger import locked_champion
from tasks.monitor.drift_report import ReportSamples
from tasks.monitor.expected_windows import ExpectedPerformance, describe_estimates, write_expected
from tasks.monitor.observed import Action, Decision, Observed, OtherDecision, RetrainState
from tasks.monitor.performance import WindowPerformance
from tasks.monitor.served import ServedPerformance, describe_served, write_served
from tasks.monitor.served_features import MeasuredDrift
from tasks.monitor.triage import breached_features, broken_features, unknown_features
from tasks.promote.recalibrate import ask_recalibration, supersede_recalibration

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from adapters.alerts import Tier
    from adapters.connect import Outside
    from adapters.warehouse import Fence

_HISTORY = """
select d.as_of, coalesce(d.evidence ->> 'network_version', d.model_version) as network_version, d.decision,
    d.evidence -> 'breached' as breached, r.state, r.outcome, r.challenger,
    d.evidence ->> 'miscoverage' is not null as is_miscovered
from decisions d left join retrains r using (decision_id) where d.use_case = %s
"""
_DECIDED = "select 1 from decisions where decision_id = %s"
_TIERS: "dict[Action, Tier]" = {Action.BLOCK: "critical", Action.ALERT: "warning", Action.RETRAIN: "warning"}
_TITLES = {Action.BLOCK: "broken feed", Action.ALERT: "needs a look", Action.RETRAIN: "will be retrained"}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """Everything measured about one partition, before it is decided on."""

    partition: Interval
    snapshot_version: str
    observed: Observed
    performances: list[WindowPerformance]
    served: list[ServedPerformance]
    expected: ExpectedPerformance  # of the partition, before its labels; and what earlier ones became
    moved: MeasuredDrift
    report: ReportSamples | None


def decision_id(use_case: UseCase, as_of: datetime) -> str:
    """The name of the one decision of a use case at a data time."""
    return f"{use_case.name}-{as_of:%Y%m%dT%H%M}"


def load_decisions(use_case: UseCase, outside: "Outside") -> list[OtherDecision]:
    """Every decision made so far, with the state of its retrain."""
    return [
        OtherDecision(
            as_of=row["as_of"],
            network_version=row["network_version"],
            decision=Action(row["decision"]),
            breached=frozenset(row["breached"]),
            state=RetrainState(row["state"]) if row["state"] else None,
            outcome=row["outcome"],
            challenger=row["challenger"],
            is_miscovered=row["is_miscovered"],
        )
        for row in outside.warehouse.query(_HISTORY, (use_case.name,))
    ]


def write_decision(
    use_case: UseCase, examined: Examination, decision: Decision, outside: "Outside", *, fence: "Fence"
) -> None:
    """Commit all of it once, or nothing. Alerts are recorded here and delivered by whoever flushes them afterwards.

    Raises:
        FencedOut: monitoring was begun again meanwhile.
    """

    def commit() -> None:
        with outside.warehouse.transaction(fence) as at:
            locked_champion(at, use_case)  # nobody is put in force between what is read of it and the decision
            at.execute(_DECIDED, (decision_id(use_case, examined.observed.as_of),))
            if at.fetchone() is not None:
                return  # an earlier attempt, whose commit was answered by nobody
            _write_drift(at, use_case, examined.observed)
            _write_performances(at, use_case, examined.performances)
            write_served(at, use_case, examined.served)
            write_expected(at, use_case, examined.expected)
            _write_decision(at, use_case, examined, decision)
            _write_alert(at, use_case, examined, decision, outside)

    outside.warehouse.retry_transaction(commit)


def _write_drift(at: "cursor", use_case: UseCase, observed: Observed) -> None:
    execute_values(
        at,
        "insert into drift (use_case, as_of, model_version, feature, measure, value, threshold, status, basis)"
        " values %s",
        [
            (
                use_case.name,
                observed.as_of,
                observed.model_version,
                d.feature,
                d.measure,
                d.value,
                d.threshold,
                d.status,
                d.basis,
            )
            for d in observed.drifts
        ],
    )


def _write_performances(at: "cursor", use_case: UseCase, performances: list[WindowPerformance]) -> None:
    execute_values(
        at,
        "insert into performance (use_case, model_version, window_start, window_end, measured_as_of, predicted,"
        " labelled, coverage, metrics, status, labels) values %s",
        [
            (use_case.name, each.model_version, each.window.start, each.window.end, each.as_of,
             each.performance.predicted, each.performance.labelled, each.performance.coverage,
             json.dumps(dict(each.performance.metrics), allow_nan=False), each.performance.status, each.labels)
            for each in performances
        ],
    )  # fmt: skip


def _write_decision(at: "cursor", use_case: UseCase, examined: Examination, decision: Decision) -> None:
    observed, name = examined.observed, decision_id(use_case, examined.observed.as_of)
    at.execute(
        "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
        " values (%s, %s, %s, %s, %s, %s, %s)",
        (name, use_case.name, observed.as_of, observed.model_version, decision.decision, list(decision.reasons),
         json.dumps(_evidence(examined, decision), allow_nan=False)),
    )  # fmt: skip
    if decision.decision == Action.RETRAIN or decision.challenger:
        at.execute(
            "insert into retrains (decision_id, use_case, state, challenger) values (%s, %s, %s, %s)",
            (name, use_case.name, RetrainState.PENDING, decision.challenger),
        )
    supersede_recalibration(at, use_case)
    if decision.recalibrates:
        assert observed.intercept is not None
        ask_recalibration(
            at,
            use_case,
            name,
            observed.network_version,
            observed.as_of,
            observed.intercept,
            examined.snapshot_version,
        )


def _evidence(examined: Examination, decision: Decision) -> dict[str, Any]:
    observed = examined.observed
    return {
        "partition": examined.partition.start.isoformat(),
        "snapshot_version": examined.snapshot_version,
        "codes": list(decision.codes),
        "breached": sorted(breached_features(observed.drifts)),
        "broken": sorted(broken_features(observed.drifts)),
        "faults": None if observed.faults is None else [asdict(fault) for fault in observed.faults],
        "unknown": unknown_features(observed.drifts),
        "performance": {k: v for k, v in asdict(observed.performance).items() if k != "reasons"},
        "references": dict(examined.performances[0].references),
        "served": describe_served(examined.served[0]) if examined.served else None,
        "expected": describe_estimates(examined.expected.newest) if examined.expected.newest else None,
        **({"miscoverage": observed.miscoverage} if observed.miscoverage else {}),
        "drift": examined.moved.describe(),
        "network_version": observed.network_version,
        "intercept": asdict(observed.intercept) if observed.intercept else None,
        "champion_born_at": observed.born_at.isoformat(),
        "trained_rows": observed.trained_rows,
        "new_rows": observed.new_rows,
        "report": asdict(examined.report) if examined.report else None,
    }


def _write_alert(
    at: "cursor", use_case: UseCase, examined: Examination, decision: Decision, outside: "Outside"
) -> None:
    """Tell people what was decided; end the alerts of what no longer holds. A partition that came late ends none."""
    observed, action = examined.observed, decision.decision
    at.execute("select 1 from decisions where use_case = %s and as_of > %s limit 1", (use_case.name, observed.as_of))
    if at.fetchone() is None:
        for other in _TIERS.keys() - {action}:
            outside.alerts.resolve(_fingerprint(use_case, other), at)
    if action in _TIERS:
        report = f"\nreport, drawn after this: {examined.report.report_uri}" if examined.report else ""
        outside.alerts.record(
            at,
            tier=_TIERS[action],
            use_case=use_case.name,
            fingerprint=_fingerprint(use_case, action),
            title=f"{use_case.name}: {_TITLES[action]}, model {observed.model_version} as of {observed.as_of:%Y-%m-%d}",
            body="\n".join(decision.reasons) + report,
        )


def _fingerprint(use_case: UseCase, action: Action) -> str:
    return f"{use_case.name}.monitor.{action}"
