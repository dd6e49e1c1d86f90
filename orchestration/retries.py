"""Which errors are worth another attempt: those of the world are, bad data and broken code are not."""

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

from pipeline.mistakes import is_mistake, list_kinds

RETRIES = 8
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 5, 600


class Retries(RetryPolicy):
    """Bad data and broken code fail at once; everything else is tried again, ever later."""

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,  # noqa: ARG002  # Airflow's signature
        context: Any = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Whether and when to try again."""
        name = list_kinds(exception)[0]
        if is_mistake(exception):
            return RetryDecision.fail(f"{name}: trying again would give the same")
        delay = timedelta(seconds=min(FIRST_DELAY_SECONDS * 2 ** (try_number - 1), LONGEST_DELAY_SECONDS))
        return RetryDecision.retry(delay, f"{name}: again in {delay}")
