"""Known events are answered by themselves, once, in time, and as batch would answer them later."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from adapters.connect import Outside
from adapters.retrying import wait_until
from models.interval import ConformalInterval
from pipeline.handoffs import Snapshot
from pipeline.settings import Settings
from pipeline.spec import Target, UseCase
from serving.answers import InferenceReply
from tasks.build_features import build, dataset
from tasks.stream import answer_events
from tasks.stream.answer_events import PATIENCE_SHARE
from tasks.stream.deliver_answers import deliver_answers
from tasks.stream.follow import follow_use_case
from tests.clean_data import week
from tests.features.world import moved
from tests.tasks.build_features.test_build import put
from tests.tasks.stream.answering import (
    VERSION,
    AnsweredOutside,
    Server,
    answering,
    await_answers,
    await_listed,
    list_answers,
    serving,
)
from tests.tasks.stream.live import PATIENCE_SECONDS, LiveSource, await_known, following, list_alerts, running
from tests.tasks.stream.receiving import SECRET, SECRET_ENV, URL_ENV, Received, Receiver, receiving, sent

START = week(2).start
HOUR = timedelta(hours=1)
HALF_HOUR = timedelta(minutes=30)


@pytest.fixture
def follow() -> str:
    """By the log: what is answered does not depend on how the source is followed."""
    return "cdc"


@pytest.fixture
def server(followed: UseCase, settings: Settings, tmp_path: Path) -> Server:
    (tmp_path / "bundle").mkdir()
    return Server(followed, settings, tmp_path / "bundle")


@pytest.fixture
def outside(settings: Settings, server: Server) -> Iterator[Outside]:
    made = AnsweredOutside(settings)
    with serving(server) as url:
        made.server_url = url
        yield made


def points_of(use_case: UseCase, outside: Outside, until: datetime) -> pa.Table:
    """What batch makes of the week's events, once the week was ingested."""
    put(outside, use_case, 2)
    later = build.build_snapshot(use_case, outside)
    assert later is not None
    return dataset.load_points(later.version, use_case, outside, start=START, end=until)


def count_due(outside: Outside, until: datetime) -> int:
    [row] = outside.warehouse.query("select count(*) as due from known_events where prediction_time < %s", (until,))
    return int(row["due"])


@pytest.mark.usefixtures("snapshot")
def test_every_event_is_answered_in_time_by_what_batch_works_out_later(
    followed: UseCase, outside: Outside, source: LiveSource, server: Server
) -> None:
    with following(followed, outside), answering(followed, outside):
        await_listed(outside)
        for steps in range(1, 41):  # each shorter than an answer's patience
            source.tell(START + steps * HALF_HOUR)
            await_known(outside, START + steps * HALF_HOUR)
            assert wait_until(lambda: count_due(outside, source.told_until) == 0, within_seconds=PATIENCE_SECONDS)
        answers = list_answers(outside)
    points = points_of(followed, outside, START + 20 * HOUR)
    keys = list(zip(points["entity_key"].to_pylist(), points["event_time"].to_pylist(), strict=True))
    assert len(keys) > 50
    assert {(row["entity_key"], row["event_time"].astimezone(UTC)) for row in answers} == {
        (key, moment.astimezone(UTC)) for key, moment in keys
    }
    assert all(row["in_time"] and row["known_until"] > row["prediction_time"] for row in answers)
    assert {row["model_version"] for row in answers} == {VERSION}
    assert outside.warehouse.query("select from answer_deliveries") == []  # there is no webhook
    order = [("prediction_time", "ascending"), ("entity_key", "ascending")]
    logged = [row for batch in server.logged for row in batch]
    names, moments = list(logged[0]["features"]), ("event_time", "prediction_time")
    assert len(names) > 50
    kinds = pa.schema([points.schema.field(name) for name in ("entity_key", *moments, *names)])
    plain = [row["features"] | {name: row[name] for name in ("entity_key", *moments)} for row in logged]
    told = [row | {name: datetime.fromisoformat(row[name]) for name in moments} for row in plain]
    missing = [{name: None if value != value else value for name, value in row.items()} for row in told]  # noqa: PLR0124  # NaN
    found = pa.Table.from_pylist(missing, kinds)
    assert moved(points.sort_by(order).select(kinds.names), found.sort_by(order)) == []
    scores = dict(zip(keys, server.predictor.predict(points).tolist(), strict=True))
    assert max(
        abs(row["score"] - scores[row["entity_key"], row["event_time"].astimezone(UTC)]) for row in answers
    ) == pytest.approx(0, abs=1e-5)


