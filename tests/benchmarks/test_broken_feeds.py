"""What is done to partitions is what it says: a fault changes its feature and no other, a change breaks no value."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import features
from benchmarks.changes import CHANGES, apply
from benchmarks.sabotage import FAULTS, find_tables, sabotage_features, sabotage_tables
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.monitor.broken.columns import Columns, read_columns
from tests import clean_data

TABLES = find_tables(features.definition("flights"))


@pytest.fixture(scope="module")
def partitions(tmp_path_factory: pytest.TempPathFactory) -> list[Columns]:
    """Two real weeks in a row, with their features."""
    folder, use_case = tmp_path_factory.mktemp("clean"), use_cases(REPOSITORY / "params.yaml")["flights"]
    paths = {name: [folder / f"{name}.parquet"] for name in clean_data.TABLES}
    for name, [path] in paths.items():
        pq.write_table(pa.concat_tables(clean_data.clean_rows(name, clean_data.week(n)) for n in range(8)), path)
    found = []
    for number in (6, 7):
        points, _ = features.build(features.definition("flights"), paths, clean_data.week(number), use_case.time.lead)
        found.append(read_columns(points))
    return found


def differing(before: Columns, after: Columns) -> set[str]:
    names = [*before.numbers, *before.texts]
    both = [(name, before.numbers.get(name, before.texts.get(name))) for name in names]
    after_of = {**after.numbers, **after.texts}
    return {
        name
        for name, values in both
        if not all(a == b or (a != a and b != b) for a, b in zip(values, after_of[name], strict=True))  # noqa: PLR0124
    }


def test_tables_are_those_that_a_feature_s_values_come_from() -> None:
    assert TABLES["temp_f"] == TABLES["pressure_trend_mb_per_hour"] == {"weather"}
    assert TABLES["plane_seats"] == {"planes"}
    assert "movements" in TABLES["tail_late_rate_30d"]
    assert TABLES["distance_km"] == TABLES["carrier"] == {"flights"}


def test_every_fault_changes_its_features_and_no_others(partitions: list[Columns]) -> None:
    before, now = partitions
    kinds = set()
    for fault in sabotage_features(now, before, 3, np.random.default_rng(1)):
        changed = differing(now, fault.columns)
        assert fault.target in changed
        assert len(changed) <= (2 if fault.kind == "swapped" else 1)
        kinds.add(fault.kind)
    assert kinds == FAULTS.keys()
    for fault in sabotage_tables(now, before, TABLES, np.random.default_rng(1)):
        table = fault.target.removeprefix("table ")
        assert differing(now, fault.columns) <= {name for name, some in TABLES.items() if table in some}


def test_fifty_changes_move_the_world_and_break_no_value(partitions: list[Columns]) -> None:
    before, now = partitions
    assert len(CHANGES) == 50
    for change in CHANGES:
        after = apply(change, now, [before, now], np.random.default_rng(1))
        assert after.rows == len(next(iter(after.texts.values()))) > 300
        assert (after.rows == now.rows) == (change.name != "fewer flights")
        assert after.rows != now.rows or differing(now, after), change.name
        for name in ("carrier_late_rate_7d", "humidity"):
            assert np.nanmin(after.numbers[name]) >= 0
    assert all("block" not in change.right for change in CHANGES)
