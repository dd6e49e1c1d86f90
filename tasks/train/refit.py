"""The candidate: an ensemble of seeds at the best configuration, fitted on every row up to the cut-off, and registered.

The candidate has seen the validation rows, so they cannot measure it. The same configuration is therefore fitted once
more, before it and without them: that fit gives the validation metrics, the plots and the importances, and calibrates
the interval where the use case declares one.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

import features
from adapters.connect import Outside
from adapters.registry import RunRecord, Version
from models.bundle import Bundle
from models.ensemble import Ensemble, Recipe, TrainingDiverged, fit_ensemble, labels
from models.interval import ConformalInterval
from models.metrics import compute_metrics
from models.training import best_device, deterministic
from pipeline.handoffs import Candidate, Snapshot
from pipeline.spec import UseCase
from serving.predictor import Predictor
from tasks.build_features import dataset, profile
from tasks.common.energy import Meter
from tasks.train.calibration import calibrate_by_twin
from tasks.train.record import TrainingJob, TrainingResult, write_run_record
from tasks.train.report import TrainingReport, calibration, importances, slices
from tasks.train.split import split
from tasks.train.study import StudyResult
from tasks.train.trainer import make_recipe, require_rows, split_rows

_IMPORTANCE_ROWS = 4000


def refit(  # noqa: PLR0917  # the order is that of the flow: what, from what, when, why
    use_case: UseCase,
    snapshot: Snapshot,
    study: StudyResult,
    as_of: datetime,
    reason: str,
    decision_id: str | None,
    outside: Outside,
) -> Candidate:
    """Train, record and register the candidate of a study. A retry finds what is registered and trains nothing.

    Raises:
        FencedOut: a later refit of the same work has begun.
        adapters.errors.Unavailable: MLflow does not answer; the same call may succeed later.
    """
    definition = features.definition(use_case.name)
    seeds = tuple(use_case.seed + i for i in range(use_case.train.ensemble_seeds))
    job = TrainingJob(
        use_case=use_case,
        snapshot=snapshot,
        study=study,
        as_of=as_of,
        reason=reason,
        decision_id=decision_id,
        definition=definition,
        moments=split(use_case, as_of),
        recipe=replace(make_recipe(use_case, definition, study.best_params, epochs=study.best_epochs), seeds=seeds),
    )
    version = register_once(
        use_case, job.key, lambda folder: write_run_record(job, _train(job, outside), folder, outside), outside
    )
    return _candidate(job, version)


def register_once(use_case: UseCase, key: str, train: Callable[[Path], RunRecord], outside: Outside) -> Version:
    """The model version of a piece of training work, and what it cost; trained only where none is registered.

    Raises:
        FencedOut: the same work was begun again meanwhile.
    """
    fence = outside.warehouse.begin(f"refit/{use_case.name}/{key}")
    version = outside.registry.find(use_case.name, key)
    if version is None:
        with tempfile.TemporaryDirectory() as scratch:
            record = train(Path(scratch))
            run_id = outside.registry.log_run(record)
        # Registering while the fence is held: an overtaken process cannot add a second version.
        with outside.warehouse.transaction(fence) as cursor:
            version = outside.registry.register(use_case.name, run_id)
            _write_costs(cursor, version, record.metrics)
    else:  # by an earlier try, which may have died before its costs were committed
        metrics = outside.registry.metrics(use_case.name, version.version)
        with outside.warehouse.transaction(fence) as cursor:
            _write_costs(cursor, version, metrics)
    return version


def _write_costs(cursor: Any, version: Version, metrics: Mapping[str, float]) -> None:
    """What the version cost, once; the device is the one that trained it, whoever writes this."""
    for step in ("search", "refit"):
        if f"{step}_seconds" in metrics:  # a winner that is fitted anew was not searched for
            trials = metrics["search_trials"] if step == "search" else None
            costs = (metrics[f"{step}_seconds"], metrics.get(f"{step}_energy_joules"))
            cursor.execute(
                "insert into costs (use_case, model_version, step, seconds, energy_joules, device, trials)"
                " values (%s, %s, %s, %s, %s, %s, %s) on conflict do nothing",
                (version.use_case, version.version, step, *costs, version.tags["windsock.device"], trials),
            )


def fit_with_profile(recipe: Recipe, rows: pa.Table, use_case: UseCase) -> tuple[Ensemble, dict[str, Any]]:
    """An ensemble that learnt these labelled rows, and what monitoring judges later rows by.

    Raises:
        TrainingDiverged: a loss or an answer is not finite.
    """
    ensemble = fit_ensemble(recipe, rows, best_device())
    try:
        answers = _predictor(ensemble).predict(rows)
    except ArithmeticError as error:
        raise TrainingDiverged(f"{error}: {recipe}") from error
    return ensemble, profile.make_profile(rows.append_column("score", pa.array(answers)), use_case)


def _train(job: TrainingJob, outside: Outside) -> TrainingResult:
    began, meter = time.monotonic(), Meter(best_device().type)
    start, end, cutoff = job.snapshot.start, job.moments.fit_until, job.moments.cutoff
    rows = dataset.load_rows(job.snapshot.version, job.use_case, outside, start=start, end=end, known_by=cutoff)
    require_rows(job.use_case, rows, job.moments)
    with deterministic(job.recipe.threads):
        metrics, report, interval = _validate(job, rows)
        ensemble, seen = fit_with_profile(job.recipe, rows, job.use_case)
    return TrainingResult(
        ensemble=ensemble,
        interval=interval,
        metrics=metrics,
        report=report,
        profile=seen,
        rows=rows.num_rows,
        seconds=time.monotonic() - began,
        energy_joules=meter.joules(),
    )


def _validate(job: TrainingJob, rows: pa.Table) -> tuple[dict[str, float], TrainingReport, ConformalInterval | None]:
    """Metrics and report of the first seed fitted without the validation rows, on them; all seeds for an interval."""
    declared = job.use_case.target.interval
    train, validation = split_rows(rows, job.moments)
    seeds = job.recipe.seeds if declared else job.recipe.seeds[:1]
    twin = fit_ensemble(replace(job.recipe, seeds=seeds), train, best_device())
    predictor = _predictor(replace(twin, members=twin.members[:1]))
    score, label, metric = predictor.predict(validation), labels(validation), job.use_case.train.metric
    report = TrainingReport(
        calibration=calibration(score, label),
        slices=slices(metric, validation, score, label, job.use_case.gate.slices),
        importances=importances(
            metric,
            predictor.predict,
            validation,
            label,
            columns=(*job.recipe.numeric, *job.recipe.categorical),
            rows=_IMPORTANCE_ROWS,
            seed=job.use_case.seed,
        ),
    )
    metrics = compute_metrics(job.use_case.target.kind, score, label)
    if declared is None:
        return metrics, report, None
    interval = calibrate_by_twin(twin, rows, job.moments, coverage=declared.coverage)
    return metrics, report, interval


def _predictor(ensemble: Ensemble) -> Predictor:
    return Predictor(Bundle(card={}, encoder=ensemble.encoder, members=ensemble.members))


def _candidate(job: TrainingJob, version: Version) -> Candidate:
    return Candidate(
        use_case=job.use_case.name,
        model_version=version.version,
        run_id=version.run_id,
        bundle_uri=version.bundle_uri,
        bundle_sha256=version.bundle_sha256,
        snapshot_version=job.snapshot.version,
        as_of=job.as_of,
        cutoff=job.moments.cutoff,
        holdout_start=job.moments.holdout_start,
        holdout_end=job.moments.holdout_end,
        reason=job.reason,
        decision_id=job.decision_id,
    )
