"""Quarantined rows come back, corrected, exactly once.

A clean object holds the raw rows that passed, in the order of their key. A replay writes a new one that also holds the
corrected rows: what an undisturbed run would have written. Raw data and the quarantined row stay as they were. Where
rows of one key are versions (`keep_latest`), a corrected one that is the latest takes the place of the one before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.lake import Stored
from adapters.parquet import from_bytes
from adapters.warehouse import Fence
from expectations import suites
from expectations.vocabulary import (
    Expect,
    content_expectations,
    delivery_expectations,
    unique_key,
)
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest.check import Reasons, check_rows, explain_older_rows
from tasks.ingest.clean_columns import drop_rows, explain_faults, name_columns, read_canonical
from tasks.ingest.corrections import Values, apply_corrections, parse_corrections
from tasks.ingest.quarantine import (
    check_table_name,
    insert_quarantined_row,
    store_clean,
    to_json_value,
    validation_key,
)

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

_LATER_IS_CLEAN = "a later version is clean already: correct that row, give this one another key, or leave it as it is"


@dataclass(frozen=True, kw_only=True)
class _Replay:
    """One table's content, the corrections that were replayed before and those that are new."""

    batch: Mapping[str, Any]
    before: Mapping[int, Values]
    new: Mapping[int, Values]
    left: frozenset[int]  # row numbers that stay in quarantine whatever happens


@dataclass(frozen=True, kw_only=True)
class _Trial:
    """What corrected rows come to: those that are refused, and clean ones whose place they take; with why."""

    refused: Reasons
    replaced: Reasons


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """What is to be written: a clean object with the accepted rows, and the rows that they replace, with why."""

    batch: Mapping[str, Any]
    accepted: Mapping[int, Values]
    replaced: Mapping[int, tuple[Values, Sequence[str]]]
    clean: Stored
    clean_rows: int


