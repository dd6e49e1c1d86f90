"""How sure we are that one model is better than another: a paired, studentised bootstrap over whole days.

Rows of one day share weather, delays and crews, so days and not rows are resampled (blocks: Künsch 1989, Annals of
Statistics 17:1217). Both models are measured on the same resampled days (paired), so what is hard for both cancels out.
With the 7 to 30 days a holdout has, percentile intervals are too narrow; studentising mends it (bootstrap-t: Efron and
Tibshirani 1993, chapter 12; for 5 to 30 clusters: Cameron, Gelbach and Miller 2008, REStat 90:414).

Every metric is a function of day weights, [resamples, days] -> [resamples], built once from per-day sums.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

HIGHER_IS_BETTER = frozenset({"auc", "pr_auc"})
SMALLEST_PROBABILITY = 1e-7
_ROWS_AT_ONCE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference in favour of the candidate (positive: better), in units of the metric.

    `low` and `high` are one-sided bounds, each at the asked confidence. `replicates` are the resampled differences,
    `pivots` the studentised ones, both [resamples].
    """

    value: float
    low: float
    high: float
    standard_error: float
    rows: int
    days: int
    replicates: Floats
    pivots: Floats

    def p_worse_than(self, loss: float) -> float:
        """p-value of "the candidate is at most `loss` worse": small means it is surely worse than that."""
        if self.standard_error == 0:
            return 1.0 if self.value >= -loss else 0.0
        observed = (self.value + loss) / self.standard_error
        return float((1 + np.count_nonzero(self.pivots <= observed)) / (1 + len(self.pivots)))


def statistic(metric: str, label: Floats, score: Floats, day: NDArray[np.intp], days: int) -> Statistic:
    """A metric of scores [n] against labels [n] as a function of day weights; `day` [n] counts from 0 to days - 1."""
    if metric == "auc":
        return _auc(label, score, day, days)
    if metric == "pr_auc":
        return _average_precision(label, score, day)
    rows = np.bincount(day, minlength=days).astype(np.float64)
    error = score - label
    if metric == "rmse":
        squares = np.bincount(day, error**2, days)
        return lambda weights: np.sqrt((weights @ squares) / (weights @ rows))
    if metric in {"calibration_gap", "bias"}:
        sums = np.bincount(day, error, days)
        return lambda weights: np.abs((weights @ sums) / (weights @ rows))
    losses = {"log_loss": _log_losses, "brier": _squared, "mae": _absolute}
    if metric not in losses:
        raise ValueError(
            f"no such metric: {metric!r}; expected auc, pr_auc, rmse, calibration_gap, bias or {list(losses)}"
        )
    sums = np.bincount(day, losses[metric](label, score), days)
    return lambda weights: (weights @ sums) / (weights @ rows)


def measure(metric: str, label: Floats, score: Floats) -> float:
    """A metric of all rows, each counted once. NaN where it is undefined, such as AUC with one class."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(statistic(metric, label, score, np.zeros(len(label), np.intp), 1)(np.ones((1, 1)))[0])


def compare(
    metric: str,
    *,
    label: Floats,
    candidate: Floats,
    champion: Floats,
    day: NDArray[Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> Effect:
    """How much better the candidate's scores [n] are than the champion's on the same rows, over resampled days.

    `day` [n] says which block a row belongs to. The same seed gives the same answer.
    """
    blocks, code = np.unique(day, return_inverse=True)
    days = len(blocks)
    ours, theirs = (statistic(metric, label, score, code, days) for score in (candidate, champion))
    sign = 1.0 if metric in HIGHER_IS_BETTER else -1.0

    def difference(weights: Floats) -> Floats:
        return sign * (ours(weights) - theirs(weights))

    once = np.ones((1, days))
    weights = np.random.default_rng(seed).multinomial(days, np.full(days, 1 / days), resamples).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, error = float(difference(once)[0]), float(_jackknife_error(difference, once)[0])
        replicates = difference(weights)
        pivots = (replicates - value) / _jackknife_error(difference, weights)
    # A resample without an answer (all its days the same, or one class only) counts against us on either side.
    upper = np.quantile(np.where(np.isnan(pivots), np.inf, pivots), confidence, method="higher")
    lower = np.quantile(np.where(np.isnan(pivots), -np.inf, pivots), 1 - confidence, method="lower")
    low, high = (value, value) if error == 0 else (value - upper * error, value - lower * error)
    return Effect(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=error,
        rows=len(label),
        days=days,
        replicates=replicates,
        pivots=np.where(np.isnan(pivots), -np.inf, pivots),
    )


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for having looked at all of them (Holm 1979, Scandinavian Journal of Statistics 6:65)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return [float(p) for p in adjusted]


def _jackknife_error(difference: Statistic, weights: Floats) -> Floats:
    """Delete-one-day standard error of each weighted sample: weights [b, days] -> [b]."""
    days = weights.shape[1]
    without = np.zeros_like(weights)
    for index in range(days):
        fewer = weights.copy()
        fewer[:, index] -= 1
        without[:, index] = difference(np.maximum(fewer, 0))
    without = np.where(weights > 0, without, 0.0)
    drawn = weights.sum(axis=1)
    mean = (weights * without).sum(axis=1) / drawn
    spread = (weights * (without - mean[:, None]) ** 2).sum(axis=1)
    error: Floats = np.sqrt((drawn - 1) / drawn * spread)
    return error


def _log_losses(label: Floats, score: Floats) -> Floats:
    probability = np.clip(score, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return -(label * np.log(probability) + (1 - label) * np.log1p(-probability))


def _squared(label: Floats, score: Floats) -> Floats:
    return (score - label) ** 2


def _absolute(label: Floats, score: Floats) -> Floats:
    return np.abs(score - label)


def _auc(label: Floats, score: Floats, day: NDArray[np.intp], days: int) -> Statistic:
    """AUC from won[i, j] = how often a positive of day i outranks a negative of day j, ties counting a half: exact."""
    positive = label == 1
    positives, of_day = score[positive], day[positive]
    won = np.zeros((days, days))
    for index in range(days):
        negatives = np.sort(score[~positive & (day == index)])
        below, up_to = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
        won[:, index] = np.bincount(of_day, (below + up_to) / 2, days)
    n_positive = np.bincount(of_day, minlength=days).astype(np.float64)
    n_negative = np.bincount(day[~positive], minlength=days).astype(np.float64)
    return lambda weights: ((weights @ won) * weights).sum(axis=1) / ((weights @ n_positive) * (weights @ n_negative))


def _average_precision(label: Floats, score: Floats, day: NDArray[np.intp]) -> Statistic:
    """Area under precision and recall: rows sorted once, weighted by their day; tied scores enter together."""
    order = np.argsort(-score, kind="stable")
    hit, of_day, ranked = label[order], day[order], score[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(ranked) else np.zeros(0, np.intp)

    def average_precision(weights: Floats) -> Floats:
        row_weights = weights[:, of_day]
        hits = np.cumsum(row_weights * hit, axis=1)[:, last_of_tie]
        seen = np.cumsum(row_weights, axis=1)[:, last_of_tie]
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        areas: Floats = (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1)
        return areas / hits[:, -1]

    step = max(1, _ROWS_AT_ONCE // max(1, len(label)))
    return lambda weights: np.concatenate(
        [average_precision(weights[first : first + step]) for first in range(0, len(weights), step)]
    )
