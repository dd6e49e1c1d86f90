"""Great Expectations' most used expectations, answered on Arrow columns: the same answers, without a pandas frame.

Each answer is the `result` that Great Expectations would give, so that what reads results and draws the docs need not
know who answered. `tests/tasks/ingest/test_arrow_checks.py` holds the two side by side. What is not in `KNOWN`, or
has other arguments, is Great Expectations' own to answer.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from expectations.vocabulary import Expect

ERRORS = (pa.ArrowException, KeyError, TypeError, re.error)  # what an expectation that does not fit its columns raises
_SHOWN = 20  # examples in a result
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads neighbours (Knuth, TAOCP 6.4)
Arguments = Mapping[str, Any]
Answer = tuple[bool, dict[str, Any]]


def can_answer(expect: Expect) -> bool:
    """Whether `check_on_arrow` answers this, with these arguments."""
    check = KNOWN.get(expect.expectation)
    return (check is not None and set(expect.arguments) == check[1]) or _is_bound(expect)


def check_on_arrow(table: pa.Table, expect: Expect, *, complete: bool) -> Answer:
    """(success, result); a row check's result holds the positions of the rows that fail where it is to be complete.

    Raises:
        one of ERRORS: the columns are not there, or of another type than the arguments.
    """
    return KNOWN[expect.expectation][0](table, expect.arguments, complete)


def _is_bound(expect: Expect) -> bool:
    return expect.expectation in {"ExpectColumnMinToBeBetween", "ExpectColumnMaxToBeBetween"} and (
        set(expect.arguments) <= {"column", "min_value", "max_value", "strict_min", "strict_max"}
    )


def _rows(columns: Callable[[Arguments], list[str]], fails: Callable[[pa.Table, Arguments], Any]) -> Any:
    """A row check: `fails` gives [n], true where a row fails, false or null where it does not."""

    def check(table: pa.Table, arguments: Arguments, complete: bool) -> Answer:  # noqa: FBT001
        failing = fails(table, arguments)
        count, rows = pc.sum(failing).as_py() or 0, table.num_rows
        result: dict[str, Any] = {
            "element_count": rows,
            "unexpected_count": count,
            "unexpected_percent": 100 * count / rows if rows else None,
            "partial_unexpected_list": [],
        }
        if count:
            positions = pc.indices_nonzero(pc.fill_null(failing, False))  # noqa: FBT003
            shown = table.select(columns(arguments)).take(positions.slice(0, _SHOWN))
            values = [column.to_pylist() for column in shown.columns]
            result["partial_unexpected_list"] = values[0] if len(values) == 1 else list(zip(*values, strict=True))
            if complete:
                result["unexpected_index_list"] = positions.to_pylist()
        return count == 0, result

    return check


def _column(arguments: Arguments) -> list[str]:
    return [arguments["column"]]


def _null(table: pa.Table, arguments: Arguments) -> Any:
    return pc.is_null(table[arguments["column"]])


def _outside(table: pa.Table, arguments: Arguments) -> Any:
    """Not within [min, max]; of NaN both comparisons are false, so that it lies outside."""
    column = table[arguments["column"]]
    low, high = (pa.scalar(arguments[name]) for name in ("min_value", "max_value"))
    return pc.invert(pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high)))


def _unlike(table: pa.Table, arguments: Arguments) -> Any:
    """Each distinct text once, by RE2, as pandas has it; what RE2 lacks (looking ahead or back) by Python, as there."""
    chunks = [chunk.dictionary_encode() for chunk in table[arguments["column"]].chunks]
    return pa.chunked_array(
        [pc.invert(_matches(chunk.dictionary, arguments["regex"])).take(chunk.indices) for chunk in chunks], pa.bool_()
    )


def _matches(texts: pa.Array, regex: str) -> pa.Array:
    try:
        return pc.match_substring_regex(texts, regex)
    except pa.ArrowInvalid:
        pattern = re.compile(regex)
        return pa.array([pattern.search(text) is not None for text in texts.to_pylist()], pa.bool_())


def _foreign(table: pa.Table, arguments: Arguments) -> Any:
    column = settle_zeros(table[arguments["column"]])
    values = pa.array(arguments["value_set"], column.type)
    allowed = pc.is_in(column, value_set=pc.add(values, 0.0) if pa.types.is_floating(values.type) else values)
    return pc.and_(pc.invert(allowed), pc.is_valid(column))


def settle_zeros(column: Any) -> Any:
    """The two zeros are one, and NaN is a value, as `suite_run.to_frame` has it: the infinity that no bound allows."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_nan(column), float("inf"), pc.add(column, 0.0)).cast(column.type)


def _pair(arguments: Arguments) -> list[str]:
    return [arguments["column_A"], arguments["column_B"]]


