"""Monitoring on a real PostgreSQL and S3: one decision a partition, a broken feed pages, late labels restate."""

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from adapters.connect import Outside
from adapters.errors import FencedOut
from adapters.warehouse import Warehouse
from features import FeatureSet
from pipeline.spec import UseCase
from tasks.build_features import profile as profiling
from tasks.build_features.learnt_features import UncomputableFeatures, load_learnt_definition
from tasks.common.ledger import Champion
from tasks.monitor import decisions, drift_report, monitor, performance, recalibration
from tasks.monitor.observed import Action, Decision, TriageCode
from tests.tasks import killed
from tests.tasks.watched import NUMBERS, ROWS, WEEK, World, decided, emptied, monitored, points, training, week

TABLES = ("drift", "performance", "served_performance", "expected_performance", "decisions", "retrains", "alerts")


@pytest.fixture
def world(use_case: UseCase, outside: Outside, tmp_path: Path) -> World:
    return World(use_case=monitored(use_case, limits={"auc": {"min": 0.5}}), outside=outside, folder=tmp_path / "data")


def test_a_healthy_week_is_ignored_with_measures_performance_and_a_report(world: World) -> None:
    world.score(10)
    [found] = monitor.monitor_partitions(world.use_case, world.outside)
    assert (found.decision, found.as_of, found.model_version) == ("ignore", week(10).end, "1")
    assert found.decision_id == "flights-20130318T0000"
    measures = world.rows("drift")
    assert {m["measure"] for m in measures} == {"psi", "missing_share", "score_psi"}
    assert {m["status"] for m in measures} == {"ok"}
    [row] = world.rows("performance")
    assert row["window_end"] == week(10).end - timedelta(hours=26)
    assert row["window_end"] - row["window_start"] == timedelta(days=14)
    assert row["coverage"] == 1
    assert set(row["metrics"]) == {"log_loss", "auc", "pr_auc", "brier", "calibration_gap"}
    assert found.report_uri is not None
    assert not world.outside.lake.exists(found.report_uri), "nothing waits for it"
    assert drift_report.draw_reports(world.use_case, world.outside) == 1
    assert b"<html" in world.outside.lake.read(found.report_uri)
    assert drift_report.draw_reports(world.use_case, world.outside) == 0
    assert world.rows("alerts") == []


def test_a_structural_feature_that_the_model_does_not_have_is_refused_by_name(world: World) -> None:
    world.score(10)
    wrong = monitored(world.use_case, structural_features=("carrier", "runway"))
    with pytest.raises(
        ValueError, match=r"structural_features of flights names \['runway'\], which version 1 does not"
    ):
        monitor.monitor_partitions(wrong, world.outside)
    assert world.rows("decisions") == []
    assert decided(world) == ["ignore"]


def test_what_a_version_learnt_is_loaded_once_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    def load(use_case: UseCase, version: str, outside: Outside) -> FeatureSet:
        loaded.append(version)
        return load_learnt_definition(use_case, version, outside)

    monkeypatch.setattr(monitor, "load_learnt_definition", load)
    for number in (10, 11):
        world.score(number)
    assert decided(world) == ["ignore", "ignore"]
    assert loaded == ["1"]


def test_running_again_writes_nothing(world: World) -> None:
    for number, shift in ((10, 0.0), (11, 1.0), (12, 1.0)):
        world.score(number, shift=shift)
    assert decided(world) == ["ignore", "ignore", "retrain"]
    before = {table: world.rows(table) for table in TABLES}
    assert monitor.find_undecided(world.use_case, world.outside) == []
    assert decided(world) == []
    assert {table: world.rows(table) for table in TABLES} == before


def test_one_run_of_three_weeks_decides_as_three_runs_do(world: World) -> None:
    weeks = {10: 0.0, 11: 1.0, 12: 1.0}
    one_by_one = []
    for number, shift in weeks.items():
        world.score(number, shift=shift)
        one_by_one += decided(world)
    reasons = [row["reasons"] for row in world.rows("decisions")]
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "truncate drift, performance, served_performance, expected_performance, recalibrations, decisions, retrains"
        )
    assert decided(world) == one_by_one
    assert [row["reasons"] for row in world.rows("decisions")] == reasons


