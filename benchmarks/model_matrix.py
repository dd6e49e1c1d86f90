"""Models of every data time of a use case, and what each answers to every later row: computed once, and kept.

    python -m benchmarks.model_matrix flights [--seed-sets 1] [--folder build/matrix]

Split, refit, scores and profile are by the product's own functions. One search among perceptrons, before the first
champion, settles the recipe of every model; the product searches anew each time. Nothing that gate or triage decide is
kept: what they need is, so that a changed rule is judged again in seconds (`open_matrix`).

At each data time there are two models: `judged` knows nothing of its holdout, and `refitted` is the same recipe and
seeds on every label known by then.
"""

import argparse
import hashlib
import io
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import features
from adapters.files import write_atomically
from benchmarks import alone
from benchmarks.matrix_rows import UTC_TIME, MatrixRows, known_rows, read_rows
from models.bundle import Bundle
from models.ensemble import Recipe, fit_ensemble
from models.training import best_device
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY, find_params
from pipeline.spec import UseCase, use_cases
from serving.predictor import Predictor
from tasks.build_features.profile import make_profile
from tasks.monitor.drift import SCORE
from tasks.train.split import split
from tasks.train.study import summarise_study
from tasks.train.trainer import Trainer, make_recipe, require_rows

FOLDER = REPOSITORY / "build" / "matrix"  # not in git
NETWORKS = ("mlp",)  # a TabM of the same size takes five times as long to train
_NOT_SEARCHED = {"holdout_days", "ensemble_seeds", "workers", "trials_at_once"}  # of params.yaml's block `train`

Floats = NDArray[np.float64]
Places = NDArray[np.intp]


