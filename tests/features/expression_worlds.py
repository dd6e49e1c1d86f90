"""Worlds of typed columns, expressions drawn from the table of operations, and both engines asked about them."""

import math
import re
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from random import Random
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from features.expression_tree import doubles_sql
from features.expressions import compile_expressions
from features.operation import Operation
from features.operation_table import KINDS, OPERATIONS

COLUMNS = {
    "n": "bigint", "m": "bigint", "x": "double", "y": "double", "b": "boolean", "c": "boolean",
    "s": "varchar", "r": "varchar", "t": "timestamp", "u": "timestamp",
}  # fmt: skip
ARROW = {"bigint": pa.int64(), "double": pa.float64(), "boolean": pa.bool_(), "varchar": pa.string(),
         "timestamp": pa.timestamp("us")}  # fmt: skip
DAY = 86_400_000_000
RARE: dict[str, list[Any]] = {
    "bigint": [0, 1, -1, 2, 3, -7, 10, 1 << 31, (1 << 53) + 1, -(1 << 53) - 3, (1 << 60) + (1 << 36) + 1, 1 << 62,
               (1 << 63) - 1, -(1 << 63)],
    "double": [0.0, -0.0, float("nan"), float("inf"), -float("inf"), 0.5, -0.5, 1.5, 2.5, -2.5, 0.1, 3.0, 1e300,
               -1e300, 5e-324, 1e15, 1e16, 9.3e18, 2.0**53 + 2, 0.49999999999999994, 1e-5, 123456.789, 1e38, 1.005],
    "boolean": [True, False],
    "varchar": ["", "a", "A", "abc", "aXbXc", "ABC", "  x ", "1", "1.5", "-7", "nan", "true", "0.1", "1e3", "%", "_",
                "2013-05-06 07:08:09.25", "é", "İ", "ß", "ΑΣ", "\u00a0x\u00a0", "日本語",
               "a.b", "\\", "e\u0301", "ǅ"],
    "timestamp": [0, -1, 1, DAY - 1, -DAY, 1_367_824_089_500_000, 1_330_473_600_000_000, 1_356_998_399_999_999,
                  1_362_009_600_000_000, 951_782_400_000_000, -2_203_891_200_000_000, -62_135_596_800_000_000,
                  253_402_300_799_999_999, -100_000_000_000_000_000, 9_000_000_000_000_000_000,
                  -9_000_000_000_000_000_000, 1_383_177_600_000_000, 1_385_856_000_000_001],
}  # fmt: skip
LITERALS: dict[str, list[str]] = {
    "bigint": ["0", "1", "-1", "2", "7", "100", "3000000000", "9007199254740993", "cast(null as bigint)"],
    "double": ["0.5", "-0.0", "2.0", "0.1", "1e300", "1.5e0", "100.25",
               "cast(null as double)", "cast('nan' as double)"],
    "boolean": ["true", "false", "cast(null as boolean)"],
    "varchar": ["''", "'a'", "'b'", "'abc'", "'it''s'", "'1.5'", "'É'", "cast(null as varchar)"],
    "timestamp": ["timestamp '2013-05-06 07:08:09'", "timestamp '1969-12-31 23:59:59.5'"],
    "interval": ["interval 3 hours", "interval '2 days 00:00:00.5'", "interval 1 week", "(t - u)", "(u - t)"],
    "months": ["interval 1 month", "interval 13 months", "interval 2 years", "interval '1 month 3 days 02:00:00'"],
    "whole": ["0", "1", "2", "5"],
    "pattern": ["'a%'", "'%b'", "'%'", "''", "'a_c'", "'%X%X%'", "'_'", "'%é'", "'A.%'"],
    "timestamptz": ["timezone('UTC', t)", "timezone('UTC', u)"],
    "struct": ["leg"],
    "float": ["cast(x as float)", "cast(n as float)"],
}  # fmt: skip
_LETTERS = "abcXYZ019 .%_-éßİΣ日\u00a0\U0001f642"
_WITHOUT_LEAVES = ("float",)
ANYTHING: dict[str, Callable[[Random], Any]] = {
    "bigint": lambda random: (
        random.randint(-20, 20) if random.random() < 0.6 else random.randint(-(1 << 63), (1 << 63) - 1)
    ),
    "double": lambda random: (
        random.randint(-400, 400) / 8 if random.random() < 0.6 else struct.unpack("<d", random.randbytes(8))[0]
    ),
    "boolean": lambda random: random.random() < 0.5,
    "varchar": lambda random: "".join(random.choices(_LETTERS, k=random.randint(0, 6))),
    "timestamp": lambda random: (
        random.randint(0, 40 * 365 * 24) * 3_600_000_000
        if random.random() < 0.6
        else random.randint(-9 * 10**18, 9 * 10**18)
    ),
}
ZONES = ["'UTC'", "'America/New_York'", "'Europe/Dublin'", "'Australia/Lord_Howe'", "nullif('UTC', s)"]
STOPPING = (
    duckdb.OutOfRangeException, duckdb.ConversionException, duckdb.InvalidInputException, duckdb.NotImplementedException
)  # fmt: skip
STOPPED = "DuckDB stops a batch for this row"
Row = dict[str, Any]
_local = threading.local()


