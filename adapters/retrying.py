"""The one place that repeats what failed or is not there yet: how often, how long and for which errors."""

import logging
from collections.abc import Callable
from math import inf
from typing import TypeVar

import psycopg2
import psycopg2.errors
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_attempt,
    stop_after_delay,
    stop_any,
    stop_before_delay,
    stop_never,
    wait_exponential,
    wait_fixed,
)

from adapters.errors import Refused

_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
# psycopg2 gives no SQLSTATE for a refused connection, only the server's words.
_REFUSALS = (
    *("authentication failed", "does not exist", "pg_hba.conf", "permission denied for database", "no password"),
    *("permission denied to start WAL sender", "must be superuser or replication role"),  # from 16 on, and before
    "unsupported startup parameter",  # by a pooler, of a setting that it does not know
)

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class GaveUp(psycopg2.OperationalError):
    """The database stayed away for as long as we were willing to wait; the task's own retry comes next."""


def wait_until(condition: Callable[[], Result], *, within_seconds: float, every_seconds: float = 0.1) -> Result:
    """The first true result of `condition`, or its last false one when the time is up; its errors end the wait."""
    return Retrying(
        retry=retry_if_not_result(bool),
        stop=stop_after_delay(within_seconds),
        wait=wait_fixed(every_seconds),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
    )(condition)


def retry_call(
    work: Callable[[], Result],
    *,
    errors: type[Exception] | tuple[type[Exception], ...],
    attempts: int | None = None,
    within_seconds: float = inf,
    pause_seconds: float,
    pause_factor: float = 1.0,
) -> Result:
    """The result of `work`, tried again after these errors; the last one is raised when the attempts or time are up.

    Args:
        work: must bear being run twice.
        errors: those that another attempt may mend; any other is raised at once.
        attempts: at most this many; unlimited if None.
        within_seconds: no attempt begins later than this.
        pause_seconds: before the second attempt.
        pause_factor: each further pause is this many times the one before.
    """
    return Retrying(
        retry=retry_if_exception_type(errors),
        stop=stop_any(
            stop_never if attempts is None else stop_after_attempt(attempts),
            stop_before_delay(within_seconds),
        ),
        wait=wait_exponential(multiplier=pause_seconds, exp_base=pause_factor),
        reraise=True,
    )(work)


def is_transient(error: BaseException) -> bool:
    """Whether the same database work may succeed if repeated: lost connection, deadlock, serialization, no slot."""
    if isinstance(error, GaveUp | psycopg2.errors.QueryCanceled):
        return False
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) and not is_refusal(error)


def is_refusal(error: psycopg2.Error) -> bool:
    """Whether a failed connection says that it will never be let in."""
    return error.pgcode is None and any(words in str(error) for words in _REFUSALS)


def retry_database_work(work: Callable[[], Result], *, what: str, patience_seconds: float) -> Result:
    """The result of `work`, which must be one whole transaction, tried again while its failures are transient.

    Raises:
        Refused: the credentials or the database name are wrong.
        GaveUp: a `psycopg2.OperationalError`, after about `patience_seconds`.
    """
    repeat = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop_before_delay(patience_seconds),
        wait=wait_exponential(multiplier=_FIRST_PAUSE_SECONDS, max=_LONGEST_PAUSE_SECONDS),
        before_sleep=lambda state: _log_retry(what, state),
    )
    try:
        return repeat(work)
    except RetryError as given_up:
        last = given_up.last_attempt
        error = last.exception()
        raise GaveUp(f"{what}: gave up after {last.attempt_number} attempts: {str(error).strip()}") from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        if is_refusal(error):
            raise Refused(f"{what} refused us, check its DSN in the environment: {str(error).strip()}") from error
        raise


def _log_retry(what: str, state: RetryCallState) -> None:
    error = state.outcome and state.outcome.exception()
    logger.warning("%s: %s; again in %.1f s", what, str(error).strip(), state.upcoming_sleep)
