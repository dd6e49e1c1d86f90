"""An operator's database fills as time goes by: what was not known yet is not in it."""

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import psycopg2
import pytest

from adapters.connect import Outside
from adapters.retrying import wait_until
from infra.replay import drive, flights_source, incident
from infra.replay.api import AirflowApi
from infra.replay.data_time import DataTime
from infra.replay.drive import Replay
from infra.replay.incident import BreakingFeed
from infra.replay.live_source import LiveSource
from infra.replay.progress import ReplayProgress
from infra.replay.replayed import ReplayedSource
from infra.replay.state import ReplayError
from infra.replay.traffic import Traffic
from pipeline.partitions import Interval
from pipeline.spec import UseCase

START = datetime(2013, 1, 7, tzinfo=UTC)
HOUR = timedelta(hours=1)
WEEK = Interval(START, START + timedelta(days=7))


@pytest.fixture(scope="module")
def replayed(processes: None) -> ReplayedSource:
    """Reading the package's files takes seconds: once is enough."""
    year = flights_source.read_year()
    return replace(flights_source.FLIGHTS_SOURCE, read_rows=lambda: year)


@pytest.fixture
def source(outside: Outside, replayed: ReplayedSource) -> LiveSource:
    made = LiveSource(outside.source, replayed)
    made.open(START)
    return made


def count_unknown(outside: Outside, until: datetime) -> dict[str, int]:
    """Rows that became known at a moment or later."""
    return {
        name: outside.source.query(f"select count(*) as rows from {name} where known_at >= %s", (until,))[0]["rows"]
        for name in flights_source.IDENTITIES
    }


def test_it_holds_what_is_known_and_each_table_has_a_key(outside: Outside, source: LiveSource) -> None:
    counts = flights_source.count_rows(outside.source)
    assert counts["movements"] > 5000
    assert set(count_unknown(outside, START).values()) == {0}
    [keys] = outside.source.query("select count(*) as n from pg_constraint where contype = 'p' and conname ~ '_pkey'")
    assert keys["n"] == len(flights_source.IDENTITIES) + 1
    assert source.told_until == START


def test_what_becomes_known_comes_with_the_clock_and_once(
    outside: Outside, replayed: ReplayedSource, source: LiveSource
) -> None:
    before = flights_source.count_rows(outside.source)
    source.tell(START + 5 * HOUR)
    after = flights_source.count_rows(outside.source)
    assert (
        after["movements"] - before["movements"] == source.rows_between("movements", START, START + 5 * HOUR).num_rows
    )
    assert after["movements"] > before["movements"]
    assert set(count_unknown(outside, START + 5 * HOUR).values()) == {0}
    again = LiveSource(outside.source, replayed)
    assert again.open(START) == after  # a replay that was stopped goes on where its source is
    assert again.told_until == START + 5 * HOUR
    again.tell(START + 5 * HOUR)
    assert flights_source.count_rows(outside.source) == after


def test_told_hour_by_hour_it_comes_to_hold_what_a_source_loaded_at_once_does(
    outside: Outside, replayed: ReplayedSource
) -> None:
    live = LiveSource(outside.source, replayed)
    live.open(START)
    for hours in range(1, 49):
        live.tell(START + hours * HOUR)
    query = "select md5(string_agg(m::text, ',' order by m::text)) as content from movements m where known_at < %s"
    by_hours = outside.source.query(query, (START + 48 * HOUR,))
    outside.source.execute("drop table " + ", ".join([*flights_source.IDENTITIES, "data_clock"]))
    flights_source.load_flights(outside.settings.source_dsn)
    assert outside.source.query(query, (START + 48 * HOUR,)) == by_hours


def test_a_source_that_an_earlier_version_filled_gets_keys_and_a_clock_at_its_end(
    outside: Outside, replayed: ReplayedSource
) -> None:
    counts = flights_source.load_flights(outside.settings.source_dsn)
    live = LiveSource(outside.source, replayed)
    assert live.open(START) == counts
    assert live.told_until > datetime(2013, 12, 30, tzinfo=UTC)
    with pytest.raises(psycopg2.errors.UniqueViolation):
        outside.source.execute("insert into airlines select * from airlines limit 1")


