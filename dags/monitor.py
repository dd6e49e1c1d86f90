"""Measure drift and performance of every scored partition and decide what follows: ignore, alert, retrain or block.

**Steps.** `monitor` takes the scored partitions without a decision, oldest first, up to the first that is still to be
scored: data drift against thresholds calibrated on the champion's own training data, prediction drift, performance on
the labels that have matured, what is expected before the others come, triage, decision. Judged is what was answered in
time, where that is enough of the events; the same events restated stand beside it, in `served_performance`. A decision
to retrain is picked up by `retrain`. Where it asks for a recalibration, the version whose answers are right on average
is made and put in force before the next partition is looked at, and `deploy` brings it to the server. With nothing to
do it ends as skipped. `measure_online` joins what was answered online with outcomes and batch scores, where there is an
endpoint. `compare_served` compares the features of answers in time with batch's, one by one, and proves why they
differ; what has no cause is an alert. Last, `draw_reports` draws the drift report of each decision.

**Started by** new scores, by `reconcile`, or by hand. Every run does all pending work. Two may be under way, so that no
decision waits until the answers before it are compared; of each task one runs at a time.

**To resume** run it again: there is one decision per use case and data time.
"""

from datetime import timedelta

from airflow.sdk import DAG, PartitionedAssetTimetable, task
from airflow.sdk.exceptions import AirflowSkipException

from orchestration.assets import scores
from orchestration.defaults import dag_args, declared, default_args, reach_outside, rollout_time
from pipeline.handoffs import Drift
from pipeline.spec import UseCase


def make_monitor_dag(use_case: UseCase) -> DAG:
    """`monitor -> deploy` and `monitor -> measure_online -> compare_served -> draw_reports`, after scores."""
    schedule = PartitionedAssetTimetable(assets=scores(use_case))
    limits = {"max_active_runs": 2, "default_args": default_args(use_case.owner) | {"max_active_tis_per_dag": 1}}
    with DAG(**dag_args(use_case, "monitor", __doc__) | limits, schedule=schedule) as dag:

        @task(task_id="monitor", execution_timeout=timedelta(hours=2))
        def decide_partitions() -> list[Drift]:
            from tasks.monitor import monitor

            is_due = monitor.is_due(use_case, reach_outside())
            decided = monitor.monitor_partitions(use_case, reach_outside()) if is_due else []
            if not decided:
                raise AirflowSkipException("every partition up to the first unscored one has its decision")
            return decided

        @task(task_id="deploy", execution_timeout=rollout_time(use_case), trigger_rule="none_failed")
        def deploy_recalibration() -> str:
            from tasks.deploy import deploy
            from tasks.promote import recalibrate

            if (release := recalibrate.find_release_in_force(use_case, reach_outside())) is None:
                raise AirflowSkipException("the champion is as it was trained")
            return deploy.deploy_release(use_case, release, reach_outside())

        @task(task_id="measure_online", execution_timeout=timedelta(hours=1), trigger_rule="none_failed")
        def measure_online_answers() -> int:
            from tasks.monitor import online_quality

            if use_case.endpoint is None:
                raise AirflowSkipException("nothing answers online")
            return len(online_quality.measure_online_quality(use_case, reach_outside()))

        @task(task_id="compare_served", execution_timeout=timedelta(hours=2), trigger_rule="none_failed")
        def compare_served_answers() -> int:
            from tasks.monitor.feature_ledger import ledger

            if use_case.endpoint is None or use_case.endpoint.answers is None:
                raise AirflowSkipException("no event is answered by itself")
            return len(ledger.compare_served_features(use_case, reach_outside()))

        @task(task_id="draw_reports", execution_timeout=timedelta(minutes=20), retries=1, trigger_rule="none_failed")
        def draw_drift_reports() -> int:
            from tasks.monitor import drift_report

            return drift_report.draw_reports(use_case, reach_outside())

        decided = decide_partitions()
        decided >> deploy_recalibration()
        decided >> measure_online_answers() >> compare_served_answers() >> draw_drift_reports()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_monitor"] = make_monitor_dag(declared_use_case)
