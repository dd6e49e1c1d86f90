"""The warehouse commits whole transactions of whoever is entitled to, once, and waits out what passes."""

import dataclasses
import shutil
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg2
import pyarrow as pa
import pytest
from psycopg2 import errors

from adapters.connect import Outside
from adapters.copying import is_unread, name_unread
from adapters.errors import FencedOut, Refused
from adapters.retrying import GaveUp
from adapters.warehouse import MIGRATIONS, Upserted, Warehouse
from infra.local.stack import Stack
from tests.conftest import drop_database, make_database
from tests.faulty import restart_postgres

NEW_YEAR = datetime(2013, 1, 1, tzinfo=UTC)
KEY = ("use_case", "entity_key", "event_time")


@pytest.fixture
def warehouse(outside: Outside) -> Warehouse:
    return outside.warehouse


def outcomes(labels: Sequence[float]) -> pa.Table:
    moment = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            "use_case": ["u"] * len(labels),
            "entity_key": [f"e{i}" for i in range(len(labels))],
            "event_time": pa.array([NEW_YEAR] * len(labels), moment),
            "label": pa.array(labels, pa.float64()),
            "label_time": pa.array([NEW_YEAR] * len(labels), moment),
        }
    )


def put(warehouse: Warehouse, rows: pa.Table) -> Upserted:
    with warehouse.transaction() as at:
        return warehouse.upsert(at, "outcomes", rows, KEY)


def written_by(warehouse: Warehouse) -> list[str]:
    """The transaction that last wrote, or locked, each row: what an unchanged row must not lose."""
    rows = warehouse.query(
        "select xmin::text || '/' || xmax::text || '/' || ctid::text as by from outcomes order by entity_key"
    )
    return [row["by"] for row in rows]


# Migrations


def test_migrating_again_changes_nothing(warehouse: Warehouse) -> None:
    assert warehouse.migrate() == []


def test_a_changed_migration_that_was_applied_is_an_error(warehouse: Warehouse, tmp_path: Path) -> None:
    for path in MIGRATIONS.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text() + "\n-- changed")
    with pytest.raises(ValueError, match=r"0001_core\.sql.*add a new migration"):
        warehouse.migrate(tmp_path)


def test_migrations_apply_in_order_all_or_none(warehouse: Warehouse, tmp_path: Path) -> None:
    for path in MIGRATIONS.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "9001_a.sql").write_text("create table a (n int)")
    (tmp_path / "9002_b.sql").write_text("insert into a values (1); select 1/0")
    with pytest.raises(errors.DivisionByZero):
        warehouse.migrate(tmp_path)
    (tmp_path / "9002_b.sql").write_text("insert into a values (1)")
    assert warehouse.migrate(tmp_path) == ["9001_a.sql", "9002_b.sql"]


def test_rows_of_before_intervals_stay_as_they_are_and_new_ones_may_have_bounds(stack: Stack) -> None:
    """Migration 0021, on a database that a version before it filled."""
    warehouse = Warehouse(make_database(stack, "before_intervals", "warehouse"))
    try:
        with TemporaryDirectory() as folder:
            for path in MIGRATIONS.glob("*.sql"):
                if path.name < "0021":
                    shutil.copy(path, folder)
            warehouse.migrate(Path(folder))
        insert = (
            "insert into predictions (use_case, entity_key, event_time, model_version, prediction_time, score,"
            " snapshot_version{}) values ('u', %s, now(), '1', now(), 2, 's'{})"
        )
        warehouse.execute(insert.format("", ""), ("old",))
        assert warehouse.migrate()[0] == "0021_intervals.sql"
        bounded = insert.format(", lower, upper", ", %s, %s")
        warehouse.execute(bounded, ("new", 1.5, 4.0))
        warehouse.execute("update predictions set score = score + 0.5")
        rows = warehouse.query("select entity_key, score, lower, upper from predictions order by 1 desc")
        assert [tuple(row.values()) for row in rows] == [("old", 2.5, None, None), ("new", 2.5, 1.5, 4.0)]
        for bounds in ((2.5, 3.0), (None, 3.0), (1.0, None), (1.0, float("nan")), (float("nan"), 3.0)):
            with pytest.raises(errors.CheckViolation):
                warehouse.execute(bounded, ("wrong", *bounds))
    finally:
        drop_database(stack, "before_intervals")


