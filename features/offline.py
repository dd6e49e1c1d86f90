"""A use case's features for every point of an interval, point in time, from clean Parquet files.

The definition's steps and expressions are run by DuckDB as they are written. Its windows and joins are what the online
path looks up, in the same way, in series of all keys at once (`features.history`): sums are differences of running
totals between two searches. `features.engine.build` says the same in SQL alone; a test holds both to the same bits.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from features import engine
from features.engine import KEY_COLUMNS, LABEL_COLUMNS, FeatureSet, Span
from features.history import History, Stream, arrow, coded, worded
from features.operations import Column
from features.plan import Plan
from features.series import Series, all_series, point_kinds
from features.sorted_events import Places
from features.step_plan import Steps

_POINTS_AT_ONCE = 1 << 17
_MOMENT = pa.timestamp("us", "UTC")
_LABELS = pa.schema(zip(LABEL_COLUMNS, (pa.string(), _MOMENT, pa.float64(), _MOMENT), strict=True))


class _Points:
    """Some of the points, as a plan asks about them."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self.known, self.event_time = (_moments(rows[name]) for name in ("prediction_time", "event_time"))

    def miss(self, absent: str | None, rows: NDArray[np.bool_]) -> None:
        """Nobody reads why a feature of one among millions is missing."""


@dataclass(frozen=True)
class _Found:
    """What a series holds for every point: of a text the numbers of words, and of sums whole numbers."""

    plan: Plan
    words: Mapping[str, pa.Array]
    kinds: Mapping[str, str]
    columns: Mapping[str, Column]

    def arrow(self, part: slice) -> dict[str, pa.Array]:
        """The columns of some points as expressions read them: a record is a struct of its fields."""
        found = {name: Column(values[part], valid[part]) for name, (values, valid) in self.columns.items()}
        made = {name: arrow(found[name]).cast(pa.float64()) for name in self.plan.summed}
        for record, fields in self.plan.records.items():
            arrays = [self._field(found[f"{record}.{field}"], field) for field in fields]
            there = found[record]
            absent = pa.array(~there.valid)
            made[record] = pa.StructArray.from_arrays(arrays, fields, mask=absent) if fields else arrow(there)
        return made

    def _field(self, column: Column, name: str) -> pa.Array:
        if name in self.words:
            return worded(column, self.words[name])
        return arrow(column).cast(pa.timestamp("us")) if self.kinds[name] == "timestamp" else arrow(column)


def build(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> tuple[pa.Table, pa.Table]:
    """Points and labels, as `features.engine.build` says, and to the same bits.

    Raises:
        ValueError: a source lacks a column, or holds values of another type.
    """
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("set preserve_insertion_order = false")  # what is read is put in order here
        [(threads,)] = connection.execute("select current_setting('threads')").fetchall()
        with engine.as_declared(definition):
            points, labels, streams = _read(definition, tables, interval, lead, connection=connection)
    with ThreadPoolExecutor(threads) as pool:
        parts = _parts(points)
        asked = [_Points(points[part]) for part in parts]
        found = _look_all_up(definition, asked, streams, pool)
        return pa.concat_tables(pool.map(partial(_features, definition, points, found), parts)), labels


def _read(
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    interval: Span,
    lead: timedelta,
    *,
    connection: duckdb.DuckDBPyConnection,
) -> tuple[pa.Table, pa.Table, list[tuple[Stream, list[Series]]]]:
    """Points and labels in order, and the streams with their series."""
    series = [item for item in all_series(definition, point_kinds(definition)) if not item.lookup]
    points_sql = f"{engine.points_sql(definition, _names(definition))} order by {', '.join(engine.POINT_ORDER)}"
    labels_sql = f"select {', '.join(LABEL_COLUMNS)} from labels order by {', '.join(engine.LABEL_ORDER)}"
    names = list(dict.fromkeys(item.stream for item in series))
    steps = Steps(connection, definition, [*(f"from {name}" for name in names), points_sql, labels_sql])
    steps.make(tables, interval, lead)
    streams = []
    for name in names:
        together = [item for item in series if item.stream == name]
        streams.append((Stream(connection, together, interval), together))
        steps.done()
    points = coded(connection.sql(points_sql), {name for item in series for name in item.on}).combine_chunks()
    steps.done()
    labels = connection.sql(labels_sql).to_arrow_table().cast(_LABELS)
    return points, labels, streams


def _names(definition: FeatureSet) -> list[str]:
    """The columns of a point that are its keys, or that some window, join or feature mentions."""
    keys = [item.key for item in definition.windows] + [item.key for item in definition.joined]
    mentioned = {*KEY_COLUMNS, *engine.used(definition)}.union(*keys)
    return [name for name in definition.point_sql if name in mentioned]


def _parts(points: pa.Table) -> list[slice]:
    """The points in parts, in the order of time: what a part looks at lies close together. At least one."""
    return [slice(start, start + _POINTS_AT_ONCE) for start in range(0, max(points.num_rows, 1), _POINTS_AT_ONCE)]


def _look_all_up(
    definition: FeatureSet,
    asked: Sequence[_Points],
    streams: list[tuple[Stream, list[Series]]],
    pool: ThreadPoolExecutor,
) -> list[_Found]:
    """What every series holds for every point, a history for each processor at a time; streams are used up."""
    found: list[_Found] = []
    while streams:
        stream, series = streams.pop(0)
        found += pool.map(partial(_look_up, definition, asked, stream), series)
    return found


def _look_up(definition: FeatureSet, asked: Sequence[_Points], stream: Stream, series: Series) -> _Found:
    """What a series holds for every point. Its history, which takes more memory, is free again."""
    history, plan = History(series, stream), Plan.of(definition, series)
    looked = [plan.columns(points, history, history.slots(points.rows)) for points in asked]
    for columns in looked:
        columns |= {
            name: Column(columns[name].values.astype(history.sum_kind), columns[name].valid) for name in plan.summed
        }
    whole = {name: _concatenated(columns.pop(name) for columns in looked) for name in [*looked[0]]}
    return _Found(plan, history.words, history.kinds, whole)


def _concatenated(parts: Iterable[Column]) -> Column:
    values, valid = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Column(values, np.broadcast_to(np.True_, len(valid)) if valid.all() else valid)


def _features(definition: FeatureSet, points: pa.Table, found: Sequence[_Found], part: slice) -> pa.Table:
    """The features of some points."""
    columns = {name: _plain(points[name][part]) for name in points.column_names}
    features = columns | {name: column for one in found for name, column in one.arrow(part).items()}
    query = ", ".join(f"{sql} as {name}" for name, sql in engine.features_sql(definition).items())
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.register("points", pa.table(features))
        made = connection.sql(f"select {query} from points").to_arrow_table()
    keys = {name: columns[name].cast(_MOMENT) for name in ("event_time", "prediction_time")}
    numbers = dict(zip(made.column_names, made.columns, strict=True))
    return pa.table({"entity_key": columns["entity_key"]} | keys | numbers)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _moments(column: pa.ChunkedArray) -> Places:
    """In microseconds since 1970."""
    return np.asarray(_plain(column).cast(pa.int64()).to_numpy())
