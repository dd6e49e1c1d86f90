"""What is rare is asked of the engine that computes the batch, so that both have one answer; it is remembered."""

import threading
from functools import lru_cache
from typing import Any

import duckdb

_LONG = 200  # characters
_local = threading.local()


def ask(expression: str, *values: Any) -> Any:
    """DuckDB's value of an expression with a `?` for each value, None where it has none.

    It takes a third of a millisecond when first asked; of long texts each time, for clients may send many.
    """
    is_long = any(isinstance(value, str) and len(value) > _LONG for value in values)
    return (_compute if is_long else _recall)(expression, *values)


@lru_cache(maxsize=4096)
def _recall(expression: str, *values: Any) -> Any:
    return _compute(expression, *values)


def _compute(expression: str, *values: Any) -> Any:
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1})
        _local.connection.execute("set TimeZone = 'UTC'")
    return _local.connection.execute(f"select try({expression})", values).fetchall()[0][0]
