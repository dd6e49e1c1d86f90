"""Trains a registered model again from what its record says, and compares weights and metrics."""

from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import torch

import features
from adapters.connect import Outside
from adapters.registry import Version
from models.bundle import Bundle, load_bundle
from models.ensemble import Ensemble, Recipe, fit_ensemble, labels
from models.interval import ConformalInterval
from models.metrics import compute_metrics
from models.training import best_device
from pipeline.spec import UseCase
from serving.predictor import Predictor
from tasks.build_features import dataset
from tasks.train.calibration import calibrate_by_twin
from tasks.train.recalibration import (
    RECALIBRATED_AS_OF_TAG,
    RECALIBRATED_BY_TAG,
    RECALIBRATION_TAG,
    measure_intercept,
)
from tasks.train.record import library_versions
from tasks.train.split import split
from tasks.train.trainer import split_rows
from tasks.train.winner import JUDGED_TWIN_TAG

TOLERANCE = 1e-4  # of a weight, absolute: another processor or library sums in another order
SCORE_TOLERANCE = 1e-4
_DIRTY = "-dirty"


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """How like the registered model the retrained one is. Empty `problems`: reproduced."""

    use_case: str
    model_version: str
    bitwise_equal: bool
    max_weight_difference: float
    max_score_difference: float
    metrics: dict[str, float]
    reproduced_metrics: dict[str, float]
    warnings: list[str]
    problems: list[str]

    @property
    def ok(self) -> bool:
        """Whether the model was reproduced within the tolerance."""
        return not self.problems

    def lines(self) -> list[str]:
        """The result in words."""
        likeness = "bit for bit" if self.bitwise_equal else f"weights within {self.max_weight_difference:.1e}"
        return [
            f"{self.use_case} version {self.model_version}: " + (f"reproduced, {likeness}" if self.ok else "DIFFERS"),
            f"largest difference of a prediction: {self.max_score_difference:.1e}",
            *(f"{k}: {v:.6f} then, {self.reproduced_metrics[k]:.6f} now" for k, v in self.metrics.items()),
            *(f"warning: {w}" for w in self.warnings),
            *(f"problem: {p}" for p in self.problems),
        ]


def reproduce(
    use_case: UseCase, model_version: str, outside: Outside, *, allow_other_code: bool = False
) -> Reproduction:
    """Retrain a model version from its record and compare. Changes nothing anywhere.

    Raises:
        ValueError: there is no such version, its data version is gone, or it was trained by the code of another commit.
        adapters.errors.Corrupt: the stored bundle is not the registered one.
    """
    version = outside.registry.version(use_case.name, model_version)
    about_code = _about_code(version.tags["windsock.code_sha"], outside.settings.code_sha, allowed=allow_other_code)
    original = load_bundle(outside.registry.download_bundle(use_case.name, model_version), sha256=version.bundle_sha256)
    data, recipe = original.card["data"], Recipe.from_document(original.card["recipe"])
    start, cutoff = datetime.fromisoformat(data["start"]), datetime.fromisoformat(data["cutoff"])
    end = datetime.fromisoformat(data.get("end", data["cutoff"]))  # before decision 37 it was the cut-off
    rows = dataset.load_rows(data["snapshot_version"], use_case, outside, start=start, end=end, known_by=cutoff)
    problems = (
        [] if rows.num_rows == data["rows"] else [f"{rows.num_rows} rows restored, {data['rows']} were trained on"]
    )
    problems += _recalibration_problems(use_case, original, version, outside)
    trained = version.tags.get(RECALIBRATION_TAG, model_version)
    twin = version.tags.get(JUDGED_TWIN_TAG)
    if twin is None:
        recorded = outside.registry.metrics(use_case.name, trained)
        problems += _validation_problems(use_case, original, rows, recorded)
    else:
        problems += _twin_problems(use_case, original, twin, outside)
    return _compare(
        use_case,
        model_version,
        original,
        fit_ensemble(recipe, rows, best_device()),
        rows,
        warnings=[*about_code, *_warnings(original, twin, features.definition(use_case.name).digest())],
        problems=problems,
    )


def _validation_problems(use_case: UseCase, original: Bundle, rows: pa.Table, recorded: dict[str, float]) -> list[str]:
    """Where metrics or interval are not those of the first seed, or of all, fitted without the validation rows."""
    recipe = Recipe.from_document(original.card["recipe"])
    if "end" not in original.card["data"]:
        return []
    moments = split(use_case, datetime.fromisoformat(original.card["data"]["as_of"]))
    train, validation = split_rows(rows, moments)
    if not train.num_rows or not validation.num_rows:
        return ["no training or no validation rows: the validation metrics cannot be measured again"]
    seeds = recipe.seeds if original.interval else recipe.seeds[:1]
    twin = fit_ensemble(replace(recipe, seeds=seeds), train, best_device())
    score = Predictor(Bundle(card={}, encoder=twin.encoder, members=twin.members[:1])).predict(validation)
    now = {f"validation_{k}": v for k, v in compute_metrics(use_case.target.kind, score, labels(validation)).items()}
    measured = [name for name in now if name in recorded]  # a metric that came later was not
    problems = [] if measured else ["no validation metric was recorded"]
    problems += [
        f"{name}: {recorded[name]} recorded, {now[name]:.6f} now (is train.validation_days what it was?)"
        for name in measured
        if not abs(recorded[name] - now[name]) <= SCORE_TOLERANCE
    ]
    if original.interval is not None:
        again = calibrate_by_twin(twin, rows, moments, coverage=original.interval.coverage)
        difference = _interval_difference(original.interval, again)
        if not difference <= SCORE_TOLERANCE:
            problems.append(f"the interval's bounds differ by up to {difference:.2e}, tolerated are {SCORE_TOLERANCE}")
    return problems


