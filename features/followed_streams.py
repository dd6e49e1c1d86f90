"""The streams of a definition, kept current as rows of its sources come and go: a row costs the work of its grain.

The steps are run, as they are written, on the rows of the grains that a change touches; what differs from what was held
of these grains is what changes of the streams. Where that is not told by the rows, they are run on the old ones, too.
"""

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
)
from features.raw_rows import RawRows, registered
from features.recent_events import RecentPart
from features.row_sql import equal_places_sql, same_sql
from features.step_tables import StepTables
from features.stream_change import SourceChange, SourceKey, StreamChange, is_later, to_tuples

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
        self.connection = duckdb.connect(config={"threads": 1})  # most of what it is asked is small
        self._run("set TimeZone = 'UTC'")
        self._rows = RawRows(self.connection, definition, keys)
        steps = fill_steps(definition, FixedSpan(since, _EVER), lead)
        self._steps = StepTables(self.connection, definition, steps, self._rows)
        self._recent = dict[str, pa.Table]()  # what lies apart
        with naming_undeclared_source(definition):
            for name in definition.sources:
                self._rows.load(name, tables.get(name, ()))
            with self._steps.run(self.parts, {}):
                for stream, recent in self.parts.items():
                    later = recent and f"{recent.moment} >= {moment_sql(recent.split.replace(tzinfo=UTC))}"
                    self._run(
                        f"create table stream_{stream} as from {stream}"
                        + (f" where ({later}) is not true" if later else "")
                    )
                    if later:
                        self._recent[stream] = self._fetch(f"from {stream} where {later}")
            self._told = self._list_told()

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

        Rows of the identities in `kept` stay as they are, as do all rows of other sources. For errors see `changed`.
        """
        with self._kept_on_error():
            for name, span in spans.items():
                self._rows.stage_files(name, files.get(name, ()), span, kept[name])
            yield self._follow_staged()

    @contextmanager
    def _kept_on_error(self) -> Iterator[None]:
        stored, standing, recent = set(self._rows.stored), set(self._steps.standing), dict(self._recent)
        self._run("begin")
        try:
            with naming_undeclared_source(self._definition):
                yield
            self._run("commit")
        except BaseException:
            self._steps.restore(standing)
            self._recent = recent
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
                rows = self._recent[stream]
                later = is_later(rows[part.moment], split)
                self._insert(f"stream_{stream}", rows.filter(pc.invert(later)))
                self._recent[stream] = rows.filter(later)

    def read_recent(self, stream: str) -> pa.Table:
        """The rows of a stream that lie apart."""
        return self._recent[stream]

    def read_schema(self, stream: str) -> pa.Schema:
        """The columns of a stream."""
        return self._fetch(f"from stream_{stream} limit 0").schema

    def _run(self, statement: str) -> None:
        self.connection.execute(statement)

    def _fetch(self, query: str) -> pa.Table:
        return self.connection.sql(query).to_arrow_table()

    def _list_streams(self, changed: Iterable[str]) -> list[str]:
        return [stream for stream in self.parts if self._steps.reads[stream].intersection(changed)]

    def _follow_all(self, names: Sequence[str]) -> list[tuple[str, StreamChange]]:
        """Put staged rows of sources without a grain in their place; what differs of all that is made of them."""
        self._steps.forget_standing(names)
        for name in names:
            self._rows.put(name, f"({self._rows.leaving_sql(name, f'(select rowid as place, * from raw_{name})')})")
        found = []
        streams = self._list_streams(names)
        with self._steps.run(streams, {}):
            for stream in streams:
                with self._all_rows(stream) as was:
                    coming = self._fetch(f"from {stream} except all from {was}")
                    found.append((stream, StreamChange(coming, self._fetch(f"from {was} except all from {stream}"))))
        return found

    def _follow_grain(self, grain: Sequence[str], names: Sequence[str]) -> list[tuple[str, StreamChange]]:
        """Put staged rows of one grain in their place; what differs of what is made of the rows of their grains."""
        self._steps.forget_standing(names)
        sources = self._definition.sources
        changed = [name for name in sources if sources[name].grain == grain and name in self._rows.stored]
        same = self._touch(grain, names)
        for name in changed:
            rows = f"(select rowid as place, * from raw_{name}) r"
            self._run(f"create temp table before_{name} as select r.* from {rows} semi join touched t on {same}")
        for name in names:
            self._run(f"create temp table leaving_{name} as {self._rows.leaving_sql(name, f'before_{name}')}")
        streams, before = self._list_streams(names), {name: f"from before_{name}" for name in changed}
        stay = "{0} where place not in (select place from leaving_{1}) union all by name from coming_{1}"
        with self._steps.run(streams, before | {name: stay.format(before[name], name) for name in names}):
            new = {stream: self._fetch(self._steps.read_sql(stream)) for stream in streams}
            told = self._find_told(grain, new)
            rest = [stream for stream in streams if stream not in told]
            self._steps.change({name: before[name] for name in names}, rest)
            old = {stream: self._fetch(self._steps.read_sql(stream)) for stream in rest}
        old |= {stream: self._fetch_touched(stream, same) for stream in told}
        for name in names:
            self._rows.put(name, f"leaving_{name}")
        for name in ("touched", *(f"before_{name}" for name in changed), *(f"leaving_{name}" for name in names)):
            self._run(f"drop table {name}")
        return [(stream, StreamChange.between(old[stream], new[stream])) for stream in streams]

    def _find_told(self, grain: Sequence[str], new: Mapping[str, pa.Table]) -> list[str]:
        """The streams of which each row has the columns of its grain: what they held of the grains touched is known."""
        named = [stream for stream in new if (*grain, stream) in self._told]
        touched = {*to_tuples(self._fetch("from touched"))} if named else set()
        self._told -= {
            (*grain, stream) for stream in named if not touched.issuperset(to_tuples(new[stream].select(grain)))
        }
        return [stream for stream in named if (*grain, stream) in self._told]

    def _fetch_touched(self, stream: str, same: str) -> pa.Table:
        with self._all_rows(stream) as rows:
            return self._fetch(f"select r.* from {rows} r semi join touched t on {same}")

    @contextmanager
    def _all_rows(self, stream: str) -> Iterator[str]:
        """SQL: all rows of a stream."""
        if (recent := self._recent.get(stream)) is None:
            yield f"stream_{stream}"
            return
        with registered(self.connection, recent_given=recent):
            yield f"(from stream_{stream} union all from recent_given)"

    def _list_told(self) -> set[tuple[str, ...]]:
        """Grains and streams: each row of the stream has the columns of a grain, as some row of a source has them."""
        found = set[tuple[str, ...]]()
        for stream in self.parts:
            grains = defaultdict[tuple[str, ...], list[str]](list)
            for name in self._steps.reads[stream] & self._rows.stored:
                grains[tuple(self._definition.sources[name].grain)].append(name)
            with self._all_rows(stream) as rows:
                columns = {*self.read_schema(stream).names}
                for grain, names in grains.items():
                    if not grain or not columns.issuperset(grain):
                        continue
                    known = " union ".join(f"select {', '.join(grain)} from raw_{name}" for name in names)
                    others = f"from {rows} r anti join ({known}) t on {same_sql(grain, 't', 'r')}"
                    if not self._fetch(f"{others} limit 1").num_rows:
                        found.add((*grain, stream))
        return found

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

    def _bring(self, stream: str, change: StreamChange) -> None:
        """Bring what is held of a stream to what was computed."""
        if recent := self.parts[stream]:
            change, later = change.divide(recent.moment, recent.split)
            self._recent[stream] = later.apply(self._recent[stream], recent.moment)
        table = f"stream_{stream}"
        if change.going.num_rows:
            with registered(self.connection, rows_given=change.going):
                rows = f"(select rowid as place, * from {table})"
                places = equal_places_sql(rows, "rows_given", change.going.column_names)
                self._run(f"delete from {table} where rowid in ({places})")
        self._insert(table, change.coming)

    def _insert(self, table: str, rows: pa.Table) -> None:
        if rows.num_rows:
            with registered(self.connection, rows_given=rows):
                self._run(f"insert into {table} from rows_given")
