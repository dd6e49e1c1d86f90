"""A table is judged on schema, volume, freshness and keys before its rows are; a check that cannot run is a problem."""

from dataclasses import replace
from datetime import timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from expectations import suites
from expectations.vocabulary import Expect, Suite
from pipeline.partitions import Interval
from pipeline.source import Table
from pipeline.spec import UseCase
from tasks.ingest.check import CheckedTable, check_rows, check_table, find_bad_rows, to_canonical
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


def weathers(rows: pa.Table, *more: pa.Table) -> pa.Table:
    """Weather of which two rows are told twice, and what else; the versions that came later are warmer."""
    again = altered(altered(rows.slice(7, 2), "known_at", later(minutes=5), 0, 1), "temp_f", lambda _: 99.0, 0, 1)
    return pa.concat_tables([again, rows, *more])


def test_of_a_duplicated_key_the_latest_is_kept_where_the_table_says_so(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    keeping = limits.model_copy(update={"duplicates": "keep_latest"})
    found = check_table(weathers(rows), SUITE, keeping, partition)
    assert found.problems == ()
    assert list(found.bad_rows) == [9, 10]  # the two come first, though they were told later
    [reason] = found.bad_rows[9]
    assert reason.startswith(
        "duplicated key: of several rows of one (origin, observed_at) the latest is kept: origin = "
    )
    once = check_table(rows, SUITE, keeping, partition)
    assert (once.problems, once.bad_rows) == ((), {})


def test_of_two_rows_of_a_key_that_came_together_one_is_kept_and_a_bad_one_is_not_it(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    keeping = limits.model_copy(update={"duplicates": "keep_latest"})
    twin = rows.slice(7, 1)
    for copy, bad in ((twin, 7), (altered(twin, "humidity", lambda _: 300.0, 0), rows.num_rows)):
        found = check_table(pa.concat_tables([rows, copy]), SUITE, keeping, partition)
        assert (found.problems, list(found.bad_rows)) == ((), [bad])


def test_older_rows_of_a_key_are_no_faults_and_bad_rows_among_them_are(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    strict = limits.model_copy(update={"duplicates": "keep_latest", "max_quarantined_share": 0.001})
    found = check_table(weathers(rows), SUITE, strict, partition)
    assert (found.problems, list(found.bad_rows)) == ((), [9, 10])
    bad = check_table(altered(weathers(rows), "humidity", lambda _: 300.0, 50), SUITE, strict, partition)
    assert f"1 of {rows.num_rows + 2} rows would be quarantined, 0 are allowed" in problem(bad)


def test_a_feed_that_tells_one_row_again_and_again_is_not_as_many_rows_as_are_expected(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    keeping = limits.model_copy(update={"duplicates": "keep_latest", "min_rows": 50})
    again = pa.concat_tables([rows.slice(0, 1)] * 60)
    assert "1 rows are left where of each key the latest counts, expected at least 50" in problem(
        check_table(again, SUITE, keeping, partition)
    )
    most = pa.concat_tables([rows.slice(0, 50), *[rows.slice(0, 1)] * 10])
    assert "are left" not in "".join(check_table(most, SUITE, keeping, partition).problems)


# Partitions in which nothing has to come


def test_an_exempt_partition_may_be_empty_and_the_others_keep_their_limits_and_their_freshness(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    silent = rows.filter(
        pc.less(rows["known_at"], pa.scalar(partition.end - timedelta(days=3), rows["known_at"].type))
    ).slice(0, 20)
    for day, problems in ((partition.start, set()), (partition.end, {"volume", "stale feed"})):
        exempt = limits.model_copy(update={"exempt": (day.date(),)})
        for part in (silent, silent.slice(0, 0)):
            found = check_table(part, SUITE, exempt, partition)
            expected = problems if part.num_rows else problems - {"stale feed"}
            assert {problem.partition(":")[0] for problem in found.problems} == expected


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


# Warnings of a table as a whole, and of most of its rows


def warning(expectation: str, **arguments: object) -> Expect:
    return Expect(expectation=expectation, severity="warning", reason="it should be so", arguments=arguments)


@pytest.mark.parametrize(
    ("expect", "told"),
    [
        (warning("ExpectColumnMeanToBeBetween", column="humidity", min_value=0, max_value=100), []),
        (warning("ExpectColumnMeanToBeBetween", column="humidity", min_value=0, max_value=1), ["it should be so"]),
        (
            warning("ExpectColumnMaxToBeBetween", column="humidity", max_value=1),
            ["it should be so"],
        ),  # this one Arrow answers
        (warning("ExpectColumnUniqueValueCountToBeBetween", column="origin", min_value=9), ["it should be so"]),
        (warning("ExpectTableRowCountToEqual", value=1), ["it should be so"]),
    ],
    ids=lambda value: value.expectation if isinstance(value, Expect) else str(value),
)
def test_a_warning_about_a_table_as_a_whole_is_told_and_stops_nothing(
    rows: pa.Table, expect: Expect, told: list[str]
) -> None:
    found = check_rows(rows, [expect], allowed=0)
    assert (found.problems, found.bad_rows) == ((), {})
    assert [sentence.partition(" (")[0] for sentence in found.warnings] == told


@pytest.mark.parametrize(("mostly", "quarantined"), [(0.98, []), (0.995, [3, 4, 5]), (None, [3, 4, 5])])
def test_mostly_allows_for_some_rows_and_one_row_more_quarantines_all_of_them(
    rows: pa.Table, mostly: float | None, quarantined: list[int]
) -> None:
    arguments: dict[str, object] = {"column": "humidity", "min_value": 0, "max_value": 100}
    expect = warning("ExpectColumnValuesToBeBetween", **arguments, **({"mostly": mostly} if mostly else {}))
    found = check_rows(altered(rows, "humidity", lambda _: 300.0, 3, 4, 5), [expect], allowed=10)
    assert (found.problems, found.warnings, list(found.bad_rows)) == ((), (), quarantined)


def test_who_follows_the_source_sets_aside_what_validation_would(
    rows: pa.Table, limits: Table, partition: Interval
) -> None:
    spoilt = altered(rows, "humidity", lambda _: 300.0, 3)
    expects = (
        warning("ExpectColumnValuesToBeBetween", column="humidity", min_value=0, max_value=100, mostly=0.9),
        warning("ExpectColumnMeanToBeBetween", column="humidity", min_value=0, max_value=1),
    )
    for some, bad in ((expects, []), (SUITE.expects, [3])):
        suite = replace(SUITE, expects=some)
        assert list(find_bad_rows(spoilt, suite, limits, partition)) == bad
        assert list(check_table(spoilt, suite, limits, partition).bad_rows) == bad


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
