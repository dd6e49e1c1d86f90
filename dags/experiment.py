"""Compare two versions on real requests: a declared share each, looked at every ten minutes, stopped where it harms.

**Steps.** `experiment` does what is asked: `start` gives a version its share beside the stable one, `stop` ends what
runs, `look` (the default) judges what runs by the costs of its decisions, ends it where that is decided, a guardrail is
hit or the versions did not answer the shares that were drawn, and moves the share where Thompson sampling is declared.
With nothing running a look ends as skipped.

**Started by** the clock, every ten minutes where params.yaml declares an experiment, to look; by hand, to start and to
stop.

**To resume** clear the failed task, or wait for the next look: each makes the gateway's route what the tables say.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, task
from airflow.sdk.exceptions import AirflowSkipException

from orchestration.defaults import dag_args, declared, reach_outside
from orchestration.parameters import read_actor
from pipeline.spec import UseCase


def make_experiment_dag(use_case: UseCase) -> DAG:
    """`experiment`, on the clock and by hand."""
    params = {
        "action": Param("look", type="string", enum=["look", "start", "stop"], title="Action"),
        "version": Param(
            None,
            type=["null", "string"],
            pattern=r"^[1-9]\d*$",
            title="Treatment",
            description="To start: the registry version that is compared with the stable one.",
        ),
        "reason": Param(
            None, type=["null", "string"], title="Reason", description="To stop: why; it goes into the ledger."
        ),
    }
    with DAG(
        **dag_args(use_case, "experiment", __doc__),
        schedule=CronTriggerTimetable("*/10 * * * *", timezone="UTC") if use_case.experiment else None,
        params=params,
    ) as dag:

        @task(task_id="experiment", execution_timeout=timedelta(minutes=30))
        def act(params: Any = None, dag_run: Any = None) -> str:
            from tasks.deploy.experiment import experiment as step

            who = read_actor(dag_run)
            if params["action"] == "start":
                if not params["version"]:
                    raise ValueError("name the version that is to be the treatment")
                # The run id makes a retry of this task the same experiment.
                return step.start_experiment(
                    use_case, params["version"], reach_outside(), actor=who, request_id=dag_run.run_id
                )
            said = (
                step.stop_experiment(use_case, reach_outside(), actor=who, reason=params["reason"] or "")
                if params["action"] == "stop"
                else step.judge_experiment(use_case, reach_outside())
            )
            if said is None:
                raise AirflowSkipException("no experiment is running")
            return said

        act()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_experiment"] = make_experiment_dag(declared_use_case)
