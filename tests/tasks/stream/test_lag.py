"""A stream that stands still, or that makes its source keep too much, is told of in time."""

from dataclasses import replace

import pytest

from adapters.connect import Outside
from adapters.replication_setup import create_slot, inspect_slot
from adapters.warehouse import Warehouse
from pipeline.spec import UseCase
from tasks.stream import lag
from tasks.stream.log_reader import slot_name
from tests.tasks.stream.live import LiveSource, live


@pytest.fixture
def follow() -> str:
    return "cdc"


def moved(outside: Outside, ago: str) -> None:
    outside.warehouse.execute("delete from stream_state")
    outside.warehouse.execute(
        "insert into stream_state (use_case, identities, moved_at) values ('flights', '{}', now() - %s::interval)",
        (ago,),
    )


def open_alerts(outside: Outside) -> list[str]:
    return [row["title"] for row in outside.warehouse.query("select title from alerts where resolved_at is null")]


def test_a_stream_that_stands_still_is_told_of_and_one_that_goes_on_is_not(
    followed: UseCase, use_case: UseCase, outside: Outside, source: LiveSource
) -> None:
    assert lag.judge_stream(live(use_case, None), outside) == []  # nobody asked for it
    moved(outside, "10 seconds")
    assert lag.judge_stream(followed, outside) == []
    moved(outside, "6 minutes")
    assert lag.judge_stream(followed, outside) == ["flights: the stream stands still"] == open_alerts(outside)
    moved(outside, "10 seconds")
    assert lag.judge_stream(followed, outside) == []
    assert open_alerts(outside) == []


def test_before_there_is_a_store_no_stream_stands_still(
    followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    """Its DAGs run from the start: whoever has no dataset yet is not called at night."""
    assert lag.judge_stream(followed, outside) == [] == open_alerts(outside)
    outside.warehouse.execute(
        "insert into online_state (use_case, definition, since, as_of, snapshot_version, revision)"
        " values ('flights', 'digest', now(), now(), 'version', 1)"
    )
    assert lag.judge_stream(followed, outside) == ["flights: the stream stands still"] == open_alerts(outside)


def test_a_slot_that_nobody_reads_is_told_of_and_then_dropped(
    followed: UseCase, outside: Outside, source: LiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved(outside, "10 seconds")
    assert outside.settings.follower_dsn is not None
    follower, name = Warehouse(outside.settings.follower_dsn), slot_name(followed)
    with follower.transaction() as at:
        create_slot(at, name)
    assert lag.judge_stream(followed, outside) == []
    source.run("create table kept as select repeat('x', 2000) from generate_series(1, 2000)")
    monkeypatch.setattr(lag, "WARNED_BYTES", 1 << 20)
    [told] = lag.judge_stream(followed, outside)
    assert "GB of its log" in told
    with follower.transaction() as at:
        assert inspect_slot(at, name, name) is not None
    monkeypatch.setattr(lag, "DROPPED_BYTES", 1 << 20)
    assert lag.judge_stream(followed, outside) == [
        "flights: the stream's slot was dropped, before the source's log fills its disk"
    ]
    with follower.transaction() as at:
        assert inspect_slot(at, name, name) is None


def test_a_slot_of_a_source_that_is_followed_no_more_is_dropped(
    use_case: UseCase, followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    moved(outside, "10 seconds")
    outside.warehouse.execute("update stream_state set position = 1")
    assert outside.settings.follower_dsn is not None
    follower, name = Warehouse(outside.settings.follower_dsn), slot_name(followed)
    with follower.transaction() as at:
        create_slot(at, name)
    assert lag.judge_stream(live(use_case, None), outside) == []
    with follower.transaction() as at:
        assert inspect_slot(at, name, name) is None


def test_a_source_that_does_not_answer_is_an_alert_and_no_error(
    followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    moved(outside, "10 seconds")
    assert outside.settings.follower_dsn is not None
    wrong = outside.settings.follower_dsn.replace("password=", "password=not_")
    away = Outside(replace(outside.settings, follower_dsn=wrong))
    assert lag.judge_stream(followed, away) == ["flights: the slot of the source cannot be looked at"]
    assert lag.judge_stream(followed, outside) == []
    assert open_alerts(outside) == []


def test_a_polled_source_has_no_slot_to_judge(use_case: UseCase, outside: Outside) -> None:
    moved(outside, "10 seconds")
    assert lag.judge_stream(live(use_case, "poll"), outside) == []
