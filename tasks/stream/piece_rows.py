"""The rows that some transactions of a log leave behind: each identity once, as it is after the last of them."""

from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from adapters.pgoutput import ChangeKind, Relation, RowChange, convert_rows
from expectations import suites
from pipeline.spec import UseCase
from tasks.build_features.followed_rows import FollowedRow, encode_identities
from tasks.ingest.check import canonical_schema
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
        identity = self._tables.identities[change.table]
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
        """The new row, with what was not sent because it stayed as it was."""
        row = change.row or {}
        if not change.unchanged:
            return row
        was = before[1] if before else None
        if was is None or not change.unchanged <= was.keys():
            key = {name: row[name] for name in relation.key}
            was = self._fetch(change.table, key, sorted(change.unchanged))
        return {**row, **{name: was[name] for name in change.unchanged}}

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
            rows = convert_rows([row for row in of_it.values() if row is not None], relation)
            if (good := self._tables.keep_rows(name, rows)) is None:
                continue
            kept += good
            identities += self._encode_keys(name, list(of_it), relation)
        return kept, identities

    def _encode_keys(self, name: str, keys: Sequence[_Key], relation: Relation) -> list[str]:
        identity = self._tables.identities[name]
        rows = [dict(zip(identity, key, strict=True)) for key in keys]
        table = convert_rows(rows, relation.select(identity))
        declared = canonical_schema(suites(self._use_case.name)[name])
        try:
            return encode_identities(table.cast(pa.schema([declared.field(column) for column in identity])))
        except pa.ArrowInvalid as error:  # such as a key at infinity, which no row that is kept has
            self._tables.stop(name, f"a key of it cannot be read: {error}")
            return []


def _values(row: Texts, names: Sequence[str]) -> _Key:
    return tuple(row[name] for name in names)


def _list_distinct(relations: Sequence[Relation]) -> list[Relation]:
    return list({id(relation): relation for relation in relations}.values())
