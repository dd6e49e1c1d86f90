"""Two partitions of real rows, through validation, features, labels and a server's code: what would be found later."""

import math
import tempfile
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expectations.vocabulary import Suite
from features import FeatureSet
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.build_features.profile import MOST_TOGETHER
from tasks.check_use_case.giveaway_check import check_giveaways
from tasks.check_use_case.mistakes import Mistake, in_file, in_params
from tasks.check_use_case.online_check import check_online, is_same
from tasks.check_use_case.sample import Sample, Tables, build_from_rows, select_partition, write_rows
from tasks.ingest.check import check_table

_DAY = timedelta(days=1)
_LATE_SHARE = 0.99  # of the labels have come within the declared delay


def check_volumes(
    use_case: UseCase, declared: Mapping[str, Suite], partitions: tuple[Interval, Interval], raw: Tables
) -> Iterator[Mistake]:
    """Whether validation would let the raw rows of both partitions through."""
    for name, table in use_case.source.tables.items():
        for partition in partitions:
            rows = select_partition(raw[name], declared[name], table, partition)
            for problem in check_table(rows, declared[name], table, partition).problems:
                yield in_params(
                    f"source.tables.{name}",
                    f"of {partition.start:%Y-%m-%d}, {rows.num_rows} rows (min_rows {table.min_rows}, max_rows"
                    f" {table.max_rows}): {problem}",
                    f"limits that hold, or what expectations/{use_case.name}.py says of it",
                )


def check_sample(use_case: UseCase, definition: FeatureSet, sample: Sample) -> Iterator[Mistake]:
    """What its points, labels and features lack."""
    file = f"features/{use_case.name}.py"
    if not sample.points.num_rows:
        yield in_file(
            file,
            "asked",
            f"no event is predicted in {sample.first.start:%Y-%m-%d} to {sample.second.end:%Y-%m-%d}: is each known"
            f" time.lead_minutes ({use_case.time.lead_minutes}) before it happens?",
            "a step `asked` with the events, or a shorter time.lead_minutes",
        )
        return
    yield from _check_points(file, sample)
    labelled = _join_labels(sample)
    yield from _check_labels(file, use_case, sample, labelled)
    yield from _check_rows_needed(use_case, sample, labelled)
    yield from _check_features(file, definition, sample)
    leaks = list(_check_leaks(file, use_case, definition, sample))
    yield from leaks
    if not leaks:  # what reads the future is named as that
        yield from check_giveaways(use_case, definition, labelled, sample.second.start)
    yield from _check_asked(use_case, definition, sample)


def _check_points(file: str, sample: Sample) -> Iterator[Mistake]:
    points = sample.points
    for name in ("entity_key", "event_time", "prediction_time"):
        if points[name].null_count:
            yield in_file(
                file, name, f"null in {points[name].null_count} of {points.num_rows} points", "a value for each"
            )
    keys = points.group_by(["entity_key", "event_time"]).aggregate([([], "count_all")])
    doubled = keys.filter(pc.greater(keys["count_all"], 1))
    if doubled.num_rows:
        [example] = doubled.slice(0, 1).to_pylist()
        yield in_file(
            file,
            "entity_key",
            f"{doubled.num_rows} events have several points, such as {example['entity_key']!r} at"
            f" {example['event_time']:%Y-%m-%d %H:%M:%S}",
            "an entity_key that tells the events of one moment apart",
        )


def _join_labels(sample: Sample) -> pa.Table:
    """The points that have a label by then, each with its last one."""
    last = sample.labels.sort_by([("label_time", "ascending")])
    last = last.group_by(["entity_key", "event_time"], use_threads=False).aggregate(
        [("label", "last"), ("label_time", "first")]
    )
    return sample.points.join(last, ["entity_key", "event_time"], join_type="inner")


def _check_labels(file: str, use_case: UseCase, sample: Sample, labelled: pa.Table) -> Iterator[Mistake]:
    if not labelled.num_rows:
        yield in_file(
            file,
            "labels",
            f"no point of {sample.points.num_rows} has a label by {sample.until:%Y-%m-%d}: do both make the same"
            " entity_key and event_time?",
            "the keys of the points, or a longer time.label_delay_hours",
        )
        return
    labels = labelled["label_last"]
    if labels.null_count:
        yield in_file(
            file, "label", f"null in {labels.null_count} of {len(labels)} labels", "no row where there is no label"
        )
    values = pc.unique(labels.drop_null()).to_pylist()
    if use_case.target.kind == "binary" and not {*values} <= {0.0, 1.0}:
        yield in_params(
            "target.kind",
            f"binary, and labels are {sorted(values)[:5]}",
            "labels of 0 and 1 (of several classes one is 1: docs/decisions/0035), or regression",
        )
    elif len(values) < 2:
        yield in_file(file, "label", f"{values} in each of {len(labels)} labels", "a label that tells outcomes apart")
    early = pc.sum(pc.less_equal(labelled["label_time_first"], labelled["prediction_time"])).as_py() or 0
    if early:
        yield in_file(
            file, "label_time", f"{early} labels were known when they were to be predicted", "the moment of the outcome"
        )
    hours = pc.divide(pc.microseconds_between(labelled["event_time"], labelled["label_time_first"]), 3_600_000_000.0)
    seen = float(np.quantile(hours.to_numpy(), _LATE_SHARE))
    if seen > use_case.time.label_delay_hours:
        yield in_params(
            "time.label_delay_hours",
            f"{use_case.time.label_delay_hours}: {_LATE_SHARE:.0%} of the labels have come only {seen:.1f} hours after"
            " the event",
            f"at least {int(seen) + 1}",
        )
    coverage = labelled.num_rows / sample.points.num_rows
    if coverage < use_case.monitor.min_coverage:
        yield in_params(
            "monitor.min_coverage",
            f"{use_case.monitor.min_coverage}: {coverage:.0%} of the points have a label after the label delay, so"
            " performance would never be known",
            f"at most {math.floor(coverage * 100) / 100}, or a longer time.label_delay_hours",
        )


