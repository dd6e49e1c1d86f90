"""Waiting for work in the database: the triggerer polls for it, without a worker slot."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

Poll = Callable[[str], Any]  # a use case's name -> what there is (JSON), None: nothing yet


def _find_retrain(use_case: str) -> dict[str, str] | None:
    from adapters.connect import outside
    from tasks.monitor.retrain import find_retrain

    return find_retrain(use_case, outside())


# What can be waited for, by the key that a trigger carries to the triggerer's process.
POLLS: Mapping[str, Poll] = {"retrain": _find_retrain}


class PollTrigger(BaseTrigger):
    """Calls one of POLLS about a use case until it returns something, and hands that (JSON) on."""

    def __init__(self, *, poll: str, use_case: str, every_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.poll, self.use_case, self.every_seconds = poll, use_case, every_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes this trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {
            "poll": self.poll,
            "use_case": self.use_case,
            "every_seconds": self.every_seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll in a thread, since the database driver blocks."""
        while (result := await asyncio.to_thread(POLLS[self.poll], self.use_case)) is None:
            await asyncio.sleep(self.every_seconds)
        yield TriggerEvent(result)  # type: ignore[no-untyped-call]


class PollOperator(BaseOperator):
    """Defers at once to a `PollTrigger`: no worker slot is held while waiting. Returns what the poll returned."""

    def __init__(self, *, poll: str, use_case: str, every_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.poll, self.use_case, self.every_seconds = poll, use_case, every_seconds

    def execute(self, context: Any) -> None:  # noqa: ARG002
        """Hand over to the triggerer."""
        self.defer(
            trigger=PollTrigger(poll=self.poll, use_case=self.use_case, every_seconds=self.every_seconds),
            method_name="answered",
        )

    def answered(self, context: Any, event: Any) -> Any:  # noqa: ARG002
        """Return the trigger's result. Airflow keeps this method's name with every task that waits: do not rename."""
        return event
