"""The rows of a model matrix: a replay's data, or the latest feature snapshot of a running stack; built once, and kept.

A replay's rows need no stack: its data becomes features by the product's own functions. Any other use case has the
snapshot that its own DAGs built last, and its first champion is of the first partition that has enough to learn before.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import features
from adapters.connect import Outside, outside
from adapters.files import write_atomically
from adapters.parquet import to_bytes
from expectations import suites
from infra.replay.replays import REPLAYS
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval, utc
from pipeline.spec import UseCase
from tasks.build_features import dataset
from tasks.ingest.check import to_canonical
from tasks.train.split import split

UTC_TIME = pa.timestamp("us", "UTC")
_NEVER = datetime(9000, 1, 1, tzinfo=UTC)
_KEY = ["entity_key", "event_time"]
_ORDER = [(name, "ascending") for name in ("prediction_time", *_KEY)]


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixRows:
    """Points in the order of prediction time, with label and label_time where there is one; `home` is their folder.

    The first of the partitions begins at the data time of the first champion.
    """

    home: Path
    table: pa.Table
    partitions: tuple[Interval, ...]


def read_rows(use_case: UseCase, folder: Path) -> MatrixRows:
    """The rows of a use case, built where the folder does not keep them.

    Raises:
        ValueError: there are none, or too few to train the first champion on.
    """
    if use_case.name in REPLAYS:
        home = folder / f"{use_case.name}-{features.definition(use_case.name).digest()[:12]}"
        table, first = _keep(home, lambda: build_rows(use_case)), utc(REPLAYS[use_case.name].train_until)
    else:
        world = outside()
        snapshot = dataset.latest_snapshot(use_case, world)
        if snapshot is None:
            raise ValueError(f"{use_case.name}: no features were built yet; unpause its DAG build_features")
        home = folder / f"{use_case.name}-{snapshot.version[:12]}"
        table = _keep(home, lambda: load_snapshot(use_case, snapshot, world))
        first = find_first_champion(use_case, table)
    last = pc.max(table["prediction_time"]).as_py() + timedelta(microseconds=1)
    return MatrixRows(home=home, table=table, partitions=tuple(use_case.grid.covering(Interval(first, last))))


def known_rows(use_case: UseCase, rows: pa.Table, cutoff: datetime) -> pa.Table:
    """What a training may learn at a cut-off: predictions made a label lag before it, by labels known by then."""
    until, at = pa.scalar(cutoff - use_case.time.label_lag, UTC_TIME), pa.scalar(cutoff, UTC_TIME)
    return rows.filter(pc.and_(pc.less(rows["prediction_time"], until), pc.less_equal(rows["label_time"], at)))


def build_rows(use_case: UseCase) -> pa.Table:
    """Every point of a replay's data, with its features and label. What validation would set aside is among them."""
    definition, replayed, last = (
        features.definition(use_case.name),
        REPLAYS[use_case.name],
        use_case.source.last_partition,
    )
    assert last is not None, "a replay's data ends"
    span = Interval(utc(use_case.grid.first), utc(last) + timedelta(days=use_case.grid.days))
    replayed.require_data()
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: [Path(scratch) / f"{name}.parquet"] for name in definition.sources}
        tables = replayed.source.read_rows()
        for name in definition.sources:
            pq.write_table(to_canonical(tables[name], suites(use_case.name)[name]), paths[name][0])
        points, labels = features.build(definition, paths, span, use_case.time.lead)
    return _label(points, labels)


def load_snapshot(use_case: UseCase, snapshot: Snapshot, world: Outside) -> pa.Table:
    """The same, of a snapshot, by the labels that were known when it was built."""
    start, end = snapshot.start, snapshot.end
    points = dataset.load_points(snapshot.version, use_case, world, start=start, end=end)
    every = dataset.load_rows(snapshot.version, use_case, world, start=start, end=end, known_by=_NEVER)
    return _label(points, every.select([*_KEY, "label", "label_time"]))


def find_first_champion(use_case: UseCase, table: pa.Table) -> datetime:
    """The start of the first partition before which there are `train.min_rows` rows to learn from.

    Raises:
        ValueError: there is none.
    """
    times = pc.min_max(table["prediction_time"]).as_py()
    for partition in use_case.grid.covering(Interval(times["min"], times["max"])):
        if known_rows(use_case, table, split(use_case, partition.start).train_end).num_rows >= use_case.train.min_rows:
            return partition.start
    raise ValueError(
        f"{use_case.name}: {table.num_rows} rows, and no time before which there are train.min_rows of them"
    )


def _label(points: pa.Table, labels: pa.Table) -> pa.Table:
    return points.join(labels, _KEY, join_type="left outer").sort_by(_ORDER)


def _keep(home: Path, build: Callable[[], pa.Table]) -> pa.Table:
    path = home / "rows.parquet"
    if not path.exists():
        write_atomically(path, to_bytes(build()), mode=0o644)
    return pq.read_table(path).combine_chunks()