def test_no_week_is_decided_before_the_one_before_it_is_scored(world: World) -> None:
    """Shares of a backfill end in any order."""
    for number in (10, 12):
        world.score(number)
    keys = [world.use_case.grid.key(week(number)) for number in (10, 11, 12)]
    world.outside.warehouse.execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values (%s, 's', '-', %s, %s, 3, 0, %s)",
        (world.use_case.name, week(10).start, week(12).end, json.dumps({key: {"inputs": "i"} for key in keys})),
    )
    assert decided(world) == ["ignore"]
    world.score(11)
    assert decided(world) == ["ignore", "ignore"]


def test_persistent_drift_writes_a_pending_retrain_and_a_warning(world: World) -> None:
    for number in (10, 11):
        world.score(number, shift=1.0)
    assert decided(world) == ["ignore", "retrain"]
    [retrain] = world.rows("retrains")
    assert (retrain["decision_id"], retrain["state"]) == ("flights-20130325T0000", "pending")
    [alert] = world.rows("alerts")
    assert alert["tier"] == "warning"
    assert "x0" in alert["body"]
    assert alert["delivered_at"] is not None


@pytest.mark.parametrize("columns", [["x3"], [*NUMBERS, "carrier"]])
def test_a_broken_feed_pages_and_never_retrains(world: World, columns: list[str]) -> None:
    """The weeks before drifted, so that a gate that did not stop here would retrain."""
    world.score(10, shift=1.0)
    for number in (11, 12):
        world.score(number, emptied(points(week(number), seed=number, shift=1.0), *columns))
    assert decided(world) == ["ignore", "block", "block"]
    assert world.rows("retrains") == []
    [alert] = world.rows("alerts")
    assert (alert["tier"], alert["occurrences"], alert["resolved_at"]) == ("critical", 2, None)
    assert "x3" in alert["body"]
    world.score(13)
    assert decided(world) == ["ignore"]
    assert world.rows("alerts")[0]["resolved_at"] is not None


def test_a_feature_that_is_stuck_blocks_by_name_and_the_next_week_is_judged_without_it(world: World) -> None:
    """None of its values is missing; and were this week taken for a healthy one, the next could be as it likes."""

    def stuck(number: int) -> pa.Table:
        table = points(week(number), seed=number)
        return table.set_column(table.column_names.index("x3"), "x3", pa.array(np.full(table.num_rows, 0.5)))

    for number in range(10, 15):
        world.score(number, stuck(number) if number in (12, 14) else None)
    assert decided(world) == ["ignore", "ignore", "block", "ignore", "block"]
    tenth, _, first, second, third = sorted(world.rows("decisions"), key=lambda row: row["as_of"])
    assert tenth["evidence"]["faults"] is None, "of ten partitions nobody can tell"
    assert first["reasons"] == ["broken feed: x3: 100% of it is 0.5, at most 0% before"]
    assert first["evidence"]["codes"] == ["broken-feed"]
    assert first["evidence"]["faults"] == third["evidence"]["faults"] != []
    assert second["evidence"]["faults"] == []


def test_the_same_weeks_with_the_feed_whole_retrain(world: World) -> None:
    for number in (10, 11, 12):
        world.score(number, shift=1.0)
    assert decided(world)[:2] == ["ignore", "retrain"]


def test_the_reference_is_what_the_champion_was_trained_on_not_the_data_itself(world: World) -> None:
    """A comparison of data with itself, or with the drifted week before, would find nothing."""
    for number in (10, 11, 12, 13):
        world.score(number, shift=1.0)
    decided(world)
    values = world.outside.warehouse.query("select value from drift where feature = 'x0' and measure = 'psi'")
    assert len(values) == 4
    assert min(row["value"] for row in values) > 0.5


def test_too_few_rows_alert(world: World) -> None:
    world.score(10)
    world.score(11, points(week(11), seed=1, rows=200))
    assert decided(world) == ["ignore", "alert"]
    assert "unknown" in world.rows("decisions")[1]["reasons"][0]


