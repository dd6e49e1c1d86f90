"""What a query of the exporter is: SQL whose columns are labels and, under their own names, metrics."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricQuery:
    """Rows of labels and values: a column `x` is the metric `windsock_x`, a counter if it ends in `_total`."""

    metrics: Mapping[str, str]  # column -> what it says, and its unit; a null is no sample
    labels: tuple[str, ...]
    sql: str
