"""The decision table: each row is one situation, its decision and a word of the reason."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from models.recalibration import FittedIntercept
from pipeline.monitoring import Limit, Monitor
from pipeline.spec import UseCase
from tasks.monitor.broken.signs import Fault, Sign
from tasks.monitor.drift import DriftMeasure, DriftStatus, FeatureDrift
from tasks.monitor.observed import Action, Observed, OtherDecision, RetrainState, TriageCode
from tasks.monitor.performance_limits import Performance, judge_performance
from tasks.monitor.triage import make_decision
from tasks.promote.standing import StandingChallenger
from tasks.train.recalibration import MeasuredIntercept

AS_OF = datetime(2013, 5, 6, tzinfo=UTC)
FEATURES = tuple(f"x{i}" for i in range(8))


@pytest.fixture
def monitor(use_case: UseCase) -> Monitor:
    changed: dict[str, Any] = {
        "persistence_breaches": 2,
        "persistence_of": 3,
        "min_drifted_features": 3,
        "structural_features": ("carrier",),
        "max_age_days": 42,
        "max_new_rows_share": 1.0,
        "cooldown_days": 14,
        "monthly_retrains": 2,
        "breaker_refusals": 2,
        "breaker_days": 60,
        "min_labelled": 1000,
        "min_coverage": 0.9,
        "limits": {"auc": Limit(min=0.7), "calibration_gap": Limit(max=0.05)},
    }
    return Monitor(**{**use_case.monitor.model_dump(), **changed})


def days(count: int) -> timedelta:
    return timedelta(days=count)


def measured(
    drifted: Sequence[str] = (), *, missing: Sequence[str] = (), unknown: Sequence[str] = ()
) -> tuple[FeatureDrift, ...]:
    found = []
    for name in (*FEATURES, "carrier"):
        status = DriftStatus("unknown" if name in (*missing, *unknown) else "breach" if name in drifted else "ok")
        value = {"ok": 0.01, "breach": 0.9, "unknown": None}[status]
        found.append(FeatureDrift(feature=name, measure=DriftMeasure.PSI, value=value, threshold=0.2, status=status))
        gone = name in missing
        found.append(
            FeatureDrift(
                feature=name,
                measure=DriftMeasure.MISSING_SHARE,
                value=1.0 if gone else 0.0,
                threshold=0.3,
                status=DriftStatus.BREACH if gone else DriftStatus.OK,
            )
        )
    return tuple(found)


def lasting(*names: str, unknown: Sequence[str] = ()) -> tuple[FeatureDrift, ...]:
    """A partition in which nobody will ever know whether some features moved."""
    return tuple(
        replace(measure, value=None, status=DriftStatus.UNKNOWN, is_lasting=True)
        if measure.feature in names and measure.measure == DriftMeasure.PSI
        else measure
        for measure in measured(unknown=unknown)
    )


def blind() -> tuple[FeatureDrift, ...]:
    """A partition with too few rows to measure anything."""
    return tuple(replace(measure, value=None, status=DriftStatus.UNKNOWN) for measure in measured())


def performance(monitor: Monitor, *, auc: float = 0.74, gap: float = 0.01, labelled: int = 9800) -> Performance:
    metrics = {"auc": auc, "calibration_gap": gap}
    return judge_performance(predicted=10_000, labelled=labelled, metrics=metrics, monitor=monitor)


def past(weeks_ago: int, decision: str = "ignore", *, breached: Sequence[str] = (), **more: Any) -> OtherDecision:
    version = more.pop("network_version", "1")
    if state := more.pop("state", None):
        more["state"] = RetrainState(state)
    return OtherDecision(
        as_of=AS_OF - 7 * days(weeks_ago),
        network_version=version,
        decision=Action(decision),
        breached=frozenset(breached),
        **more,
    )


@dataclass(frozen=True)
class Case:
    """One situation: what was found, what was before, and what follows."""

    name: str
    decision: str
    reason: str
    measures: tuple[FeatureDrift, ...] = field(default_factory=measured)
    history: tuple[OtherDecision, ...] = ()
    performance: dict[str, Any] = field(default_factory=dict)
    findings: dict[str, Any] = field(default_factory=dict)


THREE = ("x0", "x1", "x2")
MISSED = MeasuredIntercept(
    before=0.05,
    fitted=FittedIntercept(value=0.25, standard_error=0.04, dispersion=9.0, rows=9000, days=12),
    gain=0.003,
)
STANDING = StandingChallenger(version="4", held_at=AS_OF - days(7), looks=1)
FAR_OFF = replace(MISSED, fitted=replace(MISSED.fitted, value=-0.61))
OFF = {"miscoverage": "intervals hold 80.0% of the labels (78.0% to 82.0%), declared is 90.0%"}
LOW = ("expected auc 0.6500, from 0.6200 to 0.6800, is below the limit 0.7; labels are still to come",)
DRIFT = {"measures": measured(THREE), "history": (past(1, breached=THREE),)}


def drift_after(*history: OtherDecision) -> dict[str, Any]:
    return {"measures": measured(THREE), "history": (past(1, breached=THREE), *history)}


def done(weeks_ago: int, outcome: str) -> OtherDecision:
    return past(weeks_ago, "retrain", state="done", outcome=outcome)


CASES = [
    Case("all is well", "ignore", "nothing found"),
    # A broken feed
    Case("one feature empty", "block", "broken feed: x3", measured(missing=["x3"])),
    Case("a group empty", "block", "broken feed: x0, x1, x2, x3, x4 and 1 more", measured(missing=FEATURES[:6])),
    Case(
        "broken and drifted, degraded, old: still only a person",
        "block",
        "broken feed",
        measured(THREE, missing=["x5"]),
        (past(1, breached=THREE), past(2, breached=THREE)),
        {"auc": 0.6},
        {"born_at": AS_OF - days(90)},
    ),
    # Unknown is never healthy
    Case("a feature unknown", "alert", "unknown: x3", measured(unknown=["x3"])),
    Case("nothing measured", "alert", "no feature was measured", ()),
    Case("what this model can never be watched by, at its first partition", "alert",
         "unknown: x1 cannot be measured as long as this model is champion", lasting("x1")),
    Case("and at its next: told already", "ignore", "nothing found", lasting("x1"), (past(1),)),
    Case("a broken feed was all that was told at its first", "alert", "unknown: x1 cannot be measured", lasting("x1"),
         (past(1, "block"),)),
    Case("another model was told of", "alert", "unknown: x1 cannot be measured", lasting("x1"),
         (past(1, network_version="0"),)),
    Case("what could not be measured this once is no part of it", "alert", "unknown: x2 could not be measured",
         lasting("x1", unknown=("x2",)), (past(1),)),
    Case("nothing could be measured, and old: still only a person", "alert", "unknown", blind(),
         findings={"born_at": AS_OF - days(90)}),
    # but silences nothing that is known
    Case("unknown and drifted", "retrain", "drift of 3", measured(THREE, unknown=["x7"]), (past(1, breached=THREE),)),
    Case("unknown and drifted: both are told", "retrain", "unknown: x7", measured(THREE, unknown=["x7"]),
         (past(1, breached=THREE),)),
    Case("unknown and drifted, but cooling down", "alert", "unknown: x7", measured(THREE, unknown=["x7"]),
         (past(1, breached=THREE), past(1, "retrain", state="done", outcome="promoted"))),
    Case("unknown and degraded", "retrain", "auc", measured(unknown=["x7"]), performance={"auc": 0.6}),
    Case("unknown and old", "retrain", "age", measured(unknown=["x7"]),
         findings={"born_at": AS_OF - days(42)}),
    Case("unknown and much new data", "retrain", "volume", measured(unknown=["x7"]), findings={"new_rows": 60_000}),
    Case("unknown and drifted for the first time", "alert", "unknown: x7", measured(THREE, unknown=["x7"])),
    Case("few labels and old", "retrain", "age", performance={"labelled": 900},
         findings={"born_at": AS_OF - days(42)}),
    Case("few labels and old: both are told", "retrain", "performance unknown", performance={"labelled": 900},
         findings={"born_at": AS_OF - days(42)}),
    Case("few labels", "alert", "performance unknown", performance={"labelled": 900}),
    Case("low coverage", "alert", "performance unknown", performance={"labelled": 8900}),
    # Drift
    Case("drift for the first time", "ignore", "nothing persistent: x0, x1, x2", measured(THREE)),
    Case("drift in 2 of 3 partitions", "retrain", "drift of 3 features", **DRIFT),
    Case("drift with a quiet week between", "retrain", "drift of 3", measured(THREE),
         (past(1), past(2, breached=THREE))),
    Case("drift too long ago", "ignore", "nothing persistent", measured(THREE),
         (past(1), past(2), past(3, breached=THREE))),
    Case("drift that is over", "ignore", "nothing", measured(), (past(1, breached=THREE), past(2, breached=THREE))),
    Case("two features are too few", "ignore", "nothing", measured(THREE[:2]), (past(1, breached=THREE[:2]),)),
    Case("one structural feature is enough", "retrain", "structure", measured(["carrier"]),
         (past(1, breached=["carrier"]),)),
    Case("drift under another champion does not count", "ignore", "nothing", measured(THREE),
         (past(1, breached=THREE, network_version="0"), past(2, breached=THREE, network_version="0"))),
    Case("a broken week is no evidence of drift", "ignore", "nothing persistent", measured(THREE),
         (past(1, "block", breached=THREE),)),
    Case("an alerted week is", "retrain", "drift of 3", measured(THREE), (past(1, "alert", breached=THREE),)),
    Case("drift with a broken week between", "retrain", "drift of 3", measured(THREE),
         (past(1, "block", breached=THREE), past(2, breached=THREE))),
    # Performance
    Case("AUC below its limit", "retrain", "auc 0.6900 is below 0.7", performance={"auc": 0.69}),
    Case("calibration gap above its limit", "retrain", "calibration_gap", performance={"gap": 0.06}),
    Case("a metric that is not a number", "retrain", "auc nan", performance={"auc": math.nan}),
    # What is expected before labels come
    Case("an expected AUC below its limit", "retrain", "expected auc", findings={"expected": LOW}),
    Case("an expected AUC below its limit, and cooling down", "alert", "expected auc", findings={"expected": LOW},
         history=(done(1, "promoted"),)),
    Case("expected within limits", "ignore", "nothing found", findings={"expected": ()}),
    # Intervals
    Case("intervals off for the first time", "ignore", "nothing", findings=OFF),
    Case("intervals off in 2 of 3 partitions", "alert", "miscoverage in 2 of 3 partitions: intervals hold",
         history=(past(2, is_miscovered=True), past(1)), findings=OFF),
    Case("intervals that were off", "ignore", "nothing",
         history=(past(1, is_miscovered=True), past(2, is_miscovered=True))),
    Case("intervals off under another champion do not count", "ignore", "nothing",
         history=(past(1, is_miscovered=True, network_version="0"),), findings=OFF),
    Case("intervals off in a broken week do not count", "ignore", "nothing",
         history=(past(1, "block", is_miscovered=True),), findings=OFF),
    Case("intervals off, and drift: both are told", "retrain", "miscoverage", measured(THREE),
         (past(1, breached=THREE, is_miscovered=True),), findings=OFF),
    # Age and volume
    Case("a day too young", "ignore", "nothing", findings={"born_at": AS_OF - days(41)}),
    Case("old enough", "retrain", "age", findings={"born_at": AS_OF - days(42)}),
    Case("much new data", "retrain", "volume", findings={"new_rows": 60_000}),
    Case("not so much", "ignore", "nothing", findings={"new_rows": 59_999}),
    # Guards
    Case("one in flight", "alert", "in flight", **drift_after(past(8, "retrain", state="running"))),
    Case("one pending", "alert", "in flight", **drift_after(past(8, "retrain", state="pending"))),
    Case("cooling down", "alert", "cooling down", **drift_after(done(1, "promoted"))),
    Case("cooled down", "retrain", "drift", **drift_after(done(2, "promoted"))),
    Case("another champion since a week", "alert", "cooling down", **DRIFT, findings={"switched_at": AS_OF - days(7)}),
    Case("another champion since long", "retrain", "drift", **DRIFT, findings={"switched_at": AS_OF - days(14)}),
    Case("budget spent", "alert", "budget of 2", **drift_after(done(2, "promoted"), done(4, "promoted"))),
    Case("budget of another month", "retrain", "drift", **drift_after(done(2, "promoted"), done(5, "promoted"))),
    Case("refused twice", "alert", "refused", **drift_after(done(3, "refused"), done(5, "rejected"))),
    Case("refused twice, long ago", "retrain", "drift", **drift_after(done(9, "refused"), done(11, "refused"))),
    Case("refused once", "retrain", "drift", **drift_after(done(3, "refused"), done(5, "promoted"))),
    Case("refused, then promoted", "retrain", "drift",
         **drift_after(done(3, "promoted"), done(5, "refused"), done(7, "refused"))),
    Case("not sure twice is no refusal", "retrain", "drift", **drift_after(done(3, "held"), done(5, "need-more-data"))),
    Case("not sure a week ago cools nothing down", "retrain", "drift", **drift_after(done(1, "held"))),
    Case("refused by a person", "alert", "refused", **drift_after(done(3, "rejected"), done(5, "rejected"))),
    Case("came late", "alert", "came late", **drift_after(past(-1))),
    Case("off on average", "ignore", "recalibrated", findings={"intercept": MISSED}),
    Case("off by far too much", "alert", "not recalibrated", findings={"intercept": FAR_OFF}),
    Case("a challenger stands", "ignore", "challenger 4", findings={"standing": STANDING}),
    Case("a challenger stands, and drift", "retrain", "challenger 4", **DRIFT, findings={"standing": STANDING}),
    Case("off on average, and drifting", "retrain", "recalibrated", **DRIFT, findings={"intercept": MISSED}),
]  # fmt: skip


# What each of the reasons above begins with, and the code that says so to programs.
CODES = {
    "nothing": TriageCode.QUIET,
    "broken feed": TriageCode.BROKEN_FEED,
    "unknown": TriageCode.UNKNOWN,
    "no feature": TriageCode.UNKNOWN,
    "performance unknown": TriageCode.UNKNOWN,
    "drift": TriageCode.DRIFT,
    "structure": TriageCode.STRUCTURE,
    "auc": TriageCode.PERFORMANCE,
    "calibration_gap": TriageCode.PERFORMANCE,
    "expected auc": TriageCode.EXPECTED,
    "miscoverage": TriageCode.MISCOVERAGE,
    "age": TriageCode.AGE,
    "volume": TriageCode.VOLUME,
    "in flight": TriageCode.IN_FLIGHT,
    "cooling down": TriageCode.COOLDOWN,
    "budget": TriageCode.BUDGET,
    "refused": TriageCode.BREAKER,
    "came late": TriageCode.LATE_PARTITION,
    "not recalibrated": TriageCode.RECALIBRATION,
    "challenger 4": TriageCode.STANDING,
    "recalibrated": TriageCode.RECALIBRATION,
}


def test_every_code_is_seen_in_the_table() -> None:
    assert set(CODES.values()) == set(TriageCode)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_decision_and_its_reason(case: Case, monitor: Monitor) -> None:
    found = Observed(
        as_of=AS_OF,
        model_version="1",
        network_version="1",
        drifts=case.measures,
        performance=performance(monitor, **case.performance),
        born_at=AS_OF - days(20),
        trained_rows=60_000,
        new_rows=20_000,
    )
    found = replace(found, **case.findings)
    decision = make_decision(found, case.history, monitor)
    assert decision.decision == case.decision, decision.reasons
    assert case.reason in "; ".join(decision.reasons)
    assert next(code for word, code in CODES.items() if case.reason.startswith(word)) in decision.codes
    assert make_decision(found, case.history[::-1], monitor) == decision  # whatever the order history comes in


def observe(monitor: Monitor, **findings: Any) -> Observed:
    """A healthy partition of a champion that is off on average."""
    return replace(
        Observed(
            as_of=AS_OF,
            model_version="2",
            network_version="1",
            drifts=measured(),
            performance=performance(monitor),
            born_at=AS_OF - days(20),
            trained_rows=60_000,
            new_rows=20_000,
            intercept=MISSED,
        ),
        **findings,
    )


def test_a_champion_that_is_off_on_average_is_recalibrated_and_people_read_by_how_much(monitor: Monitor) -> None:
    decision = make_decision(observe(monitor), (), monitor)
    assert decision.recalibrates
    assert decision.reasons[-1] == (
        "recalibrated: +0.250 to each logit instead of +0.050, by 9000 labels of 12 days (standard error 0.040);"
        " 0.00300 log_loss to be saved"
    )


@pytest.mark.parametrize(
    ("findings", "history"),
    [
        ({"intercept": None}, ()),
        ({"intercept": replace(MISSED, gain=0.0001)}, ()),
        ({"intercept": replace(MISSED, fitted=replace(MISSED.fitted, rows=10))}, ()),
        ({"intercept": FAR_OFF}, ()),
        ({"rolled_back_at": AS_OF - days(7)}, ()),
        ({"drifts": measured(missing=("x1",))}, ()),
        ({}, (past(-1),)),
        ({}, (past(2, "retrain", state="running"),)),
    ],
    ids=[
        "not measured",
        "not worth it",
        "too few labels",
        "too far off",
        "rolled back",
        "broken feed",
        "came late",
        "a training in flight",
    ],
)
def test_it_is_left_as_it_is_where_nobody_knows_better(
    monitor: Monitor, findings: dict[str, Any], history: tuple[OtherDecision, ...]
) -> None:
    decision = make_decision(observe(monitor, **findings), history, monitor)
    assert not decision.recalibrates
    assert not any(reason.startswith("recalibrated") for reason in decision.reasons)


def test_it_is_left_as_it_is_without_the_dial_and_where_performance_is_unknown(monitor: Monitor) -> None:
    without = monitor.model_copy(update={"recalibration": None})
    assert not make_decision(observe(monitor), (), without).recalibrates
    unknown = performance(monitor, labelled=10)
    assert not make_decision(observe(monitor, performance=unknown), (), monitor).recalibrates


def test_after_a_rollback_people_have_their_time_and_no_longer(monitor: Monitor) -> None:
    long_ago = AS_OF - days(monitor.cooldown_days)
    assert make_decision(observe(monitor, rolled_back_at=long_ago), (), monitor).recalibrates


def test_who_was_held_is_judged_again_before_anything_is_trained(monitor: Monitor) -> None:
    decision = make_decision(observe(monitor, standing=STANDING), (), monitor)
    assert (decision.decision, decision.challenger) == (Action.IGNORE, "4")
    assert "challenger 4, held at 2013-04-29, is judged again" in decision.reasons
    drifting = observe(monitor, standing=STANDING, drifts=measured(THREE))
    asked = make_decision(drifting, (past(1, breached=THREE),), monitor)
    assert (asked.decision, asked.challenger) == (Action.RETRAIN, "4")


@pytest.mark.parametrize(
    ("findings", "history"),
    [
        ({"drifts": measured(missing=("x1",))}, ()),
        ({}, (past(-1),)),
        ({}, (past(2, "retrain", state="running"),)),
        ({"standing": None}, ()),
    ],
    ids=["broken feed", "came late", "in flight", "nobody"],
)
def test_nobody_is_judged_again_where_nothing_may_be_started(
    monitor: Monitor, findings: dict[str, Any], history: tuple[OtherDecision, ...]
) -> None:
    observed = observe(monitor, **{"standing": STANDING, **findings})
    assert make_decision(observed, history, monitor).challenger is None


def test_judging_again_is_no_training_of_the_budget_and_no_refusal_of_the_breaker(monitor: Monitor) -> None:
    drifting = observe(monitor, drifts=measured(THREE))
    looks = [replace(done(weeks, "refused"), challenger="4") for weeks in (2, 3)]
    assert make_decision(drifting, (past(1, breached=THREE), *looks), monitor).decision == Action.RETRAIN
    trained = [done(weeks, "refused") for weeks in (2, 3)]
    assert make_decision(drifting, (past(1, breached=THREE), *trained), monitor).decision == Action.ALERT


def test_what_shows_signs_of_a_broken_feed_is_blocked_whatever_else_it_says_and_names_five(monitor: Monitor) -> None:
    faults = tuple(Fault(feature=f"x{n}", sign=Sign.STUCK, seen="all of it is 0") for n in range(7))
    drifting = observe(monitor, drifts=measured(THREE))
    assert make_decision(drifting, (past(1, breached=THREE),), monitor).decision == Action.RETRAIN
    decision = make_decision(replace(drifting, faults=faults), (past(1, breached=THREE),), monitor)
    assert (decision.decision, decision.codes) == (Action.BLOCK, (TriageCode.BROKEN_FEED,))
    assert decision.reasons[0] == "broken feed: x0: all of it is 0"
    assert decision.reasons[5] == "broken feed: x5, x6, too"
    assert len(decision.reasons) == 6


def test_looks_that_share_a_partition_are_no_second_look(monitor: Monitor) -> None:
    """Three partitions together: what moved in one of them is in three looks, and has not persisted for that."""
    drifting = observe(monitor, drifts=measured(THREE), together=3)
    overlapping = tuple(past(weeks, breached=THREE) for weeks in (1, 2))
    assert make_decision(drifting, overlapping, monitor).decision == Action.IGNORE
    assert make_decision(replace(drifting, together=1), overlapping, monitor).decision == Action.RETRAIN
    apart = (*overlapping, past(3, breached=THREE))
    assert make_decision(drifting, apart, monitor).decision == Action.RETRAIN


def test_what_another_recalibration_of_the_network_saw_counts_for_this_one(monitor: Monitor) -> None:
    """Drift persists, whichever number was added to the answers meanwhile."""
    history = (past(1, breached=THREE, network_version="1"),)
    assert make_decision(observe(monitor, drifts=measured(THREE)), history, monitor).decision == Action.RETRAIN
    other = (past(1, breached=THREE, network_version="2"),)
    assert make_decision(observe(monitor, drifts=measured(THREE)), other, monitor).decision == Action.IGNORE


def test_a_metric_with_a_limit_that_could_not_be_computed_is_unknown(monitor: Monitor) -> None:
    found = judge_performance(predicted=2000, labelled=2000, metrics={"calibration_gap": 0.01}, monitor=monitor)
    assert found.status == "unknown"
    assert "no auc" in found.reasons[0]


def test_a_limit_of_intervals_is_kept_where_there_are_some_and_judges_no_model_without(monitor: Monitor) -> None:
    limits = {"mae": Limit(max=5.0), "interval_coverage": Limit(min=0.8)}
    bounded = monitor.model_copy(update={"limits": limits})

    def status(**metrics: float) -> str:
        return judge_performance(predicted=2000, labelled=2000, metrics=metrics, monitor=bounded).status

    assert status(mae=4.0, interval_coverage=0.81) == "ok"
    assert status(mae=4.0, interval_coverage=0.79) == "degraded"
    assert (status(mae=4.0), status(mae=6.0)) == ("ok", "degraded"), "of a bundle of before"
    assert status(interval_coverage=0.81) == "unknown"


def test_no_predictions_are_unknown(monitor: Monitor) -> None:
    assert judge_performance(predicted=0, labelled=0, metrics={}, monitor=monitor).status == "unknown"
