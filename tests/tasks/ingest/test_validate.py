"""Validation stops what is not fit to go on with, quarantines exactly the broken rows, and reruns to no effect."""

import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from adapters.connect import Outside
from adapters.errors import Corrupt, FencedOut
from adapters.parquet import from_bytes
from expectations import suites
from expectations.vocabulary import Expect
from pipeline.handoffs import Batch, TableBatch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest import validate
from tasks.ingest.land import land_partition
from tasks.ingest.quarantine import validation_key
from tasks.ingest.validate import validate_batch
from tests.real_flights import fill
from tests.tasks import killed

WEEK = "2013-10-28"
NTH = "ctid = (select ctid from {table} order by known_at, carrier, flight, origin limit 1 offset {n})"
TENFOLD = """
insert into flights select carrier, flight + 500 * n, tailnum, origin, dest, scheduled_departure, scheduled_arrival,
    distance_miles, known_at from flights, generate_series(1, 9) n"""
# What people see as five bad rows in three tables; each statement breaks what its comment says.
PLANTED = {
    "weather": [
        "update weather set wind_speed_mph = 1048.36058 where origin = 'EWR' and observed_at = '2013-10-29 12:00+00'",
        "update weather set humidity = 'NaN' where origin = 'JFK' and observed_at = '2013-11-01 03:00+00'",
    ],
    "flights": [
        f"update flights set distance_miles = -distance_miles where {NTH.format(table='flights', n=77)}",
        f"update flights set dest = '???' where {NTH.format(table='flights', n=1234)}",
    ],
    "movements": [
        f"update movements set occurred_at = known_at + interval '2 days' where {NTH.format(table='movements', n=500)}",
    ],
}


@pytest.fixture
def partition(use_case: UseCase) -> Interval:
    return use_case.grid.partition(WEEK)


@pytest.fixture(autouse=True)
def week(request: pytest.FixtureRequest, outside: Outside, partition: Interval) -> None:
    """One real week in the source: of the tables that the test is about."""
    if "case" in request.fixturenames:
        return
    fill(outside.source, partition, *(("weather", "airlines") if "small" in request.fixturenames else ()))


@pytest.fixture
def small(use_case: UseCase) -> UseCase:
    """The use case with the two smallest tables alone, where the others would only take time."""
    return only(use_case, "weather", "airlines")


@pytest.fixture
def planted(request: pytest.FixtureRequest, outside: Outside) -> None:
    tables = ["weather"] if "small" in request.fixturenames else list(PLANTED)
    for statement in (statement for table in tables for statement in PLANTED[table]):
        with outside.source.transaction() as at:
            at.execute(statement)
            assert at.rowcount == 1


def only(use_case: UseCase, *tables: str) -> UseCase:
    source = use_case.source.model_copy(update={"tables": {name: use_case.source.tables[name] for name in tables}})
    return use_case.model_copy(update={"source": source})


def batches(outside: Outside) -> dict[str, dict[str, Any]]:
    """The current row of each table."""
    rows = outside.warehouse.query("select *, xmin::text as written from batches order by version")
    return {row["table_name"]: row for row in rows}


def quarantined(outside: Outside) -> list[dict[str, Any]]:
    return outside.warehouse.query("select *, xmin::text as written from quarantine order by table_name, row_number")


def alerts(outside: Outside, tier: str) -> list[dict[str, Any]]:
    return outside.warehouse.query("select * from alerts where tier = %s order by alert_id", (tier,))


def found(batch: Batch, table: str) -> TableBatch:
    return next(one for one in batch.tables if one.table == table)


def clean_rows(outside: Outside, batch: Batch, table: str) -> pa.Table:
    one = found(batch, table)
    assert one.clean_uri
    return from_bytes(outside.lake.read(one.clean_uri, one.clean_sha256))


def run(use_case: UseCase, partition: Interval, outside: Outside) -> Batch:
    return validate_batch(use_case, land_partition(use_case, partition, outside), outside)


