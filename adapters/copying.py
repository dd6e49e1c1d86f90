"""What PostgreSQL's COPY writes and reads, as typed Arrow tables."""

import io
from collections.abc import Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from adapters.column_types import ReadColumn

# Longer than any name that PostgreSQL gives a column.
_UNREAD = " as the source wrote it, where that is no value of the column's type"
_MOMENT = r"^\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?(\+00)?)?$"  # the others are infinite, before Christ or after 9999


def name_unread(name: str) -> str:
    """The column beside one, that has the text of each value of it which its type does not have."""
    return name + _UNREAD


def is_unread(name: str) -> bool:
    """Whether a column is one that `name_unread` names."""
    return name.endswith(_UNREAD)


def read_copy(data: bytes, columns: Sequence[ReadColumn]) -> pa.Table:
    """The table in COPY's CSV output (written under `column_types.VALUE_SETTINGS`).

    Values that a column's Arrow type does not have (infinite dates, those before Christ, a 'NaN' in a `numeric(p, s)`)
    are null, and their text stands in a column more, named by `name_unread`: it is there only where there are any.
    """
    schema = pa.schema([(column.name, column.kind) for column in columns])
    if not data:
        return schema.empty_table()
    try:
        table = _read(data, schema)
    except pa.ArrowInvalid:
        table = _read_what_can_be(data, schema)
    for place, column in enumerate(columns):
        if column.is_padded:
            table = table.set_column(place, schema.field(place), pc.utf8_rtrim(table.column(place), " "))
    return table


def _read_what_can_be(data: bytes, schema: pa.Schema) -> pa.Table:
    table = _read(data, pa.schema([(f.name, pa.string() if _may_refuse(f.type) else f.type) for f in schema]))
    unread = dict[str, pa.ChunkedArray]()
    for place, field in enumerate(schema):
        if _may_refuse(field.type):
            texts = table.column(place)
            values = (
                _read_moments(texts, field.type) if pa.types.is_temporal(field.type) else _read_numbers(texts, field)
            )
            left = pc.if_else(pc.is_valid(values), pa.scalar(None, pa.string()), texts)
            table = table.set_column(place, field, values)
            if left.null_count < len(left):
                unread[field.name] = left
    for name, texts in unread.items():
        table = table.append_column(name_unread(name), texts)
    return table


def _may_refuse(kind: pa.DataType) -> bool:
    """Whether PostgreSQL has values of it that Arrow does not have; of whole numbers, where they are a `numeric`."""
    return bool(pa.types.is_temporal(kind) or pa.types.is_decimal(kind) or pa.types.is_integer(kind))


def _read_moments(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    there = pc.if_else(pc.match_substring_regex(texts, _MOMENT), texts, pa.scalar(None, pa.string()))
    return _read_again(there, kind)


def _read_again(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """One column alone.

    Raises:
        pa.ArrowInvalid: it has a value that the type does not have.
    """
    return _read(format_copy(pa.table({"column": texts})), pa.schema({"column": kind}))["column"]


def _read_numbers(texts: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        return _read_again(texts, field.type)  # what could not be read was another column
    except pa.ArrowInvalid:
        return _read_each_number(texts, field)


def _read_each_number(texts: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    whole = pa.types.is_integer(field.type)
    digits, scale = (19, 0) if whole else (field.type.precision, field.type.scale)
    context = Context(prec=digits, traps=[InvalidOperation, Inexact])
    values = [None if text is None else _fit_number(text, context, scale) for text in texts.to_pylist()]
    if whole:
        values = [value if value is not None and -(2**63) <= value < 2**63 else None for value in values]
        return pa.chunked_array(
            [pa.array([None if value is None else int(value) for value in values], pa.int64())]
        ).cast(field.type)
    return pa.chunked_array([pa.array(values, field.type)])


def _fit_number(text: str, context: Context, scale: int) -> Decimal | None:
    """The number, with so many digits behind the point; None where it has more, or is none."""
    number = Decimal(text)
    if not number.is_finite():
        return None
    try:
        return context.quantize(number, Decimal((0, (1,), -scale)))
    except (InvalidOperation, Inexact):
        return None


def _read(data: bytes, schema: pa.Schema) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=schema.names, use_threads=False, block_size=max(len(data), 1)),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),  # one null alone is one
        convert_options=pa.csv.ConvertOptions(
            column_types=schema,
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,  # COPY writes null bare and '' quoted
            true_values=["t"],
            false_values=["f"],
        ),
    )


def format_copy(rows: pa.Table) -> bytes:
    """Rows as COPY reads them: every value quoted, null alone is bare, so that '' and null stay apart."""
    sink = io.BytesIO()
    plain = rows.cast(pa.schema([(f.name, _plain(f.type)) for f in rows.schema]))
    pa.csv.write_csv(plain, sink, pa.csv.WriteOptions(include_header=False, quoting_style="all_valid"))
    return sink.getvalue()


def _plain(kind: pa.DataType) -> pa.DataType:
    """What is written as text: moments in UTC without saying so, as the session does; a zone costs ten times more."""
    if pa.types.is_timestamp(kind):
        return pa.timestamp(kind.unit)
    return kind.value_type if pa.types.is_dictionary(kind) else kind
