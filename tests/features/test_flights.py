"""What the features of flights say, and that they say the same whatever the partitions."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adapters.parquet import to_bytes
from expectations import suites
from features import build, definition
from tests.features.world import FLIGHTS, LEAD, Span, World, day, engine, moved, small_world


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


def test_days_give_the_same_rows_and_bytes_as_weeks(world: World) -> None:
    days = [day(14) + timedelta(days=n) for n in range(8)]
    points, labels = engine(world, days[0], days[-1])
    parts = [engine(world, start, end) for start, end in pairwise(days)]
    assert to_bytes(pa.concat_tables([p for p, _ in parts])) == to_bytes(points)
    assert to_bytes(pa.concat_tables([labels_ for _, labels_ in parts])) == to_bytes(labels)
    assert points.num_rows > 500
    assert labels.num_rows > 500


def test_history_before_the_look_back_changes_nothing(world: World) -> None:
    longer = {name: pa.concat_tables([table]) for name, table in world.items()}
    since = day(17) - FLIGHTS.look_back
    cut = {
        name: table
        if FLIGHTS.sources[name].timeless
        else table.filter(pc.greater_equal(table["known_at"], pa.scalar(since, table.schema.field("known_at").type)))
        for name, table in longer.items()
        if name in FLIGHTS.sources
    }
    assert moved(engine(world, day(17), day(18))[0], engine(cut, day(17), day(18))[0]) == []


def test_a_tail_number_that_is_null_looks_like_one_nobody_knows(world: World) -> None:
    """All null tails are cancelled flights: a feature that told them from unknown planes would read the outcome."""
    tails = world["flights"]["tailnum"].to_pylist()
    unknown = set(tails[::3])
    position = world["flights"].column_names.index("tailnum")

    def renamed(to: str | None) -> World:
        column = pa.array([to if tail in unknown else tail for tail in tails], pa.string())
        flights = world["flights"].set_column(position, "tailnum", column)
        return world | {"flights": flights}

    unlisted = engine(renamed("NOT-IN-PLANES"), day(15), day(17))[0]
    assert moved(engine(renamed(None), day(15), day(17))[0], unlisted) == []
    assert 0 < unlisted["plane_seats"].null_count < unlisted.num_rows


def test_features_are_numbers_or_text_and_never_nan(world: World) -> None:
    points, _ = engine(world, day(14), day(21))
    for name in FLIGHTS.numeric:
        assert points.schema.field(name).type == pa.float32()
        assert pc.all(pc.is_finite(points[name].drop_null())).as_py() is not False, name
        assert points[name].null_count < points.num_rows, name
    for name in FLIGHTS.categorical:
        assert points.schema.field(name).type == pa.string()
        assert points[name].null_count == 0
    assert 40 <= len(FLIGHTS.numeric + FLIGHTS.categorical) <= 55


def test_nan_and_infinity_are_missing(world: World) -> None:
    weather = world["weather"]
    values = pa.array([float("nan"), float("inf")] * (weather.num_rows // 2) + [None] * (weather.num_rows % 2))
    spoiled = weather.set_column(weather.column_names.index("temp_f"), "temp_f", values)
    points, _ = engine(world | {"weather": spoiled}, day(15), day(16))
    assert points["temp_f"].null_count == points.num_rows


def test_a_feed_that_is_silent_leaves_its_features_missing(world: World) -> None:
    points, _ = engine(world | {"weather": world["weather"].slice(0, 0)}, day(15), day(16))
    assert points["temp_f"].null_count == points.num_rows
    assert points["carrier_late_rate_7d"].null_count < points.num_rows


@pytest.mark.parametrize(
    ("local_day", "utc_hour"), [((3, 9), 11), ((3, 10), 10), ((3, 11), 10), ((11, 2), 10), ((11, 3), 11), ((11, 4), 11)]
)
def test_six_in_the_morning_is_six_in_the_morning_across_daylight_saving(
    world: World, local_day: tuple[int, int], utc_hour: int
) -> None:
    departure = datetime(2013, *local_day, utc_hour, tzinfo=UTC)
    row = world["flights"].slice(0, 1).to_pylist()[0] | {
        "scheduled_departure": departure,
        "scheduled_arrival": departure + timedelta(hours=2),
        "known_at": departure - timedelta(hours=24),
    }
    flights = pa.Table.from_pylist([row], world["flights"].schema)
    points, _ = engine(world | {"flights": flights}, departure - timedelta(hours=3), departure)
    assert points["departure_minute_of_day"].to_pylist() == [360]
    assert points["weekday"].to_pylist() == [f"{datetime(2013, *local_day, tzinfo=UTC):%A}"]


def test_a_label_is_known_on_arrival_and_absent_for_flights_that_never_came(world: World) -> None:
    _, labels = engine(world, day(14), day(21))
    movements = world["movements"]
    kind = movements.schema.field("known_at").type
    arrived = movements.filter(
        pc.and_(
            pc.equal(movements["kind"], "arrived"),
            pc.and_(
                pc.greater_equal(movements["known_at"], pa.scalar(day(14), kind)),
                pc.less(movements["known_at"], pa.scalar(day(21), kind)),
            ),
        )
    )
    assert labels.num_rows == arrived.num_rows
    assert sorted(labels["label_time"].to_pylist()) == sorted(arrived["known_at"].to_pylist())
    assert pc.sum(labels["label"]).as_py() == pc.sum(pc.greater(arrived["delay_minutes"], 15)).as_py()


def test_an_arrival_told_again_is_a_label_each_time_from_when_it_was_told(world: World) -> None:
    movements = world["movements"]
    kind = movements.schema.field("known_at").type
    inside = pc.and_(
        pc.equal(movements["kind"], "arrived"), pc.greater_equal(movements["known_at"], pa.scalar(day(15), kind))
    )
    first = movements.filter(inside).slice(0, 1)
    again = first.to_pylist()[0] | {
        "delay_minutes": 500.0,
        "known_at": first["known_at"][0].as_py() + timedelta(hours=5),
    }
    told = pa.concat_tables([movements, pa.Table.from_pylist([again], movements.schema)])
    _, labels = engine(world | {"movements": told}, day(14), day(21))
    key = f"{again['carrier']}{again['flight']}-{again['origin']}-"
    found = [
        (row["label"], row["label_time"])
        for row in labels.to_pylist()
        if row["entity_key"].startswith(key) and row["event_time"] == again["scheduled_departure"]
    ]
    before = engine(world, day(14), day(21))[1]
    assert found == [
        (float(first["delay_minutes"][0].as_py() > 15), first["known_at"][0].as_py()),
        (1.0, again["known_at"]),
    ]
    assert labels.num_rows == before.num_rows + 1


def test_a_source_without_a_column_is_named(tmp_path: Path, world: World) -> None:
    path = tmp_path / "flights.parquet"
    pq.write_table(world["flights"].drop_columns(["dest"]), path)
    with pytest.raises(ValueError, match=r"features flights: a source is not as declared.*dest"):
        build(FLIGHTS, {"flights": [path]}, Span(day(15), day(16)), LEAD)


def test_an_unknown_use_case_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"write features/cargo\.py"):
        definition("cargo")


def test_an_unknown_engine_is_told_which_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no feature engine 'polars': expected duckdb or spark"):
        build(FLIGHTS, {}, Span(day(15), day(16)), LEAD, engine="polars")


def test_every_column_that_features_read_is_expected_of_deliveries_with_the_kind_of_its_type() -> None:
    sql_types = {"text": "varchar", "integer": "bigint", "float": "double", "timestamp": "timestamp"}
    expected = {
        table: {name: sql_types[column.kind] for name, column in suite.columns.items()}
        for table, suite in suites("flights").items()
    }
    for table, source in FLIGHTS.sources.items():
        assert source.columns.items() <= expected[table].items()
