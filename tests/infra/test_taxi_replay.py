"""The replay of taxi trips: data time goes on as it is asked, and what the report promises of a time is checked."""

import argparse
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from adapters.connect import Outside
from infra.replay.__main__ import _check_promises, _plan
from infra.replay.data_time import AskedTime
from infra.replay.flights_source import FLIGHTS_REPLAYED
from infra.replay.live_source import LiveSource
from infra.replay.measures import ReplayedWeek
from infra.replay.period_report import describe_periods, format_periods
from infra.replay.plots import choose_day_format
from infra.replay.replayed import Period, Replayed
from infra.replay.replays import DEFAULT, REPLAYS
from infra.replay.state import ReplayError
from infra.replay.taxi_source import TAXI_REPLAYED
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from tests.taxi_trips import day, made_tables

MADE = replace(TAXI_REPLAYED.source, read_rows=made_tables)
MONDAY = datetime(2019, 1, 7, tzinfo=UTC)


@pytest.fixture
def taxi() -> UseCase:
    return use_cases(REPOSITORY / "params.yaml")["taxi"]


def count_later(outside: Outside, moment: datetime) -> int:
    [row] = outside.source.query(
        "select (select count(*) from trips where known_at >= %s)"
        " + (select count(*) from dropoffs where known_at >= %s) as rows",
        (moment, moment),
    )
    return int(row["rows"])


def test_data_time_goes_on_as_far_as_it_is_asked_and_no_further(outside: Outside) -> None:
    source = LiveSource(outside.source, MADE)
    assert source.open(day(14))["trips"] > 500
    with AskedTime(source) as data_time:
        assert count_later(outside, day(14)) == 0
        assert data_time.has_reached(day(21))
        assert data_time.has_reached(day(21))
        assert source.told_until == day(21)
        assert count_later(outside, day(14)) > 500
        assert count_later(outside, day(21)) == 0
        assert data_time.has_reached(day(28))
        assert source.told_until == day(28)
    again = LiveSource(outside.source, MADE)
    again.open(day(14))
    assert again.told_until == day(28), "a replay that was stopped goes on where its source is"


def test_the_clocks_of_two_replays_are_their_own(outside: Outside) -> None:
    LiveSource(outside.source, MADE).open(day(7))
    [row] = outside.source.query("select to_regclass('data_clock') is null as free, told_until from trip_clock")
    assert (row["free"], row["told_until"]) == (True, day(7))


def asked(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(
        **{"weeks": 8, "train_until": None, "incident_week": None, "seconds_per_hour": None, "mended_after_hours": None}
        | changes
    )


def test_a_plan_is_of_the_replay_that_was_asked_for(use_case: UseCase, taxi: UseCase) -> None:
    plan = _plan(taxi, TAXI_REPLAYED, asked())
    assert (plan.first_as_of, plan.incident_week, plan.seconds_per_hour) == (
        datetime(2018, 7, 2, tzinfo=UTC),
        None,
        None,
    )
    assert _plan(taxi, TAXI_REPLAYED, asked(weeks=130)).weeks == 130
    with pytest.raises(ValueError, match="the data holds 130 weeks from 02 Jul 2018 on"):
        _plan(taxi, TAXI_REPLAYED, asked(weeks=131))
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"--mended-after-hours \S+: expected 0 to 10000"):
            _plan(use_case, FLIGHTS_REPLAYED, asked(mended_after_hours=wrong))
    for chosen in ({"use_case": taxi, "replayed": TAXI_REPLAYED}, {"use_case": use_case, "replayed": FLIGHTS_REPLAYED}):
        with pytest.raises(ValueError, match="no feed is broken in this replay"):
            _plan(**chosen, arguments=asked(mended_after_hours=6.0, incident_week=0))
    with pytest.raises(ValueError, match="the replay of taxi breaks no feed"):
        _plan(taxi, TAXI_REPLAYED, asked(incident_week=2))
    started = _plan(taxi, TAXI_REPLAYED, asked(train_until=date(2020, 1, 6)))
    assert started.first_as_of == datetime(2020, 1, 6, tzinfo=UTC)
    flights = _plan(use_case, FLIGHTS_REPLAYED, asked())
    assert (flights.first_as_of, flights.incident_week, flights.seconds_per_hour) == (
        datetime(2013, 4, 1, tzinfo=UTC),
        6,
        0.7,
    )


def test_every_use_case_that_is_shipped_can_be_replayed_and_flights_are_what_is() -> None:
    assert REPLAYS.keys() == use_cases(REPOSITORY / "params.yaml").keys()
    assert DEFAULT == "flights"


def weeks(*decisions: str, first: datetime = MONDAY) -> list[ReplayedWeek]:
    return [
        ReplayedWeek(
            start=first + timedelta(days=7 * number),
            end=first + timedelta(days=7 * number + 7),
            rows=100,
            labelled=100 * (number + 1),
            live_version="1",
            frozen={"mae": 4.0 + number},
            live={"mae": 3.0},
            decision=decision,
            reasons=["why"],
            retrain_outcome="held" if decision == "retrain" else None,
        )
        for number, decision in enumerate(decisions)
    ]


def promising(expects: str | None) -> Replayed:
    period = Period(name="a broken feed", start=date(2019, 1, 14), end=date(2019, 1, 28), expects=expects)  # type: ignore[arg-type]
    return replace(TAXI_REPLAYED, periods=(period,))


@pytest.mark.parametrize(
    ("expects", "decisions", "said"),
    [
        ("block", ("ignore", "block", "ignore", "ignore"), None),
        ("block", ("block", "ignore", "alert", "block"), "expected a week with 'block', got ignore, alert"),
        ("block", ("ignore", "block", "retrain", "ignore"), "a broken feed led to a retrain: block, retrain"),
        ("block", ("ignore", "alert"), None),  # half of it was replayed
        ("retrain", ("ignore", "alert", "retrain"), None),
        ("retrain", ("retrain", "alert", "ignore"), "expected a week with 'retrain', got alert, ignore"),
        (None, ("ignore", "block", "retrain"), None),
    ],
)
def test_what_is_promised_of_a_time_is_checked_where_it_was_replayed_as_a_whole(
    expects: str | None, decisions: tuple[str, ...], said: str | None
) -> None:
    if said is None:
        _check_promises(promising(expects), weeks(*decisions), [], timedelta(days=1))
    else:
        with pytest.raises(ReplayError, match=said):
            _check_promises(promising(expects), weeks(*decisions), [], timedelta(days=1))


def test_the_report_tells_of_a_time_what_fired_and_what_was_refused() -> None:
    [told] = describe_periods(promising("block").periods, weeks("retrain", "block", "retrain", "alert"))
    assert (told.weeks, told.decisions, told.retrains) == (2, "block 1, retrain 1", "held 1")
    assert told.frozen["mae"] == pytest.approx((5 * 200 + 6 * 300) / 500)
    assert [week.decision for week in told.fired] == ["block", "retrain"]
    assert format_periods([told]) == (
        "a broken feed: 2 weeks, mae 5.6000 frozen, 3.0000 live; block 1, retrain 1; retrains: held 1"
    )
    assert describe_periods(promising("block").periods, weeks("block")) == []


def test_days_have_their_year_where_there_are_several() -> None:
    assert choose_day_format([MONDAY, MONDAY]) == "%-d %b"
    assert choose_day_format([MONDAY, MONDAY - timedelta(days=30)]) == "%-d %b %y"
