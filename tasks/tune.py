"""The search for a configuration: on validation rows only, and with the same best however often it was killed.

A trial's parameters follow from the finished trials before it and from nothing else: the sampler is seeded anew by
their number, and a trial that a dead process left behind is marked as failed and counts for nothing.
"""

import hashlib
import math
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.handoffs import Snapshot
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.split import Split, split
from tasks.study import (
    Attempt,
    StudyResult,
    fail_abandoned,
    finished_trials,
    keeps_up,
    losses_at,
    middle,
    open_study,
    record,
    report,
    result,
    suggest,
)

if TYPE_CHECKING:
    import optuna

    from adapters.connect import Outside
    from adapters.warehouse import Fence
    from features import FeatureSet
    from models.ensemble import Recipe
    from models.training import EarlyStopping

# Fixed, whatever the machine has: sums split another way give other weights. And one: steps this small gain little from
# a second thread, and waiting for it on a busy machine of 2 cores cost ten times the work itself (3.2 s against 0.3 s
# of processor time an epoch).
THREADS = 1
_WARM_UP_TRIALS = 4  # drawn at random before the sampler has something to learn from


def search(use_case: UseCase, snapshot: Snapshot, as_of: datetime, trials: int, outside: "Outside") -> StudyResult:
    """Search until the study has exactly `trials` finished trials; goes on where a killed search stopped.

    Raises:
        ValueError: too few rows before the cut-off, or no trial that converged.
        FencedOut: a later search of the same study has begun.
    """
    import features
    from tasks import dataset

    assert trials > 0, "a search needs a trial"
    if as_of > snapshot.end:
        raise ValueError(f"{use_case.name}: features reach to {snapshot.end}, training was asked for at {as_of}")
    definition = features.definition(use_case.name)
    name = study_name(use_case, snapshot, as_of, definition)
    moments = split(use_case, as_of)
    fence = outside.warehouse.begin(f"search/{name}")
    study = open_study(name, use_case, outside)
    fail_abandoned(study)
    if len(finished_trials(study)) >= trials:
        return result(study)
    rows = dataset.load(
        snapshot.version, use_case, outside, start=snapshot.start, end=moments.cutoff, known_by=moments.cutoff
    )
    require_rows(use_case, rows, moments)
    trainer = Trainer(use_case, definition, rows, moments)
    while (finished := len(finished_trials(study))) < trials:
        _try_one(study=study, trainer=trainer, use_case=use_case, finished=finished, fence=fence, outside=outside)
        report(study, trials, use_case.train.metric)
    return result(study)


def study_name(use_case: UseCase, snapshot: Snapshot, as_of: datetime, definition: "FeatureSet") -> str:
    """A name that changes with anything that could change a trial's outcome."""
    code = hashlib.sha256(definition.digest().encode())
    ours = (Path(__file__).with_name(name) for name in ("tune.py", "study.py", "split.py"))
    for path in (*sorted((REPOSITORY / "models").glob("*.py")), *ours):
        code.update(path.read_bytes())
    train = use_case.train.model_dump_json(exclude={"trials", "ensemble_seeds"})
    # The moments, not the settings they follow from: the label delay is none of `train`'s.
    space = hashlib.sha256(f"{train} {use_case.seed} {use_case.target.kind} {split(use_case, as_of)}".encode())
    digests = code.hexdigest()[:12], space.hexdigest()[:12]
    return "/".join((use_case.name, snapshot.version, f"{as_of:%Y%m%dT%H%M}", *digests))


def require_rows(use_case: UseCase, rows: pa.Table, moments: Split) -> None:
    """ValueError unless the rows before the cut-off are enough to train on."""
    if rows.num_rows < use_case.train.min_rows:
        raise ValueError(
            f"{use_case.name}: {rows.num_rows} labelled rows before the cut-off {moments.cutoff:%Y-%m-%d %H:%M}, "
            f"train.min_rows asks for {use_case.train.min_rows}; backfill more partitions or train at a later data time"
        )


def parts(rows: pa.Table, moments: Split) -> tuple[pa.Table, pa.Table]:
    """(training rows, validation rows): labels known by `train_end`; predictions made from then on."""
    import pyarrow.compute as pc

    train_end = pa.scalar(moments.train_end, rows.schema.field("label_time").type)
    return (
        rows.filter(pc.less_equal(rows["label_time"], train_end)),
        rows.filter(pc.greater_equal(rows["prediction_time"], train_end)),
    )


