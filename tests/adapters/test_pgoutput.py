"""What PostgreSQL sends of each kind of change is read as what happened, and its rows as COPY would give them."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.copying import is_unread, name_unread
from adapters.pgoutput import (
    ChangeKind,
    PgOutputDecoder,
    Relation,
    RowChange,
    TransactionBegin,
    TransactionCommit,
    convert_rows,
)
from tests.adapters.conftest import FollowedSource

Event = Relation | RowChange
Decode = Callable[..., list[Event]]


@pytest.fixture
def decode(source: FollowedSource, admin: cursor) -> Decode:
    """Runs statements, each in a transaction of its own, and gives what their log says, decoded in one session."""
    admin.execute("select pg_create_logical_replication_slot('decoded', 'pgoutput', true)")  # temporary
    admin.execute("set timezone = 'UTC'")
    admin.execute("create publication everything for all tables")
    decoder = PgOutputDecoder()

    def run(*statements: str) -> list[Event]:
        for statement in statements:
            source.run(statement)
        admin.execute(
            "select data from pg_logical_slot_get_binary_changes('decoded', null, null,"
            " 'proto_version', '1', 'publication_names', 'everything')"
        )
        found = [event for (data,) in admin.fetchall() for event in decoder.decode(bytes(data))]
        return [event for event in found if not isinstance(event, TransactionBegin | TransactionCommit)]

    return run


def changes(events: Sequence[Event]) -> list[RowChange]:
    return [event for event in events if isinstance(event, RowChange)]


def relations(events: Sequence[Event]) -> list[Relation]:
    return [event for event in events if isinstance(event, Relation)]


def told(change: RowChange) -> tuple[Any, ...]:
    return change.kind, change.number, change.row, change.old_key


# Kinds of change


def test_an_insert_an_update_and_a_delete_are_numbered_within_their_transaction(decode: Decode) -> None:
    decode("create table t (id int primary key, v text)")
    first = "insert into t values (1, null), (2, ''); update t set v = 'x' where id = 2"
    found = decode(first, "delete from t where id = 1")
    assert [told(change) for change in changes(found)] == [
        (ChangeKind.INSERT, 0, {"id": "1", "v": None}, None),
        (ChangeKind.INSERT, 1, {"id": "2", "v": ""}, None),
        (ChangeKind.UPDATE, 2, {"id": "2", "v": "x"}, None),
        (ChangeKind.DELETE, 0, None, {"id": "1"}),
    ]


def test_a_changed_key_comes_with_the_old_one_and_no_other_column(decode: Decode) -> None:
    decode("create table t (a int, v text, b text, primary key (a, b))")
    [_, change] = changes(decode("insert into t values (1, 'v', 'b')", "update t set b = 'c'"))
    assert told(change) == (ChangeKind.UPDATE, 0, {"a": "1", "v": "v", "b": "c"}, {"a": "1", "b": "b"})


def test_one_truncation_of_several_tables_is_a_change_of_each(decode: Decode) -> None:
    decode("create table a (id int primary key); create table b (id int primary key)")
    found = decode("insert into a values (1)", "truncate a, b")
    assert [(c.table, *told(c)) for c in changes(found)[1:]] == [
        ("a", ChangeKind.TRUNCATE, 0, None, None),
        ("b", ChangeKind.TRUNCATE, 1, None, None),
    ]
    assert [relation.table for relation in relations(found)] == ["a", "b"]


def test_what_a_savepoint_took_back_is_not_there_and_leaves_no_number_out(decode: Decode) -> None:
    decode("create table t (id int primary key)")
    found = decode(
        "insert into t values (1); savepoint s; insert into t values (2); rollback to s; insert into t values (3)"
    )
    assert [(change.number, change.row) for change in changes(found)] == [(0, {"id": "1"}), (1, {"id": "3"})]


LARGE = "(select string_agg(md5(i::text), '') from generate_series(1, 400) as i)"


@pytest.mark.parametrize("update", ["update t set v = 2", "update t set id = 2"])
def test_a_large_value_that_did_not_change_is_named_and_has_no_value(decode: Decode, update: str) -> None:
    decode("create table t (id int primary key, v int, large text)")
    [_, change] = changes(decode(f"insert into t values (1, 1, {LARGE})", update))
    assert change.unchanged == {"large"}
    assert change.row is not None
    assert change.row.keys() == {"id", "v"}


def test_a_large_value_that_changed_is_there(decode: Decode) -> None:
    decode("create table t (id int primary key, v int, large text)")
    [_, change] = changes(decode(f"insert into t values (1, 1, {LARGE})", "update t set large = large || 'x'"))
    assert change.unchanged == frozenset()
    assert change.row is not None
    assert str(change.row["large"]).endswith("x")


def test_under_full_identity_the_old_row_gives_what_the_new_one_leaves_out(decode: Decode) -> None:
    decode("create table t (id int primary key, v int, large text); alter table t replica identity full")
    found = decode(f"insert into t values (1, 1, {LARGE})", "update t set v = 2", "delete from t")
    insert, update, delete = changes(found)
    assert insert.row is not None
    assert (update.row, update.unchanged) == ({**insert.row, "v": "2"}, frozenset())
    assert update.old_key == insert.row
    assert delete.old_key == update.row


# Relations


def test_a_table_is_told_once_however_often_postgresql_repeats_it(decode: Decode) -> None:
    decode("create table t (id int primary key)")
    found = decode("insert into t values (1)", "alter table t set (fillfactor = 50)", "insert into t values (2)")
    assert [type(event) for event in found] == [Relation, RowChange, RowChange]
    assert found[0] == Relation(schema="public", table="t", columns={"id": 23}, modifiers={"id": -1}, key=("id",))


@pytest.mark.parametrize(
    ("alteration", "columns", "row"),
    [
        ("add w int default 7", {"id": 23, "v": 23, "x": 25, "w": 23}, {"id": "2", "v": "2", "x": None, "w": "7"}),
        ("drop v", {"id": 23, "x": 25}, {"id": "2", "x": None}),
        ("alter v type numeric(5, 1)", {"id": 23, "v": 1700, "x": 25}, {"id": "2", "v": "2.0", "x": None}),
        ("rename v to u", {"id": 23, "u": 23, "x": 25}, {"id": "2", "u": "2", "x": None}),
    ],
)
def test_an_altered_table_is_told_again_before_the_next_row(
    decode: Decode, alteration: str, columns: dict[str, int], row: dict[str, str | None]
) -> None:
    decode("create table t (id int primary key, v int default 2, x text)")
    found = decode("insert into t values (1)", f"alter table t {alteration}", "insert into t (id) values (2)")
    assert [type(event) for event in found] == [Relation, RowChange, Relation, RowChange]
    [_, relation], [_, change] = relations(found), changes(found)
    assert list(relation.columns.items()) == list(columns.items())
    assert change.row == row


def test_a_new_order_of_columns_is_told(decode: Decode) -> None:
    decode("create table t (id int primary key, a int, b int)")
    found = decode(
        "insert into t values (1, 1, 1)", "alter table t drop a; alter table t add a int", "insert into t values (2)"
    )
    assert [list(relation.columns) for relation in relations(found)] == [["id", "a", "b"], ["id", "b", "a"]]


def test_generated_columns_are_left_out_and_types_of_users_are_read_over(decode: Decode) -> None:
    decode(
        "create type mood as enum ('well'); create table t (id int primary key, m mood,"
        " twice int generated always as (id * 2) stored)"
    )
    [relation, change] = decode("insert into t values (1, 'well')")
    assert isinstance(relation, Relation)
    assert list(relation.columns) == ["id", "m"]
    assert isinstance(change, RowChange)
    assert change.row == {"id": "1", "m": "well"}


def test_a_column_has_the_type_that_it_is_at_bottom(decode: Decode, source: FollowedSource, admin: cursor) -> None:
    source.run("create domain money_ as numeric(10, 2); create table t (id int primary key, m money_)")
    [relation] = relations(decode("insert into t values (1, 1)"))
    decoder = PgOutputDecoder(lambda oid, modifier: (oid, modifier) if oid < 10_000 else (1700, 655366))
    assert relation.columns["m"] > 10_000
    admin.execute("select pg_create_logical_replication_slot('again', 'pgoutput', true)")
    source.run("insert into t values (2, 1)")
    admin.execute(
        "select data from pg_logical_slot_get_binary_changes('again', null, null,"
        " 'proto_version', '1', 'publication_names', 'everything')"
    )
    [at_bottom] = [e for (data,) in admin.fetchall() for e in decoder.decode(bytes(data)) if isinstance(e, Relation)]
    assert (at_bottom.columns["m"], at_bottom.modifiers["m"]) == (1700, 655366)


def test_two_schemas_with_a_table_of_one_name_are_refused_and_a_table_that_moves_is_not(decode: Decode) -> None:
    decode("create schema other; create table t (id int primary key)")
    decode("insert into t values (1)", "alter table t set schema other", "insert into other.t values (2)")
    with pytest.raises(ValueError, match="two schemas publish a table t"):
        decode("create table t (id int primary key)", "insert into t values (1)")


@pytest.mark.parametrize("message", [b"", b"S", b"Z\0\0"])
def test_a_message_of_another_protocol_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match="unknown kind"):
        list(PgOutputDecoder().decode(message))


# As COPY gives them

TYPES = (
    "id int primary key, flag bool, small int2, large int8, single float4, double float8, exact numeric(12, 3),"
    " short numeric(3, -2), open numeric, note text, padded char(4), day date, local timestamp, moment timestamptz,"
    " number uuid, document jsonb, parts int[], bytes bytea, span interval"
)
ROWS = """
(1, true, -32768, 9223372036854775807, 0.1, 0.1, 123456789.125, 12300, 1.10, 'plain', 'ab', '2013-01-01',
 '2013-01-01 12:00:00.123456', '2013-01-01 12:00+02', '00000000-0000-0000-0000-000000000001', '{"a": [1]}',
 '{1,2}', '\\x00ff', '1 day 02:00'),
