"""Whoever writes predictions in the benchmark leaves the same rows."""

import pytest

from adapters.connect import Outside
from benchmarks.writes import VERSION, predictions, prepare, scenarios


@pytest.mark.parametrize("what", scenarios(10))
def test_everyone_writes_the_same_rows(outside: Outside, what: str) -> None:
    scenario, written = scenarios(2000)[what], []
    for write in scenario.writers.values():
        prepare(outside.warehouse, scenario.before, predictions(100, version="1"))
        with outside.warehouse.transaction() as at:
            write(at, scenario.rows)
        written.append(
            outside.warehouse.query(
                "select entity_key, event_time, prediction_time, score, snapshot_version"
                " from (select * from predictions union all select * from partitioned) p"
                " where model_version = %s order by entity_key, event_time",
                (VERSION,),
            )
        )
    assert len(written[0]) == 2000
    assert {row["score"] for row in written[0]} == set(scenario.rows["score"].to_pylist())
    assert all(rows == written[0] for rows in written)
