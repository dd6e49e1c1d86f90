"""What the rows of a source's table look like: its columns, its days, and when rows and targets become known."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import psycopg2
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.column_types import SourceColumn, arrow_type
from adapters.warehouse import Warehouse
from infra.new_use_case.answers import Answers
from infra.new_use_case.column_profile import ColumnProfile, profile_column
from infra.new_use_case.naming import name_all, name_table
from pipeline.fields import split_relation

STATEMENT_MS = 600_000  # a question of a large table
_FAR = 0.999  # of the rows: what lies beyond is an outlier
_LATE_SHARE = 0.99


@dataclass(frozen=True, kw_only=True)
class DayProfile:
    """A day (UTC): rows that became known in it, the last of them, and points predicted in it, with and without label.

    A label counts that is known by the label delay.
    """

    day: date
    rows: int
    latest: datetime | None
    points: int
    labelled: int


@dataclass(frozen=True, kw_only=True)
class TargetProfile:
    """The target where it is known: how many, its mean (binary: the share of ones), and how far from its median."""

    rows: int
    mean: float
    median: float
    distance: float


@dataclass(frozen=True, kw_only=True)
class TableProfile:
    """All that is derived from. `days` are in order, without a gap.

    `asked_share` of the rows are known before their prediction; those that are, up to `known_days` before it. A target
    becomes known up to `outcome_days` after its row; practically all do `label_hours` after the event.
    """

    name: str
    relation: str
    rows: int
    columns: tuple[ColumnProfile, ...]
    days: tuple[DayProfile, ...]
    target: TargetProfile
    asked_share: float
    known_days: float
    outcome_days: float
    label_hours: float

    def find(self, source: str) -> ColumnProfile:
        """The column that has this name in the source."""
        return next(column for column in self.columns if column.source == source)


def describe_table(source: Warehouse, relation: str) -> str:
    """The columns of a table with their kinds, for a person who is to choose among them.

    Raises:
        ValueError: there is no such table.
    """
    with source.transaction(snapshot=True) as at:
        columns = list_source_columns(source, at, relation)
    return "\n".join(f"  {c.name}: {kind_of(c)[0] or f'left out: {c.left_out}'}" for c in columns)


def kind_of(column: SourceColumn) -> tuple[str | None, tuple[int, int] | None]:
    """The kind that a suite declares it as, and its digits; None where it is left out."""
    if column.left_out:
        return None, None
    kind = arrow_type(column.oid, column.precision, column.scale)
    if pa.types.is_decimal(kind):
        return "decimal", (kind.precision, kind.scale)
    words = (
        ("boolean", pa.types.is_boolean),
        ("integer", pa.types.is_signed_integer),
        ("float", pa.types.is_floating),
        ("date", pa.types.is_date),
        ("timestamp", pa.types.is_timestamp),
    )
    return next((word for word, is_it in words if is_it(kind)), "text"), None


def read_profile(source: Warehouse, answers: Answers) -> TableProfile:
    """The profile of a table by answers that `find_column_mistakes` has nothing against.

    Raises:
        ValueError: no row says when it became known.
        psycopg2.Error, Unavailable: it cannot be read.
    """
    with source.transaction(snapshot=True) as at:
        at.execute("select set_config('statement_timeout', %s, true)", (str(STATEMENT_MS),))
        return _Reader(at, answers, list_source_columns(source, at, answers.table)).read()


def list_source_columns(source: Warehouse, at: cursor, relation: str) -> list[SourceColumn]:
    """The columns of a table, as the source has them.

    Raises:
        ValueError: there is no such table.
    """
    try:
        query = sql.SQL("select * from {}").format(sql.Identifier(*split_relation(relation)))
        return source.describe_columns(query, at=at)
    except psycopg2.errors.UndefinedTable as error:
        raise ValueError(f"--table: the source has no table {relation}") from error
    except ValueError as error:
        raise ValueError(f"--table: {error}, got {relation!r}") from error


def is_clock(column: SourceColumn) -> bool:
    """Whether it is a timestamp that says no zone."""
    kind = arrow_type(column.oid, column.precision, column.scale)
    return bool(pa.types.is_timestamp(kind)) and kind.tz is None


class _Reader:
    """The queries, by what was answered."""

    def __init__(self, at: cursor, answers: Answers, found: Sequence[SourceColumn]) -> None:
        self._at, self._answers, self._found = at, answers, {column.name: column for column in found}
        self._table = sql.Identifier(*split_relation(answers.table))
        self._known, self._event = self._moment(answers.available_at), self._moment(answers.event_time)
        asked = sql.SQL("({} - {} * interval '1 minute')")
        self._asked = asked.format(self._event, sql.Literal(answers.lead_minutes))
        due = sql.SQL("({} + {} * interval '1 hour')").format(self._event, sql.Literal(answers.label_delay_hours))
        self._due = due
        told = self._moment(answers.label_known_at) if answers.label_known_at else due
        self._told = sql.SQL("greatest({}, {})").format(self._known, told)
        self._label = self._label_sql()

    def read(self) -> TableProfile:
        relation = split_relation(self._answers.table)
        days, rows = self._read_days(), self._ask("select count(*) from {table}")[0][0]
        if not days:
            raise ValueError(f"--available-at: no row of {self._answers.table} says when it became known")
        names = name_all(self._found, self._free())
        columns = tuple(
            profile_column(self._at, self._table, column, names[column.name], kind_of(column), self._moment_of(column),
                           self._known, sql.Identifier(self._answers.target), self._zone_of(column), rows)
            for column in self._found.values()
        )  # fmt: skip
        return TableProfile(
            name=name_table(relation[-1]),
            relation=self._answers.table,
            rows=rows,
            columns=columns,
            days=days,
            target=self._read_target(),
            **self._read_delays(),
        )

    def _free(self) -> list[str]:
        roles = {self._answers.available_at: "known_at", self._answers.event_time: "event_time"}
        return [column for column, name in roles.items() if column == name]

    def _zone_of(self, column: SourceColumn) -> str | None:
        return self._answers.zone if is_clock(column) else None

    def _moment_of(self, column: SourceColumn) -> sql.Composable | None:
        return self._moment(column.name) if kind_of(column)[0] == "timestamp" else None

    def _moment(self, name: str) -> sql.Composable:
        """A column as a moment: a clock in its zone, a day as the midnight in UTC that it begins with."""
        column = self._found[name]
        if kind_of(column)[0] == "date":
            return sql.SQL("({}::timestamp at time zone 'UTC')").format(sql.Identifier(name))
        if is_clock(column):
            return sql.SQL("({} at time zone {})").format(sql.Identifier(name), sql.Literal(self._answers.zone))
        return sql.Identifier(name)

    def _label_sql(self) -> sql.Composable:
        name = sql.Identifier(self._answers.target)
        if self._answers.positive is not None:
            return sql.SQL("({}::text = {})::int::float8").format(name, sql.Literal(self._answers.positive))
        is_boolean = kind_of(self._found[self._answers.target])[0] == "boolean"
        finite = "case when {}::text not in ('NaN', 'Infinity', '-Infinity') then {}::float8 end"
        return sql.SQL("{}::int::float8").format(name) if is_boolean else sql.SQL(finite).format(name, name)

    def _ask(self, query: str) -> list[tuple[Any, ...]]:
        parts = {"table": self._table, "known": self._known, "event": self._event, "asked": self._asked,
                 "due": self._due, "told": self._told, "label": self._label,
                 "far": sql.Literal(_FAR), "late": sql.Literal(_LATE_SHARE)}  # fmt: skip
        self._at.execute(sql.SQL(query).format(**parts))
        return [tuple(row) for row in self._at.fetchall()]

    def _read_days(self) -> tuple[DayProfile, ...]:
        known = self._ask(
            "select ({known} at time zone 'UTC')::date, count(*), max({known}) from {table}"
            " where {known} > '-infinity' and {known} < 'infinity' group by 1"
        )
        asked = self._ask(
            "select ({asked} at time zone 'UTC')::date, count(*), count({label}) filter (where {told} <= {due})"
            " from {table} where {known} <= {asked} and {event} < 'infinity' group by 1"
        )
        rows, points = {row[0]: row for row in known}, {row[0]: row for row in asked}
        ordinals = [day.toordinal() for day in rows if isinstance(day, date)]
        days = [date.fromordinal(n) for n in range(min(ordinals), max(ordinals) + 1)] if ordinals else []
        return tuple(
            DayProfile(day=day, rows=there[1], latest=there[2], points=predicted[1], labelled=predicted[2])
            for day in days
            for there, predicted in [(rows.get(day, (day, 0, None)), points.get(day, (day, 0, 0)))]
        )

    def _read_target(self) -> TargetProfile:
        [(rows, mean, median)] = self._ask(
            "select count(*), avg({label}), percentile_cont(0.5) within group (order by {label})"
            " from {table} where {label} is not null"
        )
        [(distance,)] = self._ask(
            f"select avg(abs({{label}} - ({median}))) from {{table}} where {{label}} is not null"  # noqa: S608  # a number
        )
        return TargetProfile(rows=rows, mean=mean, median=median, distance=distance)

    def _read_delays(self) -> dict[str, float]:
        [(share, known, outcome, hours)] = self._ask(
            "select avg(({known} <= {asked})::int),"
            " percentile_disc({far}) within group (order by extract(epoch from {asked} - {known}))"
            "   filter (where {known} <= {asked}),"
            " percentile_disc({far}) within group (order by extract(epoch from {told} - {known}))"
            "   filter (where {label} is not null),"
            " percentile_disc({late}) within group (order by extract(epoch from {told} - {event}))"
            "   filter (where {label} is not null and {known} <= {asked})"
            " from {table} where {known} > '-infinity' and {known} < 'infinity' and {event} < 'infinity'"
        )
        return {
            "asked_share": float(share or 0),
            "known_days": float(known or 0) / 86400,
            "outcome_days": float(outcome or 0) / 86400,
            "label_hours": float(hours or 0) / 3600,
        }
