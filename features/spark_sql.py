"""Translates DuckDB's SQL to Spark's: sqlglot rewrites it, and what Spark would read differently is handled here.

A naive moment is one in UTC, so Spark's session must be in UTC. A function that neither this module
nor sqlglot knows is refused, never guessed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sqlglot
from sqlglot import exp

from features.engine import FeatureSet

_SECONDS = {"SECOND": 1, "MINUTE": 60, "HOUR": 3600, "DAY": 86400}


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement that makes a table, or a view, which is computed where it is read."""

    name: str
    query: str
    is_view: bool


def files_view(source: str) -> str:
    """The table that a source's files must be read as."""
    return f"files_of_{source}"


def translate_to_spark(sql: str, definition: FeatureSet) -> Statement:
    """A statement of `features.engine.compile_sql`.

    Raises:
        ValueError: a part of it has no translation.
    """
    tree: Any = sqlglot.parse_one(sql, read="duckdb")
    name, query = tree.this.name, tree.expression
    for node in reversed(list(query.walk())):  # what lies inside comes first
        if type(node) in _RULES:
            node.replace(_RULES[type(node)](node))
    for read in list(query.find_all(exp.ReadParquet)):
        read.replace(exp.to_identifier(files_view(name)))
    for order in query.find_all(exp.Order):
        order.set("expressions", [field for one in order.expressions for field in _fields(one, definition)])
    for part in query.find_all(exp.CTE):
        part.set("materialized", None)
    return Statement(name=name, query=query.sql(dialect="spark"), is_view=tree.args["kind"] == "VIEW")


def _naive(moment: Any) -> exp.Expression:
    return exp.cast(moment, "timestamp", dialect="duckdb")


def _aware(moment: Any) -> exp.Expression:
    return exp.cast(moment, "timestamptz", dialect="duckdb")


def _function(node: Any) -> exp.Expression:
    arguments = [argument.unnest() for argument in node.expressions]
    if node.name == "hash":
        return exp.func("xxhash64", *arguments)
    if node.name == "isfinite":  # Spark has NaN above every number
        return exp.LT(this=exp.Abs(this=arguments[0]), expression=exp.cast(exp.Literal.string("infinity"), "double"))
    if node.name == "timezone" and arguments[1].is_type("timestamptz"):
        return exp.func("convert_timezone", exp.Literal.string("UTC"), arguments[0], _naive(arguments[1]))
    if node.name == "timezone" and arguments[0].name == "UTC":
        return _aware(arguments[1])
    raise ValueError(f"no translation for Spark: {node.sql('duckdb')}")


def _difference(node: Any) -> exp.Expression:
    """How many times a unit begins between two moments."""
    if (name := node.text("unit").upper()) not in _SECONDS:
        raise ValueError(f"no translation for Spark: {node.sql('duckdb')}")
    unit = exp.Literal.number(_SECONDS[name])
    later, earlier = (
        exp.func("floor", exp.Div(this=exp.func("unix_seconds", _aware(moment)), expression=unit.copy()))
        for moment in (node.this, node.expression)
    )
    return exp.paren(exp.Sub(this=later, expression=earlier))


def _extreme(node: Any) -> exp.Expression:
    """The greatest or least record: what is missing in it counts as the greatest, as in every order."""
    if not isinstance(node.this, exp.Struct):
        return node
    values = [value.expression for value in node.this.expressions]
    ranked = [part for value in values for part in (exp.Is(this=value.copy(), expression=exp.null()), value.copy())]
    return exp.func("max_by" if isinstance(node, exp.Max) else "min_by", node.this, exp.func("struct", *ranked))


def _numbered(node: Any) -> exp.Expression:
    """Numbers in no order need not follow one another: each part of a table counts for itself."""
    unordered = isinstance(node.this, exp.RowNumber) and not node.args.get("order")
    return exp.Anonymous(this="monotonically_increasing_id") if unordered else node


def _literal(node: Any) -> exp.Expression:
    """A decimal with a number is a double in DuckDB, and a decimal in Spark."""
    return node if node.is_string or "." not in node.name else exp.cast(node.copy(), "double")


_RULES = {
    exp.Anonymous: _function,
    exp.DateDiff: _difference,
    exp.Dayname: lambda node: exp.func("date_format", node.this, exp.Literal.string("EEEE")),
    exp.Literal: _literal,
    exp.Max: _extreme,
    exp.Min: _extreme,
    exp.TimestampTrunc: lambda node: _naive(node.copy()),
    exp.Window: _numbered,
}


def _fields(ordered: Any, definition: FeatureSet) -> Iterator[exp.Expression]:
    """An order by a record, or a whole row of a source, is one by each of its fields."""
    values = [ordered.this]
    if isinstance(ordered.this, exp.Struct):
        values = [value.expression for value in ordered.this.expressions]
    elif isinstance(ordered.this, exp.Column) and ordered.this.name in definition.sources:
        values = [exp.column(name) for name in definition.sources[ordered.this.name].columns]
    for value in values:
        field = ordered.copy()
        field.set("this", value.copy())
        yield field
