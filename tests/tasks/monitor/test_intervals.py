"""What intervals cover is watched: trained, registered, scored and decided on with real parts.

An interval calibrated on rows that the fit learnt, or shrunken, is seen; its honest twin is left in peace.
"""

import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import features
from adapters.connect import Outside
from models.interval import ConformalInterval
from pipeline.handoffs import Candidate, Snapshot
from pipeline.monitoring import Limit
from pipeline.spec import IntervalSettings, LeakAlarm, Target, UseCase
from serving.predictor import Predictor
from tasks.monitor import monitor
from tasks.monitor.interval_quality import find_miscoverage
from tasks.promote.evaluate import judge_candidate
from tasks.score import score_partitions
from tasks.train import calibration, reproduction, search
from tasks.train import refit as refitting
from tasks.train.refit import refit
from tasks.train.winner import fit_winner
from tests.models import synthetic
from tests.tasks import planted, toy

AS_OF = datetime(2013, 2, 11, tzinfo=UTC)  # a Monday: the champion scores the partitions from then on
WEEK = timedelta(days=7)
ROWS = 5000
NOISE = tuple(f"noise_{number}" for number in range(80))  # columns by which a fit learns its rows by heart
DAYS = 69.0  # of which 41 lie before, and four whole partitions after
EPOCHS = 20
_ANSWER = """
insert into answers_in_time (use_case, entity_key, event_time, prediction_time, model_version, score, lower, upper,
    degraded, reasons, request_id, position, known_until, answered_at, in_time)
select use_case, entity_key, event_time, prediction_time, model_version, score,
    score + %s * (lower - score), score + %s * (upper - score), false, '{}', entity_key, 0, prediction_time,
    prediction_time, true
from predictions"""


def define(name: str) -> None:
    """Make a name a use case whose features are the columns of synthetic rows, and noise."""
    features._DEFINITIONS[name] = replace(
        features.definition("flights"),
        name=name,
        numeric_sql={column: column for column in (*synthetic.NUMERIC, *NOISE)},
        categorical_sql={column: column for column in synthetic.CATEGORICAL},
        **dict.fromkeys(("windows", "joined"), ()),
    )


@pytest.fixture
def case() -> Iterator[UseCase]:
    """A regression with intervals; the registry is shared by the tests of a session, so its name is a test's own."""
    toys = toy.use_case(
        hidden_units=(128,), layers=(2,), dropout=(0.0, 0.0), learning_rate=(0.005, 0.005),
        weight_decay=(0.0001, 0.0001), rungs=(EPOCHS,), metric="mae", min_rows=100,
    )  # fmt: skip
    name = f"toy_{secrets.token_hex(4)}"
    define(name)
    changes = {
        "name": name,
        "target": Target(
            kind="regression", meaning="a number", interval=IntervalSettings(coverage=0.9, max_gap=0.04)
        ),
        "gate": toys.gate.model_copy(
            update={
                "metric": "mae", "leak_alarm": LeakAlarm(metric="mae", below=0.1), "min_rows": 100,
                "min_slice_rows": 50, "max_calibration_gap": 5.0, "max_latency_ms": 5000.0,
            }
        ),
        "monitor": toys.monitor.model_copy(
            update={
                "limits": {"mae": Limit(max=1000.0)}, "min_rows": 300, "min_labelled": 100, "max_age_days": 10_000,
                "max_new_rows_share": 1e6, "structural_features": ("carrier",), "min_drifted_features": 90,
            }
        ),
    }  # fmt: skip
    yield toys.model_copy(update=changes)
    del features._DEFINITIONS[name]


@pytest.fixture(scope="module")
def table() -> pa.Table:
    rows, draw = synthetic.table(ROWS, seed=1, kind="regression", days=DAYS), np.random.default_rng(1)
    for name in NOISE:
        rows = rows.append_column(name, pa.array(draw.normal(0, 1, ROWS)))
    return rows


@pytest.fixture
def snapshot(mlflow_stack: object, case: UseCase, outside: Outside, table: pa.Table) -> Snapshot:
    return planted.dataset(outside, case, table)


def train(case: UseCase, outside: Outside, snapshot: Snapshot, epochs: int = EPOCHS) -> Candidate:
    """A candidate as of the Monday, from a short search, but for its many epochs."""
    search.run_search(case, snapshot, AS_OF, 1, outside)
    study = search.load_study_result(case, snapshot, AS_OF, outside)
    return refit(case, snapshot, replace(study, best_epochs=epochs), AS_OF, "test", None, outside)


