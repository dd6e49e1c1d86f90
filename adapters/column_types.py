"""What a column's type in PostgreSQL becomes: the one table that ingest, both followers and the docs read.

A type lands as one Arrow type, and a suite may declare it as one of some kinds; of a kind there is one Arrow type in
clean data, how features read it, and what a client sends. Those words belong to other packages and are text here;
tests hold them to theirs. What has no row lands as its text where it is a kind of text (an enum, citext); else it is
left out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

UTC_MICROSECONDS = pa.timestamp("us", tz="UTC")
MOST_DIGITS = 38  # of an exact number in Arrow
# How a session has values written; of each a source may have another default.
VALUE_SETTINGS: Mapping[str, str] = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "lc_monetary": "C",
}


@dataclass(frozen=True, kw_only=True)
class TypeRow:
    """Types of PostgreSQL that become the same: their names in the docs, and their numbers (pg_type.oid).

    `lands` is the Arrow type in raw data, if the digits of a column do not decide; `kinds` are what a suite may say.
    """

    names: str
    oids: tuple[int, ...]
    lands: pa.DataType | None
    kinds: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class KindRow:
    """A kind that a suite declares: its Arrow type in clean data (if no digits decide), and its words elsewhere."""

    kind: str
    clean: pa.DataType | None
    feature_kinds: tuple[str, ...]
    request_kind: str
    json: str


_EXACT, _OPEN = "numeric(p, s)", "numeric"
TYPE_ROWS: tuple[TypeRow, ...] = (
    TypeRow(names="boolean", oids=(16,), lands=pa.bool_(), kinds=("boolean",)),
    TypeRow(names="bigint", oids=(20,), lands=pa.int64(), kinds=("integer",)),
    TypeRow(names="integer, serial", oids=(23,), lands=pa.int32(), kinds=("integer",)),
    TypeRow(names="smallint", oids=(21,), lands=pa.int16(), kinds=("integer",)),
    TypeRow(names="double precision", oids=(701,), lands=pa.float64(), kinds=("float",)),
    TypeRow(names="real", oids=(700,), lands=pa.float32(), kinds=("float",)),
    TypeRow(
        names=_EXACT,
        oids=(1700,),
        lands=None,
        kinds=("decimal", "integer", "float", "text"),
        note="exact up to 38 digits; as a float it is the nearest number",
    ),
    TypeRow(
        names=_OPEN,
        oids=(1700,),
        lands=pa.float64(),
        kinds=("decimal", "integer", "float", "text"),
        note="declared as decimal, integer or text it lands as that, exactly",
    ),
    TypeRow(names="date", oids=(1082,), lands=pa.date32(), kinds=("date",)),
    TypeRow(names="timestamp with time zone", oids=(1184,), lands=UTC_MICROSECONDS, kinds=("timestamp",)),
    TypeRow(
        names="timestamp",
        oids=(1114,),
        lands=pa.timestamp("us"),
        kinds=("timestamp",),
        note="with the zone of its clock, which the suite declares",
    ),
    TypeRow(names='text, varchar, name, "char"', oids=(18, 19, 25, 1043), lands=pa.string(), kinds=("text",)),
    TypeRow(names="char(n)", oids=(1042,), lands=pa.string(), kinds=("text",), note="without the spaces at its end"),
    TypeRow(names="uuid", oids=(2950,), lands=pa.string(), kinds=("text",)),
    TypeRow(
        names="time, time with time zone, interval",
        oids=(1083, 1186, 1266),
        lands=pa.string(),
        kinds=("text",),
        note="such as `10:15:00`, `1 day 02:00:00`",
    ),
    TypeRow(
        names="inet, cidr, macaddr, macaddr8, bit, varbit, money, oid, pg_lsn",
        oids=(26, 650, 774, 790, 829, 869, 1560, 1562, 3220),
        lands=pa.string(),
        kinds=("text",),
        note="as PostgreSQL writes it",
    ),
    TypeRow(names="an enum, citext and other kinds of text", oids=(), lands=pa.string(), kinds=("text",)),
    TypeRow(
        names="json, jsonb, xml, bytea, arrays, ranges, composites, geometry, all else",
        oids=(17, 114, 142, 3802),
        lands=pa.string(),
        kinds=("text",),
        note="left out, unless it is declared as text",
    ),
)
KIND_ROWS: tuple[KindRow, ...] = (
    KindRow(
        kind="boolean", clean=pa.bool_(), feature_kinds=("boolean",), request_kind="boolean", json="`true`, `false`"
    ),
    KindRow(kind="integer", clean=pa.int64(), feature_kinds=("bigint",), request_kind="bigint", json="a whole number"),
    KindRow(kind="float", clean=pa.float64(), feature_kinds=("double",), request_kind="double", json="a number"),
    KindRow(
        kind="decimal",
        clean=None,
        feature_kinds=("decimal", "varchar"),
        request_kind="double",
        json="a number (read as `decimal`), or a string (as `varchar`)",
    ),
    KindRow(kind="date", clean=pa.date32(), feature_kinds=("date",), request_kind="date", json='`"2013-07-04"`'),
    KindRow(
        kind="timestamp",
        clean=UTC_MICROSECONDS,
        feature_kinds=("timestamp",),
        request_kind="timestamp",
        json='`"2013-07-04T18:30:00-04:00"`',
    ),
    KindRow(kind="text", clean=pa.string(), feature_kinds=("varchar",), request_kind="varchar", json="a string"),
)
CLEAN_TYPES: Mapping[str, pa.DataType | None] = {row.kind: row.clean for row in KIND_ROWS}

_NUMERIC, _PADDED = 1700, 1042
_LEFT_OUT = frozenset(TYPE_ROWS[-1].oids)
_LANDS: Mapping[int, pa.DataType] = {
    oid: row.lands
    for row in TYPE_ROWS
    for oid in row.oids
    if row.lands is not None and oid not in {*_LEFT_OUT, _NUMERIC}
}
_TEXT_CATEGORIES = "ES"  # of pg_type: enums, and texts such as citext
_WORDS = {"A": "an array", "C": "a composite", "R": "a range", "G": "a geometry"}
_DOCUMENTS = {17: "bytes", 114: "a document", 142: "a document", 3802: "a document"}
_LOOK_UP = "select oid, format_type(oid, null), typcategory::text from pg_type where oid = any(%s)"


class TypeName(NamedTuple):
    """A type as a source names it, and its category there."""

    name: str
    category: str


class SourceColumn(NamedTuple):
    """A column as its source describes it. Precision and scale are those of a `numeric`, as psycopg2 has them.

    `named` is known where the type's number alone does not say what the column becomes.
    """

    name: str
    oid: int
    precision: int | None = None
    scale: int | None = None
    named: TypeName | None = None

    @property
    def left_out(self) -> str | None:
        """Why it is left out, if it is: "an array (integer[])"."""
        if self.oid in _LANDS or self.oid == _NUMERIC or (self.named and self.named.category in _TEXT_CATEGORIES):
            return None
        category = self.named.category if self.named else ""
        what = _DOCUMENTS.get(self.oid) or _WORDS.get(category, "of a type that is not known here")
        return f"{what} ({self.named.name if self.named else self.oid})"

    @property
    def is_number(self) -> bool:
        """Whether it is a `numeric`."""
        return self.oid == _NUMERIC

    @property
    def is_open_number(self) -> bool:
        """Whether it is a number of any digits, or of more than Arrow has exactly."""
        return self.oid == _NUMERIC and not pa.types.is_decimal(arrow_type(self.oid, self.precision, self.scale))


class ReadColumn(NamedTuple):
    """A column to be read, as an Arrow type; `is_padded`: spaces at the end of a text are no part of it."""

    name: str
    kind: pa.DataType
    is_padded: bool = False

    @classmethod
    def of(cls, column: SourceColumn, kind: pa.DataType | None = None) -> "ReadColumn":
        """By its type in the source, or as another."""
        if kind is None:
            kind = arrow_type(column.oid, column.precision, column.scale)
        return cls(column.name, kind, column.oid == _PADDED)


def arrow_type(oid: int, precision: int | None, scale: int | None) -> pa.DataType:
    """The Arrow type that a column lands as; `numeric(p, s)` is exact, plain `numeric` becomes float64."""
    if oid != _NUMERIC:
        return _LANDS.get(oid, pa.string())
    # Of `numeric` without a precision psycopg2 says 65535.
    if precision is None or scale is None or precision > MOST_DIGITS or scale > precision:
        return pa.float64()
    return pa.decimal128(precision, scale)


def look_up_types(at: Any, oids: Iterable[int]) -> dict[int, TypeName]:
    """What a source says of those types of which the number alone does not say what becomes of them; by a cursor."""
    unknown = sorted({*oids} - _LANDS.keys() - {_NUMERIC})
    if not unknown:
        return {}
    at.execute(_LOOK_UP, (unknown,))
    return {oid: TypeName(name, category) for oid, name, category in at.fetchall()}
