"""The mirror of the online store: what it says is what the store says, it waits for nobody, and it knows its age."""

import os
import signal
from collections.abc import Iterator

import psutil
import psycopg2
import pyarrow as pa
import pytest

from adapters.connect import Outside
from features.followed import FollowedSeries
from serving import mirror
from serving.lookup import FeatureLookup
from serving.mirror import StoreMirror
from serving.reasons import DegradedReason
from tests.features.test_followed import IDENTITIES
from tests.features.world import FLIGHTS, LEAD, day, moved, small_world
from tests.serving.stream_writes import AS_OF, CUT, apply_between, write_step
from tests.serving.test_lookup import PATIENT_MS, lookup
from tests.waiting import until

SILENT = (DegradedReason.STORE_SILENT,)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's thread may come late: what is silent here is silent for longer."""
    monkeypatch.setattr(mirror, "SILENT_SECONDS", 20.0)


@pytest.fixture
def reader(outside: Outside) -> Iterator[FeatureLookup]:
    made = FeatureLookup(
        dsn=outside.settings.warehouse_dsn, use_case="flights", definition=FLIGHTS, lead=LEAD, timeout_ms=PATIENT_MS,
        is_mirrored=True,
    )  # fmt: skip
    yield made
    made.close()


def of(reader: FeatureLookup) -> StoreMirror:
    """A reader's mirror, once it is ready."""
    assert reader._mirror is not None
    until(lambda: of_any(reader).is_ready)
    return reader._mirror


def of_any(reader: FeatureLookup) -> StoreMirror:
    assert reader._mirror is not None
    return reader._mirror


def test_a_request_gets_the_batchs_features_and_asks_no_database(
    full: Outside,
    reader: FeatureLookup,
    events: pa.Table,
    batch: pa.Table,
) -> None:
    of(reader)
    found = reader.features(events)
    assert moved(batch, found.features) == []
    assert (found.as_of, found.snapshot, found.changes) == (AS_OF, "v1", 0)
    assert reader._store._connection is None


def test_until_all_is_in_memory_the_store_itself_is_asked(
    full: Outside,
    reader: FeatureLookup,
    events: pa.Table,
    batch: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it is for ever, where the series do not fit."""
    monkeypatch.setattr(mirror, "MAX_BYTES", 1)
    full.warehouse.execute("update online_state set revision = 2")  # all is read anew
    until(lambda: not of_any(reader)._thread.is_alive())
    assert not of_any(reader).is_ready
    found = reader.features(events)
    assert moved(batch, found.features) == []
    assert reader._store._connection is not None


def test_what_the_stream_commits_is_told_and_forgets_what_changed(
    parted: Outside, reader: FeatureLookup, followed: FollowedSeries, events: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    of(reader)
    assert reader.features(events).as_of == CUT
    step = apply_between(followed, small_world(), *IDENTITIES)
    monkeypatch.setattr(mirror, "_ASK_SECONDS", 20.0)
    parted.warehouse.execute("update online_state set known_until = %s", (day(17, 6),))  # the wait before ends
    until(lambda: reader.features(events).as_of == day(17, 6))
    write_step(parted, step, AS_OF, changes=2)
    until(lambda: reader.features(events).as_of == AS_OF, 10)  # it was told, long before it would have asked
    found, fresh = reader.features(events), lookup(parted.settings.warehouse_dsn).features(events)
    assert (moved(fresh.features, found.features), found.changes) == ([], 2)
    assert reader._store._connection is None


def test_a_batch_reads_of_one_state_though_the_store_goes_on_meanwhile(
    parted: Outside, reader: FeatureLookup, followed: FollowedSeries
) -> None:
    """Else a batch that takes longer than a step of the stream would be begun anew again and again."""
    mirrored, step = of(reader), apply_between(followed, small_world(), *IDENTITIES)
    keys = sorted(step.recent)
    before = mirrored.begin_batch()(keys, None)
    read = mirrored.begin_batch()
    first = read(keys[:1], None)
    write_step(parted, step, AS_OF, changes=2)
    until(lambda: mirrored.begin_batch()([], None).state.changes == 2)
    rest = read(keys, first.state)
    assert (first.state, rest.state) == (before.state, before.state)
    assert rest.parts == before.parts
    after = mirrored.begin_batch()(keys, None)
    assert [key for key in keys if after.parts.get(key) != before.parts.get(key)] == keys


def test_sabotage_a_change_that_nobody_tells_is_found_by_asking(
    parted: Outside,
    reader: FeatureLookup,
    events: pa.Table,
) -> None:
    of(reader)
    parted.warehouse.execute("drop trigger store_news on online_state")
    parted.warehouse.execute("update online_state set known_until = %s", (day(17, 6),))
    until(lambda: reader.features(events).as_of == day(17, 6))


def test_another_revision_is_read_anew(full: Outside, reader: FeatureLookup, events: pa.Table) -> None:
    of(reader)
    before = reader.features(events).features
    full.warehouse.execute("delete from online_series where key like 'weather(%'")
    full.warehouse.execute("update online_state set revision = 2, as_of = %s", (day(19),))
    until(lambda: reader.features(events).as_of == day(19) and of_any(reader).is_ready)
    after = reader.features(events).features
    assert "temp_f" in moved(before, after)
    assert moved(after, lookup(full.settings.warehouse_dsn).features(events).features) == []


def test_a_store_that_hangs_is_silent_after_a_while_and_no_request_waits_for_it(
    full: Outside,
    reader: FeatureLookup,
    events: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its twin: for that while it is answered from memory, which says up to when it knows."""
    connection = of(reader)._store._connection
    assert connection is not None
    server = psutil.Process(connection.get_backend_pid())
    server.suspend()
    try:
        assert reader.features(events).as_of == AS_OF
        monkeypatch.setattr(mirror, "SILENT_SECONDS", 0.5)
        until(lambda: set(reader.features(events).problems) == {SILENT})
        assert reader._store._connection is None  # nor was the store itself asked
    finally:
        os.kill(server.pid, signal.SIGCONT)
    monkeypatch.setattr(mirror, "SILENT_SECONDS", 20.0)
    until(lambda: reader.features(events).as_of == AS_OF)


def test_a_connection_that_was_cut_is_made_again(full: Outside, reader: FeatureLookup, events: pa.Table) -> None:
    connection = of(reader)._store._connection
    assert connection is not None
    full.warehouse.execute("select pg_terminate_backend(%s, 5000)", (connection.get_backend_pid(),))
    full.warehouse.execute("update online_state set known_until = %s", (day(19),))
    until(lambda: reader.features(events).as_of == day(19))


def test_a_store_that_is_not_there_is_silent_and_a_definition_that_comes_is_read(
    outside: Outside,
    reader: FeatureLookup,
    events: pa.Table,
) -> None:
    assert set(reader.features(events).problems) == {SILENT}
    connection = psycopg2.connect(outside.settings.warehouse_dsn)
    with connection, connection.cursor() as at:
        at.execute(
            "insert into online_state (use_case, definition, since, as_of, snapshot_version, revision)"
            " values ('flights', %s, %s, %s, 'v1', 1)",
            (FLIGHTS.digest(), CUT, AS_OF),
        )
    connection.close()
    until(lambda: reader.features(events).as_of == AS_OF and of_any(reader).is_ready)
