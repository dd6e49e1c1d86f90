"""Corrections of quarantined rows: what a person typed, as typed values, and a table with them in place."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from expectations.vocabulary import DeclaredColumn, Suite

Values = Mapping[str, Any]


def parse_corrections(corrections: Sequence[Mapping[str, Any]], suite: Suite) -> dict[int, dict[str, Any]]:
    """Row number -> typed values of the columns to change; says what is wrong with a correction that makes no sense."""
    parsed: dict[int, dict[str, Any]] = {}
    for correction in corrections:
        number = correction.get("row_number")
        if not isinstance(number, int) or isinstance(number, bool) or number in parsed:
            raise ValueError(f"row_number: expected a whole number, each once, got {number!r} in {dict(correction)}")
        values = {name: value for name, value in correction.items() if name != "row_number"}
        if unknown := sorted(values.keys() - suite.columns.keys()):
            raise ValueError(f"row {number}: no column {', '.join(unknown)}; there are {', '.join(suite.columns)}")
        if not values:
            raise ValueError(f"row {number}: nothing to change; name a column and its right value")
        parsed[number] = {
            name: _value(suite.columns[name], value, f"row {number}, {name}") for name, value in values.items()
        }
    return parsed


def _value(column: DeclaredColumn, value: Any, where: str) -> Any:
    """A JSON value as the column's own type. Null is checked by the suite, like anything that was landed."""
    if value is None:
        return None
    if column.kind == "timestamp" and isinstance(value, str):
        return _moment(value, where)
    fits: tuple[type, ...] = {"text": (str,), "integer": (int,), "float": (int, float)}.get(column.kind, ())
    if isinstance(value, bool) or not isinstance(value, fits):
        raise ValueError(f"{where}: expected {column.kind}, got {value!r}")  # noqa: TRY004  # a person's typing error
    return float(value) if column.kind == "float" and isinstance(value, int | float) else value


def _moment(text: str, where: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a moment such as 2013-01-07T05:15:00+00:00, got {text!r}") from error
    if moment.tzinfo is None:
        raise ValueError(f"{where}: {text!r} names no time zone; write 2013-01-07T05:15:00+00:00")
    return moment.astimezone(UTC)


def apply_corrections(typed: pa.Table, corrections: Mapping[int, Values]) -> pa.Table:
    """The table with some values of some rows replaced."""
    for name in {name for values in corrections.values() for name in values}:
        column = typed.column(name).to_pylist()
        for number, values in corrections.items():
            column[number] = values.get(name, column[number])
        position = typed.column_names.index(name)
        typed = typed.set_column(position, typed.schema.field(name), pa.array(column, typed.schema.field(name).type))
    return typed
