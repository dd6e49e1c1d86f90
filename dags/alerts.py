"""Deliver alerts that could not be delivered at once, and once a day tell what was worth knowing.

**Steps.** `alerts.flush` sends every critical and warning alert still waiting, for instance because Slack was down;
`alerts.digest` sends the day's info alerts as one message. Without Slack both write to the log.

**Started by** the clock: every ten minutes and at six in the morning, UTC.

**To resume** there is nothing to do: what was not delivered waits for the next run.
"""

from datetime import timedelta

from airflow.sdk import DAG, CronTriggerTimetable, task

from orchestration.defaults import default_args, reach_outside

SCHEDULES = {"flush": "*/10 * * * *", "digest": "0 6 * * *"}


def make_alerts_dag(verb: str, cron: str) -> DAG:
    """One task that delivers, on its schedule."""
    with DAG(
        dag_id=f"alerts.{verb}",
        dag_display_name=f"alerts: {verb}",
        description=(__doc__ or "").partition("\n")[0],
        doc_md=__doc__,
        tags=["alerts", verb],
        schedule=CronTriggerTimetable(cron, timezone="UTC"),
        catchup=False,
        is_paused_upon_creation=False,  # whatever a use case says of its own
        max_active_runs=1,
        default_args=default_args("platform"),
    ) as dag:

        @task(execution_timeout=timedelta(minutes=10))
        def deliver() -> int:
            return reach_outside().alerts.digest() if verb == "digest" else reach_outside().alerts.flush()

        deliver()
    return dag


globals().update({f"alerts_{verb}": make_alerts_dag(verb, cron) for verb, cron in SCHEDULES.items()})