def replay_rows(  # noqa: PLR0917  # the steps' common order: what, where, by whom, on what
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
        actor: who replays; written beside each row.

    Raises:
        ValueError: no such row, column or type, or a row that was replayed already with other values.
        BadData: some rows still fail; those were left as they were, the others were merged. It says which, and why.
    """
    fence = outside.warehouse.begin(validation_key(use_case, partition))
    suite = suites(use_case.name)[check_table_name(table, use_case)]
    todo = _plan_replay(use_case, table, partition, parse_corrections(corrections, suite), outside)
    if not todo.new:
        return _current_batch(use_case, partition, outside)
    raw = from_bytes(outside.lake.read(todo.batch["raw_uri"], todo.batch["raw_sha256"]))
    typed, faults = read_canonical(name_columns(raw, suite), suite)
    patched = apply_corrections(typed, {**todo.before, **todo.new})
    uncorrected = {n: fault for n, fault in faults.items() if n in todo.new and not fault.keys() <= todo.new[n].keys()}
    todo = replace(todo, left=todo.left | uncorrected.keys())
    trial = _try_corrections(use_case, table, partition, patched, todo)
    refused = {**trial.refused, **explain_faults(uncorrected, suite)}
    accepted = {number: values for number, values in todo.new.items() if number not in refused}
    if accepted:
        rows = drop_rows(patched, todo.left | refused.keys() | trial.replaced.keys())
        merged = _Merged(
            batch=todo.batch,
            accepted=accepted,
            replaced={n: (patched.slice(n, 1).to_pylist()[0], why) for n, why in trial.replaced.items()},
            clean=store_clean(use_case, table, partition, rows, outside),
            clean_rows=rows.num_rows,
        )
        outside.warehouse.retry_transaction(lambda: _commit(merged, actor, fence, outside))
    if refused:
        why = "\n".join(f"row {number}: {'; '.join(reasons)}" for number, reasons in refused.items())
        raise BadData(f"{len(accepted)} of {len(todo.new)} corrected rows of {table} were merged; still bad:\n{why}")
    return _current_batch(use_case, partition, outside)


def _plan_replay(
    use_case: UseCase, table: str, partition: Interval, corrections: Mapping[int, Values], outside: Outside
) -> _Replay:
    current = {row["table_name"]: row for row in outside.warehouse.query(_CURRENT, (use_case.name, partition.start))}
    batch = current.get(table)
    if batch is None or batch["status"] != "clean":
        state = batch["status"] if batch else "not landed"
        raise ValueError(f"{table} of {partition} is {state}: rows can be replayed once the partition was validated")
    where = (use_case.name, table, partition.start, batch["raw_sha256"])
    rows = {row["row_number"]: row for row in outside.warehouse.query(_ROWS, where)}
    if missing := sorted(corrections.keys() - rows.keys()):
        raise ValueError(f"{table} of {partition}: not in quarantine: rows {missing}; there are {sorted(rows)}")
    replayed = [row for row in rows.values() if row["status"] == "replayed"]
    before = parse_corrections(
        [{"row_number": row["row_number"], **row["corrected"]} for row in replayed], suites(use_case.name)[table]
    )
    for number in corrections.keys() & before.keys():
        if corrections[number] != before[number]:
            actor, moment = rows[number]["replayed_by"], rows[number]["replayed_at"]
            raise ValueError(f"row {number} was replayed already, by {actor} at {moment}, with other values")
    return _Replay(
        batch=batch,
        before=before,
        new={number: values for number, values in corrections.items() if number not in before},
        left=frozenset(rows.keys() - before.keys() - corrections.keys()),
    )


def _try_corrections(use_case: UseCase, table: str, partition: Interval, patched: pa.Table, todo: _Replay) -> _Trial:
    """Corrected rows that are still bad among all that would then be clean: a new duplicate is their doing too."""
    numbers = [number for number in range(patched.num_rows) if number not in todo.left]
    trial, limits = drop_rows(patched, todo.left), use_case.source.tables[table]
    checked = check_rows(trial, _expectations(use_case, table, partition, left=len(todo.left)), allowed=trial.num_rows)
    if checked.problems:
        raise BadData(f"nothing was replayed, {table} would no longer be fit: {'; '.join(checked.problems)}")
    bad = {numbers[position]: reasons for position, reasons in checked.bad_rows.items()}
    older = explain_older_rows(trial, limits, checked.bad_rows) if limits.duplicates == "keep_latest" else {}
    replaced = {numbers[position]: reasons for position, reasons in older.items()}
    late = {number: (*reasons, _LATER_IS_CLEAN) for number, reasons in replaced.items()}
    return _Trial(
        refused={number: {**bad, **late}[number] for number in todo.new if number in bad or number in late},
        replaced={number: reasons for number, reasons in replaced.items() if number not in todo.new},
    )


def _expectations(use_case: UseCase, table: str, partition: Interval, *, left: int) -> tuple[Expect, ...]:
    """Everything that validation checks; a duplicated key is here the fault of single rows, where it is one.

    The volume is that of all rows, of which some are left out.
    """
    suite, limits = suites(use_case.name)[table], use_case.source.tables[table].on(partition.start.date())
    key, fewer = unique_key(limits), {"min_rows": limits.min_rows - left}
    return (
        *delivery_expectations(suite, limits.model_copy(update=fewer)),
        *([replace(key, severity="warning")] if limits.duplicates == "stop" else []),
        *(expect for expect in content_expectations(suite, limits, partition) if expect != key),
    )


def _commit(merged: _Merged, actor: str, fence: Fence, outside: Outside) -> None:
    """All tables, or none; after a commit whose answer was lost it does the same again."""
    with outside.warehouse.transaction(fence) as at:
        _write(at, merged, actor)


def _write(at: cursor, merged: _Merged, actor: str) -> None:
    batch, clean = merged.batch, merged.clean
    where = (batch["use_case"], batch["table_name"], batch["partition_start"], batch["raw_sha256"])
    counts = (merged.clean_rows, batch["raw_rows"] - merged.clean_rows)
    at.execute(_SET_CLEAN, (clean.uri, clean.sha256, *counts, *where))
    assert at.rowcount == 1, "the fence keeps everyone else away"
    for number, values in merged.accepted.items():
        corrected = json.dumps({name: to_json_value(value) for name, value in values.items()})
        at.execute(_SET_REPLAYED, (corrected, actor, *where, number, corrected))
        assert at.rowcount == 1, "the fence keeps everyone else away"
    for number, (row, reasons) in merged.replaced.items():
        insert_quarantined_row(at, where, number, row, reasons)


def _current_batch(use_case: UseCase, partition: Interval, outside: Outside) -> Batch:
    """What is current of a partition, as `validate` hands it on."""
    rows = outside.warehouse.query(_CURRENT, (use_case.name, partition.start))
    fields = ("raw_uri", "raw_sha256", "raw_rows", "clean_uri", "clean_sha256", "clean_rows", "quarantined_rows")
    docs = next((row["docs_uri"] for row in sorted(rows, key=lambda row: str(row["validated_at"]), reverse=True)), None)
    return Batch(
        use_case=use_case.name,
        partition_start=partition.start,
        partition_end=partition.end,
        tables=[TableBatch(table=row["table_name"], **{name: row[name] for name in fields}) for row in rows],
        docs_uri=docs,
    )
