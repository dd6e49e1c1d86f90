"""Rows of two partitions as the source has them now, and what the features make of them."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from psycopg2 import sql

import features
from adapters.connect import Outside
from expectations.vocabulary import Suite
from features import FeatureSet
from pipeline.partitions import Interval, utc
from pipeline.source import Table
from pipeline.spec import UseCase
from tasks.ingest.check import find_bad_rows
from tasks.ingest.clean_columns import drop_rows, name_columns, read_canonical
from tasks.ingest.older_rows import find_older_rows
from tasks.ingest.source_rows import known_sql, read_source_rows, relation_sql

_BEGINNING = datetime(1, 1, 3, tzinfo=UTC)
Tables = Mapping[str, pa.Table]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Two partitions that follow one another, the rows that they rest on, and what is made of them."""

    first: Interval
    second: Interval
    rows: Tables
    points: pa.Table
    labels: pa.Table  # known by `until`
    until: datetime
    seconds: float  # that making points and labels took


def find_partitions(
    use_case: UseCase, definition: FeatureSet, declared: Mapping[str, Suite], outside: Outside
) -> tuple[Interval, Interval] | None:
    """The latest two of which all tables that change by themselves have rows, and whose labels have come; or None."""
    moving = [name for name, source in definition.sources.items() if not source.timeless]
    moments = [_find_latest(use_case, name, declared[name], outside) for name in moving]
    there = [moment for moment in moments if moment is not None]
    if not there or len(there) < len(moments):
        return None
    latest = min(there)
    length = timedelta(days=use_case.grid.days)
    second = use_case.grid.containing(latest - use_case.time.label_delay - length)
    first = Interval(second.start - length, second.start)
    return (first, second) if first.start >= utc(use_case.grid.first) else None


def read_sample_rows(
    use_case: UseCase, definition: FeatureSet, partitions: tuple[Interval, Interval], outside: Outside
) -> Tables:
    """The raw rows of each table that both partitions rest on, read once; of a table that no feature reads their own.

    Raises:
        psycopg2.Error, Unavailable: the source cannot be asked.
    """
    first, second = partitions
    own, reach = Interval(first.start, second.end), _find_reach(use_case, definition, partitions)
    raw = dict[str, pa.Table]()
    for name in use_case.source.tables:
        source = definition.sources.get(name)
        is_timeless = source is not None and source.timeless
        raw[name] = _extract_rows(use_case, name, own if source is None else reach, outside, is_timeless=is_timeless)
    return raw


def select_partition(raw: pa.Table, suite: Suite, table: Table, partition: Interval) -> pa.Table:
    """Those of a table's raw rows that became known in a partition, as ingest would take them."""
    known = read_canonical(name_columns(raw, suite), suite)[0][table.available_at]
    start, end = (pa.scalar(moment, known.type) for moment in (partition.start, partition.end))
    return raw.filter(pc.and_(pc.greater_equal(known, start), pc.less(known, end)))


def take_sample(
    use_case: UseCase,
    definition: FeatureSet,
    declared: Mapping[str, Suite],
    partitions: tuple[Interval, Interval],
    raw: Tables,
) -> Sample:
    """Both partitions, made of the raw rows that `read_sample_rows` read.

    Raises:
        ValueError: a source is not as declared, or the features cannot be made of it.
    """
    first, second = partitions
    reach = _find_reach(use_case, definition, partitions)
    until, rows = reach.end, dict[str, pa.Table]()
    for name in definition.sources:
        rows[name] = _keep_good_rows(use_case, name, declared[name], raw[name], reach)
    began = time.monotonic()
    made, labels = build_from_rows(use_case, definition, rows, Interval(first.start, until))
    seconds = time.monotonic() - began
    points = made.filter(pc.less(made["prediction_time"], pa.scalar(second.end, made["prediction_time"].type)))
    return Sample(first=first, second=second, rows=rows, points=points, labels=labels, until=until, seconds=seconds)


def _find_reach(use_case: UseCase, definition: FeatureSet, partitions: tuple[Interval, Interval]) -> Interval:
    """From the oldest row that the first partition looks back on to the last label of the second."""
    return Interval(partitions[0].start - definition.look_back, partitions[1].end + use_case.time.label_delay)


def _keep_good_rows(use_case: UseCase, name: str, suite: Suite, raw: pa.Table, reach: Interval) -> pa.Table:
    """Those that ingest would let through, were they one partition."""
    table = use_case.source.tables[name]
    typed, faults = read_canonical(name_columns(raw, suite), suite)
    bad = {*find_bad_rows(typed, suite, table, reach, faults)}
    if table.duplicates == "keep_latest":
        bad |= {*find_older_rows(typed, table, bad)}
    return drop_rows(typed, bad)


def build_from_rows(
    use_case: UseCase, definition: FeatureSet, rows: Tables, interval: Interval
) -> tuple[pa.Table, pa.Table]:
    """Points and labels of an interval, made of rows in memory."""
    with tempfile.TemporaryDirectory() as folder:
        return features.build(definition, write_rows(rows, Path(folder)), interval, use_case.time.lead)


def write_rows(rows: Tables, folder: Path) -> dict[str, list[Path]]:
    """As Parquet files, by table."""
    files = {}
    for name, table in rows.items():
        pq.write_table(table, folder / f"{name}.parquet")
        files[name] = [folder / f"{name}.parquet"]
    return files


def _find_latest(use_case: UseCase, name: str, suite: Suite, outside: Outside) -> datetime | None:
    known = known_sql(use_case.source.tables[name], suite)
    query = sql.SQL("select max({0}) from {1} where {0} < 'infinity'").format(known, relation_sql(use_case, name))
    with outside.source.transaction(snapshot=True) as at:
        at.execute(query, ())
        [(latest,)] = at.fetchall()
    return None if latest is None else latest.astimezone(UTC)


def _extract_rows(
    use_case: UseCase, name: str, interval: Interval, outside: Outside, *, is_timeless: bool = False
) -> pa.Table:
    """A table's rows that became known in an interval, as the source has them; of a timeless one all before its end."""
    between = (_BEGINNING if is_timeless else interval.start, interval.end)
    with outside.source.transaction(snapshot=True) as at:
        return read_source_rows(outside.source, at, use_case, name, between)[0]
