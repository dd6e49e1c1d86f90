"""Finds what came to a partition after it was taken, and partitions that nobody ever took.

A row that is committed late (`default now()` in a long transaction) became known in a partition that has landed, and no
later one would take it. So each landing compares the partitions before it with what was taken of them, by the number of
rows and a hash over whole rows: `source.recheck_partitions` of them, and all of them once a week. What differs stands
in `late_rows` until it has landed again, which `reconcile` sees to. A blocked partition waits for its person.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from psycopg2 import sql

from pipeline.partitions import Interval
from pipeline.source import Table
from pipeline.spec import UseCase

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

    from adapters.connect import Outside

_ALL_EVERY = timedelta(days=7)
_OVERDUE = timedelta(days=1)  # after a partition's end, whatever hour of the day its tick is at
_TAKEN_AT_ONCE = 16

_CHECKED = "select checked_at > now() - %s as recently from source_checks where use_case = %s"
_CHECKED_ALL = """
insert into source_checks values (%s, now()) on conflict (use_case) do update set checked_at = excluded.checked_at"""

_REMEMBER = """
update batches set source_rows = %(rows)s, source_hash = %(hash)s
where use_case = %(use_case)s and table_name = %(table)s and partition_start = %(start)s and raw_sha256 = %(sha256)s
    and (source_rows, source_hash) is distinct from (%(rows)s, %(hash)s)"""

_RETAKEN = """
update late_rows set retaken_at = now()
where use_case = %s and partition_start = %s and retaken_at is null"""

_TAKEN = """
select distinct on (table_name, partition_start) table_name, partition_start, raw_sha256, raw_rows, source_rows,
    source_hash, status
from batches where use_case = %s and partition_start >= %s and partition_start < %s
order by table_name, partition_start, version desc"""

_LATE = """
insert into late_rows (use_case, table_name, partition_start, rows_taken, rows_found) values (%s, %s, %s, %s, %s)
on conflict (use_case, table_name, partition_start) where retaken_at is null
do update set rows_found = excluded.rows_found"""

_OPEN = """
select table_name, partition_start, rows_taken, rows_found from late_rows
where use_case = %s and retaken_at is null order by partition_start, table_name"""

_STARTS = "select distinct partition_start from batches where use_case = %s order by 1"


@dataclass(frozen=True)
class Fingerprint:
    """The rows of one table's partition in the source: how many, and a hash of them all in any order."""

    rows: int
    hash: str


Fingerprints = Mapping[tuple[str, datetime], Fingerprint]  # by table and start of the partition
_NOTHING = Fingerprint(0, "0")


def choose_interval(use_case: UseCase, partition: Interval, outside: "Outside") -> Interval:
    """What a landing of this partition looks at: it and those before it, or all of them where a week has passed."""
    checked = outside.warehouse.query(_CHECKED, (_ALL_EVERY, use_case.name))
    first = use_case.grid.partition(str(use_case.grid.first)).start
    if not (checked and checked[0]["recently"]):
        return Interval(first, partition.end)
    before = timedelta(days=use_case.source.recheck_partitions * use_case.grid.days)
    return Interval(max(first, partition.start - before), partition.end)


def read_fingerprints(at: "cursor", use_case: UseCase, name: str, table: Table, interval: Interval) -> Fingerprints:
    """What a source table holds now of each partition of an interval."""
    first = use_case.grid.partition(str(use_case.grid.first)).start
    at.execute(_fingerprint_sql(name, table), (first, use_case.grid.days * 86400, interval.start, interval.end))
    return {
        (name, first + timedelta(days=number * use_case.grid.days)): Fingerprint(count, total)
        for number, count, total in at.fetchall()
    }


def remember_fingerprints(
    at: "cursor", use_case: UseCase, partition: Interval, taken: Mapping[str, str], fingerprints: Fingerprints
) -> None:
    """Keep with what was taken (table -> SHA-256 of its raw object) what the source held, in the landing's transaction.

    What came late to the partition is taken now.
    """
    for table, sha256 in taken.items():
        found = fingerprints.get((table, partition.start), _NOTHING)
        _remember(at, use_case, (table, partition.start), sha256, found)
    at.execute(_RETAKEN, (use_case.name, partition.start))


