"""What is pending is found by a handful of queries on one connection, however many partitions there are."""

import json
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from adapters.connect import Outside
from pipeline.spec import UseCase
from tasks import pending_work, score
from tasks.build_features import build
from tasks.monitor import monitor

FIRST, WEEK, WEEKS = datetime(2012, 12, 31, tzinfo=UTC), timedelta(days=7), 52


class Opened(list[str]):
    """Connections that were opened, by what they are to."""


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Every connection that the warehouse opens from now on."""
    opened, connect = Opened(), psycopg2.connect

    def counted(dsn: str, **options: object) -> object:
        opened.append(dsn)
        return connect(dsn, **options)

    monkeypatch.setattr("adapters.warehouse.psycopg2.connect", counted)
    return opened


@pytest.fixture
def year(use_case: UseCase, outside: Outside) -> UseCase:
    """A year of features under two champions: the first three quarters are scored, the rest is not."""
    starts = [FIRST + number * WEEK for number in range(WEEKS)]
    index = {use_case.grid.key(use_case.grid.containing(start)): {"inputs": f"i{start}"} for start in starts}
    with outside.warehouse.transaction() as at:
        at.execute(
            'insert into snapshots (use_case, version, git_revision, start, "end", partitions, rows, index)'
            " values (%s, 's', '-', %s, %s, %s, 0, %s)",
            (use_case.name, starts[0], starts[-1] + WEEK, WEEKS, json.dumps(index)),
        )
        for version, as_of in (("1", starts[0]), ("2", starts[26])):
            at.execute(
                "insert into ledger (use_case, action, model_version, as_of, actor, reason, evidence)"
                " values (%s, 'promote', %s, %s, 'test', 'test', '{}')",
                (use_case.name, version, as_of),
            )
        at.execute(
            "insert into champions (use_case, revision, version, as_of) values (%s, 2, '2', %s)",
            (use_case.name, starts[26]),
        )
        for number, start in enumerate(starts[:39]):
            at.execute(
                "insert into scorings values (%s, %s, %s, %s, 's', 1)",
                (use_case.name, start, "1" if number < 26 else "2", f"i{start}"),
            )
    return use_case


def test_a_year_of_partitions_is_looked_through_on_one_connection_a_step(
    year: UseCase, outside: Outside, opened: Opened
) -> None:
    unscored = score.find_unscored(year, outside)
    assert len(opened) == 1
    assert [each.partition.start for each in unscored] == [FIRST + number * WEEK for number in range(39, WEEKS)]
    assert {each.champion.version for each in unscored} == {"2"}
    assert [len(share) for share in score.plan_shares(year, outside)] == [13]
    assert len(opened) == 2
    undecided = monitor.find_undecided(year, outside)
    assert len(opened) == 3
    assert [each.champion.version for each in undecided] == ["1"] * 26 + ["2"] * 13


def test_reconcile_asks_all_steps_on_one_connection(
    year: UseCase, outside: Outside, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "pending_partitions", lambda *_: outside.warehouse.query("select 1"))
    assert pending_work.find_pending_verbs(year, outside) == ["build_features", "score", "monitor"]
    assert len(opened) == 1


def test_after_a_step_every_call_has_a_connection_of_its_own_again(outside: Outside, opened: Opened) -> None:
    with outside.warehouse.session():
        outside.warehouse.query("select 1")
        with outside.warehouse.transaction() as outer, outside.warehouse.transaction() as inner:
            outer.execute("select pg_backend_pid()")
            inner.execute("select pg_backend_pid()")
            assert outer.fetchall() != inner.fetchall()
        outside.warehouse.query("select 1")
    assert len(opened) == 2
    for _ in range(2):
        outside.warehouse.query("select 1")
    assert len(opened) == 4


def test_a_connection_that_breaks_between_two_queries_is_replaced(outside: Outside, opened: Opened) -> None:
    with outside.warehouse.session():
        [row] = outside.warehouse.query("select pg_backend_pid() as pid")
        admin = psycopg2.connect(opened[0])
        with admin, admin.cursor() as at:
            at.execute("select pg_terminate_backend(%s)", (row["pid"],))
        admin.close()
        assert outside.warehouse.query("select 1 as one") == [{"one": 1}]


def test_a_snapshot_in_a_session_leaves_the_connection_as_it_was(outside: Outside, opened: Opened) -> None:
    with outside.warehouse.session():
        with outside.warehouse.transaction(snapshot=True) as at, pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            at.execute("insert into fences (run_key, epoch) values ('k', 1)")
        assert outside.warehouse.begin("k").epoch == 1
    assert len(opened) == 1
