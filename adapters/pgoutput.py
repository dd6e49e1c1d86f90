"""What PostgreSQL's plugin `pgoutput` sends (protocol 1), as relations and changes of rows; nothing is read here.

A change is identified by (position of its commit, its number within the transaction): positions of rows fall back
between transactions. The layout of the messages: PostgreSQL's manual, "Logical Replication Message Formats".
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import EllipsisType

import pyarrow as pa

from adapters.column_types import ReadColumn, SourceColumn
from adapters.copying import format_copy, read_copy

EPOCH = datetime(2000, 1, 1, tzinfo=UTC)  # PostgreSQL's moments are microseconds after this
_NULL, _UNCHANGED, _TEXT, _KEY, _OLD = b"nutKO"
_WIDE, _NARROW = struct.Struct("!I"), struct.Struct("!H")
_TRANSACTION, _COMMIT, _TYPE = struct.Struct("!QqI"), struct.Struct("!BQQq"), struct.Struct("!Ii")
_FULL_IDENTITY = ord("f")
_IGNORED = b"OYM"  # where a change first came from, names of types, messages that programs of the source write

Values = list[str | EllipsisType | None]  # the ellipsis stands for a large value that was not sent


class ChangeKind(StrEnum):
    """What became of a row; a truncation is of all rows of its table."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """A table as the changes that follow give its rows. Generated columns are left out."""

    schema: str
    table: str  # as `PgOutputDecoder.name_table` names it
    columns: Mapping[str, int]  # name -> pg_type.oid, in order; a domain is its base type, as in what COPY reads
    modifiers: Mapping[str, int]  # name -> type modifier, -1 for none
    key: tuple[str, ...]  # the primary key; under REPLICA IDENTITY FULL, every column

    def select(self, names: Sequence[str]) -> "Relation":
        """The same with these columns alone, in this order."""
        return replace(
            self,
            columns={name: self.columns[name] for name in names},
            modifiers={name: self.modifiers[name] for name in names},
        )

    def describe(self) -> list[SourceColumn]:
        """Its columns, as psycopg2 describes those of a query."""
        return [SourceColumn(name, oid, *_find_digits(self.modifiers[name])) for name, oid in self.columns.items()]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowChange:
    """What became of one row; values are PostgreSQL's text, None is null."""

    table: str
    kind: ChangeKind
    number: int  # among the changes of its transaction, from 0
    row: Mapping[str, str | None] | None  # the new row, without what is `unchanged`; None where there is none
    old_key: Mapping[str, str | None] | None  # of a deleted row, and of one whose key was changed
    unchanged: frozenset[str]  # columns of the new row that are large, as they were, and so were not sent


@dataclass(frozen=True, kw_only=True, slots=True)
class TransactionBegin:
    """Changes of one transaction follow. `position` is that of its commit."""

    position: int
    committed_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class TransactionCommit:
    """All changes of a transaction were sent. To confirm `end` is to be sent it never again."""

    position: int
    end: int


ReplicationEvent = TransactionBegin | TransactionCommit | Relation | RowChange


def _keep_type(oid: int, modifier: int) -> tuple[int, int]:
    return oid, modifier


def _keep_name(schema: str, table: str) -> str:  # noqa: ARG001  # the other half of a name
    return table


