"""Why an answer is degraded, as answers and the warehouse have it. Imports nothing: tasks compare stored answers."""

from enum import StrEnum


class DegradedReason(StrEnum):
    """The reasons that serving itself adds; what a feature definition misses has a text of its own (`absent`).

    Members with a placeholder are formats.
    """

    STORE_SILENT = "feature store did not answer"
    HISTORY_STALE = "history is {age_hours:.1f} hours old, older than {limit_hours:g} hours"
