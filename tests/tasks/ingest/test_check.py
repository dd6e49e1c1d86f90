"""A table is judged on schema, volume, freshness and keys before its rows are; a check that cannot run is a problem."""

from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from expectations import suites
from expectations.vocabulary import Expect, Suite
from pipeline.partitions import Interval
from pipeline.source import Table
from pipeline.spec import UseCase
from tasks.ingest.check import CheckedTable, check_rows, check_table, to_canonical
from tasks.ingest.data_docs import render_table_page
from tests.real_flights import altered, later, real_rows


@pytest.fixture
def partition(use_case: UseCase) -> Interval:
    return use_case.grid.partition("2013-10-28")


@pytest.fixture
def limits(use_case: UseCase) -> Table:
    return use_case.source.tables["weather"]


@pytest.fixture
def rows(partition: Interval) -> pa.Table:
    return real_rows("weather", partition)


SUITE: Suite = suites("flights")["weather"]


def problem(found: CheckedTable) -> str:
    assert found.problems
    assert not found.bad_rows
    return "\n".join(found.problems)


def test_real_rows_pass(rows: pa.Table, limits: Table, partition: Interval) -> None:
    found = check_table(rows, SUITE, limits, partition)
    assert (found.problems, found.notes, found.bad_rows) == ((), (), {})
    assert found.typed is not None
    assert found.typed.equals(rows)


# Schema


def test_a_renamed_column_stops(rows: pa.Table, limits: Table, partition: Interval) -> None:
    renamed = rows.rename_columns(["humid" if name == "humidity" else name for name in rows.column_names])
    assert "missing: humidity" in problem(check_table(renamed, SUITE, limits, partition))


def test_a_missing_column_stops(rows: pa.Table, limits: Table, partition: Interval) -> None:
    assert "missing: humidity" in problem(check_table(rows.drop_columns(["humidity"]), SUITE, limits, partition))


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("observed_at", pa.string()),  # what a CSV-ish import, or mixed formats, leave of moments
        ("observed_at", pa.timestamp("us")),  # which zone?
        ("temp_f", pa.string()),
        ("temp_f", pa.int64()),
        ("origin", pa.binary()),
    ],
)
def test_a_retyped_column_stops(
    rows: pa.Table, limits: Table, partition: Interval, column: str, kind: pa.DataType
) -> None:
    position = rows.column_names.index(column)
    retyped = rows.set_column(position, column, pc.cast(rows[column], kind, safe=False))
    assert f"column {column} was retyped" in problem(check_table(retyped, SUITE, limits, partition))


def test_an_added_column_is_noted_and_left_out(rows: pa.Table, limits: Table, partition: Interval) -> None:
    found = check_table(rows.append_column("dust", pa.nulls(rows.num_rows)), SUITE, limits, partition)
    assert found.problems == ()
    assert found.notes == ("column dust was added; it is not taken over",)
    assert found.typed is not None
    assert found.typed.equals(rows)


