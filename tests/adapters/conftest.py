"""A source that can be followed: a database to write to, and publications, slots and roles that end with their test."""

import secrets
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import connection, cursor, make_dsn, parse_dsn

from adapters.connect import Outside
from adapters.errors import SlotInUse
from adapters.replication import ReplicationFollower
from adapters.replication_pieces import Idle, TransactionPiece
from adapters.replication_setup import create_follower_role, create_publication, create_slot, drop_slot
from adapters.retrying import retry_call
from infra.local.stack import Stack

PATIENCE_SECONDS = 60


@dataclass
class FollowedSource:
    """The source of a test, as its owner and its administrator have it."""

    admin_dsn: str
    owner: connection
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
        return psycopg2.connect(self.owner.dsn, password=self.password_of_owner)

    password_of_owner: str = field(default="", repr=False)

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

    def begin_following(self, **options: Any) -> ReplicationFollower:
        """A session, begun as soon as the one before has left; to be closed by `with closing_session`."""
        follower = self.follow(**options)
        return retry_call(follower.__enter__, errors=SlotInUse, within_seconds=PATIENCE_SECONDS, pause_seconds=0.05)

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
        password_of_owner=parse_dsn(address)["password"],
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
