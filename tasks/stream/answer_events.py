"""Answers known events by themselves, once their prediction time has passed: by the very path of a request.

An answer waits until the online store knows all that became known before its prediction time; then it is what batch
works out afterwards. Where that takes too long, it is given on what is known: an answer that comes after the event is
none. Killed between an answer and its keeping, the event is asked about again; of one event one answer is kept.
"""

import threading
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import psycopg2
import psycopg2.extras

from adapters.connect import Outside
from adapters.errors import Unavailable
from adapters.gateway import Gateway
from pipeline.online import AnswerSettings
from pipeline.spec import UseCase
from serving.reasons import DegradedReason
from tasks.stream.awaited_tables import find_awaited_tables
from tasks.stream.known_events import remove_events
from tasks.stream.read_tables import read_time
from tasks.stream.trouble import report_trouble

PATIENCE_SHARE = 0.5  # of the time in which an answer is in time: so long it waits for the store
_REFUSED = 400
_MOST_AT_ONCE = 64  # history that nobody asked for yet takes its time
_LOOK_SECONDS = 0.1  # where nobody says that the store has come further
_TOLD_SECONDS = 0.05  # a server is told of that, too, and takes so long
_AGAIN_SECONDS = 0.1
_ASKED_AT_ONCE = 10  # times, each so soon after the one before
_MOST_PAUSE_SECONDS = 10.0
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
    degraded, reasons, request_id, position, known_until, answered_at, in_time, lower, upper)
