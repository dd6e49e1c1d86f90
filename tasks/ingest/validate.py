"""Judges one landed partition: all its tables become clean together, or it is blocked and an alert is raised."""

import hashlib
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
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest.check import CheckedTable, check_table
from tasks.ingest.corrections import warn_of_lost_corrections
from tasks.ingest.data_docs import render_index_page, render_table_page
from tasks.ingest.quarantine import insert_quarantined, store_clean, validation_key

_HTML = "text/html; charset=utf-8"
_SHOWN_ROWS = 200  # of a table, on the page of a run; the quarantine has all

_CLEAN_ALREADY = """
select table_name, raw_sha256, clean_uri, clean_sha256, clean_rows, quarantined_rows, docs_uri from batches
where use_case = %s and partition_start = %s and status = 'clean' and raw_sha256 = any(%s) order by validated_at desc"""
_SET_CLEAN = """
update batches set status = 'clean', clean_uri = %s, clean_sha256 = %s, clean_rows = %s, quarantined_rows = %s,
    docs_uri = %s, problem = null, validated_at = now()
where use_case = %s and table_name = %s and partition_start = %s and raw_sha256 = %s
    and (status <> 'clean' or clean_uri = %s)"""  # what is clean may hold replayed rows by now
_SET_BLOCKED = """
update batches set status = 'blocked', problem = %s, docs_uri = %s, validated_at = now()
where use_case = %s and table_name = %s and partition_start = %s and raw_sha256 = %s and status <> 'clean'"""


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A table of the batch, what its check says, and where its clean rows went, if it has any."""

    landed: TableBatch
    checked: CheckedTable
    clean: Stored | None = None


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One run over one partition."""

    use_case: UseCase
    batch: Batch
    outside: Outside

    @property
    def partition(self) -> Interval:
        return Interval(self.batch.partition_start, self.batch.partition_end)

    @property
    def title(self) -> str:
        return f"{self.use_case.title}: {self.partition}"

    def fingerprint(self, *what: str) -> str:
        return ".".join((self.use_case.name, "validate", self.use_case.grid.key(self.partition), *what))


def validate_batch(use_case: UseCase, batch: Batch, outside: Outside) -> Batch:
    """Check every table of a landed partition, quarantine its bad rows and write the rest as clean.

    Content that is clean already is not checked again, so running again changes nothing.

    Raises:
        BadData: a critical expectation failed; the partition is blocked, nothing new of it is clean, an alert is out.
        FencedOut: a later run of the same partition has begun, and will do this work.
    """
    work = _Work(use_case=use_case, batch=batch, outside=outside)
    if not _unchecked(work):
        return _as_before(work)
    fence = outside.warehouse.begin(validation_key(use_case, work.partition))
    unchecked = _unchecked(work)  # again: while this run slept, another may have made it clean, and rows been replayed
    if not unchecked:
        return _as_before(work)
    judged = [_Judged(landed=table, checked=_check(work, table)) for table in unchecked]
    docs_uri = _put_docs(work, judged)
    if any(one.checked.problems for one in judged):
        outside.warehouse.retry_transaction(lambda: _commit_blocked(work, judged, docs_uri, fence))
        outside.alerts.flush()
        raise BadData(f"{work.title}: {_text(judged)} (details: {docs_uri})")
    judged = [replace(one, clean=_store_clean(work, one)) for one in judged]
    outside.warehouse.retry_transaction(lambda: _commit_clean(work, judged, docs_uri, fence))
    outside.alerts.flush()
    return _handed_on(batch, _clean_already(work))


def _clean_already(work: _Work) -> dict[str, dict[str, Any]]:
    """Table -> its row in `batches`, for tables whose very content is clean already; the last judged first."""
    landed = {table.table: table.raw_sha256 for table in work.batch.tables}
    where = (work.use_case.name, work.batch.partition_start, list(landed.values()))
    rows = work.outside.warehouse.query(_CLEAN_ALREADY, where)
    return {row["table_name"]: row for row in rows if landed.get(row["table_name"]) == row["raw_sha256"]}


def _unchecked(work: _Work) -> list[TableBatch]:
    clean = _clean_already(work)
    return [table for table in work.batch.tables if table.table not in clean]


def _as_before(work: _Work) -> Batch:
    for fingerprint in (
        work.fingerprint(),
        *(work.fingerprint(one.table, "corrections") for one in work.batch.tables),
    ):
        work.outside.alerts.resolve(fingerprint)
    return _handed_on(work.batch, _clean_already(work))


def _handed_on(batch: Batch, clean: Mapping[str, Mapping[str, Any]]) -> Batch:
    fields = ("clean_uri", "clean_sha256", "clean_rows", "quarantined_rows")
    tables = [replace(table, **{name: clean[table.table][name] for name in fields}) for table in batch.tables]
    return replace(batch, tables=tables, docs_uri=next(iter(clean.values()))["docs_uri"])


def _check(work: _Work, landed: TableBatch) -> CheckedTable:
    raw = from_bytes(work.outside.lake.read(landed.raw_uri, landed.raw_sha256))
    suite, limits = suites(work.use_case.name)[landed.table], work.use_case.source.tables[landed.table]
    return check_table(raw, suite, limits, work.partition)


def _findings(one: _Judged) -> list[str]:
    checked = one.checked
    bad = [f"row {number}: {'; '.join(reasons)}" for number, reasons in checked.bad_rows.items()]
    return [
        f"{one.landed.raw_rows} rows, {len(bad)} quarantined",
        *checked.problems,
        *checked.notes,
        *checked.warnings,
        *bad[:_SHOWN_ROWS],
    ]


