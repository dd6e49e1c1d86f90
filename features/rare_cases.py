"""What is rare is asked of the engine that computes the batch, so that both have one answer; it is remembered."""

import threading
from functools import lru_cache
from typing import Any

import duckdb

_local = threading.local()


@lru_cache(maxsize=4096)
def ask(expression: str, *values: Any) -> Any:
    """DuckDB's value of an expression with a `?` for each value, None where it has none.

    It takes a third of a millisecond when first asked.
    """
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1})
        _local.connection.execute("set TimeZone = 'UTC'")
    return _local.connection.execute(f"select try({expression})", values).fetchall()[0][0]