def test_a_broken_feed_is_broken_as_it_comes_and_its_true_records_are_put_back(
    outside: Outside, source: LiveSource
) -> None:
    source.tell(START + 3 * HOUR, broken="2013-01-07")
    source.tell(START + 6 * HOUR, broken="2013-01-07")
    source.tell(START + 7 * HOUR)
    query = "select count(*) as rows, count(temp_f) as measured from weather where known_at >= %s and known_at < %s"
    [broken] = outside.source.query(query, (START, START + 6 * HOUR))
    [sound] = outside.source.query(query, (START + 6 * HOUR, START + 7 * HOUR))
    assert (broken["rows"], broken["measured"], sound["measured"]) == (18, 0, 3)
    [known] = incident.list_incidents(outside.source)
    assert (known.rows, known.state) == (18, "broken")
    with incident.restored_feed(outside.source, "2013-01-07"):
        [mended] = outside.source.query(query, (START, START + 6 * HOUR))
        assert mended["measured"] == 18


def test_data_time_goes_on_by_half_hours_and_a_minute_to_its_end_and_says_so(
    outside: Outside, use_case: UseCase, source: LiveSource
) -> None:
    steps, broken = list[tuple[datetime, datetime]](), BreakingFeed(use_case, outside, WEEK, 24 * HOUR)
    half, minute, until = HOUR / 2, HOUR / 60, START + 2.4 * HOUR

    def note(start: datetime, end: datetime) -> None:
        steps.append((start, end))

    with DataTime(use_case, source, until=until, seconds_per_hour=0.01, broken=broken, then=note) as data_time:
        assert wait_until(lambda: data_time.has_reached(until), within_seconds=30)
        assert data_time.is_still
    ends = [START + minute + n * half for n in range(5)]
    assert steps == [*pairwise([START, *ends, until])]
    assert [known.rows for known in incident.list_incidents(outside.source)] == [9]


def test_a_feed_is_broken_until_somebody_was_paged_and_its_operator_has_mended_it(
    outside: Outside, use_case: UseCase, source: LiveSource
) -> None:
    def is_measured(hour: int) -> bool:
        moment = START + hour * HOUR
        broken = BreakingFeed(use_case, outside, WEEK, 3 * HOUR)  # as after a restart
        source.tell(moment + HOUR, broken=broken.key if broken.breaks_at(moment) else None)
        query = "select count(temp_f) as measured from weather where known_at >= %s and known_at < %s"
        [told] = outside.source.query(query, (moment, moment + HOUR))
        return bool(told["measured"])

    outside.alerts.raise_alert("critical", use_case.name, "flights.feed.weather", "before", "it broke")
    assert [is_measured(hour) for hour in range(3)] == [False] * 3
    outside.alerts.resolve("flights.feed.weather")
    outside.alerts.raise_alert("critical", use_case.name, "flights.feed.planes", "another feed", "is not meant")
    assert not is_measured(3)
    outside.alerts.raise_alert("critical", use_case.name, "flights.feed.weather", "broken", "it is")
    assert [is_measured(hour) for hour in range(4, 9)] == [False] * 3 + [True] * 2
    [known] = incident.list_incidents(outside.source)
    assert (known.rows, known.paged_at) == (21, START + 4 * HOUR)
    assert "paged at 07 Jan 04:00" in known.describe()


def test_a_replay_ends_where_nobody_is_paged_about_the_feed_that_broke(
    outside: Outside, use_case: UseCase, source: LiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drive, "_PAGED_WITHIN_SECONDS", 0.5)
    broken = BreakingFeed(use_case, outside, WEEK, 24 * HOUR)
    api = AirflowApi("http://127.0.0.1:1", user="", password="")
    replayed = flights_source.FLIGHTS_REPLAYED
    replay = Replay(
        use_case=use_case, replayed=replayed, outside=outside, source=source, api=api, progress=ReplayProgress()
    )
    source.tell(START + HOUR, broken=broken.key)
    with pytest.raises(ReplayError, match="nobody was paged about the feed that broke on 07 Jan"):
        replay._await_page(broken, WEEK)
    outside.alerts.raise_alert("critical", use_case.name, "flights.feed.weather", "broken", "it is")
    replay._await_page(broken, WEEK)


def test_a_feed_that_a_version_before_broke_goes_on_and_asks_for_no_page(
    outside: Outside, use_case: UseCase, source: LiveSource
) -> None:
    outside.source.execute(
        "create table injected_incidents (partition_key text primary key, table_name text not null, what text not null,"
        " rows bigint not null, state text not null check (state in ('broken', 'mended')));"
        " insert into injected_incidents values ('2013-01-07', 'weather', 'comes empty', 3, 'broken')"
    )
    broken = BreakingFeed(use_case, outside, WEEK, 3 * HOUR)
    outside.alerts.raise_alert("critical", use_case.name, "flights.feed.weather", "broken", "it is")
    assert broken.breaks_at(START + HOUR)
    source.tell(START + 2 * HOUR, broken=broken.key)
    [known] = incident.list_incidents(outside.source)
    assert (known.rows, known.began_at, known.paged_at) == (9, None, None)


