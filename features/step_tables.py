"""A definition's sources and steps in DuckDB under their own names, made of some rows of some sources for a while."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import duckdb

from features.engine import FeatureSet, source_sql
from features.raw_rows import RawRows


class StepTables:
    """What `run` makes is there until its block ends; for one thread, one run at a time.

    A step that no row of a run can touch is kept for the next ones, as `standing_<step>`. One of few rows that is read
    once is not made: it is a part of what reads it, for a table costs more than the rows.
    """

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        definition: FeatureSet,
        steps: Mapping[str, str],
        rows: RawRows,
    ) -> None:
        self._connection, self._definition, self._steps, self._rows = connection, definition, steps, rows
        self.reads = list_sources_read(definition)
        self.standing = set[str]()
        self._made = dict[str, str]()  # name -> kind, in the order of making
        self._inlined = dict[str, str]()  # steps that are not made -> their SQL
        self._mentions = {name: Counter(_list_words(sql)) for name, sql in steps.items()}

    @contextmanager
    def run(self, wanted: Collection[str], only: Mapping[str, str]) -> Iterator[None]:
        """Sources and steps as far as these need them, of sources in `only` made of these rows, which are few."""
        needed = set[str]().union(*(self.reads[name] for name in wanted))
        for name in self._definition.sources:
            if name in needed:
                # What is left of a source is read by many a step: of a view, all would be, each time.
                kind, rows = ("table", only[name]) if name in only else ("view", f"from raw_{name}")
                self._make(kind, name, self._source_sql(name, rows))
        self._make_steps(needed, only, wanted)
        yield
        self._drop(self._made)
        self._inlined.clear()

    def read_sql(self, name: str) -> str:
        """SQL: the rows of a step that this run was asked for; to be read once."""
        return self._inlined.get(name, f"from {name}")

    def change(self, only: Mapping[str, str], wanted: Collection[str]) -> None:
        """Within a run, go on to other rows of these sources, as far as these steps need them; the rest stays."""
        needed = set[str]().union(*(self.reads[name] for name in wanted))
        touched = [name for name in (*self._made, *self._inlined) if self.reads[name].intersection(only)]
        self._drop(name for name in touched if name in self._made)
        self._inlined = {name: sql for name, sql in self._inlined.items() if name not in touched}
        for name in needed.intersection(touched, only):
            self._make("table", name, self._source_sql(name, only[name]))
        self._make_steps(needed.intersection(touched), only, wanted)

    def forget_standing(self, changed: Iterable[str]) -> None:
        """Rows of these sources came or went."""
        for step in [step for step in self.standing if self.reads[step].intersection(changed)]:
            self._run(f"drop table standing_{step}")
            self.standing.remove(step)

    def restore(self, standing: set[str]) -> None:
        """After a rollback: these steps stood, and nothing was made."""
        self.standing = standing
        self._made.clear()
        self._inlined.clear()

    def _make_steps(self, needed: Collection[str], only: Mapping[str, str], wanted: Collection[str]) -> None:
        for name, sql in self._steps.items():
            if name in needed and only and not self.reads[name].intersection(only):
                if name not in self.standing:
                    self._run(f"create table standing_{name} as {sql}")
                    self.standing.add(name)
                self._make("view", name, f"from standing_{name}")
            elif name in needed:
                parts = [f"{part} as ({self._inlined[part]}\n)" for part in self._inlined if self._mentions[name][part]]
                whole = f"with {', '.join(parts)} select * from ({sql}\n)" if parts else sql
                if only and (name in wanted) + self._count_mentions(name, needed) == 1:
                    self._inlined[name] = whole
                else:
                    self._make("table", name, whole)

    def _count_mentions(self, name: str, steps: Collection[str]) -> int:
        return sum(words[name] for step, words in self._mentions.items() if step in steps and step != name)

    def _make(self, kind: str, name: str, sql: str) -> None:
        self._run(f"create temp {kind} {name} as {sql}")
        self._made[name] = kind

    def _drop(self, names: Iterable[str]) -> None:
        for name in reversed(list(names)):
            self._run(f"drop {self._made.pop(name)} {name}")

    def _source_sql(self, name: str, rows: str) -> str:
        if name not in self._rows.stored:
            return source_sql(self._definition.sources[name], None)
        columns = ", ".join(self._definition.sources[name].columns)
        return f"select {columns} from ({rows})"

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)


def list_sources_read(definition: FeatureSet) -> dict[str, set[str]]:
    """For each source and step, the sources and steps that it is made of, and itself."""
    reads = {name: {name} for name in definition.sources}
    for name, sql in definition.steps.items():  # each builds on those before it
        reads[name] = {name}.union(*(reads[each] for each in {*_list_words(sql)} if each in reads))
    return reads


def _list_words(sql: str) -> list[str]:
    """What may name a step: one that is not read costs time; one that is missed, the truth."""
    return re.findall(r"\w+", sql)
