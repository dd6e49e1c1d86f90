"""Bounded retry, with capped back-off, of database work that failed for reasons that pass."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import psycopg2
import psycopg2.errors

from adapters.errors import Refused

_FIRST_WAIT_SECONDS = 0.2
_LONGEST_WAIT_SECONDS = 5.0
# psycopg2 gives no SQLSTATE for a refused connection, only the server's words.
_REFUSALS = ("authentication failed", "does not exist", "pg_hba.conf", "permission denied for database", "no password")

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class GaveUp(psycopg2.OperationalError):
    """The database stayed away for as long as we were willing to wait; the task's own retry comes next."""


def passes(error: psycopg2.Error) -> bool:
    """Whether the same work may succeed if tried again: lost connection, deadlock, serialization, no slot free."""
    if isinstance(error, GaveUp | psycopg2.errors.QueryCanceled):
        return False
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)


def is_refusal(error: psycopg2.Error) -> bool:
    """Whether a failed connection says that it will never be let in."""
    return error.pgcode is None and any(words in str(error) for words in _REFUSALS)


def retrying(work: Callable[[], Result], *, what: str, patience_seconds: float) -> Result:
    """The result of `work`, which must be one whole transaction, tried again while its failures pass.

    Raises:
        Refused: the credentials or the database name are wrong.
        GaveUp: a `psycopg2.OperationalError`, after about `patience_seconds`.
    """
    deadline, wait_seconds, attempts = time.monotonic() + patience_seconds, _FIRST_WAIT_SECONDS, 0
    while True:
        attempts += 1
        try:
            return work()
        except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
            if is_refusal(error):
                raise Refused(f"{what} refused us, check its DSN in the environment: {str(error).strip()}") from error
            if not passes(error):
                raise
            if time.monotonic() + wait_seconds > deadline:
                raise GaveUp(f"{what}: gave up after {attempts} attempts: {str(error).strip()}") from error
            logger.warning("%s: %s; again in %.1f s", what, str(error).strip(), wait_seconds)
        time.sleep(wait_seconds)
        wait_seconds = min(wait_seconds * 2, _LONGEST_WAIT_SECONDS)
