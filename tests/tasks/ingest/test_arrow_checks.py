"""On Arrow, every expectation we know finds exactly the rows that Great Expectations finds on pandas."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest

from expectations import suites
from expectations.vocabulary import (
    Expect,
    between,
    content_expectations,
    delivery_expectations,
    expect_rows,
    matching,
    not_before,
)
from pipeline.spec import UseCase
from tasks.ingest import arrow_checks, suite_run
from tests.real_flights import altered, later, real_rows

NOON = datetime(2013, 3, 1, 12, tzinfo=UTC)
MOMENT = pa.timestamp("us", "UTC")


def critical(expectation: str, **arguments: object) -> Expect:
    return Expect(expectation=expectation, severity="critical", reason="because", arguments=arguments)


EXPECTS = (
    critical("ExpectTableColumnsToMatchSet", column_set=["text", "number", "gone"], exact_match=False),
    critical("ExpectTableColumnsToMatchSet", column_set=["text", "number", "whole"], exact_match=False),
    critical("ExpectTableColumnsToMatchSet", column_set=["text", "number", "whole"], exact_match=True),
    critical("ExpectTableRowCountToBeBetween", min_value=1, max_value=10),
    critical("ExpectTableRowCountToBeBetween", min_value=300, max_value=300),
    critical("ExpectColumnMinToBeBetween", column="early", min_value=NOON),
    critical("ExpectColumnMinToBeBetween", column="early", min_value=NOON - timedelta(days=9)),
    critical("ExpectColumnMaxToBeBetween", column="late", max_value=NOON, strict_max=True),
    critical("ExpectColumnMaxToBeBetween", column="number", max_value=1000.0),
    expect_rows("ExpectColumnValuesToNotBeNull", "because", column="text"),
    expect_rows("ExpectColumnValuesToNotBeNull", "because", column="early"),
    expect_rows("ExpectColumnValuesToNotBeNull", "because", column="number"),
    between("number", -1, 1, "because"),
    between("whole", 2, 5, "because"),
    between("early", NOON - timedelta(hours=1), NOON, "because"),  # type: ignore[arg-type]  # moments, as content_expectations() has
    matching("text", "^[A-Z]{3}$", "because"),
    matching("text", "a", "because"),
    matching("text", "E(?=WR$)", "because"),
    expect_rows("ExpectColumnValuesToBeInSet", "because", column="text", value_set=["EWR", "b", ""]),
    expect_rows("ExpectColumnValuesToBeInSet", "because", column="whole", value_set=[1, 2]),
    expect_rows("ExpectColumnValuesToBeInSet", "because", column="number", value_set=[0.0, 1.0]),
    expect_rows("ExpectColumnValuesToBeInSet", "because", column="number", value_set=[-0.0, float("nan")]),
    not_before("late", "early", "because"),
    expect_rows(
        "ExpectColumnPairValuesAToBeGreaterThanB", "because", column_A="late", column_B="early", or_equal=False,
        ignore_row_if="either_value_is_missing",
    ),
    critical("ExpectColumnValuesToBeUnique", column="text"),
    critical("ExpectColumnValuesToBeUnique", column="single"),
    critical("ExpectColumnValuesToBeUnique", column="number"),
    critical("ExpectColumnValuesToBeUnique", column="odd"),
    critical("ExpectCompoundColumnsToBeUnique", column_list=["text", "whole"]),
    critical("ExpectCompoundColumnsToBeUnique", column_list=["text", "odd"]),
    critical("ExpectCompoundColumnsToBeUnique", column_list=["odd", "single"]),
    critical("ExpectCompoundColumnsToBeUnique", column_list=["text", "single"]),
)  # fmt: skip


def awkward(seed: int, count: int = 300) -> pa.Table:
    """Null, NaN, infinite, empty, repeated values, and a text that ends in a line's end."""
    draw = np.random.default_rng(seed)

    def some(values: list[object], kind: pa.DataType) -> pa.Array:
        return pa.array([values[i] for i in draw.integers(0, len(values), count)], kind)

    moments = [None, *(NOON + timedelta(minutes=int(m)) for m in draw.integers(-90, 90, 20))]
    table = pa.table(
        {
            "text": some([None, "EWR", "EWR\n", "ewr", "", "XEWR", "nan", "None", "Ä", "b"], pa.string()),
            "number": some([None, np.nan, np.inf, -np.inf, 0.0, -0.0, 0.5, 1.0, -1.0, 7.25], pa.float64()),
            "odd": some([*np.arange(1.0, 2 * count), -0.0, 0.0, np.nan, None], pa.float64()),
            "whole": some([None, 1, 2, 3, 4, 5, 6, 2**60], pa.int64()),
            "early": some(moments, MOMENT),
            "late": some(moments, MOMENT),
            "single": pa.array(range(count)),
        }
    )
    return pa.concat_tables([table.slice(0, count // 3), table.slice(count // 3)])  # in chunks, as Parquet gives them


def by_gx(table: pa.Table, expects: tuple[Expect, ...]) -> list[suite_run.ExpectationOutcome]:
    gx = suite_run.load_great_expectations()
    found = suite_run.run_by_gx(gx, suite_run.to_frame(table), dict(enumerate(expects)), complete=True)
    return [suite_run._outcome(expect, found[position]) for position, expect in enumerate(expects)]


def same(table: pa.Table, expects: tuple[Expect, ...]) -> int:
    """How many of them fail, in both."""
    assert all(arrow_checks.can_answer(expect) for expect in expects)
    ours = suite_run.run_suite(table, expects, complete=True).outcomes
    for one, other in zip(ours, by_gx(table, expects), strict=True):
        what = one.expect.expectation, dict(one.expect.arguments)
        assert (one.error, other.error) == (None, None), what
        assert (one.success, one.failed_rows) == (other.success, other.failed_rows), what
        assert sorted(one.positions) == sorted(other.positions), what
    return sum(not one.success for one in ours)


@pytest.mark.parametrize("seed", range(3))
def test_awkward_values_fail_the_same_rows(seed: int) -> None:
    assert same(awkward(seed), EXPECTS) > 10


@pytest.mark.parametrize(
    ("values", "allowed", "doubled"),
    [([0.0, -0.0], 2, 2), ([np.nan, np.nan], 0, 2), ([np.nan, 1.0], 0, 0), ([None, 0.0], 1, 0)],
    ids=["two zeros are one value", "a value that is no number", "one of it", "null is no value"],
)
def test_odd_numbers_are_in_a_set_and_twice_in_a_key_alike_on_arrow_and_by_great_expectations(
    values: list[float | None], allowed: int, doubled: int
) -> None:
    table = pa.table({"number": pa.array(values, pa.float64()), "text": ["same"] * len(values)})
    expects = (
        expect_rows("ExpectColumnValuesToBeInSet", "because", column="number", value_set=[0.0]),
        critical("ExpectColumnValuesToBeUnique", column="number"),
        critical("ExpectCompoundColumnsToBeUnique", column_list=["text", "number"]),
    )
    same(table, expects)
    found = suite_run.run_suite(table, expects, complete=True).outcomes
    assert [outcome.failed_rows for outcome in found] == [2 - allowed - values.count(None), doubled, doubled]


def test_a_column_without_a_value_fails_the_same_rows() -> None:
    table = awkward(0, 30)
    empty = pa.table({name: pa.nulls(30, table.schema.field(name).type) for name in table.column_names})
    asked = tuple(e for e in EXPECTS if "single" not in str(e.arguments) and "MinTo" not in e.expectation)
    same(empty, tuple(e for e in asked if "MaxTo" not in e.expectation))


@pytest.mark.parametrize("table", suites("flights"))
def test_broken_real_rows_fail_the_same_rows(use_case: UseCase, table: str) -> None:
    partition = use_case.grid.partition("2013-10-28")
    found, suite, limits = real_rows(table, partition), suites("flights")[table], use_case.source.tables[table]
    name = next(name for name, column in suite.columns.items() if column.kind == "text")
    broken = altered(altered(found, name, lambda _: "?", 1, 2), "known_at", later(days=-30), 3)
    doubled = pa.concat_tables([broken, broken.slice(0, 1)])
    asked = (*delivery_expectations(suite, limits), *content_expectations(suite, limits, partition))
    assert same(doubled, asked) >= 3


def test_what_is_not_known_is_asked_of_great_expectations() -> None:
    table = awkward(1)
    long = expect_rows("ExpectColumnValueLengthsToBeBetween", "because", column="text", min_value=1, max_value=3)
    nulls = expect_rows("ExpectColumnValuesToNotBeNull", "because", column="text")
    mostly = expect_rows("ExpectColumnValuesToNotBeNull", "because", column="text", mostly=0.5)
    assert not any(arrow_checks.can_answer(expect) for expect in (long, mostly))
    run = suite_run.run_suite(table, (long, nulls, mostly), complete=True)
    assert [outcome.success for outcome in run.outcomes] == [False, False, True]
    assert [outcome.failed_rows for outcome in run.outcomes][1] == table["text"].null_count > 0
    assert run.results.statistics["evaluated_expectations"] == 3


@pytest.mark.parametrize(
    "absurd",
    [between("text", 0, 1, "because"), matching("number", "a", "because"), between("nowhere", 0, 1, "because"),
     not_before("late", "text", "because"), matching("text", "(", "because")],
)  # fmt: skip
def test_a_check_that_does_not_fit_its_columns_is_an_error(absurd: Expect) -> None:
    [outcome] = suite_run.run_suite(awkward(0), (absurd,), complete=False).outcomes
    assert not outcome.success
    assert outcome.error
