"""No feature knows what was not known when the prediction was made."""

import dataclasses
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import FeatureSet
from tests.features.world import FLIGHTS, World, changed, day, engine, held_up, moved, small_world

START, END = day(15), day(17)
EXTREME: dict[str, dict[str, object]] = {
    "flights": {"tailnum": "N14228", "distance_miles": 99_999.0, "dest": "XXX"},
    "movements": {"delay_minutes": 9_999.0},
    "weather": {"temp_f": 999.0, "wind_speed_mph": 999.0, "pressure_mb": 1.0, "visibility_miles": 99.0},
    "planes": {"seats": 9_999, "year": 1900},
    "airports": {"tzone": "Asia/Tokyo"},
}


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


def plant(world: World, moment: datetime, tables: set[str]) -> World:
    """The world with every record told once more with extreme values, and every outcome changed, just after a moment.

    What was known by the moment stays; what is known later is replaced by the extreme.
    """
    planted = dict(world)
    for name in tables:
        table, values = world[name], EXTREME[name]
        late = pc.greater(table["known_at"], pa.scalar(moment, table.schema.field("known_at").type))
        told_again = changed(table, **values, known_at=moment + timedelta(microseconds=1))
        planted[name] = pa.concat_tables(
            [table.filter(pc.invert(late)), changed(table.filter(late), **values), told_again]
        )
    return planted


def leaks(asked: FeatureSet, world: World, moment: datetime, tables: set[str]) -> list[str]:
    """The features of points up to a moment that planted knowledge from after it has changed.

    The interval goes on after the moment: were it to end there, a later record would not even be read.
    """
    before, after = (engine(told, START, END, asked)[0] for told in (world, plant(world, moment, tables)))
    kind = before.schema.field("prediction_time").type
    return moved(
        *(
            points.filter(pc.less_equal(points["prediction_time"], pa.scalar(moment, kind)))
            for points in (before, after)
        )
    )


@settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(moment=st.datetimes(day(15, 13).replace(tzinfo=None), day(17).replace(tzinfo=None)))
def test_planted_future_moves_no_feature(world: World, moment: datetime) -> None:
    assert leaks(FLIGHTS, world, moment.replace(tzinfo=START.tzinfo), set(EXTREME)) == []


def test_the_check_sees_what_is_planted(world: World) -> None:
    """The same records, known in time, do move features: the check above is not blind."""
    moment = day(16)
    points = engine(world, moment, END)[0]
    for name, feature in {
        "movements": "origin_departure_delay_minutes_3h",
        "weather": "temp_f",
        "planes": "plane_seats",
        "airports": "departure_minute_of_day",
    }.items():
        assert feature in moved(points, engine(plant(world, moment, {name}), moment, END)[0])


@pytest.mark.parametrize(
    ("step", "sql"),
    [
        pytest.param(
            "outcomes",
            f"select * replace (scheduled_departure as known_at) from ({FLIGHTS.steps['outcomes']})",
            id="outcomes",
        ),
        pytest.param(
            "entries",
            """select s.carrier, s.flight, s.origin, s.dest, s.event_time, s.distance_miles, s.known_at,
                s.departure_hour, o.departure_delay as entered
            from (select *, scheduled_departure as event_time, date_trunc('hour', scheduled_departure) as departure_hour
                from schedule) s
            join outcomes o using (carrier, flight, origin, scheduled_departure)""",
            id="own delay",
        ),
        pytest.param(
            "plane_versions",
            "select *, null::timestamp as known_until from planes where known_at = (select max(known_at) from planes)",
            id="planes as they are now",
        ),
    ],
)
def test_a_feature_that_looks_ahead_is_caught(world: World, step: str, sql: str) -> None:
    sabotaged = dataclasses.replace(FLIGHTS, steps={**FLIGHTS.steps, step: sql})
    assert leaks(sabotaged, world, day(16), set(EXTREME)) != []


def test_a_record_that_comes_late_counts_from_when_it_was_known(world: World) -> None:
    moment = day(16, 12)
    table = world["movements"]
    late = held_up(table, day(15), moment)
    before, after = (engine(world | {"movements": rows}, START, END)[0] for rows in (table, late))
    told = pc.greater_equal(before["prediction_time"], pa.scalar(moment, before.schema.field("prediction_time").type))
    week = "carrier_arrival_delay_minutes_7d"
    assert week in moved(before.filter(pc.invert(told)), after.filter(pc.invert(told)))  # not known yet
    assert week not in moved(before.filter(told), after.filter(told))  # known by then, inside the same week


def test_a_flight_entered_after_its_prediction_time_is_no_point(world: World) -> None:
    flights = world["flights"]
    too_late = flights.slice(0, 0)
    for row in flights.filter(
        pc.equal(flights["scheduled_departure"], flights["scheduled_departure"][500])
    ).to_pylist():
        row |= {"flight": 9_990, "known_at": row["scheduled_departure"] - timedelta(minutes=119)}
        too_late = pa.concat_tables([too_late, pa.Table.from_pylist([row], flights.schema)])
    points, _ = engine(world | {"flights": pa.concat_tables([flights, too_late])}, day(1), END)
    assert too_late.num_rows > 0
    assert not [key for key in points["entity_key"].to_pylist() if "9990-" in key]