def crown(case: UseCase, outside: Outside, version: str) -> None:
    outside.warehouse.execute(
        "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
        " values (%s, 'promote', %s, %s, 'test', 'test', '{}')",
        (case.name, version, AS_OF),
    )
    outside.warehouse.execute(
        "insert into champions (use_case, revision, version, as_of) values (%s, 1, %s, %s)", (case.name, version, AS_OF)
    )


def score_and_label(case: UseCase, outside: Outside, candidate: Candidate, table: pa.Table) -> None:
    """The candidate is champion, scores four weeks, and all their labels come."""
    crown(case, outside, candidate.model_version)
    assert len(score_partitions(case, outside)) == 4
    outcomes = table.select(["entity_key", "event_time", "label", "label_time"])
    outcomes = outcomes.append_column("use_case", pa.repeat(case.name, table.num_rows))
    with outside.warehouse.transaction() as at:
        outside.warehouse.upsert(at, "outcomes", outcomes, ("use_case", "entity_key", "event_time"))


def watch(case: UseCase, outside: Outside) -> list[tuple[str, list[str], dict[str, float]]]:
    """Each partition's decision, its codes and the metrics that were judged."""
    monitor.monitor_partitions(case, outside)
    found = outside.warehouse.query("select decision, evidence from decisions order by as_of")
    return [(row["decision"], row["evidence"]["codes"], row["evidence"]["performance"]["metrics"]) for row in found]


def shrunken(calibrate: Callable[..., ConformalInterval]) -> Callable[..., ConformalInterval]:
    def calibrate_half(*arguments: Any, **named: Any) -> ConformalInterval:
        interval = calibrate(*arguments, **named)
        return replace(interval, low=interval.low / 2, high=interval.high / 2)

    return calibrate_half


def test_an_honest_interval_covers_what_it_says_in_batch_and_is_left_in_peace(
    case: UseCase, outside: Outside, snapshot: Snapshot, table: pa.Table
) -> None:
    candidate = train(case, outside, snapshot)
    assert outside.registry.metrics(case.name, candidate.model_version)["calibration_rows"] > 300
    score_and_label(case, outside, candidate, table)
    stored = outside.warehouse.query("select entity_key, score, lower, upper, model_version from predictions")
    assert stored
    predictor = Predictor.load(outside.registry.download_bundle(case.name, candidate.model_version))
    assert predictor.interval is not None
    expected = predictor.interval.bounds(np.array([row["score"] for row in stored]))
    assert ([row["lower"] for row in stored], [row["upper"] for row in stored]) == tuple(b.tolist() for b in expected)

    found = watch(case, outside)
    assert len(found) == 4
    for _, codes, metrics in found:
        assert "miscoverage" not in codes
        assert abs(metrics["interval_coverage"] - 0.9) < 0.04
        assert metrics["interval_coverage_low"] < metrics["interval_coverage"] < metrics["interval_coverage_high"]
        assert metrics["interval_declared"] == pytest.approx(0.9)
        assert metrics["interval_width"] > 0
    rows = outside.warehouse.query("select metrics, coverage from performance order by window_end")
    assert all("interval_coverage" in row["metrics"] and row["coverage"] == 1 for row in rows)
    expected = outside.warehouse.query(
        "select window_start, matured, expected from expected_performance where labelled = 0 order by window_start"
    )
    assert expected[0]["window_start"] == AS_OF, "of its first week, too: by the holdout, which it did not learn"
    assert len(expected) == 4
    assert all(row["matured"] > 300 and {"mae", "rmse", "bias"} <= set(row["expected"]) for row in expected)

    again = reproduction.reproduce(case, candidate.model_version, outside)
    assert again.problems == []


def test_a_refitted_winner_answers_with_the_interval_of_its_twin(
    case: UseCase, outside: Outside, snapshot: Snapshot
) -> None:
    candidate = train(case, outside, snapshot)
    winner = fit_winner(case, candidate, outside)
    judged, refitted = (
        Predictor.load(outside.registry.download_bundle(case.name, version))
        for version in (candidate.model_version, winner.version)
    )
    assert refitted.interval == judged.interval is not None
    assert refitted.card["data"]["rows"] > judged.card["data"]["rows"]
    assert reproduction.reproduce(case, winner.version, outside).problems == []


