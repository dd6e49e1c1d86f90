"""The online store follows the source: it always holds what a rebuild from the same rows gives, to the byte."""

import gc
from datetime import timedelta

import pyarrow as pa
import pytest

from adapters.connect import Outside
from features import definition
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from serving.lookup import FeatureLookup
from tasks.build_features import build, dataset, online_features
from tasks.deploy.golden import rebuild_requests
from tasks.stream import session
from tasks.stream.check_store import check_store
from tests.clean_data import put_clean, week
from tests.features.world import moved
from tests.tasks.build_features.test_build import put, small
from tests.tasks.stream.live import (
    LiveSource,
    await_alerts,
    await_content,
    await_known,
    following,
    list_alerts,
    read_content,
    rebuild,
)

FLIGHTS = definition("flights")
START = week(2).start
HOUR = timedelta(hours=1)


def test_what_becomes_known_is_in_the_store(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    source.tell(START + 5 * HOUR)
    frozen = gc.get_freeze_count()
    with following(followed, outside):
        for hours in (6, 7, 20):
            source.tell(START + hours * HOUR)
            await_known(outside, START + hours * HOUR)
            assert gc.get_freeze_count() > frozen  # what is held is not looked through again and again
            assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows())
    assert source.read_rows()["movements"].num_rows > 50


def test_an_answer_in_time_has_the_features_that_batch_works_out_later(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    """One server asks before, while and after the rows come; and as sabotage, a store that nobody kept current."""
    until = START + 20 * HOUR
    put(outside, followed, 2)
    later = build.build_snapshot(followed, outside)
    assert later is not None
    points = dataset.load_points(later.version, followed, outside, start=START, end=until)
    told = rebuild_requests(followed, later, outside, week(2), FLIGHTS)
    outside.warehouse.execute("delete from snapshots where version = %s", (later.version,))  # not built yet
    keys = zip(points["entity_key"].to_pylist(), points["event_time"].to_pylist(), strict=True)
    events = as_asked([told[key] for key in keys])
    reader = FeatureLookup(
        dsn=outside.settings.warehouse_dsn,
        use_case=followed.name,
        definition=FLIGHTS,
        lead=followed.time.lead,
        timeout_ms=60_000,
    )
    assert events.num_rows > 50
    assert "origin_departed_late_share_3h" in moved(points, reader.features(events).features)
    with following(followed, outside):
        for hours in (6, 12, 20):
            source.tell(START + hours * HOUR)
            await_known(outside, START + hours * HOUR)
            known = [moment < START + hours * HOUR for moment in points["prediction_time"].to_pylist()]
            in_time = pa.array(known, pa.bool_())
            found = reader.features(events)
            assert moved(points.filter(in_time), found.features.filter(in_time)) == []
            assert found.as_of == START + hours * HOUR


def as_asked(rows: list[dict[str, object]]) -> pa.Table:
    """Requests as the server has them: moments naive UTC."""
    events = pa.Table.from_pylist([{field.name: row.get(field.name) for field in FLIGHTS.request} for row in rows])
    for name in ("scheduled_departure", "scheduled_arrival"):
        moments = events[name].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
        events = events.set_column(events.column_names.index(name), name, moments)
    return events


def test_corrections_deletions_and_moved_keys_are_followed(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    source.tell(START + 20 * HOUR)
    with following(followed, outside):
        await_known(outside, START + 20 * HOUR)
        source.run("update movements set delay_minutes = 99 where kind = 'departed' and origin = 'JFK'")
        assert source.remove("movements", "kind = 'arrived' and origin = 'EWR'") > 5
        source.run("update weather set known_at = known_at + interval '5 minutes' where origin = 'LGA'")
        source.tell(START + 21 * HOUR)
        await_known(outside, START + 21 * HOUR)
        if followed.source.follow == "cdc":  # a poll looks back no further than its horizon
            assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows())
        source.run("truncate weather")
        source.tell(START + 22 * HOUR)
        await_known(outside, START + 22 * HOUR)
    with following(followed, outside):  # a poll compares all that it kept when it begins
        source.tell(START + 23 * HOUR)
        await_known(outside, START + 23 * HOUR)
        assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows())


