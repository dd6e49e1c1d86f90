"""What can go wrong with a source's log: it is told of, and what was missed is read from the tables."""

from contextlib import closing
from datetime import timedelta

import psycopg2
import pytest

from adapters.connect import Outside
from adapters.replication_setup import drop_slot
from features import definition
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase
from tasks.stream import follow as stream
from tasks.stream import log_reader
from tasks.stream.log_reader import slot_name
from tests.clean_data import week
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


@pytest.fixture
def follow() -> str:
    return "cdc"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the publication at every step, and do not wait before what is mended is read."""
    monkeypatch.setattr(log_reader, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(stream, "_MENDED_SECONDS", 0.0)


def administer(admin_dsn: str, statement: str) -> None:
    with closing(psycopg2.connect(admin_dsn)) as opened, opened, opened.cursor() as at:
        at.execute(statement)


def test_a_table_that_leaves_the_publication_is_told_of_and_read_when_it_is_back(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource, admin_dsn: str
) -> None:
    with following(followed, outside):
        source.tell(START + 2 * HOUR)
        await_known(outside, START + 2 * HOUR)
        administer(admin_dsn, f"alter publication {slot_name(followed)} drop table weather")
        await_alerts(outside, [("critical", "flights: weather is no longer followed")])
        source.tell(START + 8 * HOUR)
        await_known(outside, START + 8 * HOUR)
        administer(admin_dsn, f"alter publication {slot_name(followed)} add table only weather")
        await_content(outside, rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows()))
        await_alerts(outside, [])


def test_a_key_that_is_dropped_stops_its_table_and_no_other(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    with following(followed, outside):
        source.tell(START + 2 * HOUR)
        await_known(outside, START + 2 * HOUR)
        source.run("alter table airlines drop constraint airlines_pkey")
        source.run(f"insert into airlines values ('XX', 'Nobody', '{START + 2.5 * HOUR}')")
        source.run("alter table airlines add primary key (carrier, known_at)")
        source.tell(START + 4 * HOUR)
        await_known(outside, START + 4 * HOUR)
        assert read_content(outside) == rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows())
    told = outside.warehouse.query("select tier from alerts where title = 'flights: airlines is no longer followed'")
    assert told == [{"tier": "critical"}]  # and resolved, once it was mended


@pytest.mark.parametrize("lost", ["slot", "publication"])
def test_what_was_missed_is_read_from_the_tables(
    lost: str, followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource, *, admin_dsn: str
) -> None:
    source.tell(START + 2 * HOUR)
    with following(followed, outside):
        source.tell(START + 3 * HOUR)
        await_known(outside, START + 3 * HOUR)
    name = slot_name(followed)
    if lost == "slot":
        with closing(psycopg2.connect(admin_dsn)) as opened, opened, opened.cursor() as at:
            drop_slot(at, name)
    else:
        administer(admin_dsn, f"drop publication {name}")
    source.tell(START + 8 * HOUR)
    assert source.remove("movements", "origin = 'JFK'") > 0
    if lost == "publication":
        tables = ", ".join([*followed.source.tables, "clock"])
        administer(admin_dsn, f"create publication {name} for table only {tables}")
    with following(followed, outside):
        await_content(outside, rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows()))
        await_known(outside, START + 8 * HOUR)
        await_alerts(outside, [])


def test_a_source_that_was_restored_is_read_anew(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    """Its log ends before what was read of it: what it sends next would be taken for what is known."""
    with following(followed, outside):
        source.tell(START + 3 * HOUR)
        await_known(outside, START + 3 * HOUR)
    outside.warehouse.execute("update stream_state set position = position + 1000000000000")
    source.tell(START + 6 * HOUR)
    with following(followed, outside):
        await_content(outside, rebuild(followed, outside, snapshot, FLIGHTS, source.read_rows()))
    assert list_alerts(outside) == []


def test_a_watermark_may_lie_in_a_followed_table(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    settings = followed.source.model_dump() | {"watermark": {"table": "weather", "column": "known_at"}}
    by_weather = followed.model_copy(update={"source": type(followed.source).model_validate(settings)})
    with following(by_weather, outside):
        source.tell(START + 3 * HOUR)
        await_known(outside, START + 2 * HOUR)
        source.tell(START + 6 * HOUR)
        await_known(outside, START + 5 * HOUR)
