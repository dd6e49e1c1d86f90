"""Finds what came to a partition after it was taken, and partitions that nobody ever took.

A row that is committed late (`default now()` in a long transaction) became known in a partition that has landed, and no
later one would take it. So a landing keeps how many rows it took and a hash over them, whole, and `reconcile` compares
both with the source: of the latest `source.recheck_partitions` partitions after each landing, of all once a week. What
differs stands in `retakes` until it was taken again and judged. It is tried again and again, less and less often, and
then a person is told. A partition that is blocked waits for its person.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.connect import Outside
from expectations import suites
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.ingest.source_rows import choose_hashed, is_comparable, known_sql, relation_sql

_ALL_EVERY = timedelta(days=6, hours=12)  # so that a weekly landing finds it due each time
_OVERDUE = timedelta(days=1)  # after a partition's end, whatever hour of the day its tick is at
_PARTITIONS_A_QUERY = 32
_TAKEN_AT_ONCE = 16
_ATTEMPTS = 6  # with pauses of 10, 20, 40 ... minutes

_TAKEN = """
select distinct on (table_name, partition_start) table_name, partition_start, raw_sha256, raw_rows, source_rows,
    source_hash, status
from batches where use_case = %s order by table_name, partition_start, version desc"""

_DUE = """
select coalesce(c.all_checked_at < now() - %s, true) as everything,
    coalesce(c.checked_at < b.landed_at, true)
        or exists (select from retakes r where r.use_case = %s and r.closed_at is null) as latest
from (select max(landed_at) as landed_at from batches where use_case = %s) b
left join source_checks c on c.use_case = %s"""

_CHECKED = """
insert into source_checks values (%(use_case)s, %(at)s, %(at)s) on conflict (use_case)
do update set checked_at = excluded.checked_at,
    all_checked_at = case when %(everything)s then excluded.all_checked_at else source_checks.all_checked_at end"""

_REMEMBER = """
update batches set source_rows = %(rows)s, source_hash = %(hash)s
where use_case = %(use_case)s and table_name = %(table)s and partition_start = %(start)s and raw_sha256 = %(sha256)s
    and (source_rows, source_hash) is distinct from (%(rows)s, %(hash)s)"""

_OPEN = """
insert into retakes (use_case, partition_start, reason, tables) values (%s, %s, %s, %s)
on conflict (use_case, partition_start) where closed_at is null do update
set tables = case when excluded.tables = '{}' then retakes.tables else excluded.tables end"""

_ASK = """
insert into retakes (use_case, partition_start, reason) values (%s, %s, 'late')
on conflict (use_case, partition_start) where closed_at is null do update set found_at = now()"""

# What was found after the source was read was not looked at.
_CLOSE = """
update retakes set closed_at = now() where use_case = %s and closed_at is null and found_at < %s
    and partition_start <> all(%s::timestamptz[])"""

_LISTED = """
select partition_start, reason, tables, attempts, exists (
    select from batches b where b.use_case = r.use_case and b.partition_start = r.partition_start
        and b.status = 'blocked' and not exists (select from batches newer
            where (newer.use_case, newer.table_name, newer.partition_start)
                = (b.use_case, b.table_name, b.partition_start) and newer.version > b.version)) as is_blocked
from retakes r where use_case = %s and closed_at is null order by partition_start"""

_TRY = """
update retakes set attempts = attempts + 1, tried_at = now() where (use_case, partition_start, found_at) in (
    select use_case, partition_start, found_at from retakes
    where use_case = %s and closed_at is null and partition_start <> all(%s::timestamptz[]) and attempts < %s
        and coalesce(tried_at < now() - interval '5 minutes' * 2 ^ attempts, true)
    order by partition_start limit %s)
returning partition_start"""


@dataclass(frozen=True)
class Fingerprint:
    """The rows of one table's partition in the source: how many, and a hash of them all in any order.

    Where a part of each row is hashed, it begins with what says which: two of other parts say nothing of one another.
    """

    rows: int
    hash: str


Fingerprints = Mapping[tuple[str, datetime], Fingerprint]  # by table and start of the partition
_NOTHING = Fingerprint(0, "0")


def read_fingerprints(at: cursor, use_case: UseCase, name: str, interval: Interval) -> Fingerprints:
    """What a source table holds now of each partition of an interval: of its rows what its suite declares."""
    first = utc(use_case.grid.first)
    hashed, columns = choose_hashed(at, use_case, name)
    statement = _fingerprint_sql(use_case, name, hashed)
    at.execute(statement, (first, use_case.grid.days * 86400, interval.start, interval.end))
    return {
        (name, first + timedelta(days=number * use_case.grid.days)): Fingerprint(count, columns + total)
        for number, count, total in at.fetchall()
    }


def remember_fingerprints(
    at: cursor, use_case: UseCase, partition: Interval, taken: Mapping[str, str], fingerprints: Fingerprints
) -> None:
    """Keep what the source held beside what was taken of it (table -> SHA-256), in the landing's transaction."""
    for table, sha256 in taken.items():
        found = fingerprints.get((table, partition.start), _NOTHING)
        _remember(at, use_case, (table, partition.start), sha256, found)