class Fit(StrEnum):
    """On what a model was fitted: labels known by its split's cut-off, or all that were known at its data time."""

    JUDGED = "judged"
    REFITTED = "refitted"


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixModel:
    """A model: members [members, rows] are each one's scores of every row, NaN where it is older than the cut-off."""

    version: str
    fit: Fit
    as_of: datetime
    cutoff: datetime
    profile: Mapping[str, Any]
    members: NDArray[np.float32]

    def score(self, rows: slice | Places) -> Floats:
        """What the ensemble answers to some of the rows.

        Raises:
            ValueError: one of them is older than its cut-off.
        """
        scores = self.members[:, rows].astype(np.float64).mean(axis=0)
        if not np.isfinite(scores).all():
            raise ValueError(f"model {self.version} is asked about rows before its cut-off {self.cutoff:%Y-%m-%d}")
        return np.asarray(scores, np.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelMatrix:
    """Rows [rows] in the order of prediction time with their features, the partitions to be scored, and the models.

    The models of a data time answer from the partition on that begins then.
    """

    use_case: UseCase
    rows: pa.Table
    partitions: tuple[Interval, ...]
    models: Mapping[tuple[datetime, Fit], MatrixModel]

    @cached_property
    def prediction_time(self) -> NDArray[np.datetime64]:
        """When each row was to be answered."""
        return _moments(self.rows["prediction_time"])

    @cached_property
    def label(self) -> Floats:
        """NaN where there is none."""
        return np.asarray(pc.fill_null(self.rows["label"].cast(pa.float64()), np.nan), np.float64)

    @cached_property
    def label_time(self) -> NDArray[np.datetime64]:
        """When each label became known; NaT where there is none."""
        return _moments(self.rows["label_time"])

    def between(self, start: datetime, end: datetime) -> slice:
        """The rows predicted in [start, end)."""
        first, last = np.searchsorted(self.prediction_time, [to_moment(start), to_moment(end)])
        return slice(int(first), int(last))

    def known(self, start: datetime, end: datetime, by: datetime | None = None) -> Places:
        """The rows predicted in [start, end) whose label was known by a moment, or came whenever."""
        rows = self.between(start, end)
        times = self.label_time[rows]
        is_known = ~np.isnat(times) if by is None else times <= to_moment(by)
        return np.asarray(np.flatnonzero(is_known) + rows.start, np.intp)


def to_moment(moment: datetime) -> np.datetime64:
    """As numpy has it: UTC, without saying so."""
    return np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")


def _moments(column: pa.ChunkedArray) -> NDArray[np.datetime64]:
    return np.asarray(column.cast(UTC_TIME).to_numpy().astype("datetime64[us]"))


def search_recipe(use_case: UseCase, rows: pa.Table, as_of: datetime) -> Recipe:
    """The product's search as of a data time, its study in memory."""
    moments, definition = split(use_case, as_of), features.definition(use_case.name)
    table = known_rows(use_case, rows, moments.cutoff)
    require_rows(use_case, table, moments)
    study = optuna.create_study(study_name="model-matrix")
    alone.search(use_case, study, Trainer(use_case, definition, table, moments), use_case.train.trials)
    found = summarise_study(study)
    return make_recipe(use_case, definition, found.best_params, epochs=found.best_epochs)


def fit_model(use_case: UseCase, recipe: Recipe, rows: pa.Table, as_of: datetime, fit: Fit) -> MatrixModel:
    """The product's refit of a recipe, and what each member says of every row from the cut-off on."""
    moments = split(use_case, as_of)
    cutoff = as_of if fit == Fit.REFITTED else moments.cutoff
    table = known_rows(use_case, rows, cutoff)
    require_rows(use_case, table, moments)
    ensemble = fit_ensemble(recipe, table, best_device())
    whole = Predictor(Bundle(card={}, encoder=ensemble.encoder, members=ensemble.members))
    first = int(np.searchsorted(_moments(rows["prediction_time"]), to_moment(cutoff)))
    members = np.full((len(ensemble.members), rows.num_rows), np.nan, np.float32)
    for place, member in enumerate(ensemble.members):
        one = Predictor(Bundle(card={}, encoder=ensemble.encoder, members=(member,)))
        members[place, first:] = one.predict(rows.slice(first))
    return MatrixModel(
        version=f"{as_of:%Y-%m-%d}-{fit}",
        fit=fit,
        as_of=as_of,
        cutoff=cutoff,
        profile=make_profile(table.append_column(SCORE, pa.array(whole.predict(table))), use_case),
        members=members,
    )


@dataclass(frozen=True)
class KeptModels:
    """The recipe and the models of some rows, beside them in their folder."""

    use_case: UseCase
    rows: MatrixRows

    def recipe(self) -> Recipe:
        """Searched for where it is not kept.

        Raises:
            ValueError: the one that is kept was searched for by other settings.
        """
        path, as_of = self.rows.home / "recipe.json", self.rows.partitions[0].start
        train = self.use_case.train.model_copy(update={"networks": NETWORKS})
        settings = train.model_dump(mode="json", exclude=_NOT_SEARCHED)
        if not path.exists():
            found = search_recipe(self.use_case.model_copy(update={"train": train}), self.rows.table, as_of)
            document = {"as_of": as_of.isoformat(), "train": settings, "recipe": found.to_document()}
            write_atomically(path, json.dumps(document, indent=1).encode(), mode=0o644)
        kept = json.loads(path.read_text())
        if (kept["as_of"], kept["train"]) != (as_of.isoformat(), settings):
            raise ValueError(f"{path} was searched for as of another time or by another `train`: delete it")
        return Recipe.from_document(kept["recipe"])

    def model(self, recipe: Recipe, as_of: datetime, fit: Fit, *, train: bool) -> MatrixModel:
        """A kept model; where it is not, it is trained if it may be.

        Raises:
            ValueError: it is not there, and may not be trained.
        """
        cutoff = as_of if fit == Fit.REFITTED else split(self.use_case, as_of).cutoff
        digest = hashlib.sha256(json.dumps(recipe.to_document(), sort_keys=True).encode()).hexdigest()[:12]
        path = self.rows.home / digest / f"{as_of:%Y-%m-%d}-{fit}-{cutoff:%Y%m%dT%H%M}.json"
        if not path.exists():
            if not train:
                raise ValueError(
                    f"{path} is missing: `python -m benchmarks.model_matrix {self.use_case.name}` makes it"
                )
            began = time.monotonic()
            _keep(path, fit_model(self.use_case, recipe, self.rows.table, as_of, fit))
            print(f"seeds {recipe.seeds}: {path.stem} in {time.monotonic() - began:.1f} s", flush=True)
        return MatrixModel(
            version=f"{as_of:%Y-%m-%d}-{fit}",
            fit=fit,
            as_of=as_of,
            cutoff=cutoff,
            profile=json.loads(path.read_text()),
            members=np.load(path.with_suffix(".npy"), mmap_mode="r"),
        )


def _keep(path: Path, model: MatrixModel) -> None:
    content = io.BytesIO()
    np.save(content, model.members)
    write_atomically(path.with_suffix(".npy"), content.getvalue(), mode=0o644)
    write_atomically(path, json.dumps(model.profile).encode(), mode=0o644)  # last: where it is, the other one is, too


def open_matrix(
    use_case: UseCase,
    *,
    seed_set: int = 0,
    train: bool = False,
    folder: Path = FOLDER,
    fits: Iterable[Fit] = tuple(Fit),
    first: int | None = None,
) -> ModelMatrix:
    """The matrix of a use case by one set of seeds, 0 being the product's own; with `train`, what is missing is made.

    With fewer `fits`, or only the `first` so many partitions, the rest is not asked for.

    Raises:
        ValueError: something is missing.
    """
    rows, count = read_rows(use_case, folder), use_case.train.ensemble_seeds
    kept = KeptModels(use_case, rows)
    recipe = replace(kept.recipe(), seeds=tuple(use_case.seed + seed_set * count + n for n in range(count)))
    partitions = rows.partitions[:first]
    models = {
        (partition.start, fit): kept.model(recipe, partition.start, fit, train=train)
        for fit in fits
        for partition in partitions
    }
    return ModelMatrix(use_case=use_case, rows=rows.table, partitions=partitions, models=models)


def main() -> None:
    """Train and keep what is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_matrix", description=__doc__.partition("\n")[0])
    known = use_cases(find_params(os.environ))
    parser.add_argument("use_case", choices=sorted(known))
    parser.add_argument("--seed-sets", type=int, default=1, help="how many sets of seeds, the product's own first")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    asked = parser.parse_args()
    for seed_set in range(asked.seed_sets):
        open_matrix(known[asked.use_case], seed_set=seed_set, train=True, folder=asked.folder)


if __name__ == "__main__":
    main()
