"""Where the data of a partition stands; the values are those in the database."""

from enum import StrEnum


class BatchStatus(StrEnum):
    """Of one table's content of one partition (`batches.status`)."""

    LANDED = "landed"
    BLOCKED = "blocked"
    CLEAN = "clean"


class RowStatus(StrEnum):
    """Of a row that was set aside (`quarantine.status`)."""

    QUARANTINED = "quarantined"
    REPLAYED = "replayed"
