"""Rows set aside by validation, with the reasons, and the clean rows that are left.

    python -m tasks.ingest.quarantine <use case> [--table <name>] [--partition <day it starts>]

prints the quarantined rows of what is current, replayed ones too, as one JSON object a line. `row_number` names a row
in the corrections of the DAG `replay_quarantine`.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from psycopg2.extensions import cursor
from psycopg2.extras import execute_batch

from adapters.connect import Outside
from adapters.lake import Stored
from adapters.parquet import ordered, to_bytes
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.command import parse_command, report_mistakes
from tasks.ingest.check import CheckedTable

_PAGE_ROWS = 500
_INSERT = """
insert into quarantine (use_case, table_name, partition_start, raw_sha256, row_number, row_data, reasons)
values (%s, %s, %s, %s, %s, %s, %s) on conflict do nothing"""
_QUARANTINED = """
select q.table_name, q.partition_start, q.row_number, q.reasons, q.row_data, q.status, q.corrected, q.quarantined_at,
    q.replayed_at, q.replayed_by
from quarantine q join batches b using (use_case, table_name, partition_start, raw_sha256)
where q.use_case = %(use_case)s and q.partition_start = coalesce(%(start)s, q.partition_start)
    and q.table_name = coalesce(%(table)s, q.table_name)
    and not exists (select from batches newer where (newer.use_case, newer.table_name, newer.partition_start)
        = (b.use_case, b.table_name, b.partition_start) and newer.version > b.version)
order by q.partition_start, q.table_name, q.row_number"""


def validation_key(use_case: UseCase, partition: Interval) -> str:
    """The fence of whatever changes the clean data of a partition: of validation and of replays alike."""
    return f"{use_case.name}/validate/{use_case.grid.key(partition)}"


def store_clean(use_case: UseCase, table: str, partition: Interval, rows: pa.Table, outside: Outside) -> Stored:
    """Store clean rows; the same rows give the same object, in whatever order they come."""
    data = to_bytes(ordered(rows, use_case.source.tables[table].key))
    return outside.lake.put(f"clean/{use_case.name}/{table}/{use_case.grid.key(partition)}", data, ".parquet")


def to_json_value(value: Any) -> Any:
    """A moment or day as ISO 8601, an exact number, NaN and infinity as text; the rest as it is."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.replace("\x00", "") if isinstance(value, str) else value  # jsonb holds no NUL


def insert_quarantined(at: cursor, landed: TableBatch, batch: Batch, checked: CheckedTable) -> None:
    """Set the bad rows of a table aside, in the caller's transaction."""
    assert checked.typed is not None, "a table without problems has been typed"
    where = (batch.use_case, landed.table, batch.partition_start, landed.raw_sha256)
    rows = (
        _describe_row(where, number, {**row, **checked.faults.get(number, {})}, reasons)
        for (number, reasons), row in zip(
            checked.bad_rows.items(), _list_rows(checked.typed, [*checked.bad_rows]), strict=True
        )
    )
    execute_batch(at, _INSERT, rows, _PAGE_ROWS)


def _list_rows(typed: pa.Table, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Some rows, so many at once as are written at once."""
    for start in range(0, len(numbers), _PAGE_ROWS):
        yield from typed.take(pa.array(numbers[start : start + _PAGE_ROWS], pa.int64())).to_pylist()


def insert_quarantined_row(
    at: cursor, where: tuple[str, str, datetime, str], number: int, values: Mapping[str, Any], reasons: Sequence[str]
) -> None:
    """Set one row aside; `where` is its use case, table, partition's start and the SHA-256 of the raw data."""
    at.execute(_INSERT, _describe_row(where, number, values, reasons))


def _describe_row(
    where: tuple[str, str, datetime, str], number: int, values: Mapping[str, Any], reasons: Sequence[str]
) -> tuple[Any, ...]:
    document = json.dumps({name: to_json_value(value) for name, value in values.items()})
    return (*where, number, document, list(reasons))


def list_quarantined(
    use_case: UseCase, outside: Outside, *, table: str | None = None, partition: Interval | None = None
) -> list[dict[str, Any]]:
    """The quarantined rows of what is current, of all tables and partitions or one; replayed ones too."""
    return outside.warehouse.query(
        _QUARANTINED,
        {
            "use_case": use_case.name,
            "table": check_table_name(table, use_case) if table else None,
            "start": partition.start if partition else None,
        },
    )


def check_table_name(table: str, use_case: UseCase) -> str:
    """The name of a table, where the use case has it.

    Raises:
        ValueError: it has not; says which there are.
    """
    if table not in use_case.source.tables:
        raise ValueError(f"no table {table!r}: {use_case.name} has {', '.join(use_case.source.tables)}")
    return table


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 0: printed, and be it nothing, 2: there is no such use case, table or partition."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.ingest.quarantine", description="Print the quarantined rows."
    )
    parser.add_argument("use_case")
    parser.add_argument("--table")
    parser.add_argument("--partition", help="the day it starts, such as 2013-01-07")
    options, use_case, outside = parse_command(parser, arguments)
    partition = use_case.grid.partition(options.partition) if options.partition else None
    for row in list_quarantined(use_case, outside, table=options.table, partition=partition):
        print(json.dumps(row, default=str))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