(2, false, 0, 0, 'NaN', 'NaN', 0, 0, 'NaN', '', '', '1900-02-28', '1999-12-31 23:59:59', '2000-01-01 UTC',
 null, '""', '{}', '', null),
(3, null, null, null, 'Infinity', '-Infinity', null, null, 1e-7, null, null, null, null, null, null, null, null,
 null, null),
(4, true, 1, 1, 1e-45, 2.2250738585072014e-308, 0, -100, 1e30, E'a "quoted"\\nline, \\\\ and\\ttab\\r\\n', ',',
 '9999-12-31', '2013-01-01', '2013-07-01 00:00:00.1+00', null, 'null', null, null, null),
(5, true, 1, 1, 3.4028235e38, 1.7976931348623157e308, 1.5, 100, -0.0, 'Grüße \U0001f600', 'ü', '0001-01-01',
 '0001-01-01', '2013-01-01 00:00-08', null, '1.10', null, null, '-1 month')
"""
NEVER = ", (6, true, 1, 1, 1, -0.0, 1, 100, 1, 'NULL', 'NULL', {day}, {local}, {moment}, null, '[]', null, null, null)"


def to_bytes(rows: pa.Table) -> bytes:
    """All that there is of a table, the bits of each NaN included."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    "more",
    [
        "",
        NEVER.format(day="'infinity'", local="'2013-01-01'", moment="'2013-01-01 UTC'"),
        NEVER.format(day="'2013-01-01'", local="'-infinity'", moment="'infinity'"),
        NEVER.format(day="'0044-03-15 BC'", local="'0044-03-15 12:00 BC'", moment="'0044-03-15 12:00+00 BC'"),
    ],
    ids=["ordinary", "infinite day", "infinite moment", "before Christ"],
)
def test_rows_are_to_the_bit_what_copy_gives(decode: Decode, outside: Outside, more: str) -> None:
    decode(f"create table t ({TYPES})")
    found = decode(f"insert into t values {ROWS}{more}")
    [relation] = relations(found)
    rows = [change.row for change in changes(found) if change.row is not None]
    with outside.source.transaction() as at:
        copied = outside.source.copy_out("select * from t order by id", at=at)
    followed = convert_rows(rows, relation)
    assert followed.schema == copied.schema
    assert to_bytes(followed) == to_bytes(copied)
    assert to_bytes(convert_rows(rows[::-1], relation)) != to_bytes(copied)
    assert any(is_unread(name) for name in copied.column_names) == bool(more)


