"""Whoever scores in the benchmark gives the same scores."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.contenders.mlflow_batch import save
from benchmarks.scoring import OURS, contestants, differences
from models.ensemble import fit_ensemble
from tests.models.synthetic import table
from tests.models.test_bundle import write
from tests.models.test_training import CPU, recipe


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    folder: Path = tmp_path_factory.mktemp("scoring")
    write(folder / "bundle", fit_ensemble(recipe(epochs=1, seeds=(1, 2)), table(), CPU))
    rows = table(10_000, seed=2).drop_columns(["prediction_time", "label", "label_time"])
    pq.write_table(rows, folder / "rows.parquet")
    save(folder / "bundle", folder / "pyfunc", rows.slice(0, 100))
    found = {}
    for name, score in contestants(folder).items():
        score(folder / "rows.parquet", folder / "scores.parquet")
        found[name] = pq.read_table(folder / "scores.parquet")
    return found


def test_everyone_gives_the_same_scores_and_bf16_nearly(found: dict[str, pa.Table]) -> None:
    apart = differences(found)
    assert apart.pop("the same in bf16") < 0.05
    assert max(apart.values()) <= 1e-5
    assert len(apart) == 3


def test_rows_in_another_order_are_refused(found: dict[str, pa.Table]) -> None:
    with pytest.raises(AssertionError, match="another order"):
        differences({**found, "shuffled": found[OURS].slice(1).slice(0, 9_999)})
