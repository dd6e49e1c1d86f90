"""The numbers of a use case's block, derived from a profile: partitions, row limits, days of validation, ages, volumes.

Each is chosen so that what `make check-use-case` asks of it holds; where the rows do not allow that, it is said.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from statistics import median

import numpy as np

from infra.new_use_case.answers import Answers
from infra.new_use_case.profile import DayProfile, TableProfile
from pipeline.fields import BLOCK_DAYS, FEWEST_BLOCKS, default_block

DAILY_ROWS = 20_000  # a day that has so many is a partition of its own
_MIN_DAYS = 7  # of a holdout, in which every weekday comes once
_MOST_DAYS = 28
_SHARE = 8  # validation and holdout take so small a part of all days
_LEAST_POINTS = 500  # of a partition: monitoring compares no fewer
_HALF = 0.5
_ROOM = 1.2
_DAY_HOURS = 24


@dataclass(frozen=True, kw_only=True)
class PartitionProfile:
    """What a whole partition has. `stale_hours` lie between its newest row and its end."""

    first_day: date
    rows: int
    points: int
    labelled: int
    stale_hours: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Values of the block. Volumes are what weak partitions had, halved; `days` are those of whole partitions."""

    partition_days: int
    partitions: int
    days: int
    first_partition: date
    earlier_rows: int  # before it
    last_partition: date | None
    low_rows: int  # of partitions, at the 5 % and 95 % quantiles, and the most
    high_rows: int
    most_rows: int
    min_rows: int
    max_rows: int
    exempt: tuple[date, ...]
    fresh_hours: int | None
    day_points: float  # a day of a weak partition has so many
    day_labels: float
    validation_days: int
    holdout_days: int
    train_min_rows: int
    batch_rows: int
    gate_min_rows: int
    monitor_min_rows: int
    performance_days: int
    min_labelled: int
    coverage: float  # the share of points whose label comes by the label delay
    min_coverage: float
    max_age_days: int
    new_rows_share: float
    max_new_rows_share: float


