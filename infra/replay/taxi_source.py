"""Real yellow-taxi trips of 2018 to 2020, as a dispatcher's own tables in the `source` database.

A trip is entered as it begins, with where it is to go (the passenger says so); how long it took and how far it went is
told when it ends. The calendar of holidays is a table as well, each day entered four weeks before it: so that it is
known by the same rule as everything else, in batch and online.
"""

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from infra.replay.fetch_taxi import load_trips, require_trips
from infra.replay.replayed import Period, Replayed, ReplayedSource

_FIRST = datetime(2018, 1, 1, tzinfo=UTC)
_YEARS = range(2018, 2022)
_ENTERED_BEFORE = timedelta(days=28)
_MOMENT = pa.timestamp("us", "UTC")

_CREATE = """
create table if not exists trips (
    trip_id text not null, vendor_id int, pickup_at timestamptz not null, pickup_zone int not null,
    dropoff_zone int not null, passenger_count int, known_at timestamptz not null);
create table if not exists dropoffs (
    trip_id text not null, pickup_at timestamptz not null, dropoff_at timestamptz not null,
    trip_minutes double precision not null, trip_miles double precision, known_at timestamptz not null);
create table if not exists holidays (day date not null, name text not null, known_at timestamptz not null);
"""
_IDENTITIES = {
    "trips": ("trip_id", "known_at"),
    "dropoffs": ("trip_id", "known_at"),
    "holidays": ("day", "known_at"),
}


def read_trips() -> Mapping[str, pa.Table]:
    """Each table of the dispatcher, its rows in the order in which they became known.

    Raises:
        ValueError: the trips are not on this machine.
    """
    return make_tables(load_trips())


def make_tables(trips: pa.Table) -> dict[str, pa.Table]:
    """The same, of some trips as `load_trips` has them."""
    pickup, dropoff = trips["pickup_at"], trips["dropoff_at"]
    microseconds = pc.subtract(dropoff.cast(pa.int64()), pickup.cast(pa.int64()))
    begun = trips.select(["trip_id", "vendor_id", "pickup_at", "pickup_zone", "dropoff_zone", "passenger_count"])
    ended = pa.table(
        {
            "trip_id": trips["trip_id"],
            "pickup_at": pickup,
            "dropoff_at": dropoff,
            "trip_minutes": pc.divide(microseconds.cast(pa.float64()), 60e6),
            "trip_miles": trips["trip_miles"],
        }
    )
    known = pc.if_else(
        pc.greater(dropoff, pickup), dropoff, pickup
    )  # some end before they begin: a broken clock is told, too
    tables = {
        "trips": begun.append_column("known_at", pickup),
        "dropoffs": ended.append_column("known_at", known),
        "holidays": make_calendar(),
    }
    return {
        name: table.sort_by([(column, "ascending") for column in dict.fromkeys(["known_at", *_IDENTITIES[name]])])
        for name, table in tables.items()
    }


def make_calendar() -> pa.Table:
    """The holidays of New York, each entered four weeks before its day, and those of the beginning at the beginning."""
    import holidays  # noqa: PLC0415  # of the extra `demo`, and slow to load

    days = sorted(holidays.country_holidays("US", subdiv="NY", years=_YEARS).items())
    entered = [max(datetime(day.year, day.month, day.day, tzinfo=UTC) - _ENTERED_BEFORE, _FIRST) for day, _ in days]
    return pa.table(
        {
            "day": pa.array([day for day, _ in days], pa.date32()),
            "name": pa.array([name for _, name in days], pa.string()),
            "known_at": pa.array(entered, _MOMENT),
        }
    )


TAXI_REPLAYED = Replayed(
    use_case="taxi",
    source=ReplayedSource(
        create=_CREATE,
        identities=_IDENTITIES,
        events="trips",
        entered_before=timedelta(0),
        clock="trip_clock",
        lock=0x74617869,
        read_rows=read_trips,
    ),
    require_data=require_trips,
    train_until=date(2018, 7, 2),
    seconds_per_hour=None,
    is_broken=False,
    retrained_within=None,
    metrics=("mae", "rmsle"),
    periods=(
        Period(
            name="February 2019: 15 % of the counts of passengers are 0",
            start=date(2019, 2, 4),
            end=date(2019, 2, 25),
            expects="block",
        ),
        Period(
            name="Spring of 2020: the city stays at home",
            start=date(2020, 3, 16),
            end=date(2020, 4, 27),
            expects="retrain",
        ),
        Period(
            name="May 2020: up to 25 % of the vendors are missing",
            start=date(2020, 4, 27),
            end=date(2020, 6, 1),
            expects="block",
        ),
        Period(name="July to December 2020", start=date(2020, 6, 29), end=date(2020, 12, 28)),
    ),
)
