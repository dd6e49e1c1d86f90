"""What was answered in time is judged, where it is enough of the events; restated, the same again stands beside it."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters.connect import Outside
from models.metrics import compute_metrics
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.build_features import profile as profiling
from tasks.monitor import served
from tasks.score import load_batch_predictor
from tests.tasks import planted
from tests.tasks.server_room import Room
from tests.tasks.watched import World, decided, emptied, monitored, points, training, week

AWRY = "1 - score"  # ranks every event the wrong way round
STORED = ("drift", "performance", "served_performance", "decisions", "retrains")


@pytest.fixture
def world(use_case: UseCase, outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(use_case=monitored(use_case, limits={"auc": {"min": 0.5}}), outside=outside, folder=tmp_path / "data")


def evidence(world: World) -> dict[str, Any]:
    """Of the latest decision."""
    [row] = world.outside.warehouse.query("select evidence from decisions order by as_of desc limit 1")
    found: dict[str, Any] = row["evidence"]
    return found


def test_bad_answers_are_a_trigger_though_batch_would_have_said_better(world: World) -> None:
    world.score(10)
    world.answer(10, score=AWRY)
    assert decided(world) == ["retrain"]
    [row], [decision] = world.rows("served_performance"), world.rows("decisions")
    assert (row["status"], row["is_judged"], row["coverage"]) == ("degraded", True, 1)
    assert row["metrics"]["auc"] < 0.5 < row["restated_metrics"]["auc"]
    assert row["restated"] == row["answered"] == row["labelled"]
    assert decision["reasons"][0].startswith("performance as served: auc")
    assert decision["reasons"][1].startswith("restated, the same events are within the limits")
    assert evidence(world)["codes"] == ["performance"]
    assert evidence(world)["performance"]["basis"] == "served"
    told = evidence(world)["served"]
    assert (told["coverage"], told["versions"]) == (1, {"1": row["answered"]})
    assert told["restated"]["metrics"] == row["restated_metrics"]


def test_answers_that_are_bad_restated_too_are_told_without_that_excuse(world: World) -> None:
    world.score(10)
    world.outside.warehouse.execute(f"update predictions set score = {AWRY}")
    world.answer(10)
    assert decided(world) == ["retrain"]
    [decision] = world.rows("decisions")
    assert len(decision["reasons"]) == 1


def test_good_answers_are_none_also_where_batch_says_worse_afterwards(world: World) -> None:
    world.score(10)
    world.answer(10)
    world.outside.warehouse.execute(f"update predictions set score = {AWRY}")
    assert decided(world) == ["ignore"]
    [row], [batch] = world.rows("served_performance"), world.rows("performance")
    assert (row["status"], batch["status"]) == ("ok", "degraded")
    assert row["restated_metrics"]["auc"] < 0.5 < row["metrics"]["auc"]
    assert evidence(world)["performance"]["basis"] == "served"


@pytest.mark.parametrize(("share", "decision", "basis"), [(0.7, "ignore", "restated"), (0.97, "retrain", "served")])
def test_where_too_few_were_answered_batch_is_judged_and_the_evidence_says_so(
    world: World, share: float, decision: str, basis: str
) -> None:
    world.score(10)
    world.answer(10, score=AWRY, share=share)
    assert decided(world) == [decision]
    [row] = world.rows("served_performance")
    assert row["is_judged"] == (basis == "served")
    assert row["coverage"] == row["answered"] / row["labelled"]
    told = evidence(world)
    assert (told["performance"]["basis"], told["drift"]["basis"]) == (basis, basis)
    assert told["served"]["coverage"] == row["coverage"]
    assert told["drift"]["coverage"] == pytest.approx(share)
    assert {measure["basis"] for measure in world.rows("drift")} == {basis}


def test_a_late_answer_is_none(world: World) -> None:
    world.score(10)
    world.answer(10, score=AWRY, in_time=False)
    assert decided(world) == ["ignore"]
    [row] = world.rows("served_performance")
    assert (row["answered"], row["late"], row["is_judged"]) == (0, row["labelled"], False)
    assert (row["metrics"], row["status"]) == ({}, "unknown")
    told = evidence(world)
    assert (told["performance"]["basis"], told["drift"]["basis"], told["drift"]["answers"]) == ("restated",) * 2 + (0,)


def test_where_nothing_is_answered_by_itself_nothing_is_written(world: World) -> None:
    assert world.use_case.endpoint is not None
    silent = world.use_case.endpoint.model_copy(update={"answers": None})
    world.use_case = world.use_case.model_copy(update={"endpoint": silent})
    world.score(10)
    world.answer(10, emptied(points(week(10), seed=10), "x3"), score=AWRY)
    assert decided(world) == ["ignore"]
    assert world.rows("served_performance") == []
    assert (evidence(world)["served"], evidence(world)["drift"]["basis"]) == (None, "restated")


@pytest.mark.parametrize(("shift", "decisions"), [(1.0, ["ignore", "retrain"]), (0.0, ["ignore", "ignore"])])
def test_what_was_served_drifts_by_the_features_it_was_made_of(
    world: World, shift: float, decisions: list[str]
) -> None:
    for number in (10, 11):
        world.score(number)
        world.answer(number, points(week(number), seed=number, shift=shift))
    assert decided(world) == decisions
    told = evidence(world)["drift"]
    assert (told["basis"], told["answers"], told["points"]) == ("served", 599, 600)  # one came after the week's end
    assert bool(evidence(world)["breached"]) == bool(shift)


@pytest.mark.parametrize("where", ["served", "restated"])
def test_a_feed_that_is_broken_for_either_is_broken(world: World, where: str) -> None:
    """Batch is what a model learns from; what was served is what the user got."""
    whole = points(week(10), seed=10)
    broken = emptied(whole, "x3")
    world.score(10, broken if where == "restated" else whole)
    world.answer(10, broken if where == "served" else whole)
    assert decided(world) == ["block"]
    found = [measure for measure in world.rows("drift") if measure["status"] == "breach"]
    assert [(measure["feature"], measure["measure"], measure["basis"]) for measure in found] == [
        ("x3", "missing_share", where)
    ]


def test_answers_of_a_version_that_is_not_champion_count_until_the_champion_begins_to_answer(world: World) -> None:
    """Version 2 is champion from week 11 on and answers from its third day on; what version 1 said is not its own."""
    world.outside.registry.profile_of["2"] = profiling.make_profile(training(), world.use_case)  # type: ignore[attr-defined]
    world.outside.registry.lost.add("1")  # type: ignore[attr-defined]
    world.champion("2", week(11).start)
    world.score(11, version="2")
    world.answer(11, version="2", by="1", score=AWRY)
    assert decided(world) == ["retrain"]
    [row] = world.rows("served_performance")
    assert (row["model_version"], row["versions"]) == ("2", {"1": row["answered"]})
    assert (row["restated"], row["restated_metrics"]) == (0, {})  # no score of version 1, and no bundle to make one
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "truncate drift, performance, served_performance, expected_performance, recalibrations, decisions, retrains"
        )
        at.execute(
            "update answers_in_time set model_version = '2', score = 1 - score where prediction_time >= %s",
            (week(11).start + 2 * (week(11).end - week(11).start) / 7,),
        )
    assert decided(world) == ["ignore"]
    [row] = world.rows("served_performance")
    assert (row["is_judged"], row["versions"]) == (True, {"2": row["answered"]})
    assert row["window_start"] > week(11).start
    assert row["restated_metrics"] == row["metrics"]


def test_events_that_nobody_answered_once_the_champion_answers_lower_the_coverage(world: World) -> None:
    """The window begins with a label lag of silence."""
    world.use_case = monitored(world.use_case, performance_days=7)
    for number, share in ((10, 0.8), (11, 1.0)):
        world.score(number)
        world.answer(number, share=share)
    decided(world)
    row = max(world.rows("served_performance"), key=lambda each: each["window_end"])
    assert row["window_start"] == week(11).start - timedelta(hours=26)
    assert row["coverage"] == pytest.approx(1 - 26 / 168, abs=0.01)
    assert not row["is_judged"]


def test_labels_that_come_late_restate_what_was_served_too(world: World) -> None:
    outcomes = world.score(10)
    world.answer(10)
    late = outcomes["entity_key"].to_pylist()[:300]
    world.outside.warehouse.execute(
        "update outcomes set label_time = %s where entity_key = any(%s)",
        (week(11).start + (week(1).end - week(1).start) / 2, late),
    )
    assert decided(world) == ["alert"]
    [row] = world.rows("served_performance")
    world.score(11)
    world.answer(11)
    assert decided(world) == ["ignore"]
    stated = [each for each in world.rows("served_performance") if each["window_end"] == row["window_end"]]
    assert sorted(each["labelled"] for each in stated) == [row["labelled"], row["labelled"] + 300]


def test_a_rerun_comes_to_the_same_rows_whatever_was_answered_since(world: World) -> None:
    """What was served by a data time is a fact of its own: what comes later changes nothing about it."""

    def left() -> dict[str, list[dict[str, Any]]]:
        return {
            table: [{k: v for k, v in row.items() if not k.endswith("_at")} for row in world.rows(table)]
            for table in STORED
        }

    world.score(10)
    world.answer(10, score=AWRY, share=0.95)
    assert decided(world) == ["retrain"]
    before = left()
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "truncate drift, performance, served_performance, expected_performance, recalibrations, decisions, retrains"
        )
        at.execute(
            "insert into answers_in_time select use_case, entity_key, event_time, prediction_time, model_version,"
            " score, null, false, '{}', 'later', 0, null, %s, now(), true from predictions on conflict do nothing",
            (week(11).end,),
        )
    assert decided(world) == ["retrain"]
    assert left() == before


def test_what_a_version_without_batch_scores_answered_is_scored_again_by_that_version(first: Room) -> None:
    """Version 1 is champion; version 2 answered in its place, and batch never asked it."""
    room, table = first, first.table
    snapshot = planted.dataset(room.outside, room.use_case, table)
    with room.outside.warehouse.transaction() as at:
        for row in table.to_pylist():
            key = (row["entity_key"], row["event_time"])
            at.execute(
                "insert into predictions (use_case, entity_key, event_time, model_version, prediction_time, score,"
                " snapshot_version) values ('flights', %s, %s, '1', %s, 0.5, %s)",
                (*key, row["prediction_time"], snapshot.version),
            )
            at.execute(
                "insert into outcomes values ('flights', %s, %s, %s, %s)", (*key, row["label"], row["label_time"])
            )
            at.execute(
                "insert into answers_in_time values ('flights', %s, %s, %s, '2', 0.25, null, false, '{}', 'due', 0,"
                " null, %s, now(), true)",
                (*key, row["prediction_time"], row["prediction_time"]),
            )
    found = served.measure_served_window(
        room.use_case, "1", Interval(snapshot.start, snapshot.end), room.outside,
        as_of=snapshot.end.replace(year=2014), snapshot_version=snapshot.version,
    )  # fmt: skip
    again = load_batch_predictor(room.use_case, "2", room.outside).predict(table)
    assert (found.restated, found.versions) == (table.num_rows, {"2": table.num_rows})
    expected = compute_metrics("binary", again, table["label"].to_numpy())
    assert found.restated_metrics == pytest.approx(expected, abs=1e-9)
    assert found.performance.metrics["brier"] != found.restated_metrics["brier"]
