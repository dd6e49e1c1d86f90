"""Parquet whose bytes depend on the rows alone, so that a content hash says whether data changed."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

_ROW_GROUP_ROWS = 1 << 20


def to_bytes(table: pa.Table) -> bytes:
    """A table as Parquet: the same rows in the same order give the same bytes (for one version of pyarrow).

    Schema metadata is dropped: pandas and writers of their own put versions and paths there.
    """
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(None).combine_chunks(),  # pages break at chunk borders: have none
        sink,
        version="2.6",
        compression="zstd",
        compression_level=3,
        row_group_size=_ROW_GROUP_ROWS,
        store_schema=False,  # would embed a second, Arrow-versioned copy of the schema
    )
    return sink.getvalue()


def from_bytes(data: bytes) -> pa.Table:
    """The table in some Parquet bytes."""
    return pq.read_table(pa.BufferReader(data))


def ordered(table: pa.Table, key: tuple[str, ...]) -> pa.Table:
    """Rows by key, then by every other column, so that rows with one key have one order too.

    Text sorts by its UTF-8 bytes: a database's collation changes with its host, and must not change the hash.
    Columns of the key that are absent are passed over: a renamed column is validation's business.
    """
    columns = [name for name in key if name in table.column_names]
    columns += [name for name in table.column_names if name not in columns]
    return table.sort_by([(name, "ascending") for name in columns]) if columns and table.num_rows else table
