"""Answer each decision to retrain with exactly one training.

**Steps.** `await_decision` waits, in the triggerer and so without a slot, until a decision to retrain is waiting in the
database; `claim` takes it; `start_train` starts the training under a run id made from the decision, so a second start
is no start, and waits for its end; `close` sees to it that the decision is closed even where the training was killed.

**Started by** itself: the next run begins when one ends.

**To resume** there is nothing to do: a run that was killed is followed by one that takes up the same decision. To stop
retraining, pause this DAG; decisions wait.
"""

from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import DAG, task
from airflow.sdk.exceptions import AirflowSkipException

from orchestration.defaults import dag_args, declared, reach_outside
from orchestration.sensors import PollOperator
from pipeline.handoffs import retrain_run_id
from pipeline.partitions import utc
from pipeline.spec import UseCase

LONGEST_TRAINING_SECONDS = 48 * 3600.0


def make_retrain_dag(use_case: UseCase) -> DAG:
    """`await_decision -> claim -> start_train -> close`."""
    with DAG(
        **dag_args(use_case, "retrain", __doc__),
        schedule="@continuous",
        start_date=utc(use_case.source.first_partition),  # without one it never starts
    ) as dag:

        @task(task_id="claim", execution_timeout=timedelta(minutes=10))
        def claim_decision() -> dict[str, str]:
            from tasks.monitor import retrain

            if (decision := retrain.claim_retrain(use_case, reach_outside())) is None:
                raise AirflowSkipException("the decision was taken up elsewhere")
            return {
                "decision_id": decision["decision_id"],
                "as_of": f"{decision['as_of']:%Y-%m-%d}",
                "reason": "; ".join(decision["reasons"]),
                "challenger": decision["challenger"] or "",
            }

        @task.sensor(
            task_id="close",
            mode="reschedule",
            poke_interval=15,
            timeout=LONGEST_TRAINING_SECONDS,
            trigger_rule="all_done",
        )
        def close_decision(claimed: dict[str, str] | None = None, ti: Any = None) -> bool:
            from tasks.monitor import retrain

            if claimed is None:
                return True
            run_ids = [retrain_run_id(claimed["decision_id"])]
            if ti.get_dr_count(dag_id=f"{use_case.name}.train", run_ids=run_ids, states=["queued", "running"]):
                return False
            # changes nothing where the training closed it
            retrain.finish_retrain(claimed["decision_id"], retrain.TRAINING_FAILED, reach_outside())
            return True

        await_decision = PollOperator(task_id="await_decision", poll="retrain", use_case=use_case.name, every_seconds=2)
        claimed: Any = claim_decision()
        decision = "ti.xcom_pull(task_ids='claim')"
        start = TriggerDagRunOperator(
            task_id="start_train",
            trigger_dag_id=f"{use_case.name}.train",
            trigger_run_id=retrain_run_id(f"{{{{ {decision}['decision_id'] }}}}"),
            conf={key: f"{{{{ {decision}['{key}'] }}}}" for key in ("decision_id", "as_of", "reason", "challenger")},
            skip_when_already_exists=True,
            wait_for_completion=True,
            allowed_states=["success", "failed"],
            failed_states=[],
            deferrable=True,
            poke_interval=2,
        )
        await_decision >> claimed >> start >> close_decision(claimed)
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_retrain"] = make_retrain_dag(declared_use_case)
