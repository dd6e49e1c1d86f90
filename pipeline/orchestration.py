"""What every DAG shares: the use cases, their assets, pools, default arguments, retries and the alert on failure."""

import asyncio
import importlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import Asset, BaseOperator, RetryDecision, RetryPolicy
from airflow.triggers.base import BaseTrigger, TriggerEvent

from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase, use_cases

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

# Errors of the world, not of the data or the code: the same call may well succeed later. By name, so that judging an
# error imports nothing, and before MISTAKES, because some of them are ValueErrors too.
INFRASTRUCTURE = (
    "psycopg2.OperationalError",
    "psycopg2.InterfaceError",
    "botocore.exceptions.",
    "urllib3.exceptions.",
    "requests.exceptions.",
    "mlflow.exceptions.",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
)
# Errors that a second attempt would only repeat: bad data (tasks.errors.BadData is a ValueError) and broken code.
MISTAKES = (ValueError, TypeError, AssertionError, AttributeError, ImportError, NameError)
RETRIES = 8
MOMENT = r"^\d{4}-\d{2}-\d{2}(T00:00:00(Z|\+00:00))?$"  # an `as_of` parameter: midnight UTC of a day
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 5, 600


def declared() -> list[UseCase]:
    """Every use case of params.yaml. DAG files are parsed where most of the environment may be missing."""
    return list(use_cases(Path(os.environ.get("WINDSOCK_PARAMS") or REPOSITORY / "params.yaml")).values())


def clean_data(use_case: UseCase) -> Asset:
    """Woken when a partition of the source was landed and validated."""
    return Asset(f"{use_case.name}.clean")


def features(use_case: UseCase) -> Asset:
    """Woken when there is a new version of the feature dataset."""
    return Asset(f"{use_case.name}.features")


def scores(use_case: UseCase) -> Asset:
    """Woken when partitions were scored."""
    return Asset(f"{use_case.name}.scores")


def named(dotted: str) -> Callable[..., Any]:
    """A function of a package above: pipeline may not import tasks, so what it calls there is named."""
    module, _, function = dotted.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


class Retries(RetryPolicy):
    """Bad data and broken code fail at once; everything else is tried again, ever later."""

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,
        max_tries: int,  # noqa: ARG002  # Airflow's signature
        context: Any = None,  # noqa: ARG002
    ) -> RetryDecision:
        """Whether and when to try again."""
        names = [f"{kind.__module__}.{kind.__qualname__}" for kind in type(exception).__mro__]
        infrastructure = any(name.startswith(INFRASTRUCTURE) for name in names)
        if isinstance(exception, MISTAKES) and not infrastructure:
            return RetryDecision.fail(f"{names[0]}: trying again would give the same")
        delay = timedelta(seconds=min(FIRST_DELAY_SECONDS * 2 ** (try_number - 1), LONGEST_DELAY_SECONDS))
        return RetryDecision.retry(delay, f"{names[0]}: again in {delay}")


def alert_failure(context: Mapping[str, Any]) -> None:
    """Raise an alert about a task that failed for good; Airflow logs and forgets an error in here."""
    instance = context["task_instance"]
    named("tasks.failure.report")(
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
        "catchup": False,
        "max_active_runs": 1,
        "default_args": default_args(use_case.owner),
    }


def asked_partition(use_case: UseCase, partition_key: str | None, params: Mapping[str, Any]) -> Interval:
    """The partition a run is about: its partition key, else its `partition` parameter."""
    key = partition_key or params.get("partition")
    if not key:
        raise ValueError(f"name a partition: the day it starts, such as {use_case.source.first_partition}")
    return use_case.grid.partition(key)


def asked_moment(use_case: UseCase, as_of: str | None, default: datetime | None) -> datetime:
    """The data time a run is asked for: its `as_of` parameter (a day on which a partition starts), else the default."""
    if as_of:
        return use_case.grid.partition(as_of).start
    if default is None:
        raise ValueError(f"{use_case.name} has no features yet: run {use_case.name}.ingest first")
    return default


def asked_by(dag_run: Any) -> str:
    """Who started a run: the user's name in Airflow, else the run itself."""
    return str(dag_run.triggering_user_name or dag_run.run_id)


def rollout_time(use_case: UseCase) -> timedelta:
    """The longest a deployment may take: what shadow and canary wait for requests, and an hour for all the rest."""
    held = 2 * use_case.endpoint.rollout.hold_minutes if use_case.endpoint else 0
    return timedelta(minutes=held + 60)


def wake(outlet_events: Any, asset: Asset, key: str) -> None:
    """Attach a partition key to this run's event, without which (a run started by hand has none) nobody is woken."""
    outlet_events[asset].add_partitions(key)


class Until(BaseTrigger):
    """Waits in the triggerer until a function of a use case's name answers, and hands its answer (JSON) on."""

    def __init__(self, *, question: str, use_case: str, every_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.question, self.use_case, self.every_seconds = question, use_case, every_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer builds this again."""
        arguments = {"question": self.question, "use_case": self.use_case, "every_seconds": self.every_seconds}
        return f"{type(self).__module__}.{type(self).__qualname__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Ask, in a thread, since the database driver blocks; wait; ask again."""
        ask = await asyncio.to_thread(named, self.question)
        while (answer := await asyncio.to_thread(ask, self.use_case)) is None:
            await asyncio.sleep(self.every_seconds)
        yield TriggerEvent(answer)  # type: ignore[no-untyped-call]


class WaitUntil(BaseOperator):
    """Defers at once to `Until`: no worker slot is held while waiting. Returns the answer."""

    def __init__(self, *, question: str, use_case: str, every_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.question, self.use_case, self.every_seconds = question, use_case, every_seconds

    def execute(self, context: Any) -> None:  # noqa: ARG002
        """Hand over to the triggerer."""
        trigger = Until(question=self.question, use_case=self.use_case, every_seconds=self.every_seconds)
        self.defer(trigger=trigger, method_name="answered")

    def answered(self, context: Any, event: Any) -> Any:  # noqa: ARG002
        """The trigger's answer becomes this task's."""
        return event
