"""Whether the source has the tables, columns and keys that are declared, and rows where they are expected."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.errors import Unreadable
from expectations.vocabulary import Suite
from pipeline.partitions import utc
from pipeline.spec import UseCase
from tasks.check_use_case.mistakes import Mistake, in_file, in_params
from tasks.ingest.check import retyped_columns
from tasks.ingest.clean_columns import name_columns
from tasks.ingest.source_rows import known_sql, read_source_rows, relation_sql
from tasks.stream.source_tables import find_identities

_STATEMENT_MS = 20_000
_TABLES = """
select table_name::text from information_schema.tables
where table_schema not in ('pg_catalog', 'information_schema') order by 1"""


def check_source(use_case: UseCase, declared: Mapping[str, Suite], outside: Outside) -> Iterator[Mistake]:
    """What the source lacks of what is declared.

    Raises:
        psycopg2.Error, Unavailable: it cannot be asked.
    """
    with outside.source.transaction(snapshot=True) as at:
        at.execute("select set_config('statement_timeout', %s, true)", (str(_STATEMENT_MS),))
        at.execute(_TABLES)
        there = ", ".join(row[0] for row in at.fetchall()) or "none"
        missing = [name for name in use_case.source.tables if not _exists(at, use_case.source.find_relation(name))]
        for name in missing:
            relation = use_case.source.tables[name].relation or name
            yield in_params(f"source.tables.{name}", f"{relation!r} is no table of the source", f"one of {there}")
        for name in use_case.source.tables:
            if name not in missing and name in declared:
                yield from _check_table(use_case, name, declared[name], at, outside)
        yield from _check_watermark(use_case, there, at)
        if use_case.source.follow and not missing and declared.keys() >= use_case.source.tables.keys():
            try:
                find_identities(at, use_case)
            except ValueError as error:
                yield in_params("source.follow", f"cdc: {error}", "poll, or a primary key for each table")


def _exists(at: cursor, relation: Sequence[str]) -> bool:
    at.execute("select to_regclass(%s) is not null", (sql.Identifier(*relation).as_string(at),))
    return bool((at.fetchone() or (False,))[0])


def _list_columns(at: cursor, relation: Sequence[str]) -> list[str]:
    at.execute(sql.SQL("select * from {} limit 0").format(sql.Identifier(*relation)))
    return [column.name for column in at.description or ()]


def _check_table(use_case: UseCase, name: str, suite: Suite, at: cursor, outside: Outside) -> Iterator[Mistake]:
    file = f"expectations/{use_case.name}.py"
    there, begin = _list_columns(at, use_case.source.find_relation(name)), utc(use_case.grid.first)
    missing = [column for column in suite.columns if suite.find_source(column) not in there]
    for column in missing:
        free = ", ".join(each for each in there if each not in suite.by_source) or "none that is not declared"
        yield in_file(file, column, f"table {name} of the source has no such column", f"one that it has ({free})")
    if missing:
        return
    try:
        none, _ = read_source_rows(outside.source, at, use_case, name, (begin, begin))
    except Unreadable as error:
        yield in_file(file, str(error).split()[1], f"table {name}: {error}", "text, or leave it out")
        return
    problems = retyped_columns(name_columns(none, suite).schema, suite)
    for problem in problems:
        yield in_file(
            file,
            problem.split()[1],
            f"table {name}: {problem}",
            "the kind that the source has, or a view that casts it",
        )
    if not problems:
        yield from _check_moments(use_case, name, suite, at)


def _check_moments(use_case: UseCase, name: str, suite: Suite, at: cursor) -> Iterator[Mistake]:
    table, begin = use_case.source.tables[name], utc(use_case.grid.first)
    query = "select count(*), count({0}), max({0}) from {1} where {0} is null or {0} >= %s"
    at.execute(sql.SQL(query).format(known_sql(table, suite), relation_sql(use_case, name)), (begin,))
    [(rows, known, latest)] = at.fetchall()
    key = f"source.tables.{name}.available_at"
    if not known:
        yield in_params(
            "source.first_partition",
            f"{use_case.source.first_partition}: table {name} has no row that became known since then",
            "the first day of its rows, or another column as available_at",
        )
    elif rows > known:
        found = f"{table.available_at} is null in {rows - known} rows, which no partition takes"
        yield in_params(key, found, "a column without nulls")
    elif latest.astimezone(UTC) > datetime.now(UTC):
        found = f"{table.available_at} is {latest:%Y-%m-%d %H:%M} in some row, which is yet to come"
        yield in_params(key, found, "when it became known")


def _check_watermark(use_case: UseCase, there: str, at: cursor) -> Iterator[Mistake]:
    mark = use_case.source.watermark
    if mark is None:
        return
    relation = use_case.source.find_relation(mark.table)
    if not _exists(at, relation):
        yield in_params("source.watermark.table", f"{mark.table!r} is no table of the source", f"one of {there}")
    elif mark.column not in (columns := _list_columns(at, relation)):
        found = f"{mark.column!r} is no column of {mark.table}"
        yield in_params("source.watermark.column", found, f"one of {', '.join(columns)}")
