"""An expression's text as DuckDB's tree of it, and what of a tree is constant."""

import json
import re
from typing import Any

import duckdb

# Text and names in quotes are left as they are; the others are numbers with a point, and no exponent.
_DECIMAL = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w.])((?:\d[\d_]*)?\.\d[\d_]*|\d[\d_]*\.)(?![\w.])""")


def doubles_sql(sql: str) -> str:
    """SQL in which every number with a point is a double: beside a whole number DuckDB would take it as a decimal."""
    return _DECIMAL.sub(lambda found: found[0] + "e0" if found[1] else found[0], sql)


def parse_expression(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    """The tree of one expression.

    Raises:
        ValueError: it is none, or more than one.
    """
    parsed = _serialize(connection, f"select (\n{sql}\n)")
    node = parsed["statements"][0]["node"]
    if len(node["select_list"]) != 1 or node["from_table"]["type"] != "EMPTY" or node.get("where_clause"):
        raise ValueError("this is not one expression")
    return dict(node["select_list"][0])


def has_columns(tree: Any) -> bool:
    """Whether a tree mentions a column."""
    if isinstance(tree, dict):
        return tree.get("class") == "COLUMN_REF" or any(map(has_columns, tree.values()))
    return isinstance(tree, list) and any(map(has_columns, tree))


def read_span(connection: duckdb.DuckDBPyConnection, tree: dict[str, Any]) -> tuple[int, int]:
    """Months, and microseconds, of a constant span.

    Raises:
        ValueError: it is none.
    """
    statement = _serialize(connection, "select 1")
    statement["statements"][0]["node"]["select_list"] = [tree]
    query = "select json_deserialize_sql(cast(? as json))"
    try:
        [(sql,)] = connection.execute(query, [json.dumps(statement)]).fetchall()
        span = connection.sql(sql).to_arrow_table().column(0)[0].as_py()
    except duckdb.Error as error:
        raise ValueError(f"this is no span: {error}") from error
    if span is None:
        raise ValueError("a span is a constant: write interval 3 hours")
    return span.months, span.days * 86_400_000_000 + span.nanoseconds // 1000


def _serialize(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(connection.execute("select json_serialize_sql(?)", [sql]).fetchall()[0][0])
    if parsed.get("error"):
        raise ValueError(parsed["error_message"])
    return parsed
