"""Expressions drawn from the table of operations have one value in DuckDB and online; what they may not use is said."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import duckdb
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from features import expressions, numbers_and_text, operations
from features.expressions import compile_expressions
from features.operation import strict
from features.operation_table import OPERATIONS
from tests.features.everyday import EVERYDAY, REFUSED
from tests.features.expression_worlds import (
    STOPPED,
    Case,
    by_duckdb,
    cases,
    differences,
    edge_world,
    everyday_rows,
    kinds,
    name_row,
)

EXAMPLES = int(os.environ.get("WINDSOCK_EXPRESSION_EXAMPLES", "60"))  # of six expressions each
LONG = 20_000
seen: Counter[str] = Counter()


@pytest.mark.parametrize("sql", EVERYDAY)
def test_an_everyday_expression_has_the_bits_of_the_batch(sql: str) -> None:
    rows = everyday_rows()
    assert differences([sql], rows) == []
    told = [value for value in by_duckdb(sql, rows) if value not in (None, STOPPED)]
    assert told, "so the claim is about values"


@pytest.mark.parametrize(("sql", "instead"), REFUSED.items())
def test_what_is_refused_says_what_to_write_instead(sql: str, instead: str) -> None:
    with pytest.raises(ValueError, match=re.escape(instead)):
        compile_expressions({"here": sql}, kinds())


@pytest.mark.parametrize("row", OPERATIONS, ids=name_row)
def test_each_operation_of_the_table_has_the_bits_of_the_batch_on_rare_values(row) -> None:
    sql, rows = edge_world(row)
    assert differences([sql], rows) == []
    used = compile_expressions({"here": sql}, kinds()).operations
    assert row in used, "so the claim is about this row"


@settings(max_examples=EXAMPLES, deadline=None)
@given(case=cases(OPERATIONS))
def test_drawn_expressions_have_the_bits_of_the_batch(case: Case) -> None:
    assert differences(*case, seen) == []


def test_every_operation_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    """In a long run (WINDSOCK_EXPRESSION_EXAMPLES=20000) a hundred times each; here it is told how often."""
    counts = sorted((seen[name_row(row)], name_row(row)) for row in OPERATIONS)
    with capsys.disabled():
        print(
            f"\n{EXAMPLES} examples, {len(counts)} operations, the rarest:",
            ", ".join(f"{number} x {name}" for number, name in counts[:8]),
        )
    assert {*seen} <= {name for _, name in counts}
    if EXAMPLES >= LONG:
        assert counts[0][0] >= 100


def of_doubles(name: str, text: str) -> tuple[str, str, object]:
    """Rows of doubles written as if there were no NaN."""
    rows = expressions._ROWS[name]
    written = (replace(row, python=strict(text)) if "double" in row.takes else row for row in rows)
    return "_ROWS", name, tuple(written)


def function(planted: Callable[..., object], name: str) -> tuple[str, str, object]:
    return "_FUNCTIONS", name, planted


def fits(text: str, pattern: str) -> bool:
    return bool(re.fullmatch(pattern.replace("%", ".*").replace("_", ".*"), text))


PLANTED = {
    "a NaN compares as in Python": of_doubles("COMPARE_GREATERTHAN", "{} > {}"),
    "two NaN are not equal": of_doubles("COMPARE_EQUAL", "{} == {}"),
    "the least is NaN where one is": function(lambda *v: min((e for e in v if e is not None), default=None), "least"),
    "a half is rounded to even": function(lambda x: float(round(x)) if math.isfinite(x) else x, "round_half_away"),
    "a remainder has the divisor's sign": function(lambda a, b: a % b if b else None, "modulo_whole"),
    "a quotient goes downwards": function(lambda a, b: a // b if b else None, "divide_whole"),
    "0 / 0 is 0": function(lambda a, b: a / b if b else 0.0, "divide"),
    "a week begins on Thursday": function(lambda m: m // (7 * operations._DAY) * 7 * operations._DAY, "trunc_week"),
    "a month has 30 days": function(lambda m, months, micros: m + 30 * months * operations._DAY + micros, "add_months"),
    "letters are lowered by Python": function(str.lower, "lower"),
    "_ fits any number of letters": function(fits, "like"),
    "a whole number is rounded twice": function(float, "single"),
    "-0.0 loses its sign": function(lambda x: float(math.floor(x)) if math.isfinite(x) else x, "floor"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_sabotage_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, name, planted = PLANTED[fault]
    monkeypatch.setitem(getattr(expressions, where), name, planted)
    focus = [
        row for row in OPERATIONS if row.name == name or f"{name}(" in row.python(*"abc"[: max(len(row.takes), 2)])
    ]

    @settings(max_examples=400, phases=[Phase.generate], derandomize=True, deadline=None, database=None)
    @given(case=cases(focus))
    def drawn_expressions_agree(case: Case) -> None:
        assert differences(*case) == []

    with pytest.raises(AssertionError, match=r"== \[\]"):
        drawn_expressions_agree()


@settings(max_examples=40, deadline=None)
@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_a_whole_number_is_rounded_to_32_bits_once(number: int) -> None:
    with duckdb.connect() as connection:
        told = connection.execute("select cast(cast(? as bigint) as float)", [number]).fetchall()[0][0]
    assert float(np.float32(numbers_and_text.single(number))) == told
