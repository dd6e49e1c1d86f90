"""What work is waiting: cheap questions to the database, asked often."""

from collections.abc import Callable

from adapters.connect import Outside, outside
from pipeline.spec import UseCase


def find_retrain(use_case_name: str) -> dict[str, str] | None:
    """The decision to retrain that nobody answers yet, or None."""
    found = outside().warehouse.query(
        "select decision_id from retrains where use_case = %s and state in ('pending', 'running')", (use_case_name,)
    )
    return {"decision_id": found[0]["decision_id"]} if found else None


def pending_verbs(use_case: UseCase, outside: Outside) -> list[str]:
    """The steps that reconcile from the database and have something to do."""
    from tasks import score
    from tasks.build_features import build
    from tasks.deploy.deploy import find_undeployed
    from tasks.monitor import monitor

    steps: dict[str, Callable[[UseCase, Outside], object]] = {
        "build_features": build.pending_partitions,
        "score": score.pending,
        "monitor": monitor.pending,
        "deploy": find_undeployed,
    }
    return [verb for verb, find_work in steps.items() if find_work(use_case, outside)]
