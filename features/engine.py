"""Feature definitions, and their translation to standard window SQL, which any engine can run.

A definition is data: typed sources, named SQL steps, windows over streams of events, and one expression a feature.
Every window runs over the union of events (at the moment they became known) and prediction points, and ends at the
current row: what is known later comes after it by construction. The SQL is standard (window frames, equality joins,
CASE); only `local_time_sql`, `utc_sql`, `latest`, `hash` and the reading of Parquet name an engine's functions.
`features.offline` computes the same faster: its steps and expressions are these, its windows lookups in sorted arrays.
"""

import hashlib
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

import duckdb
import pyarrow as pa

from features.expression_tree import doubles_sql
from features.request import RequestField
from features.vocabulary import (
    READ_AS,
    AsOf,
    ColumnKind,
    Preceding,
    SourceTable,
    Window,
    known_at_sql,
    naive_utc_sql,
    refuse_unread,
    utc_sql,
)
from features.windows import record_sql, window_sql

UTC_MOMENT = pa.timestamp("us", "UTC")
KEY_COLUMNS = ("entity_key", "event_time", "prediction_time")
LABEL_SCHEMA = pa.schema(
    {"entity_key": pa.string(), "event_time": UTC_MOMENT, "label": pa.float64(), "label_time": UTC_MOMENT}
)
POINT_ORDER = ("prediction_time", "entity_key", "event_time")
LABEL_ORDER = ("label_time", "entity_key", "event_time")
_PLACEHOLDER = re.compile(r"\{(start|end|lead)\}")
_REVISION = 1  # whoever mends a wrong value of any engine raises it: what was built with it is then built anew


class Span(Protocol):
    """A half-open interval of time in UTC."""

    @property
    def start(self) -> datetime:
        """First moment inside."""

    @property
    def end(self) -> datetime:
        """First moment after."""


@dataclass(frozen=True)
class FixedSpan:
    """A `Span` as plain data."""

    start: datetime
    end: datetime


# For what depends on no interval: types, and the digest.
ANY_DAY = FixedSpan(datetime(2000, 1, 1, tzinfo=UTC), datetime(2000, 1, 2, tzinfo=UTC))


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """What a model sees of one use case, and what it learns from.

    `steps` must make every stream, a table `labels`, and a table `asked`: what is known of each event itself, as a
    client would tell it (`request`), and its prediction time. (The table keeps that name because the digest of every
    model trained so far contains it.) `point_sql` makes a point of it, from `asked` and the `lookups`: the key columns
    and every window key. In `steps` `{start}`, `{end}` and `{lead}` stand for the requested interval and the lead;
    other braces are SQL's.
    """

    name: str
    sources: Mapping[str, SourceTable]
    look_back: timedelta
    request: tuple[RequestField, ...]
    steps: Mapping[str, str]
    lookups: Mapping[str, AsOf]
    point_sql: Mapping[str, str]
    windows: tuple[Window, ...]
    joined: tuple[Preceding, ...]
    numeric_sql: Mapping[str, str]
    categorical_sql: Mapping[str, str]

    def __post_init__(self) -> None:
        refuse_unread(self.sources, self.windows, self.look_back)

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
        types = {name: dict(source.columns) for name, source in self.sources.items()}
        statements = compile_sql(self, {}, ANY_DAY, timedelta(0), write=str)
        computed = [statements, types, self.look_back.total_seconds(), _REVISION]
        return hashlib.sha256(json.dumps(computed, sort_keys=True).encode()).hexdigest()


def compile_sql(
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    interval: Span,
    lead: timedelta,
    *,
    write: Callable[[str], str] = doubles_sql,
) -> list[str]:
    """The statements that make the tables `points_out` and `labels_out`; `write` makes DuckDB's text of expressions."""
    names = mentioned_names(definition)
    return [
        *steps_sql(definition, tables, interval, lead, naive=utc_sql).values(),
        (
            "create temp table points as select row_number() over () as point_id, *"
            f" from ({points_sql(definition, definition.point_sql, write=write)})"
        ),
        *(f"create temp table window_{w.prefix} as {window_sql(w, names)}" for w in definition.windows),
        *(f"create temp table joined_{j.prefix} as {_preceding_sql(j)}" for j in definition.joined),
        f"create temp table points_out as {_points_out_sql(definition, write)}",
        (
            f"create temp table labels_out as select entity_key, {utc_sql('event_time')} as event_time, "
            f"cast(label as double) as label, {utc_sql('label_time')} as label_time from labels"
        ),
    ]


def steps_sql(
    definition: FeatureSet,
    tables: Mapping[str, Sequence[Path]],
    interval: Span,
    lead: timedelta,
    *,
    views: Container[str] = (),
    naive: Callable[[str], str] = naive_utc_sql,
) -> dict[str, str]:
    """The statements that make the sources and, of them, every step: by what they make. `views` are not stored.

    `naive` is SQL for a naive UTC timestamp from one with a time zone: DuckDB's quickest, or what any engine knows.
    """
    return {
        name: f"create temp view {name} as {source_sql(source, read_files_sql(tables.get(name, ())), naive)}"
        for name, source in definition.sources.items()
    } | {
        name: f"create temp {'view' if name in views else 'table'} {name} as {sql}"
        for name, sql in fill_steps(definition, interval, lead).items()
    }


def fill_steps(definition: FeatureSet, interval: Span, lead: timedelta) -> dict[str, str]:
    """The query of every step, by its name, for an interval and a lead."""
    placeholders = {
        "start": moment_sql(interval.start),
        "end": moment_sql(interval.end),
        "lead": f"interval '{lead // timedelta(seconds=1)}' second",
    }
    # Nothing else in braces is ours: a regular expression counts with them, and a struct is written with them.
    return {name: _PLACEHOLDER.sub(lambda m: placeholders[m[1]], sql) for name, sql in definition.steps.items()}


