"""The assets by which one DAG's work wakes the next."""

from typing import Any

from airflow.sdk import Asset

from pipeline.spec import UseCase


def clean_data(use_case: UseCase) -> Asset:
    """Woken when a partition of the source was landed and validated."""
    return Asset(f"{use_case.name}.clean")


def features(use_case: UseCase) -> Asset:
    """Woken when there is a new version of the feature dataset."""
    return Asset(f"{use_case.name}.features")


def scores(use_case: UseCase) -> Asset:
    """Woken when partitions were scored."""
    return Asset(f"{use_case.name}.scores")


def wake(outlet_events: Any, asset: Asset, key: str) -> None:
    """Attach a partition key to this run's event, without which (a run started by hand has none) nobody is woken."""
    outlet_events[asset].add_partitions(key)
