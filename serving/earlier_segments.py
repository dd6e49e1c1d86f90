"""Segments that a server of before wrote: batches of Arrow. Read as those of today are, so that none is lost.

The first record is the schema, the others are batches of it. A column `feature.<name>` is a feature.
"""

from collections.abc import Iterator

import orjson
import pyarrow as pa
import pyarrow.compute as pc

_FEATURE = "feature."


def read_earlier_answers(schema: bytes, batches: Iterator[bytes]) -> list[bytes]:
    """The answers of a segment, each as JSON.

    Raises:
        ValueError: its records are no batches.
    """
    try:
        described = pa.ipc.read_schema(pa.py_buffer(schema))
        tables = [
            pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(batch), described)]) for batch in batches
        ]
    except (pa.ArrowException, OSError) as error:  # Arrow's own OSError: the file was read already
        raise ValueError(f"it holds no batches: {error}") from error
    return [orjson.dumps(row) for table in tables for row in _list_rows(table)]


def _list_rows(table: pa.Table) -> Iterator[dict[str, object]]:
    names = [name for name in table.column_names if name.startswith(_FEATURE)]
    features = pa.table({name.removeprefix(_FEATURE): _plain(table[name]) for name in names}).to_pylist()
    rows = table.drop_columns(names).to_pylist()
    for row, values in zip(rows, features or [{}] * len(rows), strict=True):
        yield row | {"request": orjson.loads(row["request"]), "features": values}


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """JSON knows no NaN and no infinity; in features they mean missing."""
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
