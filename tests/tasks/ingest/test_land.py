"""A partition lands exactly as the source has it, once per content, whoever is killed, doubled or cut off meanwhile."""

import dataclasses
import logging
import threading
from datetime import timedelta
from typing import Any

import psycopg2
import pytest

import expectations
from adapters.connect import Outside
from adapters.errors import Corrupt, FencedOut, Refused
from adapters.parquet import from_bytes
from adapters.warehouse import Warehouse
from infra.local.stack import Stack
from infra.replay.flights_source import create_source_tables
from pipeline.handoffs import Batch
from pipeline.partitions import Interval
from pipeline.spec import UseCase
from tasks.common.errors import BadData
from tasks.ingest import land as ingest
from tasks.ingest.land import land_partition
from tasks.ingest.source_rows import extraction
from tests.faulty import restart_postgres
from tests.tasks import killed

WEEK = "2013-01-07"
TABLES = ["airlines", "airports", "flights", "movements", "planes", "weather"]


@pytest.fixture
def partition(use_case: UseCase) -> Interval:
    return use_case.grid.partition(WEEK)


@pytest.fixture(autouse=True)
def rows(outside: Outside) -> None:
    """Three weeks of hourly weather and flights; the rest of the tables is empty."""
    create_source_tables(outside.source)
    outside.source.execute(
        "insert into weather (origin, observed_at, temp_f, known_at)"
        " select o, t, extract(hour from t), t + interval '10 minutes' from unnest(array['JFK', 'EWR']) o,"
        " generate_series(timestamptz '2012-12-31', '2013-01-20 23:00+00', '1 hour') t order by random()"
    )
    outside.source.execute(
        "insert into flights select 'UA', n, case when n % 7 > 0 then 'N' || n end, 'EWR', 'IAH', t,"
        " t + interval '3 hours', 1400, t - interval '24 hours' from generate_series(1, 20) n,"
        " generate_series(timestamptz '2013-01-01', '2013-01-21', '1 day') t order by random()"
    )


def batches(outside: Outside) -> list[dict[str, Any]]:
    return outside.warehouse.query("select * from batches order by table_name, partition_start, version")


def versions(outside: Outside, table: str) -> list[tuple[int, str]]:
    return [(row["version"], row["raw_sha256"]) for row in batches(outside) if row["table_name"] == table]


def sha256(batch: Batch, table: str) -> str:
    return next(found.raw_sha256 for found in batch.tables if found.table == table)


def assert_landed_once(outside: Outside) -> None:
    """One row and one object for each table, nothing else, every object intact."""
    found = batches(outside)
    assert [(row["table_name"], row["version"]) for row in found] == [(table, 1) for table in TABLES]
    assert sorted(row["raw_uri"] for row in found) == outside.lake.list("raw/")
    for row in found:
        assert from_bytes(outside.lake.read(row["raw_uri"], row["raw_sha256"])).num_rows == row["raw_rows"]


# What lands


