"""What to do about what monitoring observed: ignore | alert | retrain | block. Pure, and by data time alone.

Beside it, and cheaper than all of them: whether the champion is recalibrated, so that its answers are right on average.

A broken feed pages a person and never retrains: a model taught by broken data is worse than an old one. What is
unknown is never healthy. A real shift, lost performance, age or much new data retrain, unless a guard says that
retraining again would be a storm; then a person is told instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from pipeline.monitoring import Monitor
from tasks.common.naming import MOST_NAMED, name_some
from tasks.monitor.drift import DriftMeasure, DriftStatus, FeatureDrift
from tasks.monitor.observed import (
    IN_FLIGHT,
    REFUSALS,
    Action,
    CodedReason,
    Decision,
    Observed,
    OtherDecision,
    RetrainState,
    TriageCode,
)
from tasks.monitor.performance_limits import PerformanceStatus
from tasks.promote.intercept_limits import explain_far_off, explain_recalibration


def make_decision(observed: Observed, history: Sequence[OtherDecision], monitor: Monitor) -> Decision:
    """The decision about a partition. `history` may be in any order and may hold decisions of other champions."""
    decision = _decide(observed, history, monitor)
    if decision.decision == Action.BLOCK:
        return decision
    if sentence := _recalibration(observed, history, monitor):
        decision = replace(_because(decision, TriageCode.RECALIBRATION, sentence), recalibrates=True)
    standing = observed.standing
    if standing is not None and not _must_wait(observed, history):
        sentence = f"challenger {standing.version}, held at {standing.held_at:%Y-%m-%d}, is judged again"
        decision = replace(_because(decision, TriageCode.STANDING, sentence), challenger=standing.version)
    return decision


def _because(decision: Decision, code: TriageCode, sentence: str) -> Decision:
    return replace(decision, codes=(*decision.codes, code), reasons=(*decision.reasons, sentence))


def _decide(observed: Observed, history: Sequence[OtherDecision], monitor: Monitor) -> Decision:
    if broken := [*_broken(observed)]:
        return _decision(Action.BLOCK, *broken)
    before = sorted((other for other in history if other.as_of < observed.as_of), key=lambda other: other.as_of)
    unknown = [*_unknown(observed, before)]
    if all(drift.status == DriftStatus.UNKNOWN for drift in observed.drifts):  # nothing, or too few rows, to decide by
        return _decision(Action.ALERT, *unknown)
    triggers = [*_triggers(observed, before, monitor)]
    told = [*unknown, *_miscoverage(observed, before, monitor)]
    if far_off := explain_far_off(observed.intercept, monitor):
        told.append((TriageCode.RECALIBRATION, far_off))
    if not triggers:
        return _decision(Action.ALERT, *told) if told else _decision(Action.IGNORE, _quiet(observed))
    if guard := _guard(observed, history, before, monitor):
        code, sentence = guard
        return _decision(Action.ALERT, *triggers, *told, (code, f"not retrained: {sentence}"))
    return _decision(Action.RETRAIN, *triggers, *told)


def _decision(action: Action, *because: CodedReason) -> Decision:
    return Decision(
        decision=action,
        codes=tuple(dict.fromkeys(code for code, _ in because)),
        reasons=tuple(sentence for _, sentence in because),
    )


def _broken(observed: Observed) -> Iterator[CodedReason]:
    emptier = broken_features(observed.drifts)
    if emptier:
        sentence = f"broken feed: {name_some(emptier)} far emptier than in any week of training"
        yield TriageCode.BROKEN_FEED, sentence
    others: dict[str, list[str]] = {}
    for fault in observed.faults or ():
        if fault.feature not in emptier:
            others.setdefault(fault.feature, []).append(fault.seen)
    for feature in [*others][:MOST_NAMED]:
        yield TriageCode.BROKEN_FEED, f"broken feed: {feature}: {'; '.join(others[feature])}"
    if len(others) > MOST_NAMED:
        yield TriageCode.BROKEN_FEED, f"broken feed: {name_some([*others][MOST_NAMED:])}, too"


def broken_features(drifts: Sequence[FeatureDrift]) -> list[str]:
    """Features that are missing in far more rows than they were in training."""
    return [d.feature for d in _breaches(drifts) if d.measure == DriftMeasure.MISSING_SHARE]


def breached_features(drifts: Sequence[FeatureDrift]) -> frozenset[str]:
    """Features, the score among them, whose PSI is over its threshold."""
    return frozenset(d.feature for d in _breaches(drifts) if d.measure != DriftMeasure.MISSING_SHARE)


def unknown_features(drifts: Sequence[FeatureDrift]) -> list[str]:
    """Features of which something could not be measured."""
    return sorted({d.feature for d in drifts if d.status == DriftStatus.UNKNOWN})


def _breaches(drifts: Sequence[FeatureDrift]) -> list[FeatureDrift]:
    return [d for d in drifts if d.status == DriftStatus.BREACH]


def _unknown(observed: Observed, before: Sequence[OtherDecision]) -> Iterator[CodedReason]:
    if unknown := unknown_features([drift for drift in observed.drifts if not drift.is_lasting]):
        yield TriageCode.UNKNOWN, f"unknown: {name_some(unknown)} could not be measured"
    lasting = unknown_features([drift for drift in observed.drifts if drift.is_lasting])
    # Once a model: an alert at each of its partitions would be no news, and hide the others.
    if lasting and all(
        other.network_version != observed.network_version or other.decision == Action.BLOCK for other in before
    ):
        sentence = (
            f"unknown: {name_some(lasting)} cannot be measured as long as this model is champion: too many values"
        )
        yield TriageCode.UNKNOWN, f"{sentence} are rare"
    if not observed.drifts:
        yield TriageCode.UNKNOWN, "unknown: no feature was measured"
    if observed.performance.status == PerformanceStatus.UNKNOWN:
        yield from ((TriageCode.UNKNOWN, sentence) for sentence in observed.performance.reasons)


def _miscoverage(observed: Observed, before: Sequence[OtherDecision], monitor: Monitor) -> Iterator[CodedReason]:
    """What intervals cover now, where that was wrong in enough of the latest partitions that this champion scored."""
    same = [
        other.is_miscovered and other.decision != Action.BLOCK  # broken data is no drift
        for other in before
        if other.network_version == observed.network_version
    ]
    latest = [observed.miscoverage is not None, *same[::-1][: monitor.persistence_of - 1]]
    if observed.miscoverage is not None and sum(latest) >= monitor.persistence_breaches:
        often = f"in {monitor.persistence_breaches} of {monitor.persistence_of} partitions"
        yield TriageCode.MISCOVERAGE, f"miscoverage {often}: {observed.miscoverage}"


def _triggers(observed: Observed, before: Sequence[OtherDecision], monitor: Monitor) -> Iterator[CodedReason]:
    yield from _drift_triggers(observed, before, monitor)
    if observed.performance.status == PerformanceStatus.DEGRADED:
        yield from ((TriageCode.PERFORMANCE, sentence) for sentence in observed.performance.reasons)
    yield from ((TriageCode.EXPECTED, sentence) for sentence in observed.expected or ())
    age = observed.as_of - observed.born_at
    if age >= timedelta(days=monitor.max_age_days):
        sentence = f"age: the champion was trained {age.days} days ago, the limit is {monitor.max_age_days}"
        yield TriageCode.AGE, sentence
    share = observed.new_rows / max(observed.trained_rows, 1)
    if share >= monitor.max_new_rows_share:
        sentence = f"volume: {observed.new_rows} labels since it was trained, {share:.0%} of what it learned from"
        yield TriageCode.VOLUME, sentence


def _drift_triggers(observed: Observed, before: Sequence[OtherDecision], monitor: Monitor) -> Iterator[CodedReason]:
    persistent = persistent_features(observed, before, monitor)
    structural = sorted(persistent & set(monitor.structural_features))
    often = f"in {monitor.persistence_breaches} of {monitor.persistence_of} partitions"
    if structural:
        yield TriageCode.STRUCTURE, f"drift of structure {often}: {name_some(structural)}"
    if len(persistent) >= monitor.min_drifted_features:
        yield TriageCode.DRIFT, f"drift of {len(persistent)} features {often}: {name_some(sorted(persistent))}"


def persistent_features(observed: Observed, before: Sequence[OtherDecision], monitor: Monitor) -> frozenset[str]:
    """Features over their thresholds now and in enough of the latest partitions that this champion scored.

    Where several are looked at together, those that this look shares no partition with.
    """
    now = breached_features(observed.drifts)
    same = [
        frozenset() if other.decision == Action.BLOCK else other.breached  # broken data is no drift
        for other in before
        if other.network_version == observed.network_version
    ]
    apart = same[::-1][observed.together - 1 :: observed.together]
    latest = [now, *apart[: monitor.persistence_of - 1]]
    return frozenset(f for f in now if sum(f in breached for breached in latest) >= monitor.persistence_breaches)


def _guard(
    observed: Observed, history: Sequence[OtherDecision], before: Sequence[OtherDecision], monitor: Monitor
) -> CodedReason | None:
    """Why retraining now would be a storm, or None."""
    if waits := _must_wait(observed, history):
        return waits
    retrains = [other for other in before if other.decision == Action.RETRAIN and other.challenger is None]
    changes = [other.as_of for other in retrains if other.outcome == "promoted"]
    changes += [observed.switched_at] if observed.switched_at else []
    if changes and observed.as_of - max(changes) < timedelta(days=monitor.cooldown_days):
        return TriageCode.COOLDOWN, (
            f"cooling down, {monitor.cooldown_days} days from the last promotion or rollback, {max(changes):%Y-%m-%d}"
        )
    month = [other for other in retrains if observed.as_of - other.as_of < timedelta(days=30)]
    if len(month) >= monitor.monthly_retrains:
        return TriageCode.BUDGET, f"the budget of {monitor.monthly_retrains} retrains in 30 days is spent"
    return _breaker(observed, retrains, monitor)


def _must_wait(observed: Observed, history: Sequence[OtherDecision]) -> CodedReason | None:
    """Why nothing may be started for this partition now, or None."""
    if any(other.as_of > observed.as_of for other in history):
        return TriageCode.LATE_PARTITION, "this partition came late, a newer one has been decided on"
    if in_flight := [other for other in history if other.state in IN_FLIGHT]:
        return TriageCode.IN_FLIGHT, f"the retrain decided at {in_flight[0].as_of:%Y-%m-%d} is still in flight"
    return None


def _breaker(observed: Observed, retrains: Sequence[OtherDecision], monitor: Monitor) -> CodedReason | None:
    latest = [other for other in retrains if other.state == RetrainState.DONE][-monitor.breaker_refusals :]
    refused = len(latest) == monitor.breaker_refusals and all(other.outcome in REFUSALS for other in latest)
    if refused and observed.as_of - latest[-1].as_of < timedelta(days=monitor.breaker_days):
        return TriageCode.BREAKER, (
            f"the last {monitor.breaker_refusals} retrained models were refused; "
            f"a person should look, or wait {monitor.breaker_days} days"
        )
    return None


def _recalibration(observed: Observed, history: Sequence[OtherDecision], monitor: Monitor) -> str | None:
    """Why the champion is recalibrated, or None: it is right enough on average, or nobody knows.

    After a rollback people are given time to look. A partition that came late says nothing of today, and while a model
    is trained or judged its opponent stays.
    """
    back = observed.rolled_back_at
    if _must_wait(observed, history) or observed.performance.status == PerformanceStatus.UNKNOWN:
        return None
    if back is not None and observed.as_of - back < timedelta(days=monitor.cooldown_days):
        return None
    return explain_recalibration(observed.intercept, monitor)


def _quiet(observed: Observed) -> CodedReason:
    breached = sorted(breached_features(observed.drifts))
    sentence = f"nothing persistent: {name_some(breached)} over threshold" if breached else "nothing found"
    return TriageCode.QUIET, "; ".join([sentence, *observed.performance.doubts.values()])
