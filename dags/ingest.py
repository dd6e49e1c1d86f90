"""Land one partition of a use case's source, immutably, and let only good data through.

**Steps.** `land` copies the partition's rows of every source table into content-addressed Parquet; `validate` checks
them against the expectations, sets the offending rows aside in the quarantine and writes the clean tables. Then the
features are woken.

**Started by** the schedule (for the partition that just ended), a backfill over a range of partition dates, or by hand
for one partition.

**To resume** run the partition again: the same source gives the same objects and nothing is doubled; a changed source
is a new version beside the old one. A run stopped by bad data (`BadData`) is not retried, and its partition is blocked:
mend the source and run the partition again; nothing else releases it. Rows quarantined from a partition that did become
clean are corrected with `replay_quarantine`.

**Nothing is lost that comes late.** A landing keeps the number of the rows it took and a hash of them. `reconcile`
compares both with the source: of the latest `source.recheck_partitions` partitions after each landing, of all once a
week. What rows came to, changed in or went from is taken again, as is a partition between others that nobody took. A
blocked partition waits for its person.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronPartitionTimetable, Param, task

from orchestration.assets import clean_data, wake
from orchestration.defaults import dag_args, declared, reach_outside
from orchestration.parameters import read_partition
from pipeline.handoffs import Batch
from pipeline.spec import UseCase


def make_ingest_dag(use_case: UseCase) -> DAG:
    """`land -> validate` for one partition."""
    clean = clean_data(use_case)
    # A partition is taken when it has ended: the run at the start of the next one is about this one. No start_date:
    # with one, unpausing the DAG would at once take the latest partition.
    schedule = CronPartitionTimetable(use_case.source.cron, timezone="UTC", run_offset=-1, key_format="%Y-%m-%d")
    params = {
        "partition": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Partition",
            description="The day the partition starts. Not needed where the run has a partition key.",
        )
    }
    ends = use_case.source.last_partition
    limits = {"max_active_runs": 4, "end_date": use_case.grid.partition(str(ends)).end if ends else None}
    with DAG(**dag_args(use_case, "ingest", __doc__) | limits, schedule=schedule, params=params) as dag:

        @task(execution_timeout=timedelta(hours=1))
        def land(partition_key: str | None = None, params: Any = None) -> Batch:
            from tasks.ingest import land as step

            return step.land_partition(use_case, read_partition(use_case, partition_key, params), reach_outside())

        @task(execution_timeout=timedelta(hours=1), outlets=[clean])
        def validate(batch: Batch, outlet_events: Any = None) -> Batch:
            from tasks.ingest import validate as step

            validated = step.validate_batch(use_case, batch, reach_outside())
            wake(outlet_events, clean, f"{batch.partition_start:%Y-%m-%d}")
            return validated

        validate(land())  # type: ignore[arg-type]  # an XComArg stands for the Batch
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_ingest"] = make_ingest_dag(declared_use_case)
