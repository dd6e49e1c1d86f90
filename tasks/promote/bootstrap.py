"""How sure we are that one model is better than another: a paired, studentised bootstrap over whole days.

Rows of one day share weather, delays and crews, so days and not rows are resampled (blocks: Künsch 1989, Annals of
Statistics 17:1217). Both models are measured on the same resampled days (paired), so what is hard for both cancels out.
With the 7 to 30 days a holdout has, percentile intervals are too narrow; studentising mends it (bootstrap-t: Efron and
Tibshirani 1993, chapter 12; for 5 to 30 clusters: Cameron, Gelbach and Miller 2008, REStat 90:414).

Every metric is a function of day weights, [resamples, days] -> [resamples], made once from per-day sums
(`models.metrics`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import METRICS, ByDay, weigh_metric

Floats = NDArray[np.float64]


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


def compute_for_gate(metric: str, score: Floats, label: Floats) -> float:
    """A metric as the gate compares it, of rows that count once each. NaN where undefined, such as AUC of one class."""
    with np.errstate(divide="ignore", invalid="ignore"):
        by_day = weigh_metric(metric, score, label, np.zeros(len(label), np.intp), 1)
        return float(by_day(np.ones((1, 1)))[0])


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
    ours, theirs = (weigh_metric(metric, score, label, code, days) for score in (candidate, champion))
    sign = 1.0 if METRICS[metric].is_ranking else -1.0

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
    steps = np.arange(len(p_values), 0, -1) * np.array(p_values)[order]
    adjusted[order] = np.maximum.accumulate(np.minimum(steps, 1.0))
    return [float(p) for p in adjusted]


def _jackknife_error(difference: ByDay, weights: Floats) -> Floats:
    """Delete-one-day standard error of each weighted sample: weights [b, days] -> [b]."""
    without = np.zeros_like(weights)
    for index in range(weights.shape[1]):
        fewer = weights.copy()
        fewer[:, index] -= 1
        without[:, index] = difference(np.maximum(fewer, 0))
    without = np.where(weights > 0, without, 0.0)
    drawn = weights.sum(axis=1)
    mean = (weights * without).sum(axis=1) / drawn
    spread = (weights * (without - mean[:, None]) ** 2).sum(axis=1)
    error: Floats = np.sqrt((drawn - 1) / drawn * spread)
    return error
