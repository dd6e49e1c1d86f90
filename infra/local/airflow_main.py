"""What runs inside Airflow's processes: the set-up of its database, and its servers, loaded while that goes on."""

import importlib
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_fixed

MIGRATION_SECONDS = 170
# Loading takes longer than making the tables: each server loads its heavy modules first and waits afterwards.
_API = "airflow.api_fastapi"
HEAVY: Mapping[str, tuple[str, ...]] = {
    "api-server": (f"{_API}.core_api.routes.public", f"{_API}.core_api.routes.ui", f"{_API}.execution_api.routes"),
    "scheduler": ("airflow.jobs.scheduler_job_runner",),
    "dag-processor": ("airflow.dag_processing.manager",),
    "triggerer": ("airflow.jobs.triggerer_job_runner",),
}
# An answer is asked for now, and rests on the stream; what tasks compute may take a little longer.
TASK_NICENESS = "WINDSOCK_TASK_NICENESS"  # of the processes that run tasks: from 0, as any process, to 19
_USUAL_NICENESS = 10
SESSION_NICENESS = Path("/proc/self/autogroup")  # where Linux shares the processor out by session, as on most desktops


def import_airflow(module: str) -> Any:
    """A module of Airflow: importing one takes seconds, so each process imports what it needs and no more."""
    return importlib.import_module(module)


def set_up_database() -> None:
    """Make or migrate the tables, and the pools that DAGs name. Changes nothing when all is there."""
    import_airflow("airflow.utils.db").upgradedb()
    pool = import_airflow("airflow.models.pool").Pool
    for name, (slots, why) in import_airflow("orchestration.defaults").POOLS.items():
        if pool.get_pool(name) is None:  # somebody may have given it more slots
            pool.create_or_update_pool(name, slots, why, include_deferred=False)


def run_server(name: str, options: list[str]) -> None:
    """Run one of Airflow's servers by its own command line, once the tables are there."""
    for module in HEAVY[name]:
        import_airflow(module)
    import_airflow("airflow.utils.db").check_migrations(MIGRATION_SECONDS)
    if name == "scheduler":
        niceness = int(os.environ.get(TASK_NICENESS) or _USUAL_NICENESS)
        os.register_at_fork(after_in_child=partial(yield_processor, niceness, os.getpid()))
    sys.argv = ["airflow", name, *options]
    import_airflow("airflow.__main__").main()


def yield_processor(niceness: int, parent: int) -> None:
    """Let others go first, in a process that `parent` itself has forked: a worker, and with it the tasks it runs.

    In a session of its own, for beside other sessions a process's own niceness may say nothing.
    """
    if not niceness or os.getppid() != parent:
        return
    os.setsid()
    os.nice(niceness)
    if SESSION_NICENESS.exists():
        try:
            _write_niceness(str(niceness))
        except OSError as error:  # a courtesy: what runs here goes on without it
            print(f"{SESSION_NICENESS} cannot be written ({error}): tasks compete with what answers", flush=True)


@retry(retry=retry_if_exception_type(BlockingIOError), wait=wait_fixed(0.2), stop=stop_after_attempt(25), reraise=True)
def _write_niceness(niceness: str) -> None:
    """Of this session; the kernel takes ten a second, of all of them together."""
    SESSION_NICENESS.write_text(niceness)


if __name__ == "__main__":
    if sys.argv[1] == "set-up":
        set_up_database()
    else:
        run_server(sys.argv[1], sys.argv[2:])
