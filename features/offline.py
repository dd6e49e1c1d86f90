"""A use case's features for every point of an interval, point in time, from clean Parquet files.

The definition's steps and expressions are run by DuckDB as they are written. Its windows and joins are what the online
path looks up, in the same way, in series of all keys at once (`features.history`): sums are differences of running
totals between two searches. `features.engine.build` says the same in SQL alone; a test holds both to the same bits.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import repeat
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import engine
from features.engine import KEY_COLUMNS, LABEL_COLUMNS, FeatureSet, Span
from features.history import History, Stream, arrow, worded
from features.operations import Column
from features.ordered import Places
from features.plan import Plan
from features.series import all_series, point_kinds
from features.steps import Steps

_POINTS_AT_ONCE = 1 << 17
_MOMENT = pa.timestamp("us", "UTC")
_LABELS = pa.schema(zip(LABEL_COLUMNS, (pa.string(), _MOMENT, pa.float64(), _MOMENT), strict=True))


@dataclass(frozen=True)
class _Points:
    """Some of the points, as a plan asks about them."""

    known: Places
    event_time: Places

    def miss(self, absent: str | None, rows: NDArray[np.bool_]) -> None:
        """Nobody reads why a feature of one among millions is missing."""


def build(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> tuple[pa.Table, pa.Table]:
    """Points and labels, as `features.engine.build` says, and to the same bits.

    Raises:
        ValueError: a source lacks a column, or holds values of another type.
    """
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        [(threads,)] = connection.execute("select current_setting('threads')").fetchall()
        with engine.as_declared(definition):
            points, labels, histories = _read(
                definition, tables, interval, lead, connection=connection, threads=threads
            )
    looked = [(Plan.of(definition, history.series), history) for history in histories]
    parts = [points.slice(start, _POINTS_AT_ONCE) for start in range(0, max(points.num_rows, 1), _POINTS_AT_ONCE)]
    with ThreadPoolExecutor(threads) as pool:
        return pa.concat_tables(pool.map(partial(_features, definition, looked), parts)), labels


def _read(
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    interval: Span,
    lead: timedelta,
    *,
    connection: duckdb.DuckDBPyConnection,
    threads: int,
) -> tuple[pa.Table, pa.Table, list[History]]:
    """Points and labels in order, and the history of every series."""
    series = [item for item in all_series(definition, point_kinds(definition)) if not item.lookup]
    points_sql = f"{engine.points_sql(definition, _names(definition))} order by {', '.join(engine.POINT_ORDER)}"
    labels_sql = f"select {', '.join(LABEL_COLUMNS)} from labels order by {', '.join(engine.LABEL_ORDER)}"
    streams = list(dict.fromkeys(item.stream for item in series))
    steps = Steps(connection, definition, [*(f"from {name}" for name in streams), points_sql, labels_sql])
    steps.make(tables, interval, lead)
    histories: list[History] = []
    with ThreadPoolExecutor(threads) as pool:
        for name in streams:
            together = [item for item in series if item.stream == name]
            stream = Stream(connection, together, interval)
            steps.done()
            histories += pool.map(History, together, repeat(stream))
            del stream
    points = connection.sql(points_sql).to_arrow_table()
    steps.done()
    labels = connection.sql(labels_sql).to_arrow_table().cast(_LABELS)
    return points, labels, histories


def _names(definition: FeatureSet) -> list[str]:
    """The columns of a point that are its keys, or that some window, join or feature mentions."""
    keys = [item.key for item in definition.windows] + [item.key for item in definition.joined]
    mentioned = {*KEY_COLUMNS, *engine.used(definition)}.union(*keys)
    return [name for name in definition.point_sql if name in mentioned]


def _features(definition: FeatureSet, looked: Sequence[tuple[Plan, History]], points: pa.Table) -> pa.Table:
    """The features of some points."""
    known, event_time = (points[name].cast(pa.int64()).to_numpy() for name in ("prediction_time", "event_time"))
    asked = _Points(known, event_time)
    columns = dict(zip(points.column_names, points.columns, strict=True))
    for plan, history in looked:
        columns |= _columns(plan, history, plan.columns(asked, history, history.slots(points)))
    query = ", ".join(f"{sql} as {name}" for name, sql in engine.features_sql(definition).items())
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("points", pa.table(columns))
        features = connection.sql(f"select {query} from points").to_arrow_table()
    moments = {name: points[name].cast(_MOMENT) for name in ("event_time", "prediction_time")}
    return pa.table(
        {"entity_key": points["entity_key"]} | moments | dict(zip(features.column_names, features.columns, strict=True))
    )


def _columns(plan: Plan, history: History, found: Mapping[str, Column]) -> dict[str, pa.Array]:
    """A plan's columns as expressions read them: a record is a struct of its fields."""
    made = {name: arrow(found[name]) for listed in plan.sums.values() for _, name in listed}
    for record, fields in plan.records.items():
        arrays = [_field(found[f"{record}.{field}"], history, field) for field in fields]
        there = found[record]
        absent = pa.array(~there.valid)
        made[record] = pa.StructArray.from_arrays(arrays, fields, mask=absent) if fields else arrow(there)
    return made


def _field(column: Column, history: History, name: str) -> pa.Array:
    if name in history.words:
        return worded(column, history.words[name])
    return arrow(column).cast(pa.timestamp("us")) if history.kinds[name] == "timestamp" else arrow(column)
