"""What monitoring found and decided, written together: measures, performance, decision, its retrain and its alert."""

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from psycopg2.extras import execute_values

from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.monitor.performance import Measured
from tasks.monitor.triage import Decision, Findings, Past, breached_features, broken_features

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from adapters.alerts import Tier
    from adapters.connect import Outside
    from adapters.warehouse import Fence

_HISTORY = """
select d.as_of, d.model_version, d.decision, d.evidence -> 'breached' as breached, r.state, r.outcome
from decisions d left join retrains r using (decision_id) where d.use_case = %s
"""
_TIERS: "dict[str, Tier]" = {"block": "critical", "alert": "warning", "retrain": "warning"}
_TITLES = {"block": "broken feed", "alert": "needs a look", "retrain": "will be retrained"}


@dataclass(frozen=True, kw_only=True)
class Found:
    """Everything measured about one partition, before it is decided on."""

    partition: Interval
    snapshot_version: str
    findings: Findings
    performances: list[Measured]
    report_uri: str | None


def decision_id(use_case: UseCase, as_of: datetime) -> str:
    """The name of the one decision of a use case at a data time."""
    return f"{use_case.name}-{as_of:%Y%m%dT%H%M}"


def history(use_case: UseCase, outside: "Outside") -> list[Past]:
    """Every decision made so far, with the state of its retrain."""
    return [
        Past(**{**row, "breached": frozenset(row["breached"])})
        for row in outside.warehouse.query(_HISTORY, (use_case.name,))
    ]


def write(use_case: UseCase, found: Found, decision: Decision, outside: "Outside", *, fence: "Fence") -> None:
    """Commit all of it, or nothing. Alerts are recorded here and delivered by whoever flushes them afterwards.

    Raises:
        FencedOut: monitoring was begun again meanwhile.
    """

    def commit() -> None:
        with outside.warehouse.transaction(fence) as at:
            _write_measures(at, use_case, found)
            _write_performance(at, use_case, found)
            _write_decision(at, use_case, found, decision)
            _write_alert(at, use_case, found, decision, outside)

    outside.warehouse.retry_transaction(commit)


def _write_measures(at: "cursor", use_case: UseCase, found: Found) -> None:
    f = found.findings
    execute_values(
        at,
        "insert into drift (use_case, as_of, model_version, feature, measure, value, threshold, status) values %s",
        [
            (use_case.name, f.as_of, f.model_version, m.feature, m.measure, m.value, m.threshold, m.status)
            for m in f.measures
        ],
    )


def _write_performance(at: "cursor", use_case: UseCase, found: Found) -> None:
    rows = []
    for measured in found.performances:
        p, window = measured.performance, measured.window
        metrics = json.dumps(dict(p.metrics), allow_nan=False)
        rows.append((use_case.name, measured.model_version, window.start, window.end, measured.as_of,
                     p.predicted, p.labelled, p.coverage, metrics, p.status, measured.labels))  # fmt: skip
    execute_values(
        at,
        "insert into performance (use_case, model_version, window_start, window_end, measured_as_of, predicted,"
        " labelled, coverage, metrics, status, labels) values %s",
        rows,
    )


def _write_decision(at: "cursor", use_case: UseCase, found: Found, decision: Decision) -> None:
    f, name = found.findings, decision_id(use_case, found.findings.as_of)
    at.execute(
        "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence)"
        " values (%s, %s, %s, %s, %s, %s, %s)",
        (name, use_case.name, f.as_of, f.model_version, decision.decision, list(decision.reasons),
         json.dumps(_evidence(found), allow_nan=False)),
    )  # fmt: skip
    if decision.decision == "retrain":
        at.execute(
            "insert into retrains (decision_id, use_case, state) values (%s, %s, 'pending')", (name, use_case.name)
        )


def _evidence(found: Found) -> dict[str, Any]:
    f = found.findings
    return {
        "partition": found.partition.start.isoformat(),
        "snapshot_version": found.snapshot_version,
        "breached": sorted(breached_features(f.measures)),
        "broken": sorted(broken_features(f.measures)),
        "unknown": sorted({m.feature for m in f.measures if m.status == "unknown"}),
        "performance": {k: v for k, v in asdict(f.performance).items() if k != "reasons"},
        "champion_cutoff": f.champion_cutoff.isoformat(),
        "trained_rows": f.trained_rows,
        "new_rows": f.new_rows,
        "report_uri": found.report_uri,
    }


def _write_alert(at: "cursor", use_case: UseCase, found: Found, decision: Decision, outside: "Outside") -> None:
    """Tell people what was decided; what no longer holds is over. A partition that came late ends nothing."""
    f, fingerprint = found.findings, f"{use_case.name}.monitor.{{}}".format
    at.execute("select 1 from decisions where use_case = %s and as_of > %s limit 1", (use_case.name, f.as_of))
    if at.fetchone() is None:
        for other in _TIERS.keys() - {decision.decision}:
            outside.alerts.resolve(fingerprint(other), at)
    if decision.decision in _TIERS:
        report = f"\nreport: {found.report_uri}" if found.report_uri else ""
        outside.alerts.record(
            at,
            tier=_TIERS[decision.decision],
            use_case=use_case.name,
            fingerprint=fingerprint(decision.decision),
            title=f"{use_case.name}: {_TITLES[decision.decision]}, model {f.model_version} as of {f.as_of:%Y-%m-%d}",
            body="\n".join(decision.reasons) + report,
        )
