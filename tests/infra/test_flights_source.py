"""The operator's tables hold the flights of 2013, every moment in UTC, nothing known before it happened."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from adapters.warehouse import Warehouse
from infra.local.stack import Stack
from infra.replay.flights_source import load_flights
from tests.conftest import drop_database, make_database

NAME = "source_of_flights"


@pytest.fixture(scope="module")
def source(stack: Stack) -> Iterator[Warehouse]:
    database = Warehouse(make_database(stack, NAME, "source"))
    load_flights(database.dsn)
    yield database
    drop_database(stack, NAME)


def one(source: Warehouse, query: str) -> object:
    [row] = source.query(query)
    [value] = row.values()
    return value


def test_everything_is_loaded_once(source: Warehouse, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert load_flights(source.dsn) == {
        "flights": 336_776,
        "movements": 665_297,
        "weather": 26_115,
        "planes": 3_322,
        "airports": 1_458,
        "airlines": 16,
    }
    assert "nothing to do" in caplog.text


def test_every_flight_has_exactly_one_end(source: Warehouse) -> None:
    kinds = source.query("select kind, count(*) as n, count(delay_minutes) as delays from movements group by kind")
    assert {row["kind"]: (row["n"], row["delays"]) for row in kinds} == {
        "departed": (328_521, 328_521),
        "arrived": (327_346, 327_346),
        "cancelled": (8_255, 0),
        "diverted": (1_175, 0),
    }
    assert 327_346 + 8_255 + 1_175 == 336_776


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("flights", "carrier, flight, origin, scheduled_departure"),
        ("movements", "carrier, flight, origin, scheduled_departure, kind"),
        ("weather", "origin, observed_at"),
        ("planes", "tailnum"),
        ("airports", "faa"),
        ("airlines", "carrier"),
    ],
)
def test_keys_are_unique_in_utc(source: Warehouse, table: str, key: str) -> None:
    assert one(source, f"select count(*) from (select from {table} group by {key} having count(*) > 1) twice") == 0


def test_a_null_tail_number_always_means_cancelled(source: Warehouse) -> None:
    """The leak that features must not see."""
    kinds = source.query(
        "select distinct m.kind from flights join movements m using (carrier, flight, origin, scheduled_departure)"
        " where tailnum is null"
    )
    assert [row["kind"] for row in kinds] == ["cancelled"]


def test_labels_arrive_a_mean_five_hours_after_the_prediction(source: Warehouse) -> None:
    mean = one(source, "select avg(occurred_at - scheduled_departure) from movements where kind = 'arrived'")
    assert isinstance(mean, timedelta)
    assert 5.1 < (mean + timedelta(hours=2)) / timedelta(hours=1) < 5.4


def test_nothing_is_known_before_it_happened(source: Warehouse) -> None:
    assert one(source, "select count(*) from movements where known_at < occurred_at") == 0
    assert one(source, "select count(*) from weather where known_at <= observed_at") == 0
    assert one(source, "select count(*) from flights where known_at <> scheduled_departure - interval '24 hours'") == 0


def test_a_flight_arrives_after_it_left(source: Warehouse) -> None:
    early = (
        "select count(*) from movements a join movements d using (carrier, flight, origin, scheduled_departure)"
        " where a.kind in ('arrived', 'diverted') and d.kind = 'departed' and a.occurred_at < d.occurred_at"
    )
    assert one(source, early) == 0
    assert one(source, "select min(scheduled_arrival - scheduled_departure) > interval '30 minutes' from flights")
    assert one(source, "select max(scheduled_arrival - scheduled_departure) < interval '13 hours' from flights")


# From the package's own lines, by another library: the clocks at departure and at arrival.
@pytest.mark.parametrize(
    ("flight", "departs", "arrives", "zone"),
    [
        (("UA", 1545, "EWR"), "2013-01-01 05:15", "2013-01-01 08:19", "America/Chicago"),
        (("HA", 51, "JFK"), "2013-01-01 09:00", "2013-01-01 15:30", "Pacific/Honolulu"),
        (("B6", 725, "JFK"), "2013-01-01 05:45", "2013-01-01 10:22", "America/Puerto_Rico"),
    ],
)
def test_arrivals_are_placed_by_the_clock_of_their_destination(
    source: Warehouse, flight: tuple[str, int, str], departs: str, arrives: str, zone: str
) -> None:
    departure = datetime.fromisoformat(departs).replace(tzinfo=ZoneInfo("America/New_York")).astimezone(UTC)
    [row] = source.query(
        "select scheduled_arrival from flights where (carrier, flight, origin, scheduled_departure) = (%s, %s, %s, %s)",
        (*flight, departure),
    )
    assert row["scheduled_arrival"] == datetime.fromisoformat(arrives).replace(tzinfo=ZoneInfo(zone))


@pytest.mark.parametrize("day", ["2013-03-10", "2013-11-03"])
def test_no_hour_of_weather_is_lost_or_doubled_when_clocks_change(source: Warehouse, day: str) -> None:
    """New York skips an hour at 07:00 UTC in March, and has one twice from 05:00 UTC in November."""
    hours = source.query(
        "select extract(hour from observed_at)::int as hour from weather where origin = 'JFK'"
        " and observed_at between %s::timestamptz + interval '5 hours' and %s::timestamptz + interval '10 hours'"
        " order by observed_at",
        (day, day),
    )
    assert [row["hour"] for row in hours] == [5, 6, 7, 8, 9, 10]
