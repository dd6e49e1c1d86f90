"""Writes docs/expressions.md from the table of operations: what expressions of features may use, and what instead."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from features.operation import Operation
from features.operation_table import KINDS, OPERATIONS
from features.refused_operations import ALIASES, INSTEAD, INSTEAD_OF_KINDS, OTHER_TYPES

_HEAD = """# Expressions

Generated from `features/operation_table.py` and `features/refused_operations.py` by `make docs`; do not edit.

The expressions of a definition (`point_sql`, `numeric_sql`, `categorical_sql`) are DuckDB's SQL over one point. The
batch runs them on DuckDB, the online server as one Python function, and `engine: spark` on Spark.
`tests/features/test_expressions.py` holds DuckDB and Python to the same bits, on rare values of every row below and on
expressions drawn from these rows. What is not in them is refused when a definition is compiled, with what to write
instead.

- A number with a point (`0.5`) is a double, also beside a whole number, of which DuckDB alone would make a decimal.
- NaN equals itself, and is greater than every number. `-0.0` equals `0.0`.
- Whole numbers have 64 bits. What does not fit, or what the column "stops a batch" says, stops DuckDB's batch with its
  message: nothing is built. Online, where one event must not cost others their answer, it is missing instead; sums and
  products go on without a bound, and only a result that 64 bits do not hold is missing.
- A moment is UTC without a zone, in microseconds; `infinity` is none. A span is a constant, or a difference of moments.
- `hour`, `dayname` and their like are of UTC. What the clock of a zone shows is, in every engine,
  `timezone('Europe/Paris', timezone('UTC', a))`, and `hour` of that the hour there; `local_time_sql` writes it.
- `date_diff` counts how many times a unit begins between two moments (a week: how many times seven days do), `date_sub`
  how many whole units lie between.
- `ln`, `log10`, `exp` and `power` are the C library's, in DuckDB as in Python: the same bits on one machine. That of
  another machine may differ in the last place, which a feature of 32 bits seldom shows.
- Text that is not ASCII is lowered, raised and trimmed by DuckDB itself, and so are numbers and moments read from text:
  a third of a millisecond the first time, then remembered. The sign of a NaN in text is not held.
- `cast` of what is none (`cast('a' as bigint)`) stops a batch; `try_cast` gives null. Online both are missing.
- On Spark a divisor of 0 stops a build: write `a / nullif(b, 0)`.

"""
_KINDS_TOLD = """`whole` is a constant, not below 0; `pattern` a constant text without a backslash; `months` a constant
span that has months; `interval` any other span. `float` is what a feature is rounded to in the end.

"""
_TABLE = "| write | of | gives | in Python | on Spark | stops a batch |\n|---|---|---|---|---|---|\n"


def render_expressions() -> str:
    """The whole page."""
    rows = "".join(f"| {' | '.join(row)} |\n" for row in _list_rows())
    return (
        f"{_HEAD}## What there is\n\n{_KINDS_TOLD}{_TABLE}{rows}\n"
        f"The same by another name: {_list_names(ALIASES)}; of types: {_list_names(OTHER_TYPES)}.\n\n"
        "## What is refused, and what to write instead\n\n| not | but |\n|---|---|\n"
        + "".join(f"| {row} |\n" for row in _list_refusals())
    )


def _list_rows() -> Iterator[tuple[str, ...]]:
    """Rows that differ only in their kinds are one."""
    ordered = sorted(OPERATIONS, key=lambda row: (_first_place(row), row.sql, row.not_on_spark, row.stops))
    for _, same in groupby(ordered, key=lambda row: (row.sql, row.not_on_spark, row.stops)):
        rows = list(same)
        row = rows[-1] if len(rows) <= 2 else next(each for each in rows if "double" not in each.takes)
        operands = [kind for kind in row.kinds_of(max(len(row.takes), 2 + (row.name in ("CASE", "COMPARE_IN"))))
                    or row.takes if not kind.startswith("'")]  # fmt: skip
        names = list("abc")[: len(operands)]
        python = row.python(*names).removeprefix(f"None if {' or '.join(f'{name} is None' for name in names)} else ")
        yield (
            _code(row.sql),
            _told(rows),
            _join(each.gives for each in rows),
            _code(python),
            f"refused: {row.not_on_spark}" if row.not_on_spark else "the same",
            row.stops,
        )


def _first_place(row: Operation) -> int:
    return next(place for place, each in enumerate(OPERATIONS) if each.sql == row.sql)


def _told(rows: Sequence[Operation]) -> str:
    """The kinds of the operands; of rows that take one kind or another throughout, these."""
    if len(rows) > 1:
        return _join(row.takes[-1] for row in rows)
    more = ", ..." if rows[0].is_repeated else ""
    return ", ".join(kind for kind in rows[0].takes if not kind.startswith("'")) + more


def _join(words: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(words))
    others = [word for word in distinct if word not in KINDS]
    return " / ".join(["any kind", *others] if set(distinct) >= set(KINDS) else distinct)


def _list_refusals() -> Iterator[str]:
    for instead, names in groupby(sorted(INSTEAD, key=lambda name: (INSTEAD[name], name)), key=INSTEAD.__getitem__):
        yield f"{_codes(list(names))} | {instead}"
    by_kinds = sorted(INSTEAD_OF_KINDS, key=lambda name: (INSTEAD_OF_KINDS[name], name))
    for instead, names in groupby(by_kinds, key=INSTEAD_OF_KINDS.__getitem__):
        yield f"{_codes(list(names))} of other kinds | {instead}"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _list_names(names: Mapping[str, str]) -> str:
    return ", ".join(f"`{other}` (`{name}`)" for other, name in names.items())


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")
