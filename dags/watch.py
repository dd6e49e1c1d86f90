"""Look at what answers online, every minute: roll back what a rollback mends, and tell people about the rest.

**Steps.** `watch` reads the gateway's records and the prediction log since the last look: errors, latency, scores
against what their logged features give in batch, degraded answers, answers lost. A version that does badly goes back to
the one before it, once a deployment. It also mends a route or a registration that a kill has left behind.

**Started by** the clock, where the use case has an endpoint.

**To resume** there is nothing to do: the next look begins where the last one ended.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task

from orchestration.defaults import dag_args, declared, reach_outside
from pipeline.spec import UseCase


def make_watch_dag(use_case: UseCase) -> DAG:
    """`watch`, every minute."""
    with DAG(
        **dag_args(use_case, "watch", __doc__),
        schedule=CronTriggerTimetable("* * * * *", timezone="UTC") if use_case.endpoint else None,
    ) as dag:

        @task(task_id="watch", execution_timeout=timedelta(minutes=10))
        def look() -> str:
            from tasks.deploy import watch as step

            return step.watch_online(use_case, reach_outside())

        look()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_watch"] = make_watch_dag(declared_use_case)
