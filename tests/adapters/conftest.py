"""A source that can be followed: a database to write to, and publications, slots and roles that end with their test."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection, cursor, make_dsn, parse_dsn

from adapters.connect import Outside
from adapters.errors import SlotInUse, Unavailable
from adapters.pgoutput import RowChange
from adapters.replication import ReplicationFollower
from adapters.replication_pieces import Idle, TransactionPiece
from adapters.replication_setup import (
    SlotState,
    create_follower_role,
    create_publication,
    create_slot,
    drop_slot,
    inspect_slot,
)
from adapters.retrying import retry_call
from infra.local.stack import Stack

PATIENCE_SECONDS = 60
TABLE = "create table t (id int primary key, v text)"


@dataclass
class FollowedSource:
    """The source of a test, as its owner and its administrator have it."""

    admin_dsn: str
    owner: connection
    password: str = field(repr=False)  # the owner's
    name: str = field(default_factory=lambda: f"test_{secrets.token_hex(4)}")  # of the slot, the publication, the role

    def run(self, statements: str) -> None:
        """As the application does: one string is one transaction."""
        with self.owner, self.owner.cursor() as at:
            at.execute(statements)

    def administer(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self.admin_dsn)) as opened, opened, opened.cursor() as at:
            at.execute(statement, values or None)
            return at.fetchall() if at.description else []

    def open(self) -> connection:
        """Another connection of the application."""
        return psycopg2.connect(self.owner.dsn, password=self.password)

    def publish(self, *tables: str) -> None:
        """Make these tables followable, and the one by which the end of what is there is known."""
        self.run("create table marker (id int generated always as identity primary key)")
        with closing(psycopg2.connect(self.admin_dsn)) as opened:
            with opened, opened.cursor() as at:
                create_publication(at, self.name, [*tables, "marker"])
                create_follower_role(at, self.name, self.name, [*tables, "marker"])
            with opened, opened.cursor() as at:
                create_slot(at, self.name)

    @property
    def dsn(self) -> str:
        """The address for the follower's role."""
        return str(make_dsn(self.admin_dsn, user=self.name, password=self.name))

    def follow(self, **options: Any) -> ReplicationFollower:
        return ReplicationFollower(self.dsn, self.name, self.name, **options)

    def read_all(self, follower: ReplicationFollower) -> list[TransactionPiece]:
        """Every piece of what was committed until now."""
        self.run("insert into marker default values")
        pieces: list[TransactionPiece] = []
        while True:
            piece = follower.read(PATIENCE_SECONDS)
            assert piece is not None
            if isinstance(piece, Idle):
                continue
            if any(change.table == "marker" for change in piece.events) and piece.is_last:
                return pieces
            pieces.append(piece)

    def end_slot(self) -> None:
        with closing(psycopg2.connect(self.admin_dsn)) as opened, opened, opened.cursor() as at:
            at.execute("select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where active")
            drop_slot(at, self.name)


def _clean(source: FollowedSource) -> None:
    retry_call(source.end_slot, errors=SlotInUse, within_seconds=PATIENCE_SECONDS, pause_seconds=0.05)
    for (name,) in source.administer("select pubname from pg_publication"):
        with closing(psycopg2.connect(source.admin_dsn)) as opened, opened, opened.cursor() as at:
            at.execute(sql.SQL("drop publication {}").format(sql.Identifier(name)))
    if source.administer("select from pg_roles where rolname = %s", source.name):
        source.administer(f"drop owned by {source.name}; drop role {source.name}")


@pytest.fixture
def source(outside: Outside, running_stack: Stack) -> Iterator[FollowedSource]:
    """An empty source database of this test; nothing of it is published yet."""
    address = outside.settings.source_dsn
    database = parse_dsn(address)["dbname"]
    owner = psycopg2.connect(address)
    followed = FollowedSource(
        admin_dsn=str(make_dsn(running_stack.home().admin_dsn, dbname=database)),
        owner=owner,
        password=parse_dsn(address)["password"],
    )
    yield followed
    owner.close()
    _clean(followed)


@pytest.fixture
def admin(source: FollowedSource) -> Iterator[cursor]:
    """A cursor of the source's administrator; each statement is a transaction of its own."""
    with closing(psycopg2.connect(source.admin_dsn)) as opened:
        opened.autocommit = True
        with opened.cursor() as at:
            yield at


@pytest.fixture
def followed(source: FollowedSource) -> FollowedSource:
    """A source whose table t is published, with a slot."""
    source.run(TABLE)
    source.publish("t")
    return source


@contextmanager
def following(source: FollowedSource, **options: Any) -> Iterator[ReplicationFollower]:
    """A session that begins once the one before has left."""
    follower = source.follow(**options)
    retry_call(follower.__enter__, errors=Unavailable, within_seconds=PATIENCE_SECONDS, pause_seconds=0.05)
    try:
        yield follower
    finally:
        follower.__exit__(None, None, None)


def ids(pieces: Sequence[TransactionPiece]) -> list[list[str | None]]:
    """The keys that each piece writes."""
    return [
        [change.row["id"] for change in piece.events if isinstance(change, RowChange) and change.row]
        for piece in pieces
    ]


def read_state(source: FollowedSource, admin: cursor) -> SlotState:
    """How the slot of this source stands."""
    found = inspect_slot(admin, source.name, source.name)
    assert found is not None
    return found


def read_until(follower: ReplicationFollower, is_it: Callable[[TransactionPiece | Idle], bool]) -> Any:
    """The first answer of which this is true."""
    while True:
        answer = follower.read(PATIENCE_SECONDS)
        assert answer is not None
        if is_it(answer):
            return answer