def test_what_became_known_in_the_interval_lands_and_nothing_else(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    batch = land_partition(use_case, partition, outside)
    assert {found.table: found.raw_rows for found in batch.tables} == {
        "flights": 20 * 7,
        "movements": 0,
        "weather": 2 * 7 * 24,
        "planes": 0,
        "airports": 0,
        "airlines": 0,
    }
    uri = next(found.raw_uri for found in batch.tables if found.table == "flights")
    assert f"/raw/flights/flights/{WEEK}/" in uri
    landed = from_bytes(outside.lake.read(uri))
    known = landed["known_at"].to_pylist()
    assert partition.start == min(known)
    assert max(known) < partition.end
    assert landed["tailnum"].null_count == 7 * 2
    assert_landed_once(outside)


def test_neighbouring_partitions_share_no_row_and_miss_none(use_case: UseCase, outside: Outside) -> None:
    weeks = [use_case.grid.partition(key) for key in ("2012-12-31", "2013-01-07", "2013-01-14")]
    landed = sum(found.raw_rows for week in weeks for found in land_partition(use_case, week, outside).tables)
    [held] = outside.source.query("select (select count(*) from weather) + (select count(*) from flights) as n")
    assert landed == held["n"]


def test_landing_again_changes_nothing(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    first = land_partition(use_case, partition, outside)
    before = outside.warehouse.query("select *, xmin::text as by from batches order by table_name")
    assert land_partition(use_case, partition, outside) == first
    assert outside.warehouse.query("select *, xmin::text as by from batches order by table_name") == before
    assert_landed_once(outside)


def test_the_order_of_the_sources_rows_does_not_matter(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    first = land_partition(use_case, partition, outside)
    outside.source.execute("create table copied as select * from weather order by random()")
    outside.source.execute("truncate weather")
    outside.source.execute("insert into weather select * from copied")
    assert land_partition(use_case, partition, outside) == first


def test_a_changed_source_lands_beside_the_old(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    old = land_partition(use_case, partition, outside)
    outside.source.execute(
        "update weather set temp_f = 99 where observed_at = '2013-01-08 00:00+00' and origin = 'JFK'"
    )
    new = land_partition(use_case, partition, outside)
    assert versions(outside, "weather") == [(1, sha256(old, "weather")), (2, sha256(new, "weather"))]
    assert len(versions(outside, "flights")) == 1, "only the table that changed"
    assert len(outside.lake.list("raw/flights/weather/")) == 2


def test_a_source_that_changes_back_makes_its_old_content_current_again(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    old = land_partition(use_case, partition, outside)
    outside.warehouse.execute(
        "update batches set status = 'clean', clean_uri = 'u', clean_sha256 = 's', clean_rows = 1"
        " where table_name = 'weather'"
    )
    outside.source.execute("update weather set temp_f = temp_f + 1")
    new = land_partition(use_case, partition, outside)
    outside.source.execute("update weather set temp_f = temp_f - 1")
    assert land_partition(use_case, partition, outside) == old
    assert land_partition(use_case, partition, outside) == old
    assert versions(outside, "weather") == [(2, sha256(new, "weather")), (3, sha256(old, "weather"))]
    assert [row["status"] for row in batches(outside) if row["table_name"] == "weather"] == ["landed", "clean"]


def test_late_rows_are_a_new_version_of_their_own_partition_only(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    land_partition(use_case, partition, outside)
    other = use_case.grid.partition("2012-12-31")
    land_partition(use_case, other, outside)
    outside.source.execute("insert into weather values ('LGA', '2013-01-09', 1, 1, 1, 1, 1, 1, 1, 1, 1, '2013-01-09')")
    for week in (other, partition):  # out of order, too
        land_partition(use_case, week, outside)
    weather = [row for row in batches(outside) if row["table_name"] == "weather"]
    assert [(row["partition_start"], row["version"]) for row in weather] == [
        (other.start, 1),
        (partition.start, 1),
        (partition.start, 2),
    ]


def test_all_tables_are_of_one_moment(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    """A write between the reading of two tables is in neither of them."""

    class Writing(Warehouse):
        def copy_out(self, *arguments: Any, **keywords: Any) -> Any:
            found = super().copy_out(*arguments, **keywords)
            for table in ("flights", "weather"):
                outside.source.execute(f"delete from {table}")
            return found

    own = Outside(outside.settings)
    own.__dict__["source"] = Writing(outside.settings.source_dsn)
    landed = {found.table: found.raw_rows for found in land_partition(use_case, partition, own).tables}
    assert (landed["flights"], landed["weather"]) == (20 * 7, 2 * 7 * 24)


# What must not land


def test_an_interval_that_is_no_partition_is_refused(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    with pytest.raises(ValueError, match="is not a partition of flights"):
        land_partition(use_case, Interval(partition.start, partition.end + timedelta(days=1)), outside)


def test_another_partition_length_under_the_same_name_is_refused(
    use_case: UseCase, partition: Interval, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlapping partitions would double their rows. Its twin, the same days under another name, lands."""
    monkeypatch.setitem(expectations._SUITES, "flights_daily", expectations.suites("flights"))
    land_partition(use_case, partition, outside)
    daily = use_case.model_copy(update={"source": use_case.source.model_copy(update={"partition_days": 1})})
    day = daily.grid.partition("2013-01-08")
    with pytest.raises(ValueError, match="overlaps this partition"):
        land_partition(daily, day, outside)
    assert land_partition(daily.model_copy(update={"name": "flights_daily"}), day, outside).tables


@pytest.mark.parametrize(
    "change",
    [
        "alter table weather rename column known_at to seen_at",
        "alter table weather drop column known_at",
        "alter table weather alter known_at type text",
        "alter table weather rename to wetter",
    ],
)
def test_a_table_that_cannot_be_asked_for_an_interval_is_bad_data_and_pages(
    use_case: UseCase, partition: Interval, outside: Outside, change: str
) -> None:
    outside.source.execute(change)
    with pytest.raises(BadData, match="source table weather cannot be read by its column known_at"):
        land_partition(use_case, partition, outside)
    alerts = outside.warehouse.query("select tier, use_case, body from alerts where resolved_at is null")
    assert [(row["tier"], row["use_case"]) for row in alerts] == [("critical", "flights")]
    assert batches(outside) == []


def test_the_page_is_resolved_when_the_table_is_mended(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    outside.source.execute("alter table weather rename to wetter")
    with pytest.raises(BadData):
        land_partition(use_case, partition, outside)
    outside.source.execute("alter table wetter rename to weather")
    land_partition(use_case, partition, outside)
    assert outside.warehouse.query("select * from alerts where resolved_at is null") == []


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ("alter table weather rename column temp_f to temp_c", ("temp_c", "double")),
        ("alter table weather alter temp_f type text", ("temp_f", "string")),
        ("alter table weather add column sunshine int", ("sunshine", "int32")),
    ],
)
def test_any_other_schema_change_lands_as_it_is_for_validation_to_judge(
    use_case: UseCase, partition: Interval, outside: Outside, change: str, column: tuple[str, str]
) -> None:
    land_partition(use_case, partition, outside)
    outside.source.execute(change)
    batch = land_partition(use_case, partition, outside)
    uri = next(found.raw_uri for found in batch.tables if found.table == "weather")
    landed = from_bytes(outside.lake.read(uri)).schema
    assert column in [(field.name, str(field.type)) for field in landed]
    assert len(versions(outside, "weather")) == 2


@pytest.mark.parametrize("known_at", [None, "infinity", "-infinity"])
@pytest.mark.parametrize("mended", ["2012-12-31", "1999-12-31"])
def test_rows_that_became_known_at_no_time_are_warned_of(
    use_case: UseCase, partition: Interval, outside: Outside, known_at: str | None, mended: str
) -> None:
    """No partition would ever hold them. Its twin: no warning, and an open one resolved, when there are none."""
    outside.source.execute("alter table weather alter known_at drop not null")
    outside.source.execute("update weather set known_at = %s where observed_at = '2013-01-08'", (known_at,))
    outside.source.execute("update weather set known_at = '2012-12-30' where observed_at = '2013-01-09'")
    land_partition(use_case, partition, outside)
    open_alerts = "select tier, title from alerts where resolved_at is null"
    title = "flights: 2 rows of source table weather land in no partition"
    assert outside.warehouse.query(open_alerts) == [{"tier": "warning", "title": title}]
    outside.source.execute("update weather set known_at = %s where observed_at = '2013-01-08'", (mended,))
    land_partition(use_case, partition, outside)
    assert outside.warehouse.query(open_alerts) == []


def test_rows_before_the_first_partition_are_counted_in_the_log_and_nobody_is_told(
    use_case: UseCase, partition: Interval, outside: Outside, caplog: pytest.LogCaptureFixture
) -> None:
    """They are no part of the use case. Its twin: a row that became known as the first partition began is."""
    caplog.set_level(logging.INFO, "tasks.ingest.land")

    def land() -> list[str]:
        caplog.clear()
        land_partition(use_case, partition, outside)
        return [message for message in caplog.messages if "before the first partition" in message]

    outside.source.execute("update weather set known_at = '2012-12-30 23:59:59+00' where observed_at = '2013-01-08'")
    assert land() == ["weather: 2 rows became known before the first partition (2012-12-31) and are left out"]
    outside.source.execute("update weather set known_at = '2012-12-31' where observed_at = '2013-01-08'")
    assert land() == []
    assert outside.warehouse.query("select * from alerts") == []


def test_odd_values_land_as_they_are(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    outside.source.execute(
        "update weather set temp_f = 'NaN', wind_speed_mph = 'Infinity', observed_at = '2099-01-01'"
        " where known_at = '2013-01-08 00:10+00'"
    )
    outside.source.execute("insert into weather select * from weather where known_at = '2013-01-08 00:10+00'")
    batch = land_partition(use_case, partition, outside)
    uri = next(found.raw_uri for found in batch.tables if found.table == "weather")
    landed = from_bytes(outside.lake.read(uri)).to_pylist()
    odd = [row for row in landed if row["observed_at"].year == 2099]
    assert [(str(row["temp_f"]), row["wind_speed_mph"]) for row in odd] == [("nan", float("inf"))] * 4


def test_a_name_is_a_name_not_sql(use_case: UseCase, outside: Outside) -> None:
    table = use_case.source.tables["weather"].model_copy(update={"available_at": 'x"; drop table weather; --'})
    with outside.source.transaction() as at, pytest.raises(psycopg2.errors.UndefinedColumn):
        at.execute(extraction("weather", table), (None, None))


# Who may be away, or not let us in


def test_a_source_that_is_down_is_an_error_that_is_retried(
    use_case: UseCase, partition: Interval, outside: Outside
) -> None:
    """And its twin: when it is back, the partition lands."""
    own = Outside(outside.settings)
    own.__dict__["source"] = Warehouse("postgresql://u:p@127.0.0.1:1/d", what="source database", patience_seconds=0.5)
    with pytest.raises(psycopg2.OperationalError, match="source database: gave up"):
        land_partition(use_case, partition, own)
    assert batches(outside) == []
    land_partition(use_case, partition, outside)
    assert_landed_once(outside)


def test_wrong_credentials_of_the_source_say_so(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    wrong = outside.settings.source_dsn.replace("/source:", "/source:x", 1)
    with pytest.raises(Refused, match="source database refused us"):
        land_partition(use_case, partition, Outside(dataclasses.replace(outside.settings, source_dsn=wrong)))


def test_a_tampered_raw_object_is_noticed(use_case: UseCase, partition: Interval, outside: Outside) -> None:
    batch = land_partition(use_case, partition, outside)
    key = batch.tables[0].raw_uri.removeprefix(f"s3://{outside.lake.bucket}/")
    outside.lake.client.put_object(Bucket=outside.lake.bucket, Key=key, Body=b"other")
    with pytest.raises(Corrupt):
        outside.lake.read(batch.tables[0].raw_uri, batch.tables[0].raw_sha256)
    with pytest.raises(Corrupt):
        land_partition(use_case, partition, outside)


# Who may be killed, doubled or cut off

_CHILD = """
from adapters.connect import outside
from adapters.lake import Lake
from pipeline.spec import use_cases
from pipeline.settings import settings
from tasks.ingest import land as ingest

put = Lake.put
def put_one_and_die(self, *arguments): put(self, *arguments); die()

if point == "before the first put": Lake.put = die
if point == "after the first put": Lake.put = put_one_and_die
if point == "before the commit": ingest._register = die
if point == "after the commit": ingest._report = die
use_case = use_cases(settings().params)["flights"]
ingest.land_partition(use_case, use_case.grid.partition("2013-01-07"), outside())
"""


@pytest.mark.parametrize(
    "point", ["before the first put", "after the first put", "before the commit", "after the commit"]
)
def test_a_run_killed_at_any_point_and_run_again_lands_the_same_bytes_once(
    use_case: UseCase, partition: Interval, outside: Outside, point: str
) -> None:
    killed.run(outside.settings, f"point = {point!r}\n" + _CHILD, killed=True)
    assert len(batches(outside)) == (len(TABLES) if point == "after the commit" else 0), "all tables or none"
    objects = set(outside.lake.list("raw/"))
    land_partition(use_case, partition, outside)
    assert objects <= set(outside.lake.list("raw/"))
    assert_landed_once(outside)


def test_of_two_runs_at_once_exactly_one_commits(
    use_case: UseCase, partition: Interval, outside: Outside, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run, overtaken between its puts and its commit, is fenced out, though it saw an older source."""
    register, overtaken, arrived = ingest._register, threading.Event(), threading.Event()
    caught: list[BaseException] = []

    def wait_then_register(*arguments: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            arrived.set()
            assert overtaken.wait(60)
        register(*arguments)

    def first() -> None:
        try:
            land_partition(use_case, partition, Outside(outside.settings))
        except FencedOut as error:
            caught.append(error)

    monkeypatch.setattr(ingest, "_register", wait_then_register)
    thread = threading.Thread(target=first)
    thread.start()
    assert arrived.wait(60)
    outside.source.execute("update weather set temp_f = temp_f + 1")
    newest = land_partition(use_case, partition, outside)
    overtaken.set()
    thread.join()
    assert len(caught) == 1
    assert versions(outside, "weather") == [(1, sha256(newest, "weather"))]


def test_a_source_restarted_mid_copy_lands_all_or_nothing(
    use_case: UseCase, partition: Interval, outside: Outside, stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    """The restart ends the first try while its COPY runs; the retry lands what an undisturbed run lands."""
    undisturbed = land_partition(use_case, partition, outside)
    outside.warehouse.execute("delete from batches")
    outside.source.execute("alter table weather rename to weather_rows")
    outside.source.execute(
        "create view weather as select w.* from weather_rows w,"
        " lateral (select pg_sleep(0.003 + 0 * length(w.origin))) slow"
    )
    landed: list[Batch] = []
    thread = threading.Thread(
        target=lambda: landed.append(land_partition(use_case, partition, Outside(outside.settings)))
    )
    thread.start()
    copying = "select count(*) as n from pg_stat_activity where state = 'active' and query like 'copy (select%weather%'"
    while outside.source.query(copying)[0]["n"] == 0:
        assert thread.is_alive()
    restart_postgres(stack)
    assert batches(outside) == []
    thread.join()
    assert "source database" in caplog.text, "the first try was not cut off"
    assert landed == [undisturbed]
    assert_landed_once(outside)
