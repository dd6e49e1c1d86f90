"""Whether the metrics of a window lie within the limits of params.yaml, and how sure that is. Pure.

Outside is what is surely outside: its bound is, and whatever the outstanding labels say. Where they could decide it is
unknown. What is not sure is told, triggers nothing, and is looked at again in a window twice as long.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from models.metrics import METRICS, to_loss
from pipeline.fields import INTERVAL_METRICS
from pipeline.monitoring import Limit, Monitor
from pipeline.spec import UseCase
from tasks.monitor.drift import Basis
from tasks.monitor.performance_bounds import MetricBounds, certain, fold

_LOOKS = 2  # at a window, and at one twice as long: both share what may go wrong
_MAX_LOSS = "max_loss"


class PerformanceStatus(StrEnum):
    """How the champion's metrics stand to their limits."""

    OK = "ok"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"


_WORST_FIRST = (PerformanceStatus.DEGRADED, PerformanceStatus.UNKNOWN)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a version showed at the gate, on `rows` of its holdout; `metric` is the one that the gate compares."""

    metric: str
    rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Performance:
    """How the champion, or what was answered in its time, did on the labels that have matured.

    `doubts` say what may be outside its limit and is not surely so, by the key of params.yaml.
    """

    predicted: int
    labelled: int
    coverage: float
    metrics: Mapping[str, float]
    status: PerformanceStatus
    reasons: tuple[str, ...]
    basis: Basis = Basis.RESTATED
    bounds: Mapping[str, MetricBounds] = field(default_factory=dict)
    doubts: Mapping[str, str] = field(default_factory=dict)
    shown: Shown | None = None
    longer: "Performance | None" = None  # of the window twice as long, where this one was in doubt


@dataclass(frozen=True)
class _Finding:
    """A limit that is not surely kept: what follows, and the sentence about it. OK: it is merely in doubt."""

    key: str
    status: PerformanceStatus
    sentence: str


def look_confidence(confidence: float) -> float:
    """That of one look, so that all looks at a window together are as sure as asked."""
    return 1 - (1 - confidence) / _LOOKS


def judge_performance(
    *,
    predicted: int,
    labelled: int,
    metrics: Mapping[str, float],
    monitor: Monitor,
    basis: Basis = Basis.RESTATED,
    bounds: Mapping[str, MetricBounds] | None = None,
    shown: Shown | None = None,
) -> Performance:
    """Whether metrics lie within their limits; unknown while too few of the predictions have a label.

    A metric without `bounds` is taken as it is.
    """
    coverage = labelled / predicted if predicted else 0.0
    reasons = [*_too_few(predicted, labelled, coverage, monitor)]
    # A model without intervals, or with too few of them answered, has none to be judged by.
    limits: dict[str, Limit] = {
        k: limit for k, limit in monitor.limits.items() if k in metrics or k not in INTERVAL_METRICS
    }
    reasons += [f"performance unknown: no {name} could be computed" for name in limits if name not in metrics]
    known = {name: certain(value) for name, value in metrics.items()} | dict(bounds or {})
    found: list[_Finding] = []
    status = PerformanceStatus.UNKNOWN
    if not reasons:
        found = [*_compare_with_limits(known, limits, basis), *_compare_with_shown(known, shown, monitor, basis)]
        said = {each.status for each in found}
        status = next((worst for worst in _WORST_FIRST if worst in said), PerformanceStatus.OK)
        reasons = [each.sentence for each in found if each.status == status != PerformanceStatus.OK]
    return Performance(
        predicted=predicted,
        labelled=labelled,
        coverage=coverage,
        metrics=metrics,
        status=status,
        reasons=tuple(reasons),
        basis=basis,
        bounds=bounds or {},
        doubts={each.key: each.sentence for each in found if each.status == PerformanceStatus.OK},
        shown=shown,
    )


def look_longer(use_case: UseCase, performance: Performance, measure: Callable[[UseCase], Performance]) -> Performance:
    """A judgement that is in doubt, made by a window twice as long, too; `measure` asks it by the limits in doubt."""
    if performance.status != PerformanceStatus.OK or not performance.doubts:
        return performance
    longer = measure(_limit_to(use_case, performance.doubts))
    if longer.status != PerformanceStatus.DEGRADED:
        return replace(performance, longer=longer)
    reasons = tuple(f"{reason}; in a window twice as long, as this one left it open" for reason in longer.reasons)
    return replace(performance, status=longer.status, reasons=reasons, longer=longer)


def _limit_to(use_case: UseCase, keys: Mapping[str, Any]) -> UseCase:
    monitor = use_case.monitor
    limits = {name: limit for name, limit in monitor.limits.items() if name in keys}
    loss = monitor.max_loss if _MAX_LOSS in keys else None
    return use_case.model_copy(update={"monitor": monitor.model_copy(update={"limits": limits, "max_loss": loss})})


def _too_few(predicted: int, labelled: int, coverage: float, monitor: Monitor) -> Iterator[str]:
    if labelled < monitor.min_labelled or coverage < monitor.min_coverage:
        needed = f"needed are {monitor.min_labelled} and {monitor.min_coverage:.0%}"
        yield f"performance unknown: {labelled} of {predicted} predictions have a label, {needed}"


def _compare_with_limits(
    bounds: Mapping[str, MetricBounds], limits: Mapping[str, Limit], basis: Basis
) -> Iterator[_Finding]:
    for name, limit in limits.items():
        if limit.min is not None:
            yield from _compare(name, bounds[name], limit.min, basis, is_least=True)
        if limit.max is not None:
            yield from _compare(name, bounds[name], limit.max, basis, is_least=False)


def _compare(name: str, bounds: MetricBounds, limit: float, basis: Basis, *, is_least: bool) -> Iterator[_Finding]:
    def is_inside(value: float) -> bool:
        return value >= limit if is_least else value <= limit  # NaN is outside

    word, best = ("below", bounds.high) if is_least else ("above", bounds.low)
    said = f"performance as {basis}: {name} {bounds.value:.4f}"
    between = "" if bounds.low is None or bounds.high is None else f" ({bounds.low:.4f} to {bounds.high:.4f})"
    if best is not None and not is_inside(best):
        surely = f", surely ({best:.4f} at best)" if best != bounds.value else ""
        yield _Finding(name, PerformanceStatus.DEGRADED, f"{said} is {word} {limit}{surely}")
    elif is_inside(bounds.least) != is_inside(bounds.most):
        sentence = (
            f"performance unknown: {bounds.outstanding} labels are outstanding, with which {name} {bounds.value:.4f}"
            f" may come to be {bounds.least:.4f} to {bounds.most:.4f}; the limit is {limit}"
        )
        yield _Finding(name, PerformanceStatus.UNKNOWN, sentence)
    elif not is_inside(bounds.most):
        yield _Finding(name, PerformanceStatus.OK, f"{said} may be {word} {limit}, not sure{between}")


def _compare_with_shown(
    bounds: Mapping[str, MetricBounds], shown: Shown | None, monitor: Monitor, basis: Basis
) -> Iterator[_Finding]:
    """Whether the gate's metric is surely worse than it was at the gate, by more than `max_loss`.

    What was shown has luck of its own: as much as the window's, for as many rows.
    """
    if monitor.max_loss is None or shown is None or not {shown.metric} <= bounds.keys() & shown.metrics.keys():
        return
    name = shown.metric
    now = fold(bounds[name]) if name == "bias" else bounds[name]
    then, allowed = to_loss(name, shown.metrics[name]), monitor.max_loss
    ends = [to_loss(name, now.least) - then, to_loss(name, now.most) - then]
    bound = now.high if METRICS[name].is_ranking else now.low
    off = None if bound is None else abs(to_loss(name, bound) - then - min(ends)) * math.sqrt(1 + now.rows / shown.rows)
    said = f"performance as {basis}: worse than it showed at the gate, {name} {now.value:.4f} and {abs(then):.4f}"
    if off is not None and min(ends) - off > allowed:
        sentence = f"{said}: surely by more than {allowed} ({min(ends) - off:.4f} at best)"
        yield _Finding(_MAX_LOSS, PerformanceStatus.DEGRADED, sentence)
    elif min(ends) <= allowed < max(ends):
        sentence = (
            f"{said}, maybe: {now.outstanding} outstanding labels may make it {min(ends):+.4f} to {max(ends):+.4f}"
        )
        yield _Finding(_MAX_LOSS, PerformanceStatus.UNKNOWN, sentence)
    elif min(ends) > allowed:
        yield _Finding(_MAX_LOSS, PerformanceStatus.OK, f"{said}: by more than {allowed}, not sure")
