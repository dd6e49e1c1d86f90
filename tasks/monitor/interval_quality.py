"""Do intervals hold what they say? The share of matured labels inside them, beside the share that was declared.

What was declared is the model's, from its bundle: a window may have answers of several versions. Wrong is what is at
least `max_gap` off, and surely off; a person is told of it once it persists. Like a binary model's calibration gap it
leads to a retraining where `monitor.limits` names it.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adapters.connect import Outside
from adapters.errors import Corrupt, Missing
from models.bundle_card import INTERVAL, read_card
from models.interval import ConformalInterval
from pipeline.spec import IntervalSettings, UseCase
from tasks.promote.interval_coverage import measure_coverage

logger = logging.getLogger(__name__)


def measure_intervals(
    use_case: UseCase, labelled: pa.Table, versions: Sequence[str], outside: Outside
) -> dict[str, float]:
    """The metrics of intervals, of labelled rows [n] and the version that gave each; none of too few with bounds.

    Args:
        use_case: whose confidence (`gate.confidence`) and least number of labels (`monitor.min_labelled`) hold.
        labelled: with the columns prediction_time, label, lower and upper; the last two null where a row has no bounds.
        versions: of the models that gave them [n].
        outside: where the versions' bundles are.
    """
    has_bounds = labelled["lower"].is_valid()
    bounded = labelled.filter(has_bounds)
    if not bounded.num_rows or bounded.num_rows < use_case.monitor.min_labelled:
        return {}
    lower, upper, label = (bounded[name].to_numpy() for name in ("lower", "upper", "label"))
    day = bounded["prediction_time"].to_numpy().astype("datetime64[D]")
    found = measure_coverage(lower, upper, label, day, confidence=use_case.gate.confidence)
    metrics = {
        "interval_coverage": found.covered,
        "interval_coverage_low": found.low,
        "interval_coverage_high": found.high,
        "interval_width": found.mean_width,
    }
    answered = pa.array(versions).filter(has_bounds.combine_chunks())
    counted = {each["values"]: each["counts"] for each in pc.value_counts(answered).to_pylist()}
    declared = {version: load_interval(use_case, version, outside) for version in counted}
    if all(declared.values()):
        shares = [interval.coverage * counted[version] for version, interval in declared.items() if interval]
        metrics["interval_declared"] = float(np.sum(shares) / bounded.num_rows)
    return metrics


def load_interval(use_case: UseCase, version: str, outside: Outside) -> ConformalInterval | None:
    """The interval of a model version; None where it has none, or its bundle cannot be had any more."""
    try:
        card = read_card(outside.registry.download_bundle(use_case.name, version))
    except (Missing, Corrupt) as error:
        logger.warning("what the intervals of version %s are to cover is not known: %s", version, error)
        return None
    return ConformalInterval.from_document(card[INTERVAL]) if INTERVAL in card else None


def restate_bounds(
    use_case: UseCase, labelled: pa.Table, scores: Sequence[float | None], versions: Sequence[str], outside: Outside
) -> pa.Table:
    """The rows [n] with the bounds that restated scores have by the same versions; null where there is no score."""
    if not labelled["lower"].is_valid().to_numpy().any():
        return labelled
    said = np.array([np.nan if score is None else score for score in scores])
    lower, upper, of_version = np.full(len(said), np.nan), np.full(len(said), np.nan), np.array(versions)
    for version in set(versions):
        if interval := load_interval(use_case, version, outside):
            places = of_version == version
            lower[places], upper[places] = interval.bounds(said[places])
    for name, bound in (("lower", lower), ("upper", upper)):
        column = pa.array(bound, pa.float64(), from_pandas=True)  # NaN is null
        labelled = labelled.set_column(labelled.column_names.index(name), name, column)
    return labelled


def find_miscoverage(metrics: Mapping[str, float], declared: IntervalSettings | None) -> str | None:
    """What is wrong with what intervals cover, in a sentence; None where nothing is, or it was not measured."""
    if declared is None or "interval_declared" not in metrics:
        return None
    covered, asked = metrics["interval_coverage"], metrics["interval_declared"]
    low, high = metrics["interval_coverage_low"], metrics["interval_coverage_high"]
    if abs(covered - asked) < declared.max_gap or low <= asked <= high:
        return None
    return f"intervals hold {covered:.1%} of the labels ({low:.1%} to {high:.1%}), declared is {asked:.1%}"
