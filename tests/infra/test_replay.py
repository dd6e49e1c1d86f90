"""What the replay measures and shows."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from adapters.connect import Outside
from infra.replay import flights_source, incident, plots
from infra.replay.__main__ import _check_answers, _check_ledger, _check_online, _check_promises
from infra.replay.api import AirflowApi
from infra.replay.drive import Replay
from infra.replay.flights_source import FLIGHTS_REPLAYED
from infra.replay.in_time import AnsweredWeek, compare_scores
from infra.replay.ledger_summary import summarise_ledger
from infra.replay.live_source import LiveSource
from infra.replay.measures import ReplayedWeek, score_metrics
from infra.replay.online import OnlineSummary, Parity
from infra.replay.plots import choose_mark
from infra.replay.progress import ReplayProgress
from infra.replay.report import format_answers, format_weeks
from infra.replay.state import ReplayError, ReplayState
from infra.replay.traffic import ClientTally, Traffic
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tests.tasks.server_room import crown

WEEK = Interval(datetime(2013, 1, 7, tzinfo=UTC), datetime(2013, 1, 14, tzinfo=UTC))


def week(decision: str, outcome: str | None = None) -> ReplayedWeek:
    measured = {"log_loss": 0.4, "auc": 0.7}
    return ReplayedWeek(
        start=WEEK.start,
        end=WEEK.end,
        rows=10,
        labelled=9,
        live_version="1",
        frozen=measured,
        live=measured,
        decision=decision,
        reasons=[],
        retrain_outcome=outcome,
    )


def test_a_recalibrated_week_is_marked_where_nothing_greater_happened() -> None:
    quiet, retrained, blocked = week("ignore"), week("retrain", "promoted"), week("block")
    marks = [choose_mark(replace(each, recalibrated=True)) for each in (quiet, retrained, blocked)]
    assert marks == ["recalibrated", "promoted", "blocked"]
    assert choose_mark(quiet) is None
    assert format_weeks([replace(quiet, recalibrated=True)]).endswith("  ignore, recalibrated")


def test_a_perfect_ranking_has_auc_one_and_a_better_score_a_lower_log_loss() -> None:
    label = np.array([0.0, 0.0, 1.0, 1.0])
    good, bad = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.4, 0.6, 0.5, 0.6])
    assert score_metrics(("auc",), label, good) == {"auc": 1.0}
    assert score_metrics(("log_loss",), label, good)["log_loss"] < score_metrics(("log_loss",), label, bad)["log_loss"]


def test_a_broken_feed_empties_one_week_once_and_is_mended_to_what_was_there(outside: Outside) -> None:
    assert incident.list_incidents(outside.source) == []
    flights_source.create_source_tables(outside.source)
    with outside.source.transaction() as at:
        at.execute(
            "insert into weather (origin, observed_at, temp_f, known_at) values "
            "('EWR', '2013-01-08 00:00+00', 40, '2013-01-08 00:10+00'), "
            "('EWR', '2013-01-15 00:00+00', 41, '2013-01-15 00:10+00')"
        )
    before = outside.source.query("select * from weather order by known_at")
    first = incident.break_feed(outside.source, WEEK, "2013-01-07")
    assert incident.break_feed(outside.source, WEEK, "2013-01-07") == first
    assert [row["temp_f"] for row in outside.source.query("select * from weather order by known_at")] == [None, 41]
    with incident.restored_feed(outside.source, "2013-01-07"):
        assert outside.source.query("select * from weather order by known_at") == before
    assert [known.state for known in incident.list_incidents(outside.source)] == ["mended"]
    incident.break_feed(outside.source, WEEK, "2013-01-07")
    assert outside.source.query("select * from weather order by known_at") == before


def test_the_verdict_on_a_retrain_is_the_gates_and_not_a_step_of_what_follows(
    outside: Outside, use_case: UseCase
) -> None:
    said = {"hold": "not better", "promote": "better", "approve": "Ada", "deploy": "the champion was promoted"}
    with outside.warehouse.transaction() as at:
        at.execute(
            "insert into decisions (decision_id, use_case, as_of, model_version, decision, reasons, evidence) "
            "values ('d', %s, %s, '1', 'retrain', '{}', '{}')",
            (use_case.name, WEEK.end),
        )
        for action, reason in said.items():
            at.execute(
                "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence) "
                "values (%s, %s, '2', %s, 'test', %s, '{}')",
                (use_case.name, action, WEEK.end, reason),
            )
    state = ReplayState(use_case=use_case, outside=outside)
    assert [state.find_ledger_entry(decision)["reason"] for decision in ("d", None)] == ["better", "not better"]


DAY = timedelta(days=1)
BROKEN = incident.Incident(partition_key="2013-01-07", table_name="weather", what="empty", rows=1, state="mended")


@pytest.mark.parametrize("decision", ["ignore", "alert", "retrain"])
def test_the_demo_fails_where_the_broken_feed_was_not_blocked(decision: str) -> None:
    with pytest.raises(ReplayError, match=f"broken feed of 2013-01-07 led to '{decision}'"):
        _check_promises(FLIGHTS_REPLAYED, [week(decision)], [BROKEN], DAY)
    _check_promises(FLIGHTS_REPLAYED, [week("block")], [BROKEN], DAY)


def test_a_feed_that_was_broken_for_hours_need_not_be_blocked_and_may_not_retrain() -> None:
    paged = replace(BROKEN, paged_at=WEEK.start + DAY / 12)
    _check_promises(FLIGHTS_REPLAYED, [week("ignore")], [paged], DAY / 4)
    with pytest.raises(ReplayError, match="led to 'retrain'"):
        _check_promises(FLIGHTS_REPLAYED, [week("retrain", "held")], [paged], DAY / 4)
    with pytest.raises(ReplayError, match="led to 'ignore'"):
        _check_promises(FLIGHTS_REPLAYED, [week("ignore")], [paged], DAY)


def test_the_demo_fails_where_no_retrain_was_check_promisesd_in_eight_weeks() -> None:
    with pytest.raises(ReplayError, match="no retrain was judged"):
        _check_promises(FLIGHTS_REPLAYED, [week("ignore")] * 8, [], DAY)
    _check_promises(FLIGHTS_REPLAYED, [*[week("ignore")] * 7, week("retrain", "held")], [], DAY)


def test_what_could_not_be_measured_is_shown_first() -> None:
    picture = plots.plot_drift([WEEK.start], {"steady": [0.1], "gone": [math.nan]}, most=1)
    assert "gone" in picture
    assert "steady" not in picture


def answered_week(**changes: int) -> AnsweredWeek:
    counts = {"events": 100, "answered": 100, "in_time": 90, "knew_all": 50, "degraded": 0, "compared": 0} | changes
    ages = {"age_minutes_p50": 0.0, "age_minutes_p99": 5.0, "delay_minutes_p99": 10.0}
    return AnsweredWeek(start=WEEK.start, metrics={}, **counts, **ages)  # type: ignore[arg-type]


def test_the_demo_fails_where_an_event_was_never_answered_or_none_in_time() -> None:
    with pytest.raises(ReplayError, match="of 100 events of 07 Jan 1 were never answered"):
        _check_answers([answered_week(), answered_week(answered=99)])
    with pytest.raises(ReplayError, match="no event was answered in time"):
        _check_answers([answered_week(in_time=0)])
    _check_answers([answered_week(in_time=0), answered_week()])
    _check_answers([])


def test_the_demo_says_why_served_features_differ_and_fails_where_one_has_no_cause(
    outside: Outside, use_case: UseCase
) -> None:
    insert = (
        "insert into served_partitions (use_case, partition_start, snapshot_version, seen, answers, unlogged, compared,"
        " equal, causes) values ('flights', %s, 's', 'x', 10, 0, 550, 547, %s)"
    )
    outside.warehouse.execute(insert, (WEEK.start, '{"stream_behind": 2, "record_late": 1}'))
    explained = summarise_ledger(use_case, outside)
    assert explained.describe() == "10 answers in time, 550 features beside batch's: stream_behind 2, record_late 1"
    _check_ledger(explained)
    outside.warehouse.execute(insert, (WEEK.end, '{"defect": 3}'))
    with pytest.raises(ReplayError, match="3 served features differ from batch's without a proved cause"):
        _check_ledger(summarise_ledger(use_case, outside))


def test_a_week_whose_answers_all_came_out_alike_has_no_metrics_and_the_report_goes_on() -> None:
    names, scores = ("auc", "log_loss"), {which: [0.2, 0.3, 0.4] for which in ("in_time", "restated", "last_partition")}
    assert compare_scores("binary", names, scores, np.array([0.0, 0.0, 0.0])) == {}
    assert compare_scores("binary", names, {which: [] for which in scores}, np.array([])) == {}
    told = compare_scores("binary", names, scores, np.array([0.0, 0.0, 1.0]))
    assert told["in_time"]["auc"] == 1.0
    weeks = [answered_week(compared=3), replace(answered_week(compared=3), metrics=told)]
    assert format_answers(weeks).count("1.0000") == 6  # the week that has them, and all


def parity(**changes: float) -> Parity:
    same = {"rows": 1000, "features_compared": 55, "numbers_difference": 0.0, "categories_differing": 0}
    return Parity(version="1", degraded=0, **{**same, "score_difference": 1e-7, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({}, True),
        ({"score_difference": 2e-5}, False),
        ({"score_difference": math.nan}, False),
        ({"numbers_difference": math.inf}, False),
        ({"categories_differing": 1}, False),
        ({"rows": 0}, False),
    ],
)
def test_parity_holds_only_where_something_was_compared_and_nothing_differs(changes, holds) -> None:
    assert parity(**changes).holds(1e-5) is holds


@pytest.mark.parametrize(
    "asked",
    [
        ClientTally(steps=2, requests=100, failed=1),
        ClientTally(steps=2, requests=100, static=1),
        ClientTally(steps=2),
    ],
)
def test_a_request_without_a_models_answer_or_no_request_at_all_fails_the_demo(use_case, asked: ClientTally) -> None:
    served = OnlineSummary(request={}, answer={}, parity=parity(), answered=[])
    _check_online(use_case, served, ClientTally(steps=2, requests=100))
    _check_online(use_case, served, ClientTally())
    with pytest.raises(ReplayError):
        _check_online(use_case, served, asked)


class _Idle(AirflowApi):
    """An Airflow in which nothing runs."""

    def __init__(self) -> None:
        """Nobody is called."""

    def count_active_runs(self, dag_id: str) -> int:
        """None, of any DAG."""
        assert dag_id == "flights.train"
        return 0


class _AskedTraffic(Traffic):
    """Clients of whose requests only what they ask about matters: a version under way had enough of them."""

    def ask_about(self, start: datetime, end: datetime, *, per_second: float | None = None) -> None:
        self.asked = (start, end, per_second)
        self._outside.warehouse.execute("update deployments set outcome = 'full', finished_at = now()")


def replay_of(use_case: UseCase, outside: Outside) -> Replay:
    source = LiveSource(outside.source, flights_source.FLIGHTS_SOURCE)
    replay = Replay(use_case=use_case, replayed=FLIGHTS_REPLAYED, outside=outside, source=source, api=_Idle(),
                    progress=ReplayProgress())  # fmt: skip
    replay.traffic = _AskedTraffic(use_case, outside, source)
    return replay


def test_a_version_on_its_way_is_asked_about_until_it_has_arrived_and_one_that_has_is_not(
    outside: Outside, use_case: UseCase
) -> None:
    replay = replay_of(use_case, outside)
    replay._await_rollouts(WEEK)
    assert not hasattr(replay.traffic, "asked")
    outside.warehouse.execute(
        "insert into deployments (deployment_id, request_id, use_case, kind, version, revision, as_of, actor, reason,"
        " stage) values ('d', 'r', %s, 'rollout', '2', 2, %s, 'test', 'test', 'shadow')",
        (use_case.name, WEEK.end),
    )
    replay._await_rollouts(WEEK)
    assert replay.traffic.asked == (WEEK.start, WEEK.end, 40)  # type: ignore[attr-defined]


def test_a_replay_goes_on_from_its_own_first_champion_and_from_no_other(outside: Outside, use_case: UseCase) -> None:
    replay = replay_of(use_case, outside)
    crown(outside, use_case, "1", None, 1)
    [row] = outside.warehouse.query("select as_of from ledger")
    began = row["as_of"].astimezone(UTC)
    replay._train_first_champion(began)
    with pytest.raises(ReplayError, match=f"the first champion here is of {began:%d %b %Y}, and a replay from 06 May"):
        replay._train_first_champion(datetime(2013, 5, 6, tzinfo=UTC))
