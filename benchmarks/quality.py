"""How good the model is that the search finds: ours against LightGBM on real flights, months ahead.

    python -m benchmarks.quality [--trials 9] [--seeds 3]

Frozen training: features as the product builds them (strictly point in time), rows from 8 January to 31 March 2013;
test on April to December. Ours is the shipped search (its space, rungs and metric, the shipped validation days before
the end of March, the study in memory), then the shipped refit on every row. LightGBM gets the same split: early
stopping on the validation days, then a refit on every row, with settings such as one takes who knows it. The test
months are looked at once, for the table.
"""

import argparse
import tempfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

import features
from benchmarks import alone
from benchmarks.table import Measured, keep, table
from models.bundle import Bundle
from models.encoder import Encoder
from models.ensemble import fit_ensemble, labels
from models.metrics import compute_metric
from models.training import best_device
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases
from serving.predictor import Predictor
from tasks.train.split import Split
from tasks.train.study import StudyResult, summarise_study
from tasks.train.trainer import Trainer, make_recipe, split_rows

Floats = NDArray[np.float64]
START, END = datetime(2013, 1, 8, tzinfo=UTC), datetime(2013, 4, 1, tzinfo=UTC)


def year(use_case: UseCase, kept: Path) -> pa.Table:
    """Every labelled departure of 2013 with its features; built once (some minutes) and kept."""
    if not kept.exists():
        clean = import_module("tests.clean_data")  # what validation would let through of the year; not a package
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for name in clean.TABLES:
                paths[name] = [Path(folder) / f"{name}.parquet"]
                pq.write_table(
                    pa.concat_tables([clean.clean_rows(name, clean.week(n)) for n in range(52)]), paths[name][0]
                )
            span = Interval(clean.FIRST, clean.FIRST + timedelta(days=364))
            points, outcomes = features.build(features.definition(use_case.name), paths, span, use_case.time.lead)
        rows = points.join(outcomes, ["entity_key", "event_time"], join_type="inner")
        kept.parent.mkdir(parents=True, exist_ok=True)
        order = [(name, "ascending") for name in ("prediction_time", "entity_key", "event_time")]
        pq.write_table(rows.sort_by(order), kept)
    return pq.read_table(kept)


def frozen(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(January to March as known at its end, April to December)."""
    start, end = (pa.scalar(moment, pa.timestamp("us", "UTC")) for moment in (START, END))
    known = pc.less_equal(rows["label_time"], end)
    train = pc.and_(pc.greater_equal(rows["prediction_time"], start), known)
    return rows.filter(train), rows.filter(pc.greater_equal(rows["prediction_time"], end))


def search(use_case: UseCase, train: pa.Table, moments: Split, trials: int) -> StudyResult:
    """The shipped search, its study in memory."""
    study = optuna.create_study(study_name="quality")
    trainer = Trainer(use_case, features.definition(use_case.name), train, moments)
    alone.search(use_case, study, trainer, trials)
    return summarise_study(study)


def ours(use_case: UseCase, train: pa.Table, test: pa.Table, found: StudyResult, *, seeds: int) -> list[Floats]:
    """Each refitted member's scores of the test rows."""
    definition = features.definition(use_case.name)
    plan = make_recipe(use_case, definition, found.best_params, epochs=found.best_epochs)
    ensemble = fit_ensemble(replace(plan, seeds=tuple(range(seeds))), train, best_device())
    return [
        Predictor(Bundle(card={}, encoder=ensemble.encoder, members=(member,))).predict(test)
        for member in ensemble.members
    ]


def lightgbm(use_case: UseCase, train: pa.Table, test: pa.Table, moments: Split, *, seeds: int) -> list[Floats]:
    """Each seed's scores of the test rows."""
    import lightgbm as lgb

    definition = features.definition(use_case.name)
    encoder = Encoder.fit(train, numeric=definition.numeric, categorical=definition.categorical)
    categories = list(range(len(definition.numeric), len(definition.numeric) + len(definition.categorical)))

    def dataset(rows: pa.Table) -> Any:
        return lgb.Dataset(matrix(rows), labels(rows), categorical_feature=categories, free_raw_data=False)

    def matrix(rows: pa.Table) -> NDArray[np.float32]:
        return np.concatenate([part.astype(np.float32) for part in encoder.transform(rows)], axis=1)

    found = []
    for seed in range(seeds):
        settings = {
            "objective": "binary", "learning_rate": 0.03, "num_leaves": 63, "min_data_in_leaf": 100,
            "feature_fraction": 0.7, "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 5.0,
            "seed": seed, "num_threads": 2, "verbose": -1,
        }  # fmt: skip
        fitted, judged = (dataset(part) for part in split_rows(train, moments))
        stopping = lgb.early_stopping(60, verbose=False)
        rounds = lgb.train(settings, fitted, 2000, valid_sets=[judged], callbacks=[stopping]).best_iteration
        model = lgb.train(settings, dataset(train), rounds)
        found.append(np.asarray(model.predict(matrix(test)), np.float64))
    return found


def judged(scores: list[Floats], label: Floats) -> dict[str, str]:
    """The ensemble's metrics, and in brackets the smallest and largest of its members'."""
    facts = {}
    for metric in ("auc", "log_loss", "brier"):
        each = [compute_metric(metric, score, label) for score in scores]
        mean = compute_metric(metric, np.mean(scores, axis=0), label)
        facts[metric] = f"{mean:.4f} [{min(each):.4f}, {max(each):.4f}]"
    return facts


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    use_case = use_cases(REPOSITORY / "params.yaml")["flights"]
    parser.add_argument("--trials", type=int, default=use_case.train.trials)
    parser.add_argument("--seeds", type=int, default=use_case.train.ensemble_seeds)
    parser.add_argument("--rows", type=Path, default=Path("build/benchmarks/flights-2013.parquet"))
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    train, test = frozen(year(use_case, asked.rows))
    validation = timedelta(days=use_case.train.validation_days)
    moments = Split(
        train_until=END - validation, train_end=END - validation, fit_until=END, cutoff=END, holdout_end=END
    )
    label, contestants = labels(test), (Measured(name="search and refit"), Measured(name="LightGBM"))
    with contestants[0].timed():
        found = search(use_case, train, moments, asked.trials)
        contestants[0].facts = judged(ours(use_case, train, test, found, seeds=asked.seeds), label)
    print(found)
    with contestants[1].timed():
        contestants[1].facts = judged(lightgbm(use_case, train, test, moments, seeds=asked.seeds), label)
    print(table(contestants, ours="LightGBM"))
    about = {"training rows": train.num_rows, "test rows": test.num_rows, "best": found.best_params}
    print(keep("quality", contestants, asked.into, **about))


if __name__ == "__main__":
    main()
