"""Recalibration in the large: one number added to the logit of every answer, so that answers are right on average.

What a model answers on average goes out of date long before the order of its answers does, and one number is learnt
from days of labels. The newest rows count most. All labels of a day err together, by weather or by a strike, so that a
day tells far less than its rows would alone: how much less is measured, and shrinks the number towards none (decision
42). A slope is not moved: on the year that was measured, moving it lost.

In numpy alone, as models/metrics.py.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_STEPS = 50
_CLOSE = 1e-12  # of an intercept: a further step of Newton's changes nothing that anybody could see
_SURE = 1e-12  # of a probability: nearer to 0 or 1 the logit says nothing more


def add_to_logits(scores: Vector, added: Vector | float) -> Vector:
    """Probabilities [n] with something added to the logit of each: one number, or each its own [n]."""
    factor = np.exp(added)
    return np.asarray(scores * factor / (1 - scores + scores * factor))


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """What is added to the logit of an answer."""

    intercept: float

    def apply(self, scores: Vector) -> Vector:
        """The recalibrated probabilities of probabilities [n], in the same order; 0 and 1 stay."""
        return add_to_logits(np.asarray(scores, np.float64), self.intercept)

    def slope(self, scores: Vector) -> Vector:
        """By how much a recalibrated probability changes with the probability [n] that it is made of."""
        held, factor = np.asarray(scores, np.float64), math.exp(self.intercept)
        return np.asarray(factor / (1 - held + held * factor) ** 2)

    def to_document(self) -> dict[str, float]:
        """As JSON values, exact."""
        return asdict(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Recalibration":
        """From `to_document`'s JSON values.

        Raises:
            ValueError: it is no such document, or its number is not finite.
        """
        intercept = document.get("intercept")
        if set(document) != {"intercept"} or not isinstance(intercept, float) or not math.isfinite(intercept):
            raise ValueError(f"no recalibration: {dict(document)}")
        return cls(intercept=intercept)


@dataclass(frozen=True, kw_only=True)
class FittedIntercept:
    """An intercept learnt from labelled rows, and what is known of it.

    `dispersion` is how many times more the days differ than rows that err each for itself would make them.
    """

    value: float
    standard_error: float
    dispersion: float
    rows: int
    days: int


def fit_intercept(
    score: Vector, label: Vector, age_days: Vector, *, half_life_days: float, spread: float
) -> FittedIntercept:
    """What to add to the logits of a model, by labelled rows; 0 is what is expected of a model without any rows.

    The most probable value of an intercept that is N(0, spread^2) beforehand, by a quasi-likelihood: weighted by age,
    and divided by the dispersion of days (McCullagh and Nelder 1989, 4.5), which all rows tell of alike.

    Args:
        score: probabilities [n] of the model as it was trained.
        label: 0 or 1 [n].
        age_days: how long ago each was predicted [n], at least 0.
        half_life_days: a row this old counts half.
        spread: how far, as a standard deviation, models are off on average, in logits.
    """
    if not len(score):
        return FittedIntercept(value=0.0, standard_error=spread, dispersion=1.0, rows=0, days=0)
    held = np.clip(score, _SURE, 1 - _SURE)
    logit, weight = np.log(held / (1 - held)), 0.5 ** (age_days / half_life_days)
    dispersion, days = _measure_dispersion(logit, label, weight, np.floor(age_days).astype(np.int64))
    value, information = _solve(logit, label, weight, prior=dispersion / spread**2)
    return FittedIntercept(
        value=value,
        standard_error=math.sqrt(dispersion / information),
        dispersion=dispersion,
        rows=len(score),
        days=days,
    )


def expected_gain(score: Vector, before: float, after: float) -> float:
    """How much log-loss a change of the intercept is expected to save, a mean over answers [n] of the model as trained.

    If `after` is right, that is its divergence from `before`.
    """
    then, now = (add_to_logits(np.clip(score, _SURE, 1 - _SURE), each) for each in (before, after))
    return float(np.mean(now * np.log(now / then) + (1 - now) * np.log((1 - now) / (1 - then))))


def _measure_dispersion(logit: Vector, label: Vector, weight: Vector, day: NDArray[np.int64]) -> tuple[float, int]:
    """How many times the variance of independent rows that of the days' sums is, at least once; and of how many days.

    Of a single day nothing is known but that its rows err together: it counts as one row does.
    """
    level, _ = _solve(logit, label, weight, prior=_SURE)
    chance = _to_probability(logit + level)
    _, place = np.unique(day, return_inverse=True)
    errors, variances = np.bincount(place, label - chance), np.bincount(place, chance * (1 - chance))
    days = len(errors)
    if days < 2:
        return float(len(logit)), days
    return max(1.0, float((errors**2).sum() / variances.sum()) * days / (days - 1)), days


def _solve(logit: Vector, label: Vector, weight: Vector, *, prior: float) -> tuple[float, float]:
    """The intercept where the weighted errors and the pull of a prior's precision are even, and the information there.

    Newton's steps are at most 1, as far as a logit's curve is near its tangent.
    """
    value, information = 0.0, prior
    for _ in range(_STEPS):
        chance = _to_probability(logit + value)
        information = float((weight * chance * (1 - chance)).sum()) + prior
        step = (float((weight * (label - chance)).sum()) - prior * value) / information
        value += max(-1.0, min(1.0, step))
        if abs(step) < _CLOSE:
            break
    return value, information


def _to_probability(logit: Vector) -> Vector:
    return np.asarray(1 / (1 + np.exp(-logit)))
