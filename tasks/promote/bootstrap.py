"""How sure we are that one model is better than another: a paired, studentised bootstrap over whole blocks.

Rows of one day share weather, delays and crews, so days (or longer blocks, or entities) and not rows are resampled
(Künsch 1989, Annals of Statistics 17:1217). Both models are measured on the same resampled blocks (paired), so what is
hard for both cancels out. With the 7 to 30 blocks a holdout has, percentile intervals are too narrow; studentising
mends it (bootstrap-t: Efron and Tibshirani 1993, chapter 12; for 5 to 30 clusters: Cameron, Gelbach and Miller 2008,
REStat 90:414). Blocks of time that follow each other are alike, too: the error grows by what the mean of a first-order
autoregression has more than that of independent draws, at the correlation seen from block to block, freed of its bias.

Every metric is a function of block weights, [resamples, blocks] -> [resamples], made once from sums by block
(`models.metrics`).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import METRICS, ByDay, weigh_metric

Floats = NDArray[np.float64]

_FEWEST_NEIGHBOURS = 6  # of fewer no correlation can be told
_MOST_ALIKE = 0.8


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A difference in favour of the candidate (positive: better), in units of the metric.

    `low` and `high` are one-sided bounds, each at the asked confidence. `correlation` is that of neighbouring blocks,
    which the error counts. `replicates` are the resampled differences [resamples].
    """

    value: float
    low: float
    high: float
    standard_error: float
    correlation: float
    rows: int
    blocks: int
    replicates: Floats


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
    block: NDArray[Any],
    correlation: float | None,
    confidence: float,
    resamples: int,
    seed: int,
) -> Effect:
    """How much better the candidate's scores [n] are than the champion's on the same rows, over resampled blocks.

    `block` [n] says which block a row belongs to. `correlation` is that of neighbouring blocks; None where they follow
    each other in time and it is to be measured. The same seed gives the same answer.
    """
    names, code = np.unique(block, return_inverse=True)
    blocks = len(names)
    ours, theirs = (weigh_metric(metric, score, label, code, blocks) for score in (candidate, champion))
    sign = 1.0 if METRICS[metric].is_ranking else -1.0

    def difference(weights: Floats) -> Floats:
        return sign * (ours(weights) - theirs(weights))

    once = np.ones((1, blocks))
    drawn = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), resamples)
    weights = drawn.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(difference(once)[0])
        error, correlation = jackknife(difference, blocks, correlation)
        replicates = difference(weights)
        pivots = (replicates - value) / _jackknife_error(_leave_out_each(difference, weights), weights)
    # A resample without an answer (all its days the same, or one class only) counts against us on either side.
    upper = np.quantile(np.where(np.isnan(pivots), np.inf, pivots), confidence, method="higher")
    lower = np.quantile(np.where(np.isnan(pivots), -np.inf, pivots), 1 - confidence, method="lower")
    low, high = (value, value) if error == 0 else (value - upper * error, value - lower * error)
    return Effect(
        value=value,
        low=float(low),
        high=float(high),
        standard_error=error,
        correlation=correlation,
        rows=len(label),
        blocks=blocks,
        replicates=replicates,
    )


def jackknife(of_blocks: ByDay, blocks: int, correlation: float | None) -> tuple[float, float]:
    """The standard error of a function of block weights, and the correlation of neighbouring blocks, which it counts.

    It is measured where None is given. NaN where the function is not defined without one of the blocks.
    """
    once = np.ones((1, blocks))
    without = _leave_out_each(of_blocks, once)
    error = float(_jackknife_error(without, once)[0])
    if correlation is None:
        correlation = measure_correlation(without[0])
    return error * math.sqrt(inflation(correlation, blocks)), correlation


def measure_correlation(values: Floats) -> float:
    """The correlation of neighbours in a sequence [n], freed of its bias (Kendall 1954); within 0 and `_MOST_ALIKE`."""
    n, apart = len(values), values - values.mean()
    total = float(apart @ apart)
    if n < _FEWEST_NEIGHBOURS or not total > 0:
        return 0.0
    seen = float(apart[1:] @ apart[:-1]) / total
    return min(max((n * seen + 1) / (n - 4), 0.0), _MOST_ALIKE)


def inflation(correlation: float, n: int) -> float:
    """The variance of a mean of n values, neighbours of which are correlated, by that of independent ones.

    Of a first-order autoregression: lag k has the k-th power of the correlation.
    """
    lags = np.arange(1, n)
    return 1.0 + 2.0 * float(((1 - lags / n) * correlation**lags).sum())


def _leave_out_each(difference: ByDay, weights: Floats) -> Floats:
    """The differences without one of each block's draws, [b, blocks]; 0 for a block that was not drawn."""
    without = np.zeros_like(weights)
    for index in range(weights.shape[1]):
        fewer = weights.copy()
        fewer[:, index] -= 1
        without[:, index] = difference(np.maximum(fewer, 0))
    return np.where(weights > 0, without, 0.0)


def _jackknife_error(without: Floats, weights: Floats) -> Floats:
    """Delete-one-block standard error of each weighted sample, from what `_leave_out_each` made of it: [b]."""
    drawn = weights.sum(axis=1)
    mean = (weights * without).sum(axis=1) / drawn
    spread = (weights * (without - mean[:, None]) ** 2).sum(axis=1)
    error: Floats = np.sqrt((drawn - 1) / drawn * spread)
    return error
