"""A winner, fitted anew on all that was known at its data time: what was judged ends a holdout before it.

Recipe, seeds and epochs are those of the version that was judged, its *judged twin*, which stays in the registry. So is
the interval, since no row is left that this version has not learnt. The validation metrics stand with the twin.
"""

import hashlib
import json
import time
from datetime import datetime
from pathlib import Path

from adapters.connect import Outside
from adapters.registry import RunRecord, Version
from models.bundle import load_bundle, write_bundle
from models.bundle_card import read_definition
from models.ensemble import Recipe
from models.training import best_device, deterministic
from pipeline.handoffs import Candidate
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.common.energy import Meter
from tasks.train.record import device_name, library_versions, write_documents
from tasks.train.refit import fit_with_profile, register_once

JUDGED_TWIN_TAG = "windsock.judged_twin"
_COLUMNS = {"numeric", "categorical"}  # of a recipe: long, and in the card


def fit_winner(use_case: UseCase, candidate: Candidate, outside: Outside) -> Version:
    """Train, record and register what takes the place of a candidate. A retry finds it and trains nothing.

    Raises:
        TrainingDiverged: a loss or an answer is not finite.
        FencedOut: a later refit of the same winner has begun.
    """
    work = ["winner", candidate.model_version, candidate.bundle_sha256, candidate.snapshot_version]
    key = hashlib.sha256(json.dumps([*work, candidate.as_of.isoformat()]).encode()).hexdigest()
    return register_once(use_case, key, lambda folder: _train(use_case, candidate, key, folder, outside), outside)


def _train(use_case: UseCase, candidate: Candidate, key: str, folder: Path, outside: Outside) -> RunRecord:
    began, meter = time.monotonic(), Meter(best_device().type)
    twin = outside.registry.version(use_case.name, candidate.model_version)
    judged = outside.registry.download_bundle(use_case.name, twin.version)
    bundle = load_bundle(judged, sha256=candidate.bundle_sha256)
    data, recipe = bundle.card["data"], Recipe.from_document(bundle.card["recipe"])
    start, end = datetime.fromisoformat(data["start"]), candidate.as_of - use_case.time.label_lag
    rows = dataset.load_rows(
        candidate.snapshot_version, use_case, outside, start=start, end=end, known_by=candidate.as_of
    )
    with deterministic(recipe.threads):
        ensemble, profile = fit_with_profile(recipe, rows, use_case)
    sha256 = write_bundle(
        folder / "bundle",
        ensemble,
        use_case=use_case.name,
        features_digest=bundle.card["features"]["digest"],
        definition=read_definition(judged),
        recipe=recipe.to_document(),
        data={**data, "end": end.isoformat(), "cutoff": candidate.as_of.isoformat(), "rows": rows.num_rows},
        metrics={},
        versions=library_versions(),
        interval=bundle.interval,
    )
    write_documents(folder, {"monitoring/profile.json": profile, "use_case.json": use_case.model_dump(mode="json")})
    joules = meter.joules()
    curves = {f"training_loss_seed_{s}": c for s, c in zip(recipe.seeds, ensemble.curves, strict=True)}
    return RunRecord(
        use_case=use_case.name,
        key=key,
        name=f"{candidate.as_of:%Y-%m-%d} winner, version {twin.version} refitted",
        dataset_version=candidate.snapshot_version,
        params={
            **{name: str(value) for name, value in recipe.to_document().items() if name not in _COLUMNS},
            "rows": rows.num_rows,
        },
        tags={
            **twin.tags,
            "mlflow.source.git.commit": outside.settings.code_sha,
            "windsock.code_sha": outside.settings.code_sha,
            "windsock.cutoff": candidate.as_of.isoformat(),
            "windsock.device": device_name(),
            JUDGED_TWIN_TAG: twin.version,
        },
        metrics={
            "refit_seconds": time.monotonic() - began,
            "training_rows": float(rows.num_rows),
            **({} if joules is None else {"refit_energy_joules": joules}),
        },
        curves=curves,
        artifacts=folder,
        bundle_sha256=sha256,
    )
