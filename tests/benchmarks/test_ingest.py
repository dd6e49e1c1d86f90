"""In the benchmark of ingest, pandas and COPY land the same rows."""

import pyarrow as pa
import pytest

from adapters.connect import Outside
from adapters.parquet import from_bytes, to_bytes
from benchmarks.ingest import CONTESTANTS, OURS, repeat, same
from tests.clean_data import week
from tests.real_flights import fill


def test_everyone_lands_the_same_rows_and_another_one_is_seen(outside: Outside) -> None:
    fill(outside.source, week(1), "flights")
    [before] = outside.source.query("select count(*) as n from flights")
    repeat(outside.source, 2 * before["n"])
    contents = {name: contestant(outside.source) for name, contestant in CONTESTANTS.items()}
    assert same(contents) == 2 * before["n"]
    rows: pa.Table = from_bytes(contents[OURS])
    with pytest.raises(AssertionError, match="other rows"):
        same({**contents, "late": to_bytes(rows.slice(1))})
