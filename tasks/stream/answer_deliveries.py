"""Answers on their way to a webhook: which are next, and what became of them. What is asked here is in one table.

An answer is in one message for good, so that a message that is sent again is the same message; the receiver may have
taken it, and not have come to say so.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import cursor

from adapters.connect import Outside
from pipeline.spec import UseCase

_NEXT = """
select message_id, attempts, extract(epoch from greatest(next_at - now(), interval '0'))::float8 as wait_seconds
from answer_deliveries where use_case = %s and status = 'waiting' order by number limit 1"""
_ASSIGN = """
with next as (
    select use_case, entity_key, event_time from answer_deliveries
    where use_case = %s and status = 'waiting' and message_id is null order by number limit %s for update
)
update answer_deliveries d set message_id = %s from next
where (d.use_case, d.entity_key, d.event_time) = (next.use_case, next.entity_key, next.event_time)"""
_ANSWERS = """
select a.* from answer_deliveries d join answers_in_time a using (use_case, entity_key, event_time)
where d.message_id = %s and d.status <> 'delivered' order by d.number"""
_DELIVERED = """
update answer_deliveries set status = 'delivered', delivered_at = now(), problem = null
where message_id = %s and status <> 'delivered'"""
_FAILED = """
update answer_deliveries set attempts = attempts + 1, next_at = now() + make_interval(secs => %s), problem = %s
where message_id = %s and status = 'waiting'"""
_REFUSED = """
update answer_deliveries set attempts = attempts + 1, status = 'undeliverable', problem = %s
where message_id = %s and status = 'waiting'"""
_RELEASE = """
update answer_deliveries set status = 'waiting', attempts = 0, next_at = now()
where use_case = %s and status <> 'delivered' and message_id is not null"""
_UNDELIVERABLE = """
select count(*) as answers from answer_deliveries where use_case = %s and status = 'undeliverable'"""


@dataclass(frozen=True, kw_only=True)
class AnswerMessage:
    """The request that is sent next, with the answers in it; not before `wait_seconds` have passed."""

    message_id: str
    attempts: int  # that failed already
    wait_seconds: float
    answers: Sequence[Mapping[str, Any]]  # rows of `answers_in_time`


def find_message(use_case: UseCase, outside: Outside, most: int) -> AnswerMessage | None:
    """What is next on its way, made of at most so many answers where it is new; None: nothing is."""
    rows = outside.warehouse.query(_NEXT, (use_case.name,))
    if not rows:
        return None
    [row] = rows
    if row["message_id"] is None:
        outside.warehouse.execute(_ASSIGN, (use_case.name, most, f"msg_{uuid.uuid4().hex}"))
        return find_message(use_case, outside, most)
    return AnswerMessage(
        message_id=row["message_id"],
        attempts=row["attempts"],
        wait_seconds=row["wait_seconds"],
        answers=outside.warehouse.query(_ANSWERS, (row["message_id"],)) if row["wait_seconds"] == 0 else (),
    )


def mark_delivered(at: cursor, message: AnswerMessage) -> None:
    """The receiver has it; in the caller's transaction."""
    at.execute(_DELIVERED, (message.message_id,))


def mark_failed(at: cursor, message: AnswerMessage, problem: str, pause_seconds: float) -> None:
    """It is sent again after this pause, and those behind it wait; in the caller's transaction."""
    at.execute(_FAILED, (pause_seconds, problem, message.message_id))


def mark_refused(at: cursor, message: AnswerMessage, problem: str) -> None:
    """It is kept, and those behind it go on; in the caller's transaction."""
    at.execute(_REFUSED, (problem, message.message_id))


def count_undeliverable(at: cursor, use_case: UseCase) -> int:
    """The answers that the receiver refused, and that nobody had tried again since."""
    at.execute(_UNDELIVERABLE, (use_case.name,))
    [(count,)] = at.fetchall()
    return int(count)


def release_deliveries(use_case: UseCase, outside: Outside) -> int:
    """Have everything that failed or was refused tried again at once, oldest first; how many answers that is."""
    with outside.warehouse.transaction() as at:
        at.execute(_RELEASE, (use_case.name,))
        return int(at.rowcount)
