"""Deliver alerts that could not be delivered at once, and once a day tell what was worth knowing.

**Steps.** `alerts.flush` sends every critical and warning alert still waiting, for instance because Slack was down;
`alerts.digest` sends the day's info alerts as one message. Without Slack both write to the log.

**Started by** the clock: every ten minutes and at six in the morning, UTC.

**To resume** there is nothing to do: what was not delivered waits for the next run.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task

from orchestration.defaults import default_args

SCHEDULES = {"flush": "*/10 * * * *", "digest": "0 6 * * *"}


def make_alerts_dag(verb: str, cron: str) -> DAG:
    """One task that delivers, on its schedule."""
    dag = DAG(
        dag_id=f"alerts.{verb}",
        dag_display_name=f"alerts: {verb}",
        description=(__doc__ or "").partition("\n")[0],
        doc_md=__doc__,
        tags=["alerts", verb],
        schedule=CronTriggerTimetable(cron, timezone="UTC"),
        catchup=False,
        max_active_runs=1,
        default_args=default_args("platform"),
    )

    @task(execution_timeout=timedelta(minutes=10))
    def deliver() -> int:
        from adapters.connect import outside

        return outside().alerts.digest() if verb == "digest" else outside().alerts.flush()

    with dag:
        deliver()
    return dag


for declared_verb, declared_cron in SCHEDULES.items():
    globals()[f"alerts_{declared_verb}"] = make_alerts_dag(declared_verb, declared_cron)