@dataclass
class PgOutputDecoder:
    """Decodes the messages of one session, in their order.

    `find_base_type` is given a column's type and modifier, and says which it is at bottom. `name_table` is given a
    schema and a table, and says what relations and changes call it.
    """

    find_base_type: Callable[[int, int], tuple[int, int]] = _keep_type
    name_table: Callable[[str, str], str] = _keep_name
    _relations: dict[int, Relation] = field(default_factory=dict, init=False)
    _told: dict[str, tuple[int, Relation]] = field(default_factory=dict, init=False)
    _number: int = field(default=0, init=False)

    def decode(self, message: bytes) -> Iterator[ReplicationEvent]:
        """What a message says; before a change its relation, where it differs from what was told of that table before.

        Raises:
            ValueError: the message is of no kind that protocol 1 has, or two schemas publish tables of one name.
        """
        match message[:1]:
            case b"B":
                position, moment, _ = _TRANSACTION.unpack_from(message, 1)
                self._number = 0
                yield TransactionBegin(position=position, committed_at=EPOCH + timedelta(microseconds=moment))
            case b"C":
                _, position, end, _ = _COMMIT.unpack_from(message, 1)
                yield TransactionCommit(position=position, end=end)
            case b"R":
                self._learn(message)
            case b"I" | b"U" | b"D" as letter:
                yield from self._tell(message, 1)
                yield self._read_change(_KINDS[letter], message)
            case b"T":
                for at in range(6, len(message), 4):
                    yield from self._tell(message, at)
                    yield self._make_change(self._find(message, at), ChangeKind.TRUNCATE)
            case letter if letter and letter in _IGNORED:
                pass
            case letter:
                raise ValueError(f"pgoutput sent a message of the unknown kind {letter!r}")

    def _learn(self, message: bytes) -> None:
        """PostgreSQL repeats relations, and sends those of partitions whose changes come under their table's name."""
        (oid,) = _WIDE.unpack_from(message, 1)
        schema, at = _read_name(message, 5)
        table, at = _read_name(message, at)
        (count,) = _NARROW.unpack_from(message, at + 1)  # after the letter of the replica identity
        at += 3
        types, key = dict[str, tuple[int, int]](), list[str]()
        for _ in range(count):
            is_key = message[at]
            name, at = _read_name(message, at + 1)
            types[name] = self.find_base_type(*_TYPE.unpack_from(message, at))
            at += _TYPE.size
            key += [name] if is_key else []
        self._relations[oid] = Relation(
            schema=schema or "pg_catalog",
            table=self.name_table(schema or "pg_catalog", table),
            columns={name: base for name, (base, _) in types.items()},
            modifiers={name: modifier for name, (_, modifier) in types.items()},
            key=tuple(key),
        )

    def _tell(self, message: bytes, at: int) -> Iterator[Relation]:
        (oid,) = _WIDE.unpack_from(message, at)
        relation = self._relations[oid]
        other, known = self._told.get(relation.table, (oid, None))
        if known is relation:
            return
        if other != oid and known == self._relations[other] and known.schema != relation.schema:
            raise ValueError(f"two schemas publish a table {relation.table}: publish one of them")
        if known is None or _differ(known, relation):
            yield relation
        self._told[relation.table] = (oid, relation)

    def _read_change(self, kind: ChangeKind, message: bytes) -> RowChange:
        relation = self._find(message, 1)
        old, at, letter = None, 5, message[5]
        if letter in (_KEY, _OLD):
            old, at = _read_values(message, 6)
        new = None if kind is ChangeKind.DELETE else _read_values(message, at + 1)[0]
        if new is not None and letter == _OLD:  # the old row is whole, and has what the new one leaves out
            new = [was if value is ... else value for was, value in zip(old or new, new, strict=True)]
        return self._make_change(relation, kind, new, old)

    def _make_change(
        self, relation: Relation, kind: ChangeKind, new: Values | None = None, old: Values | None = None
    ) -> RowChange:
        number, self._number = self._number, self._number + 1
        row, was = _name_values(relation, new), _name_values(relation, old)
        return RowChange(
            table=relation.table,
            kind=kind,
            number=number,
            row=row,
            old_key=None if was is None else {name: was[name] for name in relation.key},
            unchanged=_NONE
            if row is None or len(row) == len(relation.columns)
            else frozenset(relation.columns.keys() - row),
        )

    def _find(self, message: bytes, at: int) -> Relation:
        return self._relations[_WIDE.unpack_from(message, at)[0]]


_KINDS = {b"I": ChangeKind.INSERT, b"U": ChangeKind.UPDATE, b"D": ChangeKind.DELETE}
_NONE: frozenset[str] = frozenset()


def _differ(known: Relation, relation: Relation) -> bool:
    """Whether something is new: the order of the columns included, of which two dicts say nothing."""
    return known != relation or list(known.columns) != list(relation.columns)


def _name_values(relation: Relation, values: Values | None) -> dict[str, str | None] | None:
    """Column -> value, without what was not sent; None where there is no row."""
    if values is None:
        return None
    return {name: value for name, value in zip(relation.columns, values, strict=True) if value is not ...}


def _read_name(message: bytes, at: int) -> tuple[str, int]:
    end = message.index(0, at)
    return message[at:end].decode(), end + 1


def _read_values(message: bytes, at: int) -> tuple[Values, int]:
    """The values of a row that begins here, and where it ends."""
    (count,) = _NARROW.unpack_from(message, at)
    at += 2
    values: Values = []
    for _ in range(count):
        letter = message[at]
        at += 1
        if letter == _TEXT:
            start = at + 4
            at = start + _WIDE.unpack_from(message, at)[0]
            values.append(message[start:at].decode())
        elif letter in (_NULL, _UNCHANGED):
            values.append(None if letter == _NULL else ...)
        else:
            raise ValueError(f"pgoutput sent a value of the unknown kind {chr(letter)!r}")
    return values, at


def convert_rows(rows: Sequence[Mapping[str, str | None]], relation: Relation) -> pa.Table:
    """Whole rows as `adapters.copying.read_copy` would give them by COPY, bit for bit.

    Raises:
        KeyError: a row lacks a column (what is `unchanged` is to be filled in before).
    """
    return convert_texts(rows, [ReadColumn.of(column) for column in relation.describe()])


def convert_texts(rows: Sequence[Mapping[str, str | None]], columns: Sequence[ReadColumn]) -> pa.Table:
    """Some columns of rows, likewise."""
    texts = pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name, *_ in columns})
    return read_copy(format_copy(texts), columns)


def _find_digits(modifier: int) -> tuple[int | None, int | None]:
    """Precision and scale, as psycopg2 takes a modifier apart: the same type as of a column read by COPY."""
    if modifier < 0:
        return None, None
    return (modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0xFFFF
