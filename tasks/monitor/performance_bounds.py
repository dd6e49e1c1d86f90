"""How sure a metric of a window is: one-sided bounds over its blocks, however the labels that are outstanding turn out.

Rows of one block (a day, mostly) are alike, and so are blocks that follow each other. The error is a delete-one-block
jackknife, grown by the correlation of neighbours (tasks/promote/bootstrap.py), with Student's t for so few blocks.
Which labels are outstanding may depend on what they will say (positives that come later), so nothing is assumed of
them: the metric is worked out for the completions that make it smallest and largest (Manski 1989, Journal of Human
Resources 24:343; Horowitz and Manski 2000, JASA 95:77), and each bound is that of its completion.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.metrics import METRICS, weigh_bias
from tasks.promote.bootstrap import Floats, jackknife

Chooser = Callable[[int], tuple[NDArray[np.intp], Floats]]  # a number -> which of the missing scores, and their labels

_SPLITS = 9


@dataclass(frozen=True, kw_only=True)
class WatchedRows:
    """Answers [n] of a window: scores, labels (NaN: none has come) and the blocks that they belong to.

    So many of the rows without a label are `outstanding`, and no one knows which; the others have no outcome.
    """

    score: Floats
    label: Floats
    block: NDArray[np.intp]
    is_serial: bool
    is_binary: bool
    outstanding: int = 0

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """The rows whose label has come [n]."""
        return ~np.isnan(self.label)


@dataclass(frozen=True, kw_only=True)
class MetricBounds:
    """Where a metric lies: `value` by the labels that came, `least` to `most` however the outstanding ones turn out.

    `low` and `high` are one-sided bounds, of `least` and of `most`, each at the asked confidence; None: cannot be told.
    """

    value: float
    least: float
    most: float
    low: float | None
    high: float | None
    outstanding: int = 0
    rows: int = 0  # whose label has come
    blocks: int = 0
    standard_error: float | None = None
    correlation: float = 0.0  # of neighbouring blocks, which the error counts


@dataclass(frozen=True, kw_only=True)
class _Measured:
    value: float
    error: float  # NaN: cannot be told
    correlation: float
    blocks: int

    def off(self, confidence: float) -> float:
        """How far the truth may lie from the value on one side."""
        from scipy.stats import t

        return float(t.ppf(confidence, self.blocks - 1)) * self.error if self.blocks > 1 else math.nan


def certain(value: float) -> MetricBounds:
    """The bounds of a value that is taken as it is."""
    return MetricBounds(value=value, least=value, most=value, low=value, high=value)


def bound_metrics(rows: WatchedRows, names: Iterable[str], *, confidence: float) -> dict[str, MetricBounds]:
    """Bounds of metrics that are defined for the labels that came, by name."""
    return {name: bound_metric(rows, name, confidence=confidence) for name in names}


def bound_metric(rows: WatchedRows, name: str, *, confidence: float) -> MetricBounds:
    """The bounds of one metric; of a bias they are signed."""
    if name == "calibration_gap":
        return fold(bound_metric(rows, "bias", confidence=confidence))
    known = rows.labelled
    seen = _measure(name, rows, rows.score[known], rows.label[known], rows.block[known])
    least = most = seen
    if rows.outstanding:
        least, most = (_measure(name, rows, *_complete(name, rows, to_most=way)) for way in (False, True))
    low, high = least.value - least.off(confidence), most.value + most.off(confidence)
    if METRICS[name].is_share:
        low, high = max(low, 0.0), min(high, 1.0)  # NaN stays what it is
    return MetricBounds(
        value=seen.value,
        least=least.value,
        most=most.value,
        low=_or_none(low),
        high=_or_none(high),
        outstanding=rows.outstanding,
        rows=int(known.sum()),
        blocks=seen.blocks,
        standard_error=_or_none(seen.error),
        correlation=seen.correlation,
    )


def fold(signed: MetricBounds) -> MetricBounds:
    """The bounds of the absolute value."""
    least, most = _fold_range(signed.least, signed.most)
    low = high = None
    if signed.low is not None and signed.high is not None:
        low, high = _fold_range(signed.low, signed.high)
    return replace(signed, value=abs(signed.value), least=least, most=most, low=low, high=high)


def _fold_range(low: float, high: float) -> tuple[float, float]:
    return max(low, -high, 0.0), max(abs(low), abs(high))


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _measure(name: str, rows: WatchedRows, score: Floats, label: Floats, block: NDArray[np.intp]) -> _Measured:
    blocks, code = np.unique(block, return_inverse=True)
    weigh = weigh_bias if name == "bias" else METRICS[name].by_day
    with np.errstate(divide="ignore", invalid="ignore"):  # without one of its blocks a metric may not be defined
        of_blocks = weigh(score, label, code, len(blocks))
        value = float(of_blocks(np.ones((1, len(blocks))))[0])
        error, correlation = jackknife(of_blocks, len(blocks), None if rows.is_serial else 0.0)
    return _Measured(value=value, error=error, correlation=correlation, blocks=len(blocks))


def _complete(name: str, rows: WatchedRows, *, to_most: bool) -> tuple[Floats, Floats, NDArray[np.intp]]:
    """Scores, labels and blocks of the labelled rows, and of those outstanding ones that move a metric furthest.

    How many do is searched for, twice by `_SPLITS` numbers.
    """
    known, metric = rows.labelled, METRICS[name]
    score, label, missing = rows.score[known], rows.label[known], rows.score[~known]
    choose = (_choose_ranked if metric.is_ranking else _choose_distant)(name, rows, missing, to_most=to_most)

    def compute(count: int) -> float:
        taken, labels = choose(count)
        value = metric.compute(np.append(score, missing[taken]), np.append(label, labels))
        return value if to_most else -value

    low, high, best = 0, rows.outstanding, 0
    for _ in range(2):
        tried = np.unique(np.linspace(low, high, _SPLITS).round().astype(int)).tolist()
        best = max(tried, key=compute)
        place = tried.index(best)
        low, high = tried[max(place - 1, 0)], tried[min(place + 1, len(tried) - 1)]
    taken, labels = choose(best)
    return (
        np.append(score, missing[taken]),
        np.append(label, labels),
        np.append(rows.block[known], rows.block[~known][taken]),
    )


def _choose_ranked(_name: str, rows: WatchedRows, missing: Floats, *, to_most: bool) -> Chooser:
    """All that are outstanding: so many positives from one end of the missing scores [n], negatives from the other."""
    order, total = np.argsort(missing, kind="stable"), rows.outstanding
    order = order[::-1] if to_most else order

    def choose(positives: int) -> tuple[NDArray[np.intp], Floats]:
        taken = np.concatenate([order[:positives], order[len(order) - (total - positives) :]])
        return taken, (np.arange(total) < positives).astype(np.float64)

    return choose


def _choose_distant(name: str, rows: WatchedRows, missing: Floats, *, to_most: bool) -> Chooser:
    """So many of the missing scores [n], those first that lie furthest from a label (or, to the least, nearest to one).

    A loss grows with that distance. A number's label is taken to lie between those that were seen.
    """
    seen = rows.label[rows.labelled]
    lowest, highest = (0.0, 1.0) if rows.is_binary else (float(seen.min()), float(seen.max()))
    if name == "bias":
        label, distance = np.full(len(missing), lowest if to_most else highest), missing
    else:
        scale = (lambda v: np.log1p(np.maximum(v, 0))) if METRICS[name].from_zero else np.asarray
        is_nearer_highest = scale(highest) - scale(missing) < scale(missing) - scale(lowest)
        if to_most or rows.is_binary:
            label = np.where(is_nearer_highest != to_most, highest, lowest)
        else:
            label = np.clip(missing, lowest, highest)
        distance = abs(scale(missing) - scale(label))
    order = np.argsort(-distance if to_most else distance, kind="stable")
    return lambda count: (order[:count], label[order[:count]])