@pytest.mark.usefixtures("snapshot")
def test_who_follows_wakes_who_answers_in_its_process(
    followed: UseCase, outside: Outside, source: LiveSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks by himself meanwhile."""
    monkeypatch.setattr(answer_events, "_LOOK_SECONDS", 3600.0)
    moved = threading.Event()
    with running(partial(answer_events.answer_events, moved=moved), followed, outside):
        try:
            with running(partial(follow_use_case, moved=moved), followed, outside):
                await_listed(outside)
                for until in (START + HALF_HOUR, START + HOUR):
                    source.tell(until)
                    await_known(outside, until)
                    assert wait_until(
                        lambda: count_due(outside, source.told_until) == 0, within_seconds=PATIENCE_SECONDS
                    )
            assert list_answers(outside)
        finally:
            monkeypatch.setattr(answer_events, "_LOOK_SECONDS", 0.1)
            moved.set()


@pytest.mark.usefixtures("snapshot")
def test_where_the_store_stays_behind_an_answer_comes_on_what_is_known_while_it_is_in_time(
    followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    """The stream ends, and the source goes on."""
    reached = START + 8 * HOUR
    with following(followed, outside):
        await_listed(outside)
        source.tell(reached)
        await_known(outside, reached)
    known = count_due(outside, reached)
    query = "select min(prediction_time) as first from known_events where prediction_time >= %s"
    [row] = outside.warehouse.query(query, (reached,))
    first = row["first"].astimezone(UTC)
    assert followed.endpoint is not None
    assert followed.endpoint.answers is not None
    patience, minute = followed.endpoint.answers.budget * PATIENCE_SHARE, timedelta(minutes=1)
    with answering(followed, outside):
        source.tell(first + patience - minute)
        assert len(await_answers(outside, known)) == known
        source.tell(first + patience + minute)
        [behind, *_] = await_answers(outside, known + 1)[known:]
    assert (behind["prediction_time"], behind["known_until"], behind["in_time"]) == (first, reached, True)


@pytest.mark.usefixtures("snapshot")
def test_a_server_that_does_not_know_yet_what_the_store_knows_is_asked_again(
    followed: UseCase, outside: Outside, source: LiveSource, server: Server
) -> None:
    """It reads the store a moment later; where it stays behind, its answer is taken while that is in time."""
    is_behind = threading.Event()

    def lag(reply: InferenceReply) -> InferenceReply:
        answers = json.loads(reply.body)
        for answer in answers if is_behind.is_set() else ():
            answer["known_until"] = (START - HOUR).isoformat()
        return replace(reply, body=json.dumps(answers).encode())

    server.after = lag
    is_behind.set()
    with following(followed, outside), answering(followed, outside):
        await_listed(outside)
        source.tell(START + HALF_HOUR)
        await_known(outside, START + HALF_HOUR)
        known = count_due(outside, START + HALF_HOUR)
        asked = len(server.asked)
        assert wait_until(lambda: len(server.asked) > asked + 3, within_seconds=PATIENCE_SECONDS)
        assert known
        assert list_answers(outside) == []
        is_behind.clear()
        answers = await_answers(outside, known)
        assert all(row["known_until"] > row["prediction_time"] for row in answers)
        is_behind.set()
        source.tell(START + 2 * HOUR)
        behind = await_answers(outside, known + 1)[known:]
    assert {row["known_until"] for row in behind} == {START - HOUR}
    assert all(row["in_time"] for row in behind)


@pytest.mark.usefixtures("snapshot")
def test_an_answer_that_comes_too_late_says_so(followed: UseCase, outside: Outside, source: LiveSource) -> None:
    with following(followed, outside):
        await_listed(outside)
        source.tell(START + 2 * HOUR)
        await_known(outside, START + 2 * HOUR)
        source.tell(START + 20 * HOUR)
        await_known(outside, START + 20 * HOUR)
    due = count_due(outside, START + 20 * HOUR)
    assert due > 20
    with answering(followed, outside):
        answers = await_answers(outside, due)
    assert {row["in_time"] for row in answers} == {False, True}
    assert all(row["in_time"] == (row["prediction_time"] > START + 18 * HOUR) for row in answers)


@pytest.mark.usefixtures("snapshot")
def test_a_gateway_that_fails_is_asked_again_and_told_of(
    followed: UseCase, outside: Outside, source: LiveSource, server: Server
) -> None:
    server.before = lambda: InferenceReply(status=503, body=b'{"error": "no version answers"}')
    with following(followed, outside), answering(followed, outside):
        await_listed(outside)
        source.tell(START + 12 * HOUR)
        await_known(outside, START + 12 * HOUR)
        assert wait_until(
            lambda: ("warning", "flights: due events are not answered") in list_alerts(outside),
            within_seconds=PATIENCE_SECONDS,
        )
        assert list_answers(outside) == []
        server.before = lambda: None
        due = count_due(outside, START + 12 * HOUR)
        assert due
        await_answers(outside, due)
        assert wait_until(lambda: list_alerts(outside) == [], within_seconds=PATIENCE_SECONDS)


@pytest.mark.usefixtures("snapshot")
def test_an_event_that_the_server_refuses_stops_no_other(
    followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    with following(followed, outside):
        await_listed(outside)
        source.tell(START + 12 * HOUR)
        await_known(outside, START + 12 * HOUR)
    due = count_due(outside, START + 12 * HOUR)
    refused = "jsonb_set(request, '{carrier}', '\"not a carrier\"')"
    outside.warehouse.execute(
        f"update known_events set request = {refused} where entity_key = ("  # ours
        "select entity_key from known_events where prediction_time < %s order by prediction_time limit 1)",
        (START + 12 * HOUR,),
    )
    with answering(followed, outside):
        await_answers(outside, due - 1)
        assert wait_until(
            lambda: ("warning", "flights: a known event cannot be asked about") in list_alerts(outside),
            within_seconds=PATIENCE_SECONDS,
        )
    [left] = outside.warehouse.query("select problem from known_events where problem is not null")
    assert "carrier" in json.dumps(left["problem"])


@pytest.mark.usefixtures("snapshot")
def test_two_that_answer_and_one_that_begins_anew_answer_each_event_once(
    followed: UseCase, outside: Outside, source: LiveSource, server: Server
) -> None:
    with following(followed, outside):
        await_listed(outside)
        source.tell(START + 6 * HOUR)
        await_known(outside, START + 6 * HOUR)
        with answering(followed, outside), answering(followed, outside):
            source.tell(START + 12 * HOUR)
            await_known(outside, START + 12 * HOUR)
            assert wait_until(lambda: count_due(outside, START + 12 * HOUR) == 0, within_seconds=PATIENCE_SECONDS)
    answered = list_answers(outside)
    with following(followed, outside), answering(followed, outside):  # what is known is listed anew
        source.tell(START + 13 * HOUR)
        await_known(outside, START + 13 * HOUR)
        assert wait_until(lambda: count_due(outside, START + 13 * HOUR) == 0, within_seconds=PATIENCE_SECONDS)
    assert sum(server.asked) == len(list_answers(outside))
    assert [row for row in list_answers(outside) if row["prediction_time"] < START + 12 * HOUR] == answered


def test_an_entry_that_is_changed_or_deleted_before_its_time_is_asked_about_as_it_is_then(
    followed: UseCase, outside: Outside, snapshot: Snapshot, source: LiveSource
) -> None:
    assert snapshot
    with following(followed, outside):
        await_listed(outside)
        source.tell(START + 6 * HOUR)
        await_known(outside, START + 6 * HOUR)
        known = outside.warehouse.query(
            "select entity_key, event_time, request from known_events where prediction_time > %s order by 1 limit 2",
            (START + 23 * HOUR,),  # entered since the dataset ends
        )
        changed, gone = (row["request"] for row in known)
        where = "carrier = '{carrier}' and flight = {flight} and scheduled_departure = '{scheduled_departure}'"
        source.run(f"update flights set tailnum = 'N99999' where {where.format(**changed)}")
        assert source.remove("flights", where.format(**gone)) == 1
        source.tell(START + 7 * HOUR)
        await_known(outside, START + 7 * HOUR)
    query = "select request->>'tailnum' as tail from known_events where (entity_key, event_time) = (%s, %s)"
    left = [outside.warehouse.query(query, (row["entity_key"], row["event_time"])) for row in known]
    assert left == [[{"tail": "N99999"}], []]


@pytest.mark.usefixtures("snapshot")
def test_answers_are_sent_to_the_webhook_and_go_on_while_its_receiver_hangs(
    followed: UseCase, outside: Outside, source: LiveSource
) -> None:
    receiver, hangs, goes_on = Receiver(), threading.Event(), threading.Event()

    def hang(_: Received) -> None:
        hangs.set()
        goes_on.wait(PATIENCE_SECONDS)

    receiver.plan = hang
    use_case = sent(followed, max_answers=1000)
    with receiving(receiver):
        told = AnsweredOutside(replace(outside.settings, webhooks={URL_ENV: receiver.url, SECRET_ENV: SECRET}))
        told.server_url = outside.server_url  # type: ignore[attr-defined]
        with following(followed, outside), answering(use_case, told), running(deliver_answers, use_case, told):
            await_listed(outside)
            source.tell(START + 2 * HOUR)
            assert hangs.wait(PATIENCE_SECONDS)
            source.tell(START + 12 * HOUR)
            await_known(outside, START + 12 * HOUR)
            assert wait_until(lambda: count_due(outside, START + 12 * HOUR) == 0, within_seconds=PATIENCE_SECONDS)
            query = "select entity_key, event_time from answer_deliveries order by number"
            keys = [row["entity_key"] + row["event_time"].isoformat() for row in outside.warehouse.query(query)]
            goes_on.set()
            assert wait_until(lambda: len(receiver.list_keys()) == len(keys), within_seconds=PATIENCE_SECONDS)
    assert receiver.list_keys() == keys
    assert sorted(keys) == sorted(row["entity_key"] + row["event_time"].isoformat() for row in list_answers(outside))
    assert len(keys) > len(receiver.taken) > 1


@pytest.mark.usefixtures("snapshot")
def test_an_interval_is_kept_logged_and_sent_as_it_was_answered_and_is_what_batch_makes_of_the_value(
    followed: UseCase, settings: Settings, source: LiveSource, tmp_path: Path
) -> None:
    regression = sent(followed, max_answers=1000).model_copy(
        update={"target": Target(kind="regression", meaning="a number")}
    )
    interval = ConformalInterval(coverage=0.9, rows=99, low=-1.5, high=2.5, knots=(0.1, 0.9), scales=(0.1, 0.7))
    (tmp_path / "bounded").mkdir()
    server, receiver = Server(regression, settings, tmp_path / "bounded", interval=interval), Receiver()
    with serving(server) as url, receiving(receiver):
        outside = AnsweredOutside(replace(settings, webhooks={URL_ENV: receiver.url, SECRET_ENV: SECRET}))
        outside.server_url = url
        delivering = running(deliver_answers, regression, outside)
        with following(regression, outside), answering(regression, outside), delivering:
            await_listed(outside)
            source.tell(START + 6 * HOUR)
            await_known(outside, START + 6 * HOUR)
            assert wait_until(lambda: count_due(outside, START + 6 * HOUR) == 0, within_seconds=PATIENCE_SECONDS)
            answers = list_answers(outside)
            assert wait_until(lambda: len(receiver.list_keys()) == len(answers), within_seconds=PATIENCE_SECONDS)
    assert answers
    kept = {(row["score"], row["lower"], row["upper"]) for row in answers}
    scores = np.array([row["score"] for row in answers])
    assert kept == set(zip(scores.tolist(), *(bound.tolist() for bound in interval.bounds(scores)), strict=True))
    assert kept == {(a["value"], a["lower"], a["upper"]) for message in receiver.taken for a in message.answers}
    assert kept <= {(row["score"], row["lower"], row["upper"]) for batch in server.logged for row in batch}
