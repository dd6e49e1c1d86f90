"""The rows that some transactions of a log leave behind: each identity once, as it is after the last of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from adapters.column_types import ReadColumn
from adapters.pgoutput import ChangeKind, Relation, RowChange, convert_texts
from expectations import suites
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, encode_identities
from tasks.ingest.clean_columns import name_columns, read_canonical
from tasks.stream.source_step import SourceStep
from tasks.stream.source_tables import SourceTables

Texts = Mapping[str, str | None]
Fetch = Callable[[str, Texts, Sequence[str]], Texts]  # table, key, columns -> values
_Key = tuple[str | None, ...]


class PieceRows:
    """Changes by the text of the key.

    `relations` are the tables as last told; `fetch` gives large values that were not sent because they did not change.
    """

    def __init__(
        self, use_case: UseCase, tables: SourceTables, relations: Mapping[str, Relation], fetch: Fetch
    ) -> None:
        self._use_case, self._tables, self._relations, self._fetch = use_case, tables, relations, fetch
        self._changed: dict[str, dict[_Key, tuple[Relation, Texts | None]]] = {}
        self._truncated = set[str]()
        self.count = 0

    def add(self, change: RowChange) -> None:
        """Take in one change, after all before it."""
        relation, table = self._relations[change.table], self._changed.setdefault(change.table, {})
        identity = self._name_in_source(change.table, self._tables.identities[change.table])
        self.count += 1
        if not set(identity) <= set(relation.key):
            self._tables.stop(change.table, f"its key is no longer {', '.join(identity)}")
        elif change.kind is ChangeKind.TRUNCATE:
            table.clear()
            self._truncated.add(change.table)
        else:
            if change.old_key is not None:
                table[_values(change.old_key, identity)] = relation, None
            if change.row is not None:
                key = _values(change.row, identity)
                table[key] = relation, self._complete(change, relation, table.get(key))

    def _complete(self, change: RowChange, relation: Relation, before: tuple[Relation, Texts | None] | None) -> Texts:
        """The new row, with what was not sent because it stayed as it was; of undeclared columns nothing is asked."""
        row = change.row or {}
        if not change.unchanged:
            return row
        wanted, was = (
            change.unchanged & suites(self._use_case.name)[change.table].by_source.keys(),
            before and before[1],
        )
        if wanted and (was is None or not wanted <= was.keys()):
            key = {name: row[name] for name in relation.key}
            was = self._fetch(change.table, key, sorted(wanted))
        kept = {name: was[name] for name in wanted} if was else {}
        return {**row, **dict.fromkeys(change.unchanged), **kept}

    def make_step(self) -> SourceStep:
        """What is to be kept of it."""
        rows, gone = dict[tuple[str, str], FollowedRow](), set[tuple[str, str]]()
        for name, changed in self._changed.items():
            kept, identities = self._judge(name, changed)
            rows |= {(name, row.identity): row for row in kept}
            gone |= {(name, identity) for identity in identities}
        return SourceStep(rows=rows, gone=frozenset(gone - rows.keys()), truncated=frozenset(self._truncated))

    def _judge(
        self, name: str, changed: Mapping[_Key, tuple[Relation, Texts | None]]
    ) -> tuple[list[FollowedRow], list[str]]:
        """The rows of a table, and the identities of all that were touched; neither, where it is not as declared."""
        kept, identities = list[FollowedRow](), list[str]()
        for relation in _list_distinct([relation for relation, _ in changed.values()]):
            of_it = {key: row for key, (told_by, row) in changed.items() if told_by is relation}
            if (columns := self._tables.choose_columns(name, relation)) is None:
                continue
            rows = convert_texts([row for row in of_it.values() if row is not None], columns)
            if (good := self._tables.keep_rows(name, rows)) is None:
                continue
            kept += good
            identities += self._encode_keys(name, list(of_it), columns)
        return kept, identities

    def _encode_keys(self, name: str, keys: Sequence[_Key], columns: Sequence[ReadColumn]) -> list[str]:
        """What tells rows apart, as of rows that are kept; what is none of its kind is null in both."""
        identity, suite = self._tables.identities[name], suites(self._use_case.name)[name]
        names = self._name_in_source(name, identity)
        read = {column.name: column for column in columns}
        texts = convert_texts([dict(zip(names, key, strict=True)) for key in keys], [read[column] for column in names])
        of_keys = replace(suite, columns={column: suite.columns[column] for column in identity})
        return encode_identities(read_canonical(name_columns(texts, of_keys), of_keys)[0])

    def _name_in_source(self, name: str, columns: Sequence[str]) -> tuple[str, ...]:
        suite = suites(self._use_case.name)[name]
        return tuple(suite.find_source(column) for column in columns)


def _values(row: Texts, names: Sequence[str]) -> _Key:
    return tuple(row[name] for name in names)


def _list_distinct(relations: Sequence[Relation]) -> list[Relation]:
    return list({id(relation): relation for relation in relations}.values())
