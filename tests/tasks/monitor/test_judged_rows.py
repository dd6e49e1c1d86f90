"""On a real PostgreSQL and S3: labels that are outstanding decide nothing, and what is not sure is told."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks.monitor.judged_rows import count_outstanding, load_shown
from tests.tasks.watched import World, decided, monitored, week

STORED = "drift, performance, served_performance, expected_performance, recalibrations, decisions, retrains"


@pytest.fixture
def world(use_case: UseCase, outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return limited(World(use_case=monitored(use_case), outside=outside, folder=tmp_path / "data"), "auc", min=0.5)


def limited(world: World, metric: str, **changes: Any) -> World:
    limit = {k: changes.pop(k) for k in ("min", "max") if k in changes}
    world.use_case = monitored(world.use_case, limits={metric: limit}, **changes)
    return world


def evidence(world: World) -> dict[str, Any]:
    """Of the latest decision."""
    [row] = world.outside.warehouse.query("select evidence from decisions order by as_of desc limit 1")
    found: dict[str, Any] = row["evidence"]
    return found


def score_and_lose(world: World, number: int) -> None:
    """A week scored by a model that is right about each chance; a third of its positives, 9 % of all, has no label."""
    outcomes = world.score(number).to_pylist()
    lost = [row["entity_key"] for row in outcomes if row["label"]][::3]
    world.outside.warehouse.execute("update outcomes set label_time = 'infinity' where entity_key = any(%s)", (lost,))


def test_a_perfect_model_whose_positives_are_outstanding_is_not_degraded(world: World) -> None:
    limited(world, "calibration_gap", max=0.05)
    score_and_lose(world, 13)
    assert decided(world) == ["alert"]
    [row], [decision] = world.rows("performance"), world.rows("decisions")
    assert row["coverage"] >= world.use_case.monitor.min_coverage
    assert row["metrics"]["calibration_gap"] > 0.05
    assert row["status"] == "unknown"
    assert f"{row['predicted'] - row['labelled']} labels are outstanding" in decision["reasons"][0]
    bounds = evidence(world)["performance"]["bounds"]["calibration_gap"]
    assert bounds["least"] < 0.05 < bounds["most"]


def test_its_twin_whose_labels_came_is_fine(world: World) -> None:
    limited(world, "calibration_gap", max=0.05)
    world.score(13)
    assert decided(world) == ["ignore"]


def test_rows_that_earlier_windows_were_left_without_are_no_excuse(world: World) -> None:
    """Nothing came to the first window in the length of one: rows like these have no outcome, and the gap is real."""
    limited(world, "calibration_gap", max=0.01)
    for number in (10, 11, 12):
        score_and_lose(world, number)
    assert decided(world) == ["alert", "alert", "retrain"]
    assert evidence(world)["codes"] == ["performance"]
    assert evidence(world)["performance"]["bounds"]["calibration_gap"]["outstanding"] <= 20


def test_labels_that_came_late_before_may_come_late_again(world: World) -> None:
    def outstanding(predicted: int, missing: int) -> int:
        return count_outstanding(world.use_case, predicted, missing, week(16).end, world.outside)

    def measure(labelled: int, number: int, measured: int) -> None:
        world.outside.warehouse.execute(
            "insert into performance (use_case, model_version, window_start, window_end, measured_as_of, predicted,"
            " labelled, coverage, metrics, status) values (%s, '1', %s, %s, %s, 1000, %s, 1, '{}', 'ok')",
            (world.use_case.name, week(number).start, week(number).end, week(measured).end, labelled),
        )

    assert outstanding(1000, 90) == 90, "nothing is known yet"
    measure(950, 15, 15)
    assert outstanding(1000, 90) == 90, "it was measured a week ago: more may come"
    measure(970, 10, 10)
    assert outstanding(1000, 90) == 60, "three in a hundred had no outcome; the others may be late"
    assert outstanding(1000, 20) == 0
    measure(980, 12, 12)
    measure(995, 12, 14)
    assert outstanding(1000, 20) == 15, "after it was first measured so many came"
    assert outstanding(1000, 10) == 10
    measure(500, -6, -6)
    assert outstanding(1000, 90) == 73, "half-way between the two windows; the third was long ago"


def test_before_a_window_has_come_to_rest_the_dataset_says_how_many_labels_come(world: World) -> None:
    world.score(3)  # before the first champion: its labels alone count
    world.score(4)
    world.outside.warehouse.execute("delete from outcomes where entity_key like '20130121-%5'")  # of week 3, 60 of 600
    world.outside.warehouse.execute(
        "update outcomes set label_time = event_time + interval '2 days' where entity_key like '20130128-__9'"
    )  # of week 4, 50
    index = {world.use_case.grid.key(week(number)): {"inputs": "i", "rows": 600} for number in (3, 4)}
    index[world.use_case.grid.key(week(10))] = {"inputs": "i", "rows": 600}  # too new to say
    world.outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values (%s, 's', '-', %s, %s, 3, 0, %s)",
        (world.use_case.name, week(3).start, week(10).end, json.dumps(index)),
    )
    for missing, expected in ((90, 42), (60, 42), (30, 30)):
        assert count_outstanding(world.use_case, 1000, missing, week(10).end, world.outside) == expected
    assert count_outstanding(world.use_case, 1000, 99, week(10).end, world.outside) == 49


@pytest.mark.parametrize("is_answered", [True, False])
def test_what_may_be_below_its_limit_is_told_and_looked_at_in_a_longer_window(
    world: World,
    is_answered: bool,  # noqa: FBT001
) -> None:
    for number in (10, 11, 12, 13):
        world.score(number)
        if is_answered:
            world.answer(number)
    assert decided(world) == ["ignore"] * 4
    before = evidence(world)["performance"]
    assert before["doubts"] == {}
    assert before["longer"] is None
    low, high = (before["bounds"]["auc"][end] for end in ("low", "high"))
    assert low < before["metrics"]["auc"] < high
    for limit, code in ((before["metrics"]["auc"] + 0.001, "quiet"), (high + 0.001, "performance")):
        world.outside.warehouse.execute(f"truncate {STORED}")
        limited(world, "auc", min=limit)
        decided(world)
        assert evidence(world)["codes"][0] == code
        told = evidence(world)["performance"]
        assert told["basis"] == ("served" if is_answered else "restated")
        if code == "quiet":
            assert told["longer"]["predicted"] == pytest.approx(2 * told["predicted"], rel=0.1)
            [row] = world.outside.warehouse.query("select reasons from decisions order by as_of desc limit 1")
            assert f"may be below {limit}, not sure" in row["reasons"][0]


def test_what_a_champion_showed_and_others_on_the_same_rows_stand_beside_it(world: World) -> None:
    world.score(10)
    world.score(10, version="2")
    world.score(10, version="3")
    world.outside.warehouse.execute("delete from predictions where model_version = '3' and score > 0.01")
    world.outside.warehouse.execute("update predictions set score = 1 - score where model_version = '2'")
    assert load_shown(world.use_case, "1", world.outside) is None
    document = {"rows": 5000, "metrics": {"1": {"log_loss": 0.1, "auc": 0.9, "pr_auc": None}, "constant": {}}}
    stored = world.outside.lake.put("evidence/flights/test", json.dumps(document).encode(), ".json")
    world.outside.warehouse.execute(
        "insert into verdicts (verdict_id, use_case, candidate_version, as_of, answer, metric, evidence_uri)"
        " values ('v', %s, '1', %s, 'promote', 'log_loss', %s)",
        (world.use_case.name, week(10).start, stored.uri),
    )
    assert decided(world) == ["ignore"], "no margin is declared"
    told = evidence(world)
    shown = {"metric": "log_loss", "rows": 5000, "metrics": {"log_loss": 0.1, "auc": 0.9}}
    assert told["performance"]["shown"] == shown
    references, ours = told["references"], told["performance"]["metrics"]
    assert set(references) == {"constant", "2"}
    assert references["constant"]["metrics"]["auc"] == 0.5
    assert ours["log_loss"] < references["constant"]["metrics"]["log_loss"] < references["2"]["metrics"]["log_loss"]
    assert references["2"]["champion"] == pytest.approx(ours)
    world.outside.warehouse.execute(f"truncate {STORED}")
    limited(world, "auc", min=0.5, max_loss=0.05)
    assert decided(world) == ["retrain"]
    [row] = world.outside.warehouse.query("select reasons from decisions")
    assert "worse than it showed at the gate, log_loss" in row["reasons"][0]


def keep_verdict(world: World, version: str, uri: str) -> None:
    world.outside.warehouse.execute(
        "insert into verdicts (verdict_id, use_case, candidate_version, as_of, answer, metric, evidence_uri)"
        " values (%s, %s, %s, %s, 'promote', 'log_loss', %s)",
        (f"v{version}", world.use_case.name, version, week(10).start, uri),
    )


def test_a_refitted_champion_showed_what_its_judged_twin_showed(world: World) -> None:
    world.outside.warehouse.execute(
        "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
        " values (%s, 'promote', '8', %s, 'gate', 'better', %s)",
        (world.use_case.name, week(10).start, json.dumps({"judged_version": "7"})),
    )
    document = {"rows": 5000, "metrics": {"7": {"log_loss": 0.1}, "constant": {}}}
    stored = world.outside.lake.put("evidence/flights/twin", json.dumps(document).encode(), ".json")
    assert load_shown(world.use_case, "8", world.outside) is None
    keep_verdict(world, "7", stored.uri)
    for version in ("7", "8"):
        shown = load_shown(world.use_case, version, world.outside)
        assert shown is not None
        assert shown.metrics == {"log_loss": 0.1}


def test_evidence_that_is_gone_stops_nothing(world: World) -> None:
    keep_verdict(world, "1", f"s3://{world.outside.settings.lake_bucket}/evidence/flights/gone/{'0' * 64}.json")
    world.score(10)
    assert decided(world) == ["ignore"]
    assert evidence(world)["performance"]["shown"] is None


def test_a_window_that_lost_its_labels_says_nothing_of_what_share_never_comes(world: World) -> None:
    """One outage would else excuse every label that is outstanding for as long as it is remembered."""
    for number, labelled in enumerate((990, 990, 600, 990)):
        world.outside.warehouse.execute(
            "insert into performance (use_case, model_version, window_start, window_end, measured_as_of, predicted,"
            " labelled, coverage, metrics, status, labels) values (%s, '1', %s, %s, %s, 1000, %s, %s, '{}', 'ok', 'x')",
            (world.use_case.name, week(number).start, week(number).end, week(number).end, labelled, labelled / 1000),
        )
    world.use_case = monitored(world.use_case, min_labelled=500, min_coverage=0.9)
    assert count_outstanding(world.use_case, 1000, 90, week(8).end, world.outside) == 80
