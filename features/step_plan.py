"""The steps of a definition on DuckDB, each kept only as long as it is needed.

A step that is read once is a view: DuckDB then computes only those of its columns that are read, and stores none.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import duckdb

from features.engine import FeatureSet, Span, steps_sql


class StepPlan:
    """The sources and steps of a definition in a connection, for some queries, each of which is made once."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, definition: FeatureSet, queries: Sequence[str]) -> None:
        self._connection, self._definition = connection, definition
        self._reads = {name: _steps_read_by(sql, definition.steps) for name, sql in definition.steps.items()}
        self._queries = [_steps_read_by(sql, definition.steps) for sql in queries]
        times = Counter(name for read in (*self._reads.values(), *self._queries) for name in read)
        self._stored = {name for name, count in times.items() if count > 1}

    def create(self, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta) -> None:
        views = self._definition.steps.keys() - self._stored
        for statement in steps_sql(self._definition, tables, interval, lead, views=views).values():
            self._connection.execute(statement)

    def finish_query(self) -> None:
        """Drop what none of the queries after the first one reads: the first has been answered."""
        self._queries.pop(0)
        needed, todo = set[str](), [name for read in self._queries for name in read]
        while todo:
            needed.add(name := todo.pop())
            todo += [] if name in self._stored else self._reads[name]
        for name in sorted(self._stored - needed):
            self._connection.execute(f"drop table {name}")
        self._stored &= needed


def _steps_read_by(sql: str, steps: Iterable[str]) -> list[str]:
    """The steps that a text reads, each as often as it does."""
    return [name for name in re.findall(r"\b(?:from|join)\s+(\w+)", sql) if name in steps]