def find_partitions_to_take(use_case: UseCase, outside: Outside, now: datetime) -> list[str]:
    """The keys of some partitions that `ingest` is to take (again), oldest first; each counts as one attempt.

    `now` is the clock's: of a source that still lives a partition is due a day after its end.
    """
    with outside.warehouse.session():
        compare_with_source(use_case, outside, now)
        retakes = outside.warehouse.query(_LISTED, (use_case.name,))
        blocked = [row["partition_start"] for row in retakes if row["is_blocked"]]
        _alert_about(use_case, outside, retakes, blocked)
        tried = outside.warehouse.query(_TRY, (use_case.name, blocked, _ATTEMPTS, _TAKEN_AT_ONCE))
    return sorted(use_case.grid.key(use_case.grid.containing(row["partition_start"])) for row in tried)


def open_retake(at: cursor, use_case: UseCase, start: datetime) -> None:
    """Have a partition compared with the source, and taken again where it differs, in the caller's transaction."""
    at.execute(_ASK, (use_case.name, start))


def compare_with_source(use_case: UseCase, outside: Outside, now: datetime) -> None:
    """Open a retake for each partition that is not as it was taken, or was not taken; close those that are well again.

    Nothing is compared where nothing landed since the last time, a week has not passed, and no retake is open.
    """
    [due] = outside.warehouse.query(_DUE, (_ALL_EVERY, use_case.name, use_case.name, use_case.name))
    if not (due["latest"] or due["everything"]):
        return
    taken = outside.warehouse.query(_TAKEN, (use_case.name,))  # before the source is read: it may only be behind
    if not taken:
        return
    [clock] = outside.warehouse.query("select clock_timestamp() as now")
    starts = sorted({row["partition_start"].astimezone(UTC) for row in taken})
    opened = {row["partition_start"].astimezone(UTC) for row in outside.warehouse.query(_LISTED, (use_case.name,))}
    latest = starts if due["everything"] else starts[-(use_case.source.recheck_partitions + 1) :]
    compared = {*latest, *(opened & {*starts})}
    try:
        fingerprints = _read_all_fingerprints(use_case, sorted(compared), outside)
    except psycopg2.Error as error:
        _alert_unreadable(use_case, error, outside)
        return
    outside.alerts.resolve(f"{use_case.name}.source.compare")
    missed = _list_missed(use_case, starts, now)

    def commit() -> None:
        with outside.warehouse.transaction() as at:
            unwell = {start: ("missed", dict[str, list[int]]()) for start in missed}
            for row in taken:
                start = row["partition_start"].astimezone(UTC)
                if start not in compared or row["table_name"] not in use_case.source.tables:
                    continue
                found = fingerprints.get((row["table_name"], start), _NOTHING)
                differs = _differs(row, found)
                if not differs and row["source_hash"] != found.hash:
                    _remember(at, use_case, (row["table_name"], start), row["raw_sha256"], found)
                if differs or (start in opened and row["status"] == "landed"):  # the latter was not judged yet
                    _, tables = unwell.setdefault(start, ("late", {}))
                if differs:
                    tables[row["table_name"]] = [row["raw_rows"], found.rows]
            for start, (reason, tables) in unwell.items():
                at.execute(_OPEN, (use_case.name, start, reason, json.dumps(tables)))
            at.execute(_CLOSE, (use_case.name, clock["now"], [*unwell, *(opened - compared)]))
            at.execute(_CHECKED, {"use_case": use_case.name, "at": clock["now"], "everything": due["everything"]})

    outside.warehouse.retry_transaction(commit)


def _differs(row: Mapping[str, Any], found: Fingerprint) -> bool:
    """What was taken before fingerprints were kept, or these columns hashed, is compared by its number of rows."""
    if row["source_hash"] is None or (found != _NOTHING and not is_comparable(row["source_hash"], found.hash)):
        return bool(found.rows != row["raw_rows"])
    return found != Fingerprint(row["source_rows"], row["source_hash"])


