"""What trains a trial of the search: its rows, the recipe of its network, and networks trained many at a time."""

import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.spec import UseCase
from tasks.train.split import Split
from tasks.train.study import Params

if TYPE_CHECKING:
    from features import FeatureSet
    from models.ensemble import Recipe
    from models.population import Member

# Threads within one sum: split over another number of threads, a sum gives other last bits. More processors train more
# chunks of a population at a time, each on one thread, and change no bit. Threads within these small products waited
# for each other ten times as long as they worked (docs/decisions/0006).
THREADS = 1


def require_rows(use_case: UseCase, rows: pa.Table, moments: Split) -> None:
    """ValueError unless the rows before the cut-off are enough to train on."""
    if rows.num_rows < use_case.train.min_rows:
        raise ValueError(
            f"{use_case.name}: {rows.num_rows} labelled rows before the cut-off {moments.cutoff:%Y-%m-%d %H:%M}, "
            f"train.min_rows asks for {use_case.train.min_rows}; backfill more partitions or train at a later data time"
        )


def split_rows(rows: pa.Table, moments: Split) -> tuple[pa.Table, pa.Table]:
    """(training rows, validation rows) of rows whose labels are known by the cut-off: what their moments say."""
    import pyarrow.compute as pc

    predicted, known = rows["prediction_time"], rows["label_time"]
    train_until, train_end, fit_until = (
        pa.scalar(moment, predicted.type) for moment in (moments.train_until, moments.train_end, moments.fit_until)
    )
    return (
        rows.filter(pc.and_(pc.less(predicted, train_until), pc.less_equal(known, train_end))),
        rows.filter(pc.and_(pc.greater_equal(predicted, train_end), pc.less(predicted, fit_until))),
    )


def make_recipe(use_case: UseCase, definition: "FeatureSet", params: Params, *, epochs: int) -> "Recipe":
    """The recipe of one network at a configuration, seeded by the use case."""
    from models.ensemble import Recipe

    return Recipe(
        kind=use_case.target.kind,
        numeric=definition.numeric,
        categorical=definition.categorical,
        network=params["network"],
        hidden_units=int(params["hidden_units"]),
        layers=int(params["layers"]),
        dropout=params["dropout"],
        learning_rate=params["learning_rate"],
        weight_decay=params["weight_decay"],
        label_smoothing=params["label_smoothing"],
        batch_rows=use_case.train.batch_rows,
        schedule_epochs=use_case.train.rungs[-1],
        epochs=epochs,
        seeds=(use_case.seed,),
        threads=THREADS,
    )


class Trainer:
    """The search's rows, encoded once and resident on the device, and the networks that are trained on them."""

    def __init__(self, use_case: UseCase, definition: "FeatureSet", rows: pa.Table, moments: Split) -> None:
        from models.encoder import Encoder
        from models.ensemble import rows_of
        from models.population import Population
        from models.training import best_device

        self._use_case = use_case
        self._definition = definition
        train, validation = split_rows(rows, moments)
        if not train.num_rows or not validation.num_rows:
            raise ValueError(
                f"{use_case.name}: {train.num_rows} training and {validation.num_rows} validation rows around "
                f"{moments.train_end:%Y-%m-%d %H:%M}; both are needed"
            )
        self._encoder = Encoder.fit(train, numeric=definition.numeric, categorical=definition.categorical)
        self.device = best_device()
        self._train = rows_of(self._encoder, train, self.device)
        self._validation = rows_of(self._encoder, validation, self.device)
        self._label = self._validation.label.double().cpu().numpy()
        self._population = Population(self._train, threads=len(os.sched_getaffinity(0)))

    def begin(self, params: Params) -> "Member":
        """A network of this configuration that has not taken a step."""
        from models.ensemble import start_member

        recipe = make_recipe(self._use_case, self._definition, params, epochs=self._use_case.train.rungs[-1])
        return start_member(recipe, self._encoder, self._train, seed=self._use_case.seed)

    def train_epoch(self, members: "list[Member]") -> list[float | None]:
        """Train each for an epoch; each one's validation loss, None where it is not finite."""
        from models.training import deterministic

        with deterministic(THREADS):
            self._population.train_epoch(members)
            return [self._loss(score) for score in self._population.scores(members, self._validation)]

    def _loss(self, score: NDArray[np.float64]) -> float | None:
        from models.metrics import compute_metric, to_loss

        if not np.isfinite(score).all():
            return None
        metric = self._use_case.train.metric
        return to_loss(metric, compute_metric(metric, score, self._label))