def test_migrations_run_at_once_apply_once(warehouse: Warehouse, tmp_path: Path) -> None:
    for path in MIGRATIONS.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    (tmp_path / "9001_a.sql").write_text("create table a (n int); select pg_sleep(0.2)")
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(warehouse.migrate(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], ["9001_a.sql"]]


# Which code wrote a row


@pytest.mark.parametrize(
    ("wrote", "updated", "kept"), [("a", "b", "b"), ("a", "", "a"), ("", "b", "b"), ("", "", None)]
)
def test_a_row_keeps_the_code_that_wrote_it_last(
    warehouse: Warehouse, wrote: str, updated: str, kept: str | None
) -> None:
    dataclasses.replace(warehouse, code_sha=wrote).execute(
        'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
        " values ('u', '1', 'g', now(), now(), 1, 1, '{}')"
    )
    dataclasses.replace(warehouse, code_sha=updated).execute("update snapshots set rows = 2")
    assert warehouse.code_sha == "0" * 40
    assert [row["code_sha"] for row in warehouse.query("select code_sha from snapshots")] == [kept]


# The ledger


@pytest.mark.parametrize("statement", ["update ledger set reason = 'other'", "delete from ledger", "truncate ledger"])
def test_the_ledger_refuses(warehouse: Warehouse, statement: str) -> None:
    warehouse.execute(
        "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
        " values ('u', 'promote', '1', now(), 'test', 'because', '{}')"
    )
    with pytest.raises(errors.RestrictViolation, match="append-only"):
        warehouse.execute(statement)
    assert [row["reason"] for row in warehouse.query("select reason from ledger")] == ["because"]


# Fences


def test_the_latest_to_begin_commits(warehouse: Warehouse) -> None:
    warehouse.begin("work")
    with warehouse.transaction(warehouse.begin("work")) as at:
        at.execute("create table done (n int)")
    assert warehouse.query("select * from done") == []


def test_an_orphan_whose_work_was_begun_again_cannot_commit(warehouse: Warehouse) -> None:
    orphan = warehouse.begin("work")
    warehouse.begin("work")
    with pytest.raises(FencedOut, match="epoch 1 may not commit"), warehouse.transaction(orphan) as at:
        at.execute("create table done (n int)")
    assert warehouse.query("select to_regclass('done') as done") == [{"done": None}]


def test_beginning_again_waits_for_a_commit_under_way(warehouse: Warehouse) -> None:
    first = warehouse.begin("work")
    second: list[int] = []
    thread = threading.Thread(target=lambda: second.append(warehouse.begin("work").epoch))
    with warehouse.transaction(first) as at:
        thread.start()
        thread.join(0.3)
        assert not second, "the second run began inside the first one's commit"
        at.execute("create table done (n int)")
    thread.join()
    assert second == [2]


# Upserts


def test_rerunning_an_upsert_writes_no_row(warehouse: Warehouse) -> None:
    rows = outcomes([0.0, 1.0, 0.1 + 0.2])
    assert put(warehouse, rows) == Upserted(inserted=3, updated=0, unchanged=0)
    before = written_by(warehouse)
    assert put(warehouse, rows) == Upserted(inserted=0, updated=0, unchanged=3)
    assert written_by(warehouse) == before


def test_new_rows_go_straight_in(warehouse: Warehouse) -> None:
    rows = outcomes([0.0, 1.0])
    with warehouse.transaction() as at:
        assert warehouse.insert(at, "outcomes", rows, KEY)
    assert put(warehouse, rows) == Upserted(inserted=0, updated=0, unchanged=2)


def test_where_a_key_is_there_nothing_goes_straight_in_and_the_transaction_goes_on(warehouse: Warehouse) -> None:
    put(warehouse, outcomes([0.5]))
    before = written_by(warehouse)
    with warehouse.transaction() as at:
        assert not warehouse.insert(at, "outcomes", outcomes([0.0, 1.0]), KEY)
        at.execute("create table done (n int)")
    assert written_by(warehouse) == before
    assert warehouse.query("select * from done") == []