def recipe(use_case: UseCase, definition: "FeatureSet", params: dict[str, float], *, epochs: int) -> "Recipe":
    """The recipe of one network at a configuration, seeded by the use case."""
    from models.ensemble import Recipe

    return Recipe(
        kind=use_case.target.kind,
        numeric=definition.numeric,
        categorical=definition.categorical,
        hidden_units=int(params["hidden_units"]),
        layers=int(params["layers"]),
        dropout=params["dropout"],
        learning_rate=params["learning_rate"],
        weight_decay=params["weight_decay"],
        batch_rows=use_case.train.batch_rows,
        schedule_epochs=use_case.train.rungs[-1],
        epochs=epochs,
        seeds=(use_case.seed,),
        threads=THREADS,
    )


class Trainer:
    """The search's rows, encoded once and resident on the device, and a fit of any configuration on them."""

    def __init__(self, use_case: UseCase, definition: "FeatureSet", rows: pa.Table, moments: Split) -> None:
        from models.encoder import Encoder
        from models.ensemble import rows_of
        from models.training import best_device

        self._use_case = use_case
        self._definition = definition
        train, validation = parts(rows, moments)
        if not train.num_rows or not validation.num_rows:
            raise ValueError(
                f"{use_case.name}: {train.num_rows} training and {validation.num_rows} validation rows around "
                f"{moments.train_end:%Y-%m-%d %H:%M}; both are needed"
            )
        self._encoder = Encoder.fit(train, numeric=definition.numeric, categorical=definition.categorical)
        self._train = rows_of(self._encoder, train, best_device())
        self._validation = rows_of(self._encoder, validation, best_device())

    def attempt(self, params: dict[str, float], trial: "optuna.Trial", study: "optuna.Study") -> "Attempt":
        """Train one configuration from rung to rung, until it falls behind, stops improving or is through."""
        import torch

        from models.ensemble import start
        from models.metrics import as_loss, measure
        from models.training import EarlyStopping, deterministic

        began, train = time.monotonic(), self._use_case.train
        label = self._validation.label.double().cpu().numpy()
        with deterministic(THREADS):
            fit = start(
                recipe(self._use_case, self._definition, params, epochs=train.rungs[-1]),
                self._encoder, self._train, seed=self._use_case.seed,
            )  # fmt: skip
            stopping = EarlyStopping(
                fit, self._validation, patience_epochs=train.patience_epochs,
                loss_of=lambda score: as_loss(train.metric, measure(train.metric, score, label)),
            )  # fmt: skip
            try:
                pruned = any(self._falls_behind(stopping, rung, trial, study) for rung in train.rungs)
            except torch.cuda.OutOfMemoryError:
                pruned = True  # too large for this device: as good as lost to every other trial
        return Attempt(
            epochs=fit.epoch,
            best_epoch=stopping.best_epoch,
            pruned=pruned,
            losses=[loss if math.isfinite(loss) else None for loss in stopping.losses],
            seconds=time.monotonic() - began,
        )

    def _falls_behind(self, stopping: "EarlyStopping", rung: int, trial: "optuna.Trial", study: "optuna.Study") -> bool:
        """Train to a rung and report; whether the trial ends there."""
        train = self._use_case.train
        loss = stopping.train_to(rung)
        if math.isfinite(loss):
            trial.report(loss, rung)
        if stopping.diverged or not math.isfinite(loss):
            return True
        return rung != train.rungs[-1] and not keeps_up(loss, losses_at(study, rung), train.keep_share)


def _try_one(
    *, study: "optuna.Study", trainer: Trainer, use_case: UseCase, finished: int, fence: "Fence", outside: "Outside"
) -> None:
    """Ask, train, tell. Telling holds the fence, so that a search which was overtaken changes nothing."""
    import optuna

    study.sampler = optuna.samplers.TPESampler(
        seed=(use_case.seed * 1009 + finished) % 2**32,
        n_startup_trials=_WARM_UP_TRIALS,
        multivariate=True,
        constant_liar=False,  # trials still running are an overtaken process's: they must not sway this one
    )
    if finished == 0 and not study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.WAITING]):
        study.enqueue_trial(middle(use_case.train))
    trial = study.ask()
    attempt = trainer.attempt(suggest(trial, use_case.train), trial, study)
    with outside.warehouse.transaction(fence):
        record(study, trial, attempt)
