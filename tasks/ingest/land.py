"""Lands one partition of a use case's source in the lake, exactly as it is, once per content.

A landed object is named by the hash of its bytes, and its bytes depend on the rows alone. So landing again finds the
object that is there; a changed source makes a new object beside the old one, and a new, higher `version` in `batches`.
The highest version is current. If the source changes back, the old row gets the next version and is current again:
what was found clean in it, and what was quarantined, still holds, because it is the same content.

A task killed between the put and the commit leaves an object that no row names. The next run of an unchanged source
adopts it; that of a changed one leaves it, unused: nothing reads the lake but through `batches`.
"""

import logging
from dataclasses import dataclass
from datetime import datetime

import psycopg2
import pyarrow as pa
from psycopg2 import sql

from adapters.connect import Outside
from adapters.errors import Unreadable
from adapters.lake import Stored
from adapters.parquet import ordered, to_bytes
from adapters.warehouse import Fence
from expectations import suites
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest import late
from tasks.ingest.source_rows import known_sql, read_source_rows, relation_sql

logger = logging.getLogger(__name__)

_OVERLAPPING = """
select table_name, partition_start, partition_end from batches
where use_case = %(use_case)s and partition_start < %(end)s and partition_end > %(start)s
    and (partition_start, partition_end) <> (%(start)s, %(end)s) limit 1"""

# One statement for three cases: new content gets the next version; content that was current before, and is found
# again, is raised to it; content that is current already is not touched.
_REGISTER = """
insert into batches
    (use_case, table_name, partition_start, partition_end, raw_sha256, raw_uri, raw_rows, status, version)
select
    %(use_case)s, %(table)s, %(start)s, %(end)s, %(sha256)s, %(uri)s, %(rows)s, 'landed', coalesce(max(version), 0) + 1
from batches where use_case = %(use_case)s and table_name = %(table)s and partition_start = %(start)s
on conflict (use_case, table_name, partition_start, raw_sha256) do update set version = excluded.version
    where batches.version + 1 < excluded.version"""


def land_partition(use_case: UseCase, partition: Interval, outside: Outside) -> Batch:
    """Copy every source table's rows of one partition into the lake; landing the same rows again changes nothing.

    Rows are landed as the source has them, an empty interval as an empty object: `validate` judges. Columns of types
    that are left out (documents, arrays, bytes) are named by an alert of tier `info`. Rows that became known before the
    first partition are no part of the use case: the log counts them.

    Raises:
        BadData: a table, or the column that says when its rows became known, is gone or has another type; a column of
            a type that is left out is declared as what it is not; or text is in no encoding.
        psycopg2.OperationalError: the source or the warehouse stays away; trying again is safe.
        FencedOut: a later run of the same partition has begun, and will do this work.
    """
    if use_case.grid.containing(partition.start) != partition:
        raise ValueError(f"{partition} is not a partition of {use_case.name}: see first_partition and partition_days")
    key = use_case.grid.key(partition)
    fence = outside.warehouse.begin(f"{use_case.name}/ingest/{key}")
    extracted = _extract(use_case, partition, outside)
    rows = extracted.rows
    stored = {
        name: outside.lake.put(f"raw/{use_case.name}/{name}/{key}", to_bytes(table), ".parquet")
        for name, table in rows.items()
    }
    batch = Batch(
        use_case=use_case.name,
        partition_start=partition.start,
        partition_end=partition.end,
        tables=[
            TableBatch(table=name, raw_uri=raw.uri, raw_sha256=raw.sha256, raw_rows=rows[name].num_rows)
            for name, raw in stored.items()
        ],
    )
    outside.warehouse.retry_transaction(lambda: _register(use_case, batch, extracted.fingerprints, fence, outside))
    _report(batch, stored)
    _report_earlier_rows(use_case, extracted.earlier)
    _warn_of_rows_in_no_partition(use_case, extracted.in_no_partition, outside)
    _name_left_out(use_case, extracted.left_out, outside)
    return batch


@dataclass(frozen=True)
class _Extracted:
    """What the source holds at one moment, so that a write in between cannot make the tables disagree.

    Each table's rows of the partition; which columns are left out of them; how many it holds that became known before
    the first partition, and how many that did at no time; and the partition's fingerprints.
    """

    rows: dict[str, pa.Table]
    left_out: dict[str, tuple[str, ...]]
    earlier: dict[str, int]
    in_no_partition: dict[str, int]
    fingerprints: late.Fingerprints


