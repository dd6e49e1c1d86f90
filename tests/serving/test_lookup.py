"""The reader of the online store, against a real PostgreSQL that is well, damaged, slow, or gone."""

import os
import signal
import socket
import time
from typing import Any

import psutil
import psycopg2
import psycopg2.extras
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from adapters.connect import Outside
from features.followed import FollowedSeries
from features.online import StoreState
from infra.local import postgres
from infra.local.stack import Stack
from pipeline.settings import Settings
from serving.lookup import FeatureLookup
from serving.reasons import DegradedReason
from tests.features.stored import Stored, online
from tests.features.test_followed import IDENTITIES, between, rows_changed
from tests.features.world import FLIGHTS, LEAD, World, day, moved, small_world
from tests.serving.stream_writes import AS_OF, CUT, apply_between, write_step

TIMEOUT_MS = 1000  # of a store that hangs
PATIENT_MS = 60_000  # of one that is well, on a machine that is busy


def lookup(dsn: str, *, timeout_ms: int = PATIENT_MS) -> FeatureLookup:
    return FeatureLookup(dsn=dsn, use_case="flights", definition=FLIGHTS, lead=LEAD, timeout_ms=timeout_ms)


def online_dsn(settings: Settings, stack: Stack) -> str:
    """The address of a test's warehouse for the server's own role."""
    home, database = stack.home(), settings.warehouse_dsn.rpartition("/")[2]
    return postgres.postgres_dsn(home.ports["postgres"], database, "online", home.secrets["online"])


def test_the_servers_role_reads_the_batchs_features_and_may_write_nothing(
    full: Outside, settings: Settings, stack: Stack, events: pa.Table, batch: pa.Table
) -> None:
    with full.warehouse.transaction() as at:  # a copy of the template keeps its tables' rights, not the database's
        at.execute("grant connect on database " + settings.warehouse_dsn.rpartition("/")[2] + " to online")
    dsn = online_dsn(settings, stack)
    found = lookup(dsn).features(events)
    assert moved(batch, found.features) == []
    assert found.as_of == AS_OF
    assert not [problem for row in found.problems for problem in row if problem == DegradedReason.STORE_SILENT]
    connection = psycopg2.connect(dsn)
    with connection.cursor() as at, pytest.raises(psycopg2.errors.InsufficientPrivilege):
        at.execute("delete from online_series")
    connection.close()


def test_a_refresh_is_seen_by_the_next_batch(full: Outside, events: pa.Table) -> None:
    reader = lookup(full.settings.warehouse_dsn)
    assert reader.features(events).as_of == AS_OF
    full.warehouse.execute("update online_state set revision = 2, as_of = %s", (day(19),))
    assert reader.features(events).as_of == day(19)


def test_a_tampered_payload_is_a_reason_and_no_crash(full: Outside, events: pa.Table, batch: pa.Table) -> None:
    full.warehouse.execute(
        "update online_series set payload = overlay(payload placing '\\x00ff' from 40) where key like 'weather(%'"
    )
    found = lookup(full.settings.warehouse_dsn).features(events)
    assert found.as_of == AS_OF
    assert all("damaged history of weather(origin)" in row for row in found.problems)
    assert "temp_f" in (differ := moved(batch, found.features))
    assert "carrier_late_rate_7d" not in differ


def test_a_definition_that_was_never_stored_is_answered_without_history(outside: Outside, events: pa.Table) -> None:
    found = lookup(outside.settings.warehouse_dsn).features(events)
    assert (found.as_of, set(found.problems)) == (None, {(DegradedReason.STORE_SILENT,)})
    assert found.features["temp_f"].null_count == events.num_rows


def test_a_store_that_hangs_costs_the_timeout_once_and_is_asked_again_a_second_later(
    full: Outside, events: pa.Table
) -> None:
    now = [0.0]

    def clock() -> float:
        return now[0] + time.monotonic()

    reader = FeatureLookup(
        dsn=full.settings.warehouse_dsn, use_case="flights", definition=FLIGHTS, lead=LEAD, timeout_ms=TIMEOUT_MS,
        clock=clock,
    )  # fmt: skip
    assert reader.features(events).as_of == AS_OF
    connection = reader._store._connection
    assert connection is not None
    server = psutil.Process(connection.get_backend_pid())
    server.suspend()
    try:
        began = time.monotonic()
        assert reader.features(events).problems == ((DegradedReason.STORE_SILENT,),) * events.num_rows
        assert time.monotonic() - began >= TIMEOUT_MS / 1000
        read = reader._store._read
        reader._store._read = lambda keys, _: pytest.fail(f"asked again, for {keys}")  # type: ignore[method-assign]
        assert reader.features(events).as_of is None  # not even tried
        reader._store._read = read  # type: ignore[method-assign]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    now[0] = 1.0  # a second later
    assert reader.features(events).as_of == AS_OF


def test_a_batch_that_is_too_much_for_its_time_does_not_cost_the_next_one_its_history(
    full: Outside, events: pa.Table
) -> None:
    """The twin of the one that hangs: this store has answered a read when the time is over."""
    now = [0.0]
    reader = FeatureLookup(
        dsn=full.settings.warehouse_dsn, use_case="flights", definition=FLIGHTS, lead=LEAD, timeout_ms=TIMEOUT_MS,
        clock=lambda: now[0],
    )  # fmt: skip
    store, reads = reader._store, []
    read = store._read

    def slowly(keys: list[str], held: StoreState | None) -> list[tuple[Any, ...]]:
        reads.append(len(keys))
        found = read(keys, held)
        now[0] += 2 * TIMEOUT_MS / 1000 if len(reads) == 1 else 0
        return found

    store._read = slowly  # type: ignore[method-assign]
    assert reader.features(events).problems == ((DegradedReason.STORE_SILENT,),) * events.num_rows
    assert len(reads) >= 2
    assert reader.features(events).as_of == AS_OF  # at once, and with less to read


