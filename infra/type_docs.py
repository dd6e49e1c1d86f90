"""docs/column-types.md: what becomes of each type that a column may have, from the table that ingest reads by."""

from collections.abc import Iterator, Sequence

from adapters.column_types import KIND_ROWS, TYPE_ROWS, KindRow, TypeRow

_HEAD = """# Types and names of a source's columns

The tables are generated from `adapters/column_types.py` by `make docs`; do not edit. Ingest, polling and the log
read by them, and give the same rows.

## From PostgreSQL to a kind

A column of a type in the first place lands in raw data as the second, and its table's suite (`expectations/`) declares
it as one of the third: `DeclaredColumn(kind=..., nullable=...)`.
"""
_KINDS = """
## From a kind to features and requests

Clean data have one Arrow type for each kind; a definition (`features/`) reads it as `declare_source` says, and a client
sends what its `RequestField` says. A `decimal` has `digits`, such as `(12, 2)`. A `date` is read as the midnight it
begins with, a `decimal` as the nearest double, so that both answer online as in batch.
"""
_TAIL = """
## Values that are none of their kind

NaN, infinity, a year before 1 or after 9999, and a number with more digits than declared are a fault of their row: it
goes to quarantine with the text that the source has, and the other rows go on. What an undeclared column holds changes
nothing, and whether it changes makes no partition late.

- Text is of any script and length; `''` is a text, and not missing. What identifies an event or is the key of a window
  is in an index of PostgreSQL, which holds some 2,600 bytes of it.
- Whole numbers have 64 bits and are exact; a sum over a window is exact within them, and rounded once, to a double. On
  Spark, and in the SQL that defines features, it is exact up to 53 bits.
- A `timestamp` without a time zone is declared with that of its clock: `zone="Europe/Paris"`. Of an hour that comes
  twice it is the later one, and one that is left out is an hour later, as PostgreSQL's `at time zone` has it.

## Names

A table or column that has capitals, spaces, quotes, or a word of SQL as its name has another one here. `params.yaml`
gives a table its own as SQL writes it, with its schema where it is not in the search path (`relation:`, such as
`'sales."Order Lines"'`), and the suite a column: `DeclaredColumn(kind="integer", nullable=False, source="Line No.")`.
Keys, `available_at`, expectations and features then say the name that it has here. A view, and a table without a
primary key, can be ingested and polled; only a table with one can be followed by its log, which has no generated
columns.

## Poolers and encodings

Rows are read through a pooler in any mode: what a transaction needs, it sets (`set local`). The log is not: a pooler
passes no replication, and `WINDSOCK_FOLLOWER_DSN` is the address of PostgreSQL itself. A database in any encoding is
read as UTF-8. Of one in `SQL_ASCII`, which says nothing of what its bytes mean, text that is no UTF-8 is refused.
"""


def render_type_page() -> str:
    """The whole page."""
    types = _table(("PostgreSQL", "lands as", "may be declared as", ""), map(_type_cells, TYPE_ROWS))
    kinds = _table(("kind", "clean data", "`declare_source`", "`RequestField`", "JSON"), map(_kind_cells, KIND_ROWS))
    return "\n".join([_HEAD, *types, _KINDS, *kinds, _TAIL])


def _type_cells(row: TypeRow) -> tuple[str, ...]:
    lands = "`decimal128(p, s)`" if row.lands is None else f"`{row.lands}`"
    return row.names, lands, ", ".join(f"`{kind}`" for kind in row.kinds), row.note


def _kind_cells(row: KindRow) -> tuple[str, ...]:
    clean = "`decimal128`, of its digits" if row.clean is None else f"`{row.clean}`"
    return (
        f"`{row.kind}`",
        clean,
        ", ".join(f"`{kind}`" for kind in row.feature_kinds),
        f"`{row.request_kind}`",
        row.json,
    )


def _table(head: Sequence[str], rows: Iterator[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
