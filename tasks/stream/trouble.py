"""What is in the way of a stream or of its answers, told while it lasts."""

import logging

import psycopg2

from adapters.connect import Outside
from pipeline.spec import UseCase

logger = logging.getLogger(__name__)


def report_trouble(
    use_case: UseCase, outside: Outside, fingerprint: str, *, what: str, problem: str, meanwhile: str
) -> None:
    """Raise a warning that `what` is the matter, and log it; where the warehouse itself is away, the log has to do."""
    logger.warning("%s: %s", use_case.name, problem)
    try:
        outside.alerts.raise_alert(
            "warning",
            use_case.name,
            fingerprint,
            f"{use_case.name}: {what}",
            f"{problem}. It is tried again; {meanwhile}",
        )
    except psycopg2.Error as error:
        logger.warning("%s: nor can it be told: %s", use_case.name, error)