def _read_all_fingerprints(use_case: UseCase, starts: list[datetime], outside: Outside) -> Fingerprints:
    """Of these partitions and others between them: some at a time, so that no query holds on to the source for long."""
    length, found = timedelta(days=use_case.grid.days), dict[tuple[str, datetime], Fingerprint]()
    while starts:
        until = starts[0] + _PARTITIONS_A_QUERY * length
        together = [start for start in starts if start < until]
        starts = starts[len(together) :]
        with outside.source.transaction(snapshot=True) as at:
            for name in use_case.source.tables:
                interval = Interval(together[0], together[-1] + length)
                found |= read_fingerprints(at, use_case, name, interval)
    return found


def _list_missed(use_case: UseCase, starts: list[datetime], now: datetime) -> list[datetime]:
    """The partitions between the first taken and the last due that nobody took.

    The last due is, where rows still arrive, the last that ended a day before `now`; of a source that has ended it is
    the last that was taken.
    """
    length, last = timedelta(days=use_case.grid.days), starts[-1]
    if use_case.source.last_partition is None:
        last = max(last, use_case.grid.containing(now - _OVERDUE).start - length)
    due = use_case.grid.covering(Interval(starts[0], last + length))
    return sorted({partition.start for partition in due} - {*starts})


def _alert_about(
    use_case: UseCase, outside: Outside, rows: Sequence[Mapping[str, Any]], blocked: Iterable[datetime]
) -> None:
    """Tell of open retakes, and critically of those that were tried often enough."""
    given_up = [row for row in rows if row["attempts"] >= _ATTEMPTS]
    late, missed = ([row for row in rows if row["reason"] == reason] for reason in ("late", "missed"))
    title = f"{use_case.name}: rows came, changed or went after their partition was taken"
    body = f"{_describe(late)}. They are taken again, but for blocked ones: {_describe_days(blocked) or 'none'}"
    _tell(use_case, outside, "late_rows", ("warning", title, body) if late else None)
    title = f"{use_case.name}: {len(missed)} partitions were never taken"
    body = f"they are taken now: {_describe_days(row['partition_start'] for row in missed)}"
    _tell(use_case, outside, "missed", ("warning", title, body) if missed else None)
    title = f"{use_case.name}: {len(given_up)} partitions could not be taken again"
    body = (
        f"{_describe_days(row['partition_start'] for row in given_up)}: tried {_ATTEMPTS} times; see the runs of"
        f" {use_case.name}.ingest, mend what is in the way, and run these partitions by hand"
    )
    _tell(use_case, outside, "retakes", ("critical", title, body) if given_up else None)


def _tell(use_case: UseCase, outside: Outside, what: str, alert: tuple[Any, str, str] | None) -> None:
    fingerprint = f"{use_case.name}.source.{what}"
    if alert is None:
        outside.alerts.resolve(fingerprint)
    else:
        tier, title, body = alert
        outside.alerts.raise_alert(tier, use_case.name, fingerprint, title, body)


def _describe(rows: Iterable[Mapping[str, Any]]) -> str:
    listed = [
        f"{table} of {row['partition_start']:%Y-%m-%d}: {taken} rows taken, {found} there now"
        for row in rows
        for table, (taken, found) in row["tables"].items()
    ]
    return "; ".join([*listed[:20], *(["..."] if len(listed) > 20 else [])])


def _describe_days(starts: Iterable[datetime]) -> str:
    days = sorted({f"{start:%Y-%m-%d}" for start in starts})
    return ", ".join([*days[:50], *(["..."] if len(days) > 50 else [])])


def _alert_unreadable(use_case: UseCase, error: psycopg2.Error, outside: Outside) -> None:
    title = f"{use_case.name}: the source cannot be compared with what was taken"
    body = f"{str(error).strip().splitlines()[0] if str(error) else type(error).__name__}: late rows are not found"
    _tell(use_case, outside, "compare", ("warning", title, body))


def _fingerprint_sql(use_case: UseCase, name: str, hashed: sql.Composable) -> sql.Composed:
    # Hashes are added up, so that the order in which the source has its rows does not matter.
    return sql.SQL(
        "select floor(extract(epoch from {known} - %s) / %s)::int as number, count(*),"
        " sum(hashtextextended(({hashed})::text, 0))::text from {table} taken"
        " where {known} >= %s and {known} < %s group by 1"
    ).format(
        table=relation_sql(use_case, name),
        known=known_sql(use_case.source.tables[name], suites(use_case.name)[name], "taken"),
        hashed=hashed,
    )


def _remember(at: cursor, use_case: UseCase, where: tuple[str, datetime], sha256: str, found: Fingerprint) -> None:
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