def test_sabotage_calibrated_on_rows_that_were_learnt_it_covers_too_little_and_a_person_is_told(
    case: UseCase, outside: Outside, snapshot: Snapshot, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = calibration.split_rows
    monkeypatch.setattr(calibration, "split_rows", lambda rows, moments: (split(rows, moments)[0],) * 2)
    score_and_label(case, outside, train(case, outside, snapshot), table)
    found = watch(case, outside)
    assert all(metrics["interval_coverage"] < 0.85 for _, _, metrics in found)
    assert ["miscoverage" in codes for _, codes, _ in found] == [False, True, True, True]
    assert {decision for decision, *_ in found[1:]} == {"alert"}, "as a calibration gap without a limit, no retraining"
    [alert] = outside.warehouse.query("select title, body from alerts where resolved_at is null")
    assert "declared is 90.0%" in alert["body"]


def test_sabotage_a_shrunken_interval_is_seen_and_with_a_limit_retrained(
    case: UseCase, outside: Outside, snapshot: Snapshot, table: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refitting, "calibrate_by_twin", shrunken(refitting.calibrate_by_twin))
    limits = {**case.monitor.limits, "interval_coverage": Limit(min=0.8)}
    bounded = case.model_copy(update={"monitor": case.monitor.model_copy(update={"limits": limits})})
    candidate = train(bounded, outside, snapshot)
    problems = reproduction.reproduce(bounded, candidate.model_version, outside).problems
    assert any("the interval's bounds differ" in problem for problem in problems)
    score_and_label(bounded, outside, candidate, table)
    decision, codes, metrics = watch(bounded, outside)[0]
    assert metrics["interval_coverage"] < 0.8
    assert (decision, codes) == ("retrain", ["performance"])


def test_sabotage_answers_with_half_of_the_interval_are_seen_though_batch_has_all_of_it(
    case: UseCase, outside: Outside, snapshot: Snapshot, table: pa.Table
) -> None:
    score_and_label(case, outside, train(case, outside, snapshot), table)
    outside.warehouse.execute(_ANSWER, (0.5, 0.5))
    found = watch(case, outside)
    assert all(metrics["interval_coverage"] < 0.8 for _, _, metrics in found)
    assert "miscoverage" in found[-1][1]
    rows = outside.warehouse.query("select is_judged, metrics, restated_metrics from served_performance")
    assert all(row["is_judged"] for row in rows)
    assert all(abs(row["restated_metrics"]["interval_coverage"] - 0.9) < 0.04 for row in rows)


def test_a_version_of_before_goes_on_without_an_interval(
    case: UseCase, outside: Outside, snapshot: Snapshot, table: pa.Table
) -> None:
    """Its use case declares one now: it scores, and is judged by its other metrics, until it is retrained."""
    before = case.model_copy(update={"target": Target(kind="regression", meaning="a number")})
    old = train(before, outside, snapshot)
    limits = {**case.monitor.limits, "interval_coverage": Limit(min=0.8)}
    now = case.model_copy(update={"monitor": case.monitor.model_copy(update={"limits": limits})})
    score_and_label(now, outside, old, table)
    assert outside.warehouse.query("select count(*) from predictions where lower is not null") == [{"count": 0}]
    for decision, codes, metrics in watch(now, outside):
        assert (decision, codes) == ("ignore", ["quiet"])
        assert set(metrics) == {"mae", "rmse", "bias"}
    new = train(now, outside, snapshot)
    assert new.model_version != old.model_version, "the same work, but for the interval, is not taken for done"


def test_the_gate_shows_what_the_intervals_of_both_cover_of_the_same_rows(
    case: UseCase, outside: Outside, snapshot: Snapshot
) -> None:
    before = case.model_copy(update={"target": Target(kind="regression", meaning="a number")})
    old, new = train(before, outside, snapshot), train(case, outside, snapshot, epochs=3)
    crown(case, outside, old.model_version)
    verdict = judge_candidate(case, new, outside)
    evidence = json.loads(outside.lake.read(verdict.evidence_uri))
    assert evidence["intervals"][old.model_version] is None
    told = evidence["intervals"][new.model_version]
    assert told["rows"] == evidence["rows"]
    assert abs(told["covered"] - told["declared"]) < 0.05
    assert told["low"] < told["covered"] < told["high"]


@pytest.mark.parametrize(
    ("covered", "low", "high", "told"),
    [
        (0.85, 0.83, 0.87, True), (0.95, 0.94, 0.96, True), (0.85, 0.79, 0.91, False), (0.89, 0.885, 0.895, False),
        (0.9, 0.88, 0.92, False),
    ],
)  # fmt: skip
def test_wrong_is_what_is_far_off_and_surely_off(
    covered: float,
    low: float,
    high: float,
    told: bool,  # noqa: FBT001
) -> None:
    metrics = {
        "interval_coverage": covered, "interval_coverage_low": low, "interval_coverage_high": high,
        "interval_declared": 0.9,
    }  # fmt: skip
    found = find_miscoverage(metrics, IntervalSettings(coverage=0.9, max_gap=0.04))
    assert (found is not None) is told
    assert find_miscoverage(metrics, None) is None
    assert find_miscoverage({"mae": 1.0}, IntervalSettings(coverage=0.9, max_gap=0.04)) is None
