"""The suites of the flights know a broken row from a rare one: each planted fault is found, real weeks pass."""

import math
from collections.abc import Callable
from datetime import timedelta

import pyarrow as pa
import pytest

from expectations import suites
from expectations.vocabulary import content_expectations
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.ingest.check import check_table
from tests.real_flights import altered, later, real_rows

NAN, INF = math.nan, math.inf
ROWS = (3, 250)  # where faults are planted

# table, column, what is done to its values, a piece of the reason
ROW_FAULTS = [
    ("flights", "carrier", lambda _: "united", "IATA code"),
    ("flights", "carrier", lambda _: None, "carrier must have a value"),
    ("flights", "flight", lambda _: -7, "flight number"),
    ("flights", "tailnum", lambda _: "N-123;DROP", "tail number"),
    ("flights", "origin", lambda _: "JFK1", "three-letter"),
    ("flights", "dest", lambda _: "??", "three-letter"),
    ("flights", "dest", lambda _: "", "three-letter"),
    ("flights", "distance_miles", lambda x: -x, "positive distance"),
    ("flights", "distance_miles", lambda _: NAN, "distance_miles = nan"),
    ("flights", "distance_miles", lambda _: INF, "distance_miles = inf"),
    ("flights", "distance_miles", lambda _: -INF, "distance_miles = -inf"),
    ("flights", "distance_miles", lambda _: None, "must have a value"),
    ("flights", "scheduled_arrival", later(days=-1), "due before it leaves"),
    ("flights", "scheduled_arrival", later(days=300), "implausibly far"),
    ("flights", "scheduled_departure", later(days=-3), "known only after its departure"),
    ("flights", "scheduled_departure", later(days=365 * 80), "implausibly far"),
    ("movements", "kind", lambda _: "vanished", "a movement is a departure"),
    ("movements", "delay_minutes", lambda _: 1e6, "a delay lies between"),
    ("movements", "delay_minutes", lambda _: NAN, "delay_minutes = nan"),
    ("movements", "delay_minutes", lambda _: -INF, "delay_minutes = -inf"),
    ("movements", "occurred_at", later(hours=30), "a timestamp in the future"),
    ("movements", "occurred_at", later(days=-30), "implausibly far"),
    ("movements", "scheduled_departure", later(days=-30), "implausibly far"),
    ("weather", "wind_speed_mph", lambda _: 1048.36058, "wind_speed_mph = 1048.36058"),
    ("weather", "wind_gust_mph", lambda _: 1206.4, "strongest gust"),
    ("weather", "temp_f", lambda _: -459.67, "colder"),
    ("weather", "temp_f", lambda _: NAN, "temp_f = nan"),
    ("weather", "pressure_mb", lambda _: INF, "pressure_mb = inf"),
    ("weather", "humidity", lambda _: 250.0, "percentage"),
    ("weather", "origin", lambda _: "Newark", "three-letter"),
    ("weather", "observed_at", later(minutes=90), "a timestamp in the future"),
    ("weather", "observed_at", later(days=-60, minutes=5), "implausibly far"),
    ("planes", "year", lambda _: 1066, "built before"),
    ("planes", "seats", lambda _: -1, "seats"),
    ("planes", "engines", lambda _: 99, "engines"),
    ("airports", "lat", lambda _: 400.0, "latitude"),
    ("airports", "lon", lambda _: NAN, "lon = nan"),
    ("airports", "tz_offset", lambda _: 99, "time zones"),
]


@pytest.fixture
def partition(use_case: UseCase) -> Interval:
    return use_case.grid.partition("2013-10-28")  # ends with the night in which clocks went back


@pytest.mark.parametrize("fault", ROW_FAULTS, ids=lambda fault: f"{fault[0]}.{fault[1]}: {fault[3]}")
def test_exactly_the_broken_rows_are_found_and_only_for_their_fault(
    use_case: UseCase,
    partition: Interval,
    fault: tuple[str, str, Callable[[object], object], str],
) -> None:
    table, column, change, reason = fault
    suite, limits = suites("flights")[table], use_case.source.tables[table]
    rows = real_rows(table, partition)
    found = check_table(altered(rows, column, change, *ROWS), suite, limits, partition)
    assert found.problems == ()
    assert list(found.bad_rows) == list(ROWS)
    assert all(reason in "; ".join(reasons) for reasons in found.bad_rows.values())
    assert all(len(reasons) <= 2 for reasons in found.bad_rows.values())


