"""Score every feature partition with the champion that was in force for it.

**Steps.** `find` lists the partitions whose features the champion in force has not scored yet; `score` predicts and
writes them, each in one transaction. It is mapped: after a backfill the partitions are divided into
shares of several each, which are scored side by side, over as many workers as there are. With nothing to do, or before
the first champion, it is skipped. Otherwise each share wakes monitoring.

**Started by** a new version of the features, by `reconcile`, or by hand. Every run does all pending work.

**To resume** run it again, or clear the share that failed: a prediction's key is (use case, model version, event time,
entity), so nothing is doubled.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from orchestration.assets import features, scores, wake
from orchestration.defaults import dag_args, declared, reach_outside
from pipeline.handoffs import Scores
from pipeline.spec import UseCase


def make_score_dag(use_case: UseCase) -> DAG:
    """`find -> score` (mapped), after features."""
    outlet = scores(use_case)
    with DAG(
        **dag_args(use_case, "score", __doc__), schedule=PartitionedAssetTimetable(assets=features(use_case))
    ) as dag:

        @task(task_id="find", execution_timeout=timedelta(minutes=10))
        def find_shares() -> list[list[str]]:
            from tasks import score

            return score.plan_shares(use_case, reach_outside())

        @task(task_id="score", execution_timeout=timedelta(hours=4), outlets=[outlet])
        def score_share(partitions: list[str], outlet_events: Any = None) -> list[Scores]:
            from tasks import score

            scored = score.score_partitions(use_case, reach_outside(), partitions)
            if not scored:
                raise AirflowSkipException("another run has scored these partitions meanwhile")
            wake(outlet_events, outlet, f"{max(s.partition_start for s in scored):%Y-%m-%d}")
            return scored

        score_share.expand(partitions=find_shares())
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_score"] = make_score_dag(declared_use_case)
