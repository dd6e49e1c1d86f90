"""The metrics: how good scores are against labels, over all rows or with a weight for each day.

In numpy alone, so that gate and monitor need no torch to judge. Scores come before labels everywhere. params.yaml may
name these metrics; pipeline/fields.py declares the same ones, and a test holds both together.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
ByDay = Callable[[Vector], Vector]  # day weights [resamples, days] -> the metric [resamples]
Weigher = Callable[[Vector, Vector, NDArray[np.intp], int], ByDay]  # of scores [n], labels [n], days [n], their number
_ROWS_AT_ONCE = 1_000_000
_EPSILON = 1e-7  # a probability of exactly 0 or 1 costs 16 nats, not infinity


def log_loss(score: Vector, label: Vector) -> float:
    """Mean negative log-likelihood of 0/1 labels, in nats."""
    return float(np.mean(row_log_loss(score, label)))


def row_log_loss(score: Vector, label: Vector) -> Vector:
    """Negative log-likelihood of each row [n], in nats: what a paired bootstrap resamples."""
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    return np.asarray(-(label * np.log(clipped) + (1 - label) * np.log1p(-clipped)), np.float64)


def _ranks(score: Vector) -> Vector:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    return np.asarray(np.cumsum(counts) - (counts - 1) / 2, np.float64)[inverse]


def auc(score: Vector, label: Vector) -> float:
    """Area under the ROC curve: the chance that a positive row outscores a negative one, ties counting half."""
    positives = float(label.sum())
    negatives = len(label) - positives
    if positives == 0 or negatives == 0:
        raise ValueError(f"AUC needs rows of both classes, got {positives:.0f} positive of {len(label)}")
    return float((_ranks(score)[label == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def pr_auc(score: Vector, label: Vector) -> float:
    """Average precision: precision at each threshold, weighted by the recall it adds."""
    if not label.any():
        raise ValueError(f"PR-AUC needs positive rows, got none of {len(label)}")
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    hits = np.cumsum(label[order])[last_of_tie]
    precision = hits / (last_of_tie + 1)
    return float(np.sum(precision * np.diff(np.r_[0.0, hits])) / hits[-1])


def brier(score: Vector, label: Vector) -> float:
    """Mean squared difference between probability and 0/1 label."""
    return float(np.mean((score - label) ** 2))


def calibration_gap(score: Vector, label: Vector) -> float:
    """|mean score - mean label|: how far the predicted rate is from the observed one."""
    return abs(bias(score, label))


def mae(score: Vector, label: Vector) -> float:
    """Mean absolute error, in units of the label."""
    return float(np.mean(np.abs(score - label)))


def rmse(score: Vector, label: Vector) -> float:
    """Root mean squared error, in units of the label."""
    return float(np.sqrt(np.mean((score - label) ** 2)))


def rmsle(score: Vector, label: Vector) -> float:
    """Root mean squared difference of log(1 + x), for labels from 0 on; a score below 0 counts as 0."""
    return float(np.sqrt(np.mean(_row_log_squares(score, label))))


def bias(score: Vector, label: Vector) -> float:
    """Mean score minus mean label, signed, in units of the label."""
    return float(np.mean(score) - np.mean(label))


def _row_squares(score: Vector, label: Vector) -> Vector:
    return (score - label) ** 2


def _row_distances(score: Vector, label: Vector) -> Vector:
    return abs(score - label)


def _row_log_squares(score: Vector, label: Vector) -> Vector:
    """Of a label below 0, which has none, NaN."""
    there = np.where(label < 0, np.nan, label)
    return np.asarray((np.log1p(np.maximum(score, 0)) - np.log1p(there)) ** 2, np.float64)


def _weigh_mean(
    of_rows: Callable[[Vector, Vector], Vector], then: Callable[[Vector], Vector] = lambda mean: mean
) -> Weigher:
    """A metric that is a mean over rows, or a function of one."""

    def weigh(score: Vector, label: Vector, day: NDArray[np.intp], days: int) -> ByDay:
        rows = np.bincount(day, minlength=days).astype(np.float64)
        sums = np.bincount(day, of_rows(score, label), days)
        return lambda weights: then((weights @ sums) / (weights @ rows))

    return weigh


weigh_bias: Weigher = _weigh_mean(np.subtract)  # signed, where METRICS has |bias| by day


def _weigh_auc(score: Vector, label: Vector, day: NDArray[np.intp], days: int) -> ByDay:
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


def _weigh_pr_auc(score: Vector, label: Vector, day: NDArray[np.intp], _days: int) -> ByDay:
    """Area under precision and recall: rows sorted once, weighted by their day; tied scores enter together."""
    order = np.argsort(-score, kind="stable")
    hit, of_day, ranked = label[order], day[order], score[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(ranked) != 0, True)) if len(ranked) else np.zeros(0, np.intp)

    def average_precision(weights: Vector) -> Vector:
        row_weights = weights[:, of_day]
        hits = np.cumsum(row_weights * hit, axis=1)[:, last_of_tie]
        seen = np.cumsum(row_weights, axis=1)[:, last_of_tie]
        precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
        return np.asarray((np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1) / hits[:, -1], np.float64)

    step = max(1, _ROWS_AT_ONCE // max(1, len(label)))
    return lambda weights: np.concatenate(
        [average_precision(weights[first : first + step]) for first in range(0, len(weights), step)]
    )


@dataclass(frozen=True, kw_only=True)
class MetricDefinition:
    """One metric of a kind of target.

    A ranking compares rows with each other: larger is better, it needs rows of both classes, and 0.5 is a coin's. Of
    any other metric, closer to 0 is better. A share never leaves [0, 1]. One `from_zero` needs labels of 0 and more.
    """

    kind: Literal["binary", "regression"]
    compute: Callable[[Vector, Vector], float]
    by_day: Weigher
    is_ranking: bool = False
    is_share: bool = False
    from_zero: bool = False


METRICS: Mapping[str, MetricDefinition] = {
    "log_loss": MetricDefinition(kind="binary", compute=log_loss, by_day=_weigh_mean(row_log_loss)),
    "auc": MetricDefinition(kind="binary", compute=auc, by_day=_weigh_auc, is_ranking=True, is_share=True),
    "pr_auc": MetricDefinition(kind="binary", compute=pr_auc, by_day=_weigh_pr_auc, is_ranking=True, is_share=True),
    "brier": MetricDefinition(kind="binary", compute=brier, by_day=_weigh_mean(_row_squares), is_share=True),
    "calibration_gap": MetricDefinition(
        kind="binary",
        compute=calibration_gap,
        by_day=_weigh_mean(np.subtract, np.abs),
        is_share=True,
    ),
    "mae": MetricDefinition(kind="regression", compute=mae, by_day=_weigh_mean(_row_distances)),
    "rmse": MetricDefinition(kind="regression", compute=rmse, by_day=_weigh_mean(_row_squares, np.sqrt)),
    "rmsle": MetricDefinition(
        kind="regression", compute=rmsle, by_day=_weigh_mean(_row_log_squares, np.sqrt), from_zero=True
    ),
    # Signed where a model is described (a training run, monitoring); by day it is |bias|, which the gate compares.
    "bias": MetricDefinition(kind="regression", compute=bias, by_day=_weigh_mean(np.subtract, np.abs)),
}


def to_loss(metric: str, value: float) -> float:
    """The metric's value turned so that smaller is better: -auc, |bias|, log_loss."""
    return -value if METRICS[metric].is_ranking else abs(value)


