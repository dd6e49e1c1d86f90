"""One table against its suite: the schema on Arrow types, everything else by `suite_run`."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from expectations.vocabulary import (
    Expect,
    Suite,
    content_expectations,
    delivery_expectations,
    latest_of_key,
)
from pipeline.partitions import Interval
from pipeline.source import Table
from tasks.ingest.clean_columns import (
    Faults,
    can_be,
    clean_type,
    describe_declared,
    describe_raw,
    drop_rows,
    explain_faults,
    list_undeclared,
    name_columns,
    read_canonical,
)
from tasks.ingest.older_rows import find_older_rows
from tasks.ingest.suite_run import SuiteRun, find_failing_rows, run_suite

Reasons = Mapping[int, tuple[str, ...]]  # position of a row -> why it is bad
_OF_ROWS = ("ExpectColumnValues", "ExpectColumnPairValues", "ExpectMulticolumn", "ExpectSelectColumnValues")


@dataclass(frozen=True, kw_only=True)
class CheckedTable:
    """The result of checking one table.

    problems: what stops the batch. notes: what people should know and nothing stops. warnings: expectations that are
    unmet, stop nothing and have no rows to set aside. bad_rows: position in the raw table -> why. typed: the declared
    columns in their canonical types, all rows (None if the schema is wrong); what is null there and was not in the
    source stands in faults. results: one GX validation result, for the docs.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    bad_rows: Reasons
    typed: pa.Table | None
    results: Any
    faults: Faults = field(default_factory=dict)


def retyped_columns(named: pa.Schema, suite: Suite) -> list[str]:
    """Columns that are there with another type than declared, each as a sentence."""
    return [
        f"column {name} was retyped: expected {describe_declared(column)}, got {describe_raw(named.field(name).type)}"
        for name, column in suite.columns.items()
        if name in named.names and not can_be(named.field(name).type, column)
    ]


def missing_columns(named: pa.Schema, suite: Suite) -> list[str]:
    """Declared columns that are not there."""
    return [name for name in suite.columns if name not in named.names]


def canonical_schema(suite: Suite) -> pa.Schema:
    """The declared columns, in their declared order and canonical types."""
    return pa.schema([(name, clean_type(column)) for name, column in suite.columns.items()])


def to_canonical(named: pa.Table, suite: Suite) -> pa.Table:
    """A table in the canonical schema; its own has been checked, and columns have the names that they have here."""
    return read_canonical(named, suite)[0]


def check_table(table: pa.Table, suite: Suite, limits: Table, partition: Interval) -> CheckedTable:
    """Check the raw rows of one partition of a table; finds, and changes nothing."""
    limits = limits.on(partition.start.date())
    added = list_undeclared(table.schema, suite)  # kept in the raw object, left out of the clean one
    notes = tuple(f"column {name} was added; it is not taken over" for name in added)
    expects, named = delivery_expectations(suite, limits), name_columns(table, suite)
    retyped = retyped_columns(named.schema, suite)
    if retyped or missing_columns(named.schema, suite):
        first = run_suite(named, expects, complete=False)
        return CheckedTable(
            problems=(*_problems(first), *retyped),
            notes=notes,
            warnings=(),
            bad_rows={},
            typed=None,
            results=first.results,
        )
    typed, faults = read_canonical(named, suite)
    sound = drop_rows(typed, faults)
    if faults:  # the volume is that of all rows
        fewer = {name: getattr(limits, name) - len(faults) for name in ("min_rows", "max_rows")}
        expects = delivery_expectations(suite, limits.model_copy(update=fewer))
    if sound.num_rows:
        expects = (*expects, *content_expectations(suite, limits, partition))
    allowed = int(limits.max_quarantined_share * typed.num_rows)
    keep_latest = limits if limits.duplicates == "keep_latest" else None
    before = explain_faults(faults, suite)
    checked = check_rows(sound, expects, allowed=allowed, set_aside=before, keep_latest=keep_latest)
    return replace(checked, notes=notes, typed=typed, faults=faults)


