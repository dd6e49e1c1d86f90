"""What a suite is made of: declared columns, expectations with severity and reason, and those that every table has."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

from pipeline.partitions import Interval
from pipeline.source import Table

Severity = Literal["critical", "warning"]
Kind = Literal["text", "integer", "float", "timestamp", "boolean", "date", "decimal"]
_MOST_DIGITS = 38


@dataclass(frozen=True, kw_only=True)
class DeclaredColumn:
    """A column every delivery must have, and of what kind; docs/column-types.md has which type may be which.

    `source` is the name that it has in the source, whatever characters that has, where it is another than here. A
    timestamp carries a time zone; `zone` declares that of a source whose timestamps do not ("Europe/Paris"): an hour
    that comes twice is the later one, and one that is left out is an hour later, as PostgreSQL's `at time zone` has it.
    A decimal has `digits`: how many in all, and how many of them behind the point.
    """

    kind: Kind
    nullable: bool
    source: str | None = None
    zone: str | None = None
    digits: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"expected a kind among {get_args(Kind)}, got {self.kind!r}")
        if self.zone is not None:
            if self.kind != "timestamp":
                raise ValueError(f"zone: expected none where the kind is {self.kind}, got {self.zone!r}")
            try:
                ZoneInfo(self.zone)
            except (KeyError, ValueError) as error:
                raise ValueError(f"zone: expected one such as Europe/Paris, got {self.zone!r}") from error
        if (self.digits is not None) != (self.kind == "decimal"):
            raise ValueError(f"digits: expected (in all, behind the point) for a decimal alone, got {self.digits}")
        if self.digits and not (0 <= self.digits[1] <= self.digits[0] and 1 <= self.digits[0] <= _MOST_DIGITS):
            raise ValueError(f"digits: expected up to {_MOST_DIGITS}, and no more behind the point, got {self.digits}")


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

    def __post_init__(self) -> None:
        if len(self.by_source) < len(self.columns):
            raise ValueError("two columns of a suite have one source: each is to be declared once")

    @cached_property
    def by_source(self) -> Mapping[str, str]:
        """Name of a declared column in the source -> its name here."""
        return {column.source or name: name for name, column in self.columns.items()}

    def find_source(self, name: str) -> str:
        """The name that a column has in the source; one that is not declared is its own."""
        column = self.columns.get(name)
        return name if column is None else column.source or name


def expect_rows(expectation: str, reason: str, **arguments: object) -> Expect:
    """A row-wise expectation: the rows that fail it are quarantined."""
    return Expect(expectation=expectation, severity="warning", reason=reason, arguments=arguments)


def between(column: str, low: float, high: float, reason: str) -> Expect:
    """Values of a column within [low, high]. A float column without one is asked for finite numbers all the same."""
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
        *_finite(suite),
    )


def _finite(suite: Suite) -> tuple[Expect, ...]:
    """NaN and infinity are no numbers, also where the suite gives no bounds."""
    bounded = {e.arguments["column"] for e in suite.expects if _has_bounds(e)}
    most = sys.float_info.max
    return tuple(
        between(name, -most, most, f"{name} must be a finite number, or have no value")
        for name, column in suite.columns.items()
        if column.kind == "float" and name not in bounded
    )


def _has_bounds(expect: Expect) -> bool:
    """Whether no infinite number meets it."""
    bounds = (expect.arguments.get(name) for name in ("min_value", "max_value"))
    return expect.expectation == "ExpectColumnValuesToBeBetween" and all(
        isinstance(bound, int | float) and math.isfinite(bound) for bound in bounds
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