def test_a_table_of_few_rows_is_not_unknown_for_ever(world: World) -> None:
    """Of 200 rows a week three are judged together: unknown until there are three, and then a shift is found."""
    world.use_case = monitored(world.use_case, min_labelled=50)
    small = profiling.make_profile(training(rows=200, weeks=12), world.use_case)
    world.outside.registry.profile_of["1"] = small  # type: ignore[attr-defined]
    for number in range(10, 15):
        world.score(number, rows=200)
    assert decided(world) == ["alert", "alert", "ignore", "ignore", "ignore"]
    for number in range(15, 21):
        world.score(number, rows=200, shift=1.0)
    found = decided(world)
    assert "retrain" in found
    assert found.index("retrain") >= 3, "a second look that shares no week with the first"
    drifts = world.outside.warehouse.query(
        "select status, count(*) as n from drift where as_of = %s group by 1", (week(12).end,)
    )
    assert {row["status"] for row in drifts} == {"ok"}


def test_sabotage_of_weeks_judged_alone_nothing_is_ever_known(world: World) -> None:
    world.use_case = monitored(world.use_case, min_labelled=50)
    small = profiling.make_profile(training(rows=200, weeks=12), world.use_case)
    world.outside.registry.profile_of["1"] = {k: v for k, v in small.items() if k != profiling.TOGETHER}  # type: ignore[attr-defined]
    for number in range(10, 15):
        world.score(number, rows=200)
    assert decided(world) == ["alert"] * 5


def test_performance_uses_only_labels_known_by_then(world: World) -> None:
    world.score(10, labelled=1.0)
    world.score(11, labelled=1.0)
    decided(world)
    first, second = sorted(world.rows("performance"), key=lambda row: row["measured_as_of"])
    assert first["labelled"] == first["predicted"] < ROWS  # the last day has not matured
    assert second["predicted"] > ROWS


def test_late_labels_restate_and_are_not_dropped(world: World) -> None:
    """Labels told ten days late, far over the label delay of a day, are counted from then on."""
    outcomes = world.score(10)
    late = outcomes["entity_key"].to_pylist()[:300]
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "update outcomes set label_time = %s where entity_key = any(%s)", (week(11).end - timedelta(days=4), late)
        )
    assert decided(world) == ["alert"]
    [row] = world.rows("performance")
    assert row["status"] == "unknown"
    assert row["labelled"] == row["predicted"] - 300
    world.score(11)
    assert decided(world) == ["ignore"]
    window = (row["window_start"], row["window_end"])
    stated = [r for r in world.rows("performance") if (r["window_start"], r["window_end"]) == window]
    assert [r["labelled"] for r in sorted(stated, key=lambda r: r["measured_as_of"])] == [
        row["labelled"],
        row["predicted"],
    ]
    assert max(stated, key=lambda r: r["measured_as_of"])["status"] == "ok"
    world.score(12)
    decided(world)
    assert len([r for r in world.rows("performance") if (r["window_start"], r["window_end"]) == window]) == 2


def test_labels_whose_rows_arrive_late_restate_too(world: World) -> None:
    """Their label_time is old, but the warehouse did not have them when the window was measured."""
    world.score(10, labelled=0.5)
    decided(world)
    world.score(11)
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "insert into outcomes select use_case, entity_key, event_time, 0, prediction_time + interval '5 hours'"
            " from predictions p where prediction_time < %s on conflict do nothing",
            (week(10).end,),
        )
    decided(world)
    stated = [row for row in world.rows("performance") if row["window_end"] < week(10).end]
    assert sorted(row["coverage"] for row in stated)[-1] == 1
    assert len(stated) == 2