def assert_blocked(outside: Outside, table: str, problem: str) -> None:
    """The one table is blocked, nothing is clean or quarantined, one open alert says why."""
    rows = batches(outside)
    assert {name: row["status"] for name, row in rows.items()} == {
        name: "blocked" if name == table else "landed" for name in rows
    }
    assert problem in rows[table]["problem"]
    assert outside.lake.list("clean/") == []
    assert quarantined(outside) == []
    [alert] = [row for row in alerts(outside, "critical") if row["resolved_at"] is None]
    assert problem in alert["body"]
    assert table in alert["title"]
    assert alert["delivered_at"] is not None


# What passes


def test_a_real_week_becomes_clean_as_it_is(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    batch = run(use_case, partition, outside)
    assert {row["status"] for row in batches(outside).values()} == {"clean"}
    assert [(one.clean_rows, one.quarantined_rows) for one in batch.tables] == [
        (one.raw_rows, 0) for one in batch.tables
    ]
    for one in batch.tables:
        assert clean_rows(outside, batch, one.table).num_rows == one.raw_rows > 0
        assert f"/clean/flights/{one.table}/{WEEK}/{one.clean_sha256}.parquet" in str(one.clean_uri)
    assert quarantined(outside) == alerts(outside, "critical") == alerts(outside, "warning") == []


def test_exactly_the_planted_rows_are_quarantined_and_the_rest_is_clean(
    use_case: UseCase, partition: Interval, outside: Outside, planted: None
) -> None:
    batch = run(use_case, partition, outside)
    rows = quarantined(outside)
    assert [row["table_name"] for row in rows] == ["flights"] * 2 + ["movements"] + ["weather"] * 2
    assert {row["table_name"]: row["clean_rows"] + row["quarantined_rows"] for row in batches(outside).values()} == {
        one.table: one.raw_rows for one in batch.tables
    }
    for one in batch.tables:
        raw = from_bytes(outside.lake.read(one.raw_uri, one.raw_sha256)).to_pylist()
        bad = {row["row_number"] for row in rows if row["table_name"] == one.table}
        assert len(bad) == len(PLANTED.get(one.table, []))
        assert clean_rows(outside, batch, one.table).to_pylist() == [raw[i] for i in range(len(raw)) if i not in bad]
    [info] = [row for row in alerts(outside, "info") if "weather" in row["title"]]
    assert "2 of" in info["title"]


def test_a_quarantined_row_is_kept_as_it_was_with_its_reasons(
    use_case: UseCase, partition: Interval, outside: Outside, planted: None
) -> None:
    run(use_case, partition, outside)
    wind, humidity = (row for row in quarantined(outside) if row["table_name"] == "weather")
    assert wind["row_data"]["wind_speed_mph"] == 1048.36058
    assert wind["row_data"]["observed_at"] == "2013-10-29T12:00:00+00:00"
    assert "wind_speed_mph = 1048.36058" in wind["reasons"][0]
    assert humidity["row_data"]["humidity"] == "nan"
    assert "humidity = nan" in humidity["reasons"][0]
    assert (wind["status"], wind["replayed_at"]) == ("quarantined", None)


def test_the_docs_of_a_run_are_in_the_lake(
    use_case: UseCase, partition: Interval, outside: Outside, planted: None
) -> None:
    batch = run(use_case, partition, outside)
    assert batch.docs_uri
    index = outside.lake.read(batch.docs_uri).decode()
    assert "wind_speed_mph = 1048.36058" in index
    linked = re.findall(r'href="(\w+)\.html"', index)
    assert sorted(linked) == sorted(one.table for one in batch.tables)
    pages = [outside.lake.read(batch.docs_uri.replace("index", table)) for table in linked]
    assert sum(len(page) for page in pages) < 1_000_000


# Running again


def test_validating_again_writes_nothing(small: UseCase, partition: Interval, outside: Outside, planted: None) -> None:
    first = run(small, partition, outside)
    before = batches(outside), quarantined(outside), outside.lake.list("")
    assert run(small, partition, outside) == first
    assert (batches(outside), quarantined(outside), outside.lake.list("")) == before


def test_a_changed_source_is_judged_anew_and_the_unchanged_tables_are_not(
    use_case: UseCase, partition: Interval, outside: Outside, planted: None
) -> None:
    first, before = run(use_case, partition, outside), batches(outside)
    outside.source.execute("update weather set wind_speed_mph = 10 where wind_speed_mph > 1000")
    second, after = run(use_case, partition, outside), batches(outside)
    assert found(second, "weather").quarantined_rows == 1
    assert after["weather"]["version"] == 2
    assert found(second, "flights") == found(first, "flights")
    assert {name for name in after if after[name] != before[name]} == {"weather"}
    assert len(quarantined(outside)) == 6  # what was set aside of the old version stays on record


def test_a_later_run_of_the_partition_wins(
    small: UseCase, partition: Interval, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan that was overtaken while it checked commits nothing."""
    from tasks.ingest import validate as step

    batch = land_partition(small, partition, outside)
    put_docs = step._put_docs

    def overtaken(*work: Any) -> str:
        outside.warehouse.begin(validation_key(small, partition))
        return put_docs(*work)

    monkeypatch.setattr(step, "_put_docs", overtaken)
    with pytest.raises(FencedOut):
        validate_batch(small, batch, outside)
    assert {row["status"] for row in batches(outside).values()} == {"landed"}
    monkeypatch.undo()
    validate_batch(small, batch, outside)
    assert {row["status"] for row in batches(outside).values()} == {"clean"}


_CHILD = """
from tasks.ingest import validate as step
from tasks.ingest.land import land_partition
from tests.tasks.ingest.test_validate import only
if {point!r} == "before anything is written": step.store_clean = die
if {point!r} == "within the commit": step._report_quarantined = die
if {point!r} == "after the commit": outside.alerts.flush = die
use_case = only(use_cases(settings().params)["flights"], "weather", "airlines")
step.validate_batch(use_case, land_partition(use_case, use_case.grid.partition("2013-10-28"), outside), outside)
"""


@pytest.mark.parametrize("point", ["before anything is written", "within the commit", "after the commit"])
def test_a_run_killed_at_any_point_and_run_again_gives_the_same_rows_once(
    small: UseCase, partition: Interval, outside: Outside, planted: None, point: str
) -> None:
    killed.run(outside.settings, _CHILD.format(point=point), killed=True)
    done = point == "after the commit"
    assert {row["status"] for row in batches(outside).values()} == {"clean" if done else "landed"}
    assert len(quarantined(outside)) == (2 if done else 0)
    objects = outside.lake.list("clean/")
    batch = run(small, partition, outside)
    assert set(objects) <= set(outside.lake.list("clean/")) == {one.clean_uri for one in batch.tables}
    assert found(batch, "weather").quarantined_rows == len(quarantined(outside)) == 2


def test_a_damaged_raw_object_is_not_validated(small: UseCase, partition: Interval, outside: Outside) -> None:
    batch = land_partition(small, partition, outside)
    uri = found(batch, "weather").raw_uri
    data = bytearray(outside.lake.read(uri))
    data[len(data) // 2] ^= 1
    outside.lake.put_named(uri.partition(f"{outside.lake.bucket}/")[2], bytes(data), "application/octet-stream")
    with pytest.raises(Corrupt):
        validate_batch(small, batch, outside)
    assert {row["status"] for row in batches(outside).values()} == {"landed"}


# What stops


@pytest.mark.parametrize(
    "case",
    [
        ("weather", "alter table weather rename column humidity to humid", "missing: humidity"),
        ("flights", "alter table flights drop column distance_miles", "missing: distance_miles"),
        (
            "movements",
            "alter table movements alter column occurred_at type text",
            "column occurred_at was retyped: expected timestamp, got string",
        ),
        (
            "flights",
            "alter table flights alter column scheduled_arrival type timestamp",
            "column scheduled_arrival was retyped",
        ),
        ("weather", "update weather set observed_at = 'infinity' where origin = 'EWR'", "would be quarantined"),
        ("weather", "alter table weather alter temp_f type numeric(6, 2) using 'NaN'", "temp_f must be a number"),
        ("weather", "delete from weather", "volume"),
        ("flights", "delete from flights where random() < 0.8", "volume"),
        (
            "flights",
            TENFOLD,
            "volume",
        ),
        ("weather", "delete from weather where known_at > '2013-11-03 16:00+00'", "stale feed"),
        ("movements", "delete from movements where known_at > '2013-11-03 16:00+00'", "stale feed"),
        ("weather", "insert into weather select * from weather order by observed_at limit 1", "duplicated key"),
        ("planes", "insert into planes select * from planes limit 1", "duplicated key: (tailnum)"),
        ("weather", "update weather set humidity = 300 where origin = 'LGA'", "would be quarantined"),
        ("weather", "update weather set temp_f = 'Infinity' where origin = 'LGA'", "would be quarantined"),
    ],
    ids=lambda case: f"{case[0]}: {case[2]}",
)
def test_what_is_critical_blocks_the_partition_and_its_mending_releases_it(
    use_case: UseCase, partition: Interval, outside: Outside, case: tuple[str, str, str]
) -> None:
    """The twin of every case: the same week, unharmed, passes."""
    table, sabotage, problem = case
    use_case = only(use_case, table, "airports")
    fill(outside.source, partition, table, "airports")
    outside.source.execute(sabotage)
    with pytest.raises(BadData, match=re.escape(problem)):
        run(use_case, partition, outside)
    assert_blocked(outside, table, problem)

    outside.source.execute("drop table flights, movements, weather, planes, airports, airlines")
    fill(outside.source, partition, table, "airports")
    run(use_case, partition, outside)
    assert {row["status"] for row in batches(outside).values()} == {"clean"}
    assert [row for row in alerts(outside, "critical") if row["resolved_at"] is None] == []


def test_what_stays_broken_stays_blocked_and_is_one_alert(
    small: UseCase, partition: Interval, outside: Outside
) -> None:
    outside.source.execute("alter table weather rename column humidity to humid")
    for _ in range(2):
        with pytest.raises(BadData):
            run(small, partition, outside)
    assert_blocked(outside, "weather", "missing: humidity")
    [alert] = alerts(outside, "critical")
    assert alert["occurrences"] == 2


def test_an_added_column_warns_until_it_is_gone_and_changes_nothing(
    small: UseCase, partition: Interval, outside: Outside
) -> None:
    before = run(small, partition, outside)
    outside.source.execute("alter table weather add column dust_ppm float default 1")
    after = run(small, partition, outside)
    [alert] = alerts(outside, "warning")
    assert "column dust_ppm was added" in alert["body"]
    assert alert["resolved_at"] is None
    assert found(after, "weather").raw_sha256 != found(before, "weather").raw_sha256
    assert found(after, "weather").clean_sha256 == found(before, "weather").clean_sha256


def test_a_table_that_was_never_landed_is_no_batch(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    batch = land_partition(use_case, partition, outside)
    outside.warehouse.execute("delete from batches where table_name = 'planes'")
    with pytest.raises(AssertionError, match=r"planes of .* was not landed"):
        validate_batch(use_case, batch, outside)
    assert {row["status"] for row in batches(outside).values()} == {"landed"}


def test_rows_that_come_twice_in_another_order_are_the_same_content(
    small: UseCase, partition: Interval, outside: Outside
) -> None:
    first = run(small, partition, outside)
    outside.source.execute("create table again as select * from weather order by random()")
    outside.source.execute("delete from weather")
    outside.source.execute("insert into weather select * from again")
    assert run(small, partition, outside) == first


def test_a_warning_about_a_table_as_a_whole_alerts_until_it_is_met(
    small: UseCase, partition: Interval, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = Expect(
        expectation="ExpectColumnMeanToBeBetween",
        severity="warning",
        reason="it is colder than that",
        arguments={"column": "temp_f", "min_value": -100, "max_value": -50},
    )
    shipped = suites("flights")
    unusual = {**shipped, "weather": replace(shipped["weather"], expects=(*shipped["weather"].expects, mean))}
    with monkeypatch.context() as patched:
        patched.setattr(validate, "suites", lambda _: unusual)
        batch = run(small, partition, outside)
    assert {row["status"] for row in batches(outside).values()} == {"clean"}
    assert found(batch, "weather").quarantined_rows == 0
    [alert] = alerts(outside, "warning")
    assert "weather of 2013-10-28 is unusual" in alert["title"]
    assert "it is colder than that (observed: " in alert["body"]
    assert alert["delivered_at"] is not None
    with outside.source.transaction() as at:
        at.execute("update weather set humidity = humidity / 2")
    run(small, partition, outside)
    assert [row["resolved_at"] is not None for row in alerts(outside, "warning")] == [True]
