"""Corrections of quarantined rows: as typed values, in their table, and lost.

They are lost where new content of a partition does not have them: they were made in the content before.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
from psycopg2.extensions import cursor

from adapters.connect import Outside
from expectations.vocabulary import DeclaredColumn, Suite
from pipeline.handoffs import Batch, TableBatch
from tasks.ingest.clean_columns import clean_type, describe_declared

Values = Mapping[str, Any]  # of one row, by column
# Of the content that was clean before this one, and what became of each: the row as bad as before has a number anew.
_LOST = """
select q.row_number, q.corrected::text, q.replayed_by, (
    select min(anew.row_number) from quarantine anew where (anew.use_case, anew.table_name, anew.partition_start)
        = (q.use_case, q.table_name, q.partition_start) and anew.raw_sha256 = %(now)s and anew.row_data = q.row_data)
from quarantine q join batches b using (use_case, table_name, partition_start, raw_sha256)
where q.use_case = %(use_case)s and q.table_name = %(table)s and q.partition_start = %(start)s
    and q.status = 'replayed' and b.version = (
        select max(version) from batches before where (before.use_case, before.table_name, before.partition_start)
            = (q.use_case, q.table_name, q.partition_start) and before.status = 'clean' and raw_sha256 <> %(now)s)
order by q.row_number"""
_SHOWN = 200  # of lost corrections, in an alert


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
    if isinstance(value, str) and column.kind in {"timestamp", "date", "decimal"}:
        return _READ[column.kind](value, column, where)
    is_right = isinstance(value, _FITS.get(column.kind, ())) and isinstance(value, bool) == (column.kind == "boolean")
    if not is_right or (column.kind == "integer" and not -(2**63) <= value < 2**63):
        raise ValueError(f"{where}: expected {describe_declared(column)}, got {value!r}")
    if column.kind == "decimal":
        return _number(str(value), column, where)
    return float(value) if column.kind == "float" else value


def _number(text: str, column: DeclaredColumn, where: str) -> Decimal:
    try:
        number = Decimal(text)
        pa.array([number], clean_type(column))
    except (InvalidOperation, pa.ArrowException) as error:
        raise ValueError(f'{where}: expected {describe_declared(column)} such as "12.50", got {text!r}') from error
    return number


def _day(text: str, column: DeclaredColumn, where: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a {column.kind} such as 2013-01-07, got {text!r}") from error


def _moment(text: str, column: DeclaredColumn, where: str) -> datetime:  # noqa: ARG001  # as the others are called
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{where}: expected a moment such as 2013-01-07T05:15:00+00:00, got {text!r}") from error
    if moment.tzinfo is None:
        raise ValueError(f"{where}: {text!r} names no time zone; write 2013-01-07T05:15:00+00:00")
    return moment.astimezone(UTC)


_READ: Mapping[str, Callable[[str, DeclaredColumn, str], Any]] = {
    "timestamp": _moment,
    "date": _day,
    "decimal": _number,
}
_FITS: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "integer": (int,),
    "float": (int, float),
    "boolean": (bool,),
    "decimal": (int,),
}


def apply_corrections(typed: pa.Table, corrections: Mapping[int, Values]) -> pa.Table:
    """The table with some values of some rows replaced."""
    for name in {name for values in corrections.values() for name in values}:
        column = typed.column(name).to_pylist()
        for number, values in corrections.items():
            column[number] = values.get(name, column[number])
        field = typed.schema.field(name)
        typed = typed.set_column(typed.column_names.index(name), field, pa.array(column, field.type))
    return typed


def warn_of_lost_corrections(at: cursor, fingerprint: str, landed: TableBatch, batch: Batch, outside: Outside) -> None:
    """Warn, in the caller's transaction, of what was replayed before and is not in the content that is clean now."""
    where = {"use_case": batch.use_case, "table": landed.table, "start": batch.partition_start}
    at.execute(_LOST, where | {"now": landed.raw_sha256})
    lost = at.fetchall()
    lines = [
        f"row {number}, corrected by {actor}: {corrected}; "
        + ("the source has mended, changed or dropped it" if anew is None else f"as bad as before, now row {anew}")
        for number, corrected, actor, anew in lost[:_SHOWN]
    ]
    if lost:
        outside.alerts.record(
            at,
            tier="warning",
            use_case=batch.use_case,
            fingerprint=fingerprint,
            title=f"{batch.use_case}: {len(lost)} corrections of {landed.table} no longer apply",
            body=f"The source sent other content for the partition of {batch.partition_start:%Y-%m-%d}. Replay what is"
            " still wanted, then run the partition again to close this.\n" + "\n".join(lines),
        )
    else:
        outside.alerts.resolve(fingerprint, at)
