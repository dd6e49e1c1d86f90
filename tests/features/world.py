"""A small world of real flights: every fifth flight number of three weeks, as the engine reads it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features import FeatureSet, build, definition
from tests.clean_data import TABLES, clean_rows, week

LEAD = timedelta(minutes=120)
FLIGHTS = definition("flights")
World = dict[str, pa.Table]
Build = Callable[..., tuple[pa.Table, pa.Table]]


@dataclass(frozen=True)
class Span:
    """An interval, as the engine sees one."""

    start: datetime
    end: datetime


def day(number: int, hour: int = 0) -> datetime:
    """A moment of January 2013."""
    return datetime(2013, 1, number, hour, tzinfo=UTC)


@cache
def small_world(weeks: int = 3) -> World:
    """Real rows, thinned: enough for every feature to have something to say."""
    found = {name: pa.concat_tables([clean_rows(name, week(n)) for n in range(weeks)]) for name in TABLES}
    return found | {name: thinned(found[name]) for name in ("flights", "movements")}


def thinned(table: pa.Table) -> pa.Table:
    """Rows of every fifth flight number."""
    number = pc.cast(table["flight"], pa.int64())
    return table.filter(pc.equal(pc.subtract(number, pc.multiply(pc.divide(number, 5), 5)), 0))


def engine(
    world: World, start: datetime, end: datetime, asked: FeatureSet = FLIGHTS, *, by: Build = build
) -> tuple[pa.Table, pa.Table]:
    """Points and labels of an interval."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for name, table in world.items():
            paths[name] = [Path(folder) / f"{name}.parquet"]
            pq.write_table(table, paths[name][0])
        return by(asked, paths, Span(start, end), LEAD)


def changed(table: pa.Table, **values: object) -> pa.Table:
    """The table with constants in place of some columns."""
    for name, value in values.items():
        kind = table.schema.field(name).type
        position = table.column_names.index(name)
        table = table.set_column(position, table.schema.field(name), pa.array([value] * table.num_rows, kind))
    return table


def held_up(table: pa.Table, since: datetime, until: datetime) -> pa.Table:
    """The table with what became known in [since, until) known at its end only."""
    known = table["known_at"]
    late = pc.and_(
        pc.greater_equal(known, pa.scalar(since, known.type)),
        pc.less(known, pa.scalar(until, known.type)),
    )
    return pa.concat_tables([table.filter(pc.invert(late)), changed(table.filter(late), known_at=until)])


def moved(before: pa.Table, after: pa.Table) -> list[str]:
    """The features that differ anywhere; both tables must hold the same points."""
    assert before.select(["entity_key", "event_time"]).equals(after.select(["entity_key", "event_time"]))
    return [
        name for name in before.column_names if not before[name].combine_chunks().equals(after[name].combine_chunks())
    ]
