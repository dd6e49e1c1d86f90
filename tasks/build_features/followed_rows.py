"""Rows of a source that no dataset holds yet: the stream keeps them, and the online store takes them in.

A row is kept as text, by what tells it apart in its table, with the expectations that it breaks, if any: then it is in
no feature until it is corrected, or its partition is validated.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
from psycopg2.extensions import cursor

from expectations import suites
from features.stream_change import SourceChange
from pipeline.spec import UseCase
from tasks.ingest.check import canonical_schema

Identities = Mapping[str, tuple[str, ...]]  # of each table the columns that tell its rows apart

_STATE = "select identities, changes from stream_state where use_case = %s"
_ROWS = """
select table_name, identity, available_at, row_data, reasons from followed_rows
where use_case = %s and available_at >= %s and changes > %s order by table_name, identity"""


@dataclass(frozen=True, kw_only=True)
class FollowedRow:
    """One row, as last told; `row_data` is None where it was deleted."""

    table: str
    identity: str
    available_at: datetime
    row_data: str | None
    reasons: tuple[str, ...] | None = None

    @property
    def is_good(self) -> bool:
        """Whether features may see it."""
        return self.row_data is not None and self.reasons is None

    @property
    def reasons_listed(self) -> list[str] | None:
        """The reasons, as PostgreSQL's array takes them."""
        return None if self.reasons is None else list(self.reasons)


@dataclass(frozen=True, kw_only=True)
class FollowedSource:
    """What the stream has kept, up to its step `changes`."""

    identities: Identities
    changes: int
    rows: tuple[FollowedRow, ...]


def read_followed(at: cursor, use_case: UseCase, since: datetime, *, after: int = -1) -> FollowedSource | None:
    """The rows that became known from a moment on, of the steps after one; None where nothing was ever followed."""
    at.execute(_STATE, (use_case.name,))
    state = at.fetchone()
    if state is None:
        return None
    at.execute(_ROWS, (use_case.name, since, after))
    rows = [
        FollowedRow(table=row[0], identity=row[1], available_at=row[2], row_data=row[3], reasons=_tuple(row[4]))
        for row in at.fetchall()
    ]
    return FollowedSource(identities=_read_identities(state[0]), changes=state[1], rows=tuple(rows))


def read_identities(at: cursor, use_case: UseCase) -> Identities | None:
    """Of each table the columns in `FollowedRow.identity`; None where nothing was ever followed."""
    at.execute(_STATE, (use_case.name,))
    state = at.fetchone()
    return None if state is None else _read_identities(state[0])


def _read_identities(columns: Mapping[str, list[str]]) -> Identities:
    return {table: tuple(names) for table, names in columns.items()}


def _tuple(reasons: list[str] | None) -> tuple[str, ...] | None:
    return None if reasons is None else tuple(reasons)


def encode_rows(use_case: UseCase, table: str, rows: pa.Table, identity: Sequence[str]) -> list[FollowedRow]:
    """Rows in the canonical schema, each with the moment in which it became known, as they are kept."""
    known = rows[use_case.source.tables[table].available_at].to_pylist()
    return [
        FollowedRow(
            table=table,
            identity=_to_text([row[name] for name in identity]),
            available_at=available_at,
            row_data=_to_text(row),
        )
        for row, available_at in zip(_with_plain_values(rows).to_pylist(), known, strict=True)
    ]


def encode_identities(keys: pa.Table) -> list[str]:
    """What tells rows apart, as it is kept."""
    return [_to_text(list(row.values())) for row in _with_plain_values(keys).to_pylist()]


def _to_text(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _with_plain_values(rows: pa.Table) -> pa.Table:
    """Moments as microseconds, and days as days, since 1970; exact numbers as text."""
    return rows.cast(pa.schema([(f.name, _plain_type(f.type)) for f in rows.schema]))


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_date(kind):
        return pa.int32()
    return pa.string() if pa.types.is_decimal(kind) else kind


def to_source_changes(
    use_case: UseCase, rows: Iterable[FollowedRow], identities: Identities
) -> dict[str, SourceChange]:
    """Kept rows as what changes of their sources: good ones come, the others go."""
    by_table = defaultdict[str, list[FollowedRow]](list)
    for row in rows:
        by_table[row.table].append(row)
    return {
        table: SourceChange(
            rows=decode_rows(use_case, table, [row.row_data for row in kept if row.is_good and row.row_data]),
            gone=decode_identities(use_case, table, [row.identity for row in kept if not row.is_good], identities),
        )
        for table, kept in by_table.items()
    }


def decode_rows(use_case: UseCase, table: str, texts: Sequence[str]) -> pa.Table:
    """Kept rows in the canonical schema."""
    rows, schema = [json.loads(text) for text in texts], canonical_schema(suites(use_case.name)[table])
    return pa.table({f.name: _column([row.get(f.name) for row in rows], f.type) for f in schema}, schema)


def decode_identities(use_case: UseCase, table: str, texts: Sequence[str], identities: Identities) -> pa.Table:
    """What tells rows apart, typed as in the canonical schema."""
    values, schema = [json.loads(text) for text in texts], canonical_schema(suites(use_case.name)[table])
    return pa.table(
        {
            name: _column([value[place] for value in values], schema.field(name).type)
            for place, name in enumerate(identities[table])
        }
    )


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        return pa.array([None if value is None else Decimal(value) for value in values], kind)
    return pa.array(values, _plain_type(kind)).cast(kind)
