"""Rows set aside by validation: what is there, and how a corrected row comes back, exactly once.

A clean object holds the raw rows that passed, in the order of their key. A replay writes a new one that also holds the
corrected rows: what an undisturbed run would have written. Raw data and the quarantined row stay as they were.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.lake import Stored
from adapters.parquet import from_bytes, ordered, to_bytes
from adapters.warehouse import Fence
from expectations import Expect, content, delivery, suites, unique_key
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest.check import Checked, canonical, check_rows
from tasks.ingest.corrections import Values, parse, patch

_INSERT = """
insert into quarantine (use_case, table_name, partition_start, raw_sha256, row_number, row_data, reasons)
values (%s, %s, %s, %s, %s, %s, %s) on conflict do nothing"""
_LISTING = """
select q.table_name, q.partition_start, q.row_number, q.row_data, q.reasons, q.status, q.corrected, q.quarantined_at,
    q.replayed_at, q.replayed_by
from quarantine q join batches b using (use_case, table_name, partition_start, raw_sha256)
where q.use_case = %(use_case)s and (%(start)s::timestamptz is null or q.partition_start = %(start)s)
    and not exists (select from batches newer where (newer.use_case, newer.table_name, newer.partition_start)
        = (b.use_case, b.table_name, b.partition_start) and newer.version > b.version)
order by q.partition_start, q.table_name, q.row_number"""
_CURRENT = """
select distinct on (table_name) * from batches where use_case = %s and partition_start = %s
order by table_name, version desc"""
_ROWS = """
select row_number, status, corrected, replayed_by, replayed_at from quarantine
where use_case = %s and table_name = %s and partition_start = %s and raw_sha256 = %s"""
_SET_REPLAYED = """
update quarantine set status = 'replayed', corrected = %s, replayed_at = now(), replayed_by = %s
where use_case = %s and table_name = %s and partition_start = %s and raw_sha256 = %s and row_number = %s
    and (status = 'quarantined' or corrected = %s::jsonb)"""
_SET_CLEAN = """
update batches set clean_uri = %s, clean_sha256 = %s, clean_rows = %s, quarantined_rows = %s, validated_at = now()
where use_case = %s and table_name = %s and partition_start = %s and raw_sha256 = %s and status = 'clean'"""


def run_key(use_case: UseCase, partition: Interval) -> str:
    """The fence of whatever changes the clean data of a partition: of validation and of replays alike."""
    return f"{use_case.name}/validate/{use_case.grid.key(partition)}"


def put_clean(use_case: UseCase, table: str, partition: Interval, rows: pa.Table, outside: Outside) -> Stored:
    """Store clean rows; the same rows give the same object, in whatever order they come."""
    data = to_bytes(ordered(rows, use_case.source.tables[table].key))
    return outside.lake.put(f"clean/{use_case.name}/{table}/{use_case.grid.key(partition)}", data, ".parquet")


def typed_row(typed: pa.Table, number: int) -> dict[str, Any]:
    """A row as JSON can say it: moments as ISO 8601, NaN and infinity as text."""
    return {name: _jsonable(typed.column(name)[number].as_py()) for name in typed.column_names}


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.replace("\x00", "") if isinstance(value, str) else value  # jsonb holds no NUL


def insert(at: cursor, landed: TableBatch, batch: Batch, checked: Checked) -> None:
    """Set the bad rows of a table aside, in the caller's transaction."""
    assert checked.typed is not None, "a table without problems has been typed"
    where = (batch.use_case, landed.table, batch.partition_start, landed.raw_sha256)
    for number, reasons in checked.bad_rows.items():
        row = json.dumps(typed_row(checked.typed, number))
        at.execute(_INSERT, (*where, number, row, list(reasons)))


def listing(use_case: UseCase, outside: Outside, partition: Interval | None = None) -> list[dict[str, Any]]:
    """The quarantined rows of what is current (all partitions, or one), with their reasons; replayed ones too."""
    start = partition.start if partition else None
    return outside.warehouse.query(_LISTING, {"use_case": use_case.name, "start": start})


@dataclass(frozen=True, kw_only=True)
class _Replay:
    """One table's content, the corrections that were replayed before and those that are asked for now."""

    batch: Mapping[str, Any]
    before: Mapping[int, Values]
    asked: Mapping[int, Values]
    left: frozenset[int]  # row numbers that stay in quarantine whatever happens


def replay(  # noqa: PLR0917  # the steps' common order: what, where, by whom, on what
    use_case: UseCase,
    table: str,
    partition: Interval,
    corrections: Sequence[Mapping[str, Any]],
    actor: str,
    outside: Outside,
) -> Batch:
    """Validate corrected rows and merge those that pass into a new clean object, in one transaction.

    Args:
        corrections: such as {"row_number": 17, "wind_speed_mph": 10.4}; moments as ISO 8601 text.
        actor: who asks; it is written beside each row.

    Raises:
        ValueError: no such row, column or type, or a row that was replayed already with other values.
        BadData: some rows still fail; those were left as they were, the others were merged. It says which, and why.
    """
    fence = outside.warehouse.begin(run_key(use_case, partition))
    suite = suites(use_case.name)[_known(table, use_case)]
    todo = _todo(use_case, table, partition, parse(corrections, suite), outside)
    if not todo.asked:
        return _batch(use_case, partition, outside)
    raw = from_bytes(outside.lake.read(todo.batch["raw_uri"], todo.batch["raw_sha256"]))
    patched = patch(canonical(raw, suite), {**todo.before, **todo.asked})
    refused = _refused(use_case, table, partition, patched, todo)
    accepted = {number: values for number, values in todo.asked.items() if number not in refused}
    if accepted:
        rows = _without(patched, todo.left | refused.keys())
        clean = put_clean(use_case, table, partition, rows, outside)
        done = _Done(batch=todo.batch, accepted=accepted, clean=clean, clean_rows=rows.num_rows, actor=actor)
        outside.warehouse.retry_transaction(lambda: _commit(done, fence, outside))
    if refused:
        why = "\n".join(f"row {number}: {'; '.join(reasons)}" for number, reasons in refused.items())
        raise BadData(f"{len(accepted)} of {len(todo.asked)} corrected rows of {table} were merged; still bad:\n{why}")
    return _batch(use_case, partition, outside)


