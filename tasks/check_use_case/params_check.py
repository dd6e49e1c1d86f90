"""Whether the keys of a use case's block agree with each other: what would stop, or never end, weeks later."""

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from croniter import croniter

from pipeline.fields import FEWEST_BLOCKS, RANKINGS
from pipeline.partitions import utc
from pipeline.spec import UseCase
from tasks.check_use_case.mistakes import Mistake, in_params

_DAY = timedelta(days=1)
_FIRES_READ = 12


def check_params(use_case: UseCase, today: date) -> Iterator[Mistake]:
    """What contradicts what, as of a day (UTC)."""
    yield from check_training_params(use_case, today)
    yield from _check_schedule(use_case)
    yield from _check_monitor(use_case)


def check_training_params(use_case: UseCase, today: date) -> Iterator[Mistake]:
    """Of these what bears on a training of a day, its verdict, and how its model would answer."""
    yield from _check_split(use_case, today)
    yield from _check_train(use_case)
    yield from _check_gate(use_case)
    yield from _check_endpoint(use_case)


def _count_days_not_learnt(use_case: UseCase) -> float:
    """How many of the newest days a search cannot fit on: holdout, validation, and the label lag at the end of each."""
    return use_case.train.holdout_days + use_case.train.validation_days + 3 * (use_case.time.label_lag / _DAY)


def _check_split(use_case: UseCase, today: date) -> Iterator[Mistake]:
    time, train, source = use_case.time, use_case.train, use_case.source
    if use_case.source.first_partition > today:
        yield in_params("source.first_partition", f"{source.first_partition} lies in the future", f"at most {today}")
        return
    last = source.last_partition + source.partition_days * _DAY if source.last_partition else today
    has, needs = (last - source.first_partition).days, _count_days_not_learnt(use_case)
    if has < needs + source.partition_days:
        yield in_params(
            "source.first_partition",
            f"{source.first_partition}: {has} days lie between it and {last}, and a training takes {needs:g} of them"
            f" for validation (train.validation_days {train.validation_days}), holdout (train.holdout_days"
            f" {train.holdout_days}) and, three times, labels that are to come (time.label_delay_hours"
            f" {time.label_delay_hours}, time.lead_minutes {time.lead_minutes})",
            f"a day at least {math.ceil(needs) + 2 * source.partition_days} days before {last}, or fewer of these days",
        )


def _check_schedule(use_case: UseCase) -> Iterator[Mistake]:
    source, length = use_case.source, timedelta(days=use_case.source.partition_days)
    begin = utc(source.first_partition) - timedelta(seconds=1)
    fires = [each.astimezone(UTC) for each in _read_fires(source.cron, begin, _FIRES_READ)]
    gaps = [later - earlier for earlier, later in pairwise(fires)]
    if any(gap != length for gap in gaps):
        odd = next(gap for gap in gaps if gap != length)
        yield in_params(
            "source.cron",
            f"{source.cron!r} comes after {odd / _DAY:g} days, and a partition has {source.partition_days}"
            " (source.partition_days): partitions would be missed, or taken before they end",
            f"one that comes every {source.partition_days} days, such as {_suggest_cron(use_case)!r}",
        )
    elif (late := (fires[0] - utc(source.first_partition)) % length) >= _DAY:
        yield in_params(
            "source.cron",
            f"{source.cron!r} comes {late / _DAY:g} days after the end of each partition, which begin on a"
            f" {source.first_partition:%A} (source.first_partition)",
            f"{_suggest_cron(use_case)!r}, or a first_partition on a {fires[0]:%A}",
        )
    if source.horizon_seconds >= length.total_seconds():
        yield in_params(
            "source.horizon_seconds",
            f"{source.horizon_seconds:g}: a row could come after its whole partition has ended"
            f" (source.partition_days {source.partition_days})",
            f"less than {length.total_seconds():g}",
        )


def _read_fires(cron: str, begin: datetime, count: int) -> list[datetime]:
    fires = croniter(cron, begin)
    return [fires.get_next(datetime) for _ in range(count)]


