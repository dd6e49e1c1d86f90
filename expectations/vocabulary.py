"""What a suite is made of: declared columns, expectations with severity and reason, and those that every table has."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from pipeline.partitions import Interval
from pipeline.source import Table

Severity = Literal["critical", "warning"]
Kind = Literal["text", "integer", "float", "timestamp"]


@dataclass(frozen=True, kw_only=True)
class DeclaredColumn:
    """A column every delivery must have, and of what kind. Timestamps carry a time zone."""

    kind: Kind
    nullable: bool


@dataclass(frozen=True, kw_only=True)
class Expect:
    """One Great Expectations class with its arguments: what it costs when unmet, and why it is expected.

    critical stops the whole batch; warning quarantines exactly the rows that do not meet it. Unmet by a table as a
    whole (a mean, a share of distinct values), a warning is an alert. `mostly` among the arguments: so large a share of
    the rows must meet it; where it does, none is quarantined.
    """

    expectation: str
    severity: Severity
    reason: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What one source table must look like.

    `fresh_hours`: the newest row became known at most this long before its partition's end (None: no rhythm to keep).
    `plausible_hours`: timestamp column -> hours it may lie (before the partition's start, after its end).
    """

    columns: Mapping[str, DeclaredColumn]
    expects: tuple[Expect, ...]
    fresh_hours: float | None
    plausible_hours: Mapping[str, tuple[float, float]]


def expect_rows(expectation: str, reason: str, **arguments: object) -> Expect:
    """A row-wise expectation: the rows that fail it are quarantined."""
    return Expect(expectation=expectation, severity="warning", reason=reason, arguments=arguments)


def between(column: str, low: float, high: float, reason: str) -> Expect:
    """Values of a column within [low, high]; every float column needs one: it is also what catches NaN and infinity."""
    return expect_rows("ExpectColumnValuesToBeBetween", reason, column=column, min_value=low, max_value=high)


def matching(column: str, regex: str, reason: str) -> Expect:
    """Texts of a column that match a regular expression."""
    return expect_rows("ExpectColumnValuesToMatchRegex", reason, column=column, regex=regex)


def not_before(later: str, earlier: str, reason: str) -> Expect:
    """Rows whose `later` moment is not before their `earlier` one."""
    return expect_rows(
        "ExpectColumnPairValuesAToBeGreaterThanB",
        reason,
        column_A=later,
        column_B=earlier,
        or_equal=True,
        ignore_row_if="either_value_is_missing",
    )


def _critical(expectation: str, reason: str, **arguments: object) -> Expect:
    return Expect(expectation=expectation, severity="critical", reason=reason, arguments=arguments)


def delivery_expectations(suite: Suite, table: Table) -> tuple[Expect, ...]:
    """What a delivery must meet before its columns are trusted: that they are there, and how many rows."""
    return (
        _critical(
            "ExpectTableColumnsToMatchSet",
            "a column is missing or was renamed",
            column_set=list(suite.columns),
            exact_match=False,
        ),
        _critical(
            "ExpectTableRowCountToBeBetween",
            "volume: far fewer or far more rows than a partition has",
            min_value=table.min_rows,
            max_value=table.max_rows,
        ),
    )


def content_expectations(suite: Suite, table: Table, partition: Interval) -> tuple[Expect, ...]:
    """What the rows of a partition must meet: one per key, in time, complete, plausible."""
    return (
        *((unique_key(table),) if table.duplicates == "stop" else ()),
        *_in_time(suite, table, partition),
        *(
            expect_rows("ExpectColumnValuesToNotBeNull", f"{name} must have a value", column=name)
            for name, column in suite.columns.items()
            if not column.nullable
        ),
        *(
            expect_rows(
                "ExpectColumnValuesToBeBetween",
                f"{name} lies implausibly far from the time in which the row became known",
                column=name,
                min_value=partition.start - timedelta(hours=before),
                max_value=partition.end + timedelta(hours=after),
            )
            for name, (before, after) in suite.plausible_hours.items()
        ),
        *suite.expects,
    )


def unique_key(table: Table) -> Expect:
    """The key names one row."""
    reason = f"duplicated key: ({', '.join(table.key)}) must name one row"
    if len(table.key) == 1:
        return _critical("ExpectColumnValuesToBeUnique", reason, column=table.key[0])
    return _critical("ExpectCompoundColumnsToBeUnique", reason, column_list=list(table.key))


def latest_of_key(table: Table) -> Expect:
    """Of several rows of one key the latest is kept; what is said of the others."""
    return expect_rows(
        "ExpectCompoundColumnsToBeUnique",
        f"duplicated key: of several rows of one ({', '.join(table.key)}) the latest is kept",
        column_list=list(table.key),
    )


def _in_time(suite: Suite, table: Table, partition: Interval) -> tuple[Expect, ...]:
    """Every row became known inside the partition, and (where the table has a rhythm) the newest one near its end."""
    column = table.available_at
    inside = (
        _critical(
            "ExpectColumnMinToBeBetween",
            "a row became known before its partition",
            column=column,
            min_value=partition.start,
        ),
        _critical(
            "ExpectColumnMaxToBeBetween",
            "a row became known after its partition",
            column=column,
            max_value=partition.end,
            strict_max=True,
        ),
    )
    if suite.fresh_hours is None or table.min_rows == 0:
        return inside
    return (
        *inside,
        _critical(
            "ExpectColumnMaxToBeBetween",
            f"stale feed: nothing became known in the last {suite.fresh_hours:g} hours of the partition",
            column=column,
            min_value=partition.end - timedelta(hours=suite.fresh_hours),
        ),
    )
