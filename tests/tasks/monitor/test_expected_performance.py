"""What is expected of a week before its labels follows what it becomes; where it does not, nobody is to act on it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from adapters.connect import Outside
from models.metrics import compute_metrics
from pipeline.monitoring import Limit, Monitor
from pipeline.spec import UseCase
from tasks.monitor import monitor
from tasks.monitor.expected_performance import (
    MaturedEstimate,
    MaturedRows,
    MetricEstimate,
    Trust,
    count_spreads,
    draw_metrics,
    estimate_window,
    find_expected_breaches,
    judge_trust,
)
from tests.tasks.watched import ROWS, World, decided, monitored, week

Floats = NDArray[np.float64]
ROWS_A_WEEK = 1400


class Weeks:
    """Weeks of scores and labels, each estimated by the labels of the week before; what became of each metric."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.matured: MaturedRows | None = None
        self.past: dict[str, list[MaturedEstimate]] = {}

    def add(self, score: Floats, label: Floats) -> None:
        if self.matured is not None:
            realised = compute_metrics(self.kind, score, label)
            for name, estimate in estimate_window(self.kind, score, self.matured, self.past, seed=7).items():
                self.past.setdefault(name, []).append(MaturedEstimate(estimate=estimate, realised=realised[name]))
        self.matured = MaturedRows(score=score, label=label, day=np.arange(len(score)) // (len(score) // 7))


def logistic(rng: np.random.Generator, *, shift: float, exaggerated: float = 1.0) -> tuple[Floats, Floats]:
    """Scores and labels of a week whose inputs have moved; exaggerated scores are not calibrated."""
    odds = 1.5 * rng.normal(shift, 1, ROWS_A_WEEK) - 1
    label = (rng.random(ROWS_A_WEEK) < 1 / (1 + np.exp(-odds))).astype(float)
    return 1 / (1 + np.exp(-exaggerated * odds)), label


def held(past: Sequence[MaturedEstimate]) -> float:
    return float(np.mean([each.has_held for each in past]))


@pytest.mark.parametrize("exaggerated", [1.0, 2.5])
def test_where_inputs_move_the_estimate_follows_and_is_trusted(exaggerated: float) -> None:
    """Also of scores that are not calibrated, as long as they go on meaning the same."""
    rng, weeks = np.random.default_rng(0), Weeks("binary")
    for number in range(30):
        weeks.add(*logistic(rng, shift=np.sin(number / 4), exaggerated=exaggerated))
    for name in ("log_loss", "brier"):
        past = weeks.past[name]
        expected, realised = (np.array([getattr(each, of) for each in rows]) for of, rows in (
            ("value", [each.estimate for each in past]), ("realised", past)))  # fmt: skip
        assert np.corrcoef(expected, realised)[0, 1] > 0.7, name
        assert np.abs(expected - realised).mean() < 0.7 * np.abs(realised - realised.mean()).mean(), name
        assert held(past) >= 0.85, name
        assert judge_trust(past) == Trust.TRUSTED, name


def test_where_scores_come_to_mean_something_else_trust_is_withdrawn_and_comes_back() -> None:
    """The world flips at week 20: no score says so. The twin above goes on being trusted."""
    rng, weeks = np.random.default_rng(0), Weeks("binary")
    for number in range(24):
        score, label = logistic(rng, shift=0.0)
        weeks.add(score, 1 - label if number >= 20 else label)
    past = weeks.past["log_loss"]  # of weeks 1 to 23
    trust = [judge_trust(past[:known]) for known in range(len(past) + 1)]
    assert set(trust[:8]) == {Trust.UNPROVEN}
    assert trust[19] == Trust.TRUSTED
    assert not past[19].has_held
    assert trust[20] == Trust.WITHDRAWN
    assert past[20].has_held
    assert trust[21] == Trust.TRUSTED


def test_scores_whose_meaning_changes_every_week_are_never_surely_beyond_a_limit() -> None:
    """The intervals grow as wide as the changes; with those of a stable world the same limit is surely broken."""
    widths = {}
    for spread in (0.0, 1.0):
        rng, weeks = np.random.default_rng(3), Weeks("binary")
        for _ in range(30):
            score, label = logistic(rng, shift=0.0)
            odds = np.log(score / (1 - score)) + rng.normal(0, spread) if spread else np.log(score / (1 - score))
            weeks.add(1 / (1 + np.exp(-odds)), label)
        past = weeks.past["log_loss"]
        widths[spread] = float(np.mean([each.estimate.high - each.estimate.low for each in past[10:]]))
        assert held(past[10:]) >= 0.8
    assert widths[1.0] > 3 * widths[0.0]


def test_of_a_regression_the_errors_of_near_scores_are_expected() -> None:
    rng, weeks = np.random.default_rng(1), Weeks("regression")
    for number in range(30):
        score = np.exp(rng.normal(2 + 0.5 * np.sin(number / 4), 0.5, ROWS_A_WEEK))
        weeks.add(score, np.maximum(score + rng.normal(0, 0.3 * score), 0))  # the longer, the more it is off
    assert set(weeks.past) == {"mae", "rmse", "rmsle", "bias"}
    past = weeks.past["mae"]
    expected, realised = np.array([e.estimate.value for e in past]), np.array([e.realised for e in past])
    assert np.corrcoef(expected, realised)[0, 1] > 0.9
    assert held(past) >= 0.85
    assert judge_trust(past) == Trust.TRUSTED


def test_tied_scores_are_drawn_alike() -> None:
    """A tree's few leaves: the draw of a leaf is of all its rows, not of those that stand first."""
    score = np.repeat([0.2, 0.6], 1000)
    label = np.concatenate([np.arange(1000) % 5 == 0, np.arange(1000) % 5 < 3]).astype(float)
    matured = MaturedRows(score=score, label=label, day=np.arange(2000) % 7)
    value, _ = draw_metrics("binary", score, matured, seed=1)["brier"]
    assert value == pytest.approx(0.5 * (0.16 + 0.24), abs=0.01)


def test_labels_of_one_class_tell_of_no_ranking() -> None:
    matured = MaturedRows(score=np.linspace(0.1, 0.2, 500), label=np.zeros(500), day=np.arange(500) % 7)
    assert draw_metrics("binary", np.linspace(0.1, 0.2, 500), matured, seed=1) == {}


def judged(off: float, *, trust: Trust = Trust.TRUSTED) -> MaturedEstimate:
    """An estimate of .5, from .4 to .6, that was so many spreads off."""
    estimate = MetricEstimate(value=0.5, spread=0.05, low=0.4, high=0.6, trust=trust)
    return MaturedEstimate(estimate=estimate, realised=0.5 + 0.05 * off)


def test_an_interval_is_as_wide_as_nine_in_ten_of_the_past_were_off() -> None:
    assert count_spreads([]) == pytest.approx(1.645, abs=0.001)
    assert count_spreads([judged(3.0)]) == pytest.approx(3.0)
    assert count_spreads([judged(0.1 * n) for n in range(19)]) == pytest.approx(1.7)  # the 18th of 19


@pytest.mark.parametrize(
    ("off", "trust"),
    [
        ([0.0] * 7, Trust.UNPROVEN),
        ([0.0] * 8, Trust.TRUSTED),
        ([0.0] * 7 + [3.0], Trust.WITHDRAWN),
        ([0.0] * 7 + [3.0, 0.0], Trust.TRUSTED),
        ([3.0, 0.0] * 5, Trust.WITHDRAWN),
        ([3.0, 0.0] * 5 + [0.0] * 20, Trust.TRUSTED),
    ],
)
def test_trust_is_earned_by_intervals_that_held_and_lost_by_a_miss(off: list[float], trust: Trust) -> None:
    assert judge_trust([judged(each) for each in off]) == trust


def test_only_a_trusted_estimate_that_is_surely_beyond_its_limit_is_told(use_case: UseCase) -> None:
    limits = {"auc": Limit(min=0.7), "calibration_gap": Limit(max=0.05)}
    watched = Monitor(**{**use_case.monitor.model_dump(), "limits": limits})
    sure = MetricEstimate(value=0.65, spread=0.01, low=0.62, high=0.68, trust=Trust.TRUSTED)

    def told(**estimates: MetricEstimate) -> list[str]:
        return list(find_expected_breaches(estimates, watched))

    assert told(auc=sure) == [
        "expected auc 0.6500, from 0.6200 to 0.6800, is below the limit 0.7; labels are still to come"
    ]
    assert "expected calibration_gap 0.6500" in told(calibration_gap=sure)[0]
    assert told(auc=replace(sure, trust=Trust.WITHDRAWN), calibration_gap=replace(sure, trust=Trust.UNPROVEN)) == []
    assert told(auc=replace(sure, high=0.71), calibration_gap=replace(sure, low=0.04)) == []
    assert told(log_loss=sure) == [], "it has no limit"


@pytest.fixture
def world(use_case: UseCase, outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(use_case=monitored(use_case, limits={"auc": {"min": 0.5}}), outside=outside, folder=tmp_path / "data")


def test_each_week_is_estimated_at_its_end_and_restated_when_its_labels_have_come(world: World) -> None:
    """Week 10 is the champion's first, and week 13's labels are still to come."""
    for number in (10, 11, 12, 13):
        world.score(number)
    decided(world)
    rows = sorted(world.rows("expected_performance"), key=lambda row: (row["window_start"], row["measured_as_of"]))
    assert [(row["window_end"], row["measured_as_of"], row["labelled"]) for row in rows] == [
        (week(11).end, week(11).end, 0),
        (week(11).end, week(12).end, ROWS),
        (week(12).end, week(12).end, 0),
        (week(12).end, week(13).end, ROWS),
        (week(13).end, week(13).end, 0),
    ]
    assert [bool(row["realised"]) for row in rows] == [False, True, False, True, False]
    assert rows[0]["expected"] == rows[1]["expected"]
    assert set(rows[1]["realised"]) == set(rows[1]["expected"]) == {
        "log_loss", "auc", "pr_auc", "brier", "calibration_gap"}  # fmt: skip
    auc = rows[1]["expected"]["auc"]
    assert auc["low"] < auc["value"] < auc["high"]
    assert auc["trust"] == "unproven"
    evidence = [
        row["evidence"] for row in world.outside.warehouse.query("select evidence from decisions order by as_of")
    ]
    assert evidence[0]["expected"] is None
    assert evidence[1]["expected"] == rows[0]["expected"]


def test_the_labels_of_the_week_itself_change_nothing_of_its_estimate(world: World) -> None:
    """Nor does a label of before that was not known by then."""
    for number in (10, 11):
        world.score(number)
    with world.outside.warehouse.transaction() as at:
        at.execute("create table kept as select * from outcomes")
        at.execute(
            "update outcomes set label = 1 - label where event_time >= %s", (week(11).start + timedelta(hours=2),)
        )
        at.execute(
            "insert into outcomes select use_case, entity_key || 'x', event_time, label, %s from kept", (week(12).end,)
        )
    decided(world)
    [changed] = world.rows("expected_performance")
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "truncate recalibrations, decisions, retrains, drift, performance, served_performance, expected_performance"
        )
        at.execute("truncate outcomes")
        at.execute("insert into outcomes select * from kept")
    decided(world)
    [as_it_was] = world.rows("expected_performance")
    assert changed["expected"] == as_it_was["expected"]


def test_labels_that_come_or_change_later_restate_what_became_of_it_and_the_same_ones_do_not(world: World) -> None:
    for number in (10, 11):
        world.score(number)
    world.score(12, labelled=0.5)
    decided(world)
    world.score(13)
    decided(world)

    def stated() -> list[tuple[int, bool]]:
        rows = [row for row in world.rows("expected_performance") if row["window_end"] == week(12).end]
        return [(r["labelled"], bool(r["realised"])) for r in sorted(rows, key=lambda r: r["measured_as_of"])]

    assert stated() == [(0, False), (ROWS // 2, False)], "too few to say what became of it"
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "insert into outcomes select use_case, entity_key, event_time, (score > 0.3)::int::float8,"
            " prediction_time + interval '9 days' from predictions where prediction_time >= %s and prediction_time < %s"
            " on conflict do nothing",
            (week(12).start, week(12).end),
        )
    world.score(14)
    decided(world)
    assert stated() == [(0, False), (ROWS // 2, False), (ROWS, True)]
    world.score(15)
    decided(world)
    assert len(stated()) == 3


def test_what_lies_at_a_limit_is_part_of_the_record_though_labels_that_are_outstanding_could_decide_it(
    world: World,
) -> None:
    """Left out, trust would be earned where nothing is at stake."""

    def decide_anew(limit: float) -> dict[str, float]:
        world.use_case = monitored(world.use_case, limits={"auc": {"min": limit}}, min_coverage=0.9)
        world.outside.warehouse.execute(
            "truncate recalibrations, decisions, retrains, drift, performance, served_performance, expected_performance"
        )
        decided(world)
        rows = [row for row in world.rows("expected_performance") if row["window_end"] == week(11).end]
        realised: dict[str, float] = max(rows, key=lambda row: row["measured_as_of"])["realised"]
        return realised

    for number in (10, 11, 12):
        world.score(number, labelled=0.97)
    seen = decide_anew(0.1)
    assert decide_anew(seen["auc"] - 1e-4) == seen


@pytest.mark.parametrize(("limit", "decision"), [(0.99, "retrain"), (0.3, "alert")])
def test_a_trusted_estimate_beyond_its_limit_retrains_before_the_labels_come(
    world: World, limit: float, decision: str
) -> None:
    """Of the last week no label is known, and performance as measured can say nothing; its twin's limit is kept."""
    for number in range(10, 21):
        world.score(number)
    decided(world)
    world.score(21, labelled=0.0)
    strict = monitored(world.use_case, limits={"auc": {"min": limit}})
    [found] = monitor.monitor_partitions(strict, world.outside)
    assert found.decision == decision, found.reasons
    assert any(reason.startswith("performance unknown") for reason in found.reasons)
    assert any(reason.startswith("expected auc 0.") for reason in found.reasons) == (decision == "retrain")
