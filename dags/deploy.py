"""Bring the champion to the online server, in stages each of which may turn it away.

**Steps.** `deploy` packages the version and registers it beside the one that answers; asks it real rows, which must be
answered as in batch; mirrors requests to it; gives it a small share of the entities; and then everyone. Each stage
waits for a number of requests. Without them it holds: the version leaves, the old one goes on answering, and a warning
says so. What goes wrong is reverted by itself.

**Started by** `train`, which calls the same step; by `reconcile`, for a champion that is not at the server and
was not turned away there; or by hand with the form.

**To resume** clear the failed task, or run it again: it goes on at the stage it had reached.
"""

from typing import Any

from airflow.sdk import DAG, Param, task

from orchestration.defaults import dag_args, declared, reach_outside, rollout_time
from orchestration.parameters import read_actor
from pipeline.spec import UseCase


def make_deploy_dag(use_case: UseCase) -> DAG:
    """`deploy`."""
    params = {
        "version": Param(
            None,
            type=["null", "string"],
            pattern=r"^\d+$",
            title="Version",
            description="A model version that was champion once; empty: the champion.",
        ),
        "reason": Param("left over", type="string", minLength=3, title="Reason", description="For the ledger."),
        "again": Param(
            default=False,
            type="boolean",
            title="Again",
            description="Also where this champion was held, refused or reverted before.",
        ),
    }
    with DAG(**dag_args(use_case, "deploy", __doc__), schedule=None, params=params) as dag:

        @task(task_id="deploy", execution_timeout=rollout_time(use_case))
        def bring(params: Any = None, dag_run: Any = None) -> str:
            from tasks.deploy import deploy as step

            return step.start_deployment(
                use_case,
                reach_outside(),
                request_id=dag_run.run_id,  # makes a retry of this task the same deployment
                actor=read_actor(dag_run),
                reason=params["reason"],
                version=params["version"],
                again=params["again"],
            )

        bring()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_deploy"] = make_deploy_dag(declared_use_case)
