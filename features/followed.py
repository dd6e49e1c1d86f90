"""The series of a definition, kept current as rows of its sources come and go: a row costs the work of its grain.

The steps are run, as they are written, on the rows of the grains that a change touches, before it and after it. What
differs names the keys whose series are extracted again; the rest stays. So the series are at every moment those that a
rebuild from the same rows gives, to the byte: a property test holds them to it, and with them the declared grains.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from features.engine import (
    FeatureSet,
    FixedSpan,
    fill_steps,
    moment_sql,
    naming_undeclared_source,
    read_files_sql,
    source_sql,
)
from features.series import Series, extract_sql, list_series, point_kinds
from features.series_codec import key_texts, pack_series

_EVER = datetime(9999, 1, 1, tzinfo=UTC)  # what is to come is in the series too: no point looks beyond what it knows


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """Rows of one source, as they lie in clean files, in place of those of their identity; and identities that go."""

    rows: pa.Table
    gone: pa.Table


@dataclass(frozen=True)
class ChangedSeries:
    """Payloads by the texts of their keys; None: no event is left there."""

    settled: dict[str, bytes | None] = field(default_factory=dict)
    recent: dict[str, bytes | None] = field(default_factory=dict)


class FollowedSeries:
    """The series of one definition from `since` on; events from `split` on lie apart, so that what is new is small.

    `tables` are clean Parquet files, as `extract_series` takes them; `identities` are the columns that tell a source's
    rows apart. Nothing is forgotten: it is to be made anew, from later files, once a partition. For one thread.
    """

    def __init__(
        self,
        definition: FeatureSet,
        tables: Mapping[str, Sequence[Path]],
        identities: Mapping[str, Sequence[str]],
        *,
        since: datetime,
        split: datetime,
        lead: timedelta,
    ) -> None:
        self._definition, self._identities, self._since = definition, identities, since
        self._split = split.astimezone(UTC)
        self._steps = fill_steps(definition, FixedSpan(since, _EVER), lead)
        self._series = list_series(definition, point_kinds(definition))
        self._streams = list(dict.fromkeys(series.stream for series in self._series))
        self._reads = _list_sources_read(definition)
        self._connection = duckdb.connect(config={"threads": 1})  # most of what it is asked is small
        self._connection.execute("set TimeZone = 'UTC'")
        self._stored = set[str]()  # sources that have had a row, or a file
        self._standing = set[str]()  # steps that no change of another grain touches, as `standing_<step>`
        with naming_undeclared_source(definition):
            for name in definition.sources:
                if files := read_files_sql(tables.get(name, ())):
                    self._store(name, files)
            with self._run_steps(self._streams, {}):
                for stream in self._streams:
                    self._connection.execute(f"create table stream_{stream} as from {stream}")

    def close(self) -> None:
        """Free the memory."""
        self._connection.close()

    def pack_all(self) -> ChangedSeries:
        """Every series there is."""
        packed = ChangedSeries()
        for series in self._series:
            self._pack(packed, series)
        return packed

    def apply(self, changes: Mapping[str, SourceChange]) -> ChangedSeries:
        """Change the rows of sources, each identity at most once, and compute again what that touches.

        Raises:
            ValueError: rows lack a column, or hold values of another type; then nothing was changed.
        """
        packed, stored, standing = ChangedSeries(), set(self._stored), set(self._standing)
        by_grain = defaultdict[tuple[str, ...], list[str]](list)
        for name in changes:
            by_grain[self._definition.sources[name].grain].append(name)
        self._connection.execute("begin")
        try:
            with naming_undeclared_source(self._definition):
                for grain, names in by_grain.items():
                    for name in names:
                        self._stage(name, changes[name])
                    self._follow(packed, grain, names)
            self._connection.execute("commit")
        except BaseException:
            self._stored, self._standing = stored, standing
            self._connection.execute("rollback")
            raise
        return packed

    def _store(self, name: str, rows: str) -> None:
        columns = dict.fromkeys([*self._identities[name], *self._definition.sources[name].columns])
        self._connection.execute(f"create table raw_{name} as select {', '.join(columns)} from {rows}")
        self._stored.add(name)

    def _stage(self, name: str, change: SourceChange) -> None:
        """Put the rows that come, and those that they and the change take away, into temporary tables."""
        run, identity = self._connection.execute, self._identities[name]
        with self._registered(rows_given=change.rows, identities_given=change.gone):
            if name not in self._stored:
                self._store(name, "rows_given limit 0")
            columns = ", ".join(column for column, *_ in run(f"describe raw_{name}").fetchall())
            run(f"create temp table coming_{name} as select {columns} from rows_given")
            keys = f"select {', '.join(identity)} from"
            run(
                f"create temp table leaving_{name} as select r.* from (select rowid as place, * from raw_{name}) r"
                f" semi join ({keys} coming_{name} union all {keys} identities_given) i on {_same(identity, 'i', 'r')}"
            )

    @contextmanager
    def _registered(self, **tables: pa.Table) -> Iterator[None]:
        for name, table in tables.items():
            self._connection.register(name, table)
        yield
        for name in tables:  # after an error the next use of the name takes its place: the transaction takes no more
            self._connection.unregister(name)

    def _follow(self, packed: ChangedSeries, grain: Sequence[str], names: Sequence[str]) -> None:
        """Put staged rows of one grain in their place, compute again the streams that read it, and clear the stage."""
        sources = self._definition.sources
        changed = [name for name in sources if sources[name].grain == grain] if grain else names
        streams = [stream for stream in self._streams if self._reads[stream].intersection(changed)]
        only = self._touched_rows(grain, names, changed) if grain else {}
        if grain:
            self._compute("old", streams, only)
        for step in [step for step in self._standing if self._reads[step].intersection(names)]:
            self._connection.execute(f"drop table standing_{step}")
            self._standing.remove(step)
        for name in names:
            self._connection.execute(f"delete from raw_{name} where rowid in (select place from leaving_{name})")
            self._connection.execute(f"insert into raw_{name} by name from coming_{name}")
        self._compute("new", streams, only)
        for stream in streams:
            differs = self._replace(stream, f"old_{stream}" if grain else f"stream_{stream}", f"new_{stream}")
            for series in (each for each in self._series if each.stream == stream):
                self._pack(packed, series, differs)
        made = [f"{age}_{stream}" for stream in streams for age in ("old", "new")]
        for name in (*made, *(f"{staged}_{name}" for name in names for staged in ("coming", "leaving")), "touched"):
            self._connection.execute(f"drop table if exists {name}")

    def _touched_rows(self, grain: Sequence[str], names: Sequence[str], changed: Sequence[str]) -> dict[str, str]:
        """The condition by which each changed source keeps what has a grain of the staged rows."""
        sources, columns = self._definition.sources, ", ".join(grain)
        grains = " union ".join(
            f"select {columns} from ({source_sql(sources[name], f'{staged}_{name}')})"
            for name in names
            for staged in ("coming", "leaving")
        )
        self._connection.execute(f"create temp table touched as {grains}")
        return dict.fromkeys(changed, _same(grain, "t", "s"))

    def _compute(self, age: str, streams: Sequence[str], only: Mapping[str, str]) -> None:
        """Make the tables `<age>_<stream>` of some streams, of all rows or of some of each source."""
        with self._run_steps(streams, only):
            for stream in streams:
                self._connection.execute(f"create temp table {age}_{stream} as from {stream}")

    @contextmanager
    def _run_steps(self, wanted: Iterable[str], only: Mapping[str, str]) -> Iterator[None]:
        """Under their own names, sources and steps as far as these need them."""
        needed = set[str]().union(*(self._reads[name] for name in wanted))
        made = list[tuple[str, str]]()

        def make(kind: str, name: str, sql: str) -> None:
            self._connection.execute(f"create temp {kind} {name} as {sql}")
            made.append((kind, name))

        for name in self._definition.sources:
            if name in needed:  # what is left of a source is read by many a step: of a view, all would be, each time
                make("table" if name in only else "view", name, self._source_sql(name, only))
        for name, sql in self._steps.items():
            if name in needed and only and not self._reads[name].intersection(only):
                if name not in self._standing:
                    self._connection.execute(f"create table standing_{name} as {sql}")
                    self._standing.add(name)
                make("view", name, f"from standing_{name}")
            elif name in needed:
                make("table", name, sql)
        yield
        for kind, name in reversed(made):
            self._connection.execute(f"drop {kind} {name}")

    def _source_sql(self, name: str, only: Mapping[str, str]) -> str:
        rows = source_sql(self._definition.sources[name], f"raw_{name}" if name in self._stored else None)
        return f"select s.* from ({rows}) s semi join touched t on {only[name]}" if name in only else rows

    def _replace(self, stream: str, old: str, new: str) -> pa.Table:
        """Bring a stream to what was computed; the rows that come and go."""
        coming = self._connection.sql(f"from {new} except all from {old}").to_arrow_table()
        going = self._connection.sql(f"from {old} except all from {new}").to_arrow_table()
        if going.num_rows:
            with self._registered(rows_given=going):
                self._delete_equal(f"stream_{stream}", going.column_names)
        if coming.num_rows:
            with self._registered(rows_given=coming):
                self._connection.execute(f"insert into stream_{stream} from rows_given")
        return pa.concat_tables([coming, going])

    def _delete_equal(self, table: str, columns: Sequence[str]) -> None:
        """Of rows that are equal, as many as were given."""
        self._connection.execute(
            f"delete from {table} where rowid in (select place from (select s.rowid as place, g.copies,"
            f" row_number() over (partition by {', '.join(f's.{name}' for name in columns)}) as number from {table} s"
            f" join (select *, count(*) as copies from rows_given group by all) g on {_same(columns, 's', 'g')})"
            " where number <= copies)"
        )

    def _pack(self, packed: ChangedSeries, series: Series, differs: pa.Table | None = None) -> None:
        """Each key's series, in its parts; where rows differ, those of their keys only."""
        for recent in (False, True):
            if (side := self._side_sql(series, recent=recent)) is None:
                continue
            into, events = packed.recent if recent else packed.settled, f"stream_{series.stream} s"
            if differs is None:
                into |= self._extract(series, f"{events} where {side}")
            elif (keys := self._find_keys(series, differs, recent=recent)).num_rows:
                events += f" semi join keys_given k on {_same(series.key, 'k', 's')} where {side}"
                with self._registered(keys_given=keys):
                    into |= dict.fromkeys(key_texts(series, keys)) | self._extract(series, events)

    def _extract(self, series: Series, events: str) -> dict[str, bytes]:
        rows = self._connection.sql(extract_sql(series, f"(select s.* from {events})", self._since)).to_arrow_table()
        return dict(pack_series(series, rows))

    def _side_sql(self, series: Series, *, recent: bool) -> str | None:
        """SQL condition: the events of one part; None where a series has no such part."""
        if not _is_parted(series):
            return None if recent else "true"
        return f"{series.moment} {'>=' if recent else '<'} {moment_sql(self._split)}"

    def _find_keys(self, series: Series, rows: pa.Table, *, recent: bool) -> pa.Table:
        """The keys of rows that belong to one part; without columns, where a series has no key."""
        if _is_parted(series):
            moments = rows[series.moment]
            split = pa.scalar(self._split.replace(tzinfo=None), moments.type)
            rows = rows.filter((pc.greater_equal if recent else pc.less)(moments, split))
        if not series.key:
            return pa.table({"all": [True][: rows.num_rows]})
        return rows.select(series.key).drop_null().group_by(list(series.key)).aggregate([])


def _is_parted(series: Series) -> bool:
    """Whether its records compare by their moment first: ranks tell which is greater only within a part."""
    return all(fields[0] == series.moment for fields in series.orders)


def _same(columns: Sequence[str], left: str, right: str) -> str:
    return " and ".join(f"{left}.{name} is not distinct from {right}.{name}" for name in columns) or "true"


def _list_sources_read(definition: FeatureSet) -> dict[str, set[str]]:
    """For each source and step, the sources and steps that it is made of, and itself."""
    reads = {name: {name} for name in definition.sources}
    for name, sql in definition.steps.items():  # each builds on those before it
        words = set(re.findall(r"\w+", sql))  # a name that is not read costs time; one that is missed, the truth
        reads[name] = {name}.union(*(reads[each] for each in words if each in reads))
    return reads