def test_a_server_that_accepts_and_says_nothing_does_not_hold_the_answer(events: pa.Table) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reader = lookup(f"postgresql://a:b@127.0.0.1:{silent.getsockname()[1]}/c", timeout_ms=200)
        found = reader.features(events)  # it comes back, though the other side never says a word
    assert found.as_of is None
    assert set(found.problems) == {(DegradedReason.STORE_SILENT,)}
    assert found.features.num_rows == events.num_rows


def test_a_connection_that_was_cut_is_made_again_within_the_same_batch(full: Outside, events: pa.Table) -> None:
    reader = lookup(full.settings.warehouse_dsn)
    reader.features(events)
    connection = reader._store._connection
    assert connection is not None
    full.warehouse.execute("select pg_terminate_backend(%s, 5000)", (connection.get_backend_pid(),))
    assert reader.features(events).as_of == AS_OF


def test_no_events_are_no_rows(full: Outside, events: pa.Table) -> None:
    found = lookup(full.settings.warehouse_dsn).features(events.slice(0, 0))
    assert found.features.num_rows == 0
    assert found.problems == ()


def note_reads(reader: FeatureLookup) -> list[tuple[Any, ...]]:
    """A list that gets each row of the store from now on: its key, both parts, and whether it only names a change."""
    rows, read = list[tuple[Any, ...]](), reader._store._read

    def noting(keys: list[str], held: StoreState | None) -> list[tuple[Any, ...]]:
        found = read(keys, held)
        rows.extend(row[-4:] for row in found)  # before them comes the state
        return found

    reader._store._read = noting  # type: ignore[method-assign]
    return rows


def test_a_store_in_two_parts_answers_as_the_batch_and_as_one_in_one_part(
    parted: Outside, followed: FollowedSeries, events: pa.Table, batch: pa.Table, store: Stored
) -> None:
    """Each window of seven days spans the split. Its twin: without their later parts, the same series are others."""
    write_step(parted, apply_between(followed, small_world(), *IDENTITIES), AS_OF, changes=2)
    [kinds] = parted.warehouse.query(
        "select count(*) filter (where recent is null) as settled, count(*) filter (where payload is null) as recent,"
        " count(*) filter (where payload is not null and recent is not null) as parted from online_series"
    )
    assert min(kinds.values()) > 10
    found = lookup(parted.settings.warehouse_dsn).features(events)
    assert found.as_of == AS_OF  # until when all is known, not what the dataset ends with
    assert moved(batch, found.features) == []
    assert moved(online(events, store).features, found.features) == []
    parted.warehouse.execute("update online_series set recent = null")
    assert "all_late_rate_7d" in moved(batch, lookup(parted.settings.warehouse_dsn).features(events).features)


def test_a_change_of_one_key_is_seen_by_the_next_batch_which_reads_no_other(
    parted: Outside, followed: FollowedSeries, world: World, events: pa.Table, batch: pa.Table
) -> None:
    reader = lookup(parted.settings.warehouse_dsn)
    before, rows = reader.features(events), note_reads(reader)
    weather = between(world["weather"], CUT, AS_OF)
    step = followed.apply({"weather": rows_changed("weather", weather.filter(pc.equal(weather["origin"], "JFK")))})
    assert [*step.settled, *step.recent] == ['weather(origin)["JFK"]']
    write_step(parted, step, AS_OF, changes=2)
    after = reader.features(events)
    assert [row[0] for row in rows if row[0] and not row[3]] == ['weather(origin)["JFK"]']
    assert after.as_of == AS_OF
    fresh = lookup(parted.settings.warehouse_dsn).features(events).features
    assert moved(fresh, after.features) == []
    at_jfk = pc.equal(batch["origin"], "JFK")
    for name in ("temp_f", "pressure_trend_mb_per_hour"):
        assert after.features[name].filter(at_jfk).equals(batch[name].filter(at_jfk))
        assert not before.features[name].filter(at_jfk).equals(batch[name].filter(at_jfk))


def test_sabotage_a_change_whose_number_is_not_raised_is_not_seen(
    parted: Outside, followed: FollowedSeries, world: World, events: pa.Table, batch: pa.Table
) -> None:
    reader = lookup(parted.settings.warehouse_dsn)
    reader.features(events)
    write_step(parted, apply_between(followed, world, *IDENTITIES), AS_OF, changes=2)
    parted.warehouse.execute("update online_series set changed = 1")
    assert "temp_f" in moved(batch, reader.features(events).features)
    parted.warehouse.execute("update online_series set changed = 3")
    parted.warehouse.execute("update online_state set changes = 3")
    assert moved(batch, reader.features(events).features) == []


def test_time_that_passes_without_a_change_moves_as_of_and_reads_no_series(parted: Outside, events: pa.Table) -> None:
    reader = lookup(parted.settings.warehouse_dsn)
    assert reader.features(events).as_of == CUT
    rows = note_reads(reader)
    parted.warehouse.execute("update online_state set known_until = %s", (day(17, 6),))
    assert reader.features(events).as_of == day(17, 6)
    assert {row[0] for row in rows} == {None}
