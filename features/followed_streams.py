"""The streams of a definition, kept current as rows of its sources come and go: a row costs the work of its grain.

The steps are run, as they are written, on the rows of the grains that a change touches, before it and after it; what
differs is what changes of the streams.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from features.engine import (
    FeatureSet,
    FixedSpan,
    Span,
    fill_steps,
    moment_sql,
    naming_undeclared_source,
    source_sql,
)
from features.raw_rows import RawRows, registered
from features.row_sql import equal_places_sql, same_sql
from features.stream_change import RecentPart, SourceChange, SourceKey, StreamChange, is_later

_EVER = datetime(9999, 1, 1, tzinfo=UTC)  # what is to come is in the streams too: no point looks beyond what it knows


class FollowedStreams:
    """The streams of one definition, as tables `stream_<name>` of `connection`. For one thread.

    Nothing is forgotten: they are to be made anew, from later files, once a partition.
    """

    def __init__(
        self,
        definition: FeatureSet,
        tables: Mapping[str, Sequence[Path]],
        keys: Mapping[str, SourceKey],
        *,
        since: datetime,
        lead: timedelta,
        parts: Mapping[str, RecentPart | None],
    ) -> None:
        """`tables` are clean Parquet files, by source; `parts` are the streams to follow, and what lies apart of each.

        Raises:
            ValueError: a source is not as declared.
        """
        self._definition, self.parts = definition, dict(parts)
        self._steps = fill_steps(definition, FixedSpan(since, _EVER), lead)
        self._reads = _list_sources_read(definition)
        self.connection = duckdb.connect(config={"threads": 1})  # most of what it is asked is small
        self._run("set TimeZone = 'UTC'")
        self._rows = RawRows(self.connection, definition, keys)
        self._standing = set[str]()  # steps that no change of another grain touches, as `standing_<step>`
        with naming_undeclared_source(definition):
            for name in definition.sources:
                self._rows.load(name, tables.get(name, ()))
            with self._run_steps(self.parts, {}):
                for stream, recent in self.parts.items():
                    later = recent and f"{recent.moment} >= {moment_sql(recent.split.replace(tzinfo=UTC))}"
                    self._run(
                        f"create table stream_{stream} as from {stream}"
                        + (f" where ({later}) is not true" if later else "")
                    )
                    if later:
                        self._run(f"create table recent_{stream} as from {stream} where {later}")

    @contextmanager
    def changed(self, changes: Mapping[str, SourceChange]) -> Iterator[dict[str, StreamChange]]:
        """Change the rows of sources, each identity at most once; what changes of each stream that reads them.

        An error within the block, as one before it, leaves all as it was.

        Raises:
            ValueError: rows lack a column, or hold values of another type.
        """
        with self._kept_on_error():
            for name, change in changes.items():
                self._rows.stage(name, change)
            found = self._follow_staged()
            yield found

    @contextmanager
    def moved(
        self, files: Mapping[str, Sequence[Path]], spans: Mapping[str, Span], kept: Mapping[str, pa.Table]
    ) -> Iterator[dict[str, StreamChange]]:
        """Make the rows that became known in a span those of clean files, by source; what changes of the streams.

        Rows of the identities in `kept` stay as they are. For errors see `changed`.
        """
        with self._kept_on_error():
            for name in self._definition.sources:
                self._rows.stage_files(name, files.get(name, ()), spans[name], kept[name])
            yield self._follow_staged()

    @contextmanager
    def _kept_on_error(self) -> Iterator[None]:
        stored, standing = set(self._rows.stored), set(self._standing)
        self._run("begin")
        try:
            with naming_undeclared_source(self._definition):
                yield
            self._run("commit")
        except BaseException:
            self._standing = standing
            self._run("rollback")
            self._rows.restore(stored)
            raise

    def _follow_staged(self) -> dict[str, StreamChange]:
        """Put staged rows in their place, and bring the streams to what follows; what changes of them."""
        found, by_grain = dict[str, StreamChange](), defaultdict[tuple[str, ...], list[str]](list)
        for name in self._rows.list_staged():
            by_grain[self._definition.sources[name].grain].append(name)
        for grain, names in by_grain.items():
            for stream, change in self._follow_grain(grain, names) if grain else self._follow_all(names):
                self._bring(stream, change)
                found[stream] = found[stream].then(change) if stream in found else change
            self._rows.drop_staged(names)
        return found

    def shift_split(self, split: datetime) -> None:
        """From now on what lies apart begins at a later moment (naive UTC); the rest goes to the other rows."""
        self.parts = {stream: part and replace(part, split=split) for stream, part in self.parts.items()}
        for stream, part in self.parts.items():
            if part is not None:
                earlier = f"{part.moment} < {moment_sql(split.replace(tzinfo=UTC))}"
                self._run(f"insert into stream_{stream} from recent_{stream} where {earlier}")
                self._run(f"delete from recent_{stream} where {earlier}")

    def read_recent(self, stream: str) -> pa.Table:
        """The rows of a stream that lie apart."""
        return self._fetch(f"from recent_{stream}")

    def read_schema(self, stream: str) -> pa.Schema:
        """The columns of a stream."""
        return self._fetch(f"from stream_{stream} limit 0").schema

    def _run(self, statement: str) -> None:
        self.connection.execute(statement)

    def _fetch(self, query: str) -> pa.Table:
        return self.connection.sql(query).to_arrow_table()

    def _forget_standing(self, names: Iterable[str]) -> None:
        for step in [step for step in self._standing if self._reads[step].intersection(names)]:
            self._run(f"drop table standing_{step}")
            self._standing.remove(step)

    def _list_streams(self, changed: Iterable[str]) -> list[str]:
        return [stream for stream in self.parts if self._reads[stream].intersection(changed)]

    def _follow_all(self, names: Sequence[str]) -> list[tuple[str, StreamChange]]:
        """Put staged rows of sources without a grain in their place; what differs of all that is made of them."""
        self._forget_standing(names)
        for name in names:
            self._rows.put(name, f"({self._rows.leaving_sql(name, f'(select rowid as place, * from raw_{name})')})")
        found = []
        streams = self._list_streams(names)
        with self._run_steps(streams, {}):
            for stream in streams:
                both = f"from recent_{stream} union all " if self.parts[stream] else ""
                was = f"({both}from stream_{stream})"
                coming = self._fetch(f"from {stream} except all from {was}")
                found.append((stream, StreamChange(coming, self._fetch(f"from {was} except all from {stream}"))))
        return found

    def _follow_grain(self, grain: Sequence[str], names: Sequence[str]) -> list[tuple[str, StreamChange]]:
        """Put staged rows of one grain in their place; what differs of what is made of the rows of their grains."""
        sources = self._definition.sources
        changed = [name for name in sources if sources[name].grain == grain and name in self._rows.stored]
        same = self._touch(grain, names)
        for name in changed:
            rows = f"(select rowid as place, * from raw_{name}) r"
            self._run(f"create temp table before_{name} as select r.* from {rows} semi join touched t on {same}")
            leaving = self._rows.leaving_sql(name, f"before_{name}") if name in names else f"from before_{name} limit 0"
            self._run(f"create temp table leaving_{name} as {leaving}")
        streams = self._list_streams(changed)
        old = self._compute(streams, {name: f"from before_{name}" for name in changed})
        for name in names:
            self._rows.put(name, f"leaving_{name}")
        stay = "where place not in (select place from leaving_{0})"
        new = self._compute(
            streams,
            {
                name: f"from before_{name} {stay.format(name)}"
                + (f" union all by name from coming_{name}" if name in names else "")
                for name in changed
            },
        )
        for name in ("touched", *(f"{staged}_{name}" for name in changed for staged in ("before", "leaving"))):
            self._run(f"drop table {name}")
        return [(stream, StreamChange.between(old[stream], new[stream])) for stream in streams]

    def _touch(self, grain: Sequence[str], names: Sequence[str]) -> str:
        """Make a table `touched` of the grains of staged rows; the condition by which a row `r` has one `t` of them."""
        columns, parts = ", ".join(grain), list[str]()
        for name in names:
            parts.append(f"select {columns} from coming_{name}")
            # Those that others take the place of have their grains, where the grain is told by the identity.
            if not self._rows.is_grain_told(name, grain):
                rows = f"(select rowid as place, * from raw_{name})"
                parts.append(f"select {columns} from ({self._rows.leaving_sql(name, rows)})")
        self._run(f"create temp table touched as {' union '.join(parts)}")
        [(has_nothing,)] = self.connection.execute(
            f"select coalesce(bool_or({' or '.join(f'{name} is null' for name in grain)}), false) from touched"
        ).fetchall()
        return same_sql(grain, "t", "r") if has_nothing else " and ".join(f"t.{name} = r.{name}" for name in grain)

    def _compute(self, streams: Sequence[str], only: Mapping[str, str]) -> dict[str, pa.Table]:
        """Streams made of some rows of some sources, and of all rows of the others."""
        with self._run_steps(streams, only):
            return {stream: self._fetch(f"from {stream}") for stream in streams}

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
        if name not in self._rows.stored:
            return source_sql(self._definition.sources[name], None)
        columns = ", ".join(self._definition.sources[name].columns)
        return f"select {columns} from ({only.get(name, f'from raw_{name}')})"

    def _bring(self, stream: str, change: StreamChange) -> None:
        """Bring a stream's tables to what was computed."""
        for table, part in self._divide(stream, change):
            if part.going.num_rows:
                with registered(self.connection, rows_given=part.going):
                    rows = f"(select rowid as place, * from {table})"
                    places = equal_places_sql(rows, "rows_given", part.going.column_names)
                    self._run(f"delete from {table} where rowid in ({places})")
            if part.coming.num_rows:
                with registered(self.connection, rows_given=part.coming):
                    self._run(f"insert into {table} from rows_given")

    def _divide(self, stream: str, change: StreamChange) -> list[tuple[str, StreamChange]]:
        recent = self.parts[stream]
        if recent is None:
            return [(f"stream_{stream}", change)]
        later = change.filter(lambda rows: is_later(rows[recent.moment], recent.split))
        settled = change.filter(lambda rows: pc.invert(is_later(rows[recent.moment], recent.split)))
        return [(f"stream_{stream}", settled), (f"recent_{stream}", later)]


def _list_sources_read(definition: FeatureSet) -> dict[str, set[str]]:
    """For each source and step, the sources and steps that it is made of, and itself."""
    reads = {name: {name} for name in definition.sources}
    for name, sql in definition.steps.items():  # each builds on those before it
        words = set(re.findall(r"\w+", sql))  # a name that is not read costs time; one that is missed, the truth
        reads[name] = {name}.union(*(reads[each] for each in words if each in reads))
    return reads