def test_columns_in_another_order_and_width_become_canonical(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    narrow = rows.set_column(1, "observed_at", rows["observed_at"].cast(pa.timestamp("s", "UTC")))
    found = check_table(narrow.select(rows.column_names[::-1]), SUITE, limits, partition)
    assert found.typed is not None
    assert found.typed.equals(rows)


# Volume


def test_no_rows_stop(rows: pa.Table, limits: Table, partition: Interval) -> None:
    assert "volume" in problem(check_table(rows.slice(0, 0), SUITE, limits, partition))


def test_ten_times_the_rows_stop(rows: pa.Table, limits: Table, partition: Interval) -> None:
    assert "volume" in problem(check_table(pa.concat_tables([rows] * 10), SUITE, limits, partition))


def test_no_rows_pass_where_none_are_required(use_case: UseCase, partition: Interval) -> None:
    planes = real_rows("planes", partition).slice(0, 0)
    found = check_table(planes, suites("flights")["planes"], use_case.source.tables["planes"], partition)
    assert (found.problems, found.bad_rows) == ((), {})
    assert found.typed is not None
    assert found.typed.num_rows == 0


# Freshness


def test_a_feed_that_went_silent_stops(rows: pa.Table, limits: Table, partition: Interval) -> None:
    silent = rows.filter(
        pc.less(rows["known_at"], pa.scalar(partition.end - timedelta(hours=8), rows["known_at"].type))
    )
    assert silent.num_rows >= limits.min_rows  # the volume would not have shown it
    assert "stale feed" in problem(check_table(silent, SUITE, limits, partition))


def test_a_feed_that_is_late_by_an_hour_passes(rows: pa.Table, limits: Table, partition: Interval) -> None:
    late = rows.filter(pc.less(rows["known_at"], pa.scalar(partition.end - timedelta(hours=1), rows["known_at"].type)))
    assert check_table(late, SUITE, limits, partition).problems == ()


@pytest.mark.parametrize(("days", "which"), [(-30, "before"), (30, "after")])
def test_a_row_known_outside_the_partition_stops(
    rows: pa.Table, limits: Table, partition: Interval, days: int, which: str
) -> None:
    outside = altered(rows, "known_at", later(days=days), 5)
    assert f"became known {which} its partition" in "\n".join(check_table(outside, SUITE, limits, partition).problems)


# Keys


def test_a_duplicated_key_stops(rows: pa.Table, limits: Table, partition: Interval) -> None:
    doubled = pa.concat_tables([rows, altered(rows, "temp_f", lambda _: 50.0, 7).slice(7, 1)])
    assert "duplicated key: (origin, observed_at)" in problem(check_table(doubled, SUITE, limits, partition))


def test_a_duplicated_key_of_one_column_stops(use_case: UseCase, partition: Interval) -> None:
    planes = real_rows("planes", partition)
    doubled = pa.concat_tables([planes, planes.slice(7, 1)])
    found = check_table(doubled, suites("flights")["planes"], use_case.source.tables["planes"], partition)
    assert "duplicated key: (tailnum)" in problem(found)


# Bad rows


def test_a_row_with_two_faults_is_one_row_with_two_reasons(rows: pa.Table, limits: Table, partition: Interval) -> None:
    twice = altered(altered(rows, "humidity", lambda _: 300.0, 9), "temp_f", lambda _: 999.0, 9)
    found = check_table(twice, SUITE, limits, partition)
    assert list(found.bad_rows) == [9]
    assert sorted(reason.rpartition(": ")[2] for reason in found.bad_rows[9]) == ["humidity = 300.0", "temp_f = 999.0"]


@pytest.mark.parametrize("more", [0, 1])
def test_up_to_the_allowed_share_is_quarantined_and_one_row_more_stops(
    rows: pa.Table, limits: Table, partition: Interval, more: int
) -> None:
    allowed = int(limits.max_quarantined_share * rows.num_rows)
    found = check_table(altered(rows, "humidity", lambda _: 300.0, *range(allowed + more)), SUITE, limits, partition)
    if more:
        assert f"{allowed + 1} of {rows.num_rows} rows would be quarantined, {allowed} are allowed" in problem(found)
    else:
        assert list(found.bad_rows) == list(range(allowed))


def test_many_faults_that_are_few_each_stop_together(rows: pa.Table, limits: Table, partition: Interval) -> None:
    half = int(limits.max_quarantined_share * rows.num_rows * 0.6)
    broken = altered(rows, "humidity", lambda _: 300.0, *range(half))
    broken = altered(broken, "temp_f", lambda _: 999.0, *range(half, 2 * half))
    assert f"{2 * half} of {rows.num_rows} rows" in "\n".join(check_table(broken, SUITE, limits, partition).problems)


def test_a_check_that_cannot_run_is_a_problem_and_not_a_pass(rows: pa.Table) -> None:
    """Great Expectations answers `success: false` for a column that is not there, whatever the severity."""
    sensible = Expect(
        expectation="ExpectColumnValuesToBeBetween",
        severity="warning",
        reason="humidity is a percentage",
        arguments={"column": "humidity", "min_value": 0, "max_value": 100},
    )
    absurd = Expect(
        expectation="ExpectColumnValuesToBeBetween",
        severity="warning",
        reason="there is no such column",
        arguments={"column": "nowhere", "min_value": 0, "max_value": 100},
    )
    assert check_rows(rows, [sensible], allowed=10).problems == ()
    found = check_rows(rows, [sensible, absurd], allowed=10)
    assert "check failed to run (there is no such column)" in problem(found)


def test_the_page_stands_alone_and_says_what_was_found(rows: pa.Table, limits: Table, partition: Interval) -> None:
    found = check_table(altered(rows, "humidity", lambda _: 300.0, 4), SUITE, limits, partition)
    html = render_table_page("weather <b>", found.results)
    assert "weather &lt;b&gt;" in html
    assert "300" in html
    assert len(html) < 1_000_000
    for loads in ("<script", "<link", "<img", "src="):
        assert loads not in html


def test_the_schema_of_clean_rows_is_canonical(rows: pa.Table) -> None:
    assert [str(kind) for kind in to_canonical(rows, SUITE).schema.types[:3]] == [
        "string",
        "timestamp[us, tz=UTC]",
        "double",
    ]
