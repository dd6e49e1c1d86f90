"""Reads the rows of a source's table, whatever names its columns have there and whichever types.

A column lands by its type (`adapters.column_types`). Documents, arrays, bytes and the like land where the suite
declares them as text, and are left out otherwise; which they are is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.column_types import ReadColumn, SourceColumn
from adapters.errors import Unreadable
from adapters.warehouse import Warehouse
from expectations import suites
from expectations.vocabulary import DeclaredColumn, Suite
from pipeline.fields import split_relation
from pipeline.source import Table
from pipeline.spec import UseCase

_BY_MOMENT = "select * from {table} where {known} >= %s and {known} < %s"
# An index on the column is of use where its own values are asked about, too; no clock is a day away from UTC.
_BY_CLOCK = (
    "select taken.* from {table} taken, (select %s::timestamptz as since, %s::timestamptz as until) span"
    " where {known} >= span.since and {known} < span.until"
    " and {clock} >= span.since at time zone 'UTC' - interval '1 day'"
    " and {clock} < span.until at time zone 'UTC' + interval '1 day'"
)


@dataclass(frozen=True, kw_only=True)
class ChosenColumns:
    """What is read of a table: columns, and a sentence for each that is left out."""

    columns: tuple[ReadColumn, ...]
    left_out: tuple[str, ...]


def relation_sql(use_case: UseCase, name: str) -> sql.SQL:
    """SQL: a followed table, for a statement with parameters."""
    return name_sql(*use_case.source.find_relation(name))


def name_sql(*parts: str) -> sql.SQL:
    """SQL: a name of any characters, for a statement with parameters: there a percent sign is written twice."""
    quoted = ('"{}"'.format(part.replace('"', '""').replace("%", "%%")) for part in parts)
    return sql.SQL(".".join(quoted))


def known_sql(table: Table, suite: Suite, *alias: str) -> sql.Composed:
    """SQL: the moment in which a row became known: with its own time zone, or with the one that the suite declares."""
    declared, name = suite.columns.get(table.available_at), name_sql(*alias, suite.find_source(table.available_at))
    if declared is None or declared.zone is None:
        return sql.Composed([name])
    return sql.SQL("({} at time zone {})").format(name, sql.Literal(declared.zone))


def extraction(name: str, table: Table, suite: Suite | None = None) -> sql.Composed:
    """The query for the rows of a source table that became known in an interval (its two parameters).

    Without a suite columns have the names that they have here.
    """
    suite = suite or Suite(columns={}, expects=(), fresh_hours=None, plausible_hours={})
    declared = suite.columns.get(table.available_at)
    is_by_clock = declared is not None and declared.zone is not None
    aliases = ("taken",) if is_by_clock else ()
    return sql.SQL(_BY_CLOCK if is_by_clock else _BY_MOMENT).format(
        table=name_sql(*split_relation(table.relation or name)),
        known=known_sql(table, suite, *aliases),
        clock=name_sql(*aliases, suite.find_source(table.available_at)),
    )


def read_source_rows(
    source: Warehouse, at: cursor, use_case: UseCase, name: str, between: tuple[datetime, datetime]
) -> tuple[pa.Table, tuple[str, ...]]:
    """The rows of a table that became known in [start, end), as the source has them; and what is left out of them.

    Raises:
        Unreadable: a column of a type that is left out is declared as what it is not, or text is no UTF-8.
        psycopg2.Error: there is no such table or column, or another has the name.
    """
    suite = suites(use_case.name)[name]
    query = extraction(name, use_case.source.tables[name], suite)
    chosen = choose_columns(source.describe_columns(query, between, at=at), suite)
    return source.copy_out(query, between, at=at, columns=chosen.columns), chosen.left_out


def choose_columns(found: Sequence[SourceColumn], suite: Suite) -> ChosenColumns:
    """How each column of a table is read.

    Raises:
        Unreadable: naming each column of a type that is left out, and declared as another kind than text.
    """
    columns, left_out, problems = list[ReadColumn](), list[str](), list[str]()
    for column in found:
        name = suite.by_source.get(column.name)
        declared, why = None if name is None else suite.columns[name], column.left_out
        if why is None:
            columns.append(ReadColumn.of(column, _choose_number(column, declared)))
        elif declared is None:
            left_out.append(f"column {column.name} is {why}")
        elif declared.kind == "text":
            columns.append(ReadColumn.of(column))
        else:
            problems.append(
                f"column {column.name} is {why}, and declared as {declared.kind}: declare it as text, or not"
            )
    if problems:
        raise Unreadable("; ".join(problems))
    return ChosenColumns(columns=tuple(columns), left_out=tuple(left_out))


def _choose_number(column: SourceColumn, declared: DeclaredColumn | None) -> pa.DataType | None:
    """What a `numeric` is read as, where the suite says so: exactly, whatever its digits. None: by its type."""
    if declared is None or not column.is_number:
        return None
    if declared.kind == "text":
        return pa.string()
    if declared.kind == "integer":
        return pa.int64()
    if declared.kind == "decimal" and declared.digits is not None and column.is_open_number:
        return pa.decimal128(*declared.digits)
    return None


def choose_hashed(at: cursor, use_case: UseCase, name: str) -> tuple[sql.Composable, str]:
    """SQL: what of a row `taken` a fingerprint hashes; and which it is, in words that hashes begin with.

    All of it, and then there are no such words, where every column is declared. An undeclared one is not looked at.
    """
    at.execute(sql.SQL("select * from {} limit 0").format(sql.Identifier(*use_case.source.find_relation(name))))
    names, suite = [column.name for column in at.description or ()], suites(use_case.name)[name]
    declared = [column for column in names if column in suite.by_source]
    if len(declared) in (0, len(names)):
        return sql.SQL("taken.*"), ""
    columns = sql.SQL("row({})").format(sql.SQL(", ").join(name_sql("taken", column) for column in declared))
    return columns, f"{sha256(repr(declared).encode()).hexdigest()[:8]}:"


def is_comparable(fingerprint: str, other: str) -> bool:
    """Whether two hashes are of the same columns."""
    return fingerprint.rpartition(":")[0] == other.rpartition(":")[0]
