"""What the values of one column look like, as far as an expectation or a feature is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.column_types import SourceColumn

MOST_CATEGORIES = 50  # values of a text that is a feature by itself
_FEW = 12  # values of a text that are worth a list
_ROWS_A_VALUE = 20
# Regular expressions that a text may match in every row, and what they say in words.
PATTERNS: Mapping[str, str] = {
    "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$": "a uuid",
    "^[A-Z]{2}$": "two capital letters",
    "^[A-Z]{3}$": "three capital letters",
    "^[0-9]+$": "digits",
}


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """A column: its name here and in the source, what it is declared as, and its values.

    `low` and `high` are the extremes of its finite numbers, `values` all values of a text that has few, `frequent` the
    most frequent one where each stands for many rows, `pattern` what every value matches. `hours` are how long a moment
    lies (before, after) the one in which its row became known. `filled_later` of the rows have a moment that lies after
    that; one that is `with_target` has a value in just the rows in which the target has one. `kind` is None where it is
    left out, and `left_out` says why.
    """

    name: str
    source: str
    kind: str | None
    digits: tuple[int, int] | None
    zone: str | None
    left_out: str | None = None
    nulls: int = 0
    distinct: int = 0
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()
    frequent: str | None = None
    pattern: str | None = None
    hours: tuple[float, float] | None = None
    filled_later: int = 0
    with_target: bool = False
    newest: str | None = None  # of a moment or a day, as ISO 8601 has it


def profile_column(  # noqa: PLR0917  # what is asked, of what, and what is known of it
    at: cursor, table: sql.Composable, column: SourceColumn, name: str,
    declared: tuple[str | None, tuple[int, int] | None], moment: sql.Composable | None, known: sql.Composable,
    target: sql.Composable, zone: str | None, rows: int,
) -> ColumnProfile:  # fmt: skip
    """Asks for the values of a column of a table. `moment` is SQL for it where it is one, `known` that of its row."""
    kind, digits = declared
    base: dict[str, Any] = {"name": name, "source": column.name, "kind": kind, "digits": digits, "zone": zone}
    if kind is None:
        return ColumnProfile(**base, left_out=column.left_out)
    asked = _Values(at, table, sql.Identifier(column.name))
    [(there, distinct)] = asked.select("count({column}), count(distinct {column}::text)")
    apart = asked.select("count(*) filter (where ({column} is null) <> ({target} is null))", target=target)
    with_target = there < rows and apart == [(0,)]
    counted = {**base, "nulls": rows - there, "distinct": distinct, "with_target": with_target}
    if kind in ("integer", "float", "decimal"):
        [(low, high)] = asked.select(
            "min({column}) filter (where {finite}), max({column}) filter (where {finite})",
            finite=asked.fill("{column}::text not in ('NaN', 'Infinity', '-Infinity')"),
        )
        limits: dict[str, Any] = {} if low is None else {"low": float(low), "high": float(high)}
        return ColumnProfile(**counted, **limits)
    if kind == "text":
        return ColumnProfile(**counted, **asked.read_text(there, distinct))
    if kind == "date":
        [(newest,)] = asked.select("max({column}) filter (where isfinite({column}))")
        return ColumnProfile(**counted, newest=newest.isoformat() if newest else None)
    if moment is not None:
        return ColumnProfile(**counted, **asked.read_moment(moment, known))
    return ColumnProfile(**counted)


class _Values:
    """Questions on the values of one column."""

    def __init__(self, at: cursor, table: sql.Composable, column: sql.Composable) -> None:
        self._at, self._table, self._column = at, table, column

    def fill(self, text: str, **parts: sql.Composable) -> sql.Composed:
        return sql.SQL(text).format(column=self._column, **parts)

    def select(self, text: str, more: str = "", **parts: sql.Composable) -> list[tuple[Any, ...]]:
        query = sql.SQL("select {} from {} ").format(self.fill(text, **parts), self._table) + self.fill(more, **parts)
        self._at.execute(query)
        return [tuple(row) for row in self._at.fetchall()]

    def read_text(self, there: int, distinct: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if 0 < distinct <= MOST_CATEGORIES and there >= _ROWS_A_VALUE * distinct:
            rows = self.select("{column}::text", "where {column} is not null group by 1 order by count(*) desc, 1")
            found = {"frequent": rows[0][0]}
            if distinct <= _FEW:
                return {**found, "values": tuple(sorted(value for (value,) in rows))}
        for pattern in PATTERNS if there else ():
            if self.select("bool_and({column}::text ~ {pattern})", pattern=sql.Literal(pattern)) == [(True,)]:
                return {**found, "pattern": pattern}
        return found

    def read_moment(self, moment: sql.Composable, known: sql.Composable) -> dict[str, Any]:
        [(before, after, later, newest)] = self.select(
            "max(extract(epoch from {known} - {moment})), max(extract(epoch from {moment} - {known})),"
            " count(*) filter (where {moment} > {known}), max({moment})",
            "where isfinite({moment}) and isfinite({known})",
            moment=moment,
            known=known,
        )
        if newest is None:
            return {}
        hours = (float(before) / 3600, float(after) / 3600)
        return {"hours": hours, "filled_later": later, "newest": newest.isoformat()}
