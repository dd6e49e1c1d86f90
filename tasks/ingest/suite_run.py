"""Checks a table against expectations: on Arrow where that answers as Great Expectations does, else by the library."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from expectations.vocabulary import Expect
from tasks.ingest import arrow_checks

if TYPE_CHECKING:
    import pandas as pd

_SHOWN_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class ExpectationOutcome:
    """One expectation's answer. failed_rows counts rows; error is a check that could not be made."""

    expect: Expect
    success: bool
    failed_rows: int
    positions: tuple[int, ...]
    observed: str
    error: str | None


@dataclass(frozen=True, kw_only=True)
class SuiteRun:
    """The outcomes of some expectations on a table, in their order, and the same as a result of Great Expectations."""

    outcomes: tuple[ExpectationOutcome, ...]
    results: Any


def run_suite(table: pa.Table, expects: Sequence[Expect], *, complete: bool) -> SuiteRun:
    """Check a table against expectations; `complete` also finds the positions of the rows that fail."""
    gx = load_great_expectations()
    on_arrow = [position for position, expect in enumerate(expects) if arrow_checks.can_answer(expect)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        answers = pool.map(lambda position: _on_arrow(gx, table, expects, position, complete=complete), on_arrow)
        by_position = dict(zip(on_arrow, answers, strict=True))
    others = {position: expect for position, expect in enumerate(expects) if position not in by_position}
    if others:
        by_position.update(run_by_gx(gx, to_frame(table), others, complete=complete))
    results = [by_position[position] for position in range(len(expects))]
    return SuiteRun(
        outcomes=tuple(_outcome(expect, result) for expect, result in zip(expects, results, strict=True)),
        results=_suite_result(gx, results),
    )


def find_failing_rows(table: pa.Table, expects: Sequence[Expect]) -> list[Sequence[int]]:
    """For each of some expectations the positions of the rows that leave it unmet; all, where it cannot be checked.

    Without Great Expectations, which takes seconds to load, where Arrow answers them all.
    """
    positions = dict[int, Sequence[int]]()
    for number, expect in enumerate(expects):
        if arrow_checks.can_answer(expect):
            try:
                _, result = arrow_checks.check_on_arrow(table, expect, complete=True)
            except arrow_checks.ERRORS:
                positions[number] = range(table.num_rows)
            else:
                positions[number] = result.get("unexpected_index_list") or ()
    others = {number: expect for number, expect in enumerate(expects) if number not in positions}
    if others:
        for number, result in run_by_gx(load_great_expectations(), to_frame(table), others, complete=True).items():
            outcome = _outcome(others[number], result)
            met = () if outcome.success else outcome.positions  # `mostly` may allow for some rows
            positions[number] = range(table.num_rows) if outcome.error else met
    return [positions[number] for number in range(len(expects))]


def _on_arrow(gx: Any, table: pa.Table, expects: Sequence[Expect], position: int, *, complete: bool) -> Any:
    from great_expectations.core import ExpectationValidationResult

    config = _gx_expectation(gx, expects[position], position).configuration
    try:
        success, result = arrow_checks.check_on_arrow(table, expects[position], complete=complete)
    except arrow_checks.ERRORS as error:
        return ExpectationValidationResult(
            success=False,
            expectation_config=config,
            exception_info={
                "raised_exception": True,
                "exception_message": repr(error),
                "exception_traceback": None,
            },
        )
    return ExpectationValidationResult(success=success, expectation_config=config, result=result)


def run_by_gx(gx: Any, frame: "pd.DataFrame", expects: Mapping[int, Expect], *, complete: bool) -> dict[int, Any]:
    """By Great Expectations on pandas. Results come back in another order: `meta` carries the position."""
    suite = gx.ExpectationSuite(
        name="suite", expectations=[_gx_expectation(gx, expect, position) for position, expect in expects.items()]
    )
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = gx.data_context.types.base.ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    batch = asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": frame})
    results = batch.validate(suite, result_format={"result_format": "COMPLETE" if complete else "BASIC"})
    by_position = {result.expectation_config.meta["position"]: result for result in results.results}
    assert by_position.keys() == expects.keys(), "every expectation must answer once"
    return by_position


def _suite_result(gx: Any, results: Sequence[Any]) -> Any:
    from great_expectations.core import ExpectationSuiteValidationResult

    passed = sum(bool(result.success) for result in results)
    return ExpectationSuiteValidationResult(
        success=passed == len(results),
        results=list(results),
        suite_name="suite",
        suite_parameters={},
        statistics={
            "evaluated_expectations": len(results),
            "successful_expectations": passed,
            "unsuccessful_expectations": len(results) - passed,
            "success_percent": 100 * passed / max(len(results), 1),
        },
        meta={"great_expectations_version": gx.__version__},
    )


def to_frame(typed: pa.Table) -> "pd.DataFrame":
    """A pandas frame in which null is missing, and NaN is not: it becomes infinity, which no bound allows."""
    for position, name in enumerate(typed.column_names):
        column = typed.column(name)
        if pa.types.is_floating(column.type):
            typed = typed.set_column(position, name, pc.if_else(pc.is_nan(column), float("inf"), column))
    # A frame has whole numbers beside nothing as doubles, of which two may be one.
    return typed.to_pandas(integer_object_nulls=any(map(_has_large, typed.columns)))


def _has_large(column: pa.ChunkedArray) -> bool:
    if not pa.types.is_integer(column.type) or not column.null_count:
        return False
    least, most = pc.min_max(column).as_py().values()
    return least is not None and max(-least, most) > 2**53


def _gx_expectation(gx: Any, expect: Expect, position: int) -> Any:
    meta = {"position": position, "severity": expect.severity, "reason": expect.reason}
    kind = getattr(gx.expectations, expect.expectation)
    return kind(**expect.arguments, severity=expect.severity, meta=meta, notes=expect.reason)


def _outcome(expect: Expect, result: Any) -> ExpectationOutcome:
    details = result.result or {}
    return ExpectationOutcome(
        expect=expect,
        success=bool(result.success),
        failed_rows=int(details.get("unexpected_count") or 0),
        positions=tuple(int(position) for position in details.get("unexpected_index_list") or ()),
        observed=_observed(details),
        error=_error(result.exception_info or {}),
    )


def _observed(details: Mapping[str, Any]) -> str:
    if mismatched := (details.get("details") or {}).get("mismatched"):
        return ", ".join(f"{what}: {', '.join(names)}" for what, names in mismatched.items())
    if "observed_value" in details:
        return f"observed: {details['observed_value']}"
    examples = ", ".join(str(value) for value in (details.get("partial_unexpected_list") or [])[:_SHOWN_EXAMPLES])
    return f"{details.get('unexpected_count', 0)} rows, such as {examples}"


def _error(exception_info: Mapping[str, Any]) -> str | None:
    """GX reports a check that crashed as one entry, or as one for each metric that crashed."""
    entries: Iterable[Any] = [exception_info] if "raised_exception" in exception_info else exception_info.values()
    messages = [str(entry["exception_message"]) for entry in entries if entry.get("raised_exception")]
    return "; ".join(dict.fromkeys(messages)) or None


def load_great_expectations() -> Any:
    """Great Expectations, without its telemetry and its chatter."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.ERROR)
    import great_expectations  # seconds: only the step that validates pays for it

    return great_expectations