def _before(table: pa.Table, arguments: Arguments) -> Any:
    later, earlier = (table[name] for name in _pair(arguments))
    if arguments["ignore_row_if"] != "either_value_is_missing":
        raise TypeError(f"ignore_row_if = {arguments['ignore_row_if']!r} is not known here")
    return (pc.less if arguments["or_equal"] else pc.less_equal)(later, earlier)


def _listed(arguments: Arguments) -> list[str]:
    return list(arguments["column_list"])


def _doubled(table: pa.Table, arguments: Arguments) -> Any:
    """Every row whose values, together, another row has too; nulls are equal, rows of nothing else do not count."""
    names = arguments.get("column_list") or [arguments["column"]]
    rows = pa.table({name: settle_zeros(table[name]) for name in names})
    hashes = _hashes(rows)
    in_order = np.sort(hashes)
    twice = in_order[1:][in_order[1:] == in_order[:-1]]
    failing = np.zeros(rows.num_rows, np.bool_)
    if len(twice):  # equal rows have equal hashes; whether rows of equal hashes are equal, pandas says
        suspects = np.flatnonzero(np.isin(hashes, twice))
        frame = rows.take(pa.array(suspects)).to_pandas()
        failing[suspects] = (frame.duplicated(keep=False) & frame.notna().any(axis=1)).to_numpy()
    return pa.chunked_array([pa.array(failing)])


def _hashes(rows: pa.Table) -> NDArray[np.uint64]:
    """A number for each row: a tenth of the work of grouping by the values themselves."""
    mixed = np.zeros(rows.num_rows, np.uint64)
    for column in rows.columns:
        mixed = (mixed ^ _numbered(column.combine_chunks())) * _ODD
        mixed ^= mixed >> np.uint64(29)
    return mixed


def _numbered(column: pa.Array) -> NDArray[np.uint64]:
    if pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type):
        numbers = column.cast(pa.int64()).fill_null(0)
    else:
        numbers = column.dictionary_encode().indices.fill_null(-1)
    return np.asarray(numbers).astype(np.uint64)


def _limit(which: str) -> Any:
    def check(table: pa.Table, arguments: Arguments, complete: bool) -> Answer:  # noqa: ARG001, FBT001
        column = table[arguments["column"]]
        if pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_nan(column), float("inf"), column)
        observed = pc.min_max(column)[which].as_py()
        low, high = arguments.get("min_value"), arguments.get("max_value")
        success = observed is not None
        if success and low is not None:
            success = observed > low if arguments.get("strict_min") else observed >= low
        if success and high is not None:
            success = observed < high if arguments.get("strict_max") else observed <= high
        return success, {"observed_value": observed}

    return check


def _row_count(table: pa.Table, arguments: Arguments, complete: bool) -> Answer:  # noqa: ARG001, FBT001
    return arguments["min_value"] <= table.num_rows <= arguments["max_value"], {"observed_value": table.num_rows}


def _column_set(table: pa.Table, arguments: Arguments, complete: bool) -> Answer:  # noqa: ARG001, FBT001
    wanted, present = set(arguments["column_set"]), set(table.column_names)
    mismatched = {"unexpected": sorted(present - wanted), "missing": sorted(wanted - present)}
    success = not mismatched["missing"] and (not arguments["exact_match"] or not mismatched["unexpected"])
    listed = {what: names for what, names in mismatched.items() if names}
    return success, {"observed_value": sorted(present)} | ({"details": {"mismatched": listed}} if listed else {})


# Name -> what answers it, and the arguments that it knows.
KNOWN: Mapping[str, tuple[Callable[[pa.Table, Arguments, bool], Answer], set[str]]] = {
    "ExpectTableColumnsToMatchSet": (_column_set, {"column_set", "exact_match"}),
    "ExpectTableRowCountToBeBetween": (_row_count, {"min_value", "max_value"}),
    "ExpectColumnMinToBeBetween": (_limit("min"), set()),
    "ExpectColumnMaxToBeBetween": (_limit("max"), set()),
    "ExpectColumnValuesToNotBeNull": (_rows(_column, _null), {"column"}),
    "ExpectColumnValuesToBeBetween": (_rows(_column, _outside), {"column", "min_value", "max_value"}),
    "ExpectColumnValuesToMatchRegex": (_rows(_column, _unlike), {"column", "regex"}),
    "ExpectColumnValuesToBeInSet": (_rows(_column, _foreign), {"column", "value_set"}),
    "ExpectColumnPairValuesAToBeGreaterThanB": (
        _rows(_pair, _before),
        {"column_A", "column_B", "or_equal", "ignore_row_if"},
    ),
    "ExpectColumnValuesToBeUnique": (_rows(_column, _doubled), {"column"}),
    "ExpectCompoundColumnsToBeUnique": (_rows(_listed, _doubled), {"column_list"}),
}
