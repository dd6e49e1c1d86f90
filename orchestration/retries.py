"""Which errors are worth another attempt: those of the world are, bad data and broken code are not."""

from datetime import timedelta
from typing import Any

from airflow.sdk import RetryDecision, RetryPolicy

# Errors of the world, not of the data or the code: the same call may well succeed later. By name, so that judging an
# error imports nothing, and before MISTAKES, because some of them are ValueErrors too.
INFRASTRUCTURE = (
    "psycopg2.OperationalError",
    "psycopg2.InterfaceError",
    "botocore.exceptions.",
    "urllib3.exceptions.",
    "requests.exceptions.",
    "mlflow.exceptions.",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
)
# Errors that a second attempt would only repeat: bad data (`BadData` is a ValueError) and broken code.
MISTAKES = (ValueError, TypeError, AssertionError, AttributeError, ImportError, NameError)
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
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(exception).__mro__]
        if isinstance(exception, MISTAKES) and not any(name.startswith(INFRASTRUCTURE) for name in names):
            return RetryDecision.fail(f"{names[0]}: trying again would give the same")
        delay = timedelta(seconds=min(FIRST_DELAY_SECONDS * 2 ** (try_number - 1), LONGEST_DELAY_SECONDS))
        return RetryDecision.retry(delay, f"{names[0]}: again in {delay}")
