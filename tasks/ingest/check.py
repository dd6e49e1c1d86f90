"""One table against its suite: the schema on Arrow types, everything else by `suite_run`."""

import functools
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from expectations.vocabulary import (
    Expect,
    Kind,
    Suite,
    content_expectations,
    delivery_expectations,
    latest_of_key,
)
from pipeline.partitions import Interval
from pipeline.source import Table
from tasks.ingest.arrow_checks import settle_zeros
from tasks.ingest.suite_run import SuiteRun, find_failing_rows, run_suite

_CANONICAL: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}


@dataclass(frozen=True, kw_only=True)
class CheckedTable:
    """The result of checking one table.

    problems: what stops the batch. notes: what people should know and nothing stops. warnings: expectations that are
    unmet, stop nothing and have no rows to set aside. bad_rows: position in the raw table -> why. typed: the declared
    columns in their canonical types, all rows (None if the schema is wrong). results: one GX validation result, for the
    docs.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    bad_rows: Mapping[int, tuple[str, ...]]
    typed: pa.Table | None
    results: Any


def kind_of(arrow_type: pa.DataType) -> Kind | None:
    """Which kind of column an Arrow type is; None for one no suite knows (a timestamp without a zone, a decimal)."""
    types = pa.types
    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return "text"
    if types.is_signed_integer(arrow_type):
        return "integer"
    if types.is_float32(arrow_type) or types.is_float64(arrow_type):
        return "float"
    if types.is_timestamp(arrow_type) and arrow_type.tz and arrow_type.unit != "ns":
        return "timestamp"
    return None


def retyped_columns(schema: pa.Schema, suite: Suite) -> list[str]:
    """Columns that are there with another type than declared, each as a sentence."""
    return [
        f"column {name} was retyped: expected {column.kind}, got {schema.field(name).type}"
        for name, column in suite.columns.items()
        if name in schema.names and kind_of(schema.field(name).type) != column.kind
    ]


def missing_columns(schema: pa.Schema, suite: Suite) -> list[str]:
    """Declared columns that are not there."""
    return [name for name in suite.columns if name not in schema.names]


def added_columns(schema: pa.Schema, suite: Suite) -> list[str]:
    """Columns that no suite declares: kept in the raw object, left out of the clean one."""
    return [name for name in schema.names if name not in suite.columns]


def canonical_schema(suite: Suite) -> pa.Schema:
    """The declared columns, in their declared order and canonical types."""
    return pa.schema([(name, _CANONICAL[column.kind]) for name, column in suite.columns.items()])


def to_canonical(table: pa.Table, suite: Suite) -> pa.Table:
    """A table in the canonical schema; its own has been checked."""
    schema = canonical_schema(suite)
    return table.select(schema.names).cast(schema)


def check_table(table: pa.Table, suite: Suite, limits: Table, partition: Interval) -> CheckedTable:
    """Check the rows of one partition of a table; finds, and changes nothing."""
    limits = limits.on(partition.start.date())
    notes = tuple(f"column {name} was added; it is not taken over" for name in added_columns(table.schema, suite))
    expects = delivery_expectations(suite, limits)
    retyped = retyped_columns(table.schema, suite)
    if retyped or missing_columns(table.schema, suite):
        first = run_suite(table, expects, complete=False)
        return CheckedTable(
            problems=(*_problems(first), *retyped),
            notes=notes,
            warnings=(),
            bad_rows={},
            typed=None,
            results=first.results,
        )
    typed = to_canonical(table, suite)
    if typed.num_rows:
        expects = (*expects, *content_expectations(suite, limits, partition))
    allowed = int(limits.max_quarantined_share * typed.num_rows)
    keep_latest = limits if limits.duplicates == "keep_latest" else None
    return replace(check_rows(typed, expects, allowed=allowed, keep_latest=keep_latest), notes=notes)


def check_rows(
    typed: pa.Table, expects: Sequence[Expect], *, allowed: int, keep_latest: Table | None = None
) -> CheckedTable:
    """Whether rows meet some expectations; more than `allowed` bad rows are a problem instead of a list.

    BASIC results first; the positions of bad rows only for what failed, and only where few enough did. With
    `keep_latest`, rows whose key a later row of that table has are bad, too.
    """
    first = run_suite(typed, expects, complete=False)
    problems = _problems(first)
    unmet = [o for o in first.outcomes if not o.success and not o.error and o.expect.severity == "warning"]
    failed = [outcome for outcome in unmet if outcome.failed_rows]
    most = max((outcome.failed_rows for outcome in failed), default=0)
    found = run_suite(typed, [o.expect for o in failed], complete=True).outcomes if 0 < most <= allowed else ()
    bad_rows = _collect_reasons(typed, ((outcome.expect, outcome.positions) for outcome in found))
    why = [f"{outcome.failed_rows} rows: {outcome.expect.reason}" for outcome in failed]
    if keep_latest and (older := find_older_rows(typed, keep_latest, bad_rows)):
        expect = latest_of_key(keep_latest)
        why.append(f"{len(older)} rows: {expect.reason}")
        bad_rows = {place: bad_rows.get(place, ()) for place in sorted({*bad_rows, *older})}
        bad_rows |= {place: (_reason(expect, typed, place),) for place in older}
    if (count := max(most, len(bad_rows))) > allowed:
        problems.append(
            f"{count} of {typed.num_rows} rows would be quarantined, {allowed} are allowed; {'; '.join(why)}"
        )
    # Of a table as a whole, or of rows that Great Expectations counts without saying which.
    of_no_row = [*(o for o in unmet if not o.failed_rows), *(o for o in found if not o.positions)]
    return CheckedTable(
        problems=tuple(problems),
        notes=(),
        warnings=tuple(f"{o.expect.reason} ({o.observed})" for o in of_no_row),
        bad_rows=bad_rows,
        typed=typed,
        results=first.results,
    )


def find_older_rows(typed: pa.Table, table: Table, bad_rows: Container[int] = ()) -> list[int]:
    """Positions of the good rows whose key another good row has that became known later, or lies behind it.

    Nulls are equal; rows whose key is nothing else do not count.
    """
    keys = [f"key{number}" for number in range(len(table.key))]
    rows = pa.table([settle_zeros(typed[name]) for name in table.key], keys)
    good = pa.array([place not in bad_rows for place in range(typed.num_rows)], pa.bool_())
    named = functools.reduce(pc.or_, [pc.is_valid(rows[key]) for key in keys])
    rows = rows.append_column("known", typed[table.available_at])
    rows = rows.append_column("place", pa.array(range(typed.num_rows), pa.int64())).filter(pc.and_(named, good))
    rows = rows.sort_by([(name, "ascending") for name in (*keys, "known", "place")])
    before, after = rows.slice(0, max(rows.num_rows - 1, 0)), rows.slice(1)
    same = functools.reduce(pc.and_, [_equal(before[key], after[key]) for key in keys])
    return sorted(before.filter(same)["place"].to_pylist())


def _equal(one: Any, other: Any) -> Any:
    """Where two columns have the same value, null included."""
    both = pc.and_(pc.is_null(one), pc.is_null(other))
    return pc.or_(pc.fill_null(pc.equal(one, other), False), both)  # noqa: FBT003


def find_bad_rows(typed: pa.Table, suite: Suite, limits: Table, partition: Interval) -> dict[int, tuple[str, ...]]:
    """The rows of one partition that validation would quarantine, however many: position -> why."""
    expects = [e for e in content_expectations(suite, limits, partition) if e.severity == "warning"]
    return _collect_reasons(typed, zip(expects, find_failing_rows(typed, expects), strict=True))


def _problems(suite_run: SuiteRun) -> list[str]:
    """What stops the batch: checks that could not be made, whatever their severity, and unmet critical ones."""
    unmet = [o for o in suite_run.outcomes if not o.error and not o.success and o.expect.severity == "critical"]
    return [
        *(f"check failed to run ({o.expect.reason}): {o.error}" for o in suite_run.outcomes if o.error),
        *(f"{o.expect.reason} ({o.observed})" for o in unmet),
    ]


def _collect_reasons(typed: pa.Table, failing: Iterable[tuple[Expect, Sequence[int]]]) -> dict[int, tuple[str, ...]]:
    """Expectations with the rows that fail them, by row."""
    reasons = defaultdict[int, list[str]](list)
    for expect, positions in failing:
        for position in positions:
            reasons[position].append(_reason(expect, typed, position))
    return {position: tuple(reasons[position]) for position in sorted(reasons)}


def _reason(expect: Expect, typed: pa.Table, position: int) -> str:
    """The reason, and the values it is about as they are in the raw data."""
    named = expect.arguments
    names = [named[key] for key in ("column", "column_A", "column_B") if key in named] + list(
        named.get("column_list", ())
    )
    values = ", ".join(f"{name} = {_shown(typed.column(name)[position].as_py())}" for name in names)
    return f"{expect.reason}: {values}"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
