"""The rows of a definition's sources in DuckDB, and beside them what is to come and to go."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from features.engine import FeatureSet, Span, moment_sql, read_files_sql, source_sql
from features.row_sql import equal_places_sql, same_sql
from features.stream_change import SourceChange, SourceKey
from features.vocabulary import naive_utc_sql


class RawRows:
    """Tables `raw_<source>` of a connection, for each source that has had a row or a file.

    Beside what the steps read they hold what tells rows apart, as `id_<number>`, and when they became known, as
    `taken_at`. What is staged lies in `coming_<source>` and `gone_<source>` until it is put in its place.
    """

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, definition: FeatureSet, keys: Mapping[str, SourceKey]
    ) -> None:
        self._connection, self._definition, self._keys = connection, definition, keys
        self.stored = set[str]()
        self._staged = dict[str, bool]()  # of a source: whether rows that go are named by their places
        self._gone = set[str]()  # sources of which a change names rows that go

    def load(self, name: str, paths: Sequence[Path]) -> None:
        """The first rows of a source, as they lie in clean files."""
        if files := read_files_sql(paths):
            self._run(f"create table raw_{name} as {self._read_sql(name, files)}")
            self.stored.add(name)

    def stage(self, name: str, change: SourceChange) -> None:
        """Rows that come in place of those of their identity, and identities that go."""
        with registered(self._connection, rows_given=change.rows):
            self._run(f"create temp table coming_{name} as {self._read_sql(name, 'rows_given')}")
        if change.gone.num_rows:
            with registered(self._connection, identities_given=change.gone):
                self._run(f"create temp table gone_{name} as select {self._ids_sql(name)} from identities_given")
            self._gone.add(name)
        self._create(name, f"coming_{name}")
        self._staged[name] = False

    def stage_files(self, name: str, paths: Sequence[Path], span: Span, kept: pa.Table) -> None:
        """What makes the rows that became known in a span those of clean files, if anything.

        Rows of the identities in `kept` stay as they are, whatever the files have.
        """
        if (files := read_files_sql(paths)) is None and name not in self.stored:
            return
        ids = self._name_ids(name)
        same = same_sql(ids, "k", "f")
        named = kept.rename_columns(ids)
        with registered(self._connection, kept_given=named):
            rows = f"({self._read_sql(name, files)})" if files else f"(from raw_{name} limit 0)"
            self._run(f"create temp table filed as select f.* from {rows} f anti join kept_given k on {same}")
        self._create(name, "filed")
        inside = f"taken_at >= {moment_sql(span.start)} and taken_at < {moment_sql(span.end)}"
        held = f"(select rowid as place, * from raw_{name} where {inside})"
        self._run(f"create temp table coming_{name} as from filed except all select * exclude place from {held}")
        self._run(f"create temp table going as select * exclude place from {held} except all from filed")
        columns = [column for column, *_ in self._connection.execute("describe filed").fetchall()]
        self._run(f"create temp table gone_{name} as {equal_places_sql(held, 'going', columns)}")
        for staged in ("going", "filed"):
            self._run(f"drop table {staged}")
        self._staged[name] = True
        self._gone.add(name)
        if not self._count(f"coming_{name}") and not self._count(f"gone_{name}"):
            self.drop_staged([name])

    def list_staged(self) -> list[str]:
        """The sources of which something is staged."""
        return list(self._staged)

    def is_grain_told(self, name: str, grain: Sequence[str]) -> bool:
        """Whether the rows that come have all grains that are touched."""
        return name not in self._gone and set(grain) <= {*self._keys[name].identity}

    def leaving_sql(self, name: str, rows: str) -> str:
        """Of rows with a `place`, those that go, or for which others come."""
        if self._staged[name]:
            return f"select r.* from {rows} r semi join gone_{name} i on i.place = r.place"
        ids = self._name_ids(name)
        taken = f"select {', '.join(ids)} from coming_{name}"
        if name in self._gone:
            taken += f" union all from gone_{name}"
        return f"select r.* from {rows} r semi join ({taken}) i on {same_sql(ids, 'i', 'r')}"

    def put(self, name: str, leaving: str) -> None:
        """Take rows out, and those that come in."""
        self._run(f"delete from raw_{name} where rowid in (select place from {leaving})")
        self._run(f"insert into raw_{name} from coming_{name}")

    def drop_staged(self, names: Sequence[str]) -> None:
        """They are in their place, or not to be."""
        for name in names:
            self._run(f"drop table coming_{name}")
            if name in self._gone:
                self._run(f"drop table gone_{name}")
        self._gone.difference_update(names)
        self._staged = {name: kind for name, kind in self._staged.items() if name not in names}

    def restore(self, stored: set[str]) -> None:
        """After a rollback: these were there, and nothing was staged."""
        self.stored = stored
        self._gone.clear()
        self._staged.clear()

    def _create(self, name: str, like: str) -> None:
        if name not in self.stored:
            self._run(f"create table raw_{name} as from {like} limit 0")
            self.stored.add(name)

    def _read_sql(self, name: str, rows: str) -> str:
        """A source's rows as steps read them, and beside them what tells them apart, and when they became known."""
        key = self._keys[name]
        taken_at = naive_utc_sql(f"cast({key.available_at} as timestamptz)")
        columns = source_sql(self._definition.sources[name], rows).removeprefix("select ")
        return f"select {self._ids_sql(name)}, {taken_at} as taken_at, {columns}"

    def _name_ids(self, name: str) -> list[str]:
        return [f"id_{place}" for place in range(len(self._keys[name].identity))]

    def _ids_sql(self, name: str) -> str:
        """SQL: the columns that tell a source's rows apart, as they are named beside its own."""
        return ", ".join(f"{c} as {i}" for c, i in zip(self._keys[name].identity, self._name_ids(name), strict=True))

    def _count(self, table: str) -> int:
        [(count,)] = self._connection.execute(f"select count(*) from {table}").fetchall()
        return int(count)

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)


@contextmanager
def registered(connection: duckdb.DuckDBPyConnection, **tables: pa.Table) -> Iterator[None]:
    """Let SQL read Arrow tables by these names."""
    for name, table in tables.items():
        connection.register(name, table)
    yield
    for name in tables:  # after an error the next use of the name takes its place: the transaction takes no more
        connection.unregister(name)
