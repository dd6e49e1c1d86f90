"""Whether the metrics of a window lie within the limits of params.yaml. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.fields import INTERVAL_METRICS
from pipeline.spec import Limit, Monitor
from tasks.monitor.drift import Basis


class PerformanceStatus(StrEnum):
    """How the champion's metrics stand to their limits."""

    OK = "ok"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class Performance:
    """How the champion, or what was answered in its time, did on the labels that have matured."""

    predicted: int
    labelled: int
    coverage: float
    metrics: Mapping[str, float]
    status: PerformanceStatus
    reasons: tuple[str, ...]
    basis: Basis = Basis.RESTATED


def judge_performance(
    *,
    predicted: int,
    labelled: int,
    metrics: Mapping[str, float],
    monitor: Monitor,
    basis: Basis = Basis.RESTATED,
) -> Performance:
    """Whether metrics lie within their limits; unknown while too few of the predictions have a label."""
    coverage = labelled / predicted if predicted else 0.0
    status = PerformanceStatus.UNKNOWN
    reasons = [*_too_few(predicted, labelled, coverage, monitor)]
    # A model without intervals, or with too few of them answered, has none to be judged by.
    limits: dict[str, Limit] = {
        k: limit for k, limit in monitor.limits.items() if k in metrics or k not in INTERVAL_METRICS
    }
    reasons += [f"performance unknown: no {name} could be computed" for name in limits if name not in metrics]
    if not reasons:
        reasons = [*_outside_limits(metrics, limits, basis)]
        status = PerformanceStatus.DEGRADED if reasons else PerformanceStatus.OK
    return Performance(
        predicted=predicted,
        labelled=labelled,
        coverage=coverage,
        metrics=metrics,
        status=status,
        reasons=tuple(reasons),
        basis=basis,
    )


def _too_few(predicted: int, labelled: int, coverage: float, monitor: Monitor) -> Iterator[str]:
    if labelled < monitor.min_labelled or coverage < monitor.min_coverage:
        needed = f"needed are {monitor.min_labelled} and {monitor.min_coverage:.0%}"
        yield f"performance unknown: {labelled} of {predicted} predictions have a label, {needed}"


def _outside_limits(metrics: Mapping[str, float], limits: Mapping[str, Limit], basis: Basis) -> Iterator[str]:
    for name, limit in limits.items():
        value = metrics[name]
        if limit.min is not None and not value >= limit.min:  # written so that NaN is outside
            yield f"performance as {basis}: {name} {value:.4f} is below {limit.min}"
        if limit.max is not None and not value <= limit.max:
            yield f"performance as {basis}: {name} {value:.4f} is above {limit.max}"