def check_rows(
    typed: pa.Table,
    expects: Sequence[Expect],
    *,
    allowed: int,
    set_aside: Reasons | None = None,
    keep_latest: Table | None = None,
) -> CheckedTable:
    """Whether rows meet some expectations; more than `allowed` bad rows are a problem instead of a list.

    BASIC results first; the positions of bad rows only for what failed, and only where few enough did. `set_aside` are
    bad rows that are not among these: positions are those of all together. With `keep_latest`, rows whose key a later
    row of that table has are among the bad ones, too, but no fault, and not counted.
    """
    before = dict(set_aside or {})
    first = run_suite(typed, expects, complete=False)
    problems = _problems(first)
    unmet = [o for o in first.outcomes if not o.success and not o.error and o.expect.severity == "warning"]
    failed = [outcome for outcome in unmet if outcome.failed_rows]
    most = max((outcome.failed_rows for outcome in failed), default=0)
    is_listed = 0 < most <= allowed - len(before)
    found = run_suite(typed, [o.expect for o in failed], complete=True).outcomes if is_listed else ()
    bad_rows = _collect_reasons(typed, ((outcome.expect, outcome.positions) for outcome in found))
    why = [f"{outcome.failed_rows} rows: {outcome.expect.reason}" for outcome in failed]
    why += [f"{len(before)} rows, such as: {next(iter(before.values()))[0]}"] if before else []
    if (count := max(most, len(bad_rows)) + len(before)) > allowed:
        total = typed.num_rows + len(before)
        problems.append(f"{count} of {total} rows would be quarantined, {allowed} are allowed; {'; '.join(why)}")
    if keep_latest and count <= allowed:
        older = explain_older_rows(typed, keep_latest, bad_rows)
        if (left := typed.num_rows + len(before) - len(older)) < keep_latest.min_rows:
            problems.append(
                f"{left} rows are left where of each key the latest counts, expected at least {keep_latest.min_rows}"
            )
        else:
            bad_rows = dict(sorted((bad_rows | older).items()))
    # Of a table as a whole, or of rows that Great Expectations counts without saying which.
    of_no_row = [*(o for o in unmet if not o.failed_rows), *(o for o in found if not o.positions)]
    return CheckedTable(
        problems=tuple(problems),
        notes=(),
        warnings=tuple(f"{o.expect.reason} ({o.observed})" for o in of_no_row),
        bad_rows=_place_among_all(bad_rows, before, typed.num_rows) if count <= allowed else bad_rows,
        typed=typed,
        results=first.results,
    )


def explain_older_rows(typed: pa.Table, table: Table, bad_rows: Reasons) -> dict[int, tuple[str, ...]]:
    """The good rows whose key a later good one has, as `find_older_rows`, and why they are set aside."""
    expect = latest_of_key(table)
    return {place: (_reason(expect, typed, place),) for place in find_older_rows(typed, table, bad_rows)}


def find_bad_rows(
    typed: pa.Table, suite: Suite, limits: Table, partition: Interval, faults: Faults | None = None
) -> dict[int, tuple[str, ...]]:
    """The rows of one partition that validation would quarantine, however many: position -> why.

    What is expected of most rows, or of a table as a whole, is judged once the whole partition is there.
    """
    expects = [e for e in content_expectations(suite, limits, partition) if e.severity == "warning" and is_of_rows(e)]
    before = explain_faults(faults or {}, suite)
    sound = drop_rows(typed, before)
    found = _collect_reasons(sound, zip(expects, find_failing_rows(sound, expects), strict=True))
    return _place_among_all(found, before, sound.num_rows)


def is_of_rows(expect: Expect) -> bool:
    """Whether each row meets it or does not, whatever the others are."""
    return expect.arguments.get("mostly", 1) == 1 and expect.expectation.startswith(_OF_ROWS)


def _place_among_all(found: Reasons, before: Reasons, others: int) -> dict[int, tuple[str, ...]]:
    """Bad rows by their positions among all, of which those `before` were left out."""
    if not before:
        return dict(found)
    places = [place for place in range(others + len(before)) if place not in before]
    both = {**before, **{places[position]: reasons for position, reasons in found.items()}}
    return {place: both[place] for place in sorted(both)}


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
