"""A use case's features for every point of an interval, point in time, from clean Parquet files.

DuckDB runs the definition's steps and expressions as they are written. Windows and joins are looked up as online, but
in series of all keys at once (`features.history`): sums are differences of running totals between two searches.
`features.engine.build_by_sql` defines the same in SQL alone; a test holds both to the same bits.
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
from features.engine import KEY_COLUMNS, LABEL_SCHEMA, UTC_MOMENT, FeatureSet, Span
from features.history import History, Stream, read_coded, to_arrow, to_dictionary
from features.masked import MaskedColumn
from features.plan import SeriesPlan
from features.series import Series, list_series, point_kinds
from features.sorted_events import Places
from features.step_plan import StepPlan

_POINTS_AT_ONCE = 1 << 17


class _PointsPart:
    """Some of the points, as a plan takes them."""

    def __init__(self, rows: pa.Table) -> None:
        self.rows = rows
        self.known, self.event_time = (_moments(rows[name]) for name in ("prediction_time", "event_time"))

    def note_absence(self, absent: str | None, rows: NDArray[np.bool_]) -> None:
        """Nothing: nobody reads why a feature of one point among millions is missing."""


@dataclass(frozen=True)
class _SeriesColumns:
    """What a series holds for every point: of a text the numbers of words, and of sums whole numbers."""

    plan: SeriesPlan
    words: Mapping[str, pa.Array]
    kinds: Mapping[str, str]
    columns: Mapping[str, MaskedColumn]

    def to_arrays(self, part: slice) -> dict[str, pa.Array]:
        """The columns of some points as expressions read them: a record is a struct of its fields."""
        columns = {name: MaskedColumn(values[part], valid[part]) for name, (values, valid) in self.columns.items()}
        # Beyond 53 bits to the nearest.
        arrays = {name: to_arrow(columns[name]).cast(pa.float64(), safe=False) for name in self.plan.summed}
        arrays |= {name: to_arrow(columns[name]) for name in self.plan.measured}
        for record, fields in self.plan.records.items():
            there = columns[record]
            of_fields = [self._field(columns[f"{record}.{field}"], field) for field in fields]
            arrays[record] = (
                pa.StructArray.from_arrays(of_fields, fields, mask=pa.array(~there.valid))
                if fields
                else to_arrow(there)
            )
        return arrays

    def _field(self, column: MaskedColumn, name: str) -> pa.Array:
        if name in self.words:
            return to_dictionary(column, self.words[name])
        return to_arrow(column).cast(pa.timestamp("us")) if self.kinds[name] == "timestamp" else to_arrow(column)


def build_offline(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> tuple[pa.Table, pa.Table]:
    """Points and labels, as `features.engine.build_by_sql` defines them, and to the same bits.

    Raises:
        ValueError: a source lacks a column, or holds values of another type.
    """
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        connection.execute("set preserve_insertion_order = false")  # what is read is put in order here
        [(threads,)] = connection.execute("select current_setting('threads')").fetchall()
        with engine.naming_undeclared_source(definition):
            points, labels, streams = _read_streams(definition, tables, interval, lead, connection=connection)
    # In the order of time, what a part reads lies close together. There is at least one.
    slices = [slice(start, start + _POINTS_AT_ONCE) for start in range(0, max(points.num_rows, 1), _POINTS_AT_ONCE)]
    with ThreadPoolExecutor(threads) as pool:
        columns = _look_up_all_series(definition, [_PointsPart(points[part]) for part in slices], streams, pool)
        return pa.concat_tables(pool.map(partial(_evaluate_features, definition, points, columns), slices)), labels


def _read_streams(
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    interval: Span,
    lead: timedelta,
    *,
    connection: duckdb.DuckDBPyConnection,
) -> tuple[pa.Table, pa.Table, list[tuple[Stream, list[Series]]]]:
    """Points and labels in order, and the streams with their series."""
    series = [item for item in list_series(definition, point_kinds(definition)) if not item.lookup]
    points_sql = f"{engine.points_sql(definition, _names(definition))} order by {', '.join(engine.POINT_ORDER)}"
    labels_sql = f"select {', '.join(LABEL_SCHEMA.names)} from labels order by {', '.join(engine.LABEL_ORDER)}"
    names = list(dict.fromkeys(item.stream for item in series))
    steps = StepPlan(connection, definition, [*(f"from {name}" for name in names), points_sql, labels_sql])
    steps.create(tables, interval, lead)
    streams = []
    for name in names:
        together = [item for item in series if item.stream == name]
        streams.append((Stream(connection, together, interval), together))
        steps.finish_query()
    points = read_coded(connection.sql(points_sql), {name for item in series for name in item.on}).combine_chunks()
    steps.finish_query()
    return points, connection.sql(labels_sql).to_arrow_table().cast(LABEL_SCHEMA), streams


def _names(definition: FeatureSet) -> list[str]:
    """The columns of a point that are its keys, or that some window, join or feature mentions."""
    mentioned = engine.mentioned_names(definition).union(
        KEY_COLUMNS, *(item.key for item in definition.windows), *(item.key for item in definition.joined)
    )
    return [name for name in definition.point_sql if name in mentioned]


def _look_up_all_series(
    definition: FeatureSet,
    parts: Sequence[_PointsPart],
    streams: list[tuple[Stream, list[Series]]],
    pool: ThreadPoolExecutor,
) -> list[_SeriesColumns]:
    """What every series holds for every point, a history for each processor at a time; streams are used up."""
    columns: list[_SeriesColumns] = []
    while streams:
        stream, series = streams.pop(0)
        columns += pool.map(partial(_look_up_series, definition, parts, stream), series)
    return columns


def _look_up_series(
    definition: FeatureSet, parts: Sequence[_PointsPart], stream: Stream, series: Series
) -> _SeriesColumns:
    """What a series holds for every point. Its history, which takes more memory, is freed on return."""
    history, plan = History(series, stream), SeriesPlan.of(definition, series)
    by_part = [plan.columns(points, history, history.slots(points.rows)) for points in parts]
    for columns in by_part:
        columns |= {
            name: MaskedColumn(columns[name].values.astype(history.sum_kind), columns[name].valid)
            for name in plan.summed
        }
    return _SeriesColumns(
        plan=plan,
        words=history.words,
        kinds=history.kinds,
        columns={name: _concatenate(columns.pop(name) for columns in by_part) for name in [*by_part[0]]},
    )


def _concatenate(parts: Iterable[MaskedColumn]) -> MaskedColumn:
    values, valid = (np.concatenate(each) for each in zip(*parts, strict=True))
    return MaskedColumn(values, np.broadcast_to(np.True_, len(valid)) if valid.all() else valid)


def _evaluate_features(
    definition: FeatureSet, points: pa.Table, looked_up: Sequence[_SeriesColumns], part: slice
) -> pa.Table:
    """The features of some points."""
    columns = {name: _plain(points[name][part]) for name in points.column_names}
    query = ", ".join(f"{sql} as {name}" for name, sql in engine.features_sql(definition).items())
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.execute("set TimeZone = 'UTC'")
        arrays = {name: column for series in looked_up for name, column in series.to_arrays(part).items()}
        connection.register("points", pa.table(columns | arrays))
        features = connection.sql(f"select {query} from points").to_arrow_table()
    moments = (columns[name].cast(UTC_MOMENT) for name in ("event_time", "prediction_time"))
    return pa.table([columns["entity_key"], *moments, *features.columns], [*KEY_COLUMNS, *features.column_names])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _moments(column: pa.ChunkedArray) -> Places:
    """In microseconds since 1970."""
    return np.asarray(_plain(column).cast(pa.int64()).to_numpy())
