"""How far a version's answers are off on average, by labelled rows that it has not learnt.

Of a version that was fitted on all that was known these are the rows since; of one that was judged, its holdout too.
Asked by monitoring, for the champion as it is, and by the gate, for the champion as it could have been at the
beginning of a holdout.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from adapters.connect import Outside
from models.recalibration import FittedIntercept, expected_gain, fit_intercept
from pipeline.monitoring import RecalibrationSettings
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.build_features.learnt_features import is_made_by, load_learnt_points, read_learnt_definition

Floats = NDArray[np.float64]

RECALIBRATION_TAG = "windsock.recalibration_of"
RECALIBRATED_AS_OF_TAG = "windsock.recalibrated_as_of"
RECALIBRATED_BY_TAG = "windsock.recalibrated_by_snapshot"
HALF_LIVES = 5  # what is older says next to nothing
_KEY = ["entity_key", "event_time"]
_ORDER = [(name, "ascending") for name in ("prediction_time", *_KEY)]


@dataclass(frozen=True, kw_only=True)
class MeasuredIntercept:
    """What would be added to a network's logits, what is added now, and the log-loss that the change is to save."""

    before: float
    fitted: FittedIntercept
    gain: float


def measure_intercept(
    use_case: UseCase, version: str, snapshot_version: str, known_by: datetime, outside: Outside
) -> MeasuredIntercept:
    """The intercept of a version by the labels known at a data time, and how it stands to the version's own.

    Rows count whose label lag has passed by then: of younger ones those with a label are not like the others.

    Raises:
        UncomputableFeatures: what the version learnt cannot be computed any more.
        Missing, Corrupt: its bundle is not there, or is not the one that was registered.
    """
    from models.bundle import load_bundle
    from serving.predictor import Predictor

    settings = use_case.monitor.recalibration
    assert settings is not None, f"{use_case.name}: monitor.recalibration is null"
    registered = outside.registry.version(use_case.name, version)
    folder = outside.registry.download_bundle(use_case.name, version)
    bundle = load_bundle(folder, sha256=registered.bundle_sha256)
    before = bundle.recalibration.intercept if bundle.recalibration else 0.0
    end = known_by - use_case.time.label_lag
    learnt_until = datetime.fromisoformat(bundle.card["data"].get("end", bundle.card["data"]["cutoff"]))
    start = max(learnt_until, end - HALF_LIVES * timedelta(days=settings.half_life_days))
    score, label, age = np.zeros(0), np.zeros(0), np.zeros(0)
    if start < end:
        definition = read_learnt_definition(use_case, version, folder)
        rows = dataset.load_rows(snapshot_version, use_case, outside, start=start, end=end, known_by=known_by)
        if not is_made_by(definition, snapshot_version, use_case, outside):
            points = load_learnt_points(definition, snapshot_version, use_case, outside, start=start, end=end)
            labelled = rows.select([*_KEY, "label"])
            rows = points.join(labelled, _KEY, join_type="inner").sort_by(_ORDER)
        score = Predictor(replace(bundle, recalibration=None)).predict(rows)
        label = rows["label"].to_numpy().astype(np.float64)
        age = _count_days(end, rows)
    return weigh_intercept(settings, before, score, label, age)


def weigh_intercept(
    settings: RecalibrationSettings, before: float, score: Floats, label: Floats, age_days: Floats
) -> MeasuredIntercept:
    """The intercept by answers of a network as it was trained [n], labels [n] and ages [n], beside one of `before`."""
    fitted = fit_intercept(score, label, age_days, half_life_days=settings.half_life_days, spread=settings.spread)
    gain = expected_gain(score, before, fitted.value) if len(score) else 0.0
    return MeasuredIntercept(before=before, fitted=fitted, gain=gain)


def _count_days(end: datetime, rows: pa.Table) -> Floats:
    until = np.datetime64(end.astimezone(UTC).replace(tzinfo=None), "us")
    age = until - rows["prediction_time"].to_numpy().astype("datetime64[us]")
    return np.asarray(age / np.timedelta64(1, "D"))