def _known(table: str, use_case: UseCase) -> str:
    if table not in use_case.source.tables:
        raise ValueError(f"no table {table!r}: {use_case.name} has {', '.join(use_case.source.tables)}")
    return table


def _without(table: pa.Table, numbers: frozenset[int]) -> pa.Table:
    return table.filter(pa.array([number not in numbers for number in range(table.num_rows)], pa.bool_()))


def _todo(use_case: UseCase, table: str, partition: Interval, asked: Mapping[int, Values], outside: Outside) -> _Replay:
    current = outside.warehouse.query(_CURRENT, (use_case.name, partition.start))
    batch = next((row for row in current if row["table_name"] == table), None)
    if batch is None or batch["status"] != "clean":
        state = batch["status"] if batch else "not landed"
        raise ValueError(f"{table} of {partition} is {state}: rows can be replayed once the partition was validated")
    where = (use_case.name, table, partition.start, batch["raw_sha256"])
    rows = {row["row_number"]: row for row in outside.warehouse.query(_ROWS, where)}
    if missing := sorted(asked.keys() - rows.keys()):
        raise ValueError(f"{table} of {partition}: not in quarantine: rows {missing}; there are {sorted(rows)}")
    suite = suites(use_case.name)[table]
    before = {
        number: parse([{"row_number": number, **row["corrected"]}], suite)[number]
        for number, row in rows.items()
        if row["status"] == "replayed"
    }
    for number in asked.keys() & before.keys():
        if asked[number] != before[number]:
            who, when = rows[number]["replayed_by"], rows[number]["replayed_at"]
            raise ValueError(f"row {number} was replayed already, by {who} at {when}, with other values")
    return _Replay(
        batch=batch,
        before=before,
        asked={number: values for number, values in asked.items() if number not in before},
        left=frozenset(rows.keys() - before.keys() - asked.keys()),
    )


def _refused(
    use_case: UseCase, table: str, partition: Interval, patched: pa.Table, todo: _Replay
) -> dict[int, tuple[str, ...]]:
    """Corrected rows that are still bad among all that would then be clean: a new duplicate is their doing too."""
    numbers = [number for number in range(patched.num_rows) if number not in todo.left]
    trial = _without(patched, todo.left)
    checked = check_rows(trial, _asked(use_case, table, partition), allowed=trial.num_rows)
    if checked.problems:
        raise BadData(f"nothing was replayed, {table} would no longer be fit: {'; '.join(checked.problems)}")
    bad = {numbers[position]: reasons for position, reasons in checked.bad_rows.items()}
    return {number: bad[number] for number in todo.asked if number in bad}


def _asked(use_case: UseCase, table: str, partition: Interval) -> tuple[Expect, ...]:
    """Everything validation asks; a duplicated key is here the fault of single rows."""
    suite, limits = suites(use_case.name)[table], use_case.source.tables[table]
    key = unique_key(limits)
    rest = tuple(expect for expect in content(suite, limits, partition) if expect != key)
    return (*delivery(suite, limits), replace(key, severity="warning"), *rest)


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A replay, ready to be committed."""

    batch: Mapping[str, Any]
    accepted: Mapping[int, Values]
    clean: Stored
    clean_rows: int
    actor: str


def _commit(done: _Done, fence: Fence, outside: Outside) -> None:
    """Both tables, or neither; after a commit whose answer was lost it does the same again."""
    batch, clean = done.batch, done.clean
    where = (batch["use_case"], batch["table_name"], batch["partition_start"], batch["raw_sha256"])
    with outside.warehouse.transaction(fence) as at:
        at.execute(_SET_CLEAN, (clean.uri, clean.sha256, done.clean_rows, batch["raw_rows"] - done.clean_rows, *where))
        assert at.rowcount == 1, "the fence keeps everyone else away"
        for number, values in done.accepted.items():
            corrected = json.dumps({name: _jsonable(value) for name, value in values.items()})
            at.execute(_SET_REPLAYED, (corrected, done.actor, *where, number, corrected))
            assert at.rowcount == 1, "the fence keeps everyone else away"


def _batch(use_case: UseCase, partition: Interval, outside: Outside) -> Batch:
    """What is current of a partition, as `validate` hands it on."""
    rows = outside.warehouse.query(_CURRENT, (use_case.name, partition.start))
    fields = ("raw_uri", "raw_sha256", "raw_rows", "clean_uri", "clean_sha256", "clean_rows", "quarantined_rows")
    tables = [TableBatch(table=row["table_name"], **{name: row[name] for name in fields}) for row in rows]
    docs = next((row["docs_uri"] for row in sorted(rows, key=lambda row: str(row["validated_at"]), reverse=True)), None)
    return Batch(
        use_case=use_case.name,
        partition_start=partition.start,
        partition_end=partition.end,
        tables=tables,
        docs_uri=docs,
    )
