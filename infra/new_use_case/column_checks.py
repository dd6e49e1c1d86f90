"""What a table of the source has against what a person answered of it: all of it at once, as far as it was answered."""

from collections.abc import Iterator, Mapping
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.warehouse import Warehouse
from infra.new_use_case.answers import is_answered, list_answered_columns, to_option
from infra.new_use_case.profile import STATEMENT_MS, is_clock, kind_of, list_source_columns
from pipeline.fields import split_relation

_MOMENTS: Mapping[str, tuple[str, ...]] = {
    "event_time": ("timestamp", "date"),
    "available_at": ("timestamp",),
    "label_known_at": ("timestamp",),
}
_TARGETS: Mapping[str, tuple[str, ...]] = {
    "binary": ("boolean", "integer", "text", "float", "decimal"),
    "regression": ("integer", "float", "decimal"),
}
_ALWAYS_THERE = ("event_time", "available_at", "key")
_VALUES_SHOWN = 8
_LETTERS_SHOWN = 40


def find_column_mistakes(source: Warehouse, known: Mapping[str, Any]) -> list[str]:
    """What does not fit, a sentence each with the answer to change.

    Args:
        source: the database that has the table.
        known: question -> answer; those that are missing are passed over.

    Raises:
        psycopg2.Error, Unavailable: it cannot be read.
    """
    if not is_answered(known, "table"):
        return []
    try:
        with source.transaction(snapshot=True) as at:
            at.execute("select set_config('statement_timeout', %s, true)", (str(STATEMENT_MS),))
            found = list_source_columns(source, at, str(known["table"]))
            kinds = {column.name: kind_of(column)[0] for column in found}
            clocks = [column.name for column in found if kinds[column.name] == "timestamp" and is_clock(column)]
            return [
                *_find_in_columns(at, kinds, known),
                *_find_in_target(at, kinds, known),
                *_find_in_clocks(clocks, known),
            ]
    except ValueError as error:  # there is no such table
        return [str(error)]


def _find_in_columns(at: cursor, kinds: Mapping[str, str | None], known: Mapping[str, Any]) -> Iterator[str]:
    for name, column in list_answered_columns(known):
        option = to_option(name)
        if column not in kinds:
            yield f"{option}: {known['table']} has no column {column!r}; it has {', '.join(kinds)}"
        elif (kind := kinds[column]) is None:
            yield f"{option}: {column} is of a type that is left out"
        elif kind not in (allowed := _MOMENTS.get(name, (kind,))):
            yield f"{option}: expected a {' or '.join(allowed)}, {column} is {kind}"
        elif name in _ALWAYS_THERE:
            [(nulls, rows)] = _ask(at, known, column, "count(*) filter (where {column} is null), count(*)")
            if nulls:
                yield f"{option}: {column} has no value in {nulls} of {rows} rows"


def _find_in_target(at: cursor, kinds: Mapping[str, str | None], known: Mapping[str, Any]) -> Iterator[str]:
    target, kind, positive = (known.get(name) for name in ("target", "kind", "positive"))
    column_kind = kinds.get(str(target))
    if column_kind is None:  # which is named as a column, or not answered yet
        return
    is_text = column_kind == "text"
    if str(kind) in _TARGETS and column_kind not in _TARGETS[str(kind)]:
        yield f"--target: {target} is {column_kind}, which is no target of kind {kind}"
        return
    if positive is not None and not is_text:
        yield f"--positive: {target} is {column_kind}, and only of a text one value counts as 1: leave it out"
    finite = "{column}::text not in ('NaN', 'Infinity', '-Infinity')"
    [(there,)] = _ask(at, known, str(target), f"count(*) filter (where {finite})")
    if not there:
        yield f"--target: {target} has no value in any row"
    elif is_text and kind == "binary":
        yield from _find_in_positive(at, known)
    elif (
        kind == "binary"
        and column_kind != "boolean"
        and _ask(at, known, str(target), "1", f"where {finite} and {{column}}::float8 not in (0, 1) limit 1")
    ):
        yield f"--kind: {target} has other values than 0 and 1: it is of kind regression"


def _find_in_positive(at: cursor, known: Mapping[str, Any]) -> Iterator[str]:
    """A text of which one value counts: without it, or with one that tells nothing apart, its values are listed."""
    target, positive = str(known["target"]), known.get("positive")
    rows = _ask(
        at, known, target, "{column}::text, count(*), count(*) over ()",
        "where {column} is not null group by 1 order by 2 desc, 1 limit {shown}",
    )  # fmt: skip
    more = rows[0][2] - len(rows)
    told = ", ".join(f"{_shorten(value)!r} ({count:,})" for value, count, _ in rows)
    told += f", and {more:,} others" if more else ""
    if positive is None:
        yield f"--positive: {target} is text: say which value counts as 1, of these, with their rows: {told}"
    elif not _ask(at, known, target, "1", "where {column}::text = {positive} limit 1"):
        table = known["table"]
        yield f"--positive: {target} is {str(positive)!r} in no row of {table}; its values, with their rows: {told}"
    elif len(rows) == 1:
        yield f"--positive: {target} is {str(positive)!r} in every row of {known['table']} that has one"


def _find_in_clocks(clocks: list[str], known: Mapping[str, Any]) -> Iterator[str]:
    if clocks and not is_answered(known, "zone"):
        yield f"--zone: {', '.join(clocks)} have no time zone: say that of their clock, such as Europe/Paris or UTC"


def _ask(at: cursor, known: Mapping[str, Any], column: str, what: str, of: str = "") -> list[tuple[Any, ...]]:
    parts = {
        "column": sql.Identifier(column),
        "positive": sql.Literal(str(known.get("positive"))),
        "shown": sql.Literal(_VALUES_SHOWN),
    }
    table = sql.Identifier(*split_relation(str(known["table"])))
    asked, rest = (sql.SQL(text).format(**parts) for text in (what, of))
    at.execute(sql.SQL("select {} from {} {}").format(asked, table, rest))
    return [tuple(row) for row in at.fetchall()]


def _shorten(value: str) -> str:
    return value if len(value) <= _LETTERS_SHOWN else f"{value[:_LETTERS_SHOWN]}..."