values %s on conflict do nothing"""
# With an answer, the mark that it is to be sent; only of those that were not there.
_KEEP_TO_SEND = f"""
with kept as ({_KEEP} returning use_case, entity_key, event_time, prediction_time)
insert into answer_deliveries (use_case, entity_key, event_time)
select use_case, entity_key, event_time from kept order by prediction_time, entity_key"""  # noqa: S608  # ours
_REFUSE = """
update known_events set problem = %s where (use_case, entity_key, event_time) = (%s, %s, %s)"""


class NotAnswered(ConnectionError):  # noqa: N818  # says what the matter is
    """The gateway answers, but no version does."""


def answer_events(
    use_case: UseCase, outside: Outside, stopped: threading.Event, moved: threading.Event | None = None
) -> None:
    """Answer until `stopped` is set; of two at one use case one waits, and what fails is told and tried again.

    Who follows in the same process sets `moved` when the store has come further.
    """
    assert use_case.endpoint is not None
    settings = use_case.endpoint.answers
    assert settings is not None
    while not stopped.is_set():
        try:
            if find_awaited_tables(use_case, outside.warehouse, outside.source):  # whoever follows says so
                outside.alerts.resolve(_fingerprint(use_case))
            elif (gateway := outside.gateway) is None:
                raise NotAnswered(f"{use_case.name}: there is no gateway to ask (WINDSOCK_GATEWAY_URL)")
            else:
                with outside.warehouse.alone(f"{use_case.name}/answers") as mine:
                    if mine:
                        answerer = _EventAnswerer(use_case, settings, outside, gateway)
                        answerer.answer_on(stopped, moved or threading.Event())
        except _TROUBLE as error:
            what, meanwhile = "due events are not answered", "what is answered later is marked as late"
            problem = str(error).strip() or type(error).__name__
            report_trouble(use_case, outside, _fingerprint(use_case), what=what, problem=problem, meanwhile=meanwhile)
        stopped.wait(_PAUSE_SECONDS)


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


class _EventAnswerer:
    """Who answers the events of one use case."""

    def __init__(self, use_case: UseCase, settings: AnswerSettings, outside: Outside, gateway: Gateway) -> None:
        assert use_case.endpoint is not None
        self._use_case, self._outside, self._gateway = use_case, outside, gateway
        self._budget, self._patience = settings.budget, settings.budget * PATIENCE_SHARE
        self._most = min(use_case.endpoint.max_events, _MOST_AT_ONCE)
        self._keep = _KEEP if settings.webhook is None else _KEEP_TO_SEND
        self._clock = _SourceClock(use_case, outside)

    def answer_on(self, stopped: threading.Event, moved: threading.Event) -> None:
        """Answer what is due, until `stopped` is set."""
        is_well, unanswered = False, 0
        with self._outside.warehouse.session(), self._outside.source.session():
            while not stopped.is_set():
                began = time.monotonic()
                due = self._find_due()
                is_answered = bool(due) and self._answer(due)
                if is_answered and not is_well:
                    self._outside.alerts.resolve(_fingerprint(self._use_case))
                    is_well = True
                unanswered = unanswered + 1 if due and not is_answered else 0
                if is_answered:
                    continue
                if due:  # a server that stays behind the store is asked less and less often
                    pause = min(_AGAIN_SECONDS * max(1, unanswered - _ASKED_AT_ONCE), _MOST_PAUSE_SECONDS)
                    stopped.wait(max(0.0, pause - (time.monotonic() - began)))
                elif moved.wait(max(0.0, _LOOK_SECONDS - (time.monotonic() - began))):
                    moved.clear()
                    stopped.wait(_TOLD_SECONDS)

    def _find_due(self) -> list[dict[str, Any]]:
        return self._outside.warehouse.query(
            _DUE,
            {
                "use_case": self._use_case.name,
                "now": self._clock.read(_CLOCK_SECONDS),
                "patience": self._patience,
                "budget": self._budget,
                "most": self._most,
            },
        )

    def _answer(self, due: list[dict[str, Any]]) -> bool:
        """Ask about events, and keep what was answered; whether anything was.

        Where the server did not know yet what the store knows, and there is time, the event is asked about again.
        """
        request_id = f"due-{uuid.uuid4().hex}"
        reply = self._gateway.ask(self._use_case.name, [event["request"] for event in due], request_id=request_id)
        if reply.status == _REFUSED and len(due) > 1:  # because of one of them
            return sum(self._answer([event]) for event in due) > 0
        if reply.status == _REFUSED:
            self._set_aside(due[0], str(reply.body))
            return True
        if reply.status != 200 or not isinstance(reply.body, list):
            raise NotAnswered(f"{self._use_case.name}: {len(due)} due events: {reply.status} {str(reply.body)[:300]}")
        now = self._clock.read()
        rows = [
            (
                self._use_case.name,
                event["entity_key"],
                event["event_time"],
                event["prediction_time"],
                answer["model_version"],
                answer["probability" if self._use_case.target.kind == "binary" else "value"],
                answer["decision"],
                answer["degraded"],
                answer["reasons"],
                request_id,
                position,
                answer["known_until"],
                now,
                now < event["event_time"] and now <= event["prediction_time"] + self._budget,
                answer.get("lower"),  # not in that of a probability, nor in one of a server of before
                answer.get("upper"),
            )
            for position, (event, answer) in enumerate(zip(due, reply.body, strict=True))
            if knows_all(event["prediction_time"], answer) or now > event["prediction_time"] + self._patience
        ]

        def keep() -> None:
            with self._outside.warehouse.transaction() as at:
                psycopg2.extras.execute_values(at, self._keep, rows, template=f"({', '.join(['%s'] * 16)})")
                remove_events(at, self._use_case, [row[1:3] for row in rows])

        self._outside.warehouse.retry_transaction(keep)
        return bool(rows)

    def _set_aside(self, event: dict[str, Any], problem: str) -> None:
        """An event that the server refuses is asked about again when its entry is changed."""
        key, name = (event["entity_key"], event["event_time"]), self._use_case.name
        self._outside.warehouse.execute(_REFUSE, (problem, name, *key))
        self._outside.alerts.raise_alert(
            "warning",
            name,
            f"{name}.answers.refused",
            f"{name}: a known event cannot be asked about",
            f"{key[0]} at {key[1]}: {problem[:500]}. It is left unanswered;"
            " see known_events in the warehouse for others",
        )


def knows_all(prediction_time: datetime, answer: Mapping[str, Any]) -> bool:
    """Whether an answer rests on all that became known before a moment: a server is told of it after the store."""
    known_until = answer["known_until"]
    if known_until is None or DegradedReason.STORE_SILENT in answer["reasons"]:
        return False
    return datetime.fromisoformat(known_until) >= prediction_time


def _fingerprint(use_case: UseCase) -> str:
    return f"{use_case.name}.answers"
