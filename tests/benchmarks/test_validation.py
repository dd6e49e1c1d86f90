"""In the benchmark of validation, the planted faults are found, the same by everyone."""

from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.validation import CONTESTANTS, COUNTS, OURS, THEIRS, asked, rows


def test_everyone_finds_the_planted_rows(tmp_path: Path) -> None:
    flights = rows(40_000, weeks=2)
    expects = asked(flights.num_rows)
    pq.write_table(flights, tmp_path / "flights.parquet")
    found = {name: contestant(tmp_path / "flights.parquet", expects) for name, contestant in CONTESTANTS.items()}
    assert found[OURS] == found[THEIRS]
    assert found[COUNTS] == {}
    planted = {"distance_miles": {7, 30_007}, "dest": {11_111}, "scheduled_arrival": {22_222}}
    by_column = {
        expects[i].arguments.get("column", expects[i].arguments.get("column_A")): at for i, at in found[OURS].items()
    }
    assert by_column == planted
    assert len(expects) == 25


def test_carriers_of_replicas_keep_keys_apart() -> None:
    flights = rows(40_000, weeks=2)
    keys = flights.select(["carrier", "flight", "origin", "scheduled_departure"])
    assert keys.group_by(keys.column_names).aggregate([]).num_rows == flights.num_rows