def test_a_refresh_meanwhile_loses_nothing(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    """The partition is built while the stream runs: the store is at the new dataset, and at what came after it."""
    with following(followed, outside):
        source.tell(week(2).end)
        await_known(outside, week(2).end)
        revision = read_revision(outside)
        put(outside, followed, 2)
        built = build.build_snapshot(followed, outside)
        assert built is not None
        outside.warehouse.execute("insert into source_checks values ('flights', now(), now())")
        online_features.refresh_store(followed, built, outside)
        [checked] = outside.warehouse.query("select checked_at = '-infinity' as again from source_checks")
        assert checked["again"]  # what came between the landing and now is in no dataset
        kept = outside.warehouse.query("select count(*) as rows from followed_rows")
        assert kept == [{"rows": 0}]  # the dataset has them
        source.run(
            "insert into weather (origin, observed_at, temp_f, known_at)"
            f" select origin, '{week(2).end}', 40, '{week(2).end + HOUR}' from weather group by origin"
        )
        source.insert({}, week(2).end + 2 * HOUR)
        await_known(outside, week(2).end + 2 * HOUR)
        after = {
            name: table.filter(pa.array([known >= week(2).end for known in table["known_at"].to_pylist()], pa.bool_()))
            for name, table in source.read_rows().items()
        }
        assert after["weather"].num_rows == 3
        await_content(outside, rebuild(followed, outside, built, FLIGHTS, after, first=snapshot))
        assert read_revision(outside) == revision  # so that no server forgot what it held
        content = read_content(outside)
    with following(followed, outside):  # begun anew from the later dataset
        source.insert({}, week(2).end + 3 * HOUR)
        await_known(outside, week(2).end + 3 * HOUR)
        assert read_content(outside) == content


def test_what_a_dataset_has_otherwise_is_in_the_store_with_it(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    """The partition that was landed lacks rows that the stream was told of."""
    with following(followed, outside):
        source.tell(week(2).end)
        await_known(outside, week(2).end)
        before = read_content(outside)
        tables = small(week(2))
        put_clean(outside, followed, week(2), **tables | {"movements": tables["movements"].slice(5)})
        built = build.build_snapshot(followed, outside)
        assert built is not None
        online_features.refresh_store(followed, built, outside)
        none = {name: table.slice(0, 0) for name, table in source.read_rows().items()}
        await_content(outside, rebuild(followed, outside, built, FLIGHTS, none, first=snapshot))
        assert before != read_content(outside)


def test_what_was_told_of_a_partition_that_a_later_dataset_lacks_is_not_served_from_it(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    """It was blocked, and the one after it was not: a rebuild of that dataset has nothing of it."""
    with following(followed, outside):
        source.tell(week(2).end)
        await_known(outside, week(2).end)
        put(outside, followed, 3)
        built = build.build_snapshot(followed, outside)
        assert built is not None
        assert built.end == week(3).end
        online_features.refresh_store(followed, built, outside)
        none = {name: table.slice(0, 0) for name, table in source.read_rows().items()}
        await_content(outside, rebuild(followed, outside, built, FLIGHTS, none, first=snapshot))
        assert check_store(followed, outside).different == ()


def test_a_dataset_that_the_stream_refuses_is_refreshed_and_followed_from_there(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr(session, "move_series", refuse)
    monkeypatch.setattr(online_features, "_STREAM_SECONDS", 5.0)
    with following(followed, outside):
        source.tell(week(2).end)
        await_known(outside, week(2).end)
        revision = read_revision(outside)
        put(outside, followed, 2)
        built = build.build_snapshot(followed, outside)
        assert built is not None
        source.insert({}, week(2).end + HOUR)
        await_known(outside, week(2).end + HOUR)  # it follows on from where it is
        assert read_revision(outside) == revision
        assert online_features.refresh_store(followed, built, outside).written > 0
        source.insert({}, week(2).end + 2 * HOUR)
        await_known(outside, week(2).end + 2 * HOUR)
        none = {name: table.slice(0, 0) for name, table in source.read_rows().items()}
        assert read_content(outside) == rebuild(followed, outside, built, FLIGHTS, none)


def test_a_row_that_breaks_an_expectation_is_in_no_feature_until_it_is_corrected(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    source.tell(START + 10 * HOUR)
    with following(followed, outside):
        source.run(
            "insert into weather (origin, observed_at, temp_f, humidity, known_at) values"
            f" ('JFK', '{START + 10.5 * HOUR}', 9000, 50, '{START + 10.6 * HOUR}')"
        )
        source.tell(START + 11 * HOUR)
        await_known(outside, START + 11 * HOUR)
        [bad] = outside.warehouse.query("select identity, reasons from followed_rows where reasons is not null")
        assert "temp_f" in " ".join(bad["reasons"])
        rows = source.read_rows()
        temps = rows["weather"]["temp_f"].to_pylist()
        good = rows["weather"].filter(pa.array([temp is None or temp < 9000 for temp in temps], pa.bool_()))
        assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, {**rows, "weather": good})


def test_a_row_of_a_partition_that_was_taken_has_it_taken_again(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    with following(followed, outside):
        source.tell(START + HOUR)
        await_known(outside, START + HOUR)
        before = read_content(outside)
        source.run(
            "insert into weather (origin, observed_at, temp_f, known_at) values"
            f" ('JFK', '{START - 9 * HOUR}', 33, '{START - 9 * HOUR}')"
        )
        source.insert({}, START + 2 * HOUR)
        await_known(outside, START + 2 * HOUR)
        assert read_content(outside) == before  # it waits for its partition, which is what batch scores rest on
    taken_again = outside.warehouse.query("select partition_start from retakes where closed_at is null")
    expected = [{"partition_start": week(1).start}] if followed.source.follow == "cdc" else []
    assert taken_again == expected  # a poll does not look there: `reconcile` does


def test_of_two_streams_one_waits(followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource) -> None:
    with following(followed, outside):
        source.tell(START + 2 * HOUR)
        await_known(outside, START + 2 * HOUR)
        [fence] = outside.warehouse.query("select epoch from fences where run_key = 'flights/stream'")
        with following(followed, Outside(outside.settings)):
            source.tell(START + 3 * HOUR)
            await_known(outside, START + 3 * HOUR)
            assert outside.warehouse.query("select epoch from fences where run_key = 'flights/stream'") == [fence]
    assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows())


def test_a_column_that_is_retyped_stops_its_table_and_no_other_until_it_is_mended(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    source.tell(START + 10 * HOUR)
    with following(followed, outside):
        source.tell(START + 11 * HOUR)
        await_known(outside, START + 11 * HOUR)
        stays = source.read_rows()["weather"]
        source.run("alter table weather alter column temp_f type text")
        source.run("alter table movements add column gate text")
        source.tell(START + 14 * HOUR)
        await_known(outside, START + 14 * HOUR)
        content, alerts, stopped = read_content(outside), list_alerts(outside), list_stopped(outside)
        source.run("alter table weather alter column temp_f type double precision using temp_f::double precision")
        rows = source.read_rows()
        assert rows["weather"].num_rows > stays.num_rows
        assert content == rebuild(followed, outside, snapshot, FLIGHTS, {**rows, "weather": stays})
        assert alerts == [
            ("critical", "flights: weather is no longer followed"),
            ("warning", "flights: movements has undeclared columns"),
        ]
        assert stopped == ["weather"]  # which every answer says
        source.tell(START + 16 * HOUR)  # with a row of the weather, which says that it is as it was
        await_content(outside, rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows()))
        await_alerts(outside, [("warning", "flights: movements has undeclared columns")])
        assert list_stopped(outside) == []


def test_a_row_with_a_moment_that_no_partition_has_stops_nothing(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    with following(followed, outside):
        source.run(
            "insert into weather (origin, observed_at, temp_f, known_at) values"
            " ('JFK', '9999-12-31', 40, '9999-12-31'), ('LGA', '1999-12-31', 40, '1999-12-31')"
        )
        source.tell(START + 3 * HOUR)
        await_known(outside, START + 3 * HOUR)
        rows = source.read_rows()
        known = [START <= moment < week(3).end for moment in rows["weather"]["known_at"].to_pylist()]
        weather = rows["weather"].filter(pa.array(known, pa.bool_()))
        assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, {**rows, "weather": weather})
    assert list_alerts(outside) == []


def list_stopped(outside: Outside) -> list[str]:
    [row] = outside.warehouse.query("select stopped from online_state")
    return list(row["stopped"])


def read_revision(outside: Outside) -> int:
    [row] = outside.warehouse.query("select revision from online_state")
    return int(row["revision"])
