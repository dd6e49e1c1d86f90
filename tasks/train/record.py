"""A training run and what it leaves behind: bundle, profile, plots, trials, environment, parameters, metrics, tags."""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from adapters.connect import Outside
from adapters.registry import RunRecord
from features import FeatureSet
from features.document import to_document
from models import bundle
from models.ensemble import Ensemble, Recipe
from models.interval import ConformalInterval
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.train.report import TrainingReport, draw_training_report
from tasks.train.split import Split
from tasks.train.study import StudyResult, open_study, tabulate_trials


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One piece of training work. `key` tells it from every other, and is the same for a retry."""

    use_case: UseCase
    snapshot: Snapshot
    study: StudyResult
    as_of: datetime
    reason: str
    decision_id: str | None
    definition: FeatureSet
    moments: Split
    recipe: Recipe

    @property
    def key(self) -> str:
        """A digest of what was asked for."""
        request = [self.study.study_name, self.as_of.isoformat(), self.reason, self.decision_id]
        if interval := self.use_case.target.interval:
            request.append(f"interval of {interval.coverage}")
        return hashlib.sha256(json.dumps([*request, self.recipe.to_document()], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What training gave: the ensemble, and what the same configuration showed on validation rows."""

    ensemble: Ensemble
    interval: ConformalInterval | None  # around its answers
    metrics: dict[str, float]
    report: TrainingReport
    profile: dict[str, Any]
    rows: int
    seconds: float
    energy_joules: float | None


def write_run_record(job: TrainingJob, trained: TrainingResult, folder: Path, outside: Outside) -> RunRecord:
    """Write the run's artifacts into a folder, and say what goes beside them."""
    sha256 = bundle.write_bundle(
        folder / "bundle",
        trained.ensemble,
        use_case=job.use_case.name,
        features_digest=job.definition.digest(),
        definition=to_document(job.definition),
        recipe=job.recipe.to_document(),
        data=describe_rows(job, trained.rows),
        metrics={f"validation_{name}": value for name, value in trained.metrics.items()},
        versions=library_versions(),
        interval=trained.interval,
    )
    trials = tabulate_trials(open_study(job.study.study_name, job.use_case, outside))
    best = min((t for t in trials if t["params"] == job.study.best_params), key=lambda t: t["trial"], default=None)
    metric = job.use_case.train.metric
    curves = {f"training_loss_seed_{s}": c for s, c in zip(job.recipe.seeds, trained.ensemble.curves, strict=True)}
    search_curve = {} if best is None else {f"validation {metric} (search)": best["losses"]}
    draw_training_report(
        folder / "plots",
        trained.report,
        title=f"{job.use_case.title}, as of {job.as_of:%Y-%m-%d}",
        metric=metric,
        curves={**curves, **search_curve},
    )
    write_documents(
        folder,
        {
            "monitoring/profile.json": trained.profile,
            "search/trials.json": trials,
            "report.json": asdict(trained.report),
            "use_case.json": job.use_case.model_dump(mode="json"),
        },
    )
    return RunRecord(
        use_case=job.use_case.name,
        key=job.key,
        name=f"{job.as_of:%Y-%m-%d} {job.decision_id or job.reason}"[:200],
        dataset_version=job.snapshot.version,
        params={
            **job.study.best_params,
            "epochs": job.recipe.epochs,
            "seeds": str(job.recipe.seeds),
            "rows": trained.rows,
        },
        tags=_tags(job, outside),
        metrics=_metrics(job, trained),
        curves=curves,
        artifacts=folder,
        bundle_sha256=sha256,
    )


def write_documents(folder: Path, documents: Mapping[str, Any]) -> None:
    """Write JSON files into a run's folder, and beside them what is installed here."""
    for name, document in documents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(document, indent=1, allow_nan=False))
    installed = sorted({f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    (folder / "environment.txt").write_text("\n".join([f"# Python {platform.python_version()}", *installed, ""]))


def describe_rows(job: TrainingJob, rows: int) -> dict[str, Any]:
    """Which rows, so that they can be had again. No clock and no code version: the same model has the same bytes."""
    return {
        "snapshot_version": job.snapshot.version,
        "start": job.snapshot.start.isoformat(),
        "end": job.moments.fit_until.isoformat(),
        "cutoff": job.moments.cutoff.isoformat(),
        "as_of": job.as_of.isoformat(),
        "rows": rows,
    }


def _metrics(job: TrainingJob, trained: TrainingResult) -> dict[str, float]:
    energies = {"search_energy_joules": job.study.energy_joules, "refit_energy_joules": trained.energy_joules}
    return {
        **{name: joules for name, joules in energies.items() if joules is not None},
        **({"calibration_rows": float(trained.interval.rows)} if trained.interval else {}),
        **{f"validation_{name}": value for name, value in trained.metrics.items()},
        "search_seconds": job.study.seconds,
        "refit_seconds": trained.seconds,
        "search_trials": float(job.study.trials),
        "training_rows": float(trained.rows),
    }


def _tags(job: TrainingJob, outside: Outside) -> dict[str, str]:
    return {
        "mlflow.source.git.commit": outside.settings.code_sha,
        "windsock.code_sha": outside.settings.code_sha,
        "windsock.snapshot_version": job.snapshot.version,
        "windsock.snapshot_git_revision": job.snapshot.git_revision,
        "windsock.features_digest": job.definition.digest(),
        "windsock.as_of": job.as_of.isoformat(),
        "windsock.cutoff": job.moments.cutoff.isoformat(),
        "windsock.seed": str(job.use_case.seed),
        "windsock.reason": job.reason,
        "windsock.decision_id": job.decision_id or "",
        "windsock.study": job.study.study_name,
        "windsock.device": device_name(),
    }


def device_name() -> str:
    """What trains here, in words."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else f"cpu {platform.machine()}"


def library_versions() -> dict[str, str]:
    """What the weights' last bits may depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in ("numpy", "torch")}}
