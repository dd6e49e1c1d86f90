"""What the benchmark of features compares gives the same features."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks.feature_build import definition, engine, furthest, pandas, sources


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two weeks of flights, and a replica of them."""
    made = tmp_path_factory.mktemp("sources")
    assert sources(2, made, weeks=2) > 20_000
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> pa.Table:
    return engine(folder)


@pytest.mark.parametrize("sums", ["rolling", "running"])
def test_pandas_finds_the_features_of_the_engine(folder: Path, ours: pa.Table, sums: str) -> None:
    assert furthest(ours, pandas(folder, sums)) <= 2


def test_a_feature_that_differs_is_seen(ours: pa.Table) -> None:
    position = ours.column_names.index("tail_flights_7d")
    other = ours.set_column(position, "tail_flights_7d", pc.add(ours["tail_flights_7d"], 1.0).cast(pa.float32()))
    assert furthest(ours, other) > 2


def test_a_replica_has_the_features_of_the_original(ours: pa.Table) -> None:
    of_replica = pc.match_substring(ours["entity_key"], "#1")
    names = ["event_time", *definition().numeric]
    order = [("event_time", "ascending"), ("entity_key", "ascending")]
    original, copied = (ours.filter(rows).sort_by(order).select(names) for rows in (pc.invert(of_replica), of_replica))
    assert original.num_rows > 10_000
    assert original.equals(copied)
