"""Which steps of a run are made as tables, and which are a part of what reads them."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import pytest

from features.step_tables import StepTables

STEPS = {
    "more": "select x + 1 as x from given -- a comment to the end",
    "twice": "select 2 * x as x from more",
    "odd": "select x + 1 as x from twice",
    "due": "select x, 1 as due from twice",  # it names itself
}


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        opened.execute("create table raw_given as select range as x from range(6)")
        yield opened


@pytest.fixture
def tables(connection: duckdb.DuckDBPyConnection) -> StepTables:
    definition: Any = SimpleNamespace(sources={"given": SimpleNamespace(columns=("x",))}, steps=STEPS)
    return StepTables(connection, definition, STEPS, cast("Any", SimpleNamespace(stored={"given"})))


def made(connection: duckdb.DuckDBPyConnection) -> set[str]:
    return {name for (name,) in connection.execute("select table_name from duckdb_tables() where temporary").fetchall()}


def read(connection: duckdb.DuckDBPyConnection, tables: StepTables, step: str) -> list[int]:
    return [x for x, *_ in connection.execute(tables.read_sql(step)).fetchall()]


def test_a_step_of_few_rows_that_is_read_once_is_no_table(
    connection: duckdb.DuckDBPyConnection, tables: StepTables
) -> None:
    with tables.run(["odd", "due"], {"given": "from raw_given where x < 3"}):
        assert made(connection) == {"given", "twice"}
        assert read(connection, tables, "odd") == [3, 5, 7]
        assert read(connection, tables, "due") == [2, 4, 6]
        tables.change({"given": "from raw_given where x >= 4"}, ["odd"])  # `twice` is read by one step now
        assert made(connection) == {"given"}
        assert read(connection, tables, "odd") == [11, 13]
    assert made(connection) == set()


def test_all_rows_are_made_tables_once(connection: duckdb.DuckDBPyConnection, tables: StepTables) -> None:
    with tables.run(["odd", "due"], {}):
        assert made(connection) == {"more", "twice", "odd", "due"}
        assert read(connection, tables, "due") == [2, 4, 6, 8, 10, 12]


def test_nothing_is_left_of_a_run_that_was_rolled_back(
    connection: duckdb.DuckDBPyConnection, tables: StepTables
) -> None:
    connection.execute("begin")
    with pytest.raises(KeyError), tables.run(["odd"], {"given": "from raw_given where x < 1"}):
        raise KeyError
    connection.execute("rollback")
    tables.restore(set())
    with tables.run(["odd"], {"given": "from raw_given where x = 5"}):
        assert read(connection, tables, "odd") == [13]
