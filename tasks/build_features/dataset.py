"""Reads feature datasets: any version, only the partitions that are needed, every file verified."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.spec import UseCase

_POINTS = """
select * from read_parquet($points) where prediction_time >= $start and prediction_time < $end
order by prediction_time, entity_key, event_time"""

# An outcome that became known again has a label for each time: the last one known by then counts, from its own time.
# A label that is null or no finite number is none.
_LOAD = """
select p.*, l.label, l.label_time from read_parquet($points) p
join (
    select entity_key, event_time, arg_max(label, label_time) as label, max(label_time) as label_time
    from read_parquet($labels) where label_time <= $known_by and isfinite(label) group by entity_key, event_time
) l using (entity_key, event_time)
where p.prediction_time >= $start and p.prediction_time < $end
order by prediction_time, entity_key, event_time"""

_LATEST = """
select entity_key, event_time, arg_max(label, label_time) as label, max(label_time) as label_time
from (select entity_key, event_time from read_parquet($changed) union select entity_key, event_time from others)
left join (select * from read_parquet($every) where isfinite(label)) told using (entity_key, event_time)
group by entity_key, event_time order by entity_key, event_time"""

_SNAPSHOTS = 'select version, git_revision, start, "end", partitions, rows from snapshots where use_case = %s'


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The files of one version, by partition."""

    partitions: dict[str, Interval]
    files: dict[str, Path]

    def paths(self, kind: str, start: datetime, end: datetime) -> list[str]:
        """The files of a kind (points, labels) whose partitions share a moment with [start, end].

        Never none: a query must find columns even where no row is left.
        """
        keys = [key for key, part in sorted(self.partitions.items()) if part.start <= end and part.end > start]
        return [str(self.files[f"{kind}/{key}.parquet"]) for key in keys or [min(self.partitions)]]


def latest_snapshot(use_case: UseCase, outside: Outside) -> Snapshot | None:
    """The version built last; None before the first."""
    rows = outside.warehouse.query(f"{_SNAPSHOTS} order by build_order desc limit 1", (use_case.name,))
    return Snapshot(use_case=use_case.name, **rows[0]) if rows else None


def find_snapshot(version: str, use_case: UseCase, outside: Outside) -> Snapshot:
    """A version that was built.

    Raises:
        ValueError: it never was.
    """
    rows = outside.warehouse.query(f"{_SNAPSHOTS} and version = %s", (use_case.name, version))
    if not rows:
        raise ValueError(f"{use_case.name} has no dataset version {version}: see the table snapshots")
    return Snapshot(use_case=use_case.name, **rows[0])


def find_features_digest(version: str, use_case: UseCase, outside: Outside) -> str | None:
    """The digest of the feature definition that a version was made by; None where that was not recorded yet."""
    query = "select features_digest from snapshots where use_case = %s and version = %s"
    rows = outside.warehouse.query(query, (use_case.name, version))
    return rows[0]["features_digest"] if rows else None


def load_rows(
    snapshot_version: str,
    use_case: UseCase,
    outside: Outside,
    *,
    start: datetime,
    end: datetime,
    known_by: datetime,
) -> pa.Table:
    """Labelled rows: points with prediction_time in [start, end) whose label was known by a moment.

    Columns: those of the points, then label and label_time; ordered by prediction_time, entity_key, event_time.
    """
    opened = _open(snapshot_version, use_case, outside)
    points, labels = opened.paths("points", start, end), opened.paths("labels", start, known_by)
    return read_labelled(points, labels, start=start, end=end, known_by=known_by)


def read_labelled(
    points: Sequence[str], labels: Sequence[str], *, start: datetime, end: datetime, known_by: datetime
) -> pa.Table:
    """The same, of files of points and labels."""
    return _query(_LOAD, points=list(points), labels=list(labels), start=start, end=end, known_by=known_by)


def load_points(
    snapshot_version: str, use_case: UseCase, outside: Outside, *, start: datetime, end: datetime
) -> pa.Table:
    """Rows to predict, labelled or not: prediction_time in [start, end), in the order of `load_rows`."""
    points = _open(snapshot_version, use_case, outside).paths("points", start, end)
    return _query(_POINTS, points=points, start=start, end=end)


def latest_labels(every: Sequence[Path], changed: Sequence[Path], others: pa.Table) -> pa.Table:
    """The last telling in `every` label file for each key in `changed` ones, and for `others` (same two key columns).

    Columns: entity_key, event_time, label, label_time; the last two are null for a key that no file tells of.
    """
    return _query(_LATEST, others=others, every=[str(path) for path in every], changed=[str(path) for path in changed])


def _open(version: str, use_case: UseCase, outside: Outside) -> Dataset:
    files = outside.versions.files(use_case.name, version)
    index = json.loads(files["index.json"].read_text())
    return Dataset(partitions={key: _interval(entry) for key, entry in index.items()}, files=files)


def _interval(entry: dict[str, Any]) -> Interval:
    return Interval(datetime.fromisoformat(entry["start"]), datetime.fromisoformat(entry["end"]))


def _query(sql: str, others: pa.Table | None = None, **parameters: object) -> pa.Table:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        if others is not None:
            connection.register("others", others)
        return connection.sql(sql, params=parameters).to_arrow_table()
