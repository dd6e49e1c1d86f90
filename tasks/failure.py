"""A task that failed for good becomes an alert."""

from adapters.connect import outside
from tasks.common.errors import BadData


def alert_task_failure(*, dag_id: str, task_id: str, run_id: str, error: BaseException | None, log_url: str) -> None:
    """Raise a critical alert, one per run and task. Bad data has been reported, in more detail, where it was found."""
    if isinstance(error, BadData):
        return
    outside().alerts.raise_alert(
        "critical",
        dag_id.partition(".")[0],
        f"{dag_id}.{task_id}.{run_id}",
        f"{dag_id}: {task_id} failed",
        f"{type(error).__name__}: {error}\nrun {run_id}\n{log_url}",
    )
