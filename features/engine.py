"""Feature definitions and the engine that computes them point in time, as standard window SQL on DuckDB.

A definition is data: typed sources, named SQL steps, windows over streams of events, and one expression a feature.
Every window runs over the union of events (at the moment they became known) and prediction points, in a RANGE frame
that ends at the current row: what is known later is outside the frame by construction. The SQL is standard (window
frames, equality joins, CASE); only `local_time`, `utc`, `latest` and the reading of Parquet name an engine's functions.
"""

import hashlib
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

KEY_COLUMNS = ("entity_key", "event_time", "prediction_time")
LABEL_COLUMNS = ("entity_key", "event_time", "label", "label_time")


class Span(Protocol):
    """A half-open interval of time in UTC."""

    @property
    def start(self) -> datetime:
        """First moment inside."""

    @property
    def end(self) -> datetime:
        """First moment after."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A clean table as read: column -> SQL type. `timeless` tables change slowly and are read from their beginning."""

    columns: Mapping[str, str]
    timeless: bool = False


def source(*, timeless: bool = False, **names: str) -> Source:
    """A source declared by type: `source(bigint="flight", varchar="carrier origin")`."""
    return Source(columns={name: kind for kind, listed in names.items() for name in listed.split()}, timeless=timeless)


@dataclass(frozen=True, kw_only=True)
class Window:
    """Sums, and latest records, of one stream's events per key over spans of time (shortest first) before each point.

    `sums` are integer columns of the stream: integers add up to the same total in any order and on any engine.
    Column names: `<prefix>_<sum>_<span>`, and `<prefix>_<latest>` for the record whose first field is the greatest.
    """

    prefix: str
    stream: str
    key: tuple[str, ...]
    spans: tuple[str, ...]
    sums: tuple[str, ...] = ()
    latest: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    earliest: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """What a model sees of one use case, and what it learns from.

    `steps` must make a table `points` (point_id, the key columns, every window key) and a table `labels`.
    In `steps` `{start}`, `{end}` and `{lead}` stand for the asked interval and the lead.
    """

    name: str
    sources: Mapping[str, Source]
    look_back: timedelta
    steps: Mapping[str, str]
    windows: tuple[Window, ...]
    joined: tuple[str, ...]
    numeric_sql: Mapping[str, str]
    categorical_sql: Mapping[str, str]

    @property
    def numeric(self) -> tuple[str, ...]:
        """Names of the numeric features; null means missing."""
        return tuple(self.numeric_sql)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Names of the categorical features; null means missing."""
        return tuple(self.categorical_sql)

    def digest(self) -> str:
        """SHA-256 of what is computed: it changes with any definition, not with a comment."""
        epoch = datetime(2000, 1, 1, tzinfo=UTC)
        statements = compile_sql(self, {}, _Fixed(epoch, epoch + timedelta(days=1)), timedelta(0))
        types = {name: dict(source.columns) for name, source in self.sources.items()}
        content = json.dumps([statements, types, self.look_back.total_seconds()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class _Fixed:
    start: datetime
    end: datetime


def utc(moment: str) -> str:
    """SQL: a naive UTC timestamp from one with a time zone, or the other way round."""
    return f"timezone('UTC', {moment})"


def local_time(zone: str, moment: str) -> str:
    """SQL: the wall-clock time of a naive UTC moment in a named zone; null where the zone is null."""
    return f"timezone({zone}, {utc(moment)})"


def versions(table: str, key: str) -> str:
    """SQL: every version of a record with the moment the next one became known (null: still current)."""
    order = f"over (partition by {key} order by known_at)"
    return f"select *, lead(known_at) {order} as known_until, row_number() {order} = 1 as is_first from {table}"


def known(version: str, moment: str) -> str:
    """SQL condition: this version was the latest known one at the moment."""
    return f"{version}.known_at <= {moment} and ({version}.known_until is null or {moment} < {version}.known_until)"


def compile_sql(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> list[str]:
    """The statements that make the tables `points_out` and `labels_out`."""
    places = {
        "start": _moment(interval.start),
        "end": _moment(interval.end),
        "lead": f"interval '{lead // timedelta(seconds=1)}' second",
    }
    made = [_source_sql(name, source, tables.get(name, ())) for name, source in definition.sources.items()]
    made += [f"create temp table {name} as {sql.format(**places)}" for name, sql in definition.steps.items()]
    used = set(re.findall(r"\w+", " ".join([*definition.numeric_sql.values(), *definition.categorical_sql.values()])))
    made += [
        f"create temp table window_{w.prefix} as {_window_sql(w, used).format(**places)}" for w in definition.windows
    ]
    return [*made, f"create temp table points_out as {_points_sql(definition)}", _LABELS_SQL]


def build(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> tuple[pa.Table, pa.Table]:
    """Points (prediction_time in the interval) and labels (label_time in the interval) from clean Parquet files.

    `tables` must reach back `definition.look_back` before the interval (timeless tables: to their beginning); rows
    that became known after a point change nothing about it. Both results are sorted by their keys, and are the same
    to the last bit however the time line is cut into intervals.

    Raises:
        ValueError: a source lacks a column, or holds values of another type.
    """
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for statement in compile_sql(definition, tables, interval, lead):
            try:
                connection.execute(statement)
            except (duckdb.BinderException, duckdb.ConversionException) as error:
                raise ValueError(f"features {definition.name}: a source is not as declared: {error}") from error
        points = connection.sql(f"select * from points_out order by {', '.join(_POINT_ORDER)}").to_arrow_table()
        labels = connection.sql("select * from labels_out order by label_time, entity_key, event_time").to_arrow_table()
    return points, labels


_POINT_ORDER = ("prediction_time", "entity_key", "event_time")
_LABELS_SQL = (
    f"create temp table labels_out as select entity_key, {utc('event_time')} as event_time, "
    f"cast(label as double) as label, {utc('label_time')} as label_time from labels"
)


def _moment(moment: datetime) -> str:
    return f"timestamp '{moment.astimezone(UTC).replace(tzinfo=None).isoformat(sep=' ')}'"


def _source_sql(name: str, source: Source, paths: Iterable[Path]) -> str:
    files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    columns = ", ".join(f"{_read(column, kind)} as {column}" for column, kind in source.columns.items())
    if files:
        return f"create temp view {name} as select {columns} from read_parquet([{files}])"
    empty = ", ".join(f"cast(null as {kind}) as {column}" for column, kind in source.columns.items())
    return f"create temp view {name} as select {empty} where false"


def _read(column: str, kind: str) -> str:
    # NaN and infinity are no numbers: missing from here on, so that no sum or comparison ever meets them.
    if kind == "double":
        return f"case when isfinite(cast({column} as double)) then cast({column} as double) end"
    return utc(f"cast({column} as timestamptz)") if kind == "timestamp" else f"cast({column} as {kind})"


def _window_sql(window: Window, used: Container[str]) -> str:
    values = dict.fromkeys([*window.sums, *(f for fields in _records(window) for f in fields)])
    events = ", ".join(["cast(null as bigint) as point_id", "known_at as moment", *window.key, *values])
    points = ", ".join(["point_id", "prediction_time", *window.key, *("null" for _ in values)])
    present = " and ".join(f"{column} is not null" for column in window.key) or "true"
    partition = f"partition by {', '.join(window.key)} " if window.key else ""
    frames = ", ".join(
        f"w{number} as ({partition}order by moment range between interval {span} preceding and current row)"
        for number, span in enumerate(window.spans)
    )
    union = (
        f"select {events} from {window.stream} where {present} union all select {points} from points where {present}"
    )
    inner = f"select point_id, {', '.join(_aggregates(window, used))} from ({union}) window {frames}"
    return f"select * from ({inner}) where point_id is not null"


def _records(window: Window) -> list[tuple[str, ...]]:
    return [*window.latest.values(), *window.earliest.values()]


def _aggregates(window: Window, used: Container[str]) -> list[str]:
    # What no feature mentions is not computed: each sum over a frame costs about as much as the sort.
    sums = {
        f"{window.prefix}_{column}_{_short(span)}": f"cast(coalesce(sum({column}) over w{number}, 0) as double)"
        for number, span in enumerate(window.spans)
        for column in window.sums
    }
    # A point itself is no event: its record is null, and max and min pass over it.
    records = {
        f"{window.prefix}_{name}": f"{function}(case when point_id is null then {_record(fields)} end) over w0"
        for function, named in (("max", window.latest), ("min", window.earliest))
        for name, fields in named.items()
    }
    return [f"{sql} as {name}" for name, sql in (sums | records).items() if name in used]


def _record(fields: Sequence[str]) -> str:
    return "struct_pack(" + ", ".join(f"{name} := {name}" for name in fields) + ")"


def _short(span: str) -> str:
    number, unit = span.split()
    return number + unit[0]


def _points_sql(definition: FeatureSet) -> str:
    tables = [f"window_{window.prefix}" for window in definition.windows] + list(definition.joined)
    joins = " ".join(f"left join {table} using (point_id)" for table in tables)
    keys = f"entity_key, {utc('event_time')} as event_time, {utc('prediction_time')} as prediction_time"
    numeric = [f"cast({sql} as float) as {name}" for name, sql in definition.numeric_sql.items()]
    categorical = [f"cast({sql} as varchar) as {name}" for name, sql in definition.categorical_sql.items()]
    return f"select {', '.join([keys, *numeric, *categorical])} from points {joins}"
