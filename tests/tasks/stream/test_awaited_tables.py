"""Tables that are not there yet are waited for, said once, and nobody is called; one that is gone is told of."""

import logging
from collections.abc import Callable
from datetime import timedelta

import pytest

from adapters.connect import Outside
from adapters.retrying import wait_until
from pipeline.settings import Settings
from pipeline.spec import UseCase
from tasks.build_features import build, online_features
from tasks.stream import answer_events, follow
from tasks.stream.awaited_tables import find_awaited_tables
from tests.clean_data import week
from tests.tasks.build_features.test_build import put
from tests.tasks.stream.answering import AnsweredOutside, answering
from tests.tasks.stream.live import PATIENCE_SECONDS, LiveSource, await_alerts, await_known, following, list_alerts

START = week(2).start
HIDDEN = ("clock", "weather")
BEGUN = {
    "followed": "insert into stream_state (use_case, identities) values ('flights', '{}')",
    "landed": "insert into batches (use_case, table_name, partition_start, partition_end, raw_sha256, raw_uri,"
    " raw_rows, status, version) values ('flights', 'weather', '2013-01-07', '2013-01-14', 'a', 'u', 1, 'landed', 1)",
}


@pytest.fixture
def outside(settings: Settings) -> Outside:
    """With a gateway, which nobody asks."""
    return AnsweredOutside(settings)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (follow, answer_events):
        monkeypatch.setattr(module, "_PAUSE_SECONDS", 0.05)


def count_looks(monkeypatch: pytest.MonkeyPatch, *modules: object) -> Callable[[], bool]:
    """Whether each of these has looked for its tables several times."""
    looks = dict.fromkeys(modules, 0)

    def count(module: object) -> Callable[..., list[str]]:
        def look(*arguments: object) -> list[str]:
            looks[module] += 1
            return find_awaited_tables(*arguments)  # type: ignore[arg-type]

        return look

    for module in modules:
        monkeypatch.setattr(module, "find_awaited_tables", count(module))
    return lambda: min(looks.values()) > 3


def test_who_follows_and_who_answers_wait_quietly_and_begin_once_the_tables_are_there(
    followed: UseCase,
    outside: Outside,
    source: LiveSource,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    outside.alerts.raise_alert("warning", "flights", "flights.stream", "flights: the source is not followed", "before")
    source.hide(*HIDDEN)
    have_looked = count_looks(monkeypatch, follow, answer_events)
    with following(followed, outside):
        with answering(followed, outside):
            assert wait_until(have_looked, within_seconds=PATIENCE_SECONDS)
        assert list_alerts(outside) == []
        said = [message for message in caplog.messages if message.startswith("flights: ")]
        assert said == ["flights: clock, weather are not in the source yet: the stream waits for them"]
        source.show(*HIDDEN)
        put(outside, followed, 0, 1)
        built = build.build_snapshot(followed, outside)
        assert built is not None
        online_features.refresh_store(followed, built, outside)
        source.tell(START + timedelta(hours=1))
        await_known(outside, source.told_until)
    assert list_alerts(outside) == []


@pytest.mark.usefixtures("snapshot")
def test_tables_that_were_there_and_are_gone_are_told_of(
    followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    source.hide(*HIDDEN)
    what = ("due events are not answered", "the source is not followed")
    with following(followed, outside), answering(followed, outside):
        await_alerts(outside, [("warning", f"flights: {each}") for each in what])


@pytest.mark.parametrize("begun", BEGUN)
def test_only_what_never_was_is_waited_for(followed: UseCase, outside: Outside, source: LiveSource, begun: str) -> None:
    def find() -> list[str]:
        return find_awaited_tables(followed, outside.warehouse, outside.source)

    assert find() == []
    source.hide(*HIDDEN)
    assert find() == sorted(HIDDEN)
    outside.warehouse.execute(BEGUN[begun])
    assert find() == []
