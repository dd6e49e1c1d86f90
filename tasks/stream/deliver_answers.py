"""Sends answers to the webhook of their use case, in the order in which they were given, each at least once.

What is on its way is in `answer_deliveries`, with the pause before the next attempt: whoever begins anew goes on there.
Killed between the receiver's word and its mark, a message is sent again under its id. A receiver that fails or is
silent holds up the messages behind, and no answer; one that refuses a message holds up nothing.
"""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2.extensions import cursor

from adapters.connect import Outside
from adapters.errors import Unavailable
from adapters.webhook import DeliveryOutcome, DeliveryReply, Webhook, open_webhook
from pipeline.online import WebhookSettings
from pipeline.spec import UseCase
from tasks.stream.answer_deliveries import (
    AnswerMessage,
    count_undeliverable,
    find_message,
    mark_delivered,
    mark_failed,
    mark_refused,
)
from tasks.stream.trouble import report_trouble

logger = logging.getLogger(__name__)

MESSAGE_TYPE = "answers.given"
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 300.0
_LONGEST_WISH_SECONDS = 3600.0  # a receiver that wants to be left alone for longer is asked all the same
_TOLD_ATTEMPTS, _TOLD_PAUSE_SECONDS = 3, 60.0  # one failure is no news, unless it lasts
_LOOK_SECONDS = 0.25
_PAUSE_SECONDS = 3.0
_TROUBLE = (psycopg2.Error, Unavailable, ValueError)  # the last: a person has to change something


def deliver_answers(use_case: UseCase, outside: Outside, stopped: threading.Event) -> None:
    """Send until the event is set; of two at one use case one waits, and what fails is told and tried again."""
    assert use_case.endpoint is not None
    assert use_case.endpoint.answers is not None
    settings = use_case.endpoint.answers.webhook
    assert settings is not None
    fingerprint = f"{use_case.name}.webhook.start"
    while not stopped.is_set():
        try:
            webhook = open_webhook(settings, outside.settings.webhooks)
            with outside.warehouse.alone(f"{use_case.name}/webhook") as mine:
                if mine:
                    outside.alerts.resolve(fingerprint)
                    _AnswerSender(use_case, settings, outside, webhook).send_on(stopped)
        except _TROUBLE as error:
            problem, meanwhile = str(error).strip() or type(error).__name__, "answers are kept, and wait"
            what = "answers are not sent to the webhook"
            report_trouble(use_case, outside, fingerprint, what=what, problem=problem, meanwhile=meanwhile)
        stopped.wait(_PAUSE_SECONDS)


def make_document(use_case: UseCase, answers: Sequence[Mapping[str, Any]]) -> bytes:
    """The body of a message; of the same answers always the same bytes."""
    document = {
        "type": MESSAGE_TYPE,
        "timestamp": _format(max(row["made_at"] for row in answers)),
        "data": {"use_case": use_case.name, "answers": [_describe(use_case, row) for row in answers]},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def choose_pause(attempts: int, wish_seconds: float | None) -> float:
    """Seconds before the next attempt, after so many that failed; the receiver's own wish is granted within reason."""
    own = min(_FIRST_PAUSE_SECONDS * 2.0 ** min(attempts - 1, 30), _LONGEST_PAUSE_SECONDS)
    return own if wish_seconds is None else max(own, min(wish_seconds, _LONGEST_WISH_SECONDS))


def _describe(use_case: UseCase, row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer as a client would have got it, and when it was given."""
    return {
        "entity_key": row["entity_key"],
        "event_time": _format(row["event_time"]),
        "prediction_time": _format(row["prediction_time"]),
        **_describe_score(use_case, row),
        **{name: row[name] for name in ("decision", "model_version", "degraded", "reasons", "in_time")},
        **{name: _format(row[name]) for name in ("known_until", "answered_at", "made_at")},
        "request_id": row["request_id"],
        "position": row["position"],
    }


def _describe_score(use_case: UseCase, row: Mapping[str, Any]) -> dict[str, Any]:
    if use_case.target.kind == "binary":
        return {"probability": row["score"]}
    return {"value": row["score"], "lower": row["lower"], "upper": row["upper"]}


def _format(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


class _AnswerSender:
    """Who sends the answers of one use case."""

    def __init__(self, use_case: UseCase, settings: WebhookSettings, outside: Outside, webhook: Webhook) -> None:
        self._use_case, self._most, self._outside, self._webhook = use_case, settings.max_answers, outside, webhook

    def send_on(self, stopped: threading.Event) -> None:
        """Send what waits, until the event is set."""
        with self._outside.warehouse.session():
            while not stopped.is_set():
                message = find_message(self._use_case, self._outside, self._most)
                if message is None or message.wait_seconds > 0:
                    stopped.wait(_LOOK_SECONDS if message is None else min(message.wait_seconds, _LOOK_SECONDS))
                else:
                    self._send(message)

    def _send(self, message: AnswerMessage) -> None:
        reply = self._webhook.send(message.message_id, make_document(self._use_case, message.answers))

        def settle() -> None:
            with self._outside.warehouse.transaction() as at:
                self._settle(at, message, reply)

        self._outside.warehouse.retry_transaction(settle)
        if reply.outcome is not DeliveryOutcome.DELIVERED:
            logger.warning("%s: %s: %s", self._use_case.name, message.message_id, reply.problem)
            self._outside.alerts.flush()

    def _settle(self, at: cursor, message: AnswerMessage, reply: DeliveryReply) -> None:
        """What became of a message, and the word about it, in one transaction."""
        match reply.outcome:
            case DeliveryOutcome.DELIVERED:
                mark_delivered(at, message)
                self._outside.alerts.resolve(self._fingerprint("failing"), at)
                if not count_undeliverable(at, self._use_case):
                    self._outside.alerts.resolve(self._fingerprint("refused"), at)
            case DeliveryOutcome.FAILED:
                pause = choose_pause(message.attempts + 1, reply.retry_after_seconds)
                mark_failed(at, message, reply.problem, pause)
                if message.attempts + 1 >= _TOLD_ATTEMPTS or pause >= _TOLD_PAUSE_SECONDS:
                    self._tell(at, "failing", "the webhook does not take answers", _explain_failure(reply))
            case DeliveryOutcome.REFUSED:
                mark_refused(at, message, reply.problem)
                self._outside.alerts.resolve(self._fingerprint("failing"), at)  # it answers
                self._tell(at, "refused", "the webhook refuses answers", _explain_refusal(self._use_case, reply))

    def _tell(self, at: cursor, what: str, title: str, body: str) -> None:
        name = self._use_case.name
        self._outside.alerts.record(
            at,
            tier="warning",
            use_case=name,
            fingerprint=self._fingerprint(what),
            title=f"{name}: {title}",
            body=body,
        )

    def _fingerprint(self, what: str) -> str:
        return f"{self._use_case.name}.webhook.{what}"


# Without the receiver's own words, which may differ each time: an alert with news is sent again.
def _explain_failure(reply: DeliveryReply) -> str:
    said = "it does not answer" if reply.status is None else f"it answers {reply.status}"
    return f"{said}; see `problem` in answer_deliveries. Answers are kept, and sent in their order when it is back"


def _explain_refusal(use_case: UseCase, reply: DeliveryReply) -> str:
    return (
        f"it answers {reply.status}; see `problem` of those in answer_deliveries whose status is undeliverable. Others"
        f" go on; once it is mended, have these sent again: python -m tasks.stream.retry_deliveries {use_case.name}"
    )
