"""Waiting for the database in the triggerer, without a worker slot."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

Question = Callable[[str], Any]  # a use case's name -> the answer (JSON), None: not yet


def _find_retrain(use_case: str) -> dict[str, str] | None:
    from tasks.pending_work import find_retrain

    return find_retrain(use_case)


# What may be waited for, by the key that a trigger carries to the triggerer's process.
QUESTIONS: Mapping[str, Question] = {"retrain": _find_retrain}


class Until(BaseTrigger):
    """Waits in the triggerer until one of QUESTIONS is answered about a use case, and hands its answer (JSON) on."""

    def __init__(self, *, question: str, use_case: str, every_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.question, self.use_case, self.every_seconds = question, use_case, every_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer builds this again."""
        arguments = {"question": self.question, "use_case": self.use_case, "every_seconds": self.every_seconds}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask, in a thread, since the database driver blocks; wait; ask again."""
        ask = QUESTIONS[self.question]
        while (answer := await asyncio.to_thread(ask, self.use_case)) is None:
            await asyncio.sleep(self.every_seconds)
        yield TriggerEvent(answer)  # type: ignore[no-untyped-call]


class WaitUntil(BaseOperator):
    """Defers at once to `Until`: no worker slot is held while waiting. Returns the answer."""

    def __init__(self, *, question: str, use_case: str, every_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.question, self.use_case, self.every_seconds = question, use_case, every_seconds

    def execute(self, context: Any) -> None:  # noqa: ARG002
        """Hand over to the triggerer."""
        trigger = Until(question=self.question, use_case=self.use_case, every_seconds=self.every_seconds)
        self.defer(trigger=trigger, method_name="answered")

    def answered(self, context: Any, event: Any) -> Any:  # noqa: ARG002
        """The trigger's answer becomes this task's."""
        return event