def weigh_metric(metric: str, score: Vector, label: Vector, day: NDArray[np.intp], days: int) -> ByDay:
    """A metric of scores [n] and labels [n] as a function of day weights; `day` [n] counts from 0 to days - 1.

    Raises:
        ValueError: there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"no such metric: {metric!r}; expected {', '.join(METRICS)}")
    return METRICS[metric].by_day(score, label, day, days)


def compute_metric(metric: str, score: Any, label: Any) -> float:
    """One metric of one-dimensional scores and labels of equal length.

    Raises:
        ValueError: no rows, unequal lengths, a score or label that is not finite, or a label no probability can have.
    """
    score, label = np.asarray(score, np.float64), np.asarray(label, np.float64)
    if score.shape != label.shape or score.ndim != 1 or not len(score):
        raise ValueError(
            f"{metric}: expected equally many scores and labels, at least one; got {score.shape}, {label.shape}"
        )
    if not (np.isfinite(score).all() and np.isfinite(label).all()):
        raise ValueError(f"{metric}: scores and labels must be finite")
    if METRICS[metric].kind == "binary" and not np.isin(label, (0.0, 1.0)).all():
        raise ValueError(f"{metric}: labels must be 0 or 1")
    if METRICS[metric].from_zero and label.min() < 0:
        raise ValueError(f"{metric}: labels must not be below 0")
    return METRICS[metric].compute(score, label)


def compute_metrics(kind: str, score: Any, label: Any) -> dict[str, float]:
    """Every metric of a target kind (binary | regression) that these labels allow.

    Without the rankings if all are of one class, and without those from 0 on if one is below.
    """
    one_class = kind == "binary" and len(np.unique(label)) == 1
    below_zero = bool(np.any(np.asarray(label, np.float64) < 0))
    return {
        name: compute_metric(name, score, label)
        for name, metric in METRICS.items()
        if metric.kind == kind and not (one_class and metric.is_ranking) and not (below_zero and metric.from_zero)
    }