def test_an_upsert_writes_exactly_what_differs(warehouse: Warehouse) -> None:
    put(warehouse, outcomes([0.0, 1.0]))
    before = written_by(warehouse)
    assert put(warehouse, outcomes([0.0, 0.0, 1.0])) == Upserted(inserted=1, updated=1, unchanged=1)
    assert written_by(warehouse)[0] == before[0]
    assert [r["label"] for r in warehouse.query("select label from outcomes order by entity_key")] == [0.0, 0.0, 1.0]


def test_an_upsert_with_one_key_twice_writes_nothing(warehouse: Warehouse) -> None:
    rows = outcomes([0.0])
    with pytest.raises(errors.CardinalityViolation):
        put(warehouse, pa.concat_tables([outcomes([1.0]), rows, rows, rows]).slice(0, 3))
    assert warehouse.query("select * from outcomes") == []


def test_values_come_back_as_they_went_in(warehouse: Warehouse) -> None:
    """Null and '' stay apart; floats keep every bit; quotes, commas, line ends and NaN survive."""
    warehouse.execute("create table odd (k int primary key, t text, f double precision, b boolean, at timestamptz)")
    rows = pa.table(
        {
            "k": pa.array(range(5), pa.int32()),
            "t": ["", None, 'a "b", c', "x\ny\r\n", "\\N"],
            "f": [float("nan"), None, 5e-324, -float("inf"), 0.1 + 0.2],
            "b": [True, False, None, True, False],
            "at": pa.array([NEW_YEAR.replace(microsecond=1)] * 5, pa.timestamp("us", tz="UTC")),
        }
    )
    with warehouse.transaction() as at:
        warehouse.upsert(at, "odd", rows, ("k",))
        back = warehouse.copy_out("select * from odd where k >= %s order by k", (0,), at=at)
        assert warehouse.upsert(at, "odd", rows, ("k",)).unchanged == 5
    assert back.schema == rows.schema
    assert repr(back.to_pylist()) == repr(rows.to_pylist())  # repr: NaN equals itself there


def test_dates_that_arrow_cannot_hold_are_null_with_their_text_beside_them(warehouse: Warehouse) -> None:
    with warehouse.transaction() as at:
        rows = warehouse.copy_out("select 'infinity'::timestamptz as t, 1.5::numeric(4, 2) as n", at=at)
    assert [str(field.type) for field in rows.schema] == ["timestamp[us, tz=UTC]", "decimal128(4, 2)", "string"]
    assert (rows["t"].to_pylist(), rows[name_unread("t")].to_pylist()) == ([None], ["infinity"])


def test_the_text_beside_a_column_has_a_name_that_no_column_of_postgresql_has() -> None:
    assert len(name_unread("")) > 63
    assert is_unread(name_unread("t"))
    assert not is_unread("t")


def test_one_null_alone_is_a_row(warehouse: Warehouse) -> None:
    with warehouse.transaction() as at:
        rows = warehouse.copy_out("select n from unnest(array[null, 1, null]::int[]) n", at=at)
    assert rows["n"].to_pylist() == [None, 1, None]


@pytest.mark.parametrize("moment", ["2013-01-01+00", "infinity"])
def test_a_nan_where_numbers_are_exact_is_null_with_its_text_beside_it_and_changes_no_other_column(
    warehouse: Warehouse, moment: str
) -> None:
    query = "select %s::timestamptz as t, n::numeric(4, 2), n::float8 as f from unnest(array[1.5, 'NaN']) n"
    with warehouse.transaction() as at:
        rows = warehouse.copy_out(query, (moment,), at=at)
    kinds = [str(field.type) for field in rows.schema]
    assert kinds[:3] == ["timestamp[us, tz=UTC]", "decimal128(4, 2)", "double"]
    assert (rows["n"].to_pylist(), rows[name_unread("n")].to_pylist()) == ([Decimal("1.50"), None], [None, "NaN"])
    assert rows["t"].null_count == (2 if moment == "infinity" else 0)
    assert len(kinds) == (5 if moment == "infinity" else 4)


def test_an_empty_result_keeps_its_types(warehouse: Warehouse) -> None:
    with warehouse.transaction() as at:
        rows = warehouse.copy_out("select * from outcomes", at=at)
    assert rows.schema == outcomes([1.0]).schema
    assert rows.num_rows == 0


def test_a_table_name_is_a_name_not_sql(warehouse: Warehouse) -> None:
    with warehouse.transaction() as at, pytest.raises(errors.UndefinedTable):
        warehouse.upsert(at, 'outcomes"; drop table outcomes; --', outcomes([1.0]), KEY)
    assert warehouse.query("select * from outcomes") == []


