"""Starts work that is pending although nothing is working on it: for when an asset event was lost, or a run failed.

**Steps.** `find` checks, by a few cheap queries, whether features, scores, monitoring or deployments have something
pending, and leaves out what is running or queued already; `start` starts the rest. It has those partitions ingested,
too, that nobody ever took, and those that rows came to after they were taken. Usually there is nothing to start. `find`
also tells of a stream that stands still, and drops its slot before the source's log fills a disk.

**Started by** the clock, every ten minutes.

**To resume** there is nothing to do: the next run finds the same.
"""

from datetime import UTC, datetime, timedelta
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
        def find_runs_to_start(ti: Any = None) -> list[dict[str, Any]]:
            from tasks import pending_work
            from tasks.ingest import late
            from tasks.stream import lag

            outside, name = reach_outside(), use_case.name

            def is_idle(verb: str) -> bool:
                return not ti.get_dr_count(dag_id=f"{name}.{verb}", states=["queued", "running"])

            lag.judge_stream(use_case, outside)
            verbs = filter(is_idle, pending_work.find_pending_verbs(use_case, outside))
            # While ingest runs, what a backfill has yet to take was not missed.
            keys = late.find_partitions_to_take(use_case, outside, datetime.now(UTC)) if is_idle("ingest") else []
            return [
                *({"trigger_dag_id": f"{name}.{verb}", "conf": {}} for verb in verbs),
                *({"trigger_dag_id": f"{name}.ingest", "conf": {"partition": key}} for key in keys),
            ]

        # Without a data time of its own: an ingest whose source has ended would start no task of a run of today.
        TriggerDagRunOperator.partial(
            task_id="start", execution_timeout=timedelta(minutes=5), logical_date=None
        ).expand_kwargs(find_runs_to_start())
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_reconcile"] = make_reconcile_dag(declared_use_case)
