"""What a window's metrics will be once its labels come: an estimate, an interval, and whether these have held. Pure.

Each row is given the label (of a regression: the error) of a matured row whose score was near, drawn 200 times. Scores
need not be calibrated; what the draws differ by is the luck of labels, and of the days that the matured rows are of.
How many times that spread the estimates of past windows were off makes the interval, by split conformal prediction:
what changes in the meaning of a score is seen in no score, only in how far estimates were off. So an estimate is used
where the intervals before it held, and no longer.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import ceil
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.metrics import METRICS, Vector, compute_metrics
from pipeline.monitoring import Monitor

COVERAGE = 0.9  # of the intervals
MIN_WINDOWS = 8  # matured ones, before an estimate is trusted
_LATEST_WINDOWS = 20  # by which trust is judged
_PAST_WINDOWS = 50  # by which intervals are made
_DOUBT = 0.05  # more misses than this chance allows are too many
_DRAWS = 200
_NEIGHBOURS = 100  # to each side at most, and at most one in _NEIGHBOUR_SHARE of the matured rows
_NEIGHBOUR_SHARE = 50
_MOST_ROWS = 50_000  # drawn from at most, evenly spread
_ROUNDING = 1e-12  # draws that differ by less do not


class Trust(StrEnum):
    """Whether the estimates of a metric may be acted on; the values are stored."""

    UNPROVEN = "unproven"  # too few of the windows estimated have their labels
    TRUSTED = "trusted"
    WITHDRAWN = "withdrawn"  # the newest interval missed, or too many of the latest did


@dataclass(frozen=True, kw_only=True)
class MaturedRows:
    """Scores [n] of one model, their labels [n], and the days [n] of their predictions, as `datetime64[D]`."""

    score: Vector
    label: Vector
    day: NDArray[Any]

    def __len__(self) -> int:
        return len(self.score)


@dataclass(frozen=True, kw_only=True)
class MetricEstimate:
    """What a metric is expected to be, what its draws differed by, its interval, and whether it may be acted on."""

    value: float
    spread: float
    low: float
    high: float
    trust: Trust


@dataclass(frozen=True, kw_only=True)
class MaturedEstimate:
    """An estimate, and what the metric turned out to be."""

    estimate: MetricEstimate
    realised: float

    @property
    def has_held(self) -> bool:
        """Whether the interval held the metric."""
        return self.estimate.low <= self.realised <= self.estimate.high

    @property
    def spreads_off(self) -> float:
        """How many times its spread the estimate was off."""
        return abs(self.realised - self.estimate.value) / self.estimate.spread


def estimate_window(
    kind: str, score: Vector, matured: MaturedRows, past: Mapping[str, Sequence[MaturedEstimate]], *, seed: int
) -> dict[str, MetricEstimate]:
    """Every metric of scores [n] without labels that the matured rows tell of; `past` by metric, oldest first."""
    estimates = {}
    for name, (value, spread) in draw_metrics(kind, score, matured, seed=seed).items():
        before = past.get(name, ())
        reach = count_spreads(before) * spread
        low, high = value - reach, value + reach
        if METRICS[name].is_share:
            low, high = max(low, 0.0), min(high, 1.0)
        estimates[name] = MetricEstimate(value=value, spread=spread, low=low, high=high, trust=judge_trust(before))
    return estimates


def draw_metrics(kind: str, score: Vector, matured: MaturedRows, *, seed: int) -> dict[str, tuple[float, float]]:
    """The mean and standard deviation of each metric over draws of labels; none of what never differed."""
    rng = np.random.default_rng(seed)
    score = np.sort(score[_spread_evenly(len(score))])  # sorted, each draw takes a third of the time
    chosen = _spread_evenly(len(matured))
    order = chosen[np.argsort(matured.score[chosen], kind="stable")]
    known_score, known_label = matured.score[order], matured.label[order]
    _, day = np.unique(matured.day[order], return_inverse=True)
    days = day.max() + 1
    drawn: dict[str, list[float]] = defaultdict(list)
    for _ in range(_DRAWS):
        times = rng.multinomial(days, np.full(days, 1 / days))  # how often each day is drawn
        kept = np.repeat(np.arange(len(order)), times[day])
        near = kept[_draw_neighbours(score, known_score[kept], rng)]
        label = known_label[near]
        if kind == "regression":
            label = np.clip(label + score - known_score[near], known_label.min(), known_label.max())
        for name, value in compute_metrics(kind, score, label).items():
            drawn[name].append(value)
    found = {name: (float(np.mean(each)), float(np.std(each, ddof=1))) for name, each in drawn.items()}
    return {name: both for name, both in found.items() if both[1] > _ROUNDING and len(drawn[name]) == _DRAWS}


def count_spreads(past: Sequence[MaturedEstimate]) -> float:
    """How many spreads an interval reaches to each side: the quantile of past windows that holds COVERAGE of new ones.

    Of fewer than nine the largest, and not less than if all were due to the luck that the draws have.
    """
    off = sorted(each.spreads_off for each in past[-_PAST_WINDOWS:])
    rank = ceil((len(off) + 1) * COVERAGE)
    if rank <= len(off):
        return off[rank - 1]
    return max([NormalDist().inv_cdf((1 + COVERAGE) / 2), *off])


def judge_trust(past: Sequence[MaturedEstimate]) -> Trust:
    """Whether the next estimate may be acted on, by those whose labels have come, oldest first.

    A miss withdraws trust until an interval holds again, so that no two in a row are acted on where labels come within
    a partition.
    """
    from scipy.stats import binom

    if len(past) < MIN_WINDOWS:
        return Trust.UNPROVEN
    latest = past[-_LATEST_WINDOWS:]
    missed = sum(not each.has_held for each in latest)
    by_chance = binom.sf(missed - 1, len(latest), 1 - COVERAGE)  # of so many, or more
    return Trust.TRUSTED if latest[-1].has_held and by_chance >= _DOUBT else Trust.WITHDRAWN


def find_expected_breaches(estimates: Mapping[str, MetricEstimate], monitor: Monitor) -> Iterator[str]:
    """A sentence for each trusted estimate whose whole interval lies outside the limit of its metric."""
    for name, limit in monitor.limits.items():
        estimate = estimates.get(name)
        if estimate is None or estimate.trust != Trust.TRUSTED:
            continue
        told = f"expected {name} {estimate.value:.4f}, from {estimate.low:.4f} to {estimate.high:.4f}"
        if limit.min is not None and estimate.high < limit.min:
            yield f"{told}, is below the limit {limit.min}; labels are still to come"
        if limit.max is not None and estimate.low > limit.max:
            yield f"{told}, is above the limit {limit.max}; labels are still to come"


def _spread_evenly(rows: int) -> NDArray[np.intp]:
    return np.unique(np.linspace(0, rows - 1, min(rows, _MOST_ROWS)).astype(np.intp))


def _draw_neighbours(score: Vector, known_score: Vector, rng: np.random.Generator) -> NDArray[np.intp]:
    """For each score [n] the place of one of the nearest known scores [m], which are sorted; ties alike."""
    count = len(known_score)
    reach = min(max(count // _NEIGHBOUR_SHARE, 1), _NEIGHBOURS)
    first, last = (np.searchsorted(known_score, score, side) for side in ("left", "right"))
    middle = np.clip(rng.integers(first, last + 1), reach, max(count - reach, reach))
    near: NDArray[np.intp] = np.minimum(middle + rng.integers(-reach, reach, len(score)), count - 1)
    return near