def note_late_rows(use_case: UseCase, interval: Interval, fingerprints: Fingerprints, outside: "Outside") -> list[str]:
    """Compare what was taken before with what the source holds; the keys of the partitions to take again.

    What was taken before fingerprints were kept is compared by its number of rows, and gets its own.
    """

    def commit() -> list[str]:
        with outside.warehouse.transaction() as at:
            at.execute(_TAKEN, (use_case.name, interval.start, interval.end))
            for table, start, sha256, raw_rows, rows, hashed, status in at.fetchall():
                found = fingerprints.get((table, start.astimezone(UTC)), _NOTHING)
                same = found.rows == raw_rows if hashed is None else found == Fingerprint(rows, hashed)
                if same and hashed is None:
                    _remember(at, use_case, (table, start), sha256, found)
                elif not same and status != "blocked" and table in use_case.source.tables:
                    at.execute(_LATE, (use_case.name, table, start, raw_rows, found.rows))
            if interval.start == use_case.grid.partition(str(use_case.grid.first)).start:
                at.execute(_CHECKED_ALL, (use_case.name,))
        return find_late_partitions(use_case, outside)

    return outside.warehouse.retry_transaction(commit)


def find_late_partitions(use_case: UseCase, outside: "Outside") -> list[str]:
    """The keys of the partitions that differ from what was taken of them, oldest first; an alert counts their rows."""
    rows = outside.warehouse.query(_OPEN, (use_case.name,))
    fingerprint = f"{use_case.name}.source.late_rows"
    if not rows:
        outside.alerts.resolve(fingerprint)
        return []
    listed = [
        f"{row['table_name']} of {row['partition_start']:%Y-%m-%d}: {row['rows_taken']} rows taken,"
        f" {row['rows_found']} there now"
        for row in rows
    ]
    title = f"{use_case.name}: rows came, changed or went after their partition was taken"
    body = "; ".join([*listed[:20], *(["..."] if len(listed) > 20 else [])])
    outside.alerts.raise_alert("warning", use_case.name, fingerprint, title, f"{body}. They are taken again")
    return list(dict.fromkeys(use_case.grid.key(use_case.grid.containing(row["partition_start"])) for row in rows))


def find_missed_partitions(use_case: UseCase, outside: "Outside", now: datetime) -> list[str]:
    """The keys of partitions between the first taken and the last due that nobody took, oldest first; an alert too.

    The last due is, where rows still arrive, the last that ended a day before `now`; of a source that has ended it is
    the last that was taken.
    """
    rows = outside.warehouse.query(_STARTS, (use_case.name,))
    taken = {row["partition_start"].astimezone(UTC) for row in rows}
    fingerprint = f"{use_case.name}.ingest.missed"
    missed = []
    if taken:
        last = max(taken)
        if use_case.source.last_partition is None:
            last = max(last, use_case.grid.containing(now - _OVERDUE).start - timedelta(days=use_case.grid.days))
        due = use_case.grid.covering(Interval(min(taken), last + timedelta(days=use_case.grid.days)))
        missed = [use_case.grid.key(partition) for partition in due if partition.start not in taken]
    if not missed:
        outside.alerts.resolve(fingerprint)
        return []
    title = f"{use_case.name}: {len(missed)} partitions were never taken"
    outside.alerts.raise_alert(
        "warning", use_case.name, fingerprint, title, f"they are taken now: {', '.join(missed[:50])}"
    )
    return missed


def find_partitions_to_take(use_case: UseCase, outside: "Outside", now: datetime) -> list[str]:
    """The keys of some partitions that `ingest` is to take (again), oldest first."""
    with outside.warehouse.session():
        keys = {*find_late_partitions(use_case, outside), *find_missed_partitions(use_case, outside, now)}
    return sorted(keys)[:_TAKEN_AT_ONCE]


def _fingerprint_sql(name: str, table: Table) -> sql.Composed:
    # Hashes are added up, so that the order in which the source has its rows does not matter.
    return sql.SQL(
        "select floor(extract(epoch from {known} - %s) / %s)::int as number, count(*),"
        " sum(hashtextextended((taken.*)::text, 0))::text from {table} taken"
        " where {known} >= %s and {known} < %s group by 1"
    ).format(table=sql.Identifier(name), known=sql.Identifier("taken", table.available_at))


def _remember(at: "cursor", use_case: UseCase, where: tuple[str, datetime], sha256: str, found: Fingerprint) -> None:
    at.execute(
        _REMEMBER,
        {
            "use_case": use_case.name,
            "table": where[0],
            "start": where[1],
            "sha256": sha256,
            "rows": found.rows,
            "hash": found.hash,
        },
    )