def make_plan(profile: TableProfile, answers: Answers, today: date) -> Plan:
    """All of it, as of a day (UTC).

    Raises:
        ValueError: the rows are too few, or not known in time: all of it, with what there is and what is needed.
    """
    problems = list(_find_late(profile, answers))
    length = 1 if median(day.rows for day in profile.days) >= DAILY_ROWS else 7
    if not (parts := _cut(profile.days, length)):
        problems.append(f"expected rows of whole partitions of {length} days, got rows of {len(profile.days)} days")
        raise ValueError("\n".join(problems))
    delay = answers.label_delay_hours / _DAY_HOURS + answers.lead_minutes / (60 * _DAY_HOURS)
    days = len(parts) * length
    share = min(days // _SHARE, _MOST_DAYS)
    least = max(_MIN_DAYS, FEWEST_BLOCKS * BLOCK_DAYS[default_block(answers.label_delay_hours)])
    holdout = _round_up(max(least, share), length)
    validation = _round_up(max(_MIN_DAYS, share), length)
    behind = holdout + 2 * delay
    if days < (needs := math.ceil(behind + delay) + 2 * validation + 3 * length):
        problems.append(
            f"{profile.relation} has {days} days in whole partitions, and a training needs {needs}: holdout {holdout},"
            f" validation {validation}, as much to learn from, and labels that come {answers.label_delay_hours} hours"
            " after the event (--label-delay-hours)"
        )
    rows = [part.rows for part in parts]
    settled = [part for part in parts if _is_settled(part, parts[-1], length, delay)]
    points, labels = _weak([p.points for p in parts]) / length, _weak([p.labelled for p in settled]) / length
    if profile.asked_share >= _HALF and points * length < _LEAST_POINTS * _ROOM:
        problems.append(
            f"{profile.relation}: a weak partition of {length} days has {points * length:.0f} rows to predict, expected"
            f" {_LEAST_POINTS * _ROOM:.0f}, a fifth more than monitoring compares at least. Predicted is what is known"
            f" --lead-minutes ({answers.lead_minutes}) before its event: set fewer, or, as --table, a view of the time"
            " from which on there are more rows, or a table with more events"
        )
    if problems:
        raise ValueError("\n".join(problems))
    low, high = (int(np.quantile(rows, q)) for q in (0.05, 0.95))
    min_rows = max(1, _round_down(low * _HALF))
    stale = _find_rhythm(parts, length)
    exempt = tuple(p.first_day for p in parts if p.rows < min_rows or (stale is not None and p.stale_hours > stale))
    history = days - holdout - delay - 3 * length
    performance = 2 * length if length == 7 else 7
    coverage = sum(p.labelled for p in settled) / max(1, sum(p.points for p in settled))
    new_share = length / history
    train_rows = max(100, _round_down(labels * (days - behind - validation) * _HALF))
    return Plan(
        partition_days=length,
        partitions=len(parts),
        days=days,
        first_partition=parts[0].first_day,
        earlier_rows=sum(day.rows for day in profile.days if day.day < parts[0].first_day),
        last_partition=parts[-1].first_day if _has_ended(parts[-1], length, today) else None,
        low_rows=low,
        high_rows=high,
        most_rows=max(rows),
        min_rows=min_rows,
        max_rows=_round_up_digits(max(2 * high, max(rows) * _ROOM)),
        exempt=exempt,
        fresh_hours=stale,
        day_points=points,
        day_labels=labels,
        validation_days=validation,
        holdout_days=holdout,
        train_min_rows=train_rows,
        batch_rows=max(32, min(1024, 2 ** int(math.log2(max(2, train_rows / 8))))),
        gate_min_rows=max(1, _round_down(labels * holdout * _HALF)),
        monitor_min_rows=max(_LEAST_POINTS, _round_down(points * length * _HALF)),
        performance_days=performance,
        min_labelled=max(1, _round_down(labels * performance * _HALF)),
        coverage=coverage,
        min_coverage=min(0.9, math.floor((coverage - 0.05) * 100) / 100),
        max_age_days=_MOST_DAYS,
        new_rows_share=new_share,
        max_new_rows_share=max(1.0, math.ceil(20 * new_share) / 10),
    )


def _find_late(profile: TableProfile, answers: Answers) -> Iterator[str]:
    if profile.asked_share < _HALF:
        yield (
            f"--available-at, --lead-minutes: {profile.asked_share:.0%} of the rows of {profile.relation} became known"
            f" ({answers.available_at}) {answers.lead_minutes} minutes before their event ({answers.event_time}), and"
            " only such can be predicted: name the column that says when the row was first written, or a shorter lead"
        )
    if profile.label_hours > answers.label_delay_hours:
        yield (
            f"--label-delay-hours: {answers.label_delay_hours}, and 99% of the targets are known only"
            f" {profile.label_hours:.1f} hours after the event: expected at least {math.ceil(profile.label_hours)}"
        )
    if profile.target.distance == 0 or (answers.kind == "binary" and profile.target.mean in (0.0, 1.0)):
        yield f"--target: {answers.target} is {profile.target.median:g} in practically every row"


def _cut(days: Sequence[DayProfile], length: int) -> list[PartitionProfile]:
    """Whole partitions: from the first Monday, or day; without a beginning in which the table was hardly filled."""
    start = next((n for n, day in enumerate(days) if length == 1 or day.day.isoweekday() == 1), len(days))
    parts = [_sum_up(days[n : n + length]) for n in range(start, len(days) - length + 1, length)]
    typical = median(part.rows for part in parts) if parts else 0
    first = next((n for n, part in enumerate(parts) if part.rows >= typical / 4), 0)
    return parts[first:] if typical else []


def _sum_up(days: Sequence[DayProfile]) -> PartitionProfile:
    end = datetime.combine(days[-1].day + timedelta(days=1), datetime.min.time(), UTC)
    latest = max((day.latest for day in days if day.latest is not None), default=None)
    return PartitionProfile(
        first_day=days[0].day,
        rows=sum(day.rows for day in days),
        points=sum(day.points for day in days),
        labelled=sum(day.labelled for day in days),
        stale_hours=(end - latest).total_seconds() / 3600 if latest else math.inf,
    )


def _is_settled(part: PartitionProfile, last: PartitionProfile, length: int, delay: float) -> bool:
    """Whether the labels of its points have come, as far as the table says."""
    return (last.first_day - part.first_day).days >= delay + length


def _weak(counts: Sequence[int]) -> float:
    return float(np.quantile(counts, 0.1)) if counts else 0.0


def _find_rhythm(parts: Sequence[PartitionProfile], length: int) -> int | None:
    """How old the newest row may be at the end of a partition; None: there is no rhythm to keep."""
    usual = float(np.quantile([part.stale_hours for part in parts], 0.95))
    hours = max(6, math.ceil(2 * usual)) if math.isfinite(usual) else length * _DAY_HOURS
    return hours if hours <= length * _DAY_HOURS / 2 else None


def _has_ended(last: PartitionProfile, length: int, today: date) -> bool:
    return (today - last.first_day).days > 3 * length + _MIN_DAYS


def _round_up(days: float, length: int) -> int:
    return math.ceil(days / length) * length


def _round_down(value: float) -> int:
    """To two digits."""
    scale = 10 ** max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 1
    return math.floor(value / scale) * scale


def _round_up_digits(value: float) -> int:
    scale = 10 ** max(0, math.floor(math.log10(value)) - 1) if value >= 1 else 1
    return math.ceil(value / scale) * scale
