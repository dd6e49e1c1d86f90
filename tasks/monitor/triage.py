"""What to do about what monitoring found: ignore | alert | retrain | block. Pure, and by data time alone.

A broken feed pages a person and never retrains: a model taught by broken data is worse than an old one. What is
unknown is never healthy. A real shift, lost performance, age or much new data retrain, unless a guard says that
retraining again would be a storm; then a person is told instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pipeline.spec import Monitor
from tasks.monitor.drift import Measure

Verb = Literal["ignore", "alert", "retrain", "block"]

REFUSALS = frozenset({"held", "need-more-data", "rejected"})  # release outcomes: the gate, or a person, said no
_NAMED = 5  # features named in a reason; the rest are in the drift table


@dataclass(frozen=True, kw_only=True)
class Performance:
    """How the champion did on the labels that have matured; `status` is ok | degraded | unknown."""

    predicted: int
    labelled: int
    coverage: float
    metrics: Mapping[str, float]
    status: Literal["ok", "degraded", "unknown"]
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found about one partition, at its end, and about the champion that scored it."""

    as_of: datetime
    model_version: str
    measures: Sequence[Measure]
    performance: Performance
    champion_cutoff: datetime  # the newest label it learned from became known by then
    trained_rows: int
    new_rows: int  # labels that became known since the cut-off
    rolled_back: datetime | None = None  # the latest rollback, in data time


