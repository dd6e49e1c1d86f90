"""One table against its suite: the schema on Arrow types, everything else by Great Expectations on a pandas frame."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from expectations import Expect, Kind, Suite, content, delivery
from pipeline.partitions import Interval
from pipeline.source import Table

if TYPE_CHECKING:
    import pandas as pd

_CANONICAL: Mapping[Kind, pa.DataType] = {
    "text": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "timestamp": pa.timestamp("us", tz="UTC"),
}
_SHOWN_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What checking one table found.

    problems: what stops the batch. notes: what people should know and nothing stops.
    bad_rows: position in the raw table -> why. typed: the declared columns in their canonical types, all rows (None
    if the schema is wrong). results: one GX validation result, for the docs.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...]
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


def added_columns(schema: pa.Schema, suite: Suite) -> list[str]:
    """Columns that no suite declares: kept in the raw object, left out of the clean one."""
    return [name for name in schema.names if name not in suite.columns]


def canonical(table: pa.Table, suite: Suite) -> pa.Table:
    """The declared columns, in their declared order and canonical types; the schema has been checked."""
    fields = [pa.field(name, _CANONICAL[column.kind]) for name, column in suite.columns.items()]
    return table.select(list(suite.columns)).cast(pa.schema(fields))


def check(table: pa.Table, suite: Suite, limits: Table, partition: Interval) -> Checked:
    """Check the rows of one partition of a table; finds, and changes nothing."""
    notes = tuple(f"column {name} was added; it is not taken over" for name in added_columns(table.schema, suite))
    asked = delivery(suite, limits)
    retyped = retyped_columns(table.schema, suite)
    if retyped or not set(suite.columns) <= set(table.column_names):
        first = _run(table.to_pandas(), asked, complete=False)
        problems = (*_problems(first), *retyped)
        return Checked(problems=problems, notes=notes, bad_rows={}, typed=None, results=first.results)
    typed = canonical(table, suite)
    if typed.num_rows:
        asked = (*asked, *content(suite, limits, partition))
    allowed = int(limits.max_quarantined_share * typed.num_rows)
    return replace(check_rows(typed, asked, allowed=allowed), notes=notes)


def check_rows(typed: pa.Table, asked: Sequence[Expect], *, allowed: int) -> Checked:
    """Whether rows meet some expectations; more than `allowed` bad rows are a problem instead of a list.

    BASIC results first; the positions of bad rows only for what failed, and only where few enough did.
    """
    frame = to_frame(typed)
    run = _run(frame, asked, complete=False)
    problems = _problems(run)
    failed = [outcome for outcome in run.outcomes if outcome.failed_rows and outcome.expect.severity == "warning"]
    most = max((outcome.failed_rows for outcome in failed), default=0)
    bad_rows: dict[int, tuple[str, ...]] = {}
    if 0 < most <= allowed:
        bad_rows = _bad_rows(frame, typed, [outcome.expect for outcome in failed])
    if (count := max(most, len(bad_rows))) > allowed:
        why = "; ".join(f"{outcome.failed_rows} rows: {outcome.expect.reason}" for outcome in failed)
        problems.append(f"{count} of {typed.num_rows} rows would be quarantined, {allowed} are allowed; {why}")
    return Checked(problems=tuple(problems), notes=(), bad_rows=bad_rows, typed=typed, results=run.results)


def to_frame(typed: pa.Table) -> "pd.DataFrame":
    """A pandas frame in which null is missing, and NaN is not: it becomes infinity, which no bound allows."""
    for position, name in enumerate(typed.column_names):
        column = typed.column(name)
        if pa.types.is_floating(column.type):
            typed = typed.set_column(position, name, pc.if_else(pc.is_nan(column), float("inf"), column))
    return typed.to_pandas()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One expectation's answer. failed_rows counts rows; error is a check that could not be made."""

    expect: Expect
    success: bool
    failed_rows: int
    positions: tuple[int, ...]
    observed: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """The outcomes of some expectations on a frame, in the order asked, and what GX says in its own words."""

    outcomes: tuple[Outcome, ...]
    results: Any


