"""Score every feature partition with the champion that was in force for it.

**Steps.** `score` finds the partitions whose (features, champion) were not scored yet, predicts and writes them, each
in one transaction. With nothing to do, or before the first champion, it ends as skipped. Otherwise monitoring is woken.

**Started by** a new version of the features, by the reconcile floor, or by hand. Every run does all pending work.

**To resume** run it again: a prediction's key is (use case, entity, event time, model version), so nothing is doubled.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, PartitionedAssetTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from pipeline.handoffs import Scores
from pipeline.orchestration import dag_args, declared, features, scores, wake
from pipeline.spec import UseCase


def score(use_case: UseCase) -> DAG:
    """`score`, after features."""
    outlet = scores(use_case)
    dag = DAG(**dag_args(use_case, "score", __doc__), schedule=PartitionedAssetTimetable(assets=features(use_case)))

    @task(task_id="score", execution_timeout=timedelta(hours=4), outlets=[outlet])
    def score_pending(outlet_events: Any = None) -> list[Scores]:
        from adapters.connect import outside
        from tasks import score as step

        scored = step.score(use_case, outside()) if step.pending(use_case, outside()) else []
        if not scored:
            raise AirflowSkipException("every partition with a champion is scored")
        wake(outlet_events, outlet, f"{max(s.partition_start for s in scored):%Y-%m-%d}")
        return scored

    with dag:
        score_pending()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_score"] = score(declared_use_case)