# What passes, and what does not


def impatient(warehouse: Warehouse, seconds: float = 0.5) -> Warehouse:
    return dataclasses.replace(warehouse, patience_seconds=seconds)


def test_wrong_credentials_say_so_at_once(warehouse: Warehouse) -> None:
    wrong = Warehouse(warehouse.dsn.replace("/warehouse:", "/warehouse:x", 1), patience_seconds=60)
    with pytest.raises(Refused, match=r"warehouse refused us, check its DSN.*authentication failed"):
        wrong.query("select 1")


def test_an_unknown_database_says_so_at_once(warehouse: Warehouse) -> None:
    with pytest.raises(Refused, match='"nowhere" does not exist'):
        Warehouse(warehouse.dsn.rpartition("/")[0] + "/nowhere", patience_seconds=60).query("select 1")


def test_a_password_is_in_no_message(warehouse: Warehouse) -> None:
    with pytest.raises(Refused) as caught:
        Warehouse(warehouse.dsn.replace("/warehouse:", "/warehouse:sesame", 1)).query("select 1")
    assert "sesame" not in str(caught.value) + repr(warehouse)


def test_a_database_that_stays_away_ends_in_a_clear_retryable_error() -> None:
    with pytest.raises(GaveUp, match=r"warehouse: gave up after \d+ attempts.*Connection refused") as caught:
        Warehouse("postgresql://u:p@127.0.0.1:1/d", patience_seconds=0.5).query("select 1")
    assert isinstance(caught.value, psycopg2.OperationalError)


def test_no_free_connection_is_waited_for(warehouse: Warehouse) -> None:
    """With its twin: a slot that is never freed ends in an error."""
    name = warehouse.dsn.rpartition("/")[2]
    warehouse.execute(f"alter database {name} connection limit 1")
    held = psycopg2.connect(warehouse.dsn)
    try:
        with pytest.raises(GaveUp, match="too many connections"):
            impatient(warehouse).query("select 1")
        timer = threading.Timer(0.3, held.close)
        timer.start()
        assert warehouse.query("select 1 as one") == [{"one": 1}]
        timer.join()
    finally:
        held.close()
        warehouse.execute(f"alter database {name} connection limit -1")


def test_of_two_deadlocked_both_commit_in_the_end(warehouse: Warehouse) -> None:
    put(warehouse, outcomes([0.0, 0.0]))
    together, tries = threading.Barrier(2), []

    def add(first: str, second: str) -> None:
        def work() -> None:
            tries.append(first)
            with warehouse.transaction() as at:
                at.execute("update outcomes set label = label + 1 where entity_key = %s", (first,))
                if tries.count(first) == 1:
                    together.wait(30)
                at.execute("update outcomes set label = label + 1 where entity_key = %s", (second,))

        warehouse.retry_transaction(work)

    threads = [threading.Thread(target=add, args=pair) for pair in (("e0", "e1"), ("e1", "e0"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tries) == 3, "one of the two was the victim, once"
    assert [row["label"] for row in warehouse.query("select label from outcomes")] == [2.0, 2.0]


def test_a_server_restarted_mid_upsert_leaves_nothing_then_everything(warehouse: Warehouse, stack: Stack) -> None:
    rows, seen = outcomes([1.0] * 5000), list[int]()

    def work() -> Upserted:
        if seen:
            seen.append(warehouse.query("select count(*) as n from outcomes")[0]["n"])
        with warehouse.transaction() as at:
            done = warehouse.upsert(at, "outcomes", rows, KEY)
            if not seen:
                seen.append(-1)
                restart_postgres(stack)
            return done

    assert warehouse.retry_transaction(work) == Upserted(inserted=5000, updated=0, unchanged=0)
    assert seen == [-1, 0]
    assert warehouse.query("select count(*) as n from outcomes") == [{"n": 5000}]


def test_a_mistake_is_not_tried_again(warehouse: Warehouse) -> None:
    tries = []

    def work() -> None:
        tries.append(1)
        with warehouse.transaction() as at:
            at.execute("select * from nowhere")

    with pytest.raises(errors.UndefinedTable):
        warehouse.retry_transaction(work)
    assert len(tries) == 1
