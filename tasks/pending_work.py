"""Which steps have work waiting, found by few and cheap queries: `reconcile` repeats them every ten minutes."""

from collections.abc import Callable

from adapters.connect import Outside
from pipeline.spec import UseCase


def find_pending_verbs(use_case: UseCase, outside: Outside) -> list[str]:
    """The DAGs, by their verbs, that reconcile from the database and have something to do."""
    from tasks.build_features.build import pending_partitions
    from tasks.deploy.deploy import find_undeployed
    from tasks.monitor.monitor import is_due
    from tasks.score import find_unscored

    searches: dict[str, Callable[[UseCase, Outside], object]] = {
        "build_features": pending_partitions,
        "score": find_unscored,
        "monitor": is_due,
        "deploy": find_undeployed,
    }
    with outside.warehouse.session():
        return [verb for verb, search in searches.items() if search(use_case, outside)]
