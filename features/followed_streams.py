"""The streams of a definition, kept current as rows of its sources come and go: a row costs the work of its grain.

The steps are run, as they are written, on the rows of the grains that a change touches, before it and after it; what
differs is what changes of the streams.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa

from features.engine import FeatureSet, FixedSpan, fill_steps, naming_undeclared_source, read_files_sql, source_sql

_EVER = datetime(9999, 1, 1, tzinfo=UTC)  # what is to come is in the streams too: no point looks beyond what it knows


@dataclass(frozen=True, kw_only=True)
class SourceChange:
    """Rows of one source, as they lie in clean files, in place of those of their identity; and identities that go."""

    rows: pa.Table
    gone: pa.Table


@dataclass(frozen=True)
class StreamChange:
    """Rows that came into a stream, and rows that went."""

    coming: pa.Table
    going: pa.Table

    @property
    def rows(self) -> pa.Table:
        """All of them."""
        return pa.concat_tables([self.coming, self.going])

    def then(self, later: "StreamChange") -> "StreamChange":
        """This change and one after it."""
        return StreamChange(pa.concat_tables([self.coming, later.coming]), pa.concat_tables([self.going, later.going]))


class FollowedStreams:
    """The streams of one definition, as tables `stream_<name>` of `connection`. For one thread.

    Nothing is forgotten: they are to be made anew, from later files, once a partition.
    """

    def __init__(
        self,
        definition: FeatureSet,
        tables: Mapping[str, Sequence[Path]],
        identities: Mapping[str, Sequence[str]],
        *,
        since: datetime,
        lead: timedelta,
        streams: Iterable[str],
    ) -> None:
        """`tables` are clean Parquet files; `identities` are the columns that tell a source's rows apart.

        Raises:
            ValueError: a source is not as declared.
        """
        self._definition, self._identities = definition, identities
        self._steps = fill_steps(definition, FixedSpan(since, _EVER), lead)
        self._streams = list(dict.fromkeys(streams))
        self._reads = _list_sources_read(definition)
        self.connection = duckdb.connect(config={"threads": 1})  # most of what it is asked is small
        self._run("set TimeZone = 'UTC'")
        self._stored = set[str]()  # sources that have had a row, or a file
        self._standing = set[str]()  # steps that no change of another grain touches, as `standing_<step>`
        with naming_undeclared_source(definition):
            for name in definition.sources:
                if files := read_files_sql(tables.get(name, ())):
                    self._store(name, files)
            with self._run_steps(self._streams, {}):
                for stream in self._streams:
                    self._run(f"create table stream_{stream} as from {stream}")

    @contextmanager
    def changed(self, changes: Mapping[str, SourceChange]) -> Iterator[dict[str, StreamChange]]:
        """Change the rows of sources, each identity at most once; what changes of each stream that reads them.

        An error within the block, as one before it, leaves all as it was.

        Raises:
            ValueError: rows lack a column, or hold values of another type.
        """
        found, stored, standing = dict[str, StreamChange](), set(self._stored), set(self._standing)
        by_grain = defaultdict[tuple[str, ...], list[str]](list)
        for name in changes:
            by_grain[self._definition.sources[name].grain].append(name)
        self._run("begin")
        try:
            with naming_undeclared_source(self._definition):
                for grain, names in by_grain.items():
                    for name in names:
                        self._stage(name, changes[name])
                    for stream, change in self._follow(grain, names):
                        found[stream] = found[stream].then(change) if stream in found else change
                yield found
            self._run("commit")
        except BaseException:
            self._stored, self._standing = stored, standing
            self._run("rollback")
            raise

    @contextmanager
    def registered(self, **tables: pa.Table) -> Iterator[None]:
        """Let SQL read Arrow tables by these names."""
        for name, table in tables.items():
            self.connection.register(name, table)
        yield
        for name in tables:  # after an error the next use of the name takes its place: the transaction takes no more
            self.connection.unregister(name)

    def _run(self, statement: str) -> None:
        self.connection.execute(statement)

    def _store(self, name: str, rows: str) -> None:
        columns = dict.fromkeys([*self._identities[name], *self._definition.sources[name].columns])
        self._run(f"create table raw_{name} as select {', '.join(columns)} from {rows}")
        self._stored.add(name)

    def _stage(self, name: str, change: SourceChange) -> None:
        """Put the rows that come, and those that they and the change take away, into temporary tables."""
        identity = self._identities[name]
        with self.registered(rows_given=change.rows, identities_given=change.gone):
            if name not in self._stored:
                self._store(name, "rows_given limit 0")
            described = self.connection.execute(f"describe raw_{name}").fetchall()
            columns = ", ".join(column for column, *_ in described)
            self._run(f"create temp table coming_{name} as select {columns} from rows_given")
            keys, same = f"select {', '.join(identity)} from", same_sql(identity, "i", "r")
            self._run(
                f"create temp table leaving_{name} as select r.* from (select rowid as place, * from raw_{name}) r"
                f" semi join ({keys} coming_{name} union all {keys} identities_given) i on {same}"
            )

    def _follow(self, grain: Sequence[str], names: Sequence[str]) -> list[tuple[str, StreamChange]]:
        """Put staged rows of one grain in their place, bring the streams that read it to them, and clear the stage."""
        sources = self._definition.sources
        changed = [name for name in sources if sources[name].grain == grain] if grain else names
        streams = [stream for stream in self._streams if self._reads[stream].intersection(changed)]
        only = self._touched_rows(grain, names, changed) if grain else {}
        if grain:
            self._compute("old", streams, only)
        for step in [step for step in self._standing if self._reads[step].intersection(names)]:
            self._run(f"drop table standing_{step}")
            self._standing.remove(step)
        for name in names:
            self._run(f"delete from raw_{name} where rowid in (select place from leaving_{name})")
            self._run(f"insert into raw_{name} by name from coming_{name}")
        self._compute("new", streams, only)
        found = [
            (stream, self._replace(stream, f"old_{stream}" if grain else f"stream_{stream}", f"new_{stream}"))
            for stream in streams
        ]
        made = [f"{age}_{stream}" for stream in streams for age in ("old", "new")]
        for name in (*made, *(f"{staged}_{name}" for name in names for staged in ("coming", "leaving")), "touched"):
            self._run(f"drop table if exists {name}")
        return found

    def _touched_rows(self, grain: Sequence[str], names: Sequence[str], changed: Sequence[str]) -> dict[str, str]:
        """The condition by which each changed source keeps what has a grain of the staged rows."""
        sources, columns = self._definition.sources, ", ".join(grain)
        grains = " union ".join(
            f"select {columns} from ({source_sql(sources[name], f'{staged}_{name}')})"
            for name in names
            for staged in ("coming", "leaving")
        )
        self._run(f"create temp table touched as {grains}")
        return dict.fromkeys(changed, same_sql(grain, "t", "s"))

    def _compute(self, age: str, streams: Sequence[str], only: Mapping[str, str]) -> None:
        """Make the tables `<age>_<stream>` of some streams, of all rows or of some of each source."""
        with self._run_steps(streams, only):
            for stream in streams:
                self._run(f"create temp table {age}_{stream} as from {stream}")

    @contextmanager
    def _run_steps(self, wanted: Iterable[str], only: Mapping[str, str]) -> Iterator[None]:
        """Under their own names, sources and steps as far as these need them."""
        needed = set[str]().union(*(self._reads[name] for name in wanted))
        made = list[tuple[str, str]]()

        def make(kind: str, name: str, sql: str) -> None:
            self._run(f"create temp {kind} {name} as {sql}")
            made.append((kind, name))

        for name in self._definition.sources:
            if name in needed:  # what is left of a source is read by many a step: of a view, all would be, each time
                make("table" if name in only else "view", name, self._source_sql(name, only))
        for name, sql in self._steps.items():
            if name in needed and only and not self._reads[name].intersection(only):
                if name not in self._standing:
                    self._run(f"create table standing_{name} as {sql}")
                    self._standing.add(name)
                make("view", name, f"from standing_{name}")
            elif name in needed:
                make("table", name, sql)
        yield
        for kind, name in reversed(made):
            self._run(f"drop {kind} {name}")

    def _source_sql(self, name: str, only: Mapping[str, str]) -> str:
        rows = source_sql(self._definition.sources[name], f"raw_{name}" if name in self._stored else None)
        return f"select s.* from ({rows}) s semi join touched t on {only[name]}" if name in only else rows

    def _replace(self, stream: str, old: str, new: str) -> StreamChange:
        """Bring a stream to what was computed."""
        coming = self.connection.sql(f"from {new} except all from {old}").to_arrow_table()
        going = self.connection.sql(f"from {old} except all from {new}").to_arrow_table()
        if going.num_rows:
            with self.registered(rows_given=going):
                self._delete_equal(f"stream_{stream}", going.column_names)
        if coming.num_rows:
            with self.registered(rows_given=coming):
                self._run(f"insert into stream_{stream} from rows_given")
        return StreamChange(coming, going)

    def _delete_equal(self, table: str, columns: Sequence[str]) -> None:
        """Of rows that are equal, as many as were given."""
        self._run(
            f"delete from {table} where rowid in (select place from (select s.rowid as place, g.copies,"
            f" row_number() over (partition by {', '.join(f's.{name}' for name in columns)}) as number from {table} s"
            f" join (select *, count(*) as copies from rows_given group by all) g on {same_sql(columns, 's', 'g')})"
            " where number <= copies)"
        )


def same_sql(columns: Sequence[str], left: str, right: str) -> str:
    """SQL condition: two tables have the same in these columns, nothing being the same as nothing."""
    return " and ".join(f"{left}.{name} is not distinct from {right}.{name}" for name in columns) or "true"


def _list_sources_read(definition: FeatureSet) -> dict[str, set[str]]:
    """For each source and step, the sources and steps that it is made of, and itself."""
    reads = {name: {name} for name in definition.sources}
    for name, sql in definition.steps.items():  # each builds on those before it
        words = set(re.findall(r"\w+", sql))  # a name that is not read costs time; one that is missed, the truth
        reads[name] = {name}.union(*(reads[each] for each in words if each in reads))
    return reads