@dataclass(frozen=True, kw_only=True)
class Past:
    """An earlier (or, where partitions arrive out of order, later) decision."""

    as_of: datetime
    model_version: str
    decision: str
    breached: frozenset[str]  # features whose PSI was over their thresholds
    state: str | None = None  # of its retrain: pending | running | done | failed
    outcome: str | None = None  # of its retrain


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do, and why."""

    decision: Verb
    reasons: tuple[str, ...]


def decide(findings: Findings, history: Sequence[Past], monitor: Monitor) -> Decision:
    """The decision about a partition. `history` may be in any order and may hold decisions of other champions."""
    if broken := broken_features(findings.measures):
        reason = f"broken feed: {_named(broken)} far emptier than in any week of training"
        return Decision(decision="block", reasons=(reason,))
    unknown = _unknown(findings)
    if all(measure.status == "unknown" for measure in findings.measures):  # nothing, or too few rows, to decide by
        return Decision(decision="alert", reasons=unknown)
    before = sorted((past for past in history if past.as_of < findings.as_of), key=lambda past: past.as_of)
    triggers = _triggers(findings, before, monitor)
    if not triggers:
        return Decision(decision="alert" if unknown else "ignore", reasons=unknown or (_quiet(findings),))
    if guard := _guard(findings, history, before, monitor):
        return Decision(decision="alert", reasons=(*triggers, *unknown, f"not retrained: {guard}"))
    return Decision(decision="retrain", reasons=(*triggers, *unknown))


def judge_performance(*, predicted: int, labelled: int, metrics: Mapping[str, float], monitor: Monitor) -> Performance:
    """Whether metrics lie within their limits; unknown while too few of the predictions have a label."""
    coverage = labelled / predicted if predicted else 0.0
    status: Literal["ok", "degraded", "unknown"] = "unknown"
    reasons = _too_few(predicted, labelled, coverage, monitor)
    reasons += [f"performance unknown: no {name} could be computed" for name in monitor.limits if name not in metrics]
    if not reasons:
        reasons = _outside_limits(metrics, monitor)
        status = "degraded" if reasons else "ok"
    return Performance(
        predicted=predicted,
        labelled=labelled,
        coverage=coverage,
        metrics=metrics,
        status=status,
        reasons=tuple(reasons),
    )


def broken_features(measures: Sequence[Measure]) -> list[str]:
    """Features that are missing in far more rows than they were in training."""
    return [m.feature for m in measures if m.measure == "missing_share" and m.status == "breach"]


def breached_features(measures: Sequence[Measure]) -> frozenset[str]:
    """Features, the score among them, whose PSI is over its threshold."""
    return frozenset(m.feature for m in measures if m.measure != "missing_share" and m.status == "breach")


def _too_few(predicted: int, labelled: int, coverage: float, monitor: Monitor) -> list[str]:
    if labelled >= monitor.min_labelled and coverage >= monitor.min_coverage:
        return []
    needed = f"needed are {monitor.min_labelled} and {monitor.min_coverage:.0%}"
    return [f"performance unknown: {labelled} of {predicted} predictions have a label, {needed}"]


def _outside_limits(metrics: Mapping[str, float], monitor: Monitor) -> list[str]:
    found = []
    for name, limit in monitor.limits.items():
        value = metrics[name]
        if limit.min is not None and not value >= limit.min:  # written so that NaN is outside
            found.append(f"performance: {name} {value:.4f} is below {limit.min}")
        if limit.max is not None and not value <= limit.max:
            found.append(f"performance: {name} {value:.4f} is above {limit.max}")
    return found


def _unknown(findings: Findings) -> tuple[str, ...]:
    unknown = sorted({m.feature for m in findings.measures if m.status == "unknown"})
    reasons = [f"unknown: {_named(unknown)} could not be measured"] if unknown else []
    if not findings.measures:
        reasons.append("unknown: no feature was measured")
    if findings.performance.status == "unknown":
        reasons += findings.performance.reasons
    return tuple(reasons)


def _triggers(findings: Findings, before: Sequence[Past], monitor: Monitor) -> tuple[str, ...]:
    found = list(_drift_triggers(findings, before, monitor))
    if findings.performance.status == "degraded":
        found += findings.performance.reasons
    age = findings.as_of - findings.champion_cutoff
    if age >= timedelta(days=monitor.max_age_days):
        found.append(f"age: the champion learned nothing for {age.days} days, the limit is {monitor.max_age_days}")
    share = findings.new_rows / max(findings.trained_rows, 1)
    if share >= monitor.max_new_rows_share:
        found.append(f"volume: {findings.new_rows} new labels, {share:.0%} of what the champion learned from")
    return tuple(found)


def _drift_triggers(findings: Findings, before: Sequence[Past], monitor: Monitor) -> list[str]:
    persistent = persistent_features(findings, before, monitor)
    structural = sorted(persistent & set(monitor.structural_features))
    often = f"in {monitor.persistence_breaches} of {monitor.persistence_of} partitions"
    found = [f"drift of structure {often}: {_named(structural)}"] if structural else []
    if len(persistent) >= monitor.min_drifted_features:
        found.append(f"drift of {len(persistent)} features {often}: {_named(sorted(persistent))}")
    return found


def persistent_features(findings: Findings, before: Sequence[Past], monitor: Monitor) -> frozenset[str]:
    """Features over their thresholds now and in enough of the latest partitions that this champion scored."""
    now = breached_features(findings.measures)
    scored = [past for past in before if past.model_version == findings.model_version]
    same = [frozenset() if past.decision == "block" else past.breached for past in scored]  # broken data is no drift
    latest = [now, *same[::-1][: monitor.persistence_of - 1]]
    return frozenset(f for f in now if sum(f in breached for breached in latest) >= monitor.persistence_breaches)


def _guard(findings: Findings, history: Sequence[Past], before: Sequence[Past], monitor: Monitor) -> str | None:
    """Why retraining now would be a storm, or None."""
    retrains = [past for past in before if past.decision == "retrain"]
    if any(past.as_of > findings.as_of for past in history):
        return "this partition came late, a newer one has been decided on"
    if in_flight := [past for past in history if past.state in ("pending", "running")]:
        return f"the retrain decided at {in_flight[0].as_of:%Y-%m-%d} is still in flight"
    changes = [past.as_of for past in retrains] + ([findings.rolled_back] if findings.rolled_back else [])
    if changes and findings.as_of - max(changes) < timedelta(days=monitor.cooldown_days):
        return f"cooling down, {monitor.cooldown_days} days from the last retrain or rollback, {max(changes):%Y-%m-%d}"
    month = [past for past in retrains if findings.as_of - past.as_of < timedelta(days=30)]
    if len(month) >= monitor.monthly_retrains:
        return f"the budget of {monitor.monthly_retrains} retrains in 30 days is spent"
    return _breaker(findings, retrains, monitor)


def _breaker(findings: Findings, retrains: Sequence[Past], monitor: Monitor) -> str | None:
    latest = [past for past in retrains if past.state == "done"][-monitor.breaker_refusals :]
    refused = len(latest) == monitor.breaker_refusals and all(past.outcome in REFUSALS for past in latest)
    if refused and findings.as_of - latest[-1].as_of < timedelta(days=monitor.breaker_days):
        return (
            f"the last {monitor.breaker_refusals} retrained models were refused; "
            f"a person should look, or wait {monitor.breaker_days} days"
        )
    return None


def _quiet(findings: Findings) -> str:
    breached = sorted(breached_features(findings.measures))
    return f"nothing persistent: {_named(breached)} over threshold" if breached else "nothing found"


def _named(features: Sequence[str]) -> str:
    more = f" and {len(features) - _NAMED} more" if len(features) > _NAMED else ""
    return ", ".join(features[:_NAMED]) + more
