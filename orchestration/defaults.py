"""What every DAG and task starts from: the use cases, pools, default arguments, the alert on failure."""

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.retries import FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS, RETRIES, Retries
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases

if TYPE_CHECKING:
    from adapters.connect import Outside

# Pools that must exist, with their slots and why.
POOLS = {
    "gpu": (1, "one training at a time on the accelerator"),
    "dvc": (1, "one build at a time in the data workspace"),
}

# Where trainings run: Celery has a queue, Kubernetes a pod (infra/helm/values.yaml); other executors read neither.
ACCELERATOR: dict[str, Any] = {
    "pool": "gpu",
    "queue": "gpu",
    "executor_config": {"pod_template_file": "/etc/windsock/pods/gpu.yaml"},
}


def declared() -> list[UseCase]:
    """Every use case of params.yaml. DAG files are parsed where most of the environment may be missing."""
    return list(use_cases(Path(os.environ.get("WINDSOCK_PARAMS") or REPOSITORY / "params.yaml")).values())


def reach_outside() -> "Outside":
    """What a task may talk to; its clients, which are heavy, are imported where the task runs."""
    from adapters.connect import outside

    return outside()


def alert_failure(context: Mapping[str, Any]) -> None:
    """Raise an alert about a task that failed for good; Airflow logs and forgets an error in here."""
    from tasks import failure

    instance = context["task_instance"]
    failure.alert_task_failure(
        dag_id=instance.dag_id,
        task_id=instance.task_id,
        run_id=instance.run_id,
        error=context.get("exception"),
        log_url=instance.log_url,
    )


def default_args(owner: str) -> dict[str, Any]:
    """What every task starts from; each task names its own execution timeout."""
    return {
        "owner": owner,
        "retries": RETRIES,
        "retry_policy": Retries(),
        # A task whose process was killed raised nothing that the policy could judge: this says when it starts again.
        "retry_delay": timedelta(seconds=FIRST_DELAY_SECONDS),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(seconds=LONGEST_DELAY_SECONDS),
        "on_failure_callback": alert_failure,
    }


def dag_args(use_case: UseCase, verb: str, runbook: str | None) -> dict[str, Any]:
    """What every DAG of a use case has in common. One run at a time: all of a verb's runs reconcile the same state."""
    return {
        "dag_id": f"{use_case.name}.{verb}",
        "dag_display_name": f"{use_case.name}: {verb.replace('_', ' ')}",
        "description": (runbook or "").partition("\n")[0],
        "doc_md": runbook,
        "tags": [use_case.name, verb],
        "catchup": False,  # no schedule takes more of the past than the tick before now
        "is_paused_upon_creation": use_case.paused,
        "max_active_runs": 1,
        "default_args": default_args(use_case.owner),
    }


def rollout_time(use_case: UseCase) -> timedelta:
    """The longest a deployment may take: what shadow and canary wait for requests, and an hour for all the rest."""
    held = 2 * use_case.endpoint.rollout.hold_minutes if use_case.endpoint else 0
    return timedelta(minutes=held + 60)
