"""Only what can be followed is published, slots say how they stand, and a role that may do more is found out."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2 import errors
from psycopg2.extensions import cursor, make_dsn

from adapters.errors import SlotInUse
from adapters.replication import ReplicationFollower
from adapters.replication_pieces import TransactionPiece
from adapters.replication_setup import (
    check_role,
    create_follower_role,
    create_publication,
    create_slot,
    drop_slot,
    inspect_slot,
)
from adapters.retrying import wait_until
from tests.adapters.conftest import PATIENCE_SECONDS, TABLE, FollowedSource, following, ids, read_state, read_until

# What a source needs


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("create table u (id int)", "u has no primary key"),
        ("create table u (id int primary key deferrable)", r"u has no primary key \(or a deferrable one"),
        ("create view u as select * from t", "u is no table"),
        ("create materialized view u as select * from t", "u is no table"),
        ("create unlogged table u (id int primary key)", "u is temporary or unlogged"),
        ("create table u (id int primary key); alter table u replica identity nothing", "u has a replica identity"),
        ("create table x (id int primary key)", "u does not exist"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name_and_nothing_is_published(
    source: FollowedSource, admin: cursor, statement: str, fault: str
) -> None:
    source.run(TABLE)
    source.run(statement)
    with pytest.raises(ValueError, match=f"publication p: {fault}"):
        create_publication(admin, "p", ["t", "u"])
    admin.execute("select from pg_publication")
    assert admin.rowcount == 0
    create_publication(admin, "p", ["t"])


def test_every_table_that_cannot_be_followed_is_named(source: FollowedSource, admin: cursor) -> None:
    source.run('create table "Odd" (id int)')
    with pytest.raises(ValueError, match=r"Odd has no primary key.*; no does not exist"):
        create_publication(admin, "p", ["no", "Odd"])
    with pytest.raises(ValueError, match="at least one"):
        create_publication(admin, "p", [])


def test_a_table_that_inherits_from_a_published_one_is_left_to_its_application(
    source: FollowedSource, admin: cursor
) -> None:
    """It has no key of its own: published beside its parent, its updates would be refused."""
    source.run(TABLE)
    source.run("create table heir () inherits (t)")
    create_publication(admin, "p", ["t"])
    admin.execute("select tablename from pg_publication_tables where pubname = 'p'")
    assert admin.fetchall() == [("t",)]
    source.run("insert into heir values (1)")
    source.run("update heir set id = 2")


def test_published_without_a_key_a_table_would_refuse_its_own_application(
    source: FollowedSource, admin: cursor
) -> None:
    source.run("create table u (id int); insert into u values (1)")
    admin.execute("create publication p for table u")  # what `create_publication` refuses
    with pytest.raises(errors.ObjectNotInPrerequisiteState):
        source.run("update u set id = 2")


def test_names_that_need_quotes_are_quoted(source: FollowedSource, admin: cursor) -> None:
    source.run('create table "Odd, name" (id int primary key)')
    source.publish("Odd, name")
    create_publication(admin, 'it "is"', ["Odd, name"])
    with ReplicationFollower(source.dsn, source.name, 'it "is"') as follower:
        source.run('insert into "Odd, name" values (1)')
        piece = read_until(follower, lambda answer: isinstance(answer, TransactionPiece))
    assert piece.events[0].table == "Odd, name"


def test_what_is_there_is_not_made_again(followed: FollowedSource, admin: cursor) -> None:
    with pytest.raises(ValueError, match="there is a publication"):
        create_publication(admin, followed.name, ["t"])
    with pytest.raises(ValueError, match="there is a replication slot"):
        create_slot(admin, followed.name)


def test_a_slot_tells_how_it_stands(followed: FollowedSource, admin: cursor) -> None:
    followed.run("insert into t values (1)")
    with following(followed):
        assert read_state(followed, admin).is_active
    assert wait_until(lambda: not read_state(followed, admin).is_active, within_seconds=PATIENCE_SECONDS)
    found = read_state(followed, admin)
    assert found.wal_status == "reserved"
    assert found.retained_bytes >= found.behind_bytes > 0  # type: ignore[operator]
    assert found.spare_bytes
    assert found.tables == ("marker", "t")
    assert inspect_slot(admin, "another", followed.name) is None


def test_a_slot_in_use_is_not_dropped_and_a_free_one_is_once(followed: FollowedSource, admin: cursor) -> None:
    with following(followed), pytest.raises(SlotInUse, match="end its follower"):
        drop_slot(admin, followed.name)
    assert wait_until(lambda: not read_state(followed, admin).is_active, within_seconds=PATIENCE_SECONDS)
    assert drop_slot(admin, followed.name)
    assert not drop_slot(admin, followed.name)


@contextmanager
def as_follower(source: FollowedSource) -> Iterator[cursor]:
    with closing(psycopg2.connect(source.dsn)) as opened, opened.cursor() as at:
        yield at


def test_the_follower_s_role_may_follow_and_read_and_nothing_else(followed: FollowedSource) -> None:
    with following(followed) as follower:
        followed.run("insert into t values (1)")
        assert ids(followed.read_all(follower)) == [["1"]]
    with as_follower(followed) as at:
        assert check_role(at, followed.name) == []
        at.execute("select id from t")
        for statement in ("delete from t", "create table u (id int)", "create role another"):
            at.connection.commit()
            with pytest.raises(errors.InsufficientPrivilege):
                at.execute(statement)


@pytest.mark.parametrize(
    ("statement", "faults"),
    [
        (
            "alter role {role} superuser",
            [
                "is a superuser",
                "may create schemas and publications in this database",
                "may write marker",
                "may write t",
            ],
        ),
        ("alter role {role} createdb", ["may create databases"]),
        ("alter role {role} createrole", ["may create roles"]),
        ("alter role {role} bypassrls", ["passes by row level security"]),
        ("alter role {role} noreplication", ["may not replicate"]),
        ("grant create on database {database} to {role}", ["may create schemas and publications in this database"]),
        ("grant truncate on t to {role}", ["may write t"]),
        ("grant pg_write_all_data to {role}", ["may write marker", "may write t"]),
        ("revoke select on t from {role}", ["may not read t"]),
        ("drop publication {role}", ["finds no table in a publication {role}"]),
    ],
)
def test_each_thing_that_a_role_lacks_or_has_beyond_is_named(
    followed: FollowedSource, admin: cursor, statement: str, faults: list[str]
) -> None:
    names = {"role": followed.name, "database": admin.connection.info.dbname}
    admin.execute(statement.format(**names))
    with as_follower(followed) as at:
        assert check_role(at, followed.name) == [fault.format(**names) for fault in faults]


def test_a_role_is_made_for_tables_whose_names_need_quotes(source: FollowedSource, admin: cursor) -> None:
    source.run('create table "Odd" (id int primary key)')
    create_follower_role(admin, source.name, "it's", ["Odd"])
    with closing(psycopg2.connect(str(make_dsn(source.dsn, password="it's")))) as opened, opened.cursor() as at:
        at.execute('select * from "Odd"')
