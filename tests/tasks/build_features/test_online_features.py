"""The online store follows the dataset: whole, once, never backwards."""

import pyarrow as pa
import pytest

from adapters.connect import Outside
from adapters.errors import FencedOut
from features import definition
from pipeline.settings import Settings
from pipeline.spec import UseCase
from serving.lookup import FeatureLookup
from tasks.build_features import build, dataset, online_features, store_refresh
from tasks.deploy.golden import rebuild_requests
from tests.clean_data import put_table, week
from tests.features.world import moved
from tests.tasks.build_features.test_build import put, without_arrivals
from tests.tasks.killed import run

FLIGHTS = definition("flights")

KILLED = """
import psycopg2.extras
from tasks.build_features import build as build_features
from tasks.build_features import dataset, online_features
real = psycopg2.extras.execute_values
def half(at, statement, rows, **options):
    real(at, statement, rows[: len(rows) // 2], **options)
    die()
psycopg2.extras.execute_values = half
use_case = use_cases(settings().params)["flights"]
online_features.refresh_store(use_case, dataset.latest_snapshot(use_case, outside), outside)
"""


def content(outside: Outside) -> list[dict[str, object]]:
    return outside.warehouse.query(
        "select st.as_of, st.revision, st.snapshot_version, count(*) as series,"
        " md5(string_agg(md5(payload), '' order by key)) as content"
        " from online_state st join online_series s using (use_case, definition) group by 1, 2, 3"
    )


def test_the_store_follows_the_dataset_and_a_rerun_changes_nothing(
    outside: Outside, settings: Settings, use_case: UseCase
) -> None:
    assert online_features.find_unreached_snapshot(use_case, outside) is None  # nothing was built
    put(outside, use_case, 0, 1)
    first = build.build_snapshot(use_case, outside)
    assert first is not None
    assert online_features.find_unreached_snapshot(use_case, outside) == first
    assert online_features.find_unreached_snapshot(use_case.model_copy(update={"endpoint": None}), outside) is None
    assert online_features.refresh_store(use_case, first, outside).written > 1000
    assert online_features.find_unreached_snapshot(use_case, outside) is None
    before = content(outside)
    again = online_features.refresh_store(use_case, first, outside)
    assert (again.written, again.deleted) == (0, 0)
    assert content(outside) == before

    put(outside, use_case, 2)
    second = build.build_snapshot(use_case, outside)
    assert second is not None
    run(settings, KILLED, killed=True)
    assert content(outside) == before  # the old state, whole
    done = online_features.refresh_store(use_case, second, outside)
    assert done.written > 0
    after = content(outside)
    assert (after[0]["as_of"], after[0]["revision"]) == (second.end, 2)
    online_features.refresh_store(use_case, first, outside)  # an older snapshot
    assert content(outside) == after

    put_table(outside, use_case, "movements", week(2), rows=without_arrivals(week(2), "UA"))
    corrected = build.build_snapshot(use_case, outside)
    assert corrected is not None
    done = online_features.refresh_store(use_case, corrected, outside)
    assert 0 < done.written < done.unchanged  # what the correction touches
    reads_the_batch(use_case, outside, settings)


def reads_the_batch(use_case: UseCase, outside: Outside, settings: Settings) -> None:
    """Through the store and the lookup, the last partition's rows are those of the dataset."""
    snapshot = dataset.latest_snapshot(use_case, outside)
    assert snapshot is not None
    partition = use_case.grid.partition(use_case.grid.key(week(2)))
    points = dataset.load_points(snapshot.version, use_case, outside, start=partition.start, end=partition.end)
    told = rebuild_requests(use_case, snapshot, outside, partition, FLIGHTS)
    keys = list(zip(points["entity_key"].to_pylist(), points["event_time"].to_pylist(), strict=True))
    names = [field.name for field in FLIGHTS.request]
    rows = [{name: told[key].get(name) for name in names} for key in keys]
    events = pa.Table.from_pylist(rows)
    for name in ("scheduled_departure", "scheduled_arrival"):
        moments = events[name].cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
        events = events.set_column(events.column_names.index(name), name, moments)
    reader = FeatureLookup(
        dsn=settings.warehouse_dsn, use_case="flights", definition=FLIGHTS, lead=use_case.time.lead, timeout_ms=60_000
    )
    assert events.num_rows > 1000
    assert moved(points, reader.features(events).features) == []


def test_a_refresh_that_was_overtaken_cannot_commit(
    outside: Outside, use_case: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(outside, use_case, 0)
    snapshot = build.build_snapshot(use_case, outside)
    assert snapshot is not None
    real = store_refresh.pack_all_series

    def overtaken(*arguments: object) -> object:
        outside.warehouse.begin(f"{use_case.name}/online_features")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store_refresh, "pack_all_series", overtaken)
    with pytest.raises(FencedOut):
        online_features.refresh_store(use_case, snapshot, outside)
    assert content(outside) == []


def test_the_series_of_definitions_that_nothing_uses_go(outside: Outside, use_case: UseCase) -> None:
    for age, digest in enumerate(["older", "old"]):
        outside.warehouse.execute(
            "insert into online_state (use_case, definition, since, as_of, snapshot_version, revision, refreshed_at)"
            " values ('flights', %s, now(), now(), 'v', 1, now() - %s * interval '1 day')",
            (digest, 9 - age),
        )
        outside.warehouse.execute("insert into online_series values ('flights', %s, 'k', 'x')", (digest,))
    put(outside, use_case, 0)
    snapshot = build.build_snapshot(use_case, outside)
    assert snapshot is not None
    online_features.refresh_store(use_case, snapshot, outside)
    for table in ("online_state", "online_series"):
        kept = outside.warehouse.query(f"select distinct definition from {table}")
        assert {row["definition"] for row in kept} == {FLIGHTS.digest()}


def test_what_was_followed_is_in_one_part_again_when_the_source_no_longer_is(
    outside: Outside, use_case: UseCase
) -> None:
    put(outside, use_case, 0)
    snapshot = build.build_snapshot(use_case, outside)
    assert snapshot is not None
    online_features.refresh_store(use_case, snapshot, outside)
    [before] = content(outside)
    outside.warehouse.execute("update online_series set recent = payload, changed = 7 where key like 'weather(%'")
    outside.warehouse.execute("update online_series set payload = null where key like 'weather(%JFK%'")
    outside.warehouse.execute("update online_state set split = since, known_until = now(), changes = 7")
    assert online_features.refresh_store(use_case, snapshot, outside).written == 3
    [after] = content(outside)
    assert after == {**before, "revision": 2}  # readers drop what they hold
    assert outside.warehouse.query(
        "select count(recent) as recent, max(changed) as changed, max(changes) as changes,"
        " max(online_state.split) as split, max(known_until) as known_until"
        " from online_series join online_state using (use_case, definition)"
    ) == [{"recent": 0, "changed": 0, "changes": 7, "split": None, "known_until": None}]  # `changes` never falls