def _extract(use_case: UseCase, partition: Interval, outside: Outside) -> _Extracted:
    def work() -> _Extracted:
        rows, left_out, earlier, in_no_partition = {}, {}, {}, {}
        fingerprints = dict[tuple[str, datetime], late.Fingerprint]()
        with outside.source.transaction(snapshot=True) as at:
            for name, table in use_case.source.tables.items():
                try:
                    span = (partition.start, partition.end)
                    extracted, left_out[name] = read_source_rows(outside.source, at, use_case, name, span)
                    at.execute(_outside_partitions(use_case, name), (utc(use_case.grid.first),))
                    earlier[name], in_no_partition[name] = at.fetchone() or (0, 0)
                    fingerprints |= late.read_fingerprints(at, use_case, name, partition)
                except (psycopg2.ProgrammingError, psycopg2.DataError, Unreadable) as error:
                    raise _unreadable(use_case, name, partition, error, outside) from error
                suite = suites(use_case.name)[name]
                rows[name] = ordered(extracted, tuple(suite.find_source(column) for column in table.key))
        return _Extracted(rows, left_out, earlier, in_no_partition, fingerprints)

    return outside.source.retry_transaction(work)


def _outside_partitions(use_case: UseCase, name: str) -> sql.Composed:
    """The query that counts a table's rows before the first partition (its parameter), and those at no time."""
    return sql.SQL(
        "select count(*) filter (where isfinite({known})), count(*) filter (where isfinite({known}) is not true)"
        " from {table} where {known} is null or {known} < %s or {known} = 'infinity'"
    ).format(
        table=relation_sql(use_case, name),
        known=known_sql(use_case.source.tables[name], suites(use_case.name)[name]),
    )


def _report_earlier_rows(use_case: UseCase, earlier: dict[str, int]) -> None:
    """Say what the use case leaves out by its declaration: nobody has to mend that."""
    for name, count in earlier.items():
        if count:
            first = use_case.source.first_partition
            logger.info("%s: %d rows became known before the first partition (%s) and are left out", name, count, first)


def _warn_of_rows_in_no_partition(use_case: UseCase, in_no_partition: dict[str, int], outside: Outside) -> None:
    """No partition would ever take rows whose moment is missing, or infinite; an alert says so."""
    for name, count in in_no_partition.items():
        fingerprint = f"{_fingerprint(use_case.name, name)}.in_no_partition"
        if count == 0:
            outside.alerts.resolve(fingerprint)
        else:
            outside.alerts.raise_alert(
                "warning",
                use_case.name,
                fingerprint,
                f"{use_case.name}: {count} rows of source table {name} land in no partition",
                f"their {use_case.source.tables[name].available_at} is null or infinite: mend it, and run the partition"
                " it then falls into again",
            )


def _name_left_out(use_case: UseCase, left_out: dict[str, tuple[str, ...]], outside: Outside) -> None:
    """Say which columns are not taken over because of their type, as long as there are any."""
    for name, columns in left_out.items():
        fingerprint = f"{_fingerprint(use_case.name, name)}.left-out"
        if columns:
            title = f"{use_case.name}: {len(columns)} columns of {name} are left out"
            body = f"{'; '.join(columns)}. Declare one as text in expectations/ to have it as PostgreSQL writes it"
            outside.alerts.raise_alert("info", use_case.name, fingerprint, title, body)
        else:
            outside.alerts.resolve(fingerprint)


def _unreadable(
    use_case: UseCase, name: str, partition: Interval, error: psycopg2.Error | Unreadable, outside: Outside
) -> BadData:
    """The error for a source table that cannot be read by interval, after a critical alert."""
    problem = (
        f"source table {name} cannot be read by its column {use_case.source.tables[name].available_at}:"
        f" {str(error).splitlines()[0]}. Mend it, or declare its columns anew, and run the partition again"
    )
    outside.alerts.raise_alert(
        "critical",
        use_case.name,
        _fingerprint(use_case.name, name),
        f"{use_case.name}: source table {name} cannot be read",
        f"{partition}: {problem}",
    )
    return BadData(problem)


def _fingerprint(use_case: str, table: str) -> str:
    return f"{use_case}.source.{table}"


def _register(use_case: UseCase, batch: Batch, fingerprints: late.Fingerprints, fence: Fence, outside: Outside) -> None:
    interval = {"use_case": batch.use_case, "start": batch.partition_start, "end": batch.partition_end}
    with outside.warehouse.transaction(fence) as at:
        at.execute(_OVERLAPPING, interval)
        if other := at.fetchone():
            raise ValueError(
                f"{batch.use_case}: {other[0]} has landed for [{other[1]}, {other[2]}), which overlaps this partition;"
                " a use case keeps its partition_days: give other days another name"
            )
        for table in batch.tables:
            content = {"table": table.table, "sha256": table.raw_sha256, "uri": table.raw_uri, "rows": table.raw_rows}
            at.execute(_REGISTER, interval | content)
            outside.alerts.resolve(_fingerprint(batch.use_case, table.table), at)
        taken = {table.table: table.raw_sha256 for table in batch.tables}
        partition = Interval(batch.partition_start, batch.partition_end)
        late.remember_fingerprints(at, use_case, partition, taken, fingerprints)


def _report(batch: Batch, stored: dict[str, Stored]) -> None:
    for table in batch.tables:
        state = "as before" if stored[table.table].existed else "new"
        logger.info("%s from %s: %d rows, %s", table.table, batch.partition_start, table.raw_rows, state)
