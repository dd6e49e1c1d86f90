"""Answers reach the receiver of a webhook: signed, in order, each at least once; what does not reach it is told of."""

import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from adapters.connect import Outside
from adapters.retrying import wait_until
from pipeline.settings import REPOSITORY, Settings
from pipeline.spec import UseCase
from tasks.stream import deliver_answers as deliverer
from tasks.stream.deliver_answers import choose_pause, deliver_answers
from tests.shipped import read_shipped_params
from tests.tasks.killed import environment, run
from tests.tasks.stream.live import PATIENCE_SECONDS, await_alerts, list_alerts, running
from tests.tasks.stream.receiving import (
    OTHER_SECRET,
    SECRET,
    SECRET_ENV,
    URL_ENV,
    Received,
    Receiver,
    plant_answers,
    receiving,
    sent,
)

FAILING = [("warning", "flights: the webhook does not take answers")]
REFUSED = [("warning", "flights: the webhook refuses answers")]
KILLED = """
import threading
from tasks.stream import deliver_answers
from tests.tasks.stream.receiving import sent
deliver_answers.mark_delivered = die
deliver_answers.deliver_answers(sent(use_cases(settings().params)["flights"]), outside, threading.Event())
"""
delivering = partial(running, deliver_answers)


@pytest.fixture
def receiver() -> Receiver:
    """It has a port, at which nobody listens yet."""
    made = Receiver()
    with receiving(made):
        pass
    return made


@pytest.fixture
def settings(settings: Settings, receiver: Receiver) -> Settings:
    return replace(settings, webhooks={URL_ENV: receiver.url, SECRET_ENV: SECRET})


@pytest.fixture
def told(use_case: UseCase) -> UseCase:
    """The use case with a webhook."""
    return sent(use_case)


