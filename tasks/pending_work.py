"""What work is waiting: cheap questions to the database, asked often."""

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
    from tasks.deploy import deploy
    from tasks.monitor import monitor

    steps = {"build_features": build, "score": score, "monitor": monitor, "deploy": deploy}
    return [verb for verb, step in steps.items() if step.pending(use_case, outside)]
