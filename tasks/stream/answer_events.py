"""Answers known events by themselves, once their prediction time has passed: by the very path of a request.

An answer waits until the online store knows all that became known before its prediction time; then it is what batch
works out afterwards. Where that takes too long, it is given on what is known: an answer that comes after the event is
none. Killed between an answer and its keeping, the event is asked about again; of one event one answer is kept.
"""

import logging
import threading
import time
import uuid
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.extras

from adapters.connect import Outside
from adapters.errors import Unavailable
from adapters.gateway import Gateway
from pipeline.online import AnswerSettings
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.stream.read_tables import read_time

logger = logging.getLogger(__name__)

PATIENCE_SHARE = 0.5  # of the time in which an answer is in time: so long it waits for the store
_REFUSED = 400
_MOST_AT_ONCE = 64  # history that nobody asked for yet takes its time
_LOOK_SECONDS = 0.1
_CLOCK_SECONDS = 0.25
_PAUSE_SECONDS = 3.0
_TROUBLE = (psycopg2.Error, Unavailable, ConnectionError)
_DUE = """
select entity_key, event_time, prediction_time, request from known_events k,
    (select max(known_until) as known_until from online_state where use_case = %(use_case)s) store
where use_case = %(use_case)s and problem is null
    and (prediction_time < store.known_until or prediction_time < %(now)s - %(patience)s)
order by prediction_time + %(budget)s < %(now)s, prediction_time, entity_key limit %(most)s"""
_KEEP = """
insert into answers_in_time (use_case, entity_key, event_time, prediction_time, model_version, score, decision,
    degraded, reasons, request_id, position, known_until, answered_at, in_time) values %s on conflict do nothing"""
_REMOVE = """
delete from known_events k using (values %s) as done (use_case, entity_key, event_time)
where (k.use_case, k.entity_key, k.event_time) = (done.use_case, done.entity_key, done.event_time)"""


_REFUSE = """
update known_events set problem = %s where (use_case, entity_key, event_time) = (%s, %s, %s)"""


class NotAnswered(ConnectionError):  # noqa: N818  # says what the matter is
    """The gateway answers, but no version does."""


def answer_events(use_case: UseCase, outside: Outside, stopped: threading.Event) -> None:
    """Answer until the event is set; of two at one use case one waits, and what fails is told and tried again."""
    assert use_case.endpoint is not None
    settings = use_case.endpoint.answers
    assert settings is not None
    while not stopped.is_set():
        try:
            if (gateway := outside.gateway) is None:
                raise NotAnswered(f"{use_case.name}: there is no gateway to ask (WINDSOCK_GATEWAY_URL)")
            with outside.warehouse.alone(f"{use_case.name}/answers") as mine:
                if mine:
                    _answer_on(use_case, settings, outside, gateway, stopped)
        except _TROUBLE as error:
            _report(use_case, outside, str(error).strip() or type(error).__name__)
        stopped.wait(_PAUSE_SECONDS)


def _answer_on(
    use_case: UseCase, settings: AnswerSettings, outside: Outside, gateway: Gateway, stopped: threading.Event
) -> None:
    is_well, clock = False, _SourceClock(use_case, outside)
    with outside.warehouse.session(), outside.source.session():
        while not stopped.is_set():
            began = time.monotonic()
            due = _find_due(use_case, settings, outside, clock.read(_CLOCK_SECONDS))
            is_answered = bool(due) and _answer(use_case, settings, outside, gateway, due)
            if is_answered and not is_well:
                outside.alerts.resolve(_fingerprint(use_case))
                is_well = True
            if not is_answered:
                stopped.wait(max(0.0, _LOOK_SECONDS - (time.monotonic() - began)))


class _SourceClock:
    """The source's clock, or its watermark; the operator's database is not asked at each look."""

    def __init__(self, use_case: UseCase, outside: Outside) -> None:
        self._use_case, self._outside = use_case, outside
        self._read_at = float("-inf")

    def read(self, within_seconds: float = 0) -> datetime:
        """What it says, or said so many seconds ago."""
        if time.monotonic() > self._read_at + within_seconds:
            with self._outside.source.transaction() as at:
                self._told = read_time(at, self._use_case)
            self._read_at = time.monotonic()
        return self._told