class Case(NamedTuple):
    """Some expressions, and rows to ask them about."""

    sqls: list[str]
    rows: list[Row]


def cases(focus: Sequence[Operation] = (), expressions: int = 6, rows: int = 16) -> st.SearchStrategy[Case]:
    """Drawn by seed, which is a hundred times faster than a choice at a time; less depth is simpler.

    With a focus, half of the expressions are an operation of it, of whatever operands.
    """
    return st.builds(
        lambda seed, depth: draw_case(Random(seed), depth, focus, expressions, rows),  # noqa: S311
        st.integers(0, 1 << 64),
        st.integers(1, 4),
    )


def draw_case(
    random: Random, depth: int, focus: Sequence[Operation] = (), expressions: int = 6, rows: int = 16
) -> Case:
    sqls = [
        _draw_row(random, random.choice(focus), depth)
        if focus and random.random() < 0.5
        else draw_expression(random, random.choice([*KINDS, "float"]), depth)
        for _ in range(expressions)
    ]
    columns = {name: [draw_value(random, kind) for _ in range(rows)] for name, kind in COLUMNS.items()}
    return Case(sqls, [with_record({name: columns[name][row] for name in COLUMNS}) for row in range(rows)])


def draw_value(random: Random, kind: str) -> Any:
    """One of a column: nothing, a rare one, or any."""
    way = random.random()
    if kind == "double" and way > 0.92:
        return float("nan")
    return None if way < 0.1 else random.choice(RARE[kind]) if way < 0.5 else ANYTHING[kind](random)


def with_record(row: Row) -> Row:
    """A record beside the columns, which is there where `s` is."""
    there = row["s"] is not None
    return {**row, "leg": True if there else None, "leg.origin": row["s"], "leg.delay": row["x"] if there else None}


def draw_expression(random: Random, kind: str, depth: int) -> str:
    """SQL of a kind, drawn from the table; nothing in it knows what an operation means."""
    rows = [row for row in OPERATIONS if row.gives == kind]
    if depth <= 0 or not rows or (kind not in _WITHOUT_LEAVES and random.random() < 0.15):
        return random.choice([*(name for name, each in COLUMNS.items() if each == kind), *LITERALS[kind]])
    name = random.choice(list(dict.fromkeys(row.name for row in rows)))
    return _draw_row(random, random.choice([row for row in rows if row.name == name]), depth)


def _draw_row(random: Random, row: Operation, depth: int) -> str:
    kinds_, operands = operand_kinds(row), list[str]()
    for place, kind in enumerate(kinds_):
        is_again = place and kinds_[place - 1] == kind and random.random() < 0.15  # what equals itself
        operands.append(operands[-1] if is_again else _draw_operand(random, row, kind, depth - 1))
    return written(row, operands)


def _draw_operand(random: Random, row: Operation, kind: str, depth: int) -> str:
    if kind not in KINDS:
        return random.choice(LITERALS[kind])
    if row.name == "CAST timestamp":  # of a constant it must be one
        return random.choice("sr")
    if row.name == "timezone" and kind == "varchar":
        return random.choice(ZONES)
    if row.name == "CAST varchar" and kind == "double":  # the sign of a NaN shows in text, and in nothing else
        return f"nullif({draw_expression(random, kind, depth)}, cast('nan' as double))"
    return draw_expression(random, "bigint" if kind == "double" and random.random() < 0.2 else kind, depth)


def operand_kinds(row: Operation) -> list[str]:
    """The kinds of the operands that stand in a row's SQL: constants are in it already."""
    count = len(set(re.findall(r"\b[abc]\b", row.sql)))
    kinds = row.kinds_of(max(count, len(row.takes))) if row.is_repeated else row.takes
    return [kind for kind in kinds or () if not kind.startswith("'")]


def written(row: Operation, operands: Sequence[str]) -> str:
    """A row's SQL with these operands."""
    sql = re.sub(r"interval 1 \w+", "b", row.sql)
    by_letter = dict(zip("abc", operands, strict=False))
    return re.sub(r"\b[abc]\b", lambda letter: f"({by_letter[letter[0]]})", sql)


