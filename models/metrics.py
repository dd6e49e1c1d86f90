"""How good scores are against labels, in numpy alone, so that gate and monitor need no torch to judge."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_EPSILON = 1e-7  # a probability of exactly 0 or 1 costs 16 nats, not infinity


def log_loss(score: Vector, label: Vector) -> float:
    """Mean negative log-likelihood of 0/1 labels, in nats."""
    return float(np.mean(row_log_loss(score, label)))


def row_log_loss(score: Vector, label: Vector) -> Vector:
    """Negative log-likelihood of each row [n], in nats: what a paired bootstrap resamples."""
    clipped = np.clip(score, _EPSILON, 1 - _EPSILON)
    rows: Vector = -(label * np.log(clipped) + (1 - label) * np.log1p(-clipped))
    return rows


def _ranks(score: Vector) -> Vector:
    """Ranks from 1, ties sharing their mean rank."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: Vector = last - (counts - 1) / 2
    return mean_rank[inverse]


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
    hits = np.cumsum(label[order])
    last_of_tie = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    hits = hits[last_of_tie]
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


def bias(score: Vector, label: Vector) -> float:
    """Mean score minus mean label, signed, in units of the label."""
    return float(np.mean(score) - np.mean(label))


METRICS: Mapping[str, Callable[[Vector, Vector], float]] = {
    "log_loss": log_loss,
    "auc": auc,
    "pr_auc": pr_auc,
    "brier": brier,
    "calibration_gap": calibration_gap,
    "mae": mae,
    "rmse": rmse,
    "bias": bias,
}
_OF_KIND = {
    "binary": ("log_loss", "auc", "pr_auc", "brier", "calibration_gap"),
    "regression": ("mae", "rmse", "bias"),
}


def higher_is_better(metric: str) -> bool:
    """Whether a larger value of this metric is a better model."""
    return metric in {"auc", "pr_auc"}


def as_loss(metric: str, value: float) -> float:
    """The metric's value turned so that smaller is better: -auc, |bias|, log_loss."""
    return -value if higher_is_better(metric) else abs(value)


def measure(metric: str, score: Any, label: Any) -> float:
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
    if metric in _OF_KIND["binary"] and not np.isin(label, (0.0, 1.0)).all():
        raise ValueError(f"{metric}: labels must be 0 or 1")
    return METRICS[metric](score, label)


def measure_all(kind: str, score: Any, label: Any) -> dict[str, float]:
    """Every metric of a target kind (binary | regression); without those that need both classes if there is one."""
    names = _OF_KIND[kind]
    if kind == "binary" and len(np.unique(label)) == 1:
        names = ("log_loss", "brier", "calibration_gap")
    return {name: measure(name, score, label) for name in names}