@pytest.fixture(autouse=True)
def _hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(deliverer, "_LONGEST_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(deliverer, "_LOOK_SECONDS", 0.05)


def plant(outside: Outside, first: int, end: int) -> list[str]:
    """Answers to events first..end-1, to be sent; their keys in the order in which they were given."""
    plant_answers(outside.warehouse, first, end)
    rows = outside.warehouse.query("select * from answer_deliveries order by number")
    return [row["entity_key"] + row["event_time"].isoformat() for row in rows]


def list_deliveries(outside: Outside) -> list[tuple[str, int]]:
    query = "select status, count(*) from answer_deliveries group by 1 order by 1"
    return [(row["status"], row["count"]) for row in outside.warehouse.query(query)]


def await_deliveries(outside: Outside, expected: list[tuple[str, int]]) -> None:
    assert wait_until(lambda: list_deliveries(outside) == expected, within_seconds=PATIENCE_SECONDS), [
        list_deliveries(outside),
        outside.warehouse.query("select distinct problem from answer_deliveries"),
    ]


def test_answers_come_signed_in_batches_in_the_order_in_which_they_were_given(
    told: UseCase, outside: Outside, receiver: Receiver
) -> None:
    keys = plant(outside, 0, 7)
    with receiving(receiver), delivering(told, outside):
        await_deliveries(outside, [("delivered", 7)])
        keys = plant(outside, 7, 8)
        await_deliveries(outside, [("delivered", 8)])
    assert [len(message.answers) for message in receiver.taken] == [3, 3, 1, 1]
    assert receiver.list_keys() == keys
    assert receiver.taken[0].answers[1] == {
        "entity_key": "UA-1",
        "event_time": "2013-05-01T02:01:00+00:00",
        "prediction_time": "2013-05-01T00:01:00+00:00",
        "probability": 0.01,
        "decision": True,
        "model_version": "7",
        "degraded": False,
        "reasons": [],
        "in_time": True,
        "known_until": "2013-05-01T00:01:00+00:00",
        "answered_at": "2013-05-01T00:01:01+00:00",
        "made_at": receiver.taken[0].answers[1]["made_at"],
        "request_id": "due-1",
        "position": 0,
    }
    assert list_alerts(outside) == []


def test_a_receiver_that_asks_for_a_pause_gets_it_and_then_the_same_message(
    told: UseCase, outside: Outside, receiver: Receiver
) -> None:
    came = list[float]()

    def plan(_: Received) -> tuple[int, dict[str, str]] | None:
        came.append(time.monotonic())
        return (503, {"Retry-After": "2"}) if len(came) == 1 else None

    receiver.plan = plan
    keys = plant(outside, 0, 5)
    with receiving(receiver), delivering(told, outside):
        await_deliveries(outside, [("delivered", 5)])
    assert came[1] - came[0] >= 1.9
    assert receiver.came[0].message_id == receiver.came[1].message_id
    assert receiver.came[0].content == receiver.came[1].content
    assert receiver.list_keys() == keys


def test_pauses_grow_to_a_limit_and_a_receivers_wish_counts_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert [choose_pause(n, None) for n in (1, 2, 3, 9, 10, 10_000)] == [1, 2, 4, 256, 300, 300]
    assert [choose_pause(3, wish) for wish in (0.0, 60.0, 1e9)] == [4, 60, 3600]


def test_while_the_receiver_is_down_answers_wait_in_their_order_and_a_restart_goes_on(
    told: UseCase, outside: Outside, receiver: Receiver
) -> None:
    plant(outside, 0, 4)
    with delivering(told, outside):
        await_alerts(outside, FAILING)
        keys = plant(outside, 4, 9)
    [kept] = outside.warehouse.query("select max(attempts) as attempts, max(problem) as problem from answer_deliveries")
    assert kept["attempts"] >= 3
    assert "does not answer" in kept["problem"]
    with receiving(receiver), delivering(told, outside):
        await_deliveries(outside, [("delivered", 9)])
        await_alerts(outside, [])
    assert receiver.list_keys() == keys
    assert len(receiver.taken) == len({message.message_id for message in receiver.taken}) == 3


def test_a_pause_outlives_the_one_who_began_it(told: UseCase, outside: Outside, receiver: Receiver) -> None:
    receiver.plan = lambda _: (429, {"Retry-After": "3600"})
    plant(outside, 0, 1)
    with receiving(receiver), delivering(told, outside):
        await_alerts(outside, FAILING)  # a long pause is told of at once
    receiver.plan = lambda _: None
    with receiving(receiver), delivering(told, outside):
        assert not wait_until(lambda: len(receiver.came) > 1, within_seconds=1)
        outside.warehouse.execute("update answer_deliveries set next_at = now()")
        await_deliveries(outside, [("delivered", 1)])
        await_alerts(outside, [])


@pytest.mark.parametrize("status", [400, 410])
def test_what_is_refused_is_kept_and_told_of_others_go_on_and_a_person_has_it_sent_again(
    status: int, told: UseCase, outside: Outside, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.plan = lambda message: (status, {}) if "UA-4" in message.content.decode() else None
    keys = plant(outside, 0, 9)
    with receiving(receiver), delivering(told, outside):
        await_deliveries(outside, [("delivered", 6), ("undeliverable", 3)])
        await_alerts(outside, REFUSED)
        assert receiver.list_keys() == [*keys[:3], *keys[6:]]
        [kept] = outside.warehouse.query(
            "select distinct message_id, problem from answer_deliveries where status = 'undeliverable'"
        )
        assert f"answered {status}" in kept["problem"]
        plant(outside, 9, 10)
        await_deliveries(outside, [("delivered", 7), ("undeliverable", 3)])
        assert list_alerts(outside) == REFUSED
        receiver.plan = lambda _: None
        assert "flights: 3 answers are sent again" in retry(outside, told, tmp_path)
        await_deliveries(outside, [("delivered", 10)])
        await_alerts(outside, [])
    assert [message.keys for message in receiver.taken if message.message_id == kept["message_id"]] == [keys[3:6]]


def retry(outside: Outside, told: UseCase, folder: Path) -> str:
    """What the operator's command says."""
    assert told.endpoint is not None
    assert told.endpoint.answers is not None
    params = read_shipped_params()
    params["flights"]["endpoint"]["answers"] = told.endpoint.answers.model_dump()
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    done = subprocess.run(
        [sys.executable, "-m", "tasks.stream.retry_deliveries", "flights"],
        env={**environment(outside.settings), "WINDSOCK_PARAMS": str(path), "PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wrong_secret_is_refused_and_told_of(told: UseCase, outside: Outside, receiver: Receiver) -> None:
    wrong = Outside(replace(outside.settings, webhooks={URL_ENV: receiver.url, SECRET_ENV: OTHER_SECRET}))
    keys = plant(outside, 0, 4)
    with receiving(receiver):
        with delivering(told, wrong):
            await_deliveries(outside, [("undeliverable", 4)])
            await_alerts(outside, REFUSED)
        assert receiver.came == []
        both = {URL_ENV: receiver.url, SECRET_ENV: f"{OTHER_SECRET} {SECRET}"}
        outside.warehouse.execute("update answer_deliveries set status = 'waiting', attempts = 0")
        with delivering(told, Outside(replace(outside.settings, webhooks=both))):
            await_deliveries(outside, [("delivered", 4)])
            await_alerts(outside, [])
    assert receiver.list_keys() == keys


def test_a_setting_that_is_missing_is_told_of_and_what_waits_is_sent_once_it_is_there(
    told: UseCase, outside: Outside, receiver: Receiver
) -> None:
    plant(outside, 0, 1)
    with delivering(told, Outside(replace(outside.settings, webhooks={URL_ENV: receiver.url}))):
        await_alerts(outside, [("warning", "flights: answers are not sent to the webhook")])
    [row] = outside.warehouse.query("select body from alerts")
    assert SECRET_ENV in row["body"]
    with receiving(receiver), delivering(told, outside):
        await_deliveries(outside, [("delivered", 1)])
        await_alerts(outside, [])


def test_killed_between_the_receivers_word_and_the_mark_the_same_message_is_sent_again(
    told: UseCase, outside: Outside, receiver: Receiver
) -> None:
    keys = plant(outside, 0, 4)
    with receiving(receiver):
        run(outside.settings, KILLED, killed=True)
        assert list_deliveries(outside) == [("waiting", 4)]
        assert len(receiver.taken) == 1
        with delivering(told, outside):
            await_deliveries(outside, [("delivered", 4)])
    first, again, last = receiver.taken
    assert (first.message_id, first.content) == (again.message_id, again.content)
    assert last.message_id != first.message_id
    assert receiver.list_keys() == keys


def test_two_that_send_put_no_answer_into_two_messages(told: UseCase, outside: Outside, receiver: Receiver) -> None:
    keys = plant(outside, 0, 30)
    with receiving(receiver), delivering(told, outside), delivering(told, outside):
        await_deliveries(outside, [("delivered", 30)])
    assert receiver.list_keys() == keys


def test_an_alert_does_not_change_with_each_word_of_the_receiver(
    told: UseCase, outside: Outside, receiver: Receiver
) -> None:
    """Or each attempt would be a message to people."""
    receiver.plan = lambda message: (500 if len(receiver.came) < 8 else 200, {"X-Request": message.message_id})
    plant(outside, 0, 1)
    with receiving(receiver), delivering(told, outside):
        await_deliveries(outside, [("delivered", 1)])
    [row] = outside.warehouse.query("select occurrences, body from alerts")
    assert row["occurrences"] > 1
    assert "it answers 500" in row["body"]