@pytest.mark.parametrize("corrected", [0, 1, 2])
def test_corrected_label_values_restate_and_the_same_values_do_not(world: World, corrected: int) -> None:
    """As many labels as before; where two are swapped, their sum is as before too."""
    world.score(10)
    decided(world)
    world.score(11)
    found = [
        world.outside.warehouse.query(
            "select entity_key, label from outcomes where label = %s order by entity_key limit 1", (label,)
        )[0]
        for label in (0.0, 1.0)
    ]
    with world.outside.warehouse.transaction() as at:
        for number, row in enumerate(found):
            label = 1 - row["label"] if number < corrected else row["label"]
            at.execute("update outcomes set label = %s where entity_key = %s", (label, row["entity_key"]))
    decided(world)
    stated = [row for row in world.rows("performance") if row["window_end"] < week(10).end]
    assert len(stated) == (2 if corrected else 1)
    assert len({row["labelled"] for row in stated}) == 1
    assert len({str(row["metrics"]) for row in stated}) == len(stated)


def test_metrics_take_the_scores_in_order_however_the_rows_lie(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last bits of a sum depend on its order: keys sort as text ('-10' before '-2'), times do not."""
    world.score(10)
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "create temporary table shuffled on commit drop as select * from predictions order by md5(entity_key)"
        )
        at.execute("truncate predictions")
        at.execute("insert into predictions select * from shuffled")
    taken: list[list[float]] = []
    monkeypatch.setattr(performance, "compute_metrics", lambda _kind, score, _label: taken.append(score.tolist()) or {})
    window = performance.trailing_window(world.use_case, week(10).end)
    performance.measure_window(world.use_case, "1", window, week(10).end, world.outside)
    scores = np.random.default_rng(10).beta(2, 6, ROWS).tolist()  # as World.score makes them, in order of time
    assert taken == [scores[: len(taken[0])]]


def test_a_new_champion_is_measured_by_its_own_profile_and_the_old_one_goes_on_being_judged(world: World) -> None:
    world.score(10, shift=1.0)
    world.champion("2", week(11).start)
    world.outside.registry.profile_of["2"] = profiling.make_profile(training(1, shift=1.0), world.use_case)  # type: ignore[attr-defined]
    world.score(11, shift=1.0, version="2")
    assert decided(world) == ["ignore", "ignore"]
    latest = world.outside.warehouse.query(
        "select feature from drift where model_version = '2' and status = 'breach' and measure = 'psi'"
    )
    assert latest == []
    versions = {row["model_version"] for row in world.rows("performance") if row["measured_as_of"] == week(11).end}
    assert versions == {"1", "2"}


def test_age_and_volume_count_from_when_a_champion_was_trained_also_after_a_rollback_to_it(world: World) -> None:
    born = week(10).start
    world.score(10)
    world.champion("2", week(11).start)
    world.outside.registry.profile_of["2"] = world.outside.registry.profile_of["1"]  # type: ignore[attr-defined]
    world.score(11, version="2")
    world.champion("1", week(12).start)  # a rollback
    world.score(12)
    decided(world)
    query = "select evidence from decisions order by as_of"
    told = [row["evidence"] for row in world.outside.warehouse.query(query)]
    births = [datetime.fromisoformat(each["champion_born_at"]) for each in told]
    assert births == [born, week(11).start, born]
    assert [each["new_rows"] for each in told] == pytest.approx([ROWS, ROWS, 3 * ROWS], abs=0.05 * ROWS)


def test_a_recalibrated_champion_is_judged_by_all_that_its_network_answered(world: World) -> None:
    world.score(10, shift=1.0)
    assert decided(world) == ["ignore"]
    world.recalibrate("2", "1", week(11).start)
    world.score(11, version="2", shift=1.0)
    assert decided(world) == ["retrain"], "drift that persists, whichever number was added to the answers"
    first, second = sorted(world.rows("performance"), key=lambda row: row["measured_as_of"])
    assert (first["model_version"], second["model_version"]) == ("1", "1")
    assert second["window_start"] == first["window_start"] + WEEK
    assert second["predicted"] - first["predicted"] == pytest.approx(ROWS, abs=2), "both weeks, by both versions"
    told = world.outside.warehouse.query("select model_version, evidence from decisions order by as_of")
    assert [row["model_version"] for row in told] == ["1", "2"]
    assert [row["evidence"]["network_version"] for row in told] == ["1", "1"]
    assert {row["evidence"]["champion_born_at"] for row in told} == {week(10).start.isoformat()}
    world.score(12, version="2")
    decided(world)
    assert len(world.rows("performance")) == 3, "nothing is restated: no label has changed"


@pytest.mark.parametrize("is_recalibrated", [True, False])
def test_what_a_recalibration_adds_is_no_drift_of_the_score(world: World, *, is_recalibrated: bool) -> None:
    """Drift is of what the network answers: else each recalibration would look like one."""
    world.score(10)
    decided(world)
    world.recalibrate("2", "1", week(11).start)
    world.score(11, version="2")
    added = 1.5
    world.outside.warehouse.execute(
        "update predictions set score = score * exp(%s) / (1 - score + score * exp(%s)) where model_version = '2'",
        (added, added),
    )
    if is_recalibrated:
        world.outside.warehouse.execute("update recalibrations set intercept = %s", (added,))
    decided(world)
    [row] = world.outside.warehouse.query(
        "select status from drift where feature = 'score' and measure = 'score_psi' and as_of = %s", (week(11).end,)
    )
    assert row["status"] == ("ok" if is_recalibrated else "breach")


def test_a_recalibration_that_was_asked_for_is_work_though_every_partition_is_decided(world: World) -> None:
    world.score(10)
    assert monitor.is_due(world.use_case, world.outside)
    decided(world)
    assert not monitor.is_due(world.use_case, world.outside)
    world.outside.warehouse.execute(
        "insert into recalibrations (decision_id, use_case, network_version, as_of, intercept, evidence, state)"
        " select decision_id, use_case, '1', as_of, 0.1, '{}', 'pending' from decisions"
    )
    assert monitor.is_due(world.use_case, world.outside)


def test_a_champion_whose_past_cannot_be_computed_is_decided_on_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UncomputableFeatures("clean data of weeks ago are gone")

    monkeypatch.setattr(recalibration, "measure_intercept", fail)
    champion = Champion(
        use_case="flights", version="1", previous_version=None, revision=1, as_of=week(10).start, network_version="1"
    )
    monkeypatch.setattr(recalibration, "current", lambda *_: champion)
    world.score(10)
    assert decided(world) == ["ignore"]


def test_sabotage_a_version_that_is_no_recalibration_is_judged_by_its_own_rows_alone(world: World) -> None:
    world.score(10, shift=1.0)
    decided(world)
    world.champion("2", week(11).start)
    world.outside.registry.profile_of["2"] = world.outside.registry.profile_of["1"]  # type: ignore[attr-defined]
    world.score(11, version="2", shift=1.0)
    assert decided(world) == ["ignore"]
    assert {row["model_version"] for row in world.rows("performance")} == {"1", "2"}


def test_a_partition_scored_by_another_than_the_champion_in_force_is_not_decided_on(world: World) -> None:
    world.score(10, version="7")
    assert monitor.find_undecided(world.use_case, world.outside) == []


def test_before_the_first_champion_nothing_is_pending(world: World) -> None:
    world.score(9)
    assert monitor.find_undecided(world.use_case, world.outside) == []


def test_a_run_that_was_overtaken_writes_nothing(world: World) -> None:
    world.score(10)
    [work] = monitor.find_undecided(world.use_case, world.outside)
    model = monitor.load_watched_model(world.use_case, "1", world.outside)
    found = monitor.examine_partition(world.use_case, work, model, [], world.outside)
    fence = world.outside.warehouse.begin("monitor/flights")
    world.outside.warehouse.begin("monitor/flights")
    decision = Decision(decision=Action.BLOCK, codes=(TriageCode.BROKEN_FEED,), reasons=("late orphan",))
    with pytest.raises(FencedOut):
        decisions.write_decision(world.use_case, found, decision, world.outside, fence=fence)
    assert [world.rows(table) for table in TABLES] == [[]] * len(TABLES)


def test_a_commit_whose_answer_was_lost_is_done_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second attempt finds the decision there; refused by the tables it would be a mistake, and never retried."""
    write, retry = decisions.write_decision, Warehouse.retry_transaction

    def lose_answer(warehouse: Warehouse, work: Any) -> Any:
        retry(warehouse, work)
        return retry(warehouse, work)

    def write_twice(*work: Any, **fenced: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Warehouse, "retry_transaction", lose_answer)
            write(*work, **fenced)

    monkeypatch.setattr(decisions, "write_decision", write_twice)
    world.score(10)
    assert decided(world) == ["ignore"]
    assert [len(world.rows(table)) for table in ("decisions", "performance")] == [1, 1]


_CHILD = """
from pathlib import Path
from adapters.alerts import Alerts
from tasks.build_features import profile as profiling
from tasks.monitor import decisions, drift, drift_report, monitor
from tests.tasks.watched import Registry, Versions, monitored, training
case = monitored(use_cases(settings().params)["flights"], limits={"auc": {"min": 0.5}})
outside.__dict__["registry"] = Registry({"1": profiling.make_profile(training(), case)})
outside.__dict__["versions"] = Versions(Path(FOLDER))
write, write_alert = decisions.write_decision, decisions._write_alert
def write_and_die(case, found, decision, outside, *, fence):
    write(case, found, decision, outside, fence=fence)
    if decision.decision == "retrain": die()
def die_before_the_alert(at, case, found, decision, outside):
    die() if decision.decision == "retrain" else write_alert(at, case, found, decision, outside)
if POINT == "before the commit": decisions._write_alert = die_before_the_alert
if POINT == "after the commit": decisions.write_decision = write_and_die
if POINT == "while measuring": drift.measure_drift = die
monitor.monitor_partitions(case, outside)
"""


@pytest.mark.parametrize(("point", "done"), [("while measuring", 0), ("before the commit", 1), ("after the commit", 2)])
def test_a_run_killed_at_any_point_and_run_again_leaves_the_same_rows(world: World, point: str, done: int) -> None:
    """The second of two drifted weeks asks for a retrain; its alert is delivered by whoever comes next."""

    def left() -> dict[str, list[dict[str, object]]]:
        return {
            table: [
                {k: v for k, v in row.items() if k != "alert_id" and not k.endswith("_at")} for row in world.rows(table)
            ]
            for table in TABLES
        }

    for number in (10, 11):
        world.score(number, shift=1.0)
    killed.run(world.outside.settings, f"FOLDER, POINT = {str(world.folder)!r}, {point!r}\n" + _CHILD, killed=True)
    assert len(world.rows("decisions")) == done
    assert len(world.rows("retrains")) == (done == 2)
    assert decided(world) == ["ignore", "retrain"][done:]
    assert [alert["delivered_at"] is not None for alert in world.rows("alerts")] == [True]
    interrupted = left()
    with world.outside.warehouse.transaction() as at:
        at.execute(
            "truncate drift, performance, served_performance, expected_performance, recalibrations, decisions,"
            " retrains, alerts"
        )
    assert decided(world) == ["ignore", "retrain"]
    assert left() == interrupted


def test_a_partition_that_came_late_never_retrains(world: World) -> None:
    for number in (10, 11, 13):
        world.score(number, shift=0.0 if number == 13 else 1.0)
    with world.outside.warehouse.transaction() as at:
        at.execute("delete from scorings where partition_start = %s", (week(11).start,))
    assert decided(world) == ["ignore", "ignore"]
    with world.outside.warehouse.transaction() as at:
        at.execute("insert into scorings values ('flights', %s, '1', 'i', 's', %s)", (week(11).start, ROWS))
    assert decided(world) == ["alert"]
    assert world.rows("retrains") == []


def test_the_trailing_window_ends_a_label_lag_before_the_decision(use_case: UseCase) -> None:
    as_of = datetime.fromisoformat("2013-04-08T00:00:00+00:00")
    window = performance.trailing_window(use_case, as_of)
    assert as_of - window.end == use_case.time.lead + use_case.time.label_delay
    assert window.end - window.start == 2 * WEEK
