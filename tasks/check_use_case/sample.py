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


def take_sample(
    use_case: UseCase,
    definition: FeatureSet,
    declared: Mapping[str, Suite],
    partitions: tuple[Interval, Interval],
    outside: Outside,
) -> Sample:
    """Both partitions, from the source as it is.

    Raises:
        ValueError: a source is not as declared, or the features cannot be made of it.
    """
    first, second = partitions
    until = second.end + use_case.time.label_delay
    reach = Interval(first.start - definition.look_back, until)
    rows = dict[str, pa.Table]()
    for name, source in definition.sources.items():
        raw = extract_rows(use_case, name, reach, outside, is_timeless=source.timeless)
        rows[name] = _keep_good_rows(use_case, name, declared[name], raw, reach)
    began = time.monotonic()
    made, labels = build_from_rows(use_case, definition, rows, Interval(first.start, until))
    seconds = time.monotonic() - began
    points = made.filter(pc.less(made["prediction_time"], pa.scalar(second.end, made["prediction_time"].type)))
    return Sample(first=first, second=second, rows=rows, points=points, labels=labels, until=until, seconds=seconds)


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


def extract_rows(
    use_case: UseCase, name: str, interval: Interval, outside: Outside, *, is_timeless: bool = False
) -> pa.Table:
    """A table's rows that became known in an interval, as the source has them; of a timeless one all before its end."""
    between = (_BEGINNING if is_timeless else interval.start, interval.end)
    with outside.source.transaction(snapshot=True) as at:
        return read_source_rows(outside.source, at, use_case, name, between)[0]
