"""Real clean data put straight into the lake and `batches`, for tests of what comes after validation."""

from datetime import UTC, datetime, timedelta
from functools import cache

import pyarrow as pa

from adapters.connect import Outside
from adapters.parquet import to_bytes
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tests.real_flights import REFERENCE, real_rows

FIRST = datetime(2012, 12, 31, tzinfo=UTC)
TABLES = ("flights", "movements", "weather", "planes", "airports", "airlines")


def week(number: int) -> Interval:
    """A partition, counted from 0."""
    start = FIRST + timedelta(days=7 * number)
    return Interval(start, start + timedelta(days=7))


@cache
def clean_rows(table: str, partition: Interval) -> pa.Table:
    """What became known in a partition; the reference tables once, in the first."""
    rows = real_rows(table, week(0) if table in REFERENCE else partition)
    return rows.slice(0, 0) if table in REFERENCE and partition.start != FIRST else rows


def put_clean(outside: Outside, use_case: UseCase, partition: Interval, **changed: pa.Table) -> None:
    """One partition as ingested and found clean, with some of its tables replaced; again: a new current version."""
    for table in TABLES:
        put_table(outside, use_case, table, partition, rows=changed.get(table))


def put_table(
    outside: Outside,
    use_case: UseCase,
    table: str,
    partition: Interval,
    *,
    rows: pa.Table | None = None,
    status: str = "clean",
) -> None:
    """One table of a partition, as `put_clean`; or `blocked`, as validation leaves a bad one."""
    rows = clean_rows(table, partition) if rows is None else rows
    key = use_case.grid.key(partition)
    stored = outside.lake.put(f"clean/{use_case.name}/{table}/{key}", to_bytes(rows), ".parquet")
    clean = {"uri": stored.uri, "sha256": stored.sha256, "rows": rows.num_rows} if status == "clean" else {}
    outside.warehouse.execute(
        """insert into batches (use_case, table_name, partition_start, partition_end, raw_sha256, version, raw_uri,
               raw_rows, status, clean_uri, clean_sha256, clean_rows)
           select %(use_case)s, %(table)s, %(start)s, %(end)s, %(raw)s, coalesce(max(version), 0) + 1, '-', %(n)s,
               %(status)s, %(uri)s, %(sha256)s, %(rows)s
           from batches where use_case = %(use_case)s and table_name = %(table)s and partition_start = %(start)s
           on conflict (use_case, table_name, partition_start, raw_sha256) do update set version = excluded.version
               where batches.version + 1 < excluded.version""",
        {
            "use_case": use_case.name,
            "table": table,
            "start": partition.start,
            "end": partition.end,
            "raw": stored.sha256 + status,
            "n": rows.num_rows,
            "status": status,
            "uri": None,
            "sha256": None,
            "rows": None,
        }
        | clean,
    )
