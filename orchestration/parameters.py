"""What a run is about: its partition, its data time, and who started it, from its key, its parameters and its user."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.partitions import Interval
from pipeline.spec import UseCase

MOMENT = r"^\d{4}-\d{2}-\d{2}(T00:00:00(Z|\+00:00))?$"  # an `as_of` parameter: midnight UTC of a day


def read_partition(use_case: UseCase, partition_key: str | None, params: Mapping[str, Any]) -> Interval:
    """The partition a run is about: its partition key, else its `partition` parameter."""
    key = partition_key or params.get("partition")
    if not key:
        raise ValueError(f"name a partition: the day it starts, such as {use_case.source.first_partition}")
    return use_case.grid.partition(key)


def read_moment(use_case: UseCase, as_of: str | None, default: datetime | None) -> datetime:
    """The data time a run is asked for: its `as_of` parameter (a day on which a partition starts), else the default."""
    if as_of:
        return use_case.grid.partition(as_of).start
    if default is None:
        raise ValueError(f"{use_case.name} has no features yet: run {use_case.name}.ingest first")
    return default


def read_actor(dag_run: Any) -> str:
    """Who started a run: the user's name in Airflow, else the run itself."""
    return str(dag_run.triggering_user_name or dag_run.run_id)
