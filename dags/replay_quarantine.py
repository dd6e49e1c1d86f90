"""Give quarantined rows of one table and partition back to the pipeline, corrected.

**Steps.** `replay` validates the corrected rows like any other and, where they pass, writes a new version of the clean
table and marks the rows as replayed, with the name of whoever asked. Then the features are woken and follow.

**Started by** hand: the table, the day its partition starts, and the corrections as a JSON list, one object a row, each
with the `row_number` of the quarantined row and the columns to change.

**To resume** run it again with the same corrections: rows already replayed stay as they are.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, task

from orchestration.assets import clean_data, wake
from orchestration.defaults import dag_args, declared, reach_outside
from orchestration.parameters import read_actor, read_partition
from pipeline.handoffs import Batch
from pipeline.spec import UseCase


def make_replay_quarantine_dag(use_case: UseCase) -> DAG:
    """`replay`."""
    clean = clean_data(use_case)
    params = {
        "table": Param(type="string", enum=sorted(use_case.source.tables), title="Table"),
        "partition": Param(type="string", format="date", title="Partition", description="The day it starts."),
        "corrections": Param(
            type="array",
            items={"type": "object", "required": ["row_number"]},
            minItems=1,
            title="Corrections",
            description='For example [{"row_number": 17, "wind_speed_mph": 10.4}].',
        ),
    }
    with DAG(**dag_args(use_case, "replay_quarantine", __doc__), schedule=None, params=params) as dag:

        @task(execution_timeout=timedelta(hours=1), outlets=[clean])
        def replay(params: Any = None, dag_run: Any = None, outlet_events: Any = None) -> Batch:
            from tasks.ingest.replay import replay_rows

            partition, rows = read_partition(use_case, None, params), list(params["corrections"])
            batch = replay_rows(use_case, params["table"], partition, rows, read_actor(dag_run), reach_outside())
            wake(outlet_events, clean, use_case.grid.key(partition))
            return batch

        replay()
    return dag


for declared_use_case in declared():
    globals()[f"{declared_use_case.name}_replay_quarantine"] = make_replay_quarantine_dag(declared_use_case)
