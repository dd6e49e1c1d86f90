"""Prediction intervals by split conformal prediction: calibrated on rows that a fit did not see, kept in a bundle.

The error of a row is measured in scales: what the same fit erred by, on average, where it answered about as much. For
durations, prices and counts err by more where they are larger, so that one width for all would be too wide for small
answers and too narrow for large ones. Each side has a quantile of its own (equal tails), for such errors are skewed.
An interval is a function of the answer alone, in numpy: batch and server give the same for the same answer.

In numpy alone, as models/metrics.py.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_KNOTS = 16  # of the scale, at most
_ROWS_A_KNOT = 50
_LEAST_SCALE = 0.05  # of the mean error: where a fit hit every row that it learnt, it will not go on hitting
_ROUNDING = 1e-9  # (1 - 0.9) / 2 * 20 is a little less than 1


@dataclass(frozen=True, kw_only=True)
class ConformalInterval:
    """How far around an answer the label lies, for a share `coverage` of rows like those it was calibrated on.

    `low` <= 0 <= `high` are in scales. The scale is `scales` at the answers `knots`, and between them on a line.
    """

    coverage: float
    rows: int
    low: float
    high: float
    knots: tuple[float, ...]
    scales: tuple[float, ...]

    def bounds(self, scores: Vector) -> tuple[Vector, Vector]:
        """Lower and upper bounds of answers [n], in units of the label, float64 [n] each."""
        scale = self.scale(scores)
        return scores + self.low * scale, scores + self.high * scale

    def scale(self, scores: Vector) -> Vector:
        """By how much answers like these [n] are off on average, in units of the label."""
        return np.interp(scores, self.knots, self.scales)

    def to_document(self) -> dict[str, Any]:
        """As JSON values, floats exact."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "ConformalInterval":
        """From `to_document`'s JSON values.

        Raises:
            ValueError: it is no such document, or none that calibration could have made.
        """
        try:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
            found = cls(**values)
            numbers = np.array([found.coverage, found.rows, found.low, found.high, *found.knots, *found.scales], float)
        except (TypeError, ValueError) as error:
            raise ValueError(f"no interval: {error}") from error
        is_sound = (
            np.isfinite(numbers).all()
            and 0 < found.coverage < 1
            and found.low <= 0 <= found.high
            and len(found.knots) == len(found.scales) > 0
            and (np.diff(found.knots) > 0).all()
            and min(found.scales) > 0
        )
        if not is_sound:
            raise ValueError(f"no interval: {dict(document)}")
        return found


def least_calibration_rows(coverage: float) -> int:
    """The rows below which no finite interval covers so much: each side needs a row beyond its quantile."""
    return math.ceil(2 / (1 - coverage) - _ROUNDING) - 1


def calibrate_interval(
    *, seen_score: Vector, seen_label: Vector, unseen_score: Vector, unseen_label: Vector, coverage: float
) -> ConformalInterval:
    """An interval around the answers of one fit, from rows that it learnt and rows that it did not.

    Only the shape of the scale comes from what was learnt: on how it is, no coverage depends. With n rows unseen, the
    k-th smallest and the k-th largest error bound a new row's with probability 1 - 2k / (n + 1) at least, where rows
    are exchangeable (Vovk et al. 2005; Lei et al. 2018, JASA 113:1094).

    Args:
        seen_score: of the fit, on rows that it learnt [m].
        seen_label: their labels [m].
        unseen_score: of the same fit, on rows that it did not see [n].
        unseen_label: their labels [n].
        coverage: the share of labels that are to lie inside.

    Raises:
        ValueError: too few rows were not seen.
    """
    rows = len(unseen_score)
    beyond = math.floor((1 - coverage) / 2 * (rows + 1) + _ROUNDING)
    if beyond < 1:
        raise ValueError(
            f"an interval of {coverage:.0%} coverage needs at least {least_calibration_rows(coverage)} rows that the"
            f" fit did not see, got {rows}"
        )
    knots, scales = _fit_scale(seen_score, np.abs(seen_label - seen_score))
    errors = np.sort((unseen_label - unseen_score) / np.interp(unseen_score, knots, scales))
    return ConformalInterval(
        coverage=coverage,
        rows=rows,
        low=min(0.0, float(errors[beyond - 1])),  # an answer always lies in its own interval
        high=max(0.0, float(errors[rows - beyond])),
        knots=tuple(knots.tolist()),
        scales=tuple(scales.tolist()),
    )


def _fit_scale(score: Vector, error: Vector) -> tuple[Vector, Vector]:
    """Mean answer, increasing, and mean error, above 0, of groups of rows of about equal size, by their answers."""
    groups = np.array_split(np.argsort(score, kind="stable"), max(1, min(_KNOTS, len(score) // _ROWS_A_KNOT)))
    least = _LEAST_SCALE * float(error.mean()) or 1.0  # of a fit without any error there is no shape
    means = np.maximum.accumulate([score[group].mean() for group in groups])  # rounding sets equal answers apart
    knots, first = np.unique(means, return_index=True)
    scales = np.array([error[group].mean() for group in groups])[first]
    return knots, np.maximum(scales, least)
