"""How well did batch do? Metrics of each network's batch scores on matured labels, restated when late labels come.

However often it was recalibrated: a network is named by the version that was trained, and judged by what was answered.

A window ends one label lag before the data time it is measured at, so that practically every label has matured.
Labels that come later still are not dropped: the windows they fall into are measured again, as a new row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

from adapters.connect import Outside
from models.metrics import compute_metrics
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.monitor.interval_quality import measure_intervals
from tasks.monitor.judged_rows import judge_rows, measure_references
from tasks.monitor.performance_limits import Performance, look_longer

_VERSIONS = """
select distinct network_version from network_predictions
where use_case = %s and prediction_time >= %s and prediction_time < %s order by network_version
"""
# A number that differs wherever a label does; the sum of a window's does not depend on the order of its rows.
LABEL_FINGERPRINT = (
    "('x' || left(md5(concat_ws('|', o.entity_key, extract(epoch from o.event_time), o.label)), 15))::bit(60)::bigint"
)
# Ordered, so that the last bits of the metrics are the same each time.
_LABELLED = f"""
select p.entity_key, p.event_time, p.score, p.lower, p.upper, p.prediction_time, o.label,
    {LABEL_FINGERPRINT} as fingerprint
from network_predictions p left join outcomes o
    on o.use_case = p.use_case and o.entity_key = p.entity_key and o.event_time = p.event_time and o.label_time <= %s
where p.use_case = %s and p.network_version = %s and p.prediction_time >= %s and p.prediction_time < %s
order by p.prediction_time, p.entity_key collate "C", p.event_time
"""  # noqa: S608  # our own expression
# Earlier windows of a table whose latest row saw fewer labels than are known now, or, after a correction, others.
_CHANGED = f"""
with latest as (
    select distinct on (model_version, window_start, window_end) model_version, window_start, window_end, labelled,
        labels
    from {{table}} where use_case = %(use_case)s and measured_as_of < %(as_of)s
    order by model_version, window_start, window_end, measured_as_of desc
)
select w.model_version, w.window_start, w.window_end from latest w
join network_predictions p on p.use_case = %(use_case)s and p.network_version = w.model_version
    and p.prediction_time >= w.window_start and p.prediction_time < w.window_end
join outcomes o on o.use_case = p.use_case and o.entity_key = p.entity_key and o.event_time = p.event_time
    and o.label_time <= %(as_of)s
where w.window_end < %(window_end)s
group by w.model_version, w.window_start, w.window_end, w.labelled, w.labels
having count(*) <> w.labelled or sum({LABEL_FINGERPRINT})::text <> w.labels
order by w.window_start, w.model_version
"""  # noqa: S608  # our own expression


@dataclass(frozen=True, kw_only=True)
class WindowPerformance:
    """One row of the performance table."""

    model_version: str
    window: Interval
    as_of: datetime
    performance: Performance
    labels: str | None  # a fingerprint of the labels it was measured with; None without any
    references: Mapping[str, Any] = field(default_factory=dict)  # others, on the same rows; of the champion's newest


@dataclass(frozen=True, kw_only=True)
class MeasuredWindow:
    """A version's rows of a window, and the metrics of those that have a label."""

    rows: pa.Table
    labelled: int
    metrics: Mapping[str, float]
    labels: str | None  # a fingerprint; None without any


def trailing_window(use_case: UseCase, as_of: datetime, lengths: int = 1) -> Interval:
    """The predictions measured at a data time: the latest days whose labels have had their time to mature."""
    end = as_of - use_case.time.label_lag
    return Interval(end - lengths * timedelta(days=use_case.monitor.performance_days), end)


def measure_window(
    use_case: UseCase, model_version: str, window: Interval, as_of: datetime, outside: Outside
) -> WindowPerformance:
    """One model version's performance on a window, by the labels known at a data time."""
    measured = measure_rows(use_case, model_version, window, as_of, outside)
    return _judge(use_case, model_version, measured, window, as_of, outside)


def measure_rows(
    use_case: UseCase, model_version: str, window: Interval, as_of: datetime, outside: Outside
) -> MeasuredWindow:
    """What is judged of a window, by the labels known at a data time."""
    with outside.warehouse.transaction(snapshot=True) as at:
        params = (as_of, use_case.name, model_version, window.start, window.end)
        rows = outside.warehouse.copy_out(_LABELLED, params, at=at)
    labelled = rows.filter(rows["label"].is_valid())
    score, label = labelled["score"].to_numpy(), labelled["label"].to_numpy()
    metrics = compute_metrics(use_case.target.kind, score, label) if labelled.num_rows else {}
    return MeasuredWindow(
        rows=rows,
        labelled=labelled.num_rows,
        metrics=metrics | measure_intervals(use_case, labelled, [model_version] * labelled.num_rows, outside),
        labels=str(sum(labelled["fingerprint"].to_pylist())) if labelled.num_rows else None,
    )


def _judge(  # noqa: PLR0917  # the order is that of `measure_rows`
    use_case: UseCase, version: str, measured: MeasuredWindow, window: Interval, as_of: datetime, outside: Outside
) -> WindowPerformance:
    return WindowPerformance(
        model_version=version,
        window=window,
        as_of=as_of,
        performance=judge_rows(
            use_case, version, measured.rows, window, outside, metrics=measured.metrics, as_of=as_of
        ),
        labels=measured.labels,
    )


def measure_performance(
    use_case: UseCase, champion_version: str, as_of: datetime, outside: Outside
) -> list[WindowPerformance]:
    """The champion's performance first, then that of the others who predicted in its window, then the restatements."""
    window = trailing_window(use_case, as_of)
    rows = outside.warehouse.query(_VERSIONS, (use_case.name, window.start, window.end))
    others = [row["network_version"] for row in rows if row["network_version"] != champion_version]
    measured = [(version, window) for version in others]
    measured += find_changed_windows("performance", use_case, as_of, outside)
    champion = _measure_champion(use_case, champion_version, window, as_of, outside)
    return [champion, *(measure_window(use_case, version, each, as_of, outside) for version, each in measured)]


def _measure_champion(
    use_case: UseCase, version: str, window: Interval, as_of: datetime, outside: Outside
) -> WindowPerformance:
    def measure_longer(limited: UseCase) -> Performance:
        longer = trailing_window(use_case, as_of, lengths=2)
        return measure_window(limited, version, longer, as_of, outside).performance

    measured = measure_rows(use_case, version, window, as_of, outside)
    judged = _judge(use_case, version, measured, window, as_of, outside)
    return replace(
        judged,
        performance=look_longer(use_case, judged.performance, measure_longer),
        references=measure_references(use_case, version, measured.rows, window, outside),
    )


def find_changed_windows(
    table: Literal["performance", "served_performance", "expected_performance"],
    use_case: UseCase,
    as_of: datetime,
    outside: Outside,
) -> list[tuple[str, Interval]]:
    """The model versions and windows of a table before the one measured at a data time whose labels have changed."""
    params = {"use_case": use_case.name, "as_of": as_of, "window_end": trailing_window(use_case, as_of).end}
    return [
        (row["model_version"], Interval(row["window_start"], row["window_end"]))
        for row in outside.warehouse.query(_CHANGED.format(table=table), params)
    ]
