"""Rows of two partitions as the source has them now, and what the features make of them."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from psycopg2 import sql

import features
from adapters.connect import Outside
from expectations.vocabulary import Suite
from features import FeatureSet
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.ingest.check import to_canonical

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
    seconds: float  # that two partitions took


def find_partitions(use_case: UseCase, outside: Outside) -> tuple[Interval, Interval] | None:
    """The latest two whose labels have come; None: there are none."""
    moments = [_find_latest(outside, name, table.available_at) for name, table in use_case.source.tables.items()]
    latest = max((moment for moment in moments if moment is not None), default=None)
    if latest is None:
        return None
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
    rows = {
        name: to_canonical(
            extract_rows(outside, name, use_case.source.tables[name].available_at, reach, is_timeless=source.timeless),
            declared[name],
        )
        for name, source in definition.sources.items()
    }
    began = time.monotonic()
    points, labels = build_from_rows(use_case, definition, rows, Interval(first.start, second.end))
    seconds = time.monotonic() - began
    _, labels = build_from_rows(use_case, definition, rows, Interval(first.start, until))
    return Sample(first=first, second=second, rows=rows, points=points, labels=labels, until=until, seconds=seconds)


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


def _find_latest(outside: Outside, name: str, column: str) -> datetime | None:
    with outside.source.transaction(snapshot=True) as at:
        at.execute(
            sql.SQL("select max({0}) from {1} where {0} < 'infinity'").format(
                sql.Identifier(column), sql.Identifier(name)
            )
        )
        [(latest,)] = at.fetchall()
    return None if latest is None else latest.astimezone(UTC)


def extract_rows(
    outside: Outside, name: str, column: str, interval: Interval, *, is_timeless: bool = False
) -> pa.Table:
    """A table's rows that became known in an interval; of a timeless one all before its end."""
    since = "-infinity" if is_timeless else interval.start
    query = sql.SQL("select * from {0} where {1} >= %s and {1} < %s").format(
        sql.Identifier(name), sql.Identifier(column)
    )
    with outside.source.transaction(snapshot=True) as at:
        return outside.source.copy_out(query, (since, interval.end), at=at)