def test_without_its_modifier_a_number_would_not_be_what_copy_gives(decode: Decode, outside: Outside) -> None:
    decode("create table t (id int primary key, n numeric(5, 2))")
    [relation, change] = decode("insert into t values (1, 1.10)")
    assert isinstance(relation, Relation)
    assert isinstance(change, RowChange)
    assert change.row is not None
    with outside.source.transaction() as at:
        copied = outside.source.copy_out("select * from t", at=at)
    assert convert_rows([change.row], relation) == copied
    assert convert_rows([change.row], replace(relation, modifiers={"id": -1, "n": -1})) != copied


def test_a_number_that_no_exact_number_is_is_null_beside_its_text_as_in_a_copy(
    decode: Decode, outside: Outside
) -> None:
    decode("create table t (id int primary key, n numeric(5, 2))")
    [relation, change] = decode("insert into t values (1, 'NaN')")
    assert isinstance(relation, Relation)
    assert isinstance(change, RowChange)
    assert change.row is not None
    with outside.source.transaction() as at:
        copied = outside.source.copy_out("select * from t", at=at)
    assert (copied["n"].to_pylist(), copied[name_unread("n")].to_pylist()) == ([None], ["NaN"])
    assert convert_rows([change.row], relation) == copied


def test_no_rows_have_the_types_of_their_table(decode: Decode) -> None:
    decode("create table t (id int primary key, moment timestamptz)")
    [relation] = relations(decode("insert into t values (1)"))
    assert (
        convert_rows([], relation)
        == pa.schema([("id", pa.int32()), ("moment", pa.timestamp("us", tz="UTC"))]).empty_table()
    )


def test_a_row_that_lacks_a_column_is_refused(decode: Decode) -> None:
    decode("create table t (id int primary key, v text)")
    [relation] = relations(decode("insert into t values (1)"))
    with pytest.raises(KeyError, match="v"):
        convert_rows([{"id": "1"}], relation)