def _check_rows_needed(use_case: UseCase, sample: Sample, labelled: pa.Table) -> Iterator[Mistake]:
    days = (sample.second.end - sample.first.start) / _DAY
    points, labels = sample.points.num_rows / days, labelled.num_rows / days
    for key, wanted, has, of in (
        ("gate.min_rows", use_case.gate.min_rows, labels * use_case.train.holdout_days, "train.holdout_days"),
        ("monitor.min_rows", use_case.monitor.min_rows, points * use_case.grid.days * MOST_TOGETHER,
         f"{MOST_TOGETHER} times source.partition_days"),
        ("monitor.min_labelled", use_case.monitor.min_labelled, labels * use_case.monitor.performance_days,
         "monitor.performance_days"),
    ):  # fmt: skip
        if has < wanted:
            yield in_params(
                key, f"{wanted}: about {has:,.0f} rows come in the days of {of}", f"at most {has:.0f}, or more {of}"
            )
    begin = utc(use_case.grid.first)
    history = max((sample.second.end - begin) / _DAY - use_case.train.holdout_days, 0.0) * labels
    if history < use_case.train.min_rows:
        yield in_params(
            "train.min_rows",
            f"{use_case.train.min_rows}: about {history:,.0f} labelled rows are there since source.first_partition"
            f" ({use_case.source.first_partition})",
            f"at most {history:.0f}, or an earlier source.first_partition",
        )
    if history and (share := use_case.grid.days * labels / history) >= use_case.monitor.max_new_rows_share:
        yield in_params(
            "monitor.max_new_rows_share",
            f"{use_case.monitor.max_new_rows_share}: one partition alone has {share:.0%} of the rows that a champion"
            " trained now would learn from, so each would be retrained at once",
            f"more than {share:.2f}, or an earlier source.first_partition",
        )


def _check_features(file: str, definition: FeatureSet, sample: Sample) -> Iterator[Mistake]:
    for name in (*definition.numeric, *definition.categorical):
        column = sample.points[name]
        if column.null_count == len(column):
            yield in_file(
                file, name, f"null in all of {len(column)} points", "an expression that has values, or leave it out"
            )


def _check_leaks(file: str, use_case: UseCase, definition: FeatureSet, sample: Sample) -> Iterator[Mistake]:
    """Without all that became known later, the points before are the same: else some feature reads the future."""
    cut = sample.second.start
    before = {
        name: _known_before(rows, use_case.source.tables[name].available_at, cut) for name, rows in sample.rows.items()
    }
    again, _ = build_from_rows(use_case, definition, before, sample.first)
    points = sample.points.filter(
        pc.less(sample.points["prediction_time"], pa.scalar(cut, again["prediction_time"].type))
    )
    if again.num_rows != points.num_rows or not again.select(["entity_key", "event_time"]).equals(
        points.select(["entity_key", "event_time"])
    ):
        yield in_file(
            file,
            "asked",
            f"{points.num_rows} points of {sample.first.start:%Y-%m-%d}, and {again.num_rows} without the rows that"
            " became known later: events are taken that were not known when they were to be predicted",
            "known_at <= prediction_time among the conditions of the step",
        )
        return
    for name in (*definition.numeric, *definition.categorical):
        if not is_same(points[name], again[name]):
            yield in_file(
                file,
                name,
                "changes when rows are left out that became known after the prediction: it reads the future",
                "only rows with known_at <= prediction_time",
            )


def _check_asked(use_case: UseCase, definition: FeatureSet, sample: Sample) -> Iterator[Mistake]:
    """Events of the second partition, by a store that is at its end."""
    kept = Interval(sample.first.start, sample.second.end)
    with tempfile.TemporaryDirectory() as folder:
        tables = write_rows(sample.rows, Path(folder))
        yield from check_online(use_case, definition, tables, kept=kept, asked_in=sample.second, points=sample.points)


def _known_before(rows: pa.Table, column: str, moment: datetime) -> pa.Table:
    return rows.filter(pc.less(rows[column], pa.scalar(moment, rows[column].type)))
