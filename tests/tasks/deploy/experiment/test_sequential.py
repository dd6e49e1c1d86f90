"""What may be concluded at any look, by table and by simulation; the simulations look as often as the real thing."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from pipeline.online import ExperimentSettings
from tasks.deploy.experiment.sequential import (
    Conclusion,
    CostEstimate,
    ExperimentEvents,
    ExperimentOutcome,
    TreatmentHealth,
    choose_next_share,
    compute_radius,
    conclude,
    estimate_difference,
    is_share_above,
    join_units,
    price_decisions,
)

MISSED, NEEDLESS = 5.0, 1.0
Judge = Callable[[ExperimentSettings, CostEstimate | None, TreatmentHealth, str | None], Conclusion]
HEALTHY = TreatmentHealth(requests=1000, errors=0, answers=1000, degraded=0)


def declared(**changes) -> ExperimentSettings:
    small = {
        "mode": "fixed", "share": 0.3, "alpha": 0.05, "min_effect": 0.18, "min_events": 300, "max_events": 2000,
        "max_harm": 0.3, "max_error_share": 0.02, "max_degraded_share": 0.1,
    }  # fmt: skip
    return ExperimentSettings(**(small | changes))


@dataclass(frozen=True)
class Ended:
    """How a simulated experiment ended, and after how many events in all and of the treatment."""

    outcome: ExperimentOutcome | None
    events: int
    treated: int
    share: float


def world(draw: np.random.Generator, n: int, *, entities: int, lift: float, habit: float):
    """n events of sticky entities with habits of their own, on days that differ: what both versions would cost.

    `lift` is what the treatment adds to the mean cost, by more (or fewer) missed events.
    """
    base = 0.2
    entity = draw.integers(0, entities, n)
    likely = base + draw.normal(0, habit, entities)[entity] + 0.1 * np.sin(np.arange(n) / n * 12)
    positive = draw.random(n) < np.clip(likely, 0.02, 0.9)
    draws = draw.random(n)
    costs = []
    for extra in (0.0, lift):
        wrong = np.where(positive, np.clip(0.3 + extra / MISSED / base, 0, 1), 0.3)
        decision = (draws >= wrong) == positive
        costs.append(price_decisions(positive.astype(float), decision, missed=MISSED, needless=NEEDLESS))
    return entity, costs[0], costs[1], draw.random(entities)[entity]


def simulate(
    settings: ExperimentSettings, seed: int, *, lift: float = 0.0, entities: int = 1500, batch: int = 100,
    habit: float = 0.08, judge: Judge = conclude,
) -> Ended:  # fmt: skip
    """One experiment, looked at after every batch until it ends."""
    draw = np.random.default_rng(seed)
    n = int(settings.max_events / settings.share * 1.2)
    entity, calm, changed, bucket = world(draw, n, entities=entities, lift=lift, habit=habit)
    treated, share, now = np.zeros(n, bool), np.zeros(n), settings.share
    for end in range(batch, n + 1, batch):
        last = slice(end - batch, end)
        treated[last], share[last] = bucket[last] < now, now
        cost = np.where(treated[:end], changed[:end], calm[:end])
        events = ExperimentEvents(treated=treated[:end], cost=cost, share=share[:end], unit=entity[:end])
        found = estimate_difference(events, greatest_cost=MISSED)
        outcome = judge(settings, found, HEALTHY, None).outcome
        if outcome is not None:
            break
        now = choose_next_share(settings, found, share=now, greatest_cost=MISSED)
    return Ended(outcome, end, int(treated.sum()), now)


def ends(runs: int, settings: ExperimentSettings, **how) -> list[Ended]:
    return [simulate(settings, seed, **how) for seed in range(runs)]


def share_of(found: list[Ended], *outcomes: str | None) -> float:
    return sum(end.outcome in outcomes for end in found) / len(found)


DIFFERENCES = ("treatment-better", "control-better", "stopped-by-guardrail")
NULL = declared(min_effect=0.0, max_events=1500)


@pytest.mark.parametrize("mode", ["fixed", "thompson"])
def test_a_null_is_called_a_difference_in_at_most_alpha_of_experiments_looked_at_after_every_batch(mode):
    found = ends(150, NULL.model_copy(update={"mode": mode}))
    assert share_of(found, *DIFFERENCES) <= NULL.alpha
    assert share_of(found, "undecided", None) >= 1 - NULL.alpha


def naive(settings: ExperimentSettings, found: CostEstimate | None, _: TreatmentHealth, __: str | None) -> Conclusion:
    """The z-test that everyone knows, as if each look were the only one."""
    assert found is not None
    called = min(found.events) >= settings.min_events and abs(found.difference) > 1.96 * found.error
    outcome = ExperimentOutcome.CONTROL_BETTER if found.difference > 0 else ExperimentOutcome.TREATMENT_BETTER
    return Conclusion(outcome=outcome if called else None, reason="", low=None, high=None)


def test_sabotage_the_naive_z_test_repeated_at_every_look_calls_too_many_nulls_a_difference():
    assert share_of(ends(150, NULL, judge=naive), *DIFFERENCES) > 2 * NULL.alpha


@pytest.mark.parametrize(("mode", "power"), [("fixed", 0.9), ("thompson", 0.7)])  # who exploits learns less
def test_a_true_lift_of_the_declared_size_is_found_within_the_declared_events(mode, power):
    settings = declared(mode=mode)
    found = ends(100, settings, lift=-settings.min_effect)
    assert share_of(found, "treatment-better") >= power
    assert share_of(found, "control-better", "stopped-by-guardrail") == 0


def test_a_harmful_arm_is_stopped_within_1000_requests_300_of_them_its_own():
    found = ends(100, declared(), lift=0.5)
    assert share_of(found, "stopped-by-guardrail", "control-better") == 1
    assert max(end.events for end in found) <= 1000
    assert max(end.treated for end in found) <= 300


def test_entities_with_habits_do_not_make_a_difference_and_sabotage_events_taken_for_independent_do(monkeypatch):
    settings, how = declared(share=0.5, min_effect=0.0, max_events=3000), {"entities": 70, "habit": 0.35, "batch": 200}
    assert share_of(ends(100, settings, **how), *DIFFERENCES) <= settings.alpha
    whole = ExperimentEvents

    def independent(**values):
        return whole(**(values | {"unit": np.arange(len(values["cost"]))}))

    monkeypatch.setitem(globals(), "ExperimentEvents", independent)
    assert share_of(ends(100, settings, **how), *DIFFERENCES) > 2 * settings.alpha


def test_thompson_sampling_gives_the_better_version_the_traffic_and_neither_all_of_it():
    settings = declared(mode="thompson", min_effect=0.0, max_events=3000, alpha=1e-9, max_harm=9.0)
    for lift, expected in ((-0.15, 0.95), (0.15, 0.05)):
        shares = [simulate(settings, seed, lift=lift, batch=500).share for seed in range(5)]
        assert np.median(shares) == expected
        assert all(0.05 <= share <= 0.95 for share in shares)


def test_a_share_that_moves_with_the_weather_is_no_difference_and_plain_means_would_say_it_is():
    """The treatment gets the stormy days: by plain means it looks costly, by weighted ones it is what it is."""
    draw = np.random.default_rng(3)
    n = 20_000
    share = np.repeat([0.1, 0.9], n // 2)
    cost = draw.random(n) * np.repeat([1.0, 3.0], n // 2)  # calm, then stormy; the same for both versions
    treated = draw.random(n) < share
    found = estimate_difference(
        ExperimentEvents(treated=treated, cost=cost, share=share, unit=np.arange(n)), greatest_cost=3.0
    )
    assert abs(found.difference) < 3 * found.error < 0.15
    assert cost[treated].mean() - cost[~treated].mean() > 0.5


def test_with_a_fixed_share_the_estimate_is_the_plain_difference_of_means():
    draw = np.random.default_rng(1)
    treated, cost = draw.random(5000) < 0.2, draw.exponential(1, 5000)
    found = estimate_difference(
        ExperimentEvents(treated=treated, cost=cost, share=np.full(5000, 0.2), unit=np.arange(5000)), greatest_cost=5
    )
    assert found.difference == pytest.approx(cost[treated].mean() - cost[~treated].mean())
    plain = np.sqrt(cost[treated].var() / treated.sum() + cost[~treated].var() / (~treated).sum())
    assert found.error == pytest.approx(plain, rel=0.01)
    assert found.events == (int((~treated).sum()), int(treated.sum()))


def test_without_an_event_of_each_version_there_is_no_estimate_and_without_costs_no_certainty():
    nothing = ExperimentEvents(treated=np.ones(5, bool), cost=np.ones(5), share=np.full(5, 0.5), unit=np.arange(5))
    assert estimate_difference(nothing, greatest_cost=5.0) is None
    free = ExperimentEvents(
        treated=np.arange(200) % 2 == 0, cost=np.zeros(200), share=np.full(200, 0.5), unit=np.arange(200)
    )
    assert estimate_difference(free, greatest_cost=5.0).error > 0.03


def test_events_that_share_an_entity_or_a_request_are_one_unit():
    entity = np.array([0, 0, 1, 2, 3, 4])
    request = np.array([0, 1, 1, 2, 2, 3])
    found = join_units(entity, request)
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4]
    assert len(set(found.tolist())) == 3
    assert len(join_units(np.zeros(0, np.intp), np.zeros(0, np.intp))) == 0


def test_events_that_a_client_had_answered_as_one_entity_are_one_unit():
    entity, request = np.arange(6), np.arange(6)
    chosen_by = np.array([0, 0, -1, -1, 1, 1])
    assert len(set(join_units(entity, request, chosen_by).tolist())) == 4
    assert len(set(join_units(entity, request, np.full(6, -1)).tolist())) == 6


def test_a_coarse_entity_id_calls_a_null_no_more_often_than_alpha_and_ignoring_it_does():
    rng, named_by = np.random.default_rng(7), 40
    called = {"known": 0, "ignored": 0}
    for _ in range(60):
        chosen_by = rng.integers(0, named_by, 4000)
        treated = (rng.random(named_by) < 0.5)[chosen_by]
        cost = np.clip(rng.normal(0.8, 0.4, named_by)[chosen_by] + rng.normal(0, 0.5, 4000), 0, 5)
        event = np.arange(4000)
        for name, unit in {"known": join_units(event, event, chosen_by), "ignored": join_units(event, event)}.items():
            found = estimate_difference(
                ExperimentEvents(treated=treated, cost=cost, share=np.full(4000, 0.5), unit=unit), greatest_cost=5.0
            )
            called[name] += abs(found.difference) > compute_radius(found, alpha=0.05, planned_size=4000)
    assert called["known"] <= 3
    assert called["ignored"] > 20


def test_a_wrong_decision_costs_what_was_declared():
    cost = price_decisions(
        np.array([1.0, 1, 0, 0]), np.array([False, True, True, False]), missed=MISSED, needless=NEEDLESS
    )
    assert cost.tolist() == [MISSED, 0, NEEDLESS, 0]


def seen(difference: float, *, error: float = 0.02, events: int = 1000, units: int = 500) -> CostEstimate:
    return CostEstimate(
        events=(events, events), units=(units, units), costs=(1.0 * events, (1.0 + difference) * events),
        difference=difference, error=error, size=events / 2,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "health", "outcome", "because"),
    [
        (None, HEALTHY, None, "no event of both"),
        (
            None,
            TreatmentHealth(requests=100, errors=90, answers=10, degraded=0),
            "stopped-by-guardrail",
            "errors: 90 of 100",
        ),
        (seen(-0.5, events=299), HEALTHY, None, "299 events"),
        (seen(-0.5, units=29), HEALTHY, None, "29 units"),
        (seen(-0.2), HEALTHY, "treatment-better", "-0.2 an event"),
        (seen(+0.2), HEALTHY, "control-better", r"\+0.2 an event"),
        (seen(-0.02), HEALTHY, "undecided", "no difference that matters"),
        (seen(-0.06, error=0.04), HEALTHY, None, "-0.06 an event"),
        (seen(-0.06, error=0.04, events=2000), HEALTHY, "undecided", "the most it may take"),
        (seen(-0.25, error=0.04, events=2000), HEALTHY, "treatment-better", "-0.25 an event"),
        (seen(+0.35, events=150), HEALTHY, "stopped-by-guardrail", "harm"),
        (seen(+0.25, events=150), HEALTHY, None, "150 events"),
        (seen(+0.35, error=0.3, events=150), HEALTHY, None, "150 events"),
        (seen(+0.9, events=99), HEALTHY, None, "99 events"),
        (
            seen(-0.2),
            TreatmentHealth(requests=500, errors=40, answers=460, degraded=0),
            "stopped-by-guardrail",
            "errors",
        ),
        (
            seen(-0.2),
            TreatmentHealth(requests=500, errors=0, answers=500, degraded=90),
            "stopped-by-guardrail",
            "degraded",
        ),
        (seen(-0.2), TreatmentHealth(requests=500, errors=12, answers=500, degraded=55), "treatment-better", ""),
    ],
)
def test_what_is_decided(found, health, outcome, because):
    verdict = conclude(declared(min_effect=0.12), found, health, None)
    assert verdict.outcome == outcome
    assert re.search(because, verdict.reason)
    assert (verdict.low is None) == (found is None)


@pytest.mark.parametrize("found", [None, seen(-0.5), seen(+0.5)])
def test_a_mismatch_of_the_sample_ratio_comes_before_all_that_costs_say_and_after_errors(found):
    verdict = conclude(declared(), found, HEALTHY, "of 9 keys")
    assert (verdict.outcome, verdict.reason) == ("sample-ratio-mismatch", "of 9 keys")
    ill = TreatmentHealth(requests=100, errors=90, answers=10, degraded=0)
    assert conclude(declared(), found, ill, "of 9 keys").outcome == "stopped-by-guardrail"


def test_the_interval_is_wider_than_the_one_for_a_single_look_and_narrows_with_events():
    found = seen(0.0)
    assert compute_radius(found, alpha=0.05, planned_size=500) > 1.96 * found.error
    assert compute_radius(found, alpha=0.05, planned_size=500) < compute_radius(found, alpha=0.05, planned_size=50_000)
    assert compute_radius(found, alpha=0.05, planned_size=500) < compute_radius(found, alpha=0.01, planned_size=500)


@pytest.mark.parametrize(
    ("count", "of", "limit", "stopped"),
    [(0, 0, 0.02, False), (1, 20, 0.02, False), (20, 20, 0.02, True), (20, 1000, 0.02, False), (60, 1000, 0.02, True),
     (1, 1, 0.0, True), (0, 9, 0.0, False), (9, 9, 1.0, False)],
)  # fmt: skip
def test_a_share_is_stopped_when_it_is_surely_above_its_limit(count, of, limit, stopped):
    assert is_share_above(count, of, limit) is stopped


def test_a_share_that_keeps_its_limit_is_seldom_stopped_however_often_it_is_asked_about():
    draw = np.random.default_rng(0)
    counts = np.cumsum(draw.random((300, 2000)) < 0.02, axis=1)[:, 49::50]
    stopped = [any(is_share_above(int(c), 50 * (i + 1), 0.02) for i, c in enumerate(row)) for row in counts]
    assert np.mean(stopped) <= 0.02
    counts = np.cumsum(draw.random((100, 500)) < 0.08, axis=1)[:, 49::50]
    stopped = [any(is_share_above(int(c), 50 * (i + 1), 0.02) for i, c in enumerate(row)) for row in counts]
    assert np.mean(stopped) >= 0.95


def test_the_share_moves_only_in_thompson_mode_and_not_before_the_fewest_events():
    better = seen(-0.03)
    assert choose_next_share(declared(), better, share=0.3, greatest_cost=5.0) == 0.3
    moving = declared(mode="thompson")
    assert choose_next_share(moving, None, share=0.3, greatest_cost=5.0) == 0.3
    assert choose_next_share(moving, seen(-0.5, events=299), share=0.3, greatest_cost=5.0) == 0.3
    assert choose_next_share(moving, better, share=0.3, greatest_cost=5.0) == pytest.approx(0.933, abs=0.001)
    assert choose_next_share(moving, seen(-0.5), share=0.3, greatest_cost=5.0) == 0.95
    assert choose_next_share(moving, seen(+0.5), share=0.3, greatest_cost=5.0) == 0.05
