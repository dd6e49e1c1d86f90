"""Whether the source has the tables, columns and keys that are declared, and rows where they are expected."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.connect import Outside
from expectations.vocabulary import Suite
from pipeline.partitions import utc
from pipeline.source import Table
from pipeline.spec import UseCase
from tasks.check_use_case.findings import Finding, in_file, in_params
from tasks.ingest.check import added_columns, missing_columns, retyped_columns
from tasks.stream.source_tables import find_identities

_STATEMENT_MS = 20_000
_TABLES = """
select table_name::text from information_schema.tables
where table_schema not in ('pg_catalog', 'information_schema') order by 1"""


def check_source(use_case: UseCase, declared: Mapping[str, Suite], outside: Outside) -> Iterator[Finding]:
    """What the source lacks of what is declared.

    Raises:
        psycopg2.Error, Unavailable: it cannot be asked.
    """
    with outside.source.transaction(snapshot=True) as at:
        at.execute("select set_config('statement_timeout', %s, true)", (str(_STATEMENT_MS),))
        at.execute(_TABLES)
        there = [row[0] for row in at.fetchall()]
        missing = [name for name in use_case.source.tables if name not in there]
        for name in missing:
            yield in_params("source.tables", f"{name!r} is no table of the source", f"of {', '.join(there) or 'none'}")
        for name, table in use_case.source.tables.items():
            if name not in missing and name in declared:
                yield from _check_table(use_case, name, table, declared[name], at=at, outside=outside)
        yield from _check_watermark(use_case, there, at)
        if use_case.source.follow and not missing and declared.keys() >= use_case.source.tables.keys():
            try:
                find_identities(at, use_case)
            except ValueError as error:
                yield in_params("source.follow", f"cdc: {error}", "poll, or a primary key for each table")


def _check_table(
    use_case: UseCase, name: str, table: Table, suite: Suite, *, at: cursor, outside: Outside
) -> Iterator[Finding]:
    file = f"expectations/{use_case.name}.py"
    schema = outside.source.copy_out(sql.SQL("select * from {} limit 0").format(sql.Identifier(name)), at=at).schema
    for column in missing_columns(schema, suite):
        free = ", ".join(added_columns(schema, suite)) or "none that is not declared"
        yield in_file(file, column, f"table {name} of the source has no such column", f"one that it has ({free})")
    for problem in retyped_columns(schema, suite):
        column = problem.split()[1]
        yield in_file(file, column, f"table {name}: {problem}", "the kind that the source has, or a view that casts it")
    if table.available_at not in schema.names or table.available_at in missing_columns(schema, suite):
        return
    try:
        at.execute(
            sql.SQL("select count(*), count({0}), max({0}) from {1} where {0} is null or {0} >= %s").format(
                sql.Identifier(table.available_at), sql.Identifier(name)
            ),
            (utc(use_case.grid.first),),
        )
    except psycopg2.errors.UndefinedFunction:  # of another type, which was found above
        return
    [(rows, known, latest)] = at.fetchall()
    key = f"source.tables.{name}.available_at"
    if not known:
        yield in_params(
            "source.first_partition",
            f"{use_case.source.first_partition}: table {name} has no row that became known since then",
            "the first day of its rows, or another column as available_at",
        )
    elif rows > known:
        yield in_params(
            key,
            f"{table.available_at} is null in {rows - known} rows, which no partition takes",
            "a column without nulls",
        )
    elif isinstance(latest, datetime) and latest.astimezone(UTC) > datetime.now(UTC):
        yield in_params(
            key,
            f"{table.available_at} is {latest:%Y-%m-%d %H:%M} in some row, which is yet to come",
            "when it became known",
        )


def _check_watermark(use_case: UseCase, there: list[str], at: cursor) -> Iterator[Finding]:
    mark = use_case.source.watermark
    if mark is None:
        return
    if mark.table not in there:
        yield in_params("source.watermark.table", f"{mark.table!r} is no table of the source", f"of {', '.join(there)}")
        return
    at.execute("select column_name::text from information_schema.columns where table_name = %s", (mark.table,))
    columns = [row[0] for row in at.fetchall()]
    if mark.column not in columns:
        yield in_params(
            "source.watermark.column", f"{mark.column!r} is no column of {mark.table}", f"of {', '.join(columns)}"
        )
