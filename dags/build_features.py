"""Bring a use case's feature dataset up to date with its clean data.

**Steps.** `build` finds every partition whose inputs changed since the last version (new, late or corrected data),
rebuilds exactly those, records the new version and refreshes the outcomes. With nothing to do it ends as skipped, and
nothing downstream runs. Otherwise scoring is woken. Where there is an endpoint, `refresh_online` then brings the online
store to the latest version, also when only the store was behind.

**Started by** ingest and by quarantine replays, once a partition, by `reconcile`, or by hand. Which event
started a run does not matter: every run does all pending work. So a backfill leaves runs in the queue that find nothing
to do: one at a time they end as skipped, within seconds.

**To resume** run it again. The same clean data gives the same version.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from orchestration.assets import clean_data, features, wake
from orchestration.defaults import dag_args, declared, reach_outside
from pipeline.handoffs import Snapshot
from pipeline.spec import UseCase


def make_build_features_dag(use_case: UseCase) -> DAG:
    """`build -> refresh_online`, after clean data."""
    outlet = features(use_case)
    with DAG(
        **dag_args(use_case, "build_features", __doc__), schedule=PartitionedAssetTimetable(assets=clean_data(use_case))
    ) as dag:

        @task(execution_timeout=timedelta(hours=4), pool="dvc", outlets=[outlet])
        def build(outlet_events: Any = None) -> Snapshot:
            from tasks.build_features import build as step

            snapshot = (
                step.build_snapshot(use_case, reach_outside())
                if step.pending_partitions(use_case, reach_outside())
                else None
            )
            if snapshot is None:
                raise AirflowSkipException("every partition's features are up to date")
            wake(outlet_events, outlet, f"{snapshot.end:%Y-%m-%d}")
            return snapshot

        @task(execution_timeout=timedelta(hours=1), trigger_rule="none_failed")
        def refresh_online() -> str:
            from tasks.build_features import online_features

            snapshot = online_features.find_unreached_snapshot(use_case, reach_outside())
            if snapshot is None:
                raise AirflowSkipException("the online store is up to date, or there is no endpoint")
            online_features.refresh_store(use_case, snapshot, reach_outside())
            return snapshot.version

        build() >> refresh_online()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_build_features"] = make_build_features_dag(declared_use_case)