def _twin_problems(use_case: UseCase, original: Bundle, twin: str, outside: Outside) -> list[str]:
    """Where a refitted winner has not what it is to have of the version that was judged."""
    judged = load_bundle(outside.registry.download_bundle(use_case.name, twin))
    pairs = {
        "recipe": (original.card["recipe"], judged.card["recipe"]),
        "features": (original.card["features"], judged.card["features"]),
        "interval": (original.interval, judged.interval),
    }
    return [f"its {what} is not that of version {twin}" for what, (ours, theirs) in pairs.items() if ours != theirs]


def _recalibration_problems(use_case: UseCase, original: Bundle, version: Version, outside: Outside) -> list[str]:
    """Where a recalibrated version has not the intercept that the labels known then say."""
    trained = version.tags.get(RECALIBRATION_TAG)
    if trained is None or original.recalibration is None:
        return [] if trained is None and original.recalibration is None else ["half of a recalibration is recorded"]
    known_by = datetime.fromisoformat(version.tags[RECALIBRATED_AS_OF_TAG])
    snapshot = version.tags[RECALIBRATED_BY_TAG]
    again = measure_intercept(use_case, trained, snapshot, known_by, outside).fitted.value
    then = original.recalibration.intercept
    if abs(again - then) <= SCORE_TOLERANCE:
        return []
    return [f"its intercept was {then:+.5f}, and is {again:+.5f} now (is monitor.recalibration what it was?)"]


def _interval_difference(then: ConformalInterval, now: ConformalInterval) -> float:
    """The largest difference of a bound, of the answers at which the scale is told."""
    answers = np.array(then.knots)
    return float(np.max(np.abs(np.subtract(then.bounds(answers), now.bounds(answers)))))


def _about_code(trained_at: str, code_sha: str, *, allowed: bool) -> list[str]:
    """What to say of the code then and now; ValueError where it is of another commit and that was not allowed."""
    then, now = (sha.removesuffix(_DIRTY) for sha in (trained_at, code_sha))
    if then != now:
        other = f"trained by code {trained_at}, this is {code_sha}; `git checkout {then}` for the very same"
        if not allowed:
            raise ValueError(f"cannot be compared: {other}, or pass --allow-other-code")
        return [other]
    if _DIRTY in trained_at + code_sha:
        return [f"files differed from the commit: trained by code {trained_at}, this is {code_sha}"]
    return []


def _warnings(original: Bundle, twin: str | None, features_digest: str) -> list[str]:
    changed = "the feature definition has changed since; the restored data is of the old one"
    found = [changed] if original.card["features"]["digest"] != features_digest else []
    if "end" not in original.card["data"]:
        found.append("trained when rows were split otherwise: what was validated is not measured again")
    if twin is not None:
        found.append(
            f"version {twin} fitted on all that was known: no row is left that could validate it, so weights and"
            f" predictions are compared; what was validated is version {twin}"
        )
    now = library_versions()
    return found + [
        f"trained with {name} {then}, this is {now[name]}"
        for name, then in original.card["versions"].items()
        if now[name] != then
    ]


def _compare(
    use_case: UseCase,
    model_version: str,
    original: Bundle,
    again: Ensemble,
    rows: pa.Table,
    *,
    warnings: list[str],
    problems: list[str],
) -> Reproduction:
    kind, label = use_case.target.kind, labels(rows)
    now = replace(original, encoder=again.encoder, members=again.members)
    scores = [Predictor(model).predict(rows) for model in (original, now)]
    weight_difference, bitwise = weight_differences(original, again)
    score_difference = float(np.max(np.abs(scores[0] - scores[1])))
    if original.encoder != again.encoder:
        problems.append("the encoder differs: other rows, or another way of fitting it")
    if weight_difference > TOLERANCE:
        problems.append(f"weights differ by up to {weight_difference:.2e}, tolerated are {TOLERANCE}")
    if score_difference > SCORE_TOLERANCE:
        problems.append(f"predictions differ by up to {score_difference:.2e}, tolerated are {SCORE_TOLERANCE}")
    return Reproduction(
        use_case=use_case.name,
        model_version=model_version,
        bitwise_equal=bitwise and original.encoder == again.encoder,
        max_weight_difference=weight_difference,
        max_score_difference=score_difference,
        metrics=compute_metrics(kind, scores[0], label),
        reproduced_metrics=compute_metrics(kind, scores[1], label),
        warnings=warnings,
        problems=problems,
    )


def weight_differences(original: Bundle, again: Ensemble) -> tuple[float, bool]:
    """(largest absolute difference of a weight, whether all are bit for bit equal); another shape is infinitely far."""
    pairs = [
        (tensor, theirs.state_dict().get(name))
        for ours, theirs in zip(original.members, again.members, strict=True)
        for name, tensor in ours.state_dict().items()
    ]
    if any(b is None or a.shape != b.shape for a, b in pairs):
        return float("inf"), False
    return (
        max(float((a.double() - b.double()).abs().max()) for a, b in pairs if b is not None and a.numel()),
        all(b is not None and torch.equal(a, b) for a, b in pairs),
    )