@contextmanager
def run_steps(
    definition: FeatureSet, tables: Mapping[str, Sequence[Path]], interval: Span, lead: timedelta
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that has the sources and every step of a definition."""
    with duckdb.connect() as connection:
        connection.execute("set TimeZone = 'UTC'")
        for statement in steps_sql(definition, tables, interval, lead).values():
            connection.execute(statement)
        yield connection


def points_sql(definition: FeatureSet, names: Iterable[str], *, write: Callable[[str], str] = doubles_sql) -> str:
    """A query of these columns of the points, in no order; a lookup that none of them mentions is left out."""
    columns = {name: write(definition.point_sql[name]) for name in names}
    texts = " ".join(columns.values())
    joins = [
        f"left join {lookup.stream} {name} on "
        + "".join(f"{name}.{column} = asked.{field} and " for column, field in lookup.on.items())
        + known_at_sql(name, "asked.prediction_time")
        for name, lookup in definition.lookups.items()
        if f"{name}." in texts
    ]
    return f"select {', '.join(f'{sql} as {name}' for name, sql in columns.items())} from asked {' '.join(joins)}"


def features_sql(definition: FeatureSet, *, write: Callable[[str], str] = doubles_sql) -> dict[str, str]:
    """Every feature by its name, typed: numbers are 32-bit floats."""
    return {name: f"cast({write(sql)} as float)" for name, sql in definition.numeric_sql.items()} | {
        name: f"cast({write(sql)} as varchar)" for name, sql in definition.categorical_sql.items()
    }


def mentioned_names(definition: FeatureSet) -> set[str]:
    """Every name that some feature mentions: the others need neither be computed nor kept."""
    return set(re.findall(r"\w+", " ".join([*definition.numeric_sql.values(), *definition.categorical_sql.values()])))


@contextmanager
def naming_undeclared_source(definition: FeatureSet) -> Iterator[None]:
    """Raises ValueError, with DuckDB's reason, where a source lacks a column or holds values of another type."""
    try:
        yield
    except (duckdb.BinderException, duckdb.ConversionException) as error:
        raise ValueError(f"features {definition.name}: a source is not as declared: {error}") from error


def build_by_sql(
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
        with naming_undeclared_source(definition):
            for statement in compile_sql(definition, tables, interval, lead):
                connection.execute(statement)
        return (
            connection.sql(f"select * from points_out order by {', '.join(POINT_ORDER)}").to_arrow_table(),
            connection.sql(f"select * from labels_out order by {', '.join(LABEL_ORDER)}").to_arrow_table(),
        )


def moment_sql(moment: datetime) -> str:
    """SQL: a moment as a naive UTC timestamp."""
    return f"timestamp '{moment.astimezone(UTC).replace(tzinfo=None)}'"


def read_files_sql(paths: Sequence[Path]) -> str | None:
    """SQL: the rows of Parquet files; None where there are no files."""
    files = ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths)
    return f"read_parquet([{files}])" if paths else None


def source_sql(source: SourceTable, rows: str | None, naive: Callable[[str], str] = naive_utc_sql) -> str:
    """SQL: a source as steps read it, of rows as they lie in files (None: there are none)."""
    columns = ", ".join(
        f"{_read(column, kind, naive) if rows else f'cast(null as {READ_AS.get(kind, kind)})'} as {column}"
        for column, kind in source.columns.items()
    )
    return f"select {columns} {f'from {rows}' if rows else 'where false'}"


def _read(column: str, kind: ColumnKind, naive: Callable[[str], str]) -> str:
    # NaN and infinity are no numbers: missing from here on, so that no sum or comparison ever meets them.
    if kind == "double":
        return f"case when isfinite(cast({column} as double)) then cast({column} as double) end"
    if kind == "decimal":  # as a client's text would be read: to the nearest double, whatever its digits
        return f"cast(cast({column} as varchar) as double)"
    if kind == "timestamp":
        return naive(f"cast({column} as timestamptz)")
    return f"cast({column} as {READ_AS.get(kind, kind)})"


def _preceding_sql(joined: Preceding) -> str:
    # Joined on the key and the day (this one or the one before), so that the work grows with the rows, not squared.
    moment = joined.fields[0]
    keys = " and ".join(f"s.{column} = p.{column}" for column in joined.key)
    return f"""
        select p.point_id, max({record_sql(joined.fields, "s.")}) as {joined.prefix} from points p
        join (
            select *, date_trunc('day', {moment}) as day from {joined.stream}
            union all select *, date_trunc('day', {moment}) + interval 1 day as day from {joined.stream}
        ) s on {keys} and s.day = date_trunc('day', p.event_time) and s.{moment} < p.event_time
            and s.{moment} >= p.event_time - interval {joined.span} and {known_at_sql("s", "p.prediction_time")}
        group by p.point_id
    """


def _points_out_sql(definition: FeatureSet, write: Callable[[str], str]) -> str:
    tables = [*(f"window_{w.prefix}" for w in definition.windows), *(f"joined_{j.prefix}" for j in definition.joined)]
    columns = [
        f"entity_key, {utc_sql('event_time')} as event_time, {utc_sql('prediction_time')} as prediction_time",
        *(f"{sql} as {name}" for name, sql in features_sql(definition, write=write).items()),
    ]
    joins = " ".join(f"left join {table} using (point_id)" for table in tables)
    return f"select {', '.join(columns)} from points {joins}"