def edge_world(row: Operation, limit: int = 700) -> tuple[str, list[Row]]:
    """An operation of columns alone, and rows of every combination of rare values, as far as there is room."""
    taken: dict[str, list[str]] = {kind: [n for n, each in COLUMNS.items() if each == kind] for kind in KINDS}
    operands, used = [], list[str]()
    for kind in operand_kinds(row):
        names = [name for name in taken.get(kind, ()) if name not in used] or taken.get(kind) or LITERALS[kind]
        operands.append(names[0])
        used += names[:1] if kind in KINDS else []
    columns = [name for name in dict.fromkeys(used) if name in COLUMNS] or ["s", "t", "u"]
    columns += ["u"] if "interval" in row.takes else []
    values = [[None, *RARE[COLUMNS[name]]] for name in columns]
    combined = list(product(*values))
    chosen = combined if len(combined) <= limit else Random(1).sample(combined, limit)  # noqa: S311
    empty = dict.fromkeys(COLUMNS)
    return written(row, operands), [with_record({**empty, **dict(zip(columns, each, strict=True))}) for each in chosen]


def everyday_rows() -> list[Row]:
    """Each rare value of each column in some row, beside others, and a row of nothing."""
    count = 2 * max(map(len, RARE.values()))
    columns = {
        name: [RARE[kind][(row * (1 + place % 2) + place * 5) % len(RARE[kind])] for row in range(count)]
        for place, (name, kind) in enumerate(COLUMNS.items())
    }
    rows = [{name: values[row] for name, values in columns.items()} for row in range(count)]
    return [with_record(row) for row in [*rows, dict.fromkeys(COLUMNS)]]


def kinds() -> dict[str, str]:
    """Of every column, as the evaluator is told."""
    return {**COLUMNS, "leg": "struct", "leg.origin": "varchar", "leg.delay": "double"}


def as_table(rows: Sequence[Row]) -> pa.Table:
    columns = {name: pa.array([row[name] for row in rows], pa.int64() if kind == "timestamp" else ARROW[kind])
               for name, kind in COLUMNS.items()}  # fmt: skip
    table = pa.table({name: column.cast(ARROW[COLUMNS[name]]) for name, column in columns.items()})
    there = pa.array([row["leg"] is None for row in rows])
    fields = [pa.array([row[f"leg.{name}"] for row in rows], kind) for name, kind in
              (("origin", pa.string()), ("delay", pa.float64()))]  # fmt: skip
    return table.append_column("leg", pa.StructArray.from_arrays(fields, ["origin", "delay"], mask=there))


def by_duckdb(sql: str, rows: Sequence[Row]) -> list[Any]:
    """Its value of each row, moments as microseconds; `STOPPED` where it has none."""
    if not hasattr(_local, "connection"):
        _local.connection = duckdb.connect(config={"threads": 1})
        _local.connection.execute("set TimeZone = 'UTC'")
    return list(_ask(_local.connection, doubles_sql(sql), as_table(rows)))


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, table: pa.Table) -> Iterator[Any]:
    connection.register("rows_", table)
    try:
        column = connection.sql(f"select {sql} as found from rows_").to_arrow_table()["found"]
    except STOPPING:
        if table.num_rows == 1:
            yield STOPPED
            return
        half = table.num_rows // 2
        yield from _ask(connection, sql, table.slice(0, half))
        yield from _ask(connection, sql, table.slice(half))
        return
    found = (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
    yield from (
        value.days * DAY + value.nanoseconds // 1000 if hasattr(value, "nanoseconds") else value for value in found
    )


def by_evaluator(sqls: Sequence[str], rows: Sequence[Row]) -> tuple[list[list[Any]], frozenset[Operation]]:
    """Its values of each expression, and the operations that they are made of."""
    program = compile_expressions({sql: sql for sql in sqls}, kinds())
    columns = [list(column) for column in zip(*(program.run(row) for row in rows), strict=True)]
    with np.errstate(over="ignore"):
        for place, sql in enumerate(dict.fromkeys(sqls)):
            if program.kinds[sql] == "float":
                columns[place] = [None if value is None else float(np.float32(value)) for value in columns[place]]
    return columns, program.operations


def differences(sqls: Sequence[str], rows: Sequence[Row], seen: Counter[str] | None = None) -> list[str]:
    """Where the engines differ in a bit; one NaN is as another, and what stops a batch may be anything."""
    sqls = list(dict.fromkeys(sqls))
    found, operations = by_evaluator(sqls, rows)
    if seen is not None:
        seen.update(map(name_row, operations))
    return [
        f"{sql}: DuckDB {theirs!r}, online {ours!r} of {row}"
        for sql, mine in zip(sqls, found, strict=True)
        for row, theirs, ours in zip(rows, by_duckdb(sql, rows), mine, strict=True)
        if theirs is not STOPPED and _bits(theirs) != _bits(ours)
    ]


def name_row(row: Operation) -> str:
    """A row of the table as it is counted: what is written, of what kinds."""
    return f"{row.sql} of {' '.join(row.takes)}"


def _bits(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return type(value), value
