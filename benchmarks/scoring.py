"""Batch scoring from Parquet to Parquet: our predictor against pandas and an MLflow pyfunc, the same model.

    python -m benchmarks.scoring [--rows 1000000] [--rounds 5] [--members 3] [--units 128]

The rows are the features of the flights of 2013, repeated; the model is of a champion's shape: three perceptrons of
2 x 128, trained on January to March for three epochs. The pyfunc is what one writes oneself: pandas makes the arrays,
the same networks answer on all threads, without gradients; once with the whole frame at a time, as MLflow's own flavour
has it, and once with as many rows at a time as ours. bf16 and the metric beside it: what half the digits would cost.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import features
from benchmarks.contenders.mlflow_batch import save
from benchmarks.quality import frozen, year
from benchmarks.table import Measured, keep, table
from models import bundle
from models.ensemble import Recipe, fit_ensemble, labels
from models.metrics import compute_metric
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from serving.predictor import Predictor

OURS = "Parquet, predictor, Parquet (ours)"
_KEYS = ("entity_key", "event_time")
_TOLERANCE = 1e-5
Score = Callable[[Path, Path], None]


def ours(predictor: Predictor, source: Path, target: Path) -> None:
    """The columns the model needs, and scores beside their keys."""
    texts = [*_KEYS[:1], *predictor.card["features"]["categorical"]]
    rows = pq.read_table(source, columns=[*_KEYS, *predictor.columns], read_dictionary=texts)
    scored = rows.select(list(_KEYS)).append_column("score", pa.array(predictor.predict(rows)))
    pq.write_table(scored, target, use_dictionary=list(_KEYS), write_statistics=["event_time"])  # what one filters by


def theirs(model: Any, batch_rows: int | None, source: Path, target: Path) -> None:
    """pandas and the pyfunc."""
    import pandas as pd

    frame = pd.read_parquet(source)
    inputs = frame.drop(columns=list(_KEYS))
    starts = range(0, len(frame), batch_rows or len(frame))
    parts = [model.predict(inputs.iloc[start : start + (batch_rows or len(frame))]) for start in starts]
    frame[list(_KEYS)].assign(score=np.concatenate(parts)).to_parquet(target, index=False)


class Halved(Predictor):
    """The predictor with its products behind the first layer in bf16."""

    def _answers(self, table: pa.Table) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        with torch.autocast("cpu", torch.bfloat16):  # a thread's own setting
            return super()._answers(table)


def trained(rows: pa.Table, folder: Path, *, members: int = 3, units: int = 128) -> Predictor:
    """A model, by default of a champion's shape."""
    definition = features.definition("flights")
    recipe = Recipe(
        kind="binary", numeric=definition.numeric, categorical=definition.categorical, network="mlp", layers=2,
        hidden_units=units, dropout=0.1, learning_rate=0.002, weight_decay=0.01, label_smoothing=0.0, batch_rows=1024,
        schedule_epochs=3, epochs=3, seeds=tuple(range(members)), threads=1,
    )  # fmt: skip
    bundle.write_bundle(
        folder, fit_ensemble(recipe, rows, torch.device("cpu")), use_case="flights", recipe=recipe.to_document(),
        features_digest=definition.digest(), definition="{}", data={}, metrics={}, versions={},
    )  # fmt: skip
    return Predictor.load(folder)


def contestants(folder: Path) -> dict[str, Score]:
    """By name; ours first."""
    import mlflow

    bundled, pyfunc = folder / "bundle", mlflow.pyfunc.load_model(str(folder / "pyfunc"))
    return {
        OURS: partial(ours, Predictor.load(bundled)),
        "the same in bf16": partial(ours, Halved(bundle.load_bundle(bundled))),
        "pandas, mlflow pyfunc, whole frame": partial(theirs, pyfunc, None),
        "pandas, mlflow pyfunc, 4096 rows at a time": partial(theirs, pyfunc, 4096),
    }


def differences(found: dict[str, pa.Table]) -> dict[str, float]:
    """How far everyone's scores lie from ours, at most; keys must be ours, in their order."""
    plain = pa.schema(zip(_KEYS, (pa.string(), pa.timestamp("us", "UTC")), strict=True))
    keys = {name: rows.select(list(_KEYS)).cast(plain) for name, rows in found.items()}
    assert all(rows.equals(keys[OURS]) for rows in keys.values()), "other keys, or in another order"
    score = {name: rows["score"].to_numpy() for name, rows in found.items()}
    return {name: float(np.abs(values - score[OURS]).max()) for name, values in score.items()}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    for name, default in {"rows": 1_000_000, "rounds": 5, "members": 3, "units": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--features", type=Path, default=Path("build/benchmarks/flights-2013.parquet"))
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    everything = year(use_cases(REPOSITORY / "params.yaml")["flights"], asked.features)
    train, test = frozen(everything)
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as made:
        folder = Path(made)
        predictor = trained(train, folder / "bundle", members=asked.members, units=asked.units)
        save(folder / "bundle", folder / "pyfunc", test.slice(0, 1000))
        columns = test.select([*_KEYS, *predictor.columns])
        times = -(-asked.rows // test.num_rows)
        pq.write_table(pa.concat_tables([columns] * times).slice(0, asked.rows), folder / "rows.parquet")
        scorers = contestants(folder)
        measured = {name: Measured(name=name) for name in scorers}
        for _ in range(asked.rounds):
            for name, score in scorers.items():
                with measured[name].timed():
                    score(folder / "rows.parquet", folder / f"{name}.parquet")
        found = {name: pq.read_table(folder / f"{name}.parquet") for name in measured}
    label, furthest = labels(test), differences(found)
    for name, one in measured.items():
        first = found[name]["score"].to_numpy()[: test.num_rows]
        one.facts = {
            "rows/s": f"{asked.rows / median(one.wall):,.0f}",
            "log-loss": f"{compute_metric('log_loss', first, label[: len(first)]):.5f}",
            "furthest from ours": f"{furthest[name]:.1e}",
        }
        assert "bf16" in name or furthest[name] <= _TOLERANCE, f"{name} answers something else"
    print(table(list(measured.values()), ours=OURS))
    about = {"rows": asked.rows, "features": len(predictor.columns), "shape": f"{asked.members} x 2 x {asked.units}"}
    print(about, keep(f"scoring, {about['shape']}", list(measured.values()), asked.into, **about))


if __name__ == "__main__":
    main()