def _text(judged: Sequence[_Judged]) -> str:
    return "\n".join(f"{one.landed.table}: {problem}" for one in judged for problem in one.checked.problems)


def _put_docs(work: _Work, judged: Sequence[_Judged]) -> str:
    """Data Docs of this run, under a name that its content gives; returns the URI of the page to begin with."""
    run = hashlib.sha256("".join(one.landed.raw_sha256 for one in judged).encode()).hexdigest()[:16]
    folder = f"docs/{work.use_case.name}/{work.use_case.grid.key(work.partition)}/{run}"
    for one in judged:
        html = render_table_page(f"{one.landed.table}, {work.title}", one.checked.results)
        work.outside.lake.put_text(f"{folder}/{one.landed.table}.html", html, _HTML)
    html = render_index_page(work.title, {one.landed.table: _findings(one) for one in judged})
    return work.outside.lake.put_text(f"{folder}/index.html", html, _HTML)


def _store_clean(work: _Work, one: _Judged) -> Stored:
    assert one.checked.typed is not None, "a table without problems has been typed"
    kept = [number not in one.checked.bad_rows for number in range(one.landed.raw_rows)]
    rows = one.checked.typed.filter(pa.array(kept, pa.bool_()))
    return store_clean(work.use_case, one.landed.table, work.partition, rows, work.outside)


def _commit_blocked(work: _Work, judged: Sequence[_Judged], docs_uri: str, fence: Fence) -> None:
    blocked = [one for one in judged if one.checked.problems]
    names = ", ".join(one.landed.table for one in blocked)
    with work.outside.warehouse.transaction(fence) as at:
        for one in blocked:
            _update(at, _SET_BLOCKED, (_text([one]), docs_uri), work, one)
        work.outside.alerts.record(
            at,
            tier="critical",
            use_case=work.use_case.name,
            fingerprint=work.fingerprint(),
            title=f"{work.use_case.name}: {names} of {work.use_case.grid.key(work.partition)} is not fit to go on with",
            body=f"{_text(blocked)}\nMend the source and run the partition again. Details: {docs_uri}",
        )


def _commit_clean(work: _Work, judged: Sequence[_Judged], docs_uri: str, fence: Fence) -> None:
    with work.outside.warehouse.transaction(fence) as at:
        for one in judged:
            assert one.clean is not None, "stored before it is registered"
            bad = len(one.checked.bad_rows)
            clean = (one.clean.uri, one.clean.sha256, one.landed.raw_rows - bad, bad, docs_uri)
            _update(at, _SET_CLEAN, clean, work, one, one.clean.uri)
            insert_quarantined(at, one.landed, work.batch, one.checked)
            fingerprint = work.fingerprint(one.landed.table, "corrections")
            warn_of_lost_corrections(at, fingerprint, one.landed, work.batch, work.outside)
            _warn_of_added_columns(at, work, one)
            _warn_of_the_unmet(at, work, one, docs_uri)
            _report_quarantined(at, work, one, docs_uri)
        work.outside.alerts.resolve(work.fingerprint(), at)


def _update(at: cursor, statement: str, values: tuple[Any, ...], work: _Work, one: _Judged, *more: str) -> None:
    where = (work.use_case.name, one.landed.table, work.batch.partition_start, one.landed.raw_sha256)
    at.execute(statement, (*values, *where, *more))
    assert at.rowcount == 1, f"{one.landed.table} of {work.partition} was not landed, or is clean already"


def _warn_of_added_columns(at: cursor, work: _Work, one: _Judged) -> None:
    """Added columns stop nothing; one alert a table, until they are declared or gone."""
    fingerprint = f"{work.use_case.name}.added-columns.{one.landed.table}"
    if one.checked.notes:
        work.outside.alerts.record(
            at,
            tier="warning",
            use_case=work.use_case.name,
            fingerprint=fingerprint,
            title=f"{work.use_case.name}: {one.landed.table} has columns that no suite declares",
            body="\n".join(one.checked.notes),
        )
    else:
        work.outside.alerts.resolve(fingerprint, at)


def _warn_of_the_unmet(at: cursor, work: _Work, one: _Judged, docs_uri: str) -> None:
    """Warnings about a table as a whole stop nothing and quarantine nothing; one alert a table, until all are met."""
    fingerprint = f"{work.use_case.name}.unmet-expectations.{one.landed.table}"
    if one.checked.warnings:
        work.outside.alerts.record(
            at,
            tier="warning",
            use_case=work.use_case.name,
            fingerprint=fingerprint,
            title=f"{work.use_case.name}: {one.landed.table} of {work.use_case.grid.key(work.partition)} is unusual",
            body="\n".join([*one.checked.warnings, f"details: {docs_uri}"]),
        )
    else:
        work.outside.alerts.resolve(fingerprint, at)


def _report_quarantined(at: cursor, work: _Work, one: _Judged, docs_uri: str) -> None:
    """An alert for the digest says how many rows were quarantined."""
    if one.checked.bad_rows:
        work.outside.alerts.record(
            at,
            tier="info",
            use_case=work.use_case.name,
            fingerprint=work.fingerprint(one.landed.table),
            title=f"{len(one.checked.bad_rows)} of {one.landed.raw_rows} rows of {one.landed.table} quarantined",
            body=f"{work.partition}; details: {docs_uri}",
        )
