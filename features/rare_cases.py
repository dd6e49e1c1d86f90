"""What is rare is asked of the engine that computes the batch, so that both have one answer; it is remembered."""

import threading
from functools import lru_cache
from typing import Any

import duckdb

_local = threading.local()


@lru_cache(maxsize=4096)
def ask(expression: str, value: Any) -> Any:
    """DuckDB's value of an expression with one `?` in it; takes a third of a millisecond when first asked."""
    return connect_once().execute(f"select {expression}", [value]).fetchall()[0][0]


def connect_once() -> duckdb.DuckDBPyConnection:
    """This thread's connection, which has no table."""
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1})
        _local.connection.execute("set TimeZone = 'UTC'")
    return _local.connection
