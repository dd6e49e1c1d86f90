"""Real rows of 2013, as the source has them, for tests that plant faults among them."""

import io
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.csv

from adapters.warehouse import Warehouse
from expectations import suites
from infra.replay.flights_source import create_source_tables, export_tables
from pipeline.partitions import Interval
from tasks.ingest.check import to_canonical

_TYPES = {"text": "varchar", "integer": "bigint", "float": "double", "timestamp": "timestamptz"}
REFERENCE = ("planes", "airports", "airlines")  # known from the first day on


@cache
def _year() -> duckdb.DuckDBPyConnection:
    """Every table of the operator, read once a session."""
    db = duckdb.connect()
    db.execute("set timezone = 'UTC'")
    with tempfile.TemporaryDirectory() as folder:
        for table, path in export_tables(Path(folder)).items():
            columns = {name: _TYPES[column.kind] for name, column in suites("flights")[table].columns.items()}
            rows = db.read_csv(str(path), columns=columns, header=True)  # type: ignore[arg-type]  # a dict will do
            rows.create(table)
    return db


@cache
def real_rows(table: str, partition: Interval) -> pa.Table:
    """The rows of a table that became known in a partition; of reference tables all, as if they did."""
    if table in REFERENCE:
        query, bounds = f"select * replace (? as known_at) from {table} order by all", [partition.start]
    else:
        query, bounds = (
            f"from {table} where known_at >= ? and known_at < ? order by all",
            [partition.start, partition.end],
        )
    return to_canonical(_year().sql(query, params=bounds).to_arrow_table(), suites("flights")[table])


def fill(source: Warehouse, partition: Interval, *tables: str) -> None:
    """Create the operator's tables, and fill some (or all) with the real rows that became known in a partition."""
    create_source_tables(source)
    with source.transaction() as at:
        for table in tables or suites("flights"):
            sink = io.BytesIO()
            pa.csv.write_csv(real_rows(table, partition), sink, pa.csv.WriteOptions(include_header=False))
            sink.seek(0)
            at.copy_expert(f"copy {table} from stdin (format csv)", sink)


def altered(table: pa.Table, column: str, change: Callable[[object], object], *numbers: int) -> pa.Table:
    """The table with one column's values changed in some rows."""
    values = table[column].to_pylist()
    for number in numbers:
        values[number] = change(values[number])
    position = table.column_names.index(column)
    return table.set_column(position, column, pa.array(values, table.schema.field(column).type))


def later(**duration: float) -> Callable[[object], object]:
    """Moves a moment."""
    return lambda moment: moment + timedelta(**duration)  # type: ignore[operator]  # it is a datetime
