"""What PostgreSQL's COPY writes and reads, as typed Arrow tables."""

import io
from collections.abc import Callable

import pyarrow as pa
import pyarrow.csv

# pg_type.oid -> Arrow; built-in types have the same number in every database. What is not here lands as its text.
_TYPES: dict[int, pa.DataType] = {
    16: pa.bool_(),
    20: pa.int64(),
    21: pa.int16(),
    23: pa.int32(),
    700: pa.float32(),
    701: pa.float64(),
    1082: pa.date32(),
    1114: pa.timestamp("us"),
    1184: pa.timestamp("us", tz="UTC"),
}
_NUMERIC = 1700
# Which columns have values that Arrow does not: tried in this order, until all can be read.
_KEPT_AS_TEXT: tuple[Callable[[pa.DataType], bool], ...] = (
    lambda _: False,
    pa.types.is_temporal,
    pa.types.is_decimal,
    lambda kind: pa.types.is_temporal(kind) or pa.types.is_decimal(kind),
)


def arrow_type(oid: int, precision: int | None, scale: int | None) -> pa.DataType:
    """The Arrow type of a column; `numeric(p, s)` is exact, plain `numeric` becomes float64."""
    if oid != _NUMERIC:
        return _TYPES.get(oid, pa.string())
    # Of `numeric` without a precision psycopg2 says 65535.
    if precision is None or scale is None or precision > 38 or scale > precision:
        return pa.float64()
    return pa.decimal128(precision, scale)


def read_copy(data: bytes, schema: pa.Schema) -> pa.Table:
    """The table in COPY's CSV output (written under timezone UTC).

    Dates Arrow cannot hold ('infinity', before Christ) make the columns of dates text, and a 'NaN' in a `numeric(p, s)`
    those of exact numbers: landed as is, for validation to stop.
    """
    if not data:
        return schema.empty_table()
    for is_text in _KEPT_AS_TEXT:
        try:
            return _read(data, pa.schema([(f.name, pa.string() if is_text(f.type) else f.type) for f in schema]))
        except pa.ArrowInvalid as error:
            refused = error
    raise refused


def _read(data: bytes, schema: pa.Schema) -> pa.Table:
    return pa.csv.read_csv(
        pa.BufferReader(data),
        read_options=pa.csv.ReadOptions(column_names=schema.names, use_threads=False, block_size=max(len(data), 1)),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
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