@pytest.mark.parametrize("column", ["temp_f", "wind_dir_deg", "wind_gust_mph", "pressure_mb"])
def test_missing_measurements_are_for_monitoring_to_judge(use_case: UseCase, partition: Interval, column: str) -> None:
    rows = real_rows("weather", partition)
    emptied = altered(rows, column, lambda _: None, *range(rows.num_rows))
    found = check_table(emptied, suites("flights")["weather"], use_case.source.tables["weather"], partition)
    assert (found.problems, found.bad_rows) == ((), {})


def test_a_null_tail_number_is_no_fault(use_case: UseCase, partition: Interval) -> None:
    rows = altered(real_rows("flights", partition), "tailnum", lambda _: None, *ROWS)
    found = check_table(rows, suites("flights")["flights"], use_case.source.tables["flights"], partition)
    assert (found.problems, found.bad_rows) == ((), {})


def test_both_hours_of_the_night_the_clocks_go_back_are_kept_apart(use_case: UseCase, partition: Interval) -> None:
    rows = real_rows("weather", partition)
    found = check_table(rows, suites("flights")["weather"], use_case.source.tables["weather"], partition)
    hours = [moment.strftime("%dT%H") for moment in found.typed["observed_at"].to_pylist()]
    assert hours.count("03T05") == hours.count("03T06") == 3  # 01:00 EDT, then 01:00 EST, at three airports
    assert (found.problems, found.bad_rows) == ((), {})


@pytest.mark.parametrize(
    ("key", "quarantined"),
    [
        ("2012-12-31", {}),  # the year begins: a day short, and the reference tables arrive
        ("2013-02-04", {}),  # a blizzard closed the airports
        ("2013-02-11", {"weather": 1}),  # the wind of 1048 mph
        ("2013-03-04", {}),
        ("2013-10-28", {}),  # into it the faults above were planted
        ("2013-12-23", {}),  # the last whole week
    ],
)
def test_real_weeks_pass_storms_too(use_case: UseCase, key: str, quarantined: dict[str, int]) -> None:
    partition = use_case.grid.partition(key)
    for table, suite in suites("flights").items():
        found = check_table(real_rows(table, partition), suite, use_case.source.tables[table], partition)
        assert (table, found.problems, found.notes) == (table, (), ())
        assert len(found.bad_rows) == quarantined.get(table, 0)


def test_every_table_has_a_suite_and_every_suite_a_table(use_case: UseCase) -> None:
    assert set(suites("flights")) == set(use_case.source.tables)
    for table, limits in use_case.source.tables.items():
        assert {*limits.key, limits.available_at} <= set(suites("flights")[table].columns)


def test_every_float_column_is_bounded_so_that_nan_and_infinity_cannot_pass() -> None:
    for suite in suites("flights").values():
        bounded = {
            expect.arguments["column"]
            for expect in suite.expects
            if expect.expectation == "ExpectColumnValuesToBeBetween"
            and math.isfinite(expect.arguments["min_value"])
            and math.isfinite(expect.arguments["max_value"])
        }
        assert {name for name, column in suite.columns.items() if column.kind == "float"} <= bounded


def test_every_expectation_says_why(use_case: UseCase, partition: Interval) -> None:
    for table, suite in suites("flights").items():
        for expect in content_expectations(suite, use_case.source.tables[table], partition):
            assert len(expect.reason) > 20, (table, expect)


def test_an_unknown_use_case_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"write expectations/cargo\.py"):
        suites("cargo")


def test_plausible_times_reach_over_the_edges_of_a_partition(use_case: UseCase, partition: Interval) -> None:
    """A flight known on the partition's last evening leaves after its end; a delay reaches back before its start."""
    rows = real_rows("flights", partition)
    assert max(rows["scheduled_departure"].to_pylist()) > partition.end
    assert isinstance(rows, pa.Table)
    assert max(rows["known_at"].to_pylist()) > partition.end - timedelta(hours=6)
