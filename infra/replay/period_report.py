"""What the report tells of a time by itself: frozen against live, what fired when, and what was refused."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from infra.replay.measures import ReplayedWeek
from infra.replay.replayed import Period


@dataclass(frozen=True, kw_only=True)
class PeriodReport:
    """A period as the report shows it: `fired` are its weeks in which monitoring did not say ignore."""

    name: str
    weeks: int
    frozen: dict[str, float]
    live: dict[str, float]
    decisions: str
    retrains: str
    fired: Sequence[ReplayedWeek]


def weeks_of(period: Period, weeks: Sequence[ReplayedWeek]) -> list[ReplayedWeek]:
    """The weeks that begin within a period."""
    return [week for week in weeks if period.start <= week.start.date() < period.end]


def pool_metric(weeks: Sequence[ReplayedWeek], model: str, name: str) -> float:
    """The mean of a weekly metric, weighted by labelled rows."""
    return float(np.average([getattr(week, model)[name] for week in weeks], weights=[week.labelled for week in weeks]))


def describe_periods(periods: Sequence[Period], weeks: Sequence[ReplayedWeek]) -> list[PeriodReport]:
    """Those periods of which some week was replayed."""
    return [_describe_period(period, inside) for period in periods if (inside := weeks_of(period, weeks))]


def _describe_period(period: Period, weeks: Sequence[ReplayedWeek]) -> PeriodReport:
    names = list(weeks[0].live)
    return PeriodReport(
        name=period.name,
        weeks=len(weeks),
        frozen={name: pool_metric(weeks, "frozen", name) for name in names},
        live={name: pool_metric(weeks, "live", name) for name in names},
        decisions=_count(week.decision for week in weeks),
        retrains=_count(week.retrain_outcome for week in weeks if week.retrain_outcome) or "none",
        fired=[week for week in weeks if week.decision != "ignore"],
    )


def _count(words: Iterable[str]) -> str:
    return ", ".join(f"{word} {count}" for word, count in Counter(words).most_common())


def format_periods(periods: Sequence[PeriodReport]) -> str:
    """The periods, as text."""
    return "\n".join(
        f"{period.name}: {period.weeks} weeks, "
        + ", ".join(f"{name} {period.frozen[name]:.4f} frozen, {period.live[name]:.4f} live" for name in period.live)
        + f"; {period.decisions}; retrains: {period.retrains}"
        for period in periods
    )
