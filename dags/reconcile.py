"""The floor under the asset events: work that is pending although nothing is working on it is started.

**Steps.** `find` checks, by a few cheap queries, whether features, scores, monitoring or deployments have something
pending, and leaves out what is running or queued already; `start` starts the rest. Usually there is nothing to start:
this is for an event that was lost, and for a run that failed and was not cleared.

**Started by** the clock, every ten minutes.

**To resume** there is nothing to do: the next run finds the same.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, CronTriggerTimetable, task

from orchestration.defaults import dag_args, declared, reach_outside
from pipeline.spec import UseCase


def make_reconcile_dag(use_case: UseCase) -> DAG:
    """`find -> start`, one start per DAG with pending work."""
    with DAG(
        **dag_args(use_case, "reconcile", __doc__), schedule=CronTriggerTimetable("*/10 * * * *", timezone="UTC")
    ) as dag:

        @task(task_id="find", execution_timeout=timedelta(minutes=10))
        def find_idle_dags(ti: Any = None) -> list[str]:
            from tasks import pending_work

            dag_ids = [f"{use_case.name}.{verb}" for verb in pending_work.find_pending_verbs(use_case, reach_outside())]
            return [dag_id for dag_id in dag_ids if not ti.get_dr_count(dag_id=dag_id, states=["queued", "running"])]

        TriggerDagRunOperator.partial(task_id="start", execution_timeout=timedelta(minutes=5)).expand(
            trigger_dag_id=find_idle_dags()
        )
    return dag


globals().update({f"{use_case.name}_reconcile": make_reconcile_dag(use_case) for use_case in declared()})
