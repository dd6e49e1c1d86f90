"""Put the previous champion back, in the registry and on the server.

**Steps.** `rollback` makes the previous champion the champion again, under the database lock, and writes who asked and
why into the ledger; `deploy` routes everyone to it at once, where there is an endpoint, and proves it by a request. A
deployment under way ends as superseded.

**Started by** hand, with a reason. The name in the ledger is that of the Airflow user who started the run.

**To resume** clear the failed task. Starting a second run would roll back once more: look at the ledger first.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from orchestration.defaults import dag_args, declared, reach_outside
from orchestration.parameters import MOMENT, read_actor, read_moment
from pipeline.handoffs import Release
from pipeline.spec import UseCase


def make_rollback_dag(use_case: UseCase) -> DAG:
    """`rollback -> deploy`."""
    params = {
        "reason": Param(type="string", minLength=3, title="Reason", description="Why; it goes into the ledger."),
        "as_of": Param(
            None,
            type=["null", "string"],
            pattern=MOMENT,
            title="From",
            description="Data time from which it holds, a partition's start; empty: the end of the latest features.",
        ),
    }
    with DAG(**dag_args(use_case, "rollback", __doc__), schedule=None, params=params) as dag:

        @task(task_id="rollback", execution_timeout=timedelta(minutes=10))
        def put_back(params: Any = None, dag_run: Any = None) -> Release:
            from tasks.build_features import dataset
            from tasks.promote import promote

            snapshot = dataset.latest_snapshot(use_case, reach_outside())
            as_of = read_moment(use_case, params["as_of"], snapshot.end if snapshot else None)
            return promote.roll_back_champion(
                use_case,
                reach_outside(),
                actor=read_actor(dag_run),
                reason=params["reason"],
                as_of=as_of,
                request_id=dag_run.run_id,  # makes a retry of this task the same rollback
            )

        @task(execution_timeout=timedelta(minutes=30))
        def deploy(release: Release) -> str:
            from tasks.deploy import deploy as step

            return step.deploy_release(use_case, release, reach_outside())

        deploy(put_back())  # type: ignore[arg-type]  # an XComArg stands for the Release
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_rollback"] = make_rollback_dag(declared_use_case)