def test_no_step_of_data_time_lies_in_two_partitions(outside: Outside, use_case: UseCase, source: LiveSource) -> None:
    """Else a feed that breaks in one would be broken in the next, too."""
    steps, broken = list[tuple[datetime, datetime]](), BreakingFeed(use_case, outside, WEEK, 24 * HOUR)
    minute, end = HOUR / 60, WEEK.end
    source.tell(end - 70 * minute)

    def note(start: datetime, end: datetime) -> None:
        steps.append((start, end))

    until = end + 70 * minute
    with DataTime(use_case, source, until=until, seconds_per_hour=0.01, broken=broken, then=note) as data_time:
        assert wait_until(lambda: data_time.has_reached(until), within_seconds=30)
    ends = [end - 59 * minute, end - 29 * minute, end, *(end + n * minute for n in (1, 31, 61, 70))]
    assert steps == [*pairwise([end - 70 * minute, *ends])]
    query = "select count(*) as rows, count(temp_f) as measured from weather where known_at >= %s and known_at < %s"
    [broken] = outside.source.query(query, (end - 70 * minute, end))
    [sound] = outside.source.query(query, (end, until))
    assert broken["rows"] > 0
    assert broken["measured"] == 0
    assert sound["rows"] == sound["measured"] > 0


def test_a_night_goes_by_in_steps_of_two_hours_none_of_which_is_near_an_event_that_is_due(
    use_case: UseCase, source: LiveSource
) -> None:
    steps, until, lead = list[tuple[datetime, datetime]](), START + 14 * HOUR, use_case.time.lead

    def note(start: datetime, end: datetime) -> None:
        steps.append((start, end))

    with DataTime(use_case, source, until=until, seconds_per_hour=0.01, then=note) as data_time:
        assert wait_until(lambda: data_time.has_reached(until), within_seconds=30)
    long = [step for step in steps if step[1] - step[0] > HOUR / 2]
    assert [end - start for start, end in long] == [2 * HOUR, HOUR]  # from 4:01 on; at 8:00 one is due
    assert all(source.find_due(start - HOUR, end + HOUR / 2, lead).num_rows == 0 for start, end in long)
    short = [step for step in steps[1:-1] if step not in long]  # the first is of a minute, the last is cut
    assert all(source.find_due(start - HOUR, end + HOUR, lead).num_rows for start, end in short)


def test_a_long_step_lasts_no_longer_and_is_not_taken_while_a_feed_is_broken(
    outside: Outside, use_case: UseCase, source: LiveSource
) -> None:
    night = START + 4 * HOUR + HOUR / 60
    source.tell(night)
    feed = BreakingFeed(use_case, outside, WEEK, 24 * HOUR)

    def take_step(broken: BreakingFeed | None) -> tuple[float, timedelta]:
        before = source.told_until
        until, then = START + 24 * HOUR, print
        lasts = DataTime(use_case, source, until=until, seconds_per_hour=1, broken=broken, then=then)._step()
        return lasts, source.told_until - before

    assert take_step(feed) == (0.5, HOUR / 2)
    assert take_step(None) == (0.5, 2 * HOUR)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # the thread says so itself, too
def test_data_time_that_cannot_go_on_says_why(use_case: UseCase, source: LiveSource) -> None:
    def fail(start: datetime, end: datetime) -> None:
        raise ValueError(f"nobody listens at {start} until {end}")

    until = START + 24 * HOUR
    with (
        DataTime(use_case, source, until=until, seconds_per_hour=0.01, then=fail) as data_time,
        pytest.raises(ReplayError, match="nobody listens"),
    ):
        wait_until(lambda: data_time.has_reached(until), within_seconds=30)


def test_clients_ask_about_flights_whose_prediction_is_due(
    outside: Outside, use_case: UseCase, source: LiveSource
) -> None:
    class Asked(Traffic):
        @property
        def events(self) -> list[dict[str, object]]:
            return [dict(event) for event in self._events]

    outside.__dict__["gateway"] = object()  # that there is one
    traffic = Asked(use_case, outside, source)
    traffic.ask_about(START + 14 * HOUR, START + 15 * HOUR)
    departures = [datetime.fromisoformat(str(event["scheduled_departure"])) for event in traffic.events]
    assert len(departures) > 20
    assert min(departures) >= START + 16 * HOUR
    assert max(departures) < START + 17 * HOUR
    assert not any(
        isinstance(value, float) and math.isnan(value) for event in traffic.events for value in event.values()
    )