def _suggest_cron(use_case: UseCase) -> str:
    days = use_case.source.partition_days
    if days == 7:
        return f"0 0 * * {use_case.source.first_partition.isoweekday() % 7}"
    return "0 0 * * *" if days == 1 else f"0 0 */{days} * *"


def _check_train(use_case: UseCase) -> Iterator[Mistake]:
    train = use_case.train
    if train.trials_at_once > train.trials:
        yield in_params(
            "train.trials_at_once",
            f"{train.trials_at_once} of {train.trials} (train.trials) can never be under way",
            f"at most {train.trials}",
        )
    if train.batch_rows > train.min_rows:
        yield in_params(
            "train.batch_rows",
            f"{train.batch_rows}: a training of train.min_rows ({train.min_rows}) would not fill one batch",
            f"at most {train.min_rows}",
        )


def _check_gate(use_case: UseCase) -> Iterator[Mistake]:
    gate, alarm = use_case.gate, use_case.gate.leak_alarm
    if gate.slices and gate.min_slice_rows > gate.min_rows:
        yield in_params(
            "gate.min_slice_rows",
            f"{gate.min_slice_rows}: a slice of a holdout of gate.min_rows ({gate.min_rows}) is never as large",
            f"less than {gate.min_rows}",
        )
    limit = use_case.monitor.limits.get(alarm.metric)
    if limit is None:
        return
    if alarm.metric in RANKINGS and alarm.above is not None and limit.min is not None and limit.min >= alarm.above:
        yield in_params(
            f"monitor.limits.{alarm.metric}",
            f"min {limit.min}: a model that good is refused as too good to be true (gate.leak_alarm.above"
            f" {alarm.above})",
            f"min less than {alarm.above}, or a higher gate.leak_alarm.above",
        )
    if alarm.below is not None and limit.max is not None and limit.max <= alarm.below:
        yield in_params(
            f"monitor.limits.{alarm.metric}",
            f"max {limit.max}: a model that good is refused as too good to be true (gate.leak_alarm.below"
            f" {alarm.below})",
            f"max more than {alarm.below}, or a lower gate.leak_alarm.below",
        )


def _check_monitor(use_case: UseCase) -> Iterator[Mistake]:
    monitor, source = use_case.monitor, use_case.source
    if monitor.max_age_days <= source.partition_days:
        yield in_params(
            "monitor.max_age_days",
            f"{monitor.max_age_days}: a champion is that old at the end of its first partition"
            f" (source.partition_days {source.partition_days}), so each would be retrained at once",
            f"more than {source.partition_days}, such as {4 * source.partition_days}",
        )
    if monitor.performance_days < source.partition_days:
        yield in_params(
            "monitor.performance_days",
            f"{monitor.performance_days}: a partition has {source.partition_days} days (source.partition_days), and"
            " some of them would never be judged",
            f"at least {source.partition_days}",
        )
    elif monitor.performance_days < FEWEST_BLOCKS:
        yield in_params(
            "monitor.performance_days",
            f"{monitor.performance_days}: by so few days hardly any metric is surely outside monitor.limits",
            f"at least {FEWEST_BLOCKS}",
        )
    spread = (monitor.breaker_refusals - 1) * source.partition_days
    if spread >= monitor.breaker_days:
        yield in_params(
            "monitor.breaker_days",
            f"{monitor.breaker_days}: {monitor.breaker_refusals} refusals (monitor.breaker_refusals) are at least"
            f" {spread} days apart (source.partition_days {source.partition_days}), so the breaker never opens",
            f"more than {spread}",
        )


def _check_endpoint(use_case: UseCase) -> Iterator[Mistake]:
    endpoint, source = use_case.endpoint, use_case.source
    if endpoint is None:
        return
    hours = source.partition_days * 24
    if source.follow is None and endpoint.max_feature_age_hours < hours:
        yield in_params(
            "endpoint.max_feature_age_hours",
            f"{endpoint.max_feature_age_hours:g}: without source.follow the history is up to {hours} hours old before"
            " the next partition comes, and every answer then would say that it is degraded",
            f"at least {hours + 24}, or follow the source",
        )