def _find_due(use_case: UseCase, settings: AnswerSettings, outside: Outside, now: datetime) -> list[dict[str, Any]]:
    assert use_case.endpoint is not None
    return outside.warehouse.query(
        _DUE,
        {
            "use_case": use_case.name,
            "now": now,
            "patience": settings.budget * PATIENCE_SHARE,
            "budget": settings.budget,
            "most": min(use_case.endpoint.max_events, _MOST_AT_ONCE),
        },
    )


def _answer(
    use_case: UseCase, settings: AnswerSettings, outside: Outside, gateway: Gateway, due: list[dict[str, Any]]
) -> bool:
    """Ask about events, and keep what was answered; whether anything was.

    Where the store was silent, and there is time, the event is asked about again.
    """
    request_id = f"due-{uuid.uuid4().hex}"
    reply = gateway.ask(use_case.name, [event["request"] for event in due], request_id=request_id)
    if reply.status == _REFUSED and len(due) > 1:  # because of one of them
        return sum(_answer(use_case, settings, outside, gateway, [event]) for event in due) > 0
    if reply.status == _REFUSED:
        _set_aside(use_case, outside, due[0], str(reply.body))
        return True
    if reply.status != 200 or not isinstance(reply.body, list):
        raise NotAnswered(f"{use_case.name}: {len(due)} due events: {reply.status} {str(reply.body)[:300]}")
    now = _SourceClock(use_case, outside).read()
    rows = [
        (
            use_case.name,
            event["entity_key"],
            event["event_time"],
            event["prediction_time"],
            answer["model_version"],
            answer["probability" if use_case.target.kind == "binary" else "value"],
            answer["decision"],
            answer["degraded"],
            answer["reasons"],
            request_id,
            position,
            answer["known_until"],
            now,
            _is_in_time(event, settings.budget, now),
        )
        for position, (event, answer) in enumerate(zip(due, reply.body, strict=True))
        if DegradedReason.STORE_SILENT not in answer["reasons"]
        or now > event["prediction_time"] + settings.budget * PATIENCE_SHARE
    ]
    keys = [row[:3] for row in rows]

    def keep() -> None:
        with outside.warehouse.transaction() as at:
            psycopg2.extras.execute_values(at, _KEEP, rows, template=f"({', '.join(['%s'] * 14)})")
            psycopg2.extras.execute_values(at, _REMOVE, keys, template="(%s, %s, %s::timestamptz)")

    outside.warehouse.retry_transaction(keep)
    return bool(rows)


def _set_aside(use_case: UseCase, outside: Outside, event: dict[str, Any], problem: str) -> None:
    """An event that the server refuses is asked about again when its entry is changed."""
    key = (event["entity_key"], event["event_time"])
    outside.warehouse.execute(_REFUSE, (problem, use_case.name, *key))
    outside.alerts.raise_alert(
        "warning",
        use_case.name,
        f"{use_case.name}.answers.refused",
        f"{use_case.name}: a known event cannot be asked about",
        f"{key[0]} at {key[1]}: {problem[:500]}. It is left unanswered; see known_events in the warehouse for others",
    )


def _is_in_time(event: dict[str, Any], budget: timedelta, now: datetime) -> bool:
    return bool(now < event["event_time"] and now <= event["prediction_time"] + budget)


def _report(use_case: UseCase, outside: Outside, problem: str) -> None:
    logger.warning("%s: %s", use_case.name, problem)
    try:
        outside.alerts.raise_alert(
            "warning",
            use_case.name,
            _fingerprint(use_case),
            f"{use_case.name}: due events are not answered",
            f"{problem}. It is tried again; what is answered later is marked as late",
        )
    except psycopg2.Error as error:  # it is the warehouse that is away
        logger.warning("%s: nor can it be told: %s", use_case.name, error)


def _fingerprint(use_case: UseCase) -> str:
    return f"{use_case.name}.answers"