def _problems(run: Run) -> list[str]:
    """What stops the batch: checks that could not be made, whatever their severity, and unmet critical ones."""
    errors = [f"check failed to run ({o.expect.reason}): {o.error}" for o in run.outcomes if o.error]
    unmet = [o for o in run.outcomes if not o.error and not o.success and o.expect.severity == "critical"]
    return [*errors, *(f"{outcome.expect.reason} ({outcome.observed})" for outcome in unmet)]


def _bad_rows(frame: "pd.DataFrame", typed: pa.Table, failed: Sequence[Expect]) -> dict[int, tuple[str, ...]]:
    reasons: dict[int, list[str]] = {}
    for outcome in _run(frame, failed, complete=True).outcomes:
        for position in outcome.positions:
            reasons.setdefault(position, []).append(_reason(outcome.expect, typed, position))
    return {position: tuple(reasons[position]) for position in sorted(reasons)}


def _reason(expect: Expect, typed: pa.Table, position: int) -> str:
    """The reason, and the values it is about as they are in the raw data."""
    arguments = expect.arguments
    names = [arguments[key] for key in ("column", "column_A", "column_B") if key in arguments]
    names += arguments.get("column_list", [])
    values = ", ".join(f"{name} = {_shown(typed.column(name)[position].as_py())}" for name in names)
    return f"{expect.reason}: {values}"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def _run(frame: "pd.DataFrame", expects: Sequence[Expect], *, complete: bool) -> Run:
    """Validate a frame with Great Expectations. Results come back in another order: `meta` carries the position."""
    gx = _great_expectations()
    suite = gx.ExpectationSuite(
        name="suite", expectations=[_asked(gx, expect, position) for position, expect in enumerate(expects)]
    )
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": frame})
    results = batch.validate(suite, result_format={"result_format": "COMPLETE" if complete else "BASIC"})
    by_position = {result.expectation_config.meta["position"]: result for result in results.results}
    assert len(by_position) == len(expects), "every expectation must answer once"
    return Run(outcomes=tuple(_outcome(e, by_position[i]) for i, e in enumerate(expects)), results=results)


def _asked(gx: Any, expect: Expect, position: int) -> Any:
    meta = {"position": position, "severity": expect.severity, "reason": expect.reason}
    kind = getattr(gx.expectations, expect.expectation)
    return kind(**expect.arguments, severity=expect.severity, meta=meta, notes=expect.reason)


def _outcome(expect: Expect, result: Any) -> Outcome:
    found = result.result or {}
    return Outcome(
        expect=expect,
        success=bool(result.success),
        failed_rows=int(found.get("unexpected_count") or 0),
        positions=tuple(int(position) for position in found.get("unexpected_index_list") or ()),
        observed=_observed(found),
        error=_error(result.exception_info or {}),
    )


def _observed(found: Mapping[str, Any]) -> str:
    if mismatched := (found.get("details") or {}).get("mismatched"):
        return ", ".join(f"{what}: {', '.join(names)}" for what, names in mismatched.items())
    if "observed_value" in found:
        return f"observed: {found['observed_value']}"
    examples = ", ".join(str(value) for value in (found.get("partial_unexpected_list") or [])[:_SHOWN_EXAMPLES])
    return f"{found.get('unexpected_count', 0)} rows, such as {examples}"


def _error(exception_info: Mapping[str, Any]) -> str | None:
    """GX reports a check that crashed as one entry, or as one for each metric that crashed."""
    entries: Iterable[Any] = [exception_info] if "raised_exception" in exception_info else exception_info.values()
    messages = [str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")]
    return "; ".join(dict.fromkeys(messages)) or None


def _great_expectations() -> Any:
    """Great Expectations, without its telemetry and its chatter."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations  # seconds: only the step that validates pays for it

    return great_expectations
